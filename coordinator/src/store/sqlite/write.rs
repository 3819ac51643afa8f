//! [`Write`]s as SQL, inside the transaction of one [`Store::apply`].
//!
//! [`Store::apply`]: crate::store::Store::apply

use jiff::Timestamp;
use rusqlite::{Transaction, params};
use steep_protocol::message::agent::TableSummary;
use steep_protocol::message::api::{AuditView, EndView, EventView};
use steep_protocol::{JobId, NodeId};

use super::{execute, signed, to_json};
use crate::job::progress::Mark;
use crate::job::{Job, Stage};
use crate::store::{
    AUDIT_KEPT, EVENTS_KEPT, FORGOTTEN_KEPT, JOBS_KEPT, SAMPLES_MAX, StoreError, TableSum, Write,
};

/// Old events and audit entries are dropped once per this many new ones.
pub(super) const PRUNE_EVERY: u64 = 1_000;

pub(super) fn apply_one(transaction: &Transaction<'_>, write: &Write) -> Result<(), StoreError> {
    match write {
        Write::Node(node) => {
            let sql = "INSERT INTO nodes VALUES (?1, ?2) \
                       ON CONFLICT (node) DO UPDATE SET record = excluded.record";
            execute(transaction, sql, params![node.id.as_str(), to_json(node)?])
        }
        Write::Forget(node) => {
            let due = "DELETE FROM audit_due WHERE node = ?1";
            execute(transaction, due, params![node.as_str()])?;
            let sql = "DELETE FROM nodes WHERE node = ?1";
            execute(transaction, sql, params![node.as_str()])
        }
        Write::Snapshot(snapshot) => {
            let sql = "INSERT INTO snapshots VALUES (?1, ?2) \
                       ON CONFLICT (snapshot) DO UPDATE SET record = excluded.record";
            let values = params![snapshot.id.to_string(), to_json(snapshot)?];
            execute(transaction, sql, values)
        }
        Write::SnapshotForgotten(snapshot) => forget_snapshot(transaction, &snapshot.to_string()),
        Write::Switchover(switchover) => {
            let sql = "INSERT INTO switchovers VALUES (?1, ?2) \
                       ON CONFLICT (switchover) DO UPDATE SET record = excluded.record";
            let values = params![switchover.id.to_string(), to_json(switchover)?];
            execute(transaction, sql, values)
        }
        Write::SwitchoverForgotten(id) => {
            let sql = "DELETE FROM switchovers WHERE switchover = ?1";
            execute(transaction, sql, params![id.to_string()])
        }
        Write::Job(job) => put_job(transaction, job),
        Write::NextCommand(next) => {
            let sql = "UPDATE meta SET value = ?1 WHERE key = 'next_command'";
            execute(transaction, sql, params![signed(*next)])
        }
        Write::Plan { job, tables } => tables
            .iter()
            .try_for_each(|table| put_table(transaction, *job, table)),
        Write::Parts { job, parts } => {
            let sql = "INSERT OR REPLACE INTO parts VALUES (?1, ?2, ?3, ?4, ?5)";
            let job = job.to_string();
            parts.iter().try_for_each(|part| {
                let (rows, bytes) = (signed(part.rows.0), signed(part.bytes.0));
                let values = params![job, part.part.0, rows, bytes, signed(part.wire.0)];
                execute(transaction, sql, values)
            })
        }
        Write::Seal { end, tables } => seal(transaction, end, tables),
        Write::Pause { end } => put_end(transaction, end),
        Write::Reopen { job } => {
            let sql = "UPDATE jobs SET ending = NULL, ended = NULL WHERE job = ?1";
            execute(transaction, sql, params![job.to_string()])
        }
        Write::PlanDropped { job, kept } => drop_plan(transaction, *job, kept),
        Write::Sample { job, mark } => put_sample(transaction, *job, mark),
        Write::Times { job, tables } => tables.iter().try_for_each(|times| {
            let sql = "UPDATE tables SET began = ?3, ended = ?4 WHERE job = ?1 AND no = ?2";
            let (began, ended) = (times.began, times.ended.map(Timestamp::as_millisecond));
            let values = params![job.to_string(), times.no.0, began.as_millisecond(), ended];
            execute(transaction, sql, values)
        }),
        Write::Audit { view, due } => put_audit(transaction, view, due),
        Write::Audited { node, seq } => {
            let sql = "DELETE FROM audit_due WHERE node = ?1 AND seq = ?2";
            execute(transaction, sql, params![node.as_str(), signed(*seq)])
        }
        Write::Event(event) => put_event(transaction, event),
    }
}

