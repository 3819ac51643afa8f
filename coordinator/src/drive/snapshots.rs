//! Stored snapshots: orders about them, their commands to the source's agent, and what is shown of them.
//!
//! [`crate::snapshot::machine`] decides; this carries it out. A snapshot's commands have its own id in the
//! place of a job's, and the template as their replication.

use jiff::Timestamp;
use steep_protocol::message::agent::{
    Command, CoordinatorMessage, Export, OpenSource, Outcome, SlotOrigin, SourceCommand,
    WorkProgress,
};
use steep_protocol::message::api::ApiReply;
use steep_protocol::message::facts::Finding;
use steep_protocol::message::handover::{PreparedState, SlotName};
use steep_protocol::message::job::{JobSpec, Method};
use steep_protocol::message::snapshot::{
    ApplySpec, Holder, LOCATION_MAX, SNAPSHOTS_MAX, SnapshotRef, SnapshotSpec, SnapshotState,
    SnapshotView, StoreSnapshot, VerifiedSnapshot,
};
use steep_protocol::{CommandId, Fault, FaultKind, JobId, NodeId, SnapshotId, limits};

use super::log::{Level, Note};
use super::query::Purpose;
use super::{Answer, Driver, Ticket};
use crate::job::handover::StoredRows;
use crate::snapshot::machine::{Budget, Effect, Event};
use crate::snapshot::{COMMANDS_PER_SNAPSHOT, Snapshot, Stage, Why, Work};
use crate::store::{Store, Write};

/// A snapshot in memory.
pub(super) struct Stored {
    snapshot: Snapshot,
    /// What its agent last reported.
    progress: Option<WorkProgress>,
    /// Operators waiting for its removal.
    waiting: Vec<Ticket>,
}

impl Stored {
    pub(super) fn of(snapshot: Snapshot) -> Self {
        Self {
            snapshot,
            progress: None,
            waiting: Vec::new(),
        }
    }
}

impl<S: Store> Driver<S> {
    /// Starts to check a source, of which a snapshot is made if nothing is in its way.
    pub(super) fn generate(
        &mut self,
        spec: SnapshotSpec,
        operator: &str,
        ticket: Ticket,
        now: Timestamp,
    ) -> Result<(), Fault> {
        self.check_generate(&spec)?;
        let node = spec.source.clone();
        let command = SourceCommand::Gather {
            target: node.clone(),
            filter: spec.filter.clone(),
            slot: SlotOrigin::Made,
        };
        let purpose = Purpose::LookBeforeGenerate(Box::new(spec), operator.to_owned(), ticket);
        self.begin_query(&node, command, purpose, now);
        Ok(())
    }

    fn check_generate(&self, spec: &SnapshotSpec) -> Result<(), Fault> {
        let bad = |text: String| Err(Fault::new(FaultKind::BadRequest, text));
        if !(1..=limits::WORKERS_MAX).contains(&spec.parallel) {
            return bad(format!("1 to {} workers are allowed", limits::WORKERS_MAX));
        }
        if spec.location.is_empty() || spec.location.len() > LOCATION_MAX {
            return bad(format!("a location has 1 to {LOCATION_MAX} bytes"));
        }
        if !(1..=steep_protocol::message::handover::EXPIRES_MAX).contains(&spec.expires_seconds) {
            return bad("a snapshot can be kept for 1 s to 366 days".to_owned());
        }
        self.check_query(&spec.source)?;
        let same = |stored: &&Stored| {
            let other = &stored.snapshot;
            other.spec.source == spec.source
                && other.spec.location == spec.location
                && !other.is_over()
        };
        if let Some(other) = self.snapshots.values().find(same) {
            let id = other.snapshot.id;
            let text = format!("snapshot {id} is stored in {} already", spec.location);
            return Err(Fault::new(FaultKind::Failed, text)
                .on(&spec.source)
                .hint(format!(
                    "use another place, or remove that one with steep-repl snapshot delete {id}"
                )));
        }
        if self.may_be_source(&spec.source) {
            return Ok(());
        }
        let state = self.state_of(&spec.source);
        let text = format!("it is {state} and cannot be a source");
        Err(Fault::new(FaultKind::Failed, text)
            .on(&spec.source)
            .hint("a source must be synchronized, or not a replica"))
    }

