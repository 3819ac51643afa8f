//! The mark on each of our publications and subscriptions: the snapshot at which it was complete.
//!
//! It is a comment, so it disappears with the object, and a restarted agent finds it. A catalog row that
//! this snapshot does not see is newer: a table that was added or attached since. An object that was
//! dropped and created again has no mark.

use tokio_postgres::types::Type;

use super::{PgError, Session, literal};

/// The snapshot, the owner, and a digest of everything else that must not change.
const PATTERN: &str = "^steep_repl mark [0-9]+:[0-9]+:[0-9,]* [0-9]+ [0-9a-f]{64}$";

/// The mark in a comment; NULL where it is not one. `comment`, like the arguments below, is an SQL
/// expression.
pub(crate) fn of(comment: &str) -> String {
    format!("substring({comment} FROM '{PATTERN}')")
}

/// The snapshot's text in a mark.
pub(crate) fn since(mark: &str) -> String {
    format!("split_part({mark}, ' ', 3)")
}

/// A number for a mark; 0 without one.
pub(crate) fn number(mark: &str) -> String {
    format!("coalesce(hashtextextended({mark}, 0), 0)")
}

/// The owner in a mark.
pub(crate) fn owner(mark: &str) -> String {
    format!("split_part({mark}, ' ', 4)")
}

/// The digest in a mark.
pub(crate) fn digest(mark: &str) -> String {
    format!("split_part({mark}, ' ', 5)")
}

/// SHA-256 of a text.
pub(crate) fn sha256(text: &str) -> String {
    format!("encode(sha256(convert_to({text}, 'UTF8')), 'hex')")
}

/// An `xmin` as a number of 64 bits. It has 32; its epoch is the current one, or the previous one where it would
/// otherwise lie in the future.
pub(crate) fn whole_xid(xid: &str) -> String {
    let now = "pg_snapshot_xmax(pg_current_snapshot())::text::bigint";
    let number = format!("{xid}::text::bigint");
    format!(
        "(CASE WHEN {number} < ({now} & 4294967295) \
             THEN ({now} & ~4294967295) | {number} \
             ELSE greatest((({now} & ~4294967295) | {number}) - 4294967296, 3) END)"
    )
}

/// Whether the row with that `xmin` was written after the snapshot `since`.
pub(crate) fn late(xid: &str, since: &str) -> String {
    let whole = whole_xid(xid);
    format!("NOT pg_visible_in_snapshot({whole}::text::xid8, ({since})::pg_snapshot)")
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Marked {
    Publication,
    Subscription,
}

impl Marked {
    /// Digest of what must not change, for the alias `p` of `pg_publication` or `s` of `pg_subscription`.
    pub(crate) fn digest(self) -> String {
        sha256(match self {
            Self::Publication => "(to_jsonb(p) - 'pubowner' - 'oid')::text",
            Self::Subscription => {
                "concat_ws(' ', s.subslotname::text, array_to_string(s.subpublications, ' '))"
            }
        })
    }
}

/// Marks the publication or subscription with the snapshot of `at`'s transaction; replaces an older mark.
pub(crate) async fn set(
    session: &Session,
    at: &Session,
    what: Marked,
    name: &str,
) -> Result<(), PgError> {
    let sql = "SELECT pg_current_snapshot()::text";
    let row = at.query_typed(sql, &[]).await?;
    let snapshot = match row.first() {
        Some(row) => readable(row.try_get(0)?),
        None => return Err(PgError::Protocol("no snapshot".to_owned())),
    };
    let (kind, from) = match what {
        Marked::Publication => (
            "PUBLICATION",
            "pubowner::text, {digest} FROM pg_publication p WHERE p.pubname = $1",
        ),
        Marked::Subscription => (
            "SUBSCRIPTION",
            "subowner::text, {digest} FROM pg_subscription s \
             JOIN pg_database d ON d.oid = s.subdbid AND d.datname = current_database() \
             WHERE s.subname = $1",
        ),
    };
    let sql = format!("SELECT {}", from.replace("{digest}", &what.digest()));
    let rows = session.query_typed(&sql, &[(&name, Type::TEXT)]).await?;
    let Some(row) = rows.first() else {
        return Ok(());
    };
    let (owner, digest): (String, String) = (row.try_get(0)?, row.try_get(1)?);
    let quoted = steep_protocol::Identifier::parse(name)
        .map_err(|_| PgError::Protocol("a name that is none".to_owned()))?
        .quoted();
    let mark = literal(&format!("steep_repl mark {snapshot} {owner} {digest}"));
    session
        .batch_execute(&format!("COMMENT ON {kind} {quoted} IS {mark}"))
        .await?;
    Ok(())
}

/// The snapshot as PostgreSQL also reads it. That of a slot can have an `xmin` above its `xmax`, after transactions that
/// were rolled back: `pg_snapshot` prints it and then refuses it. What is below `xmin` is visible whatever `xmax` is
/// (`XidInMVCCSnapshot`), so `xmax` can be raised to it.
fn readable(snapshot: &str) -> String {
    let bounds = snapshot.split_once(':').and_then(|(xmin, rest)| {
        let (xmax, _) = rest.split_once(':')?;
        Some((xmin.parse::<u64>().ok()?, xmax.parse::<u64>().ok()?))
    });
    match bounds {
        Some((xmin, xmax)) if xmin > xmax => format!("{xmin}:{xmin}:"),
        _ => snapshot.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_of_a_slot_is_one_that_postgresql_reads() {
        for (printed, read) in [
            ("41847:41830:", "41847:41847:"),
            ("10:10:", "10:10:"),
            ("10:20:11,13", "10:20:11,13"),
        ] {
            assert_eq!(readable(printed), read);
        }
    }
}
