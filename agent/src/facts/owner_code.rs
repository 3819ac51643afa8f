//! Code of table owners that runs while rows are loaded, and the rights it would have.
//!
//! Checks, stored generated columns, domains, partition keys and indexes call functions for every row that
//! COPY writes, as the loading role. `pg_depend` lists these functions except PostgreSQL's own, some of which
//! run statements given as text; an index cannot call those.
//!
//! Our own copy drops most indexes of existing tables, and makes those of a new schema last. To build an
//! index, PostgreSQL acts as the table's owner.

use std::collections::HashSet;

use steep_protocol::TableName;
use steep_protocol::limits::LISTED_MAX;
use steep_protocol::message::facts::Listed;
use steep_protocol::message::job::TableFilter;

use crate::deferred::indexes;
use crate::pg::catalog::{Partitions, USER_RELATION, table_name};
use crate::pg::{PgError, Session};
use crate::task::Task;

/// Rows of the answer that are read; far more than are listed.
const ROWS_MAX: usize = 100 * LISTED_MAX;

/// What the role may do beyond its own objects. For a superuser, only that it is one.
const POWERS_SQL: &str = "
    SELECT unnest(CASE WHEN r.rolsuper THEN ARRAY['SUPERUSER'] ELSE array_remove(ARRAY[
            CASE WHEN r.rolcreaterole THEN 'CREATEROLE' END,
            CASE WHEN r.rolbypassrls THEN 'BYPASSRLS' END,
            CASE WHEN r.rolreplication THEN 'REPLICATION' END], NULL)
        || ARRAY(SELECT p.rolname::text FROM pg_roles p
            WHERE p.rolname IN ('pg_execute_server_program', 'pg_read_server_files',
                'pg_write_server_files', 'pg_read_all_data', 'pg_write_all_data')
            AND pg_has_role(p.oid, 'USAGE') ORDER BY 1) END)
    FROM pg_roles r WHERE r.rolname = current_user";

/// The tables that a job could load, except that a filter may leave some out. Columns: schema, table, oid.
fn loadable_sql() -> String {
    format!(
        "SELECT n.nspname::text, c.relname::text, c.oid
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.relkind = 'r' AND c.relpersistence = 'p' AND {USER_RELATION}"
    )
}

/// What is known of the tables' indexes.
#[derive(Debug, Clone, Copy)]
pub(super) enum Indexes<'a> {
    /// Another server gets them.
    Elsewhere,
    /// They are on the target, for a copy of these tables.
    Here(&'a HashSet<&'a TableName>),
}

/// Functions of ordinary roles, with what calls them.
#[derive(Debug, Default)]
pub(super) struct Calls {
    /// While rows are loaded.
    pub(super) loading: Listed,
    /// By indexes that our own copy does not find, or drops.
    pub(super) indexes: Listed,
}