fn forget_snapshot(transaction: &Transaction<'_>, snapshot: &str) -> Result<(), StoreError> {
    let sql = "DELETE FROM snapshots WHERE snapshot = ?1";
    execute(transaction, sql, params![snapshot])?;
    let sql = "INSERT OR IGNORE INTO forgotten_snapshots (snapshot) VALUES (?1)";
    execute(transaction, sql, params![snapshot])?;
    let sql = "DELETE FROM forgotten_snapshots \
               WHERE seq <= (SELECT max(seq) FROM forgotten_snapshots) - ?1";
    execute(transaction, sql, params![FORGOTTEN_KEPT as i64])
}

fn put_job(transaction: &Transaction<'_>, job: &Job) -> Result<(), StoreError> {
    let (id, target) = (job.id.to_string(), job.spec.target.as_str());
    let open = !matches!(job.stage, Stage::Closed(_));
    let sql = "UPDATE jobs SET open = ?2, record = ?3 WHERE job = ?1";
    let record = to_json(job)?;
    if transaction
        .prepare_cached(sql)?
        .execute(params![id, open, record])?
        > 0
    {
        return Ok(());
    }
    let old = "SELECT job FROM jobs WHERE target = ?1 AND NOT open AND job IS NOT ?2";
    // What it changes tables of is still the node's job.
    let goes_on = job.change.as_ref().map(|change| change.base.to_string());
    for table in ["tables", "parts", "samples"] {
        let sql = format!("DELETE FROM {table} WHERE job IN ({old})");
        execute(transaction, &sql, params![target, goes_on])?;
    }
    let sql = "INSERT INTO jobs (job, target, open, record) VALUES (?1, ?2, ?3, ?4)";
    execute(transaction, sql, params![id, target, open, record])
}

fn put_table(
    transaction: &Transaction<'_>,
    job: JobId,
    table: &TableSummary,
) -> Result<(), StoreError> {
    let sql = "INSERT OR REPLACE INTO tables (job, no, schema, name, rows_estimate, \
               bytes_estimate, first_part, parts) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";
    let values = params![
        job.to_string(),
        table.no.0,
        table.name.schema.as_str(),
        table.name.table.as_str(),
        signed(table.rows_estimate.0),
        signed(table.bytes_estimate.0),
        table.first_part.0,
        table.parts
    ];
    execute(transaction, sql, values)
}

fn drop_plan(
    transaction: &Transaction<'_>,
    job: JobId,
    kept: &[(TableSummary, TableSum)],
) -> Result<(), StoreError> {
    for table in ["tables", "parts"] {
        let sql = format!("DELETE FROM {table} WHERE job = ?1");
        execute(transaction, &sql, params![job.to_string()])?;
    }
    for (table, sum) in kept {
        put_table(transaction, job, table)?;
        put_sum(transaction, &job.to_string(), sum)?;
    }
    Ok(())
}

fn put_sum(transaction: &Transaction<'_>, job: &str, sum: &TableSum) -> Result<(), StoreError> {
    let sql = "UPDATE tables SET done = ?3, rows = ?4, bytes = ?5 WHERE job = ?1 AND no = ?2";
    let (rows, bytes) = (signed(sum.rows.0), signed(sum.bytes.0));
    execute(
        transaction,
        sql,
        params![job, sum.no.0, sum.done, rows, bytes],
    )
}

