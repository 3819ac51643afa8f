//! Sessions of applications: which may still write, and their end.
//!
//! Walsenders, apply workers and our own sessions stay, and so do physical standbys. A session that is starting reads
//! the database's settings before it shows up in `pg_stat_activity`, but while it holds a lock on the database
//! (`InitPostgres`), so those are waited for.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use steep_protocol::message::switchover::WritesStopped;
use steep_protocol::{Fault, FaultKind};
use tokio_postgres::Row;

use crate::node::connection::Conn;
use crate::pg::{PgError, Session};
use crate::task::Task;

/// How often running transactions are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// How long ended sessions may take to go: a rollback is short, but the server may be busy.
const GO_WITHIN: Duration = Duration::from_secs(10);

/// Sessions named in a fault.
const NAMED: usize = 5;

/// Sessions of applications; `$1` is what the names of our own begin with.
pub(super) const APPLICATIONS: &str = "pg_stat_activity s \
     LEFT JOIN pg_roles r ON r.oid = s.usesysid \
     WHERE s.datid = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database()) \
         AND s.pid <> pg_backend_pid() \
         AND coalesce(s.backend_type, '') NOT IN ('walsender', 'autovacuum worker', 'parallel worker', \
             'logical replication launcher', 'logical replication worker', \
             'logical replication apply worker', 'logical replication parallel worker', \
             'logical replication parallel apply worker', 'logical replication tablesync worker', \
             'logical replication sequencesync worker', 'slotsync worker') \
         AND NOT (coalesce(s.usename = current_user, false) \
             AND starts_with(coalesce(s.application_name, ''), $1))";

/// What the names of our own sessions begin with.
pub(super) fn ours(task: &Task) -> String {
    task.conninfo.application_name("")
}

/// Those that began before the stop; none once it has been lifted.
const MAY_WRITE: &str =
    "s.backend_start <= (SELECT w.closed_at FROM steep_repl.write_stop w WHERE w.state = 'closed')";

/// Those that began while the database was closed, or may have.
const READ_ONLY: &str = "s.backend_start >= (SELECT w.began_at FROM steep_repl.write_stop w)";

/// Whether this role can end the session (PostgreSQL manual, `pg_terminate_backend`).
pub(super) const ENDABLE: &str = "((SELECT me.rolsuper FROM pg_roles me WHERE me.rolname = current_user) \
     OR NOT coalesce(r.rolsuper, false) \
         AND (pg_has_role(r.oid, 'USAGE') OR pg_has_role('pg_signal_backend', 'USAGE')))";

/// How many may still write.
pub(super) async fn writers(conn: &Conn, task: &Task) -> Result<u64, Fault> {
    let sql = format!("SELECT count(*) FROM {APPLICATIONS} AND {MAY_WRITE}");
    let row = conn.row(&sql, &[&ours(task)]).await?;
    let count = row.try_get::<_, i64>(0).map_err(|e| task.fault(e))?;
    Ok(u64::try_from(count).unwrap_or(0))
}

/// Ends those that may still write: idle ones at once, others once they are idle, or after `patience`.
pub(super) async fn end_writers(
    conn: &Conn,
    task: &Task,
    patience: Duration,
) -> Result<WritesStopped, Fault> {
    let began = Instant::now();
    let mut ended = WritesStopped::default();
    let mut starting = starting(conn).await?;
    let mut told = BTreeSet::new();
    loop {
        let rest = look(conn, task).await?;
        if !starting.is_empty() {
            let still = self::starting(conn).await?;
            starting.retain(|pid| still.contains(pid));
        }
        if rest.is_empty() && starting.is_empty() {
            return Ok(ended);
        }
        let waited = began.elapsed();
        if waited > patience + GO_WITHIN {
            return Err(remain(task, &rest));
        }
        let due: Vec<i32> = rest
            .iter()
            .filter(|other| other.endable && (other.idle || waited >= patience))
            .map(|other| other.pid)
            .collect();
        for other in rest.iter().filter(|other| due.contains(&other.pid)) {
            match (told.insert(other.pid), other.idle) {
                (true, true) => ended.ended_idle += 1,
                (true, false) => ended.ended_running += 1,
                (false, _) => {}
            }
        }
        terminate(conn, task, &due).await?;
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            () = task.cancel.cancelled() => return Err(PgError::Cancelled.to_fault(&task.node)),
        }
    }
}

