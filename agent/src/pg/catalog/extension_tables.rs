//! Tables and sequences of extensions that hold user data (`pg_extension_config_dump`).

use steep_protocol::TableName;

use super::table_name;
use crate::pg::{PgError, Session};

#[derive(Debug, Clone)]
pub(crate) struct ExtensionTable {
    pub(crate) name: TableName,
    pub(crate) extension: String,
    pub(crate) kind: ExtensionRelation,
}

#[derive(Debug, Clone)]
pub(crate) enum ExtensionRelation {
    Table {
        /// Selects user rows, as the extension's script wrote it: `WHERE …`, or empty.
        condition: String,
    },
    Sequence,
}

/// Extensions have a handful.
const TABLES_MAX: i64 = 1_000;

/// Except our own extension, whose records stay here.
const TABLES_SQL: &str = "
SELECT n.nspname::text, c.relname::text, e.extname::text, c.relkind = 'S', coalesce(x.condition, '')
FROM pg_extension e CROSS JOIN LATERAL unnest(e.extconfig, e.extcondition) AS x (oid, condition)
JOIN pg_class c ON c.oid = x.oid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'S') AND e.extname <> 'steep_repl'
    AND has_schema_privilege(n.oid, 'USAGE') AND CASE c.relkind
        WHEN 'S' THEN has_sequence_privilege(c.oid, 'SELECT') ELSE has_table_privilege(c.oid, 'SELECT') END
ORDER BY 1, 2 LIMIT $1";

/// Those that the current role may read.
pub(crate) async fn read_extension_tables(
    session: &Session,
) -> Result<Vec<ExtensionTable>, PgError> {
    let mut found = Vec::new();
    for row in session.query(TABLES_SQL, &[&TABLES_MAX]).await? {
        found.push(ExtensionTable {
            name: table_name(&row, 0)?,
            extension: row.try_get(2)?,
            kind: match row.try_get(3)? {
                true => ExtensionRelation::Sequence,
                false => ExtensionRelation::Table {
                    condition: row.try_get(4)?,
                },
            },
        });
    }
    Ok(found)
}
