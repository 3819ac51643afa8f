//! Operators' orders about stored snapshots: made, applied, verified, deleted.

use jiff::Timestamp;
use steep_protocol::encryption::Encrypt;
use steep_protocol::message::agent::{NodeCommand, SlotOrigin, SourceCommand};
use steep_protocol::message::api::ApiReply;
use steep_protocol::message::facts::{Finding, SourceFacts};
use steep_protocol::message::handover::EXPIRES_MAX;
use steep_protocol::message::job::{JobSpec, Method};
use steep_protocol::message::snapshot::{
    ApplySpec, Compared, LOCATION_MAX, SNAPSHOTS_MAX, SnapshotSpec, SnapshotState, VerifiedSnapshot,
};
use steep_protocol::{Fault, FaultKind, NodeId, SnapshotId, limits};

use super::super::handover::judge_prepare;
use super::super::log::Note;
use super::super::orders::Start;
use super::super::query::{Next, Purpose};
use super::super::{Answer, Driver, Ticket};
use super::{Stored, unknown};
use crate::job::handover::{Reader, Replaced, StoredRows};
use crate::job::{self, COMMANDS_PER_JOB, Job};
use crate::snapshot::machine::Event;
use crate::snapshot::{Owner, Snapshot, Stage};
use crate::store::Store;

/// Most targets named in one fault.
const NAMED_MAX: usize = 10;

