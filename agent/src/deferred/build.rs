//! Builds what was deferred: indexes and keys in parallel, then those of partitioned tables above them,
//! their details, foreign keys, everything else.
//!
//! What fails and replication does not need is noted as missing and skipped; what it needs stops the job
//! and leaves the rest as it is.
//!
//! Each statement records its end in its own transaction, which those on small tables share, so a repeated command goes on where the last one
//! stopped. These transactions do not wait for the disk: statement and record are lost or kept together,
//! and the last commit of a stage waits for all of them.

use std::collections::HashSet;

use steep_protocol::message::facts::Finding;
use steep_protocol::{Fault, FaultKind, Phase, Retry};

use super::checks;
use super::identity::Identities;
use super::memory::Memory;
use super::objects::{Kind, Mark, Waiting, mark, waiting};
use super::workers::{Pool, weight};
use crate::node::connection::Conn;
use crate::node::job_records;
use crate::node::wal_writer::WalWriterAwake;
use crate::pg::PgError;
use crate::schema::batch::{Batches, Item, Strictness, is_of_the_statement};
use crate::schema::missing::{self, Lack, Missing, Weight};
use crate::schema::statement::{Stage, headline};
use crate::task::Task;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Replication finds rows by some of the indexes.
    Replication,
    /// The node no longer replicates: no failing index may stop a cleanup.
    Cleanup,
}

impl Purpose {
    fn strictness(self) -> Strictness<'static> {
        match self {
            Self::Replication => Strictness::Afterwards,
            Self::Cleanup => Strictness::Cleanup,
        }
    }
}

/// Builds indexes, the constraints that are indexes, and their details. Fails where replication needs an
/// index that cannot be built. After an error, what is left stays stored for another try.
pub(crate) async fn build_indexes(
    task: &Task,
    parallel: u8,
    purpose: Purpose,
) -> Result<Vec<Finding>, Fault> {
    let conn = Conn::open(task, "build").await?;
    if !job_records::installed(&conn).await? {
        return Ok(Vec::new());
    }
    let all = waiting(&conn, task.job, Stage::Indexes).await?;
    let needed = match purpose {
        Purpose::Replication => Identities::read(&conn, task.job).await?.among(&all),
        Purpose::Cleanup => HashSet::new(),
    };
    let weights: Vec<u64> = all.iter().map(weight).collect();
    let memory = Memory::choose(task, &conn, &weights, parallel).await?;
    let _awake = (!all.is_empty()).then(|| WalWriterAwake::beside(task));
    Pool::new(task, &conn, Phase::Indexes, memory, needed)
        .run(all, parallel)
        .await?;
    let parents = waiting(&conn, task.job, Stage::Parents).await?;
    Pool::new(task, &conn, Phase::Indexes, Memory::keep(), HashSet::new())
        .run(parents, 1)
        .await?;
    let findings = in_order(task, &conn, (Stage::IndexDetails, Phase::Indexes), purpose).await?;
    settle(&conn).await?;
    Ok(findings)
}

/// Builds foreign keys and everything else, policies included.
///
/// A foreign key that the rows violate stays `NOT VALID`. This and anything that cannot be built is noted
/// as missing and does not stop the job. After an error, what is left stays stored for another try.
pub(crate) async fn build_constraints(
    task: &Task,
    parallel: u8,
    purpose: Purpose,
) -> Result<Vec<Finding>, Fault> {
    let conn = Conn::open(task, "build").await?;
    if !job_records::installed(&conn).await? {
        return Ok(Vec::new());
    }
    checks::bring_back(task, &conn, Phase::Constraints).await?;
    add_foreign_keys(task, &conn).await?;
    let added = waiting(&conn, task.job, Stage::ForeignKeys).await?;
    let memory = Memory::keep();
    Pool::new(task, &conn, Phase::Constraints, memory, HashSet::new())
        .run(added, parallel)
        .await?;
    let mut findings = in_order(task, &conn, (Stage::Rest, Phase::Constraints), purpose).await?;
    findings.extend(in_order(task, &conn, (Stage::Policies, Phase::Constraints), purpose).await?);
    missing::retry(&conn, task.job).await?;
    settle(&conn).await?;
    Ok(findings)
}

