//! The last steps, while a subscription catches up if there is one: sequences, materialised views, statistics.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use steep_protocol::message::agent::{MissingObjects, WorkProgress, WorkUnit};
use steep_protocol::message::facts::Finding;
use steep_protocol::message::peer::SequenceValue;
use steep_protocol::{Fault, FaultKind, Phase, TableName};
use tokio::task::JoinSet;

use crate::deferred::build::{Purpose, build_event_triggers, in_order};
use crate::deferred::checks;
use crate::mutex::lock;
use crate::node::connection::Conn;
use crate::node::job_records;
use crate::pg::PgError;
use crate::schema::batch::is_of_the_statement;
use crate::schema::missing;
use crate::schema::statement::Stage;
use crate::task::Task;

const SEQUENCE_BATCH: usize = 1000;

/// Tables per `ANALYZE`, at most.
const ANALYZE_BATCH: usize = 16;

/// Bytes up to which a table is analysed together with others: reading 128 pages takes a moment.
const ANALYZE_SMALL: u64 = 1024 * 1024;

const NAMED: usize = 20;

/// Sets sequences, fills materialised views, analyses the planned tables, creates event triggers, and
/// reports what is still missing. Problems with single objects are findings.
pub(crate) async fn finish(
    task: &Task,
    sequences: Vec<SequenceValue>,
    (parallel, phase): (u8, Phase),
) -> Result<(Vec<Finding>, MissingObjects), Fault> {
    let conn = Conn::open(task, "finish").await?;
    let mut findings = Vec::new();
    for batch in sequences.chunks(SEQUENCE_BATCH) {
        findings.extend(set_sequences(&conn, batch).await?);
    }
    if job_records::installed(&conn).await? {
        // After a native copy; any other job has done it before.
        checks::bring_back(task, &conn, phase).await?;
        findings
            .extend(in_order(task, &conn, (Stage::Refresh, phase), Purpose::Replication).await?);
        // A view may read another through a function, an order that no dump knows.
        missing::retry(&conn, task.job).await?;
        analyze(task, &conn, (parallel, phase)).await?;
        findings.extend(build_event_triggers(task, &conn, Purpose::Replication).await?);
        let missing = missing::report(&conn).await?;
        return Ok((findings, missing));
    }
    Ok((findings, MissingObjects::default()))
}

/// Missing ones are reported.
async fn set_sequences(conn: &Conn, batch: &[SequenceValue]) -> Result<Vec<Finding>, Fault> {
    let schemas: Vec<&str> = batch.iter().map(|s| s.name.schema.as_str()).collect();
    let names: Vec<&str> = batch.iter().map(|s| s.name.table.as_str()).collect();
    let sql = "SELECT w.ord FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS w (s, n, ord)
        JOIN pg_namespace n ON n.nspname = w.s
        JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = w.n AND c.relkind = 'S'";
    let rows = conn.rows(sql, &[&schemas, &names]).await?;
    let mut is_there = vec![false; batch.len()];
    for row in &rows {
        let at = usize::try_from(row.get::<_, i64>(0)).unwrap_or(0);
        if let Some(there) = at.checked_sub(1).and_then(|at| is_there.get_mut(at)) {
            *there = true;
        }
    }
    let (there, missing): (Vec<_>, Vec<_>) = batch.iter().zip(is_there).partition(|(_, t)| *t);
    let there: Vec<&SequenceValue> = there.into_iter().map(|(s, _)| s).collect();
    let missing: Vec<String> = missing.iter().map(|(s, _)| s.name.to_string()).collect();
    let mut findings = Vec::new();
    if !missing.is_empty() {
        findings.push(sequences_missing(conn, &missing));
    }
    if set(conn, &there).await.is_ok() {
        return Ok(findings);
    }
    for one in there {
        match set(conn, &[one]).await {
            Ok(()) => {}
            Err(error) if error.sqlstate().is_some_and(is_of_the_statement) => {
                findings.push(conn.warning(
                    "sequence_not_set",
                    format!("sequence {} could not be set: {error}", one.name),
                    "once this node is written to, it may give out values that are taken",
                    "give it the source's bounds, then set it with setval",
                ));
            }
            Err(error) => return Err(conn.fault(&error)),
        }
    }
    Ok(findings)
}

