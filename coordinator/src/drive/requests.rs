//! Operators' questions.

use jiff::Timestamp;
use steep_protocol::message::agent::MissingObjects;
use steep_protocol::message::job::{CancelledData, JobSpec, Method};
use steep_protocol::{Fault, FaultKind, JobId, NodeId, NodeState};

use super::audit::AuditEntry;
use super::log::Note;
use super::views::{idle_view, job_view};
use super::{Answer, Driver, Interest, Live, Operator, Question, Reply};
use crate::job::handover::Handover;
use crate::job::machine::JobEvent;
use crate::job::progress::Detail;
use crate::job::state::{NodeEvent, transition};
use crate::job::tally::Tally;
use crate::job::{COMMANDS_PER_JOB, Job};
use crate::store::{EventQuery, Store, StoreError, Write};

/// A record that cannot be read costs the answer that needs it, and no more.
pub(super) fn unreadable(error: StoreError) -> Fault {
    tracing::error!(event = "store.unreadable", error = %error, "a record of the store cannot be read");
    Fault::new(FaultKind::Failed, format!("coordinator: {error}")).hint(
        "everything else goes on; keep a copy of the coordinator's --data-dir and report this",
    )
}

/// Events in one page.
const EVENTS_PAGE: u32 = 500;

impl<S: Store> Driver<S> {
    /// Answers a question, now or (doctor, cancel) later. What is wrong with the question is an answer,
    /// and so is a record of the store that cannot be read.
    pub(super) fn take_question(&mut self, question: Question, reply: Reply, now: Timestamp) {
        let answer = match question {
            Question::Nodes { node } => self.nodes_answer(node.as_ref(), now),
            Question::Events(query) => self.events_answer(query),
            Question::Doctor { specs } => match self.check_doctor(&specs) {
                Ok(()) => {
                    let looks = specs.into_iter().map(|spec| (spec, None)).collect();
                    self.begin_doctor(looks, reply, now);
                    return;
                }
                Err(fault) => Err(fault),
            },
            Question::Init { specs, operator } => {
                let entries = specs.iter().map(AuditEntry::init).collect();
                let answer = self.init(specs, &operator.name, now);
                self.audit_init(entries, &operator, &answer, now);
                answer
            }
            Question::Resume { specs, operator } => {
                let entries = specs.iter().map(AuditEntry::resume).collect();
                let answer = self.resume_failed(&specs, &operator.name, now);
                self.audit_init(entries, &operator, &answer, now);
                answer
            }
            Question::Audit(query) => self.audit_answer(query),
            Question::Gauges => Ok(Answer::Gauges(Box::new(self.gauges(now)))),
            Question::Progress { node, interest } => self.progress_answer(&node, interest, now),
            Question::Overview { known } => {
                self.overseer.take(now);
                Ok(self.overview(&known, now))
            }
            Question::Recent { node, limit } => self.recent_answer(node.as_ref(), limit),
            Question::Job {
                node,
                seen,
                interest,
            } => {
                if let Some(id) = self.live_job(&node) {
                    self.looks_at(id, interest, now);
                }
                self.job_answer(&node, seen, now)
            }
            Question::Report { node } => self.report_answer(&node),
            Question::Cancel {
                node,
                data,
                operator,
            } => return self.cancel(&node, data, &operator, reply, now),
            Question::GiveUp {
                node,
                data,
                afterwards,
                operator,
            } => return self.give_up(&node, (data, afterwards), &operator, reply, now),
            Question::Schema {
                node,
                filter,
                cursor,
            } => return self.describe(&node, filter, cursor, reply, now),
            Question::Prepare { spec, operator } => {
                return self.prepare(spec, &operator, reply, now);
            }
            Question::DropPrepared {
                node,
                slot,
                operator,
            } => return self.drop_prepared((&node, &slot), &operator, reply, now),
            Question::Prepared { node } => self.prepared_answer(&node),
            Question::Complete { spec, operator } => self.complete(*spec, &operator, now),
            Question::DoctorComplete { spec } => return self.doctor_complete(*spec, reply, now),
            Question::Alive => Ok(Answer::Done),
            Question::Missing { node } => self
                .known(&node)
                .map(|_| Answer::Missing(self.nodes[&node].missing.clone())),
            Question::Rebuild { node, operator } => {
                return self.rebuild(&node, &operator, reply, now);
            }
            Question::Capture {
                node,
                peer,
                operator,
            } => return self.capture(&node, peer, &operator, reply, now),
        };
        self.answer(reply, answer);
    }