/// Comes last, since nothing of the job may fire them. After an error, what is left stays stored for
/// another try.
pub(crate) async fn build_event_triggers(
    task: &Task,
    conn: &Conn,
    purpose: Purpose,
) -> Result<Vec<Finding>, Fault> {
    let stage = (Stage::EventTriggers, Phase::CatchUp);
    in_order(task, conn, stage, purpose).await
}

/// Runs a stage's statements in order, many per transaction.
pub(crate) async fn in_order(
    task: &Task,
    conn: &Conn,
    (stage, phase): (Stage, Phase),
    purpose: Purpose,
) -> Result<Vec<Finding>, Fault> {
    let all = waiting(conn, task.job, stage).await?;
    let total = all.len() as u64;
    let mut batches = Batches::new(conn, task.job, purpose.strictness());
    for (done, one) in (1..).zip(all) {
        let mut item = Item::new(one.sql);
        item.mark = Some(mark(task.job, one.ord, Mark::Done));
        let current = Some(headline(&item.sql));
        batches.add(item).await?;
        task.items(phase, (done, total), current);
    }
    batches.finish().await
}

/// Makes everything before it durable: a commit that waits for the disk.
async fn settle(conn: &Conn) -> Result<(), Fault> {
    let outcome = conn
        .transact("SELECT pg_logical_emit_message(true, 'steep_repl', '')")
        .await;
    outcome.map_err(|error| conn.fault(&error))
}

/// Adds every foreign key, one after the other: two that refer to each other's tables would deadlock, and
/// without a check it takes no time.
async fn add_foreign_keys(task: &Task, conn: &Conn) -> Result<(), Fault> {
    for one in waiting(conn, task.job, Stage::ForeignKeys).await? {
        if one.added {
            continue;
        }
        // A constraint that the source has not checked or does not enforce stays so.
        let unchecked = one.sql.ends_with("NOT VALID") || one.sql.ends_with("NOT ENFORCED");
        let later = one.kind == Kind::ForeignKey && !unchecked;
        let (tail, state) = match later {
            true => (" NOT VALID", Mark::Added),
            false => ("", Mark::Done),
        };
        let note = mark(task.job, one.ord, state);
        let sql = format!("{}{tail};\n{note}", one.sql);
        match conn.transact(&sql).await {
            Ok(()) => {}
            Err(error) if error.sqlstate().is_some_and(is_of_the_statement) => {
                note_missing(task, conn, &one, (Lack::ForeignKey, &one.sql), &error).await?;
            }
            Err(error) => return Err(named(conn, &one, &error)),
        }
    }
    Ok(())
}

/// Notes that it is missing and not to be tried again in this stage.
pub(crate) async fn note_missing(
    task: &Task,
    conn: &Conn,
    one: &Waiting,
    (lack, sql): (Lack, &str),
    error: &PgError,
) -> Result<(), Fault> {
    let missing = Missing {
        lack,
        weight: Weight::Heavy,
        setup: "",
        sql,
    };
    let note = missing.note(task.job, error);
    let sql = format!("{note};\n{}", mark(task.job, one.ord, Mark::Failed));
    let noted = conn.transact(&sql).await;
    noted.map_err(|error| conn.fault(&error))
}

pub(super) fn named(conn: &Conn, one: &Waiting, error: &PgError) -> Fault {
    let mut fault = conn.fault(error);
    if fault.kind != FaultKind::Cancelled {
        let label = one.label().unwrap_or_else(|| headline(&one.sql));
        fault.message = format!("building {label}: {}", fault.message);
    }
    fault
}

/// The fault where an index that replication needs cannot be built. No retry: the rows are in its way.
pub(super) fn identity_failed(conn: &Conn, one: &Waiting, error: &PgError) -> Fault {
    let fault = named(conn, one, error);
    if !error.sqlstate().is_some_and(is_of_the_statement) {
        return fault;
    }
    let table = one
        .table
        .as_ref()
        .map(ToString::to_string)
        .unwrap_or_default();
    let mut fault = fault.retry(Retry::Never).hint(format!(
        "{table} is replicated by this index: without it UPDATE and DELETE cannot be applied. Mend on \
         the source what keeps it from being built, then go on with steep-repl init {} --from SOURCE --resume",
        conn.node()
    ));
    fault.table = one.table.clone().map(Box::new);
    fault
}
