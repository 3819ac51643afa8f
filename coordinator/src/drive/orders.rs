//! Operators' orders: requests that change something. Each is checked, started and audited in one turn.

use jiff::Timestamp;
use steep_protocol::message::agent::MissingObjects;
use steep_protocol::message::api::{InitRequest, Order};
use steep_protocol::message::job::{CancelledData, JobSpec, Method};
use steep_protocol::message::tables::Change;
use steep_protocol::{Fault, FaultKind, JobId, NodeId, NodeState, SnapshotId};

use super::log::Note;
use super::repair::Writes;
use super::requests::unreadable;
use super::stored_check::Then;
use super::{Answer, Driver, Operator, Ticket};
use crate::job::copy_progress::CopyProgress;
use crate::job::handover::{Handover, StoredRows};
use crate::job::machine::JobEvent;
use crate::job::merge::Merging;
use crate::job::state::{NodeEvent, transition};
use crate::job::{COMMANDS_PER_JOB, Job, Spooling, Stage};
use crate::store::{Store, Write};

/// Where a job's rows come from.
#[derive(Clone)]
pub(super) enum Start {
    /// From a snapshot of its own.
    Live,
    /// From a backup.
    Backup(Handover),
    /// From a stored snapshot.
    Stored(StoredRows),
    /// From a snapshot that it shares with other targets.
    Shared(SnapshotId),
    /// The same, which others have opened.
    Joined(SnapshotId),
    /// On both nodes, from before.
    Merge(Merging),
}

impl<S: Store> Driver<S> {
    /// Starts an order; the ticket is answered now or when the order is done. A fault means that
    /// nothing was started; then the caller answers.
    pub(super) fn order(
        &mut self,
        order: Order,
        operator: &Operator,
        ticket: Ticket,
        now: Timestamp,
    ) -> Result<(), Fault> {
        let entries = self.audit_entries(&order);
        let by = &operator.name;
        let one = |job: Option<JobId>| job.into_iter().collect();
        if let Err(fault) = self.check_switching(&order, &entries) {
            let refused = Err(fault);
            self.audit_order(entries, operator, &refused, now);
            return refused.map(|_: Vec<JobId>| ());
        }
        let begun: Result<Vec<JobId>, Fault> = match order {
            Order::Init(request) => self.init(request, by, ticket, now),
            Order::Cancel {
                data: CancelledData::Detach,
                ..
            }
            | Order::GiveUp {
                data: CancelledData::Detach,
                ..
            } => {
                let text =
                    "a cancel removes or keeps rows; a node is detached by an order of its own";
                Err(Fault::new(FaultKind::BadRequest, text))
            }
            Order::Cancel { node, data } => self.cancel(&node, data, by, ticket, now).map(one),
            Order::GiveUp {
                node,
                data,
                afterwards,
            } => {
                let wanted = (data, afterwards);
                self.give_up(&node, wanted, by, ticket, now).map(one)
            }
            Order::Rebuild { node } => self.rebuild(&node, ticket, now).map(one),
            Order::Adjust { node, change } => {
                let adjusted = self.adjust(&node, change, by, ticket, now);
                adjusted.map(|job| one(Some(job)))
            }
            Order::Capture { node, peer } => {
                self.capture(&node, peer, ticket, now).map(|()| Vec::new())
            }
            Order::ChangeTables(spec) if spec.change == Change::Drop => {
                self.drop_tables(spec, by, ticket, now).map(|()| Vec::new())
            }
            Order::ChangeTables(spec) => {
                let begun = self.change_tables(spec, by, ticket, now);
                begun.map(|job| one(Some(job)))
            }
            Order::SetNewTables { node, policy } => {
                let set = self.set_new_tables(&node, policy, by, ticket, now);
                set.map(|()| Vec::new())
            }
            Order::Detach(spec) => self.detach(spec, by, ticket, now).map(one),
            Order::Switchover(spec) => self.switchover(*spec, by, ticket, now).map(|()| Vec::new()),
            Order::Prepare(spec) => self.prepare(spec, ticket, now).map(|()| Vec::new()),
            Order::Generate(spec) => self.generate(*spec, by, ticket, now).map(|()| Vec::new()),
            Order::DeleteSnapshot { snapshot, force } => self
                .delete_snapshot(snapshot, force, ticket, now)
                .map(|_| Vec::new()),
            Order::Verify(spec) => {
                let request = (*spec, Vec::new());
                self.verify(request, by, ticket, now).map(|()| Vec::new())
            }
            Order::VerifyRest { spec, done } => {
                let begun = self.verify((*spec, done), by, ticket, now);
                begun.map(|()| Vec::new())
            }
            Order::ScheduleVerify(spec) => self
                .schedule_verify(*spec, ticket, now)
                .map(|()| Vec::new()),
            Order::Repair(spec) => self
                .repair((*spec, Writes::Repair), by, ticket, now)
                .map(|()| Vec::new()),
            Order::MergePage(spec) => self
                .repair((*spec, Writes::Merge), by, ticket, now)
                .map(|()| Vec::new()),
            Order::Merge(spec) => self.merge(&spec, by, ticket, now),
            Order::DropPrepared { node, slot } => self
                .drop_prepared(&node, &slot, ticket, now)
                .map(|()| Vec::new()),
        };
        self.audit_order(entries, operator, &begun, now);
        begun.map(|_| ())
    }

