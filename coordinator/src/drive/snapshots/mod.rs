//! Snapshots with a life of their own: their commands to the source's agent, and what it says of them.
//!
//! [`crate::snapshot::machine`] decides; this carries it out. A snapshot's commands have its own id in the
//! place of a job's, and the template as their replication. [`orders`] are the operators' orders about
//! stored ones, [`recorded`] are those that only their sources know, [`shared`] are those of several targets, [`templates`] their slots, [`views`] what is
//! shown.

mod gauges;
pub(super) mod orders;
mod recorded;
mod retention;
mod shared;
mod templates;
mod views;

use jiff::Timestamp;
use steep_protocol::message::agent::{
    Command, CoordinatorMessage, Export, OpenSource, Outcome, RowsAs, SourceCommand, WorkProgress,
};
use steep_protocol::message::snapshot::StoreSnapshot;
use steep_protocol::{CommandId, Epoch, Fault, FaultKind, JobId, NodeId, SnapshotId};

use super::log::{Level, Note};
use super::{Driver, Ticket};
use crate::snapshot::machine::{Budget, Effect, Event};
use crate::snapshot::{Owner, Snapshot, Stage, Why, Work};
use crate::store::{FORGOTTEN_KEPT, Store, Write};

/// After so many failures, some seconds, an operator who waits for a removal hears of them: what was just
/// cancelled may hold the store for a moment.
const REMOVAL_TRIES: u32 = 4;

/// A snapshot in memory.
pub(super) struct Stored {
    pub(super) snapshot: Snapshot,
    /// What its agent last reported.
    progress: Option<WorkProgress>,
    /// The highest percentage that its agent has reported while it was stored.
    spooled: f64,
    /// Operators waiting for its removal.
    waiting: Vec<Ticket>,
    /// Whether the log has it that its slot holds much WAL.
    wal_told: bool,
    /// Whether its time is over, and its files wait for a job that loads them.
    overdue: bool,
    /// The snapshot that those who shared it start over with.
    successor: Option<SnapshotId>,
}

impl Stored {
    pub(super) fn of(snapshot: Snapshot) -> Self {
        Self {
            snapshot,
            progress: None,
            spooled: 0.0,
            waiting: Vec::new(),
            wal_told: false,
            overdue: false,
            successor: None,
        }
    }
}

impl<S: Store> Driver<S> {
    fn forget_snapshot(&mut self, id: SnapshotId) {
        self.snapshots.remove(&id);
        self.out.writes.push(Write::SnapshotForgotten(id));
        if self.forgotten.len() >= FORGOTTEN_KEPT {
            self.forgotten.pop_front();
        }
        self.forgotten.push_back(id);
    }

    /// The event of a job that has made its node from a stored snapshot.
    pub(in crate::drive) fn applied_note(&self, id: JobId, seconds: f64) -> Option<Note> {
        let job = &self.jobs.get(&id)?.job;
        let (target, snapshot) = (&job.spec.target, job.stored.as_ref()?.snapshot);
        let mut text = format!("snapshot {snapshot} is applied to {target} in {seconds:.1} s");
        if !job.follows() {
            text.push_str(", without replication");
        }
        let replication = if job.follows() {
            "subscription"
        } else {
            "none"
        };
        let note = Note::info("snapshot.applied", text).job(job);
        let note = note.field("snapshot_id", snapshot);
        let note = note.field("replication", replication);
        Some(note.field("duration_ms", (seconds * 1e3).round()))
    }

    fn step_snapshot(&mut self, id: SnapshotId, event: Event, now: Timestamp) {
        let budget = Budget(self.rules.patience.retry_for);
        let Some(stored) = self.snapshots.get_mut(&id) else {
            return;
        };
        let before = stored.snapshot.clone();
        let effects = stored.snapshot.step(event, budget, now);
        if stored.snapshot.stage != before.stage {
            stored.progress = None;
            stored.spooled = 0.0;
        }
        if stored.snapshot != before {
            let write = Write::Snapshot(Box::new(stored.snapshot.clone()));
            self.out.writes.push(write);
        }
        for effect in effects {
            self.perform_snapshot(id, effect, now);
        }
        // Followers look again.
        self.out.observed = true;
    }