fn sequences_missing(conn: &Conn, missing: &[String]) -> Finding {
    let some = missing[..missing.len().min(NAMED)].join(", ");
    conn.warning(
        "sequence_missing",
        format!(
            "{} sequences of the source are missing here: {some}",
            missing.len()
        ),
        "their values are not taken over",
        "create them, then set them with setval",
    )
}

async fn set(conn: &Conn, sequences: &[&SequenceValue]) -> Result<(), PgError> {
    let names: Vec<String> = sequences.iter().map(|s| s.name.quoted()).collect();
    let values: Vec<i64> = sequences.iter().map(|s| s.last_value).collect();
    let called: Vec<bool> = sequences.iter().map(|s| s.is_called).collect();
    let sql = "SELECT count(setval(name::regclass, value, called))
        FROM unnest($1::text[], $2::int8[], $3::bool[]) AS s (name, value, called)";
    conn.fetch(sql, &[&names, &values, &called])
        .await
        .map(|_| ())
}

/// Analyses the planned tables, and the parents above them, which autovacuum never analyses.
async fn analyze(task: &Task, conn: &Conn, (parallel, phase): (u8, Phase)) -> Result<(), Fault> {
    let targets = targets(task, conn).await?;
    let total = targets.len() as u64;
    if targets.is_empty() {
        return Ok(());
    }
    let workers = usize::from(parallel.max(1)).min(targets.len());
    let queue = Arc::new(Mutex::new(targets));
    let mut task = task.clone();
    let outer = task.cancel.clone();
    // A failure stops the other workers, and only them.
    task.cancel = outer.child_token();
    let mut running = JoinSet::new();
    for _ in 0..workers {
        let (task, queue) = (task.clone(), Arc::clone(&queue));
        running.spawn(async move { analyze_some(&task, &queue, (total, phase), workers).await });
    }
    let mut outcome = Ok(());
    while let Some(ended) = running.join_next().await {
        let ended = ended.unwrap_or_else(|error| {
            let what = format!("a worker broke: {error}");
            Err(conn.own(Fault::new(FaultKind::Failed, what)))
        });
        if outcome.is_ok() && ended.is_err() {
            task.cancel.cancel();
            outcome = ended;
        }
    }
    outcome
}

async fn analyze_some(
    task: &Task,
    queue: &Mutex<VecDeque<Target>>,
    (total, phase): (u64, Phase),
    workers: usize,
) -> Result<(), Fault> {
    let conn = Conn::open(task, "analyze").await?;
    // Autovacuum restores statistics lost in a crash, so nothing waits for the disk.
    conn.execute("SET synchronous_commit = off").await?;
    loop {
        let (batch, left) = {
            let mut queue = lock(queue);
            let batch = take(&mut queue, workers);
            (batch, queue.len() as u64)
        };
        let Some(first) = batch.first() else {
            return Ok(());
        };
        task.work(
            phase,
            WorkProgress {
                done: total.saturating_sub(left + batch.len() as u64),
                total,
                unit: WorkUnit::Items,
                current: Some(format!("statistics of {first}")),
                workers: u8::try_from(workers).unwrap_or(u8::MAX),
            },
        );
        match conn.attempt(&format!("ANALYZE {}", batch.join(", "))).await {
            Ok(()) => {}
            Err(error) if batch.len() > 1 && error.sqlstate().is_some_and(is_of_the_statement) => {
                for table in &batch {
                    let outcome = conn.attempt(&format!("ANALYZE {table}")).await;
                    analysed(task, &conn, table, outcome)?;
                }
            }
            outcome => analysed(task, &conn, first, outcome)?,
        }
    }
}

/// A table to analyse.
#[derive(Debug)]
struct Target {
    /// As `ANALYZE` takes it.
    name: String,
    bytes: u64,
}

