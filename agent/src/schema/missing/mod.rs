//! What the source has and could not be created here: kept on this server until it is created, across
//! restarts, and tried again at the end of a job and on an operator's request.
//!
//! One object must not cost the rows. A failed statement that rows do not need is noted here, in the
//! transaction that goes on without it. What rows or replication need is never noted: it is a fault.
//!
//! Statements can hold what only the database's owner may read (a user mapping's password), so nobody else
//! may read the table, and of such kinds only the name leaves this server.

mod label;
mod report;

use steep_protocol::message::agent::Rebuilt;
use steep_protocol::{Fault, FaultKind, JobId};
use tokio_postgres::error::SqlState;

use self::label::Label;
use crate::node::connection::Conn;
use crate::node::job_records;
use crate::pg::{PgError, literal};
use crate::schema::batch::is_of_the_statement;
use crate::schema::objects;
use crate::task::Task;

pub(crate) use report::report;

/// Why something is missing, as far as findings distinguish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Lack {
    Object,
    ForeignKey,
    /// A foreign key that rows violate: it exists and stays `NOT VALID`.
    Violated,
    /// A CHECK or domain constraint that rows violate or that could not be checked: it exists and stays
    /// `NOT VALID`.
    Check,
    /// An owner or privilege for a role that does not exist here.
    Role(String),
    /// An owner or privilege that the agent's role may not set.
    Privilege(String),
}

impl Lack {
    /// The finding's code.
    fn code(&self) -> &'static str {
        match self {
            Self::Object => report::OBJECT,
            Self::ForeignKey => report::FOREIGN_KEY,
            Self::Violated => report::VIOLATED,
            Self::Check => report::CHECK,
            Self::Role(_) => report::ROLE,
            Self::Privilege(_) => report::PRIVILEGE,
        }
    }

    /// What groups findings of that code.
    fn about(&self) -> &str {
        match self {
            Self::Object | Self::ForeignKey | Self::Violated | Self::Check => "",
            Self::Role(role) | Self::Privilege(role) => role,
        }
    }
}

/// Whether a statement reads rows: it is then repeated only on request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Weight {
    Light,
    Heavy,
}

#[derive(Debug)]
pub(crate) struct Missing<'a> {
    pub(crate) lack: Lack,
    pub(crate) weight: Weight,
    /// `SET LOCAL` statements for its transaction.
    pub(crate) setup: &'a str,
    pub(crate) sql: &'a str,
}

impl Missing<'_> {
    pub(crate) fn note(&self, job: JobId, error: &PgError) -> String {
        let Label { kind, object } = Label::of(self.sql);
        let sqlstate = error.sqlstate().map_or("", SqlState::code);
        format!(
            "INSERT INTO steep_repl.missing_objects
             (job, code, about, kind, object, heavy, setup, statement, sqlstate, error)
             VALUES ('{job}', '{}', {}, {}, {}, {}, {}, {}, {}, {})",
            self.lack.code(),
            literal(self.lack.about()),
            literal(&kind),
            literal(&object),
            self.weight == Weight::Heavy,
            literal(self.setup),
            literal(self.sql),
            literal(sqlstate),
            literal(&error.to_string()),
        )
    }
}

/// Deletes a job's notes: what the job created is gone.
pub(crate) fn forget(job: JobId) -> String {
    format!("DELETE FROM steep_repl.missing_objects WHERE job = '{job}'")
}

/// Deletes all: nothing can be missing in a database without tables.
pub(crate) const FORGET_ALL: &str = "DELETE FROM steep_repl.missing_objects";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scope {
    OfJob(JobId),
    Everything,
}

/// Repeats what the job could not create, as its cause may be gone, until a round creates nothing. Skips
/// what reads rows.
pub(crate) async fn retry(conn: &Conn, job: JobId) -> Result<(), Fault> {
    rounds(conn, Scope::OfJob(job)).await.map(drop)
}