    /// Makes a snapshot of a source that has been checked.
    pub(super) fn generate_checked(
        &mut self,
        spec: SnapshotSpec,
        operator: &str,
        (findings, ticket): (Vec<Finding>, Ticket),
        now: Timestamp,
    ) {
        if let Err(fault) = self.check_generate(&spec) {
            return self.answer(ticket, Err(fault));
        }
        let id = SnapshotId(self.new_job_id().0);
        let first = self.take_commands(COMMANDS_PER_SNAPSHOT);
        let mut snapshot = Snapshot::new(id, spec, operator, first, now);
        let source = snapshot.spec.source.clone();
        let agent = self.registry.get(&source);
        snapshot.incarnation = agent.map(|agent| agent.registration.incarnation);
        let text = format!(
            "snapshot {id} of {source} into {}, by {operator}",
            snapshot.spec.location
        );
        self.snapshots.insert(id, Stored::of(snapshot));
        self.forget_old_snapshots();
        let note = Note::info("snapshot.started", text).field("operator", operator);
        self.note_snapshot(id, note, now);
        self.step_snapshot(id, Event::Begin, now);
        let view = self.snapshots.get(&id).map(|s| self.snapshot_view(s, now));
        let found = (!findings.is_empty()).then_some(ApiReply::Findings {
            target: source,
            findings,
        });
        let made = ApiReply::Snapshots(view.into_iter().collect());
        let replies = found.into_iter().chain([made]).collect();
        self.answer(ticket, Ok(Answer::Replies(replies)));
    }

    /// Drops the oldest of too many snapshots of which nothing is left.
    fn forget_old_snapshots(&mut self) {
        while self.snapshots.len() > SNAPSHOTS_MAX {
            let over = self.snapshots.values().map(|stored| &stored.snapshot);
            let oldest = over.filter(|s| s.is_over()).min_by_key(|s| s.asked_at);
            let Some(id) = oldest.map(|snapshot| snapshot.id) else {
                return;
            };
            self.forget_snapshot(id);
        }
    }

    fn forget_snapshot(&mut self, id: SnapshotId) {
        self.snapshots.remove(&id);
        self.out.writes.push(Write::SnapshotForgotten(id));
    }

    /// The jobs of an application: each with the snapshot's source and tables.
    pub(super) fn resolve_stored(
        &self,
        request: ApplySpec,
    ) -> Result<(Vec<JobSpec>, StoredRows), Fault> {
        let is = |snapshot: &Snapshot| match &request.snapshot {
            SnapshotRef::Id(id) => snapshot.id == *id,
            SnapshotRef::At(location) => snapshot.spec.location == *location && !snapshot.is_over(),
        };
        let mut known = self.snapshots.values().map(|stored| &stored.snapshot);
        let snapshot =
            known
                .find(|snapshot| is(snapshot))
                .ok_or_else(|| match &request.snapshot {
                    SnapshotRef::Id(id) => unknown(*id),
                    SnapshotRef::At(location) => {
                        let text = format!("no snapshot is known in {location}");
                        Fault::new(FaultKind::Failed, text)
                            .hint("steep-repl snapshot list shows all of them, and where they are")
                    }
                })?;
        let spec = &snapshot.spec;
        let (SnapshotState::Sealed, Some(point)) = (snapshot.state(), snapshot.point) else {
            let why = snapshot
                .fault
                .as_ref()
                .map_or_else(String::new, |f| format!(": {f}"));
            let text = format!(
                "snapshot {} is {}{why}",
                snapshot.id,
                snapshot.state().name()
            );
            let hint = match snapshot.state() {
                SnapshotState::Opening | SnapshotState::Live => {
                    format!(
                        "wait until it is complete: steep-repl snapshot show {}",
                        snapshot.id
                    )
                }
                _ => "generate another one: without its slot, changes since it was taken are lost"
                    .to_owned(),
            };
            return Err(Fault::new(FaultKind::Failed, text)
                .on(&spec.source)
                .hint(hint));
        };
        let stored = StoredRows {
            snapshot: snapshot.id,
            location: spec.location.clone(),
            lsn: point.lsn,
            verify: request.verify,
        };
        let job = |job: JobSpec| JobSpec {
            source: spec.source.clone(),
            filter: spec.filter.clone(),
            method: Method::Stored,
            ..job
        };
        let jobs: Vec<JobSpec> = request.jobs.into_iter().map(job).collect();
        self.check_shape(&jobs)?;
        Ok((jobs, stored))
    }

