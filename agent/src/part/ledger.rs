//! Reads the ledger: the parts of a job that are committed on this node (G2).

use steep_protocol::message::agent::PartDone;
use steep_protocol::{ByteCount, Fault, PartNo, RowCount};

use crate::node::connection::Conn;
use crate::node::job_records;
use crate::pg::sync;
use crate::task::Task;

fn count(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

/// The job's committed parts, in order. A part loaded under two snapshots counts once, as the later one.
pub(crate) async fn ledger(task: &Task) -> Result<Vec<PartDone>, Fault> {
    let conn = Conn::open(task, "ledger").await?;
    let parts = read(task, &conn).await;
    conn.session.close().await;
    parts
}

async fn read(task: &Task, conn: &Conn) -> Result<Vec<PartDone>, Fault> {
    if !job_records::installed(conn).await? {
        return Ok(Vec::new());
    }
    let sql = "SELECT part, epoch, rows, bytes FROM steep_repl.copy_ledger
        WHERE job = $1 ORDER BY part, epoch";
    let rows = conn.rows(sql, &[&task.job.to_string()]).await?;
    // Whoever committed them may not have waited for the disk.
    conn.execute(&sync()).await?;
    let mut parts = Vec::<PartDone>::with_capacity(rows.len());
    for row in &rows {
        let part = PartDone {
            part: PartNo(u32::try_from(row.get::<_, i32>(0)).unwrap_or(0)),
            rows: RowCount(count(row.get(2))),
            bytes: ByteCount(count(row.get(3))),
            wire: ByteCount(0),
        };
        match parts.last_mut() {
            Some(last) if last.part == part.part => *last = part,
            _ => parts.push(part),
        }
    }
    Ok(parts)
}

/// Distinct parts, rows and COPY bytes.
pub(crate) async fn totals(task: &Task) -> Result<(u32, RowCount, ByteCount), Fault> {
    let parts = ledger(task).await?;
    let rows = parts.iter().map(|p| p.rows).sum();
    let bytes = parts.iter().map(|p| p.bytes).sum();
    Ok((u32::try_from(parts.len()).unwrap_or(u32::MAX), rows, bytes))
}

/// Deletes the job's records.
pub(crate) async fn forget(task: &Task, conn: &Conn) -> Result<(), Fault> {
    if !job_records::installed(conn).await? {
        return Ok(());
    }
    let mut all = job_records::forget(task.job);
    if job_records::notes_guards(conn).await? {
        all = format!("{all};\n{}", job_records::forget_guards(task.job));
    }
    let outcome = conn.transact(&all).await;
    outcome.map_err(|error| conn.fault(&error))
}