/// Tables for one statement, which commits after each. Small ones go together, but each worker keeps several
/// statements, so that none waits long for another's last one.
fn take(queue: &mut VecDeque<Target>, workers: usize) -> Vec<String> {
    let most = (queue.len() / (workers.max(1) * 32)).clamp(1, ANALYZE_BATCH);
    let mut batch = Vec::new();
    while batch.len() < most
        && let Some(next) = queue.pop_front()
    {
        batch.push(next.name);
        if next.bytes > ANALYZE_SMALL {
            break;
        }
    }
    batch
}

/// Ignores a table that is gone or somebody else's: its statistics are not worth a job.
fn analysed(
    task: &Task,
    conn: &Conn,
    table: &str,
    outcome: Result<(), PgError>,
) -> Result<(), Fault> {
    match outcome {
        Err(error) if error.sqlstate().is_some_and(is_of_the_statement) => {
            tracing::warn!(job_id = %task.job, %table, %error, "table not analysed");
            Ok(())
        }
        outcome => outcome.map_err(|error| conn.fault(&error)),
    }
}

/// What to analyse, largest first. Since 18, parents can be analysed without their partitions; before, a
/// partitioned parent includes its partitions, which are then not analysed separately.
async fn targets(task: &Task, conn: &Conn) -> Result<VecDeque<Target>, Fault> {
    let planned = job_records::planned(conn, task.job).await?;
    let oids: Vec<u32> = planned.iter().map(|p| p.oid).collect();
    let only = conn.session.server_version() >= 180_000;
    let sql = if only {
        "SELECT n.nspname::text, c.relname::text, c.relkind = 'p', coalesce(pg_relation_size(c.oid), 0) FROM (
            SELECT oid FROM unnest($1::oid[]) AS t (oid)
            UNION SELECT a.relid FROM unnest($1::oid[]) AS t (oid), pg_partition_ancestors(t.oid) AS a (relid)
         ) AS all_of JOIN pg_class c USING (oid) JOIN pg_namespace n ON n.oid = c.relnamespace
         ORDER BY 3, 4 DESC, 1, 2"
    } else {
        "SELECT DISTINCT n.nspname::text, c.relname::text, false, coalesce(pg_relation_size(c.oid), 0)
         FROM unnest($1::oid[]) AS t (oid)
         JOIN pg_class c ON c.oid = coalesce(pg_partition_root(t.oid), t.oid)
         JOIN pg_namespace n ON n.oid = c.relnamespace ORDER BY 4 DESC, 1, 2"
    };
    let rows = conn.rows(sql, &[&oids]).await?;
    let name = |row: &tokio_postgres::Row| {
        let table = TableName::new(row.get::<_, &str>(0), row.get::<_, &str>(1)).ok()?;
        let only = if row.get(2) { "ONLY " } else { "" };
        Some(Target {
            name: format!("{only}{}", table.quoted()),
            bytes: u64::try_from(row.get::<_, i64>(3)).unwrap_or(0),
        })
    };
    Ok(rows.iter().filter_map(name).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(sizes: impl IntoIterator<Item = u64>) -> VecDeque<Target> {
        let target = |(n, bytes)| Target {
            name: format!("t{n}"),
            bytes,
        };
        sizes.into_iter().enumerate().map(target).collect()
    }

    #[test]
    fn only_small_tables_are_analysed_together_and_the_last_are_spread() {
        let mut all = queue(
            [9 * ANALYZE_SMALL, 2 * ANALYZE_SMALL]
                .into_iter()
                .chain([0; 2_000]),
        );
        assert_eq!(take(&mut all, 4), ["t0"]);
        assert_eq!(take(&mut all, 4), ["t1"]);
        assert_eq!(take(&mut all, 4).len(), 15);
        let mut few = queue([0; 100]);
        assert_eq!(take(&mut few, 4), ["t0"]);
        assert!(take(&mut queue([]), 4).is_empty());
    }
}