impl<S: Store> Driver<S> {
    /// Starts to check a source, of which a snapshot is made if nothing is in its way.
    pub(in crate::drive) fn generate(
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
        let location = spec.store.as_ref().map_or("", |store| &store.location);
        if !(1..=LOCATION_MAX).contains(&location.len()) {
            return Err(no_location());
        }
        if !(1..=EXPIRES_MAX).contains(&spec.expires_seconds) {
            return bad("a snapshot can be kept for 1 s to 366 days".to_owned());
        }
        if spec
            .keep
            .is_some_and(|keep| !(1..=SNAPSHOTS_MAX).contains(&keep.into()))
        {
            return bad(format!("1 to {SNAPSHOTS_MAX} snapshots can be kept"));
        }
        self.check_query(&spec.source)?;
        let same = |stored: &&Stored| {
            let other = &stored.snapshot;
            other.spec.source == spec.source
                && other.location() == Some(location)
                && !other.is_over()
        };
        if let Some(other) = self.snapshots.values().find(same) {
            let id = other.snapshot.id;
            let text = format!("snapshot {id} is stored in {location} already");
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

    /// The source's facts are there: unless they forbid it, the place is looked at next, before anything is made.
    pub(in crate::drive) fn looked_before_generate(
        &mut self,
        spec: SnapshotSpec,
        operator: String,
        (facts, ticket): (&SourceFacts, Ticket),
    ) -> Next {
        match judge_generate(spec, facts) {
            Ok((spec, findings)) => {
                let (on, store) = (spec.source.clone(), spec.store.as_ref());
                let location = store.map_or_else(String::new, |store| store.location.clone());
                let command = NodeCommand::CheckPlace { location };
                let purpose = Purpose::LookAtPlace(Box::new(spec), operator, findings, ticket);
                Some((on, command.into(), purpose))
            }
            Err(fault) => {
                self.answer(ticket, Err(fault));
                None
            }
        }
    }

    /// Makes a snapshot of a source that has been checked.
    pub(in crate::drive) fn generate_checked(
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
        let first = self.take_commands(COMMANDS_PER_JOB);
        let mut snapshot = Snapshot::new(id, spec, operator, first, now);
        let source = snapshot.spec.source.clone();
        let agent = self.registry.get(&source);
        snapshot.incarnation = agent.map(|agent| agent.registration.incarnation);
        let location = snapshot.location().unwrap_or_default();
        let text = format!("snapshot {id} of {source} into {location}, by {operator}");
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
    pub(super) fn forget_old_snapshots(&mut self) {
        while self.snapshots.len() > SNAPSHOTS_MAX {
            let over = self.snapshots.values().map(|stored| &stored.snapshot);
            let oldest = over.filter(|s| s.is_over()).min_by_key(|s| s.asked_at);
            let Some(id) = oldest.map(|snapshot| snapshot.id) else {
                return;
            };
            self.forget_snapshot(id);
        }
    }

    /// The jobs of an application: each with the snapshot's source and tables, and where its rows come from. A
    /// snapshot that others share is joined.
    pub(in crate::drive) fn resolve_snapshot(
        &mut self,
        request: ApplySpec,
    ) -> Result<Vec<(JobSpec, Start)>, Fault> {
        let mut jobs = self.starts_of(request)?;
        for (spec, start) in &mut jobs {
            if let Start::Stored(stored) = start
                && stored.carried().is_some()
            {
                stored.instead_of =
                    self.instead_of(stored.snapshot, &spec.target, &stored.location);
            }
        }
        Ok(jobs)
    }

    fn starts_of(&self, request: ApplySpec) -> Result<Vec<(JobSpec, Start)>, Fault> {
        let id = request.snapshot;
        let snapshot = &self.snapshots.get(&id).ok_or_else(|| unknown(id))?.snapshot;
        let spec = &snapshot.spec;
        let resolve = |job: JobSpec| {
            let (start, method) = start(snapshot, job.method, request.verify)?;
            let job = JobSpec {
                source: spec.source.clone(),
                filter: spec.filter.clone(),
                method,
                ..job
            };
            Ok((job, start))
        };
        let jobs: Result<Vec<_>, Fault> = request.jobs.into_iter().map(resolve).collect();
        let jobs = jobs?;
        let specs: Vec<JobSpec> = jobs.iter().map(|(spec, _)| spec.clone()).collect();
        self.check_shape(&specs)?;
        let carried = request.carried.as_ref();
        let length = carried.map_or(1, |to| to.location.len());
        if !(1..=LOCATION_MAX).contains(&length) {
            return Err(no_location());
        }
        let read_by = |(spec, start): (JobSpec, Start)| {
            let to = carried.filter(|to| to.nodes.contains(&spec.target));
            let start = match (start, to, snapshot.sealed) {
                (Start::Stored(stored), Some(to), Some(sealed)) => {
                    Start::Stored(stored.carried_to(to, &sealed))
                }
                (start, _, _) => start,
            };
            (spec, start)
        };
        Ok(jobs.into_iter().map(read_by).collect())
    }

    /// The snapshot that one would expect at a place where an agent has found `found`: the one that was stored there, or
    /// that the node was last made from there.
    fn instead_of(&mut self, found: SnapshotId, node: &NodeId, location: &str) -> Option<Replaced> {
        let all = self.snapshots.values().map(|stored| &stored.snapshot);
        let here = all.filter(|s| s.id != found && s.has_files() && s.location() == Some(location));
        if let Some(other) = here.max_by_key(|snapshot| snapshot.asked_at) {
            return Some(Replaced::Stored {
                snapshot: other.id,
                made: other.asked_at,
            });
        }
        let last = self.nodes.get(node)?.job?;
        let stored = match self.jobs.get(&last) {
            Some(live) => live.job.stored.clone(),
            None => self.store.job(last).ok()??.job.stored,
        };
        let former = stored.filter(|rows| rows.snapshot != found && rows.location == location)?;
        Some(Replaced::Applied {
            snapshot: former.snapshot,
            made: former.made,
        })
    }

    /// Whether a job still needs that snapshot.
    pub(super) fn is_applied(&self, id: SnapshotId) -> bool {
        self.applied_by(id).next().is_some()
    }

    /// The jobs that still need that snapshot.
    fn applied_by(&self, id: SnapshotId) -> impl Iterator<Item = &Job> {
        let jobs = self.jobs.values().map(|live| &live.job);
        jobs.filter(move |job| {
            let method = job.spec.method;
            job.snapshot() == Some(id)
                && match &job.stage {
                    job::Stage::Working(step) => step.reads_snapshot(method),
                    job::Stage::Kept(kept) => kept.step.reads_snapshot(method),
                    job::Stage::Ending(_) | job::Stage::Closed(_) => false,
                }
        })
    }

    pub(in crate::drive) fn snapshot_source(&self, id: SnapshotId) -> Option<NodeId> {
        let stored = self.snapshots.get(&id);
        stored.map(|stored| stored.snapshot.spec.source.clone())
    }

    /// Starts to remove a snapshot. The ticket is answered when nothing of it is left.
    pub(in crate::drive) fn delete_snapshot(
        &mut self,
        id: SnapshotId,
        force: bool,
        ticket: Ticket,
        now: Timestamp,
    ) -> Result<NodeId, Fault> {
        let stored = self.snapshots.get(&id).ok_or_else(|| unknown(id))?;
        let source = stored.snapshot.spec.source.clone();
        let over = stored.snapshot.is_over();
        let targets: Vec<&NodeId> = self.applied_by(id).map(|job| &job.spec.target).collect();
        if let Some(fault) = in_use(id, targets) {
            return Err(fault);
        }
        let Some(stored) = self.snapshots.get_mut(&id) else {
            return Err(unknown(id));
        };
        let snapshot = &stored.snapshot;
        if force && matches!(snapshot.stage, Stage::Removing(_)) {
            let left = format!(
                "on {source}, slot and publication of {} and files in {} may be left",
                snapshot.replication().slot,
                snapshot.location().unwrap_or_default()
            );
            let mut waiting = std::mem::take(&mut stored.waiting);
            waiting.push(ticket);
            let text = format!("snapshot {id} is forgotten: {left}");
            self.note_snapshot(id, Note::warn("snapshot.deleted", text), now);
            self.forget_snapshot(id);
            self.replied(waiting, &Ok(vec![left]));
            return Ok(source);
        }
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
    pub(in crate::drive) fn verify_snapshot(
        &mut self,
        id: SnapshotId,
        ticket: Ticket,
        now: Timestamp,
    ) -> Result<(), Fault> {
        let stored = self.snapshots.get(&id).ok_or_else(|| unknown(id))?;
        let source = stored.snapshot.spec.source.clone();
        let location = stored.snapshot.location().unwrap_or_default().to_owned();
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

    /// Starts to look which snapshot a node's agent finds at a place.
    pub(in crate::drive) fn find_snapshot(
        &mut self,
        node: &NodeId,
        location: String,
        ticket: Ticket,
        now: Timestamp,
    ) -> Result<(), Fault> {
        if !(1..=LOCATION_MAX).contains(&location.len()) {
            return Err(no_location());
        }
        self.check_query(node)?;
        let command = NodeCommand::FindStored { location };
        self.begin_query(node, command, Purpose::FindSnapshot(ticket), now);
        Ok(())
    }

    /// The answer of a verification: a place that holds another snapshot, or another manifest than was
    /// written, is a problem of this one.
    pub(in crate::drive) fn snapshot_verified(
        &self,
        id: SnapshotId,
        mut verified: VerifiedSnapshot,
    ) -> Result<Answer, Fault> {
        let sealed = self.snapshots.get(&id).and_then(|s| s.snapshot.sealed);
        match sealed {
            _ if verified.snapshot != id => {
                let text = format!("the place holds snapshot {} instead", verified.snapshot);
                verified.problem(text);
                verified.compared = Compared::Recorded;
            }
            Some(sealed) => verified.compare(sealed.manifest),
            None => {}
        }
        Ok(ApiReply::Verified(Box::new(verified)).into())
    }
}

/// What is to be made of a source with these facts, and what its operator should know; unless they forbid it.
pub(in crate::drive) fn judge_generate(
    mut spec: SnapshotSpec,
    facts: &SourceFacts,
) -> Result<(SnapshotSpec, Vec<Finding>), Fault> {
    choose_encryption(&mut spec, facts)?;
    let findings = judge_prepare(&spec.source, facts)?;
    Ok((spec, findings))
}

/// To whom a snapshot is encrypted that is to be: to the key of the source's agent.
fn choose_encryption(spec: &mut SnapshotSpec, facts: &SourceFacts) -> Result<(), Fault> {
    let Some(store) = &mut spec.store else {
        return Ok(());
    };
    if store.encrypt == Encrypt::No {
        return Ok(());
    }
    let Some(key) = &facts.snapshot_key else {
        let text = "its agent has no key to encrypt a snapshot with";
        let fault = Fault::new(FaultKind::KeyMissing, text).on(&spec.source);
        return Err(fault.hint(
            "make one on its host with steep-repl snapshot keygen --output FILE, and start the agent with \
             --snapshot-key FILE",
        ));
    };
    store.encrypt = Encrypt::Like(key.encrypts.clone());
    Ok(())
}

/// Why a snapshot that jobs need is not deleted.
fn in_use(id: SnapshotId, mut targets: Vec<&NodeId>) -> Option<Fault> {
    targets.sort();
    let first = *targets.first()?;
    let named: Vec<&str> = targets.iter().map(|node| node.as_str()).collect();
    let mut text = format!(
        "snapshot {id} is being applied to {}",
        named[..named.len().min(NAMED_MAX)].join(", ")
    );
    if let Some(more) = named.len().checked_sub(NAMED_MAX).filter(|more| *more > 0) {
        text.push_str(&format!(" and {more} more"));
    }
    let fault = Fault::new(FaultKind::Failed, text).on(first);
    Some(fault.hint(match named.len() {
        1 => format!("wait for that job, or cancel it: steep-repl init cancel --node {first}"),
        _ => format!(
            "wait for these jobs, or cancel each: steep-repl init cancel --node {first}, and so on"
        ),
    }))
}

fn no_location() -> Fault {
    let text = format!("a location has 1 to {LOCATION_MAX} bytes");
    Fault::new(FaultKind::BadRequest, text)
}

/// Where the rows of a job come from that is made from this snapshot, and its method. One that is not to follow
/// needs the files alone.
fn start(snapshot: &Snapshot, wanted: Method, verify: bool) -> Result<(Start, Method), Fault> {
    let store = snapshot.spec.store.as_ref();
    let shared = snapshot.owner == Owner::Jobs && snapshot.is_joinable();
    let (method, usable) = match wanted.follows() {
        true if shared => {
            let method = store.map_or(Method::Snapshot, |_| Method::TwoPhase);
            return Ok((Start::Joined(snapshot.id), method));
        }
        true => (Method::Stored, snapshot.state() == SnapshotState::Sealed),
        false => (Method::Load, snapshot.has_files()),
    };
    match (snapshot.point.zip(snapshot.sealed), store) {
        (Some((point, sealed)), Some(store)) if usable => {
            let stored = StoredRows {
                snapshot: snapshot.id,
                reader: Reader::Source,
                location: store.location.clone(),
                manifest: sealed.manifest,
                lsn: point.lsn,
                verify,
                encryption: store.encrypt.encryption().cloned(),
                made: Some(snapshot.asked_at),
                instead_of: None,
            };
            Ok((Start::Stored(stored), method))
        }
        _ => Err(not_usable(snapshot)),
    }
}

/// Why no node can be made from it now.
fn not_usable(snapshot: &Snapshot) -> Fault {
    let why = snapshot.fault.as_ref();
    let why = why.map_or_else(String::new, |fault| format!(": {fault}"));
    let text = format!(
        "snapshot {} is {}{why}",
        snapshot.id,
        snapshot.state().name()
    );
    let hint = match snapshot.state() {
        SnapshotState::Opening | SnapshotState::Live => {
            let id = snapshot.id;
            format!("wait until it is complete: steep-repl snapshot show {id}")
        }
        _ if snapshot.has_files() => {
            "generate another one: without its slot, changes since it was taken are lost. What it has can be \
             loaded without replication: steep-repl snapshot apply with --no-subscribe"
                .to_owned()
        }
        SnapshotState::Sealed | SnapshotState::Lost | SnapshotState::Expired => {
            "generate another one: without its slot, changes since it was taken are lost".to_owned()
        }
    };
    Fault::new(FaultKind::Failed, text)
        .on(&snapshot.spec.source)
        .hint(hint)
}
