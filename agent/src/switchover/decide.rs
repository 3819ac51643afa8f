//! The point of no return.
//!
//! Every published table is locked against writers, so nothing can be written after the fence, whoever overrides the
//! setting; readers go on. The replica applies what lies before the fence, and the note becomes final in the same
//! transaction, which its deadline and an undo wait for. So either all of it is on the replica and stays the last
//! that was written, or the node takes writes again.

use std::time::Duration;

use steep_protocol::message::switchover::WriteState;
use steep_protocol::{Fault, FaultKind, TableName};

use super::note::{self, Reading, State};
use super::sessions;
use crate::node::connection::Conn;
use crate::pg::catalog::table_name;
use crate::pg::{PgError, SHORT_LOCK_TIMEOUT};
use crate::replication::fence;
use crate::task::Task;

/// Tables locked by one statement.
const BATCH: usize = 200;

/// How long a writer that has overridden the setting may keep a table.
const LOCK_TIMEOUT: &str = "SET LOCAL lock_timeout = '3s'";

const FINAL: &str = "UPDATE steep_repl.write_stop SET state = 'final', deadline = NULL \
     WHERE switchover = $1 AND state = 'closed' AND clock_timestamp() < deadline RETURNING 1";

/// Makes the stop final. After an error it may be final or not: [`super::open::reopen`] finds out.
pub(super) async fn decide(task: &Task) -> Result<WriteState, Fault> {
    let conn = Conn::to_catalog(task, "switchover").await?;
    conn.execute(&format!("{SHORT_LOCK_TIMEOUT}; BEGIN"))
        .await?;
    let known = note::read(&conn.session, Reading::ForUpdate).await;
    let known = known.map_err(|error| conn.fault(&error))?;
    let known = known.filter(|note| note.switchover == task.job);
    let left = match known.map(|note| (note.state, note.left)) {
        Some((State::Final, _)) => {
            conn.execute("ROLLBACK").await?;
            conn.give_back().await;
            return Ok(WriteState::Final);
        }
        Some((State::Closed, Some(left))) if left > 0 => left,
        _ => return Err(over(task)),
    };
    // The server ends the transaction, and with it the locks, where this process hangs or is cut off.
    let idle = format!(
        "SET LOCAL idle_in_transaction_session_timeout = {}",
        left + 1_000
    );
    conn.execute(&idle).await?;
    lock(&conn, task).await?;
    let writers = sessions::writers(&conn, task).await?;
    if writers > 0 {
        let text = format!("{writers} sessions that began before the stop may still write");
        return Err(Fault::new(FaultKind::Failed, text).on(&task.node));
    }
    let left = Duration::from_millis(u64::try_from(left).unwrap_or(0));
    let fence = tokio::time::timeout(left, fence::await_fence(task)).await;
    fence.map_err(|_| over(task))??;
    let id = task.job.to_string();
    if conn.rows(FINAL, &[&id]).await?.is_empty() {
        return Err(over(task));
    }
    conn.execute("COMMIT").await?;
    conn.give_back().await;
    Ok(WriteState::Final)
}

/// Locks what is published against writers, not against readers.
async fn lock(conn: &Conn, task: &Task) -> Result<(), Fault> {
    let sql = "SELECT n.nspname::text, c.relname::text \
         FROM pg_publication own, pg_get_publication_tables(own.pubname::text) AS p \
         JOIN pg_class c ON c.oid = p.relid JOIN pg_namespace n ON n.oid = c.relnamespace \
         WHERE own.pubname = $1 ORDER BY c.oid";
    let name = task.replication.name();
    let rows = conn.rows(sql, &[&name.as_str()]).await?;
    let tables: Result<Vec<TableName>, PgError> =
        rows.iter().map(|row| table_name(row, 0)).collect();
    let tables = tables.map_err(|error| conn.fault(&error))?;
    conn.execute(LOCK_TIMEOUT).await?;
    for batch in tables.chunks(BATCH) {
        let names: Vec<String> = batch.iter().map(TableName::quoted).collect();
        let sql = format!("LOCK TABLE {} IN SHARE MODE", names.join(", "));
        conn.attempt(&sql)
            .await
            .map_err(|error| match error.is_locked() {
                true => still_written(task),
                false => conn.fault(&error),
            })?;
    }
    Ok(())
}

fn still_written(task: &Task) -> Fault {
    let text = "somebody still writes to a table although new sessions are read-only, or a prepared transaction has \
                written to one";
    let hint = "find out who sets default_transaction_read_only or the transaction's mode by itself: see pg_locks, \
                pg_stat_activity and pg_prepared_xacts";
    Fault::new(FaultKind::Failed, text)
        .on(&task.node)
        .hint(hint)
}

fn over(task: &Task) -> Fault {
    let text = "the time of the switchover was over before the replica had applied everything";
    let hint = "begin again when the replica's lag is small, or with a larger --max-stop";
    Fault::new(FaultKind::Timeout, text)
        .on(&task.node)
        .hint(hint)
}