    fn report_answer(&mut self, node: &NodeId) -> Result<Answer, Fault> {
        self.known(node)?;
        let end = self.store.last_end(node).map_err(unreadable)?;
        Ok(Answer::Report(end.map(Box::new)))
    }

    fn nodes_answer(&self, node: Option<&NodeId>, now: Timestamp) -> Result<Answer, Fault> {
        if let Some(node) = node {
            self.known(node)?;
        }
        let wanted = self
            .nodes
            .values()
            .filter(|r| node.is_none_or(|n| r.id == *n));
        Ok(Answer::Nodes(self.node_views(wanted, now)))
    }

    fn events_answer(&mut self, query: EventQuery) -> Result<Answer, Fault> {
        if let Some(node) = query.node.as_ref() {
            self.known(node)?;
        }
        let limit = query.limit.min(EVENTS_PAGE);
        let events = self.store.events(&EventQuery { limit, ..query });
        events.map(Answer::Events).map_err(unreadable)
    }

    fn audit_answer(&mut self, query: EventQuery) -> Result<Answer, Fault> {
        if let Some(node) = query.node.as_ref() {
            self.known(node)?;
        }
        let limit = query.limit.min(EVENTS_PAGE);
        let entries = self.store.audit(&EventQuery { limit, ..query });
        entries.map(Answer::Audit).map_err(unreadable)
    }

    fn overview(&mut self, known: &[JobId], now: Timestamp) -> Answer {
        let nodes = self.node_views(self.nodes.values(), now);
        let new = |(id, live): &(&JobId, &Live)| live.end.is_none() && !known.contains(id);
        let new: Vec<JobId> = self.jobs.iter().filter(new).map(|(id, _)| *id).collect();
        Answer::Overview {
            nodes,
            jobs: new
                .into_iter()
                .filter_map(|id| self.follow(id, now))
                .collect(),
            last_event: self.next_event - 1,
        }
    }

    fn recent_answer(&mut self, node: Option<&NodeId>, limit: u32) -> Result<Answer, Fault> {
        if let Some(node) = node {
            self.known(node)?;
        }
        let events = self.store.recent_events(node, limit.min(EVENTS_PAGE));
        events.map(Answer::Events).map_err(unreadable)
    }

    fn job_answer(
        &mut self,
        node: &NodeId,
        seen: Option<JobId>,
        now: Timestamp,
    ) -> Result<Answer, Fault> {
        self.known(node)?;
        if let Some(id) = self.live_job(node) {
            let view = self.live_job_view(id, now);
            return Ok(Answer::Job(view.map(Box::new)));
        }
        let last = self.nodes[node].job.filter(|id| Some(*id) != seen);
        let stored = match last {
            Some(id) => self.store.job(id).map_err(unreadable)?,
            None => None,
        };
        let Some(stored) = stored else {
            return Ok(Answer::Job(None));
        };
        let (tally, meter) = self.look_at(&stored, now).map_err(unreadable)?;
        let state = self.state_of(node);
        let shown = meter.view(&stored.job, state, &tally, Detail::Shown, now);
        let view = job_view(&stored.job, shown.tables, stored.end);
        Ok(Answer::Job(Some(Box::new(view))))
    }