/// A row per table, kind of code, and function whose owner is neither a superuser nor the current role.
/// Column types are followed into arrays, domains and composites, all of them user types. The last columns
/// are for indexes with entries: the oid, and whether something depends on it and keeps it.
fn calls_sql() -> String {
    format!(
        "WITH RECURSIVE rel AS (
            SELECT c.oid, n.nspname::text AS schema_name, c.relname::text AS table_name, c.relowner
            FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
            WHERE c.relkind IN ('r', 'p') AND {USER_RELATION}
        ), used (rel, type) AS (
            SELECT a.attrelid, a.atttypid FROM pg_attribute a JOIN rel ON rel.oid = a.attrelid
            WHERE a.attnum > 0 AND NOT a.attisdropped AND a.atttypid >= 16384
            UNION SELECT u.rel, inner_type.oid FROM used u JOIN pg_type y ON y.oid = u.type
            CROSS JOIN LATERAL (
                SELECT y.typelem WHERE y.typelem >= 16384
                UNION ALL SELECT y.typbasetype WHERE y.typbasetype >= 16384
                UNION ALL SELECT f.atttypid FROM pg_attribute f WHERE f.attrelid = y.typrelid
                    AND f.attnum > 0 AND NOT f.attisdropped AND f.atttypid >= 16384
                UNION ALL SELECT g.rngsubtype FROM pg_range g WHERE g.rngtypid = y.oid AND g.rngsubtype >= 16384
            ) AS inner_type (oid)
        ), code (rel, how, classid, objid, owner, expression, index) AS (
            SELECT rel.oid, 'a check', 'pg_constraint'::regclass, k.oid, rel.relowner, k.conbin::text, NULL::oid
            FROM pg_constraint k JOIN rel ON rel.oid = k.conrelid WHERE k.contype = 'c'
            UNION ALL SELECT u.rel, 'a domain', 'pg_constraint'::regclass, k.oid, y.typowner, k.conbin::text, NULL
            FROM used u JOIN pg_constraint k ON k.contypid = u.type AND k.contype = 'c'
            JOIN pg_type y ON y.oid = u.type
            UNION ALL SELECT rel.oid, 'a generated column', 'pg_attrdef'::regclass, e.oid, rel.relowner, NULL, NULL
            FROM pg_attribute a JOIN rel ON rel.oid = a.attrelid
            JOIN pg_attrdef e ON e.adrelid = a.attrelid AND e.adnum = a.attnum WHERE a.attgenerated = 's'
            UNION ALL SELECT rel.oid, 'the partition key', 'pg_class'::regclass, rel.oid, rel.relowner, NULL, NULL
            FROM pg_partitioned_table t JOIN rel ON rel.oid = t.partrelid
            UNION ALL SELECT rel.oid, format('the index %I', x.relname), 'pg_class'::regclass, x.oid, rel.relowner, NULL, x.oid
            FROM pg_index i JOIN rel ON rel.oid = i.indrelid JOIN pg_class x ON x.oid = i.indexrelid
            WHERE x.relkind = 'i' AND (i.indexprs IS NOT NULL OR i.indpred IS NOT NULL)
        ), statement_runner AS (
            SELECT p.oid FROM pg_proc p WHERE p.pronamespace = 'pg_catalog'::regnamespace AND p.proname ~
                '^(query|table|schema|database|cursor)_to_xml|^ts_(stat|rewrite)$|^set_config$|^pg_(read|ls)_|^lo_|^pg_(terminate|cancel)_backend$'
        ), called AS (
            SELECT c.rel, c.how, f.oid AS proc, f.proowner AS owner, c.index
            FROM code c JOIN pg_depend d ON d.classid = c.classid AND d.objid = c.objid
                AND d.refclassid IN ('pg_proc'::regclass, 'pg_operator'::regclass)
            LEFT JOIN pg_operator o ON d.refclassid = 'pg_operator'::regclass AND o.oid = d.refobjid
            JOIN pg_proc f ON f.oid = coalesce(o.oprcode::oid, d.refobjid)
            UNION SELECT c.rel, c.how, s.oid, c.owner, c.index FROM code c
            JOIN statement_runner s ON c.expression LIKE '%:funcid ' || s.oid || ' %'
            WHERE c.expression ~ ('\\y(' || (SELECT string_agg(oid::text, '|') FROM statement_runner) || ')\\y')
        )
        SELECT rel.schema_name, rel.table_name, c.how, c.proc::regprocedure::text, r.rolname::text, c.index,
            EXISTS (SELECT FROM pg_depend e WHERE e.refclassid = 'pg_class'::regclass
                AND e.refobjid = c.index AND e.deptype = 'n')
            OR EXISTS (SELECT FROM pg_constraint k JOIN pg_depend e ON e.refclassid = 'pg_constraint'::regclass
                AND e.refobjid = k.oid AND e.deptype = 'n' WHERE k.conrelid = c.rel AND k.conindid = c.index)
        FROM called c JOIN rel ON rel.oid = c.rel JOIN pg_roles r ON r.oid = c.owner
        WHERE NOT r.rolsuper AND r.rolname <> current_user ORDER BY 1, 2, 3, 4 LIMIT {ROWS_MAX}"
    )
}

/// Functions of ordinary roles that loading the admitted tables calls, and those of their other indexes.
pub(super) async fn calls(
    task: &Task,
    session: &Session,
    filter: &TableFilter,
    known: Indexes<'_>,
) -> Result<Calls, PgError> {
    let rows = session
        .run(&task.cancel, session.query(&calls_sql(), &[]))
        .await?;
    let mut calls = Calls::default();
    if rows.is_empty() {
        return Ok(calls);
    }
    let partitions = Partitions::load(session).await?;
    let admitted = |table: &TableName| partitions.admitted(filter, table);
    let dropped = match known {
        Indexes::Here(copied)
            if rows
                .iter()
                .any(|row| row.get::<_, Option<u32>>(5).is_some()) =>
        {
            let wanted = |table: &TableName| copied.contains(table) && admitted(table);
            dropped(task, session, &wanted).await?
        }
        Indexes::Here(_) | Indexes::Elsewhere => HashSet::new(),
    };
    for row in &rows {
        let table = table_name(row, 0)?;
        if !admitted(&table) {
            continue;
        }
        let (how, function, owner): (&str, &str, &str) =
            (row.try_get(2)?, row.try_get(3)?, row.try_get(4)?);
        let text = format!("{function} of {owner} by {how} of {table}");
        let (index, kept): (Option<u32>, bool) = (row.try_get(5)?, row.try_get(6)?);
        let runs = match (index, known) {
            (None, _) => true,
            (Some(index), Indexes::Here(_)) => kept || !dropped.contains(&index),
            (Some(_), Indexes::Elsewhere) => false,
        };
        match runs {
            true => calls.loading.extend([text]),
            false => calls.indexes.extend([text]),
        }
    }
    Ok(calls)
}

/// The indexes that a copy of the wanted tables drops.
async fn dropped(
    task: &Task,
    session: &Session,
    wanted: &impl Fn(&TableName) -> bool,
) -> Result<HashSet<u32>, PgError> {
    let rows = session
        .run(&task.cancel, session.query(&loadable_sql(), &[]))
        .await?;
    let mut planned: Vec<u32> = Vec::new();
    for row in &rows {
        if wanted(&table_name(row, 0)?) {
            planned.push(row.try_get(2)?);
        }
    }
    indexes::dropped(task, session, &planned).await
}

/// What the role may do beyond its own objects.
pub(crate) async fn powers(task: &Task, session: &Session) -> Result<Vec<String>, PgError> {
    let rows = session.run(&task.cancel, session.query(POWERS_SQL, &[]));
    rows.await?.iter().map(|row| Ok(row.try_get(0)?)).collect()
}