    /// The event of a job that has made its node from a stored snapshot.
    pub(super) fn applied_note(&self, id: JobId, seconds: f64) -> Option<Note> {
        let job = &self.jobs.get(&id)?.job;
        let stored = job.stored.as_ref()?;
        let (target, snapshot) = (&job.spec.target, stored.snapshot);
        let text = format!("snapshot {snapshot} is applied to {target} in {seconds:.1} s");
        let note = Note::info("snapshot.applied", text).job(job);
        let note = note.field("snapshot_id", snapshot);
        Some(note.field("duration_ms", (seconds * 1e3).round()))
    }

    /// A job that still needs that snapshot, if any.
    fn applied_by(&self, id: SnapshotId) -> Option<&crate::job::Job> {
        let mut jobs = self.jobs.values().map(|live| &live.job);
        jobs.find(|job| {
            let uses = job
                .stored
                .as_ref()
                .is_some_and(|stored| stored.snapshot == id);
            uses && match &job.stage {
                crate::job::Stage::Working(step) => *step <= crate::job::Step::Copy,
                crate::job::Stage::Kept(kept) => kept.step <= crate::job::Step::Copy,
                crate::job::Stage::Ending(_) | crate::job::Stage::Closed(_) => false,
            }
        })
    }

    pub(super) fn snapshot_source(&self, id: SnapshotId) -> Option<NodeId> {
        let stored = self.snapshots.get(&id);
        stored.map(|stored| stored.snapshot.spec.source.clone())
    }

    /// Starts to remove a snapshot. The ticket is answered when nothing of it is left.
    pub(super) fn delete_snapshot(
        &mut self,
        id: SnapshotId,
        ticket: Ticket,
        now: Timestamp,
    ) -> Result<NodeId, Fault> {
        let stored = self.snapshots.get(&id).ok_or_else(|| unknown(id))?;
        let source = stored.snapshot.spec.source.clone();
        let over = stored.snapshot.is_over();
        if let Some(job) = self.applied_by(id) {
            let target = &job.spec.target;
            let text = format!("snapshot {id} is being applied to {target}");
            return Err(Fault::new(FaultKind::Failed, text).on(target).hint(format!(
                "wait for that job, or cancel it: steep-repl init cancel --node {target}"
            )));
        }
        let Some(stored) = self.snapshots.get_mut(&id) else {
            return Err(unknown(id));
        };
        stored.waiting.push(ticket);
        if !over && !self.registry.is_online(&source) {
            if let Some(stored) = self.snapshots.get_mut(&id) {
                stored.waiting.pop();
            }
            let text = format!("snapshot {id} cannot be removed now: the agent has no session");
            return Err(Fault::new(FaultKind::Unreachable, text)
                .on(&source)
                .hint("start its agent, then delete the snapshot again"));
        }
        self.step_snapshot(id, Event::Delete, now);
        Ok(source)
    }