    fn progress_answer(
        &mut self,
        node: &NodeId,
        interest: Interest,
        now: Timestamp,
    ) -> Result<Answer, Fault> {
        self.known(node)?;
        if let Some(id) = self.live_job(node)
            && let Some(view) = self.full_view(id, now)
        {
            let end = self
                .jobs
                .get(&id)
                .and_then(|live| live.end.as_deref().cloned());
            let follow = match interest {
                Interest::GoesOn => self.follow(id, now).filter(|_| end.is_none()),
                Interest::Once => None,
            };
            return Ok(Answer::Progress {
                view: Box::new(view),
                follow,
                end: end.map(Box::new),
            });
        }
        let record = &self.nodes[node];
        let (state, idle, error) = (
            record.state,
            idle_view(record),
            record.error_message.clone(),
        );
        let stored = match record.job {
            Some(id) => self.store.job(id).map_err(unreadable)?,
            None => None,
        };
        let Some(stored) = stored else {
            return Ok(Answer::Progress {
                view: Box::new(idle),
                follow: None,
                end: None,
            });
        };
        let (tally, meter) = self.look_at(&stored, now).map_err(unreadable)?;
        let mut view = meter.view(&stored.job, state, &tally, Detail::All, now);
        view.detail.history = self.store.samples(stored.job.id).map_err(unreadable)?;
        view.error_message = error;
        if let Some(end) = &stored.end {
            view.bytes_copied = end.bytes_copied;
            view.bytes_total = view.bytes_total.max(end.bytes_copied);
            view.tables_completed = end.tables;
        }
        Ok(Answer::Progress {
            view: Box::new(view),
            follow: None,
            end: stored.end.map(Box::new),
        })
    }

    /// Accepts all of those jobs or none.
    fn init(
        &mut self,
        specs: Vec<JobSpec>,
        operator: &str,
        now: Timestamp,
    ) -> Result<Answer, Fault> {
        self.check_shape(&specs)?;
        for spec in &specs {
            if spec.method == Method::Backup {
                let text = "rows that come from a backup are taken by init complete";
                return Err(Fault::new(FaultKind::BadRequest, text));
            }
            self.check_init(spec)?;
        }
        let after = self.next_event - 1;
        let ids: Vec<JobId> = specs
            .into_iter()
            .map(|spec| self.begin(spec, None, operator, now))
            .collect();
        let jobs = ids
            .into_iter()
            .filter_map(|id| self.follow(id, now))
            .collect();
        Ok(Answer::Accepted { jobs, after })
    }

    /// Begins a job that may begin.
    pub(super) fn begin(
        &mut self,
        spec: JobSpec,
        handover: Option<Handover>,
        operator: &str,
        now: Timestamp,
    ) -> JobId {
        let id = self.new_job_id();
        let first = self.take_commands(COMMANDS_PER_JOB);
        let mut job = Job::new(id, spec, operator, first, now);
        job.handover = handover;
        let (target, source) = (job.spec.target.clone(), job.spec.source.clone());
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
        let replication = job.handover.as_ref().map(|h| h.replication.id);
        self.out.writes.push(Write::Job(Box::new(job.clone())));
        if let Some(record) = self.nodes.get_mut(&target) {
            record.job = Some(id);
            record.replication = replication;
        }
        self.adopt(job, Tally::default(), now);
        self.log(note, now);
        for node in [&source, &target] {
            self.meet(id, node, now);
        }
        self.advance(id, JobEvent::Begin, now);
        id
    }

    /// A block of command ids that were never used and never will be again.
    pub(super) fn take_commands(&mut self, count: u64) -> u64 {
        let first = self.next_command;
        self.next_command += count;
        self.out.writes.push(Write::NextCommand(self.next_command));
        first
    }

    /// A random id that no job in memory has.
    pub(super) fn new_job_id(&self) -> JobId {
        loop {
            let id = JobId(rand::random());
            if !self.jobs.contains_key(&id) {
                return id;
            }
        }
    }

