//! Extension functions that were declared immutable by hand. No dump carries this change, and without it
//! PostgreSQL creates no generated columns, partition keys or indexes that call them. Checks and domains
//! may call any function.

use std::collections::BTreeMap;

use steep_protocol::limits::LISTED_MAX;
use steep_protocol::message::facts::{AlteredFunction, Listed};
use steep_protocol::message::job::TableFilter;
use steep_protocol::{Identifier, TableName};

use crate::pg::catalog::{Partitions, USER_RELATION, table_name};
use crate::pg::{PgError, Session};
use crate::task::Task;

/// Rows of an answer that are read.
const ROWS_MAX: i64 = 2_000;

/// A function's row is as its extension left it where it is as old as its membership, as the last update of
/// the extension, or as a member that another update added. A change of owner or grants makes it younger
/// too. Columns: schema, relation, kind, name within, function, extension, its schema, whether nothing else
/// explains the change.
fn altered_sql() -> String {
    format!(
        "WITH altered AS (
    SELECT p.oid, format('%I.%I(%s)', n.nspname, p.proname, pg_get_function_identity_arguments(p.oid)) AS function,
        e.extname, s.nspname,
        p.proacl::text IS NOT DISTINCT FROM (SELECT i.initprivs::text FROM pg_init_privs i
                WHERE i.classoid = 'pg_proc'::regclass AND i.objoid = p.oid AND i.objsubid = 0)
            AND p.proowner IN (e.extowner, 10) AS sure
    FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
    JOIN pg_depend d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
    JOIN pg_extension e ON d.refclassid = 'pg_extension'::regclass AND e.oid = d.refobjid
    JOIN pg_namespace s ON s.oid = e.extnamespace
    WHERE p.provolatile = 'i' AND p.xmin <> d.xmin AND p.xmin <> e.xmin
        AND NOT EXISTS (SELECT FROM pg_depend o WHERE o.refclassid = d.refclassid AND o.refobjid = d.refobjid
            AND o.deptype = 'e' AND o.xmin = p.xmin)
), code AS (
    SELECT 'generated' AS kind, n.nspname, c.relname, a.attname AS name, d.adbin::text AS tree
    FROM pg_attrdef d JOIN pg_attribute a ON a.attrelid = d.adrelid AND a.attnum = d.adnum
    JOIN pg_class c ON c.oid = d.adrelid JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE a.attgenerated <> '' AND {USER_RELATION}
    UNION ALL
    SELECT 'partition', n.nspname, c.relname, '', p.partexprs::text
    FROM pg_partitioned_table p JOIN pg_class c ON c.oid = p.partrelid
    JOIN pg_namespace n ON n.oid = c.relnamespace WHERE p.partexprs IS NOT NULL AND {USER_RELATION}
    UNION ALL
    SELECT 'index', n.nspname, c.relname, x.relname,
        coalesce(i.indexprs::text, '') || coalesce(i.indpred::text, '')
    FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid JOIN pg_class x ON x.oid = i.indexrelid
    JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE (i.indexprs IS NOT NULL OR i.indpred IS NOT NULL) AND NOT x.relispartition AND {USER_RELATION}
)
SELECT DISTINCT code.nspname::text, code.relname::text, code.kind, code.name::text,
    altered.function, altered.extname::text, altered.nspname::text, altered.sure
FROM altered JOIN code ON code.tree ~ (':(op)?funcid ' || altered.oid || '[^0-9]')
ORDER BY 1, 2, 3, 4, 5 LIMIT {ROWS_MAX}"
    )
}

const MUTABLE_SQL: &str = "
SELECT format('%I.%I(%s)', n.nspname, p.proname, pg_get_function_identity_arguments(p.oid))
FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
JOIN pg_depend d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
WHERE p.provolatile <> 'i' AND p.prokind = 'f' ORDER BY 1 LIMIT $1";

/// Those that an admitted object depends on, at most [`LISTED_MAX`].
pub(super) async fn functions(
    task: &Task,
    session: &Session,
    filter: &TableFilter,
) -> Result<Vec<AlteredFunction>, PgError> {
    let partitions = Partitions::load(session).await?;
    let admitted = |name: &TableName| partitions.admitted(filter, name);
    let mut found: BTreeMap<String, AlteredFunction> = BTreeMap::new();
    let sql = altered_sql();
    for row in session.run(&task.cancel, session.query(&sql, &[])).await? {
        let of = table_name(&row, 0)?;
        if !admitted(&of) {
            continue;
        }
        let (kind, name): (&str, &str) = (row.try_get(2)?, row.try_get(3)?);
        let function: String = row.try_get(4)?;
        let quoted =
            |text: &str| Identifier::parse(text).map_or_else(|_| String::new(), |i| i.quoted());
        let entry = found
            .entry(function.clone())
            .or_insert_with(|| AlteredFunction {
                function,
                extension: String::new(),
                schema: String::new(),
                sure: false,
                tables: Listed::default(),
                indexes: Listed::default(),
            });
        entry.extension = quoted(row.try_get(5)?);
        entry.schema = quoted(row.try_get(6)?);
        entry.sure = row.try_get(7)?;
        let (list, label) = match kind {
            "generated" => (&mut entry.tables, format!("generated column {of}.{name}")),
            "partition" => (&mut entry.tables, format!("the partition key of {of}")),
            _ => (&mut entry.indexes, format!("index {name} of {of}")),
        };
        list.count += 1;
        if list.names.len() < LISTED_MAX {
            list.names.push(label);
        }
    }
    Ok(found.into_values().take(LISTED_MAX).collect())
}

/// Extension functions on the target that are not immutable.
pub(in crate::facts) async fn mutable(
    task: &Task,
    session: &Session,
) -> Result<Vec<String>, PgError> {
    let rows = session
        .run(&task.cancel, session.query(MUTABLE_SQL, &[&ROWS_MAX]))
        .await?;
    rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
}
