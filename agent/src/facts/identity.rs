//! How each table identifies its rows: one query for any number of tables, folded into groups.
//!
//! The coordinator judges, for both versions, which statements a group allows.

use std::collections::BTreeMap;
use std::pin::pin;

use futures_util::TryStreamExt;
use steep_protocol::TableName;
use steep_protocol::message::facts::Listed;
use steep_protocol::message::identity::{
    IdentityGroup, IdentityTraits, KeyColumns, MissingIdentity, PrimaryKey, RowIdentity,
};
use steep_protocol::message::job::TableFilter;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use super::content::add_text;
use crate::pg::catalog::{Partitions, USER_RELATION, table_name};
use crate::pg::{PgError, Session};
use crate::task::Task;

/// Types without equality, and those that contain one: arrays, composites and domains are compared by their
/// parts (`lookup_type_cache` in typcache.c). Equality comes from a default btree or hash operator class of
/// the type or of one it is binary coercible to (`GetDefaultOpClass` in indexcmds.c). Enums, ranges and
/// multiranges always have it.
const INCOMPARABLE: &str = "
    parts (whole, part) AS (
        SELECT DISTINCT a.atttypid, a.atttypid FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
        WHERE c.relkind = 'r' AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
        UNION
        SELECT p.whole, next.part FROM parts p JOIN pg_type t ON t.oid = p.part
        CROSS JOIN LATERAL (
            SELECT t.typbasetype WHERE t.typtype = 'd'
            UNION ALL SELECT t.typelem
                WHERE t.typtype = 'b' AND t.typsubscript = 'array_subscript_handler'::regproc
            UNION ALL SELECT a.atttypid FROM pg_attribute a
                WHERE t.typtype = 'c' AND a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped
        ) AS next (part)
    ), incomparable AS (
        SELECT DISTINCT p.whole AS oid FROM parts p JOIN pg_type t ON t.oid = p.part
        WHERE t.typtype = 'b' AND t.typsubscript <> 'array_subscript_handler'::regproc
        AND NOT EXISTS (SELECT FROM pg_opclass o JOIN pg_am m ON m.oid = o.opcmethod
            WHERE m.amname IN ('btree', 'hash') AND o.opcdefault
            AND (o.opcintype = t.oid OR EXISTS (SELECT FROM pg_cast k WHERE k.castsource = t.oid
                AND k.casttarget = o.opcintype AND k.castmethod = 'b' AND k.castcontext = 'i')))
    )";

/// Whether a generated column is among the key columns of `index`, an alias of `pg_index`; NULL if there
/// is none. A CTE of all keys has no statistics, and PostgreSQL may scan it once per table.
fn generated(index: &str) -> String {
    format!(
        "CASE WHEN {index}.indrelid IS NOT NULL THEN EXISTS (
            SELECT FROM pg_attribute a WHERE a.attrelid = {index}.indrelid AND a.attgenerated <> ''
                AND a.attnum = ANY ({index}.indkey[0:{index}.indnkeyatts - 1])) END"
    )
}

/// Leaves out tables whose identity is a key of ordinary columns, with which nothing can go wrong.
fn sql() -> String {
    format!(
        "WITH RECURSIVE {INCOMPARABLE}, described AS (
            SELECT n.nspname, c.relname,
                CASE c.relreplident WHEN 'f' THEN 'full' WHEN 'n' THEN 'nothing'
                    WHEN 'i' THEN CASE WHEN r.indimmediate IS NOT TRUE THEN 'index_lost'
                        WHEN {replica_generated} THEN 'key_generated' ELSE 'key' END
                    ELSE CASE WHEN p.indrelid IS NULL THEN 'no_key'
                        WHEN NOT p.indimmediate THEN 'deferrable'
                        WHEN {primary_generated} THEN 'key_generated' ELSE 'key' END END AS identity,
                p.indimmediate AS key_immediate, {primary_generated} AS key_generated,
                EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attgenerated = 's'
                    AND NOT a.attisdropped) AS stored_columns,
                EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attgenerated = 'v'
                    AND NOT a.attisdropped) AS virtual_columns,
                (SELECT a.attname::text FROM pg_attribute a JOIN incomparable t ON t.oid = a.atttypid
                    WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
                    AND a.attgenerated = '' ORDER BY a.attnum LIMIT 1) AS incomparable,
                pg_stat_get_tuples_updated(c.oid) + pg_stat_get_tuples_deleted(c.oid) > 0 AS changed
            FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
            LEFT JOIN pg_index p ON p.indrelid = c.oid AND p.indisprimary AND p.indisvalid
            LEFT JOIN pg_index r ON r.indrelid = c.oid AND r.indisreplident AND r.indisvalid
            WHERE c.relkind = 'r' AND c.relpersistence = 'p' AND {USER_RELATION}
        )
        SELECT nspname::text, relname::text, identity, key_immediate, key_generated,
            stored_columns, virtual_columns, incomparable, changed
        FROM described WHERE identity <> 'key' ORDER BY nspname, relname",
        replica_generated = generated("r"),
        primary_generated = generated("p"),
    )
}