    fn perform_snapshot(&mut self, id: SnapshotId, effect: Effect, now: Timestamp) {
        let Some(stored) = self.snapshots.get(&id) else {
            return;
        };
        let snapshot = &stored.snapshot;
        let source = snapshot.spec.source.clone();
        let message = match effect {
            Effect::Send(running) => CoordinatorMessage::Command {
                id: running.id,
                job: JobId(id.0),
                replication: snapshot.replication(),
                command: compose(snapshot, running.work),
            },
            Effect::Abort(command) => CoordinatorMessage::Abort {
                id: command,
                job: JobId(id.0),
            },
            Effect::Forget(id) => CoordinatorMessage::Forget { id },
            told => return self.tell_snapshot(id, told, now),
        };
        self.send(&source, message);
    }

    fn tell_snapshot(&mut self, id: SnapshotId, effect: Effect, now: Timestamp) {
        if let Effect::TriesAgain(fault) = &effect {
            self.removal_failed(id, fault);
        }
        let Some(stored) = self.snapshots.get(&id) else {
            return;
        };
        let snapshot = &stored.snapshot;
        let source = &snapshot.spec.source;
        let location = snapshot.location().unwrap_or_default();
        let shared = snapshot.owner == Owner::Jobs;
        let because = |note: Note, fault: &Fault| note.field("hint", &fault.hint);
        let note = match effect {
            Effect::Send(_) | Effect::Abort(_) | Effect::Forget(_) => return,
            Effect::Opened => {
                let lsn = snapshot.point.map(|point| point.lsn).unwrap_or_default();
                let text = format!("snapshot {id} is at {lsn}; its rows are being read");
                let note = Note::info("snapshot.opened", text).field("lsn", lsn);
                self.note_snapshot(id, note, now);
                return self.go_on_with(id);
            }
            Effect::Sealed(sealed) => {
                let seconds = snapshot.seconds(now);
                let text = format!(
                    "snapshot {id} is complete in {location}: {} rows in {seconds:.1} s",
                    sealed.rows
                );
                let note = Note::info("snapshot.generated", text)
                    .field("rows_copied", sealed.rows)
                    .field("bytes_copied", sealed.bytes)
                    .field("duration_ms", (seconds * 1e3).round());
                let note = note.field("location", location);
                self.note_snapshot(id, note, now);
                self.now_sealed(id, now);
                return self.go_on_with(id);
            }
            Effect::NotStored(fault) => {
                let text = format!(
                    "snapshot {id} is not spooled, so {source} holds it open until its targets have their rows: \
                     {fault}"
                );
                because(Note::warn("snapshot.not_spooled", text), &fault)
            }
            Effect::TriesAgain(fault) => {
                let text = format!("snapshot {id} is tried again: {fault}");
                let note = because(Note::warn("snapshot.retried", text), &fault);
                self.note_snapshot(id, note, now);
                return self.shared_failed(id, &fault, now);
            }
            Effect::BeginsAgain(fault) => {
                let text = format!("snapshot {id} is begun again: {fault}");
                Note::warn("snapshot.lost", text)
            }
            // The jobs say what becomes of them.
            Effect::Lost(fault) if shared => {
                let text = format!("snapshot {id}: {fault}");
                let note = because(Note::warn("snapshot.lost", text), &fault);
                self.note_snapshot(id, note, now);
                return self.shared_failed(id, &fault, now);
            }
            Effect::Lost(fault) => {
                let text = format!("snapshot {id}: {fault}");
                because(Note::new(Level::Error, "snapshot.lost", text), &fault)
            }
            Effect::Expired => {
                let text = format!("snapshot {id} of {source} has expired and is removed");
                Note::info("snapshot.expired", text)
            }
            Effect::Over(why) => return self.snapshot_over(id, why, now),
        };
        self.note_snapshot(id, note, now);
    }

