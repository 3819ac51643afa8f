//! What rows need while they are loaded and while changes are applied ([`LoadingFacts`]).
//!
//! Runs no user code: a function's needs are read from its text ([`tokens`]), from the expressions that
//! rows run on, callee by callee ([`search_path`]).

pub(super) mod altered;
mod extensions;
mod search_path;
mod tokens;

use std::pin::pin;

use futures_util::TryStreamExt;
use steep_protocol::TableName;
use steep_protocol::limits::LISTED_MAX;
use steep_protocol::message::facts::{LoadingFacts, Stops};
use steep_protocol::message::job::TableFilter;
use tokio_postgres::types::ToSql;

use crate::pg::catalog::{Partitions, USER_RELATION, table_name};
use crate::pg::{PgError, Session};
use crate::task::Task;

/// Limit for expressions that call functions of user languages; more are ignored.
const ROOTS_MAX: usize = 20_000;

/// An expression that rows run.
#[derive(Debug, Clone)]
struct Root {
    label: String,
    stops: Stops,
    functions: Vec<u32>,
}

/// Expressions evaluated when a row is written. Their trees name the functions they call, while PostgreSQL
/// records no dependencies on its own functions. Columns: kind, schema, relation or domain, name within,
/// functions in languages other than C, whether the result may follow a setting.
fn roots_sql() -> String {
    format!(
        "WITH code AS (
    SELECT 'check' AS kind, n.nspname, c.relname, k.conname AS name, k.conbin::text AS tree
    FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE k.contype = 'c' AND k.conislocal AND {USER_RELATION}
        AND coalesce((to_jsonb(k) ->> 'conenforced')::boolean, true)
    UNION ALL
    SELECT 'domain', n.nspname, t.typname, k.conname, k.conbin::text
    FROM pg_constraint k JOIN pg_type t ON t.oid = k.contypid JOIN pg_namespace n ON n.oid = t.typnamespace
    WHERE k.contype = 'c' AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'steep_repl')
        AND EXISTS (SELECT FROM pg_depend d WHERE d.refclassid = 'pg_type'::regclass AND d.refobjid = t.oid
            AND d.classid IN ('pg_class'::regclass, 'pg_type'::regclass) AND d.objid <> t.typarray)
    UNION ALL
    SELECT 'generated', n.nspname, c.relname, a.attname, d.adbin::text
    FROM pg_attrdef d JOIN pg_attribute a ON a.attrelid = d.adrelid AND a.attnum = d.adnum
    JOIN pg_class c ON c.oid = d.adrelid JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE a.attgenerated = 's' AND {USER_RELATION}
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
SELECT code.nspname::text, code.relname::text, code.kind, code.name::text,
    array_agg(p.oid) FILTER (WHERE l.lanname NOT IN ('internal', 'c')),
    code.tree ~ '[{{](SQLVALUEFUNCTION|COERCEVIAIO) '
        OR coalesce(bool_or(p.provolatile <> 'i' OR l.lanname NOT IN ('internal', 'c')), false)
FROM code
LEFT JOIN LATERAL regexp_matches(code.tree, ':(op)?funcid ([0-9]+)', 'g') AS m (found) ON true
LEFT JOIN pg_proc p ON p.oid = m.found[2]::oid LEFT JOIN pg_language l ON l.oid = p.prolang
GROUP BY code.kind, code.nspname, code.relname, code.name, code.tree
ORDER BY 1, 2, 3, 4"
    )
}

/// Columns whose values name database objects or roles.
fn naming_sql() -> String {
    format!(
        "SELECT n.nspname::text, c.relname::text, a.attname::text, format_type(a.atttypid, NULL)
        FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
        JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_type t ON t.oid = a.atttypid
        LEFT JOIN pg_type b ON b.oid IN (t.typelem, t.typbasetype) AND b.oid <> 0
        WHERE c.relkind = 'r' AND a.attnum > 0 AND NOT a.attisdropped AND {USER_RELATION}
            AND coalesce(b.typname, t.typname) IN ('regclass', 'regproc', 'regprocedure', 'regoper',
                'regoperator', 'regrole')
            AND coalesce(b.oid, t.oid) < 10000
        ORDER BY 1, 2, 3"
    )
}

pub(super) async fn gather(
    task: &Task,
    session: &Session,
    filter: &TableFilter,
) -> Result<LoadingFacts, PgError> {
    let partitions = Partitions::load(session).await?;
    let admitted = |name: &TableName| partitions.admitted(filter, name);
    let mut facts = LoadingFacts::default();
    let mut roots = Vec::new();
    let (sql, none) = (roots_sql(), [] as [&(dyn ToSql + Sync); 0]);
    let rows = session
        .run(&task.cancel, session.query_raw(&sql, none))
        .await?;
    let mut rows = pin!(rows);
    while let Some(row) = session.run(&task.cancel, rows.try_next()).await? {
        let of = table_name(&row, 0)?;
        let kind: &str = row.try_get(2)?;
        if kind != "domain" && !admitted(&of) {
            continue;
        }
        let name: &str = row.try_get(3)?;
        let (label, stops) = match kind {
            "check" => (format!("constraint {name} of {of}"), Stops::Rows),
            "domain" => (format!("constraint {name} of domain {of}"), Stops::Rows),
            "generated" => (format!("generated column {of}.{name}"), Stops::Rows),
            "partition" => (format!("the partition key of {of}"), Stops::Rows),
            _ => (format!("index {name} of {of}"), Stops::Index),
        };
        if stops == Stops::Rows && row.try_get(5)? {
            let sensitive = &mut facts.sensitive;
            sensitive.count += 1;
            if sensitive.names.len() < LISTED_MAX {
                sensitive.names.push(label.clone());
            }
        }
        let functions: Option<Vec<u32>> = row.try_get(4)?;
        if let Some(functions) = functions.filter(|_| roots.len() < ROOTS_MAX) {
            roots.push(Root {
                label,
                stops,
                functions,
            });
        }
    }
    facts.search_path = search_path::needs(task, session, &roots).await?;
    let sql = naming_sql();
    for row in session.run(&task.cancel, session.query(&sql, &[])).await? {
        let of = table_name(&row, 0)?;
        if admitted(&of) {
            let (column, kind): (&str, &str) = (row.try_get(2)?, row.try_get(3)?);
            let label = format!("{of}.{column} ({kind})");
            facts.naming_columns.count += 1;
            if facts.naming_columns.names.len() < LISTED_MAX {
                facts.naming_columns.names.push(label);
            }
        }
    }
    facts.altered = altered::functions(task, session, filter).await?;
    facts.extension_rows = extensions::rows(task, session, filter).await?;
    Ok(facts)
}