    /// Starts to read a stored snapshot again.
    pub(super) fn verify_snapshot(
        &mut self,
        id: SnapshotId,
        ticket: Ticket,
        now: Timestamp,
    ) -> Result<(), Fault> {
        let stored = self.snapshots.get(&id).ok_or_else(|| unknown(id))?;
        let (source, location) = {
            let spec = &stored.snapshot.spec;
            (spec.source.clone(), spec.location.clone())
        };
        if stored.snapshot.sealed.is_none() || stored.snapshot.stage != Stage::Sealed {
            let text = format!(
                "snapshot {id} is {}: there is nothing to verify",
                stored.snapshot.state().name()
            );
            return Err(Fault::new(FaultKind::Failed, text).on(&source));
        }
        self.check_query(&source)?;
        let command = SourceCommand::VerifyStored { location };
        self.begin_query(&source, command, Purpose::VerifySnapshot(id, ticket), now);
        Ok(())
    }

    /// The answer of a verification: a place that holds another snapshot is a problem of this one.
    pub(super) fn snapshot_verified(
        &self,
        id: SnapshotId,
        mut verified: VerifiedSnapshot,
    ) -> Result<Answer, Fault> {
        if verified.snapshot != id {
            let text = format!("the place holds snapshot {} instead", verified.snapshot);
            verified.problems.insert(0, text);
            verified.problems_total += 1;
        }
        Ok(ApiReply::Verified(Box::new(verified)).into())
    }

    /// The snapshots that match, oldest first.
    pub(super) fn snapshots_reply(
        &self,
        snapshot: Option<SnapshotId>,
        source: Option<&NodeId>,
        now: Timestamp,
    ) -> Result<ApiReply, Fault> {
        if let Some(source) = source {
            self.known(source)?;
        }
        if let Some(id) = snapshot {
            let stored = self.snapshots.get(&id).ok_or_else(|| unknown(id))?;
            return Ok(ApiReply::Snapshots(vec![self.snapshot_view(stored, now)]));
        }
        let matching = |stored: &&Stored| source.is_none_or(|s| stored.snapshot.spec.source == *s);
        let matching = self.snapshots.values().filter(matching);
        let mut views: Vec<_> = matching.map(|s| self.snapshot_view(s, now)).collect();
        views.sort_by_key(|view| (view.created_at, view.snapshot_id));
        Ok(ApiReply::Snapshots(views))
    }