/// Lets [`retry`] check the job's violated foreign keys again, although that reads rows: between tables that were copied
/// under several snapshots they could not hold before.
pub(crate) async fn check_references_again(conn: &Conn, job: JobId) -> Result<(), Fault> {
    let sql = format!(
        "UPDATE steep_repl.missing_objects SET heavy = false WHERE job = {} AND sqlstate = {}",
        literal(&job.to_string()),
        literal(SqlState::FOREIGN_KEY_VIOLATION.code())
    );
    conn.execute(&sql).await
}

/// Advisory lock that keeps rebuilds of one database apart; the number is arbitrary.
const REBUILD_LOCK: i64 = 0x7374_6565_705f_7262;

/// Repeats everything that is missing on this server. Fails where another rebuild is running.
pub(crate) async fn rebuild(task: &Task) -> Result<Rebuilt, Fault> {
    let conn = Conn::open(task, "rebuild").await?;
    if !job_records::installed(&conn).await? {
        return Ok(Rebuilt::default());
    }
    let lock = "SELECT pg_catalog.pg_try_advisory_lock($1)";
    if !conn.row(lock, &[&REBUILD_LOCK]).await?.get::<_, bool>(0) {
        let text = "missing objects are being built already";
        let hint = "wait until that has ended; pg_stat_activity shows it as sink-rebuild";
        return Err(conn.own(Fault::new(FaultKind::Failed, text)).hint(hint));
    }
    let made = rounds(&conn, Scope::Everything).await?;
    let missing = report(&conn).await?;
    conn.session.close().await;
    Ok(Rebuilt { made, missing })
}

/// Rounds until one creates nothing; returns how many were created.
async fn rounds(conn: &Conn, scope: Scope) -> Result<u64, Fault> {
    let mut made = 0;
    loop {
        let before = made;
        let ids = ids(conn, scope).await?;
        for id in &ids {
            if again(conn, *id, scope).await? == Tried::Made {
                made += 1;
            }
        }
        if made == before || made - before == ids.len() as u64 {
            return Ok(made);
        }
    }
}

async fn ids(conn: &Conn, scope: Scope) -> Result<Vec<i64>, Fault> {
    let job = match scope {
        Scope::OfJob(job) => Some(job.to_string()),
        Scope::Everything => None,
    };
    let sql = "SELECT id FROM steep_repl.missing_objects
        WHERE $1::text IS NULL OR (job = $1 AND NOT heavy) ORDER BY id";
    let rows = conn.rows(sql, &[&job]).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tried {
    Made,
    Failed,
}

async fn again(conn: &Conn, id: i64, scope: Scope) -> Result<Tried, Fault> {
    let sql = "SELECT setup, statement, sqlstate FROM steep_repl.missing_objects WHERE id = $1";
    let rows = conn.rows(sql, &[&id]).await?;
    let Some(row) = rows.first() else {
        return Ok(Tried::Failed);
    };
    let (setup, statement, before): (&str, &str, &str) = (row.get(0), row.get(1), row.get(2));
    let done = format!("DELETE FROM steep_repl.missing_objects WHERE id = {id}");
    let listed = match scope {
        Scope::OfJob(job) => objects::note_made(job),
        Scope::Everything => String::new(),
    };
    let outcome = conn
        .transact(&format!("{setup}{statement};\n{done};\n{listed}"))
        .await;
    let error = match outcome {
        Ok(()) => return Ok(Tried::Made),
        Err(error) => error,
    };
    let Some(code) = error.sqlstate().filter(|code| is_of_the_statement(code)) else {
        return Err(conn.fault(&error));
    };
    // Somebody has created it by hand since.
    if scope == Scope::Everything && is_duplicate(code) && before != code.code() {
        conn.execute(&done).await?;
        return Ok(Tried::Made);
    }
    let note = format!(
        "UPDATE steep_repl.missing_objects SET tried_at = now(), sqlstate = {}, error = {} WHERE id = {id}",
        literal(code.code()),
        literal(&error.to_string())
    );
    conn.execute(&note).await?;
    Ok(Tried::Failed)
}

pub(crate) fn is_duplicate(code: &SqlState) -> bool {
    [
        SqlState::DUPLICATE_TABLE,
        SqlState::DUPLICATE_OBJECT,
        SqlState::DUPLICATE_FUNCTION,
        SqlState::DUPLICATE_SCHEMA,
    ]
    .contains(code)
}