fn seal(
    transaction: &Transaction<'_>,
    end: &EndView,
    tables: &[TableSum],
) -> Result<(), StoreError> {
    let job = end.job_id.to_string();
    put_end(transaction, end)?;
    for table in tables {
        put_sum(transaction, &job, table)?;
    }
    execute(
        transaction,
        "DELETE FROM parts WHERE job = ?1",
        params![job],
    )?;
    let sql = "DELETE FROM jobs WHERE NOT open AND ended < (SELECT ended FROM jobs \
               WHERE target = ?1 AND ended IS NOT NULL ORDER BY ended DESC LIMIT 1 OFFSET ?2) \
               AND target = ?1";
    let target = end.node_id.as_str();
    execute(transaction, sql, params![target, JOBS_KEPT - 1])
}

fn put_end(transaction: &Transaction<'_>, end: &EndView) -> Result<(), StoreError> {
    let sql = "UPDATE jobs SET ending = ?2, ended = ?3 WHERE job = ?1";
    let ended = end.report.ended_at.map_or(0, Timestamp::as_millisecond);
    let job = end.job_id.to_string();
    execute(transaction, sql, params![job, to_json(end)?, ended])
}

fn put_sample(transaction: &Transaction<'_>, job: JobId, mark: &Mark) -> Result<(), StoreError> {
    let job = job.to_string();
    let sql = "INSERT OR REPLACE INTO samples VALUES (?1, ?2, ?3)";
    let at = mark.sample.at.as_millisecond();
    execute(transaction, sql, params![job, at, to_json(mark)?])?;
    let count: usize = transaction
        .prepare_cached("SELECT count(*) FROM samples WHERE job = ?1")?
        .query_row([&job], |row| row.get(0))?;
    if count <= SAMPLES_MAX {
        return Ok(());
    }
    let thin = "DELETE FROM samples WHERE job = ?1 AND at IN (\
                SELECT at FROM (SELECT at, row_number() OVER (ORDER BY at) AS place \
                FROM samples WHERE job = ?1) WHERE place <= ?2 AND place % 2 = 0)";
    execute(transaction, thin, params![job, SAMPLES_MAX / 2])
}

fn put_audit(
    transaction: &Transaction<'_>,
    view: &AuditView,
    due: &[NodeId],
) -> Result<(), StoreError> {
    let (seq, node) = (signed(view.seq), view.node_id.as_str());
    let source = view.source_node.as_ref().map(NodeId::as_str);
    let sql = "INSERT INTO audit VALUES (?1, ?2, ?3, ?4)";
    execute(transaction, sql, params![seq, node, source, to_json(view)?])?;
    for node in due {
        let sql = "INSERT INTO audit_due VALUES (?1, ?2)";
        execute(transaction, sql, params![node.as_str(), seq])?;
    }
    if view.seq.is_multiple_of(PRUNE_EVERY) && view.seq > AUDIT_KEPT {
        let last = signed(view.seq - AUDIT_KEPT);
        for table in ["audit", "audit_due"] {
            let sql = format!("DELETE FROM {table} WHERE seq <= ?1");
            execute(transaction, &sql, params![last])?;
        }
    }
    Ok(())
}

fn put_event(transaction: &Transaction<'_>, event: &EventView) -> Result<(), StoreError> {
    let sql = "INSERT INTO events VALUES (?1, ?2, ?3, ?4)";
    let node = event.node_id.as_ref().map(NodeId::as_str);
    let source = event.source_node.as_ref().map(NodeId::as_str);
    execute(
        transaction,
        sql,
        params![signed(event.seq), node, source, to_json(event)?],
    )?;
    if event.seq.is_multiple_of(PRUNE_EVERY) && event.seq > EVENTS_KEPT {
        let last = signed(event.seq - EVENTS_KEPT);
        execute(
            transaction,
            "DELETE FROM events WHERE seq <= ?1",
            params![last],
        )?;
    }
    Ok(())
}
