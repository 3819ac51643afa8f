//! Takes back what a job has made on the target (G6).
//!
//! Every step finds out by itself what is left to do, so cleanup may come after nothing, after half
//! a job, twice, or while servers still end what a dead agent began. The schema `steep_repl` itself
//! stays: it is the node's, holds its state and its audit log; only the job's rows in it go.
//!
//! Nothing here waits long for locks of others: whoever reads a copied table in an open transaction
//! must not keep the source's slot, which is removed once this side has let go or has given up.

use steep_protocol::Fault;
use steep_protocol::message::facts::Finding;
use steep_protocol::message::job::CancelledData;

use super::existing;
use crate::deferred::build::{
    Purpose, build_constraints_for, build_event_triggers, build_indexes_for,
};
use crate::node::connection::{Conn, application_names};
use crate::node::job_records::{self, Origin, Progress};
use crate::part::ledger;
use crate::replication::{keep_out, subscription};
use crate::schema::{missing, objects, settings};
use crate::task::{Patience, Task};

/// How long one of our own sessions may take to end once told, in milliseconds.
const TERMINATE_WAIT_MS: i64 = 10_000;

/// Builds at once where indexes are made again: on emptied tables that takes no time.
const PARALLEL: u8 = 4;

/// Removes subscription, origin and records of the job. With [`CancelledData::Remove`] also the
/// schema the job made or the rows it put into tables that were there; with
/// [`CancelledData::Keep`] both stay, and what was dropped is built again.
///
/// Says what could not be removed: no other try would remove it.
///
/// # Errors
/// Faults of the server or the connection, locks of others; what is left is found by another try.
pub(crate) async fn cleanup(task: &Task, data: CancelledData) -> Result<Vec<Finding>, Fault> {
    let task = &Task {
        patience: Patience::Short,
        ..task.clone()
    };
    let conn = Conn::open(task, "cleanup").await?;
    end_others(task, &conn).await?;
    subscription::unsubscribe(&conn, &task.replication.name()).await?;
    let mut findings = Vec::new();
    if let Some(record) = job_records::load(&conn, task.job).await? {
        match (data, record.origin) {
            (CancelledData::Remove, Origin::Bootstrap) => {
                findings.extend(objects::drop_created(&conn, task.job).await?);
                settings::take_back(&conn, task.job).await?;
                conn.execute(&missing::forget(task.job)).await?;
            }
            (CancelledData::Remove, Origin::Existing) => {
                // Until the job has seen or made them empty, their rows are not its own.
                if record.progress >= Progress::OwnsRows {
                    empty(task, &conn).await?;
                }
                rebuild(task).await?;
                findings.extend(objects::drop_listed(&conn, task.job).await?);
            }
            (CancelledData::Keep, _) => rebuild(task).await?,
        }
    }
    // Of tables that are dropped they went with them.
    keep_out::lift(&conn, task.job).await?;
    ledger::forget(task, &conn).await?;
    Ok(findings)
}

/// Ends sessions of the job that an agent has left behind: their locks would be in the way.
async fn end_others(task: &Task, conn: &Conn) -> Result<(), Fault> {
    let sql = "SELECT count(pg_terminate_backend(pid, $2)) FROM pg_stat_activity
        WHERE application_name LIKE $1 AND datname = current_database()
        AND usename = current_user AND pid <> pg_backend_pid()";
    let names = application_names(task.job);
    conn.rows(sql, &[&names, &TERMINATE_WAIT_MS]).await?;
    Ok(())
}

async fn empty(task: &Task, conn: &Conn) -> Result<(), Fault> {
    // No trigger on TRUNCATE is meant for this.
    conn.replica_role().await?;
    let planned = job_records::planned(conn, task.job).await?;
    existing::truncate(conn, &planned).await
}

/// Rebuilds deferred objects. What fails is logged and stays noted as missing.
async fn rebuild(task: &Task) -> Result<(), Fault> {
    let mut findings = build_indexes_for(task, PARALLEL, Purpose::Cleanup).await?;
    findings.extend(build_constraints_for(task, PARALLEL, Purpose::Cleanup).await?);
    let conn = Conn::open(task, "build").await?;
    findings.extend(build_event_triggers(task, &conn, Purpose::Cleanup).await?);
    findings.extend(missing::report(&conn).await?.findings);
    for finding in findings {
        tracing::warn!(job_id = %task.job, code = %finding.code, what = %finding.what, "put back with a flaw");
    }
    Ok(())
}
