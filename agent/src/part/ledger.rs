//! Reads the ledger: the parts of a job that are committed on this node (G2).

use steep_protocol::message::agent::PartDone;
use steep_protocol::{ByteCount, Epoch, Fault, PartNo, RowCount};

use crate::node::connection::Conn;
use crate::node::job_records::{self, Planned};
use crate::pg::sync;
use crate::task::Task;

fn count(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

/// The job's committed parts of that snapshot, in order.
pub(crate) async fn ledger(task: &Task, epoch: Epoch) -> Result<Vec<PartDone>, Fault> {
    let parts = all(task).await?.into_iter();
    Ok(parts
        .filter_map(|(of, part)| (of == epoch).then_some(part))
        .collect())
}

async fn all(task: &Task) -> Result<Vec<(Epoch, PartDone)>, Fault> {
    let conn = Conn::to_catalog(task, "ledger").await?;
    let parts = read(task, &conn).await;
    conn.give_back().await;
    parts
}

/// Forgets the parts of these tables, before their rows go: they are loaded again.
pub(crate) async fn forget_tables(
    task: &Task,
    conn: &Conn,
    tables: &[Planned],
) -> Result<(), Fault> {
    let schemas: Vec<&str> = tables.iter().map(|t| t.name.schema.as_str()).collect();
    let names: Vec<&str> = tables.iter().map(|t| t.name.table.as_str()).collect();
    let sql = "DELETE FROM steep_repl.copy_ledger WHERE job = $1 AND (schema_name, table_name) IN
        (SELECT s, t FROM unnest($2::text[], $3::text[]) AS emptied (s, t))";
    conn.rows(sql, &[&task.job.to_string(), &schemas, &names])
        .await?;
    Ok(())
}

async fn read(task: &Task, conn: &Conn) -> Result<Vec<(Epoch, PartDone)>, Fault> {
    if !job_records::installed(conn).await? {
        return Ok(Vec::new());
    }
    let sql = "SELECT part, epoch, rows, bytes FROM steep_repl.copy_ledger
        WHERE job = $1 ORDER BY epoch, part";
    let rows = conn.rows(sql, &[&task.job.to_string()]).await?;
    // Whoever committed them may not have waited for the disk.
    conn.execute(&sync()).await?;
    let number = |value: i32| u32::try_from(value).unwrap_or(0);
    let part = |row: &tokio_postgres::Row| {
        let part = PartDone {
            part: PartNo(number(row.get(0))),
            rows: RowCount(count(row.get(2))),
            bytes: ByteCount(count(row.get(3))),
            wire: ByteCount(0),
        };
        (Epoch(number(row.get(1))), part)
    };
    Ok(rows.iter().map(part).collect())
}

/// Parts of all the job's snapshots, their rows and COPY bytes.
pub(crate) async fn totals(task: &Task) -> Result<(u32, RowCount, ByteCount), Fault> {
    let parts = all(task).await?;
    let rows = parts.iter().map(|(_, p)| p.rows).sum();
    let bytes = parts.iter().map(|(_, p)| p.bytes).sum();
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
