//! What code of table owners means for a job: whether loading rows would run it, and with which rights.
//!
//! Our own copy drops most indexes of existing tables, and makes those of a new schema last. To build an
//! index, PostgreSQL acts as the table's owner.

use std::collections::HashSet;

use steep_protocol::TableName;
use steep_protocol::message::facts::Listed;
use steep_protocol::message::job::TableFilter;

use crate::deferred::indexes;
use crate::pg::catalog::{Partitions, USER_RELATION, table_name};
use crate::pg::{PgError, Session, owner_code};
use crate::task::Task;

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

/// Functions of ordinary roles that loading the admitted tables calls, and those of their other indexes.
pub(super) async fn calls(
    task: &Task,
    session: &Session,
    filter: &TableFilter,
    known: Indexes<'_>,
) -> Result<Calls, PgError> {
    let found = owner_code::of_database(session, &task.cancel).await?;
    let mut calls = Calls::default();
    if found.is_empty() {
        return Ok(calls);
    }
    let partitions = Partitions::load(session).await?;
    let admitted = |table: &TableName| partitions.admitted(filter, table);
    let dropped = match known {
        Indexes::Here(copied) if found.iter().any(|found| found.index.is_some()) => {
            let wanted = |table: &TableName| copied.contains(table) && admitted(table);
            dropped(task, session, &wanted).await?
        }
        Indexes::Here(_) | Indexes::Elsewhere => HashSet::new(),
    };
    for found in found.iter().filter(|found| admitted(&found.table)) {
        let text = format!("{} of {}", found.what, found.table);
        let runs = match (found.index, known) {
            (None, _) => true,
            (Some(index), Indexes::Here(_)) => index.is_needed || !dropped.contains(&index.oid),
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
