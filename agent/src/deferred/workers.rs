//! Workers that build a stage's statements in parallel and report their progress.

use std::collections::HashSet;
use std::time::Duration;

use steep_protocol::message::agent::{WorkProgress, WorkUnit};
use steep_protocol::{Fault, FaultKind, Identifier, Phase, TableName};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tokio_postgres::error::SqlState;

use super::build::{identity_failed, named, note_missing};
use super::memory::Memory;
use super::objects::{Kind, Mark, Waiting, mark, mark_all};
use super::queue::Queue;
use crate::node::connection::Conn;
use crate::pg::PgError;
use crate::schema::batch::is_of_the_statement;
use crate::schema::missing::Lack;
use crate::task::Task;

/// How often the server's progress views are read.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Added to every table's bytes, so that small ones show progress too.
const WEIGHT_MIN: u64 = 8192;

struct Worker {
    conn: Conn,
    pid: i32,
}

type Ended = (Worker, Vec<Waiting>, Result<(), Fault>);

pub(super) struct Pool<'a> {
    task: &'a Task,
    conn: &'a Conn,
    phase: Phase,
    memory: Memory,
    needed: HashSet<i32>,
    done: u64,
    total: u64,
}

impl<'a> Pool<'a> {
    pub(super) fn new(
        task: &'a Task,
        conn: &'a Conn,
        phase: Phase,
        memory: Memory,
        needed: HashSet<i32>,
    ) -> Self {
        Self {
            task,
            conn,
            phase,
            memory,
            needed,
            done: 0,
            total: 0,
        }
    }

    pub(super) async fn run(mut self, all: Vec<Waiting>, parallel: u8) -> Result<(), Fault> {
        if all.is_empty() {
            return Ok(());
        }
        self.total = all.iter().map(weight).sum();
        let mut task = self.task.clone();
        // A failure stops the other workers, and only them.
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
    ) -> Result<(), Fault> {
        let workers = idle.len();
        let mut at_work: Vec<(i32, Vec<Waiting>)> = Vec::new();
        let mut looks = tokio::time::interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            while let Some(worker) = idle.pop() {
                let batch = queue.take(workers);
                if batch.is_empty() {
                    idle.push(worker);
                    break;
                }
                at_work.push((worker.pid, batch.clone()));
                let need = |one: &Waiting| match self.needed.contains(&one.ord) {
                    true => Need::ByReplication,
                    false => Need::Nobody,
                };
                let needs = batch.iter().map(need).collect();
                running.spawn(work(task.clone(), worker, batch, needs));
            }
            tokio::select! {
                ended = running.join_next() => match ended {
                    None => return Ok(()),
                    Some(Ok((worker, batch, outcome))) => {
                        outcome?;
                        at_work.retain(|(pid, _)| *pid != worker.pid);
                        for one in &batch {
                            queue.done(one);
                            self.done += weight(one);
                        }
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

    /// Reports the server's progress of running statements, as a share of their tables' bytes.
    async fn tell(&self, at_work: &[(i32, Vec<Waiting>)]) -> Result<(), Fault> {
        let pids: Vec<i32> = at_work.iter().map(|(pid, _)| *pid).collect();
        let rows = self.conn.rows(SHARES, &[&pids]).await?;
        let mut done = self.done;
        for row in &rows {
            let (pid, share): (i32, f64) = (row.get(0), row.get(1));
            // Which statement of a batch runs is unknown.
            if let Some((_, batch)) = at_work.iter().find(|(p, _)| *p == pid)
                && let [one] = &batch[..]
            {
                done += (weight(one) as f64 * share.clamp(0.0, 1.0)) as u64;
            }
        }
        let all = at_work.iter().flat_map(|(_, batch)| batch);
        let heaviest = all.max_by_key(|one| one.weight);
        let work = WorkProgress {
            done,
            total: self.total,
            unit: WorkUnit::Bytes,
            current: heaviest.and_then(Waiting::label),
            workers: u8::try_from(at_work.len()).unwrap_or(u8::MAX),
        };
        self.task.work(self.phase, work);
        Ok(())
    }
}

/// An index's progress: reading the table is the first half, sorting is not measured, writing the tree is
/// the rest (PostgreSQL manual, "CREATE INDEX Progress Reporting").
const SHARES: &str = "
SELECT pid, CASE
    WHEN tuples_done > 0 AND tuples_total > 0
        THEN 0.6 + 0.4 * tuples_done::float8 / tuples_total
    WHEN blocks_total > 0 THEN 0.5 * blocks_done::float8 / blocks_total
    ELSE 0.0::float8 END
FROM pg_stat_progress_create_index WHERE pid = ANY ($1)";

pub(super) fn weight(one: &Waiting) -> u64 {
    one.weight + WEIGHT_MIN
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Need {
    /// Replication finds rows by it.
    ByReplication,
    Nobody,
}

async fn work(task: Task, worker: Worker, batch: Vec<Waiting>, needs: Vec<Need>) -> Ended {
    let mut outcome = Ok(());
    if !build_together(&task, &worker.conn, &batch).await {
        for (one, need) in batch.iter().zip(needs) {
            outcome = work_on(&task, &worker.conn, one, need).await;
            if outcome.is_err() {
                break;
            }
        }
    }
    (worker, batch, outcome)
}

/// Builds several in one transaction. On failure, returns false and the caller builds each by itself, which
/// reports what is wrong.
async fn build_together(task: &Task, conn: &Conn, batch: &[Waiting]) -> bool {
    if batch.len() == 1 {
        return false;
    }
    let mut sql: String = batch.iter().map(|one| format!("{};\n", one.sql)).collect();
    let ords: Vec<i32> = batch.iter().map(|one| one.ord).collect();
    sql.push_str(&mark_all(task.job, &ords, Mark::Done));
    insist(conn, &sql).await.is_ok()
}

async fn work_on(task: &Task, conn: &Conn, one: &Waiting, need: Need) -> Result<(), Fault> {
    match one.kind {
        Kind::ForeignKey | Kind::ForeignKeyAtOnce => validate(task, conn, one).await,
        Kind::Index
        | Kind::Key
        | Kind::Check
        | Kind::DomainCheck
        | Kind::DomainNotNull
        | Kind::Other => build(task, conn, one, need).await,
    }
}

/// Tries of a statement that deadlocked with another session.
const DEADLOCK_TRIES: u32 = 5;

async fn build(task: &Task, conn: &Conn, one: &Waiting, need: Need) -> Result<(), Fault> {
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

/// Repeats a transaction that a deadlock ended.
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

async fn validate(task: &Task, conn: &Conn, one: &Waiting) -> Result<(), Fault> {
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

/// Before PostgreSQL 18, VALIDATE skips a constraint's parts for partitions of the referenced table;
/// dropped and added without NOT VALID it becomes whole.
async fn refers_to_partitions(conn: &Conn, table: &TableName, name: &str) -> Result<bool, Fault> {
    if conn.session.server_version() >= 180_000 {
        return Ok(false);
    }
    let sql = "SELECT EXISTS (SELECT FROM pg_constraint k
        JOIN pg_class c ON c.oid = k.confrelid AND c.relkind = 'p'
        WHERE k.conrelid = to_regclass($1) AND k.conname = $2 AND k.contype = 'f')";
    Ok(conn.row(sql, &[&table.quoted(), &name]).await?.get(0))
}
