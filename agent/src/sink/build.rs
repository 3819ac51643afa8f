//! Brings back what was put aside: indexes and keys in parallel, those of partitioned tables above
//! them, their details, foreign keys, everything else.
//!
//! Each statement notes its end in its own transaction, so that a command done again goes on where
//! the last one stopped. Those transactions do not wait for the disk one by one: statement and note
//! are lost or kept together, and the last commit of a stage waits for all of them.

use std::time::Duration;

use steep_protocol::message::agent::{WorkProgress, WorkUnit};
use steep_protocol::message::facts::Finding;
use steep_protocol::{Fault, FaultKind, Identifier, Phase, TableName};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tokio_postgres::error::SqlState;

use super::batch::{Batches, Item, Strictness, is_of_the_statement};
use super::books;
use super::checks;
use super::conn::Conn;
use super::deferred::{Kind, Mark, Waiting, mark, waiting};
use super::memory::Memory;
use super::queue::Queue;
use super::statement::{Stage, headline};
use super::wal::WalWriterAwake;
use crate::pg::PgError;
use crate::task::Task;

/// Between two looks at the server's own progress views.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// What a table weighs besides its bytes, so that small ones are seen to move too.
const WEIGHT_MIN: u64 = 8192;

/// Indexes, the constraints that are indexes, and what is said about them.
///
/// # Errors
/// The first statement that fails; it and what is left stay stored for another try.
pub async fn build_indexes(task: &Task, parallel: u8) -> Result<Vec<Finding>, Fault> {
    let conn = Conn::open(task, "build").await?;
    if !books::installed(&conn).await? {
        return Ok(Vec::new());
    }
    let all = waiting(&conn, task.job, Stage::Indexes).await?;
    let weights: Vec<u64> = all.iter().map(weight).collect();
    let memory = Memory::choose(task, &conn, &weights, parallel).await?;
    let _awake = (!all.is_empty()).then(|| WalWriterAwake::beside(task));
    Pool::new(task, &conn, Phase::Indexes, memory)
        .run(all, parallel)
        .await?;
    let parents = waiting(&conn, task.job, Stage::Parents).await?;
    Pool::new(task, &conn, Phase::Indexes, Memory::keep())
        .run(parents, 1)
        .await?;
    let findings = in_order(task, &conn, Stage::IndexDetails, Phase::Indexes).await?;
    settle(&conn).await?;
    Ok(findings)
}

/// Foreign keys and all the rest.
///
/// A foreign key that the rows violate is told and left `NOT VALID`; so is a trigger, policy or
/// privilege that cannot be made. Neither stops the job.
///
/// # Errors
/// Faults of the server or the connection; what is left stays stored for another try.
pub async fn build_constraints(task: &Task, parallel: u8) -> Result<Vec<Finding>, Fault> {
    let conn = Conn::open(task, "build").await?;
    if !books::installed(&conn).await? {
        return Ok(Vec::new());
    }
    let mut findings = checks::bring_back(task, &conn, Phase::Constraints).await?;
    findings.extend(add_foreign_keys(task, &conn).await?);
    let added = waiting(&conn, task.job, Stage::ForeignKeys).await?;
    let memory = Memory::keep();
    findings.extend(
        Pool::new(task, &conn, Phase::Constraints, memory)
            .run(added, parallel)
            .await?,
    );
    findings.extend(in_order(task, &conn, Stage::Rest, Phase::Constraints).await?);
    settle(&conn).await?;
    Ok(findings)
}

