//! Snapshots that live for the targets that are made from them: shared by several, so that the source reads
//! each part once, whoever asks first; or read into a spool while they are copied, where a table is large or
//! that is ordered (`two-phase`).
//!
//! The first target whose preflight has passed opens it, the others join. When the last of them has its
//! rows, it is removed, so that the source's vacuum can go on (G5). If the source loses one that is held
//! open, each target that has complete tables copies the rest under a snapshot of its own, and the others start over
//! with its successor.

use std::time::Duration;

use jiff::Timestamp;
use steep_protocol::message::agent::SharedParts;
use steep_protocol::message::api::{WaitingView, WaitsFor};
use steep_protocol::message::job::Method;
use steep_protocol::message::snapshot::StoredPlace;
use steep_protocol::{ByteCount, CommandId, Fault, JobId, SnapshotId};

use super::super::Driver;
use super::super::log::Note;
use super::Stored;
use crate::job::machine::JobEvent;
use crate::job::retry::seconds;
use crate::job::time::after;
use crate::job::{COMMANDS_PER_JOB, Job, Spooling, Stage as JobStage, Step, Work};
use crate::snapshot::machine::Event;
use crate::snapshot::{Owner, Snapshot, Stage};
use crate::store::{Store, Write};

/// How long a snapshot is kept open for targets whose preflight takes longer than the others' copies.
const JOIN_GRACE: Duration = Duration::from_secs(60);

/// The percentage of a spool that is complete only by its estimate.
const ALMOST: f64 = 99.9;

impl<S: Store> Driver<S> {
    /// Whether the snapshot that the job shares is open; opens it if nobody has. The job is told when it is
    /// ([`Self::go_on_with`]). It starts over if that is another one than it was asked to open, since the slot that it may
    /// have been given then is named after that.
    pub(in crate::drive) fn join_shared(
        &mut self,
        job: JobId,
        shared: SnapshotId,
        now: Timestamp,
    ) -> bool {
        let id = self.latest(shared);
        let asked_of = self
            .jobs
            .get(&job)
            .and_then(|live| live.job.attempt.asked_of);
        if asked_of.is_some_and(|before| before != id) {
            self.advance(job, JobEvent::SnapshotReplaced, now);
            return false;
        }
        if let Some(live) = self.jobs.get_mut(&job)
            && live.job.shared != Some(id)
        {
            live.job.shared = Some(id);
            let replication = live.job.replication();
            self.out.writes.push(Write::Job(Box::new(live.job.clone())));
            if let Some(record) = self.nodes.get_mut(&live.job.spec.target) {
                record.replicates_by(&replication);
                self.out.writes.push(Write::Node(Box::new(record.clone())));
            }
        }
        if !self.snapshots.contains_key(&id)
            && let Some(live) = self.jobs.get(&job)
        {
            let job = live.job.clone();
            self.open_shared(id, &job, now);
        }
        if self.spool(id).is_some() {
            self.advance(job, JobEvent::Sealed, now);
        }
        let ready = self.is_ready(id);
        if ready {
            self.ask_of(job, id);
        }
        ready
    }

    /// The job is about to be asked to open that snapshot.
    fn ask_of(&mut self, job: JobId, id: SnapshotId) {
        if let Some(live) = self.jobs.get_mut(&job)
            && live.job.attempt.asked_of.replace(id).is_none()
        {
            self.out.writes.push(Write::Job(Box::new(live.job.clone())));
        }
    }

    /// Whether that snapshot can be copied from now.
    fn is_ready(&self, id: SnapshotId) -> bool {
        let stored = self.snapshots.get(&id);
        stored.is_some_and(|stored| stored.snapshot.is_ready())
    }

    /// The snapshot itself, or the one that replaces it because it was lost.
    fn latest(&mut self, mut id: SnapshotId) -> SnapshotId {
        loop {
            let next = SnapshotId(self.new_job_id().0);
            match self.snapshots.get_mut(&id) {
                Some(stored) if !stored.snapshot.is_joinable() => {
                    id = *stored.successor.get_or_insert(next);
                }
                Some(_) | None => return id,
            }
        }
    }