    /// Accepts all jobs of a request or none.
    fn init(
        &mut self,
        request: InitRequest,
        operator: &str,
        ticket: Ticket,
        now: Timestamp,
    ) -> Result<Vec<JobId>, Fault> {
        let after = self.next_event - 1;
        self.check_shape(request.specs())?;
        let ids: Vec<JobId> = match request {
            InitRequest::Copy(specs) => {
                for spec in &specs {
                    self.check_copy(spec)?;
                }
                self.check_spool(&specs)?;
                let start = match share_a_snapshot(&specs) {
                    true => Start::Shared(SnapshotId(self.new_job_id().0)),
                    false => Start::Live,
                };
                let begin = |spec| self.begin(spec, start.clone(), operator, now);
                specs.into_iter().map(begin).collect()
            }
            InitRequest::Resume(specs) => {
                let then = Then::Resume(operator.to_owned());
                return self.resume_checked(specs, then, ticket, now);
            }
            InitRequest::Complete(spec) => {
                self.check_init(&spec.job)?;
                let (spec, handover) = self.resolve(*spec)?;
                self.check_slot_free(&handover)?;
                vec![self.begin(spec, Start::Backup(handover), operator, now)]
            }
            InitRequest::Apply(spec) => {
                let jobs = self.resolve_snapshot(*spec)?;
                for (spec, _) in &jobs {
                    self.check_init(spec)?;
                }
                let begin = |(spec, start)| self.begin(spec, start, operator, now);
                jobs.into_iter().map(begin).collect()
            }
        };
        let jobs = ids.iter().filter_map(|id| self.follow(*id, now)).collect();
        self.answer(ticket, Ok(Answer::Accepted { jobs, after }));
        Ok(ids)
    }

    /// Starts a job that has been checked.
    pub(super) fn begin(
        &mut self,
        spec: JobSpec,
        start: Start,
        operator: &str,
        now: Timestamp,
    ) -> JobId {
        let id = self.new_job_id();
        let first = self.take_commands(COMMANDS_PER_JOB);
        let mut job = Job::new(id, spec, operator, first, now);
        match start {
            Start::Live => {}
            Start::Backup(handover) => job.handover = Some(handover),
            Start::Stored(stored) => job.stored = Some(stored),
            Start::Shared(snapshot) => job.shared = Some(snapshot),
            Start::Joined(snapshot) => {
                job.shared = Some(snapshot);
                job.spooling = Spooling::Joined;
            }
            Start::Merge(merge) => job.merge = Some(merge),
        }
        let (target, source) = (&job.spec.target, &job.spec.source);
        let mut note = Note::info(
            "init.started",
            format!("{target} from {source}, by {operator}"),
        )
        .job(&job)
        .field("operator", operator)
        .field("method", job.spec.method.name())
        .field("parallel", job.spec.parallel);
        if let Some(handover) = &job.handover {
            let slot = &handover.replication.slot;
            note = note.field("slot", slot).field("lsn", handover.lsn);
        }
        if let Some(snapshot) = job.snapshot() {
            note = note.field("snapshot_id", snapshot);
        }
        if let Some(stored) = &job.stored {
            note = note.field("lsn", stored.lsn);
        }
        self.start(job, note, now);
        id
    }

    /// Starts a new job, or one that another coordinator had begun.
    pub(super) fn start(&mut self, job: Job, note: Note, now: Timestamp) {
        let id = job.id;
        let (target, source) = (job.spec.target.clone(), job.spec.source.clone());
        let replication = job.replication();
        self.out.writes.push(Write::Job(Box::new(job.clone())));
        if let Some(record) = self.nodes.get_mut(&target) {
            if job.change.is_some() {
                // What it follows by stays that of its job.
                record.change = Some(id);
            } else {
                record.job = Some(id);
                record.replicates_by(&replication);
            }
        }
        let copied = CopyProgress::recalled(job.recalled.unwrap_or_default());
        self.adopt(job, copied, now);
        self.log(note, now);
        for node in [&source, &target] {
            self.note_presence(id, node, now);
        }
        self.advance(id, JobEvent::Begin, now);
    }

    /// The first of `count` new command ids.
    pub(super) fn take_commands(&mut self, count: u64) -> u64 {
        let first = self.next_command;
        self.next_command += count;
        self.out.writes.push(Write::NextCommand(self.next_command));
        first
    }

    /// A random id that no job in memory has.
    pub(super) fn new_job_id(&self) -> JobId {
        loop {
            let id = (self.draw_id)();
            if !self.jobs.contains_key(&id) {
                return id;
            }
        }
    }

