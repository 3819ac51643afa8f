//! Builds what was deferred: indexes and keys in parallel, those of partitioned tables above
//! them, their details, foreign keys, everything else.
//!
//! What cannot be made and replication can do without is noted as missing and left out; what it needs
//! stops the job, with everything else left as it is.
//!
//! Each statement notes its end in its own transaction, which on small tables it shares with others, so
//! that a command done again goes on where the last one stopped. Those transactions do not wait for the disk one by one: statement and note
//! are lost or kept together, and the last commit of a stage waits for all of them.

use std::collections::HashSet;

use steep_protocol::message::agent::{WorkProgress, WorkUnit};
use steep_protocol::message::facts::Finding;
use steep_protocol::{Fault, FaultKind, Identifier, Phase, Retry, TableName};
use tokio_postgres::error::SqlState;

use super::checks;
use super::identity::Identities;
use super::memory::Memory;
use super::objects::{Kind, Mark, Waiting, mark, waiting};
use super::workers::{Need, Pool, weight};
use crate::node::connection::Conn;
use crate::node::job_records;
use crate::node::wal_writer::WalWriterAwake;
use crate::pg::PgError;
use crate::schema::batch::{Batches, Item, Strictness, is_of_the_statement};
use crate::schema::missing::{self, Lack, Missing, Weight};
use crate::schema::statement::{Stage, headline};
use crate::task::Task;

/// Indexes, the constraints that are indexes, and what is said about them.
///
/// # Errors
/// An index that replication needs and that cannot be made, and faults of the server or the connection;
/// what is left stays stored for another try.
pub async fn build_indexes(task: &Task, parallel: u8) -> Result<Vec<Finding>, Fault> {
    build_indexes_for(task, parallel, Purpose::Replication).await
}

/// What is built for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// A replica, which finds rows by some of them.
    Replication,
    /// A node that replicates no more: none of them is in the way of a cleanup.
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

/// [`build_indexes`] for that.
pub(crate) async fn build_indexes_for(
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

/// Foreign keys and all the rest, policies included.
///
/// A foreign key that the rows violate is left `NOT VALID`; it and whatever cannot be made is noted as
/// missing and does not stop the job.
///
/// # Errors
/// Faults of the server or the connection; what is left stays stored for another try.
pub async fn build_constraints(task: &Task, parallel: u8) -> Result<Vec<Finding>, Fault> {
    build_constraints_for(task, parallel, Purpose::Replication).await
}

/// [`build_constraints`] for that.
pub(crate) async fn build_constraints_for(
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

/// What nothing of the job may set off: made when everything else is.
///
/// # Errors
/// Faults of the server or the connection; what is left stays stored for another try.
pub(crate) async fn build_event_triggers(
    task: &Task,
    conn: &Conn,
    purpose: Purpose,
) -> Result<Vec<Finding>, Fault> {
    let stage = (Stage::EventTriggers, Phase::CatchUp);
    in_order(task, conn, stage, purpose).await
}

/// Statements of a stage, one after the other, many to a transaction.
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
        let unit = WorkUnit::Items;
        task.work(
            phase,
            WorkProgress {
                done,
                total,
                unit,
                current,
                workers: 1,
            },
        );
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

/// Adds every foreign key, one after the other: adding two that refer to each other's tables at the
/// same time would deadlock, and without a check it takes no time.
async fn add_foreign_keys(task: &Task, conn: &Conn) -> Result<(), Fault> {
    for one in waiting(conn, task.job, Stage::ForeignKeys).await? {
        if one.added {
            continue;
        }
        // What the source has not checked or does not enforce stays so.
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

/// Notes that it is missing, and that nothing is to be done about it any more.
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

fn named(conn: &Conn, one: &Waiting, error: &PgError) -> Fault {
    let mut fault = conn.fault(error);
    if fault.kind != FaultKind::Cancelled {
        let label = one.label().unwrap_or_else(|| headline(&one.sql));
        fault.message = format!("building {label}: {}", fault.message);
    }
    fault
}

/// What it means that the index which replication finds rows by cannot be made. The same try would fail in
/// the same way: what is in its way is in the rows.
fn identity_failed(conn: &Conn, one: &Waiting, error: &PgError) -> Fault {
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

/// Tries of a statement that another session's locks got in the way of.
const DEADLOCK_TRIES: u32 = 5;

pub(super) async fn build(
    task: &Task,
    conn: &Conn,
    one: &Waiting,
    need: Need,
) -> Result<(), Fault> {
    let sql = format!("{};\n{}", one.sql, mark(task.job, one.ord, Mark::Done));
    match insist(conn, &sql).await {
        Ok(()) => Ok(()),
        Err(error) if need == Need::ByReplication => Err(identity_failed(conn, one, &error)),
        Err(error) if error.sqlstate().is_some_and(is_of_the_statement) => {
            note_missing(task, conn, one, (Lack::Object, &one.sql), &error).await
        }
        Err(error) => Err(named(conn, one, &error)),
    }
}

/// A transaction that is begun again where a deadlock ended it.
pub(super) async fn insist(conn: &Conn, sql: &str) -> Result<(), PgError> {
    let mut tries = 1;
    loop {
        match conn.transact(sql).await {
            Err(error) if error.is(&SqlState::T_R_DEADLOCK_DETECTED) && tries < DEADLOCK_TRIES => {
                tries += 1;
            }
            outcome => return outcome,
        }
    }
}

pub(super) async fn validate(task: &Task, conn: &Conn, one: &Waiting) -> Result<(), Fault> {
    let (Some(table), Some(name)) = (&one.table, &one.name) else {
        return Ok(());
    };
    let quoted = Identifier::parse(name.as_str())
        .map_err(|error| conn.own(Fault::new(FaultKind::Failed, error.to_string())))?
        .quoted();
    let of = table.quoted();
    let check = if refers_to_partitions(conn, table, name).await? {
        format!(
            "ALTER TABLE ONLY {of} DROP CONSTRAINT {quoted};\n{}",
            one.sql
        )
    } else {
        format!("ALTER TABLE ONLY {of} VALIDATE CONSTRAINT {quoted}")
    };
    let sql = format!("{check};\n{}", mark(task.job, one.ord, Mark::Done));
    match insist(conn, &sql).await {
        Ok(()) => Ok(()),
        Err(error) if error.sqlstate().is_some_and(is_of_the_statement) => {
            let lack = match error.is(&SqlState::FOREIGN_KEY_VIOLATION) {
                true => Lack::Violated,
                false => Lack::ForeignKey,
            };
            note_missing(task, conn, one, (lack, &check), &error).await
        }
        Err(error) => Err(named(conn, one, &error)),
    }
}

/// Before PostgreSQL 18, VALIDATE leaves a constraint's parts for each partition of the table it
/// refers to as they are; added again without NOT VALID it is whole.
async fn refers_to_partitions(conn: &Conn, table: &TableName, name: &str) -> Result<bool, Fault> {
    if conn.session.server_version() >= 180_000 {
        return Ok(false);
    }
    let sql = "SELECT EXISTS (SELECT FROM pg_constraint k
        JOIN pg_class c ON c.oid = k.confrelid AND c.relkind = 'p'
        WHERE k.conrelid = to_regclass($1) AND k.conname = $2 AND k.contype = 'f')";
    Ok(conn.row(sql, &[&table.quoted(), &name]).await?.get(0))
}