    /// The snapshot that the job copies from, unless it is its own: one that is spooled has a life of its own, too.
    pub(in crate::drive) fn shared_of(&self, job: JobId) -> Option<SnapshotId> {
        let job = &self.jobs.get(&job)?.job;
        let spools = job.spools().then(|| SnapshotId(self.new_job_id().0));
        job.shared.or(spools)
    }

    fn open_shared(&mut self, id: SnapshotId, job: &Job, now: Timestamp) {
        let first = self.take_commands(COMMANDS_PER_JOB);
        let (spec, operator) = (job.spec.clone(), job.operator.as_str());
        let source = spec.source.clone();
        let agent = self.registry.get(&source).map(|agent| &agent.registration);
        let spool = agent.and_then(|agent| agent.spool.as_ref());
        let spool = spool.filter(|_| job.spools());
        let location = spool.map(|directory| format!("{directory}/{id}"));
        let incarnation = agent.map(|agent| agent.incarnation);
        let mut snapshot = Snapshot::shared(id, (spec, location), operator, first, now);
        snapshot.incarnation = incarnation;
        let text = match &snapshot.spec.store {
            Some(_) => format!("snapshot {id} of {source}, which is read into a spool beside it"),
            None => format!("snapshot {id} of {source}, which several targets share"),
        };
        self.snapshots.insert(id, Stored::of(snapshot));
        let note = Note::info("snapshot.started", text).field("operator", operator);
        self.note_snapshot(id, note, now);
        self.step_snapshot(id, Event::Begin, now);
    }

    /// The targets that wait for the snapshot go on, if it can be copied from.
    pub(super) fn go_on_with(&mut self, id: SnapshotId) {
        if !self.is_ready(id) {
            return;
        }
        for (job, command) in self.waiting_for(id) {
            self.ask_of(job, id);
            self.send_command(job, command, Work::OpenSource);
        }
    }

    /// The snapshot cannot be opened now, or is lost: those that wait for it say so, and try again for as
    /// long as any job does.
    pub(super) fn shared_failed(&mut self, id: SnapshotId, fault: &Fault, now: Timestamp) {
        if self.is_ready(id) {
            return;
        }
        for (job, command) in self.waiting_for(id) {
            let outcome = Box::new(Err(fault.clone()));
            let id = command;
            self.advance(job, JobEvent::Ended { id, outcome }, now);
        }
    }

    /// The jobs of a snapshot that is complete go on from its spool, whatever restarts.
    pub(super) fn now_sealed(&mut self, id: SnapshotId, now: Timestamp) {
        for job in self.jobs_of_shared(id) {
            self.advance(job, JobEvent::Sealed, now);
        }
    }

    /// Part of the spool that the job loads from is damaged or gone: everybody who loads from it needs another
    /// snapshot.
    pub(in crate::drive) fn spool_damaged(&mut self, job: JobId, fault: &Fault, now: Timestamp) {
        let Some(id) = self.jobs.get(&job).and_then(|live| live.job.shared) else {
            return;
        };
        let spooled = self
            .snapshots
            .get(&id)
            .filter(|s| s.snapshot.location().is_some());
        if spooled.is_none_or(|spooled| !spooled.snapshot.is_ready()) {
            return;
        }
        self.step_snapshot(id, Event::Damaged(fault.clone()), now);
        for job in self.jobs_of_shared(id) {
            let fault = fault.clone();
            self.advance(job, JobEvent::SpoolLost { fault }, now);
        }
    }

    fn jobs_of_shared(&self, id: SnapshotId) -> Vec<JobId> {
        let jobs = self.jobs.values().map(|live| &live.job);
        jobs.filter(|job| job.shared == Some(id))
            .map(|job| job.id)
            .collect()
    }

    /// Whether the job's command waits for its snapshot, so that the agent does not know it.
    pub(in crate::drive) fn is_unsent(&self, job: JobId, command: CommandId) -> bool {
        let Some(job) = self.jobs.get(&job).map(|live| &live.job) else {
            return false;
        };
        let mut running = job.running.iter();
        let opens = running.any(|r| r.id == command && r.work == Work::OpenSource);
        let shared = job.shared.and_then(|id| self.snapshots.get(&id));
        opens && shared.is_some_and(|stored| !stored.snapshot.is_ready())
    }