/// The tables that `filter` admits, in groups.
pub(super) async fn gather(
    task: &Task,
    session: &Session,
    filter: &TableFilter,
) -> Result<Vec<IdentityGroup>, PgError> {
    let partitions = Partitions::load(session).await?;
    let sql = sql();
    let none: [&(dyn ToSql + Sync); 0] = [];
    let rows = session
        .run(&task.cancel, session.query_raw(&sql, none))
        .await?;
    let mut rows = pin!(rows);
    let mut groups = Groups::default();
    while let Some(row) = session.run(&task.cancel, rows.try_next()).await? {
        let name = table_name(&row, 0)?;
        if partitions.admitted(filter, &name) {
            groups.add(&name, &Described::read(&row)?);
        }
    }
    Ok(groups.finish())
}

struct Described {
    traits: IdentityTraits,
    changed: bool,
    /// The first column without equality.
    incomparable: Option<String>,
}

impl Described {
    fn read(row: &Row) -> Result<Self, PgError> {
        let incomparable: Option<String> = row.try_get("incomparable")?;
        let key = (row.try_get("key_immediate")?, row.try_get("key_generated")?);
        Ok(Self {
            traits: IdentityTraits {
                identity: identity(row.try_get("identity")?)?,
                primary_key: primary_key(key),
                stored_columns: row.try_get("stored_columns")?,
                virtual_columns: row.try_get("virtual_columns")?,
                comparable: incomparable.is_none(),
            },
            changed: row.try_get("changed")?,
            incomparable,
        })
    }
}

fn identity(text: &str) -> Result<RowIdentity, PgError> {
    Ok(match text {
        "key" => RowIdentity::Key(KeyColumns::Ordinary),
        "key_generated" => RowIdentity::Key(KeyColumns::Generated),
        "full" => RowIdentity::Full,
        "nothing" => RowIdentity::Missing(MissingIdentity::Nothing),
        "no_key" => RowIdentity::Missing(MissingIdentity::NoPrimaryKey),
        "deferrable" => RowIdentity::Missing(MissingIdentity::Deferrable),
        "index_lost" => RowIdentity::Missing(MissingIdentity::IndexLost),
        other => {
            let text = format!("replica identity {other:?} was not asked for");
            return Err(PgError::Protocol(text));
        }
    })
}

/// From whether the key is immediate and whether it has a generated column.
fn primary_key(key: (Option<bool>, Option<bool>)) -> PrimaryKey {
    let (Some(immediate), Some(generated)) = key else {
        return PrimaryKey::None;
    };
    let columns = match generated {
        true => KeyColumns::Generated,
        false => KeyColumns::Ordinary,
    };
    match immediate {
        true => PrimaryKey::Immediate(columns),
        false => PrimaryKey::Deferrable(columns),
    }
}

#[derive(Default)]
struct Groups(BTreeMap<(IdentityTraits, bool), Listed>);

impl Groups {
    /// A column without equality is reported with its table.
    fn add(&mut self, name: &TableName, described: &Described) {
        let group = (described.traits, described.changed);
        let label = match &described.incomparable {
            Some(column) => format!("{name} (column {column})"),
            None => name.to_string(),
        };
        add_text(self.0.entry(group).or_default(), label);
    }

    fn finish(self) -> Vec<IdentityGroup> {
        let group = |((traits, changed), tables)| IdentityGroup {
            traits,
            changed,
            tables,
        };
        self.0.into_iter().map(group).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_that_are_alike_are_one_group() {
        let name = |table: &str| TableName::new("s", table).unwrap();
        let described = |changed, incomparable: Option<&str>| Described {
            traits: IdentityTraits {
                identity: RowIdentity::Full,
                primary_key: primary_key((None, None)),
                stored_columns: false,
                virtual_columns: false,
                comparable: incomparable.is_none(),
            },
            changed,
            incomparable: incomparable.map(str::to_owned),
        };
        let mut groups = Groups::default();
        groups.add(&name("a"), &described(false, Some("body")));
        groups.add(&name("b"), &described(true, None));
        groups.add(&name("c"), &described(false, Some("x")));
        let listed = groups.finish().into_iter().map(|group| group.tables.names);
        let listed: Vec<_> = listed.collect();
        assert_eq!(
            listed,
            [
                vec!["s.a (column body)".to_owned(), "s.c (column x)".to_owned()],
                vec!["s.b".to_owned()],
            ]
        );
    }

    #[test]
    fn every_word_of_the_query_is_known_and_no_other() {
        let sql = sql();
        for word in [
            "full",
            "nothing",
            "index_lost",
            "no_key",
            "deferrable",
            "key_generated",
            "key",
        ] {
            assert!(sql.contains(&format!("'{word}'")), "{word}");
            assert!(identity(word).is_ok(), "{word}");
        }
        assert!(identity("index").is_err());
    }
}
