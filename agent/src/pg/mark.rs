//! The mark on each publication and subscription of ours: the snapshot at which it was complete.
//!
//! A comment on the object, so that it goes with it and a restarted agent finds it. A catalog row that
//! this snapshot does not see was written later: a table that was put in, attached or added since. An
//! object that was dropped and made again has no mark.

use tokio_postgres::types::Type;

use super::{PgError, Session, literal};

/// What a mark looks like: the snapshot, the owner, and a digest over what else must stay as it was.
const PATTERN: &str = "^steep_repl mark [0-9]+:[0-9]+:[0-9,]* [0-9]+ [0-9a-f]{64}$";

/// The mark in an expression that gives a comment; NULL where it is none.
pub(crate) fn of(comment: &str) -> String {
    format!("substring({comment} FROM '{PATTERN}')")
}

/// The snapshot's text in an expression that gives a mark.
pub(crate) fn since(mark: &str) -> String {
    format!("split_part({mark}, ' ', 3)")
}

/// A number for an expression that gives a mark; 0 where there is none.
pub(crate) fn number(mark: &str) -> String {
    format!("coalesce(hashtextextended({mark}, 0), 0)")
}

/// The owner in an expression that gives a mark.
pub(crate) fn owner(mark: &str) -> String {
    format!("split_part({mark}, ' ', 4)")
}

/// The digest in an expression that gives a mark.
pub(crate) fn digest(mark: &str) -> String {
    format!("split_part({mark}, ' ', 5)")
}

/// SHA-256 over an expression that gives text.
pub(crate) fn sha256(text: &str) -> String {
    format!("encode(sha256(convert_to({text}, 'UTF8')), 'hex')")
}

/// Whether a row whose `xmin` is `xid` was written after the snapshot whose text `since` gives. Transactions in rows have 32
/// bits; the epoch is that of the newest one, or the one before where that would be in the future.
pub(crate) fn late(xid: &str, since: &str) -> String {
    let now = "pg_snapshot_xmax(pg_current_snapshot())::text::bigint";
    let number = format!("{xid}::text::bigint");
    format!(
        "NOT pg_visible_in_snapshot((CASE WHEN {number} < ({now} & 4294967295) \
             THEN ({now} & ~4294967295) | {number} \
             ELSE greatest((({now} & ~4294967295) | {number}) - 4294967296, 3) END)::text::xid8, ({since})::pg_snapshot)"
    )
}

/// What is marked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Marked {
    /// A publication of this database.
    Publication,
    /// A subscription of this database.
    Subscription,
}

impl Marked {
    /// For an alias `p` of `pg_publication` or `s` of `pg_subscription`: what must stay as it is.
    pub(crate) fn digest(self) -> String {
        sha256(match self {
            Self::Publication => "(to_jsonb(p) - 'pubowner' - 'oid')::text",
            Self::Subscription => {
                "concat_ws(' ', s.subslotname::text, array_to_string(s.subpublications, ' '))"
            }
        })
    }
}

/// Marks the publication or subscription of that name with the snapshot of `at`'s transaction. Done
/// again, it begins anew.
///
/// # Errors
/// [`PgError`] of a statement.
pub(crate) async fn set(
    session: &Session,
    at: &Session,
    what: Marked,
    name: &str,
) -> Result<(), PgError> {
    let sql = "SELECT pg_current_snapshot()::text";
    let row = at.query_typed(sql, &[]).await?;
    let snapshot: String = match row.first() {
        Some(row) => row.try_get(0)?,
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