    fn cancel(
        &mut self,
        node: &NodeId,
        data: CancelledData,
        operator: &str,
        ticket: Ticket,
        now: Timestamp,
    ) -> Result<Option<JobId>, Fault> {
        self.known(node)?;
        let state = self.state_of(node);
        let live = match (self.live_job(node), state) {
            (None, NodeState::Diverged) => self.revive_last(node, now).map_err(unreadable)?,
            (live, _) => live,
        };
        let Some(id) = live else {
            let job = self.nodes.get(node).and_then(|record| record.job);
            self.cancel_without_job(node, state, operator, now)?;
            self.answer(ticket, Ok(Answer::Replies(Vec::new())));
            return Ok(job);
        };
        let note = Note::info("init.cancel_requested", format!("by {operator}"));
        self.cancel_job(id, data, (note, operator, ticket), now)?;
        Ok(Some(id))
    }

    /// Cancels a job in memory, on behalf of an operator who waits for its end.
    pub(super) fn cancel_job(
        &mut self,
        id: JobId,
        data: CancelledData,
        (mut note, operator, ticket): (Note, &str, Ticket),
        now: Timestamp,
    ) -> Result<(), Fault> {
        if let Some(live) = self.jobs.get_mut(&id) {
            note = note.job(&live.job);
            // Stored with the job, so that it is known after a restart.
            live.job.cancelled_by = Some(operator.to_owned());
            self.out.writes.push(Write::Job(Box::new(live.job.clone())));
            live.waiting.push(ticket);
        }
        self.log(note.field("operator", operator), now);
        self.cancels_held_back(id, now);
        if let Err(refused) = self.step(id, JobEvent::Cancel { data }, now) {
            let mut fault = Fault::new(FaultKind::Failed, refused.to_string());
            if let Some(live) = self.jobs.get_mut(&id) {
                fault = fault.on(&live.job.spec.target);
                // One that is at work goes on.
                if matches!(live.job.stage, Stage::Closed(_)) {
                    self.out.closed.push(id);
                }
                let waiting = std::mem::take(&mut live.waiting);
                self.replied(waiting, &Err(fault.clone()));
            }
            return Err(fault);
        }
        Ok(())
    }

    /// Cancels on a node without a job: a failed node without leftovers becomes uninitialized; anything
    /// else is refused.
    fn cancel_without_job(
        &mut self,
        node: &NodeId,
        state: NodeState,
        operator: &str,
        now: Timestamp,
    ) -> Result<(), Fault> {
        let forgotten = match state {
            NodeState::Failed => self.holds_forgotten(node),
            // Its replication is in use.
            NodeState::Synchronized => false,
            _ => self.has_leftovers(node, now),
        };
        let way_back = self.way_back_left(node);
        let Some(record) = self
            .nodes
            .get_mut(node)
            .filter(|r| r.state == NodeState::Failed && !forgotten)
        else {
            if forgotten {
                let text = "the node or its source has leftovers of a job that this coordinator does not remember";
                let hint = format!(
                    "remove them with steep-repl init cancel --node {node} --force-cleanup"
                );
                return Err(Fault::new(FaultKind::Failed, text).on(node).hint(hint));
            }
            let text = format!("there is nothing to cancel: the node is {state}");
            let hint = "only a node that is being initialised, that failed or that diverged can be \
                        cancelled; see steep-repl nodes";
            return Err(Fault::new(FaultKind::Failed, text).on(node).hint(hint));
        };
        let to = transition(state, NodeEvent::Cancelled)
            .map_err(|e| Fault::new(FaultKind::Failed, e.to_string()).on(node))?;
        record.state = to;
        record.source = None;
        record.error_message = None;
        record.missing = MissingObjects::default();
        let what = match &way_back {
            Some(left) => format!(
                "the slot {} for a way back is removed from {}",
                left.replication.slot, left.source
            ),
            None => "there was nothing to remove".to_owned(),
        };
        record.left.extend(way_back);
        let record = record.clone();
        self.out.writes.push(Write::Node(Box::new(record.clone())));
        let change = Note::info("init.state_change", format!("{node}: from {state} to {to}"))
            .node(node)
            .of(None, record.job)
            .field("from", state)
            .field("to", to);
        self.log(change, now);
        let text = format!("cancelled by {operator}; {what}");
        let note = Note::info("init.cancelled", text)
            .node(node)
            .of(None, record.job);
        self.log(note.field("operator", operator), now);
        self.mirror(node, now);
        Ok(())
    }
}

/// Whether the jobs of one request are made from one snapshot, which is then read once.
fn share_a_snapshot(specs: &[JobSpec]) -> bool {
    let Some((first, others)) = specs.split_first() else {
        return false;
    };
    let same = |other: &JobSpec| {
        (&other.source, &other.filter, other.method) == (&first.source, &first.filter, first.method)
    };
    match first.method {
        Method::TwoPhase => others.iter().all(same),
        Method::Snapshot => !others.is_empty() && others.iter().all(same),
        Method::Native
        | Method::Backup
        | Method::Stored
        | Method::Load
        | Method::Add
        | Method::Drop
        | Method::Reinit
        | Method::Merge => false,
    }
}