/// Statements of a stage, one after the other, many to a transaction.
pub(super) async fn in_order(
    task: &Task,
    conn: &Conn,
    stage: Stage,
    phase: Phase,
) -> Result<Vec<Finding>, Fault> {
    let strictness = match stage {
        Stage::Indexes
        | Stage::Parents
        | Stage::IndexDetails
        | Stage::ForeignKeys
        | Stage::Checks => Strictness::Structure,
        Stage::Rest | Stage::Refresh => Strictness::Afterwards,
    };
    let all = waiting(conn, task.job, stage).await?;
    let total = all.len() as u64;
    let mut batches = Batches::new(conn, strictness);
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
async fn add_foreign_keys(task: &Task, conn: &Conn) -> Result<Vec<Finding>, Fault> {
    let mut findings = Vec::new();
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
                conn.execute(&mark(task.job, one.ord, Mark::Failed)).await?;
                findings.push(foreign_key_missing(conn, &one, &error));
            }
            Err(error) => return Err(named(conn, &one, &error)),
        }
    }
    Ok(findings)
}

fn foreign_key_missing(conn: &Conn, one: &Waiting, error: &PgError) -> Finding {
    let label = one.label().unwrap_or_else(|| headline(&one.sql));
    conn.warning(
        "foreign_key_missing",
        format!("foreign key {label} could not be made: {error}"),
        "this node does not check what the source checks; rows are not affected",
        "correct the rows on the source or copy the table referred to, then add the constraint here",
    )
}

fn named(conn: &Conn, one: &Waiting, error: &PgError) -> Fault {
    let mut fault = conn.fault(error);
    if fault.kind != FaultKind::Cancelled {
        let label = one.label().unwrap_or_else(|| headline(&one.sql));
        fault.message = format!("building {label}: {}", fault.message);
    }
    fault
}

/// One worker's connection.
struct Worker {
    conn: Conn,
    pid: i32,
}

/// How one statement ended.
type Ended = (Worker, Waiting, Result<Option<Finding>, Fault>);

/// Workers on one stage.
struct Pool<'a> {
    task: &'a Task,
    conn: &'a Conn,
    phase: Phase,
    memory: Memory,
    done: u64,
    total: u64,
}

impl<'a> Pool<'a> {
    fn new(task: &'a Task, conn: &'a Conn, phase: Phase, memory: Memory) -> Self {
        Self {
            task,
            conn,
            phase,
            memory,
            done: 0,
            total: 0,
        }
    }

    async fn run(mut self, all: Vec<Waiting>, parallel: u8) -> Result<Vec<Finding>, Fault> {
        if all.is_empty() {
            return Ok(Vec::new());
        }
        self.total = all.iter().map(weight).sum();
        let mut task = self.task.clone();
        // Where one fails the others are stopped, and only they.
        task.cancel = self.task.cancel.child_token();
        let mut idle = Vec::new();
        for _ in 0..usize::from(parallel.max(1)).min(all.len()) {
            idle.push(self.worker(&task).await?);
        }
        let mut running = JoinSet::new();
        let outcome = self.drive(&task, Queue::new(all), idle, &mut running).await;
        if outcome.is_err() {
            task.cancel.cancel();
            while running.join_next().await.is_some() {}
        }
        outcome
    }

    async fn worker(&self, task: &Task) -> Result<Worker, Fault> {
        let conn = Conn::open(task, "build").await?;
        conn.execute("SET synchronous_commit = off").await?;
        conn.execute(&self.memory.settings()).await?;
        let pid = conn.row("SELECT pg_backend_pid()", &[]).await?.get(0);
        Ok(Worker { conn, pid })
    }

