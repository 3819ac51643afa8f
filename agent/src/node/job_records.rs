//! A job's rows in `steep_repl`: origin, progress, planned tables.
//!
//! What must survive a crash is written before the action, or in its transaction.

use steep_protocol::message::peer::TablePlan;
use steep_protocol::{Fault, JobId, TableName};

use super::connection::Conn;
use super::own_schema;
use crate::task::Task;

/// Where the target's schema comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    Bootstrap,
    Existing,
}

impl Origin {
    fn name(self) -> &'static str {
        match self {
            Self::Bootstrap => "bootstrap",
            Self::Existing => "existing",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct JobRecord {
    pub(crate) origin: Origin,
    pub(crate) progress: Progress,
}

/// How far preparation has come, and so what cleanup may remove.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Progress {
    /// Rows in the planned tables may belong to somebody else.
    Begun,
    /// The planned tables were empty or are being emptied: rows in them are the job's.
    OwnsRows,
    Prepared,
}

/// `None` also where the schema `steep_repl` is missing.
pub(crate) async fn load(conn: &Conn, job: JobId) -> Result<Option<JobRecord>, Fault> {
    if !installed(conn).await? {
        return Ok(None);
    }
    let sql = "SELECT origin, owns_rows, prepared FROM steep_repl.jobs WHERE job = $1";
    let rows = conn.rows(sql, &[&job.to_string()]).await?;
    Ok(rows.first().map(|row| JobRecord {
        origin: match row.get(0) {
            "bootstrap" => Origin::Bootstrap,
            _ => Origin::Existing,
        },
        progress: match (row.get(1), row.get(2)) {
            (_, true) => Progress::Prepared,
            (true, false) => Progress::OwnsRows,
            (false, false) => Progress::Begun,
        },
    }))
}

pub(crate) async fn installed(conn: &Conn) -> Result<bool, Fault> {
    own_schema::exists(&conn.session)
        .await
        .map_err(|error| conn.fault(&error))
}

/// Runs in the caller's transaction. The note is the coordinator's.
pub(crate) async fn open(
    conn: &Conn,
    job: JobId,
    origin: Origin,
    (plan, note): (&[TablePlan], Option<&str>),
) -> Result<(), Fault> {
    let sql = "INSERT INTO steep_repl.jobs (job, origin, note) VALUES ($1, $2, $3)
        ON CONFLICT (job) DO UPDATE SET origin = excluded.origin, note = excluded.note";
    conn.rows(sql, &[&job.to_string(), &origin.name(), &note])
        .await?;
    conn.execute(&format!(
        "DELETE FROM steep_repl.job_tables WHERE job = '{job}'"
    ))
    .await?;
    let schemas: Vec<&str> = plan.iter().map(|t| t.name.schema.as_str()).collect();
    let tables: Vec<&str> = plan.iter().map(|t| t.name.table.as_str()).collect();
    let sql = "INSERT INTO steep_repl.job_tables (job, ord, schema_name, table_name)
        SELECT $1, ord, s, t
        FROM unnest($2::text[], $3::text[]) WITH ORDINALITY AS planned (s, t, ord)";
    conn.rows(sql, &[&job.to_string(), &schemas, &tables])
        .await?;
    Ok(())
}

/// The coordinator's note has changed, if it has one.
pub(crate) async fn renew_note(task: &Task, note: Option<&str>) -> Result<(), Fault> {
    let Some(note) = note else {
        return Ok(());
    };
    let conn = Conn::to_catalog(task, "note").await?;
    let sql = "UPDATE steep_repl.jobs SET note = $2 WHERE job = $1";
    conn.rows(sql, &[&task.job.to_string(), &note]).await?;
    conn.give_back().await;
    Ok(())
}

pub(crate) fn note(job: JobId, progress: Progress) -> String {
    let set = match progress {
        Progress::Begun => "owns_rows = false, prepared = false",
        Progress::OwnsRows => "owns_rows = true",
        Progress::Prepared => "owns_rows = true, prepared = true",
    };
    format!("UPDATE steep_repl.jobs SET {set} WHERE job = '{job}'")
}

pub(crate) fn forget(job: JobId) -> String {
    [
        "copy_ledger",
        "deferred_objects",
        "created",
        "baseline",
        "baseline_schemas",
        "baseline_privileges",
        "job_tables",
        "jobs",
    ]
    .map(|table| format!("DELETE FROM steep_repl.{table} WHERE job = '{job}'"))
    .join(";\n")
}

/// Whether this node has a place for guards: not where an older agent has begun the job.
pub(crate) async fn notes_guards(conn: &Conn) -> Result<bool, Fault> {
    let sql = "SELECT EXISTS (SELECT FROM pg_attribute
        WHERE attrelid = to_regclass('steep_repl.guards') AND attname = 'filenode')";
    Ok(conn.row(sql, &[]).await?.get(0))
}

pub(crate) fn forget_guards(job: JobId) -> String {
    format!("DELETE FROM steep_repl.guards WHERE job = '{job}'")
}

/// The planned tables that exist, in plan order.
pub(crate) async fn planned(conn: &Conn, job: JobId) -> Result<Vec<Planned>, Fault> {
    let sql = "SELECT c.oid, t.schema_name, t.table_name
        FROM steep_repl.job_tables t
        JOIN pg_namespace n ON n.nspname = t.schema_name
        JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = t.table_name
            AND c.relkind IN ('r', 'p', 'f')
        WHERE t.job = $1 ORDER BY t.ord";
    let rows = conn.rows(sql, &[&job.to_string()]).await?;
    let table = |row: &tokio_postgres::Row| {
        let name = TableName::new(row.get::<_, &str>(1), row.get::<_, &str>(2)).ok()?;
        Some(Planned {
            oid: row.get(0),
            name,
        })
    };
    Ok(rows.iter().filter_map(table).collect())
}

#[derive(Debug, Clone)]
pub(crate) struct Planned {
    pub(crate) oid: u32,
    pub(crate) name: TableName,
}