    /// Operators who wait for a removal hear that it failed; it is tried again without them.
    fn removal_failed(&mut self, id: SnapshotId, fault: &Fault) {
        let Some(stored) = self.snapshots.get_mut(&id) else {
            return;
        };
        let tries = stored.snapshot.trouble.map_or(0, |trouble| trouble.tries);
        if !matches!(stored.snapshot.stage, Stage::Removing(_)) || tries < REMOVAL_TRIES {
            return;
        }
        let waiting = std::mem::take(&mut stored.waiting);
        let hint = format!(
            "its removal is tried again every 30 s until it succeeds; to forget it although files may be \
             left: steep-repl snapshot delete {id} --force"
        );
        let fault = fault.clone().hint(hint);
        self.replied(waiting, &Err(fault));
    }

    fn snapshot_over(&mut self, id: SnapshotId, why: Why, now: Timestamp) {
        let Some(stored) = self.snapshots.get_mut(&id) else {
            return;
        };
        let waiting = std::mem::take(&mut stored.waiting);
        let text = match why {
            Why::Deleted => format!("snapshot {id} is deleted: its files, slot and publication"),
            Why::Unneeded => format!("snapshot {id} is closed: every target has its rows"),
            Why::Failed | Why::Again | Why::Expired => {
                format!("everything of snapshot {id} is removed")
            }
        };
        self.note_snapshot(id, Note::info("snapshot.deleted", text), now);
        if why == Why::Deleted || !waiting.is_empty() {
            self.forget_snapshot(id);
        }
        self.replied(waiting, &Ok(Vec::new()));
    }

    fn note_snapshot(&mut self, id: SnapshotId, note: Note, now: Timestamp) {
        let source = self
            .snapshots
            .get(&id)
            .map(|s| s.snapshot.spec.source.clone());
        let note = match &source {
            Some(source) => note.node(source).of(Some(source), None),
            None => note,
        };
        self.log(note.field("snapshot_id", id), now);
    }

    /// The source's agent has a session.
    pub(in crate::drive) fn snapshots_up(&mut self, node: &NodeId, now: Timestamp) {
        let Some(agent) = self.registry.get(node) else {
            return;
        };
        let incarnation = agent.registration.incarnation;
        let open = agent.registration.open_snapshots.clone();
        for id in self.snapshots_of(node) {
            let held = open.iter().any(|held| held.job == JobId(id.0));
            self.step_snapshot(id, Event::Up { incarnation, held }, now);
        }
    }

    /// The source's PostgreSQL answers again: what failed is tried again at once.
    pub(in crate::drive) fn snapshots_hurry(&mut self, node: &NodeId, now: Timestamp) {
        for id in self.snapshots_of(node) {
            self.step_snapshot(id, Event::ServerBack, now);
        }
    }

    fn snapshots_of(&self, node: &NodeId) -> Vec<SnapshotId> {
        let of = |stored: &&Stored| stored.snapshot.spec.source == *node;
        let of = self.snapshots.values().filter(of);
        of.map(|stored| stored.snapshot.id).collect()
    }

    /// Whether messages with that id in the place of a job's are about a snapshot.
    pub(in crate::drive) fn is_snapshot(&self, job: JobId) -> bool {
        self.snapshots.contains_key(&SnapshotId(job.0))
    }

    /// The source's agent has looked at its server.
    pub(in crate::drive) fn check_snapshots(
        &mut self,
        node: &NodeId,
        lost: &[JobId],
        now: Timestamp,
    ) {
        for id in lost {
            let id = SnapshotId(id.0);
            let own = |stored: &Stored| stored.snapshot.spec.source == *node;
            if self.snapshots.get(&id).is_some_and(own) {
                self.step_snapshot(id, Event::Lost, now);
            }
        }
    }