    async fn drive(
        &mut self,
        task: &Task,
        mut queue: Queue,
        mut idle: Vec<Worker>,
        running: &mut JoinSet<Ended>,
    ) -> Result<Vec<Finding>, Fault> {
        let mut at_work: Vec<(i32, Waiting)> = Vec::new();
        let mut findings = Vec::new();
        let mut looks = tokio::time::interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            while !idle.is_empty()
                && let Some(next) = queue.next()
                && let Some(worker) = idle.pop()
            {
                at_work.push((worker.pid, next.clone()));
                running.spawn(work(task.clone(), worker, next));
            }
            tokio::select! {
                ended = running.join_next() => match ended {
                    None => return Ok(findings),
                    Some(Ok((worker, one, outcome))) => {
                        findings.extend(outcome?);
                        at_work.retain(|(pid, _)| *pid != worker.pid);
                        queue.done(&one);
                        self.done += weight(&one);
                        idle.push(worker);
                    }
                    Some(Err(error)) => {
                        let what = format!("a worker broke: {error}");
                        return Err(self.conn.own(Fault::new(FaultKind::Failed, what)));
                    }
                },
                _ = looks.tick() => self.tell(&at_work).await?,
            }
        }
    }

    /// What the server says of the statements at work, as a share of their tables' bytes.
    async fn tell(&self, at_work: &[(i32, Waiting)]) -> Result<(), Fault> {
        let pids: Vec<i32> = at_work.iter().map(|(pid, _)| *pid).collect();
        let rows = self.conn.rows(SHARES, &[&pids]).await?;
        let mut done = self.done;
        for row in &rows {
            let (pid, share): (i32, f64) = (row.get(0), row.get(1));
            if let Some((_, one)) = at_work.iter().find(|(p, _)| *p == pid) {
                done += (weight(one) as f64 * share.clamp(0.0, 1.0)) as u64;
            }
        }
        let heaviest = at_work.iter().max_by_key(|(_, one)| one.weight);
        let work = WorkProgress {
            done,
            total: self.total,
            unit: WorkUnit::Bytes,
            current: heaviest.and_then(|(_, one)| one.label()),
            workers: u8::try_from(at_work.len()).unwrap_or(u8::MAX),
        };
        self.task.work(self.phase, work);
        Ok(())
    }
}

/// How far each index is: reading the table is the first half, sorting has no numbers, writing the
/// tree is the rest (PostgreSQL manual, "CREATE INDEX Progress Reporting").
const SHARES: &str = "
SELECT pid, CASE
    WHEN tuples_done > 0 AND tuples_total > 0
        THEN 0.6 + 0.4 * tuples_done::float8 / tuples_total
    WHEN blocks_total > 0 THEN 0.5 * blocks_done::float8 / blocks_total
    ELSE 0.0::float8 END
FROM pg_stat_progress_create_index WHERE pid = ANY ($1)";

fn weight(one: &Waiting) -> u64 {
    one.weight + WEIGHT_MIN
}

async fn work(task: Task, worker: Worker, one: Waiting) -> Ended {
    let outcome = match one.kind {
        Kind::ForeignKey | Kind::ForeignKeyAtOnce => validate(&task, &worker.conn, &one).await,
        Kind::Index
        | Kind::Key
        | Kind::Check
        | Kind::DomainCheck
        | Kind::DomainNotNull
        | Kind::Other => build(&task, &worker.conn, &one).await,
    };
    (worker, one, outcome)
}

/// Tries of a statement that another session's locks got in the way of.
const DEADLOCK_TRIES: u32 = 5;

async fn build(task: &Task, conn: &Conn, one: &Waiting) -> Result<Option<Finding>, Fault> {
    let sql = format!("{};\n{}", one.sql, mark(task.job, one.ord, Mark::Done));
    let built = insist(conn, &sql).await;
    built
        .map(|()| None)
        .map_err(|error| named(conn, one, &error))
}

/// A transaction that is begun again where a deadlock ended it.
async fn insist(conn: &Conn, sql: &str) -> Result<(), PgError> {
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

async fn validate(task: &Task, conn: &Conn, one: &Waiting) -> Result<Option<Finding>, Fault> {
    let (Some(table), Some(name)) = (&one.table, &one.name) else {
        return Ok(None);
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
        Ok(()) => Ok(None),
        Err(error) if error.is(&SqlState::FOREIGN_KEY_VIOLATION) => {
            conn.execute(&mark(task.job, one.ord, Mark::Failed)).await?;
            Ok(Some(conn.warning(
                "foreign_key_violated",
                format!("rows of {table} violate its foreign key {name}; it stays NOT VALID here"),
                "the source holds the same rows: they came in while the constraint was not enforced there, or their table is not part of this copy",
                "find the rows on the source, correct them, then run ALTER TABLE … VALIDATE CONSTRAINT here",
            )))
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