/// Ends the sessions that began while the database was closed: they would stay read-only.
pub(super) async fn end_read_only(session: &Session, ours: &str) -> Result<(), PgError> {
    let sql = format!(
        "SELECT count(pg_terminate_backend(s.pid)) FROM {APPLICATIONS} AND {READ_ONLY} AND {ENDABLE}"
    );
    let mut starting = pids(session.query(STARTING, &[]).await?)?;
    for _ in 0..20 {
        session.query(&sql, &[&ours]).await?;
        if starting.is_empty() {
            return Ok(());
        }
        let still = pids(session.query(STARTING, &[]).await?)?;
        starting.retain(|pid| still.contains(pid));
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(())
}

/// A session that may still write.
struct Other {
    pid: i32,
    idle: bool,
    endable: bool,
    role: String,
    application: String,
}

async fn look(conn: &Conn, task: &Task) -> Result<Vec<Other>, Fault> {
    let sql = format!(
        "SELECT s.pid, s.state IN ('idle', 'idle in transaction (aborted)') OR s.backend_type <> 'client backend', \
             {ENDABLE}, coalesce(s.usename::text, ''), coalesce(s.application_name, '') \
         FROM {APPLICATIONS} AND {MAY_WRITE} ORDER BY s.pid"
    );
    let rows = conn.rows(&sql, &[&ours(task)]).await?;
    let other = |row: &Row| -> Result<Other, PgError> {
        Ok(Other {
            pid: row.try_get(0)?,
            idle: row.try_get::<_, Option<bool>>(1)?.unwrap_or(false),
            endable: row.try_get::<_, Option<bool>>(2)?.unwrap_or(false),
            role: row.try_get(3)?,
            application: row.try_get(4)?,
        })
    };
    let others: Result<Vec<Other>, PgError> = rows.iter().map(other).collect();
    others.map_err(|error| conn.fault(&error))
}

/// Asks again whether each is still such a session, since process ids are used again.
async fn terminate(conn: &Conn, task: &Task, due: &[i32]) -> Result<(), Fault> {
    if due.is_empty() {
        return Ok(());
    }
    let sql = format!(
        "SELECT count(pg_terminate_backend(s.pid)) FROM {APPLICATIONS} AND {MAY_WRITE} \
             AND {ENDABLE} AND s.pid = ANY ($2)"
    );
    conn.rows(&sql, &[&ours(task), &due]).await.map(drop)
}

/// Processes that are connecting to this database.
const STARTING: &str = "SELECT DISTINCT l.pid FROM pg_locks l \
     WHERE l.locktype = 'object' AND l.classid = 'pg_database'::regclass AND l.mode = 'RowExclusiveLock' \
         AND l.objid = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database()) \
         AND l.pid <> pg_backend_pid()";

async fn starting(conn: &Conn) -> Result<Vec<i32>, Fault> {
    let rows = conn.rows(STARTING, &[]).await?;
    pids(rows).map_err(|error| conn.fault(&error))
}

fn pids(rows: Vec<Row>) -> Result<Vec<i32>, PgError> {
    rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
}

fn remain(task: &Task, rest: &[Other]) -> Fault {
    let named: Vec<String> = rest
        .iter()
        .take(NAMED)
        .map(|other| format!("{} of {} ({})", other.pid, other.role, other.application))
        .collect();
    let text = format!(
        "{} sessions could not be ended and may still write: {}",
        rest.len(),
        named.join(", ")
    );
    let hint = match rest.iter().all(|other| other.endable) {
        true => "see what they do in pg_stat_activity, and end them",
        false => "they are a superuser's: end them, or let the agent connect as a superuser",
    };
    Fault::new(FaultKind::Failed, text)
        .on(&task.node)
        .hint(hint)
}