    /// What a job waits for that waits for its snapshot, which could not be opened and is tried again.
    pub(in crate::drive) fn waiting_for_snapshot(
        &self,
        job: &Job,
        now: Timestamp,
    ) -> Option<WaitingView> {
        let mut running = job.running.iter();
        let opens = running.find(|r| r.work == Work::OpenSource)?;
        let snapshot = &self.snapshots.get(&job.shared?)?.snapshot;
        let trouble = snapshot
            .trouble
            .filter(|_| self.is_unsent(job.id, opens.id))?;
        let budget = self.rules.patience.retry_for;
        Some(WaitingView {
            node_id: snapshot.spec.source.clone(),
            what: WaitsFor::Retry,
            for_seconds: seconds(trouble.since, now),
            tries: trouble.tries,
            next_try_seconds: snapshot
                .running
                .is_none()
                .then(|| seconds(now, trouble.again)),
            gives_up_seconds: seconds(now, after(trouble.since, budget)),
            reason: (snapshot.fault.as_ref()).map_or_else(String::new, |f| f.message.clone()),
        })
    }

    /// The jobs that open that snapshot, with their commands.
    fn waiting_for(&self, id: SnapshotId) -> Vec<(JobId, CommandId)> {
        let jobs = self.jobs.values().map(|live| &live.job);
        let waiting = jobs.filter(|job| job.shared == Some(id)).flat_map(|job| {
            let opens = job.running.iter().filter(|r| r.work == Work::OpenSource);
            opens.map(|running| (job.id, running.id))
        });
        waiting.collect()
    }

    /// Whether a target of that snapshot has not all its rows yet.
    fn is_needed(&self, snapshot: &Snapshot, now: Timestamp) -> bool {
        let awaited = now < after(snapshot.asked_at, JOIN_GRACE);
        let mut jobs = self.jobs.values().map(|live| &live.job);
        jobs.any(|job| {
            let step = match &job.stage {
                JobStage::Working(step) => *step,
                JobStage::Kept(kept) => kept.step,
                JobStage::Ending(_) | JobStage::Closed(_) => return false,
            };
            let joined = step >= Step::OpenSource || awaited;
            job.shared == Some(snapshot.id) && step <= Step::Copy && joined
        })
    }

    /// Closes the snapshots that no target needs any more, and forgets what is over.
    pub(in crate::drive) fn tick_shared(&mut self, now: Timestamp) {
        let shared = self.snapshots.values().map(|stored| &stored.snapshot);
        let shared: Vec<&Snapshot> = shared.filter(|s| s.owner == Owner::Jobs).collect();
        let unneeded: Vec<SnapshotId> = shared
            .iter()
            .filter(|snapshot| snapshot.lasts() && !self.is_needed(snapshot, now))
            .map(|snapshot| snapshot.id)
            .collect();
        // A job that starts over finds the successor of the one it had.
        let had = |id: SnapshotId| {
            let mut jobs = self.jobs.values().map(|live| &live.job);
            jobs.any(|job| job.shared == Some(id) && !matches!(job.stage, JobStage::Closed(_)))
        };
        let over: Vec<SnapshotId> = shared
            .iter()
            .filter(|snapshot| snapshot.is_over() && !had(snapshot.id))
            .map(|snapshot| snapshot.id)
            .collect();
        for id in unneeded {
            self.step_snapshot(id, Event::Unneeded, now);
        }
        for id in over {
            self.forget_snapshot(id);
        }
    }

    /// Where that snapshot is spooled, once it is.
    pub(in crate::drive) fn spool(&self, id: SnapshotId) -> Option<StoredPlace> {
        let spooled = &self.snapshots.get(&id)?.snapshot;
        Some(StoredPlace {
            snapshot: id,
            location: spooled.location()?.to_owned(),
            manifest: spooled.sealed?.manifest,
            // It was written a moment ago.
            verify: false,
        })
    }

    /// The COPY bytes of the job's snapshot, once all of it is stored.
    pub(in crate::drive) fn known_bytes(&self, job: JobId) -> Option<ByteCount> {
        let job = &self.jobs.get(&job)?.job;
        let planned = job.attempt.plan.is_some();
        let stored = self.snapshots.get(&job.snapshot()?)?;
        let sealed = stored.snapshot.sealed.filter(|_| planned)?;
        Some(ByteCount(sealed.bytes))
    }