    fn snapshot_view(&self, stored: &Stored, now: Timestamp) -> SnapshotView {
        let Stored {
            snapshot, progress, ..
        } = stored;
        let spec = &snapshot.spec;
        let state = snapshot.state();
        let slot_name = snapshot.replication().slot;
        let agent = self.registry.get(&spec.source);
        let slot = agent.and_then(|agent| {
            let mut known = agent.templates.iter();
            known.find(|slot| slot.replication.slot == slot_name)
        });
        let holder = match state {
            SnapshotState::Live => Some("live"),
            SnapshotState::Sealed => Some(spec.location.as_str()),
            SnapshotState::Opening | SnapshotState::Lost | SnapshotState::Expired => None,
        };
        let holder = holder.map(|location| Holder {
            node_id: spec.source.clone(),
            location: location.to_owned(),
        });
        let progress = progress.as_ref().filter(|_| state == SnapshotState::Live);
        let sealed = snapshot.sealed;
        let point = snapshot.point;
        let planned = |of: fn(&crate::snapshot::Point) -> u32| point.map_or(0, |p| of(&p).into());
        let so_far = progress.map_or(0, |work| work.done);
        let mut warnings = Vec::new();
        if snapshot.trouble.is_some() && !self.registry.is_online(&spec.source) {
            warnings.push(format!("the agent of {} has no session", spec.source));
        }
        SnapshotView {
            snapshot_id: snapshot.id,
            source_node: spec.source.clone(),
            lsn: point.map(|point| point.lsn),
            state,
            created_at: snapshot.asked_at,
            expires_at: sealed.map(|sealed| sealed.expires_at),
            slot_name,
            wal_held_bytes: slot.map(|slot| slot.wal_held.0),
            tables: sealed.map_or(planned(|p| p.tables), |sealed| sealed.tables),
            parts: sealed.map_or(planned(|p| p.parts), |sealed| sealed.parts),
            rows: sealed.map_or(0, |sealed| sealed.rows),
            bytes: sealed.map_or(so_far, |sealed| sealed.bytes),
            stored_bytes: sealed.map_or(0, |sealed| sealed.stored_bytes),
            holders: holder.into_iter().collect(),
            location: spec.location.clone(),
            codec: spec.codec,
            bytes_total: progress.map_or(0, |work| work.total),
            current_table: progress.and_then(|work| work.current.clone()),
            parallel_workers: progress.map_or(0, |work| work.workers),
            operator: snapshot.operator.clone(),
            error_message: snapshot.fault.as_ref().map(ToString::to_string),
            hint: snapshot.fault.as_ref().map(|fault| fault.hint.clone()),
            warnings,
            duration_seconds: snapshot.seconds(now),
        }
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
            Effect::Abort(id) => CoordinatorMessage::Abort { id },
            Effect::Forget(id) => CoordinatorMessage::Forget { id },
            told => return self.tell_snapshot(id, told, now),
        };
        self.send(&source, message);
    }

    fn tell_snapshot(&mut self, id: SnapshotId, effect: Effect, now: Timestamp) {
        let Some(stored) = self.snapshots.get(&id) else {
            return;
        };
        let snapshot = &stored.snapshot;
        let (source, location) = (&snapshot.spec.source, &snapshot.spec.location);
        let because = |note: Note, fault: &Fault| note.field("hint", &fault.hint);
        let note = match effect {
            Effect::Send(_) | Effect::Abort(_) | Effect::Forget(_) => return,
            Effect::Opened => {
                let lsn = snapshot.point.map(|point| point.lsn).unwrap_or_default();
                let text = format!("snapshot {id} is at {lsn}; its rows are being read");
                Note::info("snapshot.opened", text).field("lsn", lsn)
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
                note.field("location", location)
            }
            Effect::TriesAgain(fault) => {
                let text = format!("snapshot {id} is tried again: {fault}");
                because(Note::warn("snapshot.retried", text), &fault)
            }
            Effect::BeginsAgain(fault) => {
                let text = format!("snapshot {id} is begun again: {fault}");
                Note::warn("snapshot.lost", text)
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

    fn snapshot_over(&mut self, id: SnapshotId, why: Why, now: Timestamp) {
        let Some(stored) = self.snapshots.get_mut(&id) else {
            return;
        };
        let waiting = std::mem::take(&mut stored.waiting);
        let text = match why {
            Why::Deleted => format!("snapshot {id} is deleted: its files, slot and publication"),
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
    pub(super) fn snapshots_up(&mut self, node: &NodeId, now: Timestamp) {
        let Some(agent) = self.registry.get(node) else {
            return;
        };
        let incarnation = agent.registration.incarnation;
        let open = agent.registration.open_snapshots.clone();
        for id in self.snapshots_of(node) {
            let held = open.contains(&JobId(id.0));
            self.step_snapshot(id, Event::Up { incarnation, held }, now);
        }
    }

    fn snapshots_of(&self, node: &NodeId) -> Vec<SnapshotId> {
        let of = |stored: &&Stored| stored.snapshot.spec.source == *node;
        let of = self.snapshots.values().filter(of);
        of.map(|stored| stored.snapshot.id).collect()
    }

    /// Whether messages with that id in the place of a job's are about a snapshot.
    pub(super) fn is_snapshot(&self, job: JobId) -> bool {
        self.snapshots.contains_key(&SnapshotId(job.0))
    }

    /// The source's agent has looked at its server.
    pub(super) fn check_snapshots(&mut self, node: &NodeId, lost: &[JobId], now: Timestamp) {
        for id in lost {
            let id = SnapshotId(id.0);
            let own = |stored: &Stored| stored.snapshot.spec.source == *node;
            if self.snapshots.get(&id).is_some_and(own) {
                self.step_snapshot(id, Event::Lost, now);
            }
        }
    }

    /// The agent has said which template slots its server has.
    pub(super) fn check_templates(&mut self, node: &NodeId, now: Timestamp) {
        for id in self.snapshots_of(node) {
            let (Some(stored), Some(agent)) = (self.snapshots.get(&id), self.registry.get(node))
            else {
                continue;
            };
            if stored.snapshot.stage != Stage::Sealed {
                continue;
            }
            let slot = stored.snapshot.replication().slot;
            let known = agent.templates.iter();
            let known = known.into_iter().find(|t| t.replication.slot == slot);
            let why = match known.map(|slot| &slot.state) {
                None => "its note is gone".to_owned(),
                Some(PreparedState::Lost(why)) => why.clone(),
                Some(PreparedState::Waiting | PreparedState::Taken(_) | PreparedState::Expired) => {
                    continue;
                }
            };
            self.step_snapshot(id, Event::SlotGone { why }, now);
        }
    }

    /// Whether the expired slot was a snapshot's template.
    pub(super) fn template_expired(
        &mut self,
        node: &NodeId,
        slot: &SlotName,
        now: Timestamp,
    ) -> bool {
        let own = |id: &SnapshotId| {
            let stored = self.snapshots.get(id);
            stored.is_some_and(|s| s.snapshot.replication().slot == *slot)
        };
        let Some(id) = self.snapshots_of(node).into_iter().find(own) else {
            return slot.is_reserved();
        };
        self.step_snapshot(id, Event::Expired, now);
        true
    }

    /// Progress of a snapshot that is being read.
    pub(super) fn on_snapshot_progress(
        &mut self,
        node: &NodeId,
        job: JobId,
        work: Option<WorkProgress>,
    ) {
        if let Some(stored) = self.snapshots.get_mut(&SnapshotId(job.0))
            && stored.snapshot.spec.source == *node
            && stored.snapshot.stage == Stage::Storing
        {
            stored.progress = work;
            self.out.observed = true;
        }
    }

    /// The snapshot whose command that is, on that node.
    pub(super) fn snapshot_running(&self, node: &NodeId, command: CommandId) -> Option<SnapshotId> {
        let runs = |stored: &&Stored| {
            stored.snapshot.spec.source == *node
                && stored.snapshot.running.is_some_and(|r| r.id == command)
        };
        let found = self.snapshots.values().find(runs);
        found.map(|stored| stored.snapshot.id)
    }

    pub(super) fn snapshot_finished(
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

    pub(super) fn tick_snapshots(&mut self, now: Timestamp) {
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
    }
}

/// The command for that work.
fn compose(snapshot: &Snapshot, work: Work) -> Command {
    let spec = &snapshot.spec;
    let location = || spec.location.clone();
    Command::Source(match work {
        Work::Open => SourceCommand::Open(OpenSource {
            // No other node may fetch.
            target: spec.source.clone(),
            filter: spec.filter.clone(),
            export: Export::SlotAndSnapshot,
            parallel: spec.parallel,
            large_table_threshold: spec.large_table_threshold,
            yield_to_ddl: spec.yield_to_ddl,
            kept_seconds: Some(spec.expires_seconds),
        }),
        Work::Store => SourceCommand::Store(StoreSnapshot {
            location: location(),
            codec: spec.codec,
            parallel: spec.parallel,
            max_rate: spec.max_rate,
            expires_seconds: spec.expires_seconds,
        }),
        Work::Remove => SourceCommand::DeleteStored {
            location: location(),
        },
    })
}

fn unknown(id: SnapshotId) -> Fault {
    let text = format!("there is no snapshot {id}");
    Fault::new(FaultKind::Failed, text).hint("steep-repl snapshot list shows all of them")
}
