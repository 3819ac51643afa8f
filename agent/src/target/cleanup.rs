//! Undoes what a job did on the target (G6), or lets go of it once the job is complete.
//!
//! Every step finds out what is left to do, so cleanup may come after nothing, after half a job, twice, or
//! while servers still finish what a dead agent began. The schema `steep_repl` stays, as it holds the
//! node's state and audit log; only the job's rows in it go.
//!
//! No step waits long for others' locks: a reader of a copied table must not keep the source's slot, which
//! is removed once this side is done or has given up.

use steep_protocol::Fault;
use steep_protocol::message::agent::EarlierEpoch;
use steep_protocol::message::facts::Finding;
use steep_protocol::message::job::CancelledData;

use super::{existing, reinit, sequences};
use crate::deferred::build::{Purpose, build_constraints, build_event_triggers, build_indexes};
use crate::node::connection::{Conn, application_names};
use crate::node::job_records::{self, Origin, Progress};
use crate::part::ledger;
use crate::peer::connection::SourceAgent;
use crate::replication::{apart, fold, keep_out, subscription};
use crate::schema::{missing, objects, settings};
use crate::task::{Patience, Task};
use crate::verify::forget_origin;

/// How long an ended session of ours may take to go, in milliseconds.
const TERMINATE_WAIT_MS: i64 = 10_000;

/// Parallel rebuilds; on emptied tables they take no time.
const PARALLEL: u8 = 4;

/// Removes the job's subscription, origin and records. [`CancelledData::Remove`] also removes the schema
/// that the job created, or the rows that it put into existing tables; [`CancelledData::Keep`] keeps both
/// and rebuilds what was dropped; [`CancelledData::Detach`] does that too, and sets the sequences to those of
/// `source`.
///
/// Reports what could not be removed, as no retry would remove it. After an error, another try finds what
/// is left.
pub(crate) async fn cleanup(
    task: &Task,
    data: CancelledData,
    earlier: &[EarlierEpoch],
    source: Option<&SourceAgent>,
) -> Result<Vec<Finding>, Fault> {
    let task = &Task {
        patience: Patience::Short,
        ..task.clone()
    };
    let conn = Conn::open(task, "cleanup").await?;
    end_others(task, &conn).await?;
    for epoch in earlier {
        subscription::unsubscribe(&conn, &epoch.replication.name()).await?;
    }
    let name = task.replication.name();
    subscription::unsubscribe(&conn, &fold::stopped_name(&name)).await?;
    subscription::unsubscribe(&conn, &name).await?;
    let mut findings = Vec::new();
    if data == CancelledData::Detach && !apart::is_set(&conn, task.job).await? {
        // Nothing is applied any more, so no row that is here has a number beyond the source's.
        findings.extend(sequences::take_over(task, source).await?);
    }
    if let Some(record) = job_records::load(&conn, task.job).await? {
        match (data, record.origin) {
            (CancelledData::Remove, Origin::Bootstrap) => {
                findings.extend(objects::drop_created(&conn, task.job).await?);
                settings::take_back(&conn, task.job).await?;
                conn.execute(&missing::forget(task.job)).await?;
            }
            (CancelledData::Remove, Origin::Existing) => {
                // Until the job has seen or made the tables empty, their rows are not its own.
                if record.progress >= Progress::OwnsRows {
                    empty(task, &conn).await?;
                }
                rebuild(task).await?;
                findings.extend(objects::drop_listed(&conn, task.job).await?);
            }
            (CancelledData::Keep | CancelledData::Detach, _) => rebuild(task).await?,
        }
    }
    reinit::forget(&conn, task.job).await?;
    // Dropped tables took theirs along.
    keep_out::lift(&conn, task.job).await?;
    ledger::forget(task, &conn).await?;
    if data != CancelledData::Detach {
        findings.extend(apart::give_back(&conn, task.job).await?);
        forget_origin(&conn).await?;
    }
    Ok(findings)
}

/// Removes the records of a job that is complete, and lets others write where no subscription has done so.
pub(crate) async fn release(task: &Task) -> Result<(), Fault> {
    let conn = Conn::to_catalog(task, "release").await?;
    let outcome = async {
        keep_out::lift(&conn, task.job).await?;
        keep_out::held(&conn, task.job).await?;
        reinit::forget(&conn, task.job).await?;
        ledger::forget(task, &conn).await
    };
    let outcome = outcome.await;
    conn.give_back().await;
    outcome
}

/// Ends sessions of the job that an agent left behind, whose locks would be in the way.
async fn end_others(task: &Task, conn: &Conn) -> Result<(), Fault> {
    let sql = "SELECT count(pg_terminate_backend(pid, $2)) FROM pg_stat_activity
        WHERE application_name LIKE $1 AND datname = current_database()
        AND usename = current_user AND pid <> pg_backend_pid()";
    let names = application_names(task.job);
    conn.rows(sql, &[&names, &TERMINATE_WAIT_MS]).await?;
    Ok(())
}

async fn empty(task: &Task, conn: &Conn) -> Result<(), Fault> {
    // Keeps triggers on TRUNCATE from firing.
    conn.replica_role().await?;
    let planned = job_records::planned(conn, task.job).await?;
    existing::truncate(conn, &planned).await
}

/// Rebuilds deferred objects. Failures are logged and stay noted as missing.
async fn rebuild(task: &Task) -> Result<(), Fault> {
    let mut findings = build_indexes(task, PARALLEL, Purpose::Cleanup).await?;
    findings.extend(build_constraints(task, PARALLEL, Purpose::Cleanup).await?);
    let conn = Conn::open(task, "build").await?;
    findings.extend(build_event_triggers(task, &conn, Purpose::Cleanup).await?);
    findings.extend(missing::report(&conn).await?.findings);
    for finding in findings {
        tracing::warn!(job_id = %task.job, code = %finding.code, what = %finding.what, "put back with a flaw");
    }
    Ok(())
}