    /// How much of the job's snapshot is spooled, until all of it is.
    pub(in crate::drive) fn spool_percent(&self, job: &Job) -> Option<f64> {
        let stored = self.snapshots.get(&job.shared?)?;
        let spools = stored.snapshot.stage == Stage::Storing;
        let work = stored.progress.as_ref().filter(|_| spools)?;
        // An estimate that was too low does not make it complete.
        (work.total > 0).then(|| stored.spooled.min(ALMOST))
    }

    /// What is in the way of the job's spool, or why it has none although it should.
    pub(in crate::drive) fn spool_note(&self, job: &Job, now: Timestamp) -> Option<String> {
        match job.stage {
            JobStage::Working(step) if step <= Step::Copy => {}
            _ => return None,
        }
        let source = &job.spec.source;
        let live = "the targets read the source itself, which holds its snapshot open until they have all rows";
        let snapshot = job.shared.and_then(|id| self.snapshots.get(&id));
        let spooled = snapshot.filter(|stored| stored.snapshot.location().is_some());
        let Some(Stored { snapshot, .. }) = spooled else {
            let unfit = job.spooling == Spooling::NoRoom;
            return unfit.then(|| format!("no room for a spool on {source}: {live}"));
        };
        match (snapshot.stage, &snapshot.fault, snapshot.trouble) {
            (Stage::Storing, Some(fault), Some(trouble)) => {
                let again = match snapshot.running {
                    Some(_) => "now".to_owned(),
                    None => format!("in {} s", seconds(now, trouble.again)),
                };
                Some(format!(
                    "the spool on {source} could not be filled, tried again {again}: {}; meanwhile {live}",
                    fault.message
                ))
            }
            (Stage::Shared, _, _) => Some(format!("the spool on {source} is given up: {live}")),
            _ => None,
        }
    }

    /// Whom the job's target exchanges parts with, if others copy from the same snapshot.
    pub(in crate::drive) fn shared_parts(&self, job: &Job) -> Option<SharedParts> {
        let snapshot = job.snapshot().filter(|_| job.carried().is_none())?;
        let others = self.sharers(snapshot).into_iter();
        let others: Vec<&Job> = others.filter(|other| other.id != job.id).collect();
        // One that lives is for several, also while one of them copies.
        let lives = job.spec.method == Method::Snapshot && !job.spools();
        let alone = others.is_empty() && !lives;
        let peers = || others.iter().map(|other| self.peer(&other.spec.target));
        (!alone).then(|| SharedParts {
            snapshot,
            peers: peers().collect(),
        })
    }

    /// Those that copy from the same snapshot hear of another one: their commands come again with its name.
    pub(in crate::drive) fn name_newcomer(&mut self, id: JobId) {
        let newcomer = self.jobs.get(&id).map(|live| &live.job);
        let newcomer = newcomer.filter(|job| job.carried().is_none());
        let Some(snapshot) = newcomer.and_then(Job::snapshot) else {
            return;
        };
        let others = self
            .sharers(snapshot)
            .into_iter()
            .filter(|job| job.id != id);
        let copies = others.flat_map(|job| {
            let copies = job.running.iter().filter(|r| r.work == Work::Copy);
            copies.map(|running| (job.id, running.id))
        });
        for (job, command) in copies.collect::<Vec<_>>() {
            self.send_command(job, command, Work::Copy);
        }
    }

    /// The job's place among those that share its snapshot, and how many they are.
    pub(in crate::drive) fn share(&self, job: &Job) -> (usize, usize) {
        let sharers = job.snapshot().map_or_else(Vec::new, |id| self.sharers(id));
        let place = sharers.iter().position(|other| other.id == job.id);
        (place.unwrap_or(0), sharers.len().max(1))
    }

    /// The jobs whose targets get the parts of that snapshot from its source, by their ids.
    fn sharers(&self, snapshot: SnapshotId) -> Vec<&Job> {
        let jobs = self.jobs.values().map(|live| &live.job);
        let running = |job: &&Job| matches!(job.stage, JobStage::Working(_) | JobStage::Kept(_));
        let sharing = jobs.filter(|job| job.snapshot() == Some(snapshot));
        let sharing = sharing.filter(|job| job.carried().is_none());
        let mut sharing: Vec<&Job> = sharing.filter(running).collect();
        sharing.sort_by_key(|job| job.id);
        sharing
    }
}