    /// Progress of a snapshot that is being read.
    pub(in crate::drive) fn on_snapshot_progress(
        &mut self,
        node: &NodeId,
        job: JobId,
        work: Option<WorkProgress>,
    ) {
        if let Some(stored) = self.snapshots.get(&SnapshotId(job.0))
            && stored.snapshot.spec.source == *node
            && stored.snapshot.stage == Stage::Storing
        {
            if let Some(stored) = self.snapshots.get_mut(&SnapshotId(job.0)) {
                if let Some(work) = work.as_ref().filter(|work| work.total > 0) {
                    let percent = 100.0 * work.done as f64 / work.total as f64;
                    stored.spooled = stored.spooled.max(percent);
                }
                stored.progress = work;
            }
            self.out.observed = true;
        }
    }

    /// The snapshot whose command that is, on that node.
    pub(in crate::drive) fn snapshot_running(
        &self,
        node: &NodeId,
        command: CommandId,
    ) -> Option<SnapshotId> {
        let runs = |stored: &&Stored| {
            stored.snapshot.spec.source == *node
                && stored.snapshot.running.is_some_and(|r| r.id == command)
        };
        let found = self.snapshots.values().find(runs);
        found.map(|stored| stored.snapshot.id)
    }

    pub(in crate::drive) fn snapshot_finished(
        &mut self,
        id: SnapshotId,
        command: CommandId,
        outcome: Result<Outcome, Fault>,
        now: Timestamp,
    ) {
        let event = Event::Ended {
            id: command,
            outcome: Box::new(outcome),
        };
        self.step_snapshot(id, event, now);
    }

    pub(in crate::drive) fn tick_snapshots(&mut self, now: Timestamp) {
        let due = |stored: &&Stored| {
            let snapshot = &stored.snapshot;
            snapshot.trouble.is_some_and(|t| t.again <= now)
                && snapshot.running.is_none()
                && self.registry.is_online(&snapshot.spec.source)
        };
        let due = self.snapshots.values().filter(due);
        let due: Vec<SnapshotId> = due.map(|stored| stored.snapshot.id).collect();
        for id in due {
            self.step_snapshot(id, Event::Tick, now);
        }
        self.tick_shared(now);
        self.tick_retention(now);
        let overdue = self.snapshots.values().filter(|stored| stored.overdue);
        let overdue: Vec<SnapshotId> = overdue.map(|stored| stored.snapshot.id).collect();
        for id in overdue {
            self.expire(id, now);
        }
    }
}

/// The command for that work.
fn compose(snapshot: &Snapshot, work: Work) -> Command {
    let spec = &snapshot.spec;
    Command::Source(match (work, &spec.store) {
        (Work::Store, Some(store)) => SourceCommand::Store(StoreSnapshot {
            store: store.clone(),
            parallel: spec.parallel,
            expires_seconds: spec.expires_seconds,
            order: (snapshot.owner == Owner::Operator).then(|| Box::new(snapshot.order())),
        }),
        // Without a store, nothing is stored.
        (Work::Open | Work::Store, store) => SourceCommand::Open(OpenSource {
            // No other node may fetch.
            target: spec.source.clone(),
            filter: spec.filter.clone(),
            epoch: Epoch(0),
            restarts: 0,
            unfinished: Vec::new(),
            earlier: Vec::new(),
            export: Export::SlotAndSnapshot,
            parallel: spec.parallel,
            large_table_threshold: spec.large_table_threshold,
            yield_to_ddl: spec.yield_to_ddl,
            rows_as: match store {
                Some(_) => RowsAs::Text,
                None => RowsAs::TypesAllow,
            },
            kept_seconds: Some(spec.expires_seconds),
            only_at: None,
            followed: None,
        }),
        (Work::Remove, store) => SourceCommand::DeleteSnapshot {
            location: store.as_ref().map(|store| store.location.clone()),
        },
    })
}

fn unknown(id: SnapshotId) -> Fault {
    let text = format!("there is no snapshot {id}");
    Fault::new(FaultKind::Failed, text).hint("steep-repl snapshot list shows all of them")
}