    fn cancel(
        &mut self,
        node: &NodeId,
        data: CancelledData,
        operator: &Operator,
        reply: Reply,
        now: Timestamp,
    ) {
        let entry = AuditEntry::cancel(node, data);
        if let Err(fault) = self.known(node) {
            self.audit(entry, operator, Err(fault.to_string()), now);
            self.answer(reply, Err(fault));
            return;
        }
        let state = self.state_of(node);
        let live = self.live_job(node);
        let live = match (live, state) {
            (Some(id), _) => Some(id),
            (None, NodeState::Diverged) => match self.revive_last(node, now) {
                Ok(revived) => revived,
                Err(error) => {
                    let fault = unreadable(error);
                    self.audit(entry, operator, Err(fault.to_string()), now);
                    return self.answer(reply, Err(fault));
                }
            },
            (None, _) => None,
        };
        let name = &operator.name;
        let mut note = Note::info("init.cancel_requested", format!("by {name}")).node(node);
        let Some(id) = live else {
            let job = self.nodes.get(node).and_then(|record| record.job);
            let answer = self.cancel_without_job(node, state, name, now);
            let outcome = answer.as_ref().map(|_| job).map_err(Fault::to_string);
            self.audit(entry, operator, outcome, now);
            self.answer(reply, answer);
            return;
        };
        if let Some(live) = self.jobs.get_mut(&id) {
            note = note.job(&live.job);
            // Stored with the job: who wanted it must be known when it is done, restart or not.
            live.job.cancelled_by = Some(name.clone());
            self.out.writes.push(Write::Job(Box::new(live.job.clone())));
            live.waiting.push(reply);
        }
        self.log(note.field("operator", name), now);
        let stepped = self.step(id, JobEvent::Cancel { data }, now);
        let outcome = stepped.as_ref().map(|()| Some(id));
        self.audit(entry, operator, outcome.map_err(ToString::to_string), now);
        if let Err(refused) = stepped
            && let Some(live) = self.jobs.get_mut(&id)
        {
            let waiting = std::mem::take(&mut live.waiting);
            self.out.closed.push(id);
            for reply in waiting {
                let fault = Fault::new(FaultKind::Failed, refused.to_string()).on(node);
                self.answer(reply, Err(fault));
            }
        }
    }

    /// A FAILED node of which nothing is left only changes its state; any other has nothing to
    /// cancel.
    fn cancel_without_job(
        &mut self,
        node: &NodeId,
        state: NodeState,
        operator: &str,
        now: Timestamp,
    ) -> Result<Answer, Fault> {
        let forgotten = match state {
            NodeState::Failed => self.holds_forgotten(node),
            // What it follows by is its own.
            NodeState::Synchronized => false,
            _ => self.has_leftovers(node),
        };
        let Some(record) = self
            .nodes
            .get_mut(node)
            .filter(|r| r.state == NodeState::Failed && !forgotten)
        else {
            if forgotten {
                let text = "what is ours on the node or on its source stands for no job that this coordinator remembers";
                let hint =
                    format!("remove it with steep-repl init cancel --node {node} --force-cleanup");
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
        let record = record.clone();
        self.out.writes.push(Write::Node(Box::new(record.clone())));
        let change = Note::info("init.state_change", format!("{node}: {state} to {to}"))
            .node(node)
            .of(None, record.job)
            .field("from", state)
            .field("to", to);
        self.log(change, now);
        let text = format!("cancelled by {operator}; nothing was left to remove");
        let note = Note::info("init.cancelled", text)
            .node(node)
            .of(None, record.job);
        self.log(note.field("operator", operator), now);
        self.mirror(node, now);
        Ok(Answer::Done)
    }

    /// Brings the last job of a node back into memory.
    pub(super) fn revive_last(
        &mut self,
        node: &NodeId,
        now: Timestamp,
    ) -> Result<Option<JobId>, StoreError> {
        let Some(id) = self.nodes.get(node).and_then(|record| record.job) else {
            return Ok(None);
        };
        let Some(stored) = self.store.job(id)? else {
            return Ok(None);
        };
        self.revive(stored, now)?;
        Ok(Some(id))
    }
}
