//! `detach`: a node stops following for good and keeps its rows.
//!
//! The job that made it removes subscription, slot and publication, as it does when a diverged node is cancelled, and
//! sets the sequences. Before that comes a query, which waits until the node has applied what was written. What
//! a detach without the source leaves there is stored with the node and removed once the source is back.

use std::time::Duration;

use jiff::Timestamp;
use steep_protocol::message::agent::SourceCommand;
use steep_protocol::message::api::{AbsentSource, ApiReply, DetachPlan, DetachSpec, DetachedFrom};
use steep_protocol::message::facts::SEQUENCE_NOT_TAKEN_OVER;
use steep_protocol::message::handover::SlotOwner;
use steep_protocol::message::job::{CancelledData, JobSpec};
use steep_protocol::{Fault, FaultKind, JobId, NodeId, NodeState, Retry};

use super::log::Note;
use super::query::Purpose;
use super::requests::unreadable;
use super::sweep::swept_id;
use super::{Answer, Driver, Ticket};
use crate::job::copy_progress::CopyProgress;
use crate::job::machine::JobEvent;
use crate::job::time::after;
use crate::job::{COMMANDS_PER_JOB, Closed, Job, Stage, Why};
use crate::registry::Agent;
use crate::store::{LeftBehind, Store, Write};

/// How often the removal of what was left behind is tried.
const AGAIN: Duration = Duration::from_secs(30);

/// The longest wait that can be asked for.
const WAIT_MAX: u64 = 24 * 3600;

/// An order that waits until the node has applied what was written before it.
pub(super) struct Detaching {
    spec: DetachSpec,
    seconds: u64,
    operator: String,
    ticket: Ticket,
}

/// What a node is to a detach.
pub(super) enum Standing {
    /// It follows by what that job made.
    Follows(Box<Job>),
    /// It is being detached or cancelled.
    Ending(JobId),
    /// It was detached.
    Detached(DetachedFrom),
}

impl<S: Store> Driver<S> {
    /// What a detach would do.
    pub(super) fn detach_plan(
        &mut self,
        node: &NodeId,
        absent: AbsentSource,
    ) -> Result<ApiReply, Fault> {
        let standing = self.standing(node, absent)?;
        let job = match &standing {
            Standing::Follows(job) => Some((**job).clone()),
            Standing::Ending(id) => self.jobs.get(id).map(|live| live.job.clone()),
            Standing::Detached(_) => None,
        };
        let record = &self.nodes[node];
        let detached = match standing {
            Standing::Detached(from) => Some(from),
            Standing::Follows(_) | Standing::Ending(_) => None,
        };
        let source = match (&detached, &record.source) {
            (Some(from), _) => from.source_node.clone(),
            (None, Some(source)) => source.clone(),
            (None, None) => node.clone(),
        };
        let replication = job.as_ref().map(Job::replication);
        let name = replication.as_ref().map(|r| r.name().to_string());
        let shares = |other: &&crate::store::NodeRecord| {
            other.id != *node
                && other.state != NodeState::Uninitialized
                && other.replication().is_some()
                && other.replication() == replication.as_ref().map(|r| r.id)
        };
        let slot = self.registry.slot(record);
        let plan = DetachPlan {
            node_id: node.clone(),
            state: record.state,
            source_reachable: self.reachable(&source).is_ok(),
            source_node: source,
            subscription: name.clone().unwrap_or_default(),
            slot: replication
                .as_ref()
                .map(|r| r.slot.to_string())
                .unwrap_or_default(),
            publication: name.unwrap_or_default(),
            shared_with: self
                .nodes
                .values()
                .filter(shares)
                .map(|r| r.id.clone())
                .collect(),
            lag_bytes: slot.map(|slot| slot.lag.0),
            wal_held_bytes: slot.map(|slot| slot.wal_held.0),
            detached_at: detached.map(|from| from.detached_at),
        };
        Ok(ApiReply::DetachPlan(Box::new(plan)))
    }

    /// Starts to detach a node, or to wait for it. Idempotent.
    pub(super) fn detach(
        &mut self,
        spec: DetachSpec,
        operator: &str,
        ticket: Ticket,
        now: Timestamp,
    ) -> Result<Option<JobId>, Fault> {
        let job = match self.standing(&spec.node, spec.absent)? {
            Standing::Follows(job) if spec.wait_seconds.is_some() => job,
            _ => return self.detach_now(&spec, operator, ticket, now),
        };
        let seconds = spec.wait_seconds.unwrap_or_default();
        if !(1..=WAIT_MAX).contains(&seconds) {
            let text = format!("a detach can wait for 1 s to {} h", WAIT_MAX / 3600);
            return Err(Fault::new(FaultKind::BadRequest, text));
        }
        self.check_waitable(&job)?;
        let (id, source) = (job.id, job.spec.source.clone());
        self.check_query(&source)?;
        let command = SourceCommand::AwaitFence {
            earlier: job.earlier.clone(),
        };
        let waiting = Box::new(Detaching {
            spec,
            seconds,
            operator: operator.to_owned(),
            ticket,
        });
        let purpose = Purpose::AwaitBeforeDetach(waiting);
        self.begin_query_on(&source, job.replication(), command, purpose, now);
        self.limit_query(Duration::from_secs(seconds), now);
        Ok(Some(id))
    }

    /// Whether it makes sense to wait: nothing arrives by a disabled subscription, or without the source.
    fn check_waitable(&self, job: &Job) -> Result<(), Fault> {
        let (node, source) = (&job.spec.target, &job.spec.source);
        self.reachable(source).map_err(|why| {
            Fault::new(FaultKind::Unreachable, why)
                .on(source)
                .hint("nothing was changed; without --wait, --force detaches the node alone")
        })?;
        let agent = self.registry.get(node);
        let seen = agent.and_then(|agent| agent.subscription(job.replication().id));
        match seen {
            Some(subscription) if subscription.enabled => Ok(()),
            Some(_) | None => {
                let text = "its subscription is disabled or gone, so it applies nothing that could be waited for";
                let hint =
                    "nothing was changed; enable the subscription first, or detach without --wait";
                Err(Fault::new(FaultKind::Failed, text).on(node).hint(hint))
            }
        }
    }

    /// The node has applied what was written before the order.
    pub(super) fn waited(&mut self, detaching: Detaching, now: Timestamp) {
        let Detaching {
            spec,
            operator,
            ticket,
            ..
        } = detaching;
        if let Err(fault) = self.detach_now(&spec, &operator, ticket.clone(), now) {
            self.answer(ticket, Err(fault));
        }
    }

    /// The wait failed, or somebody else has detached the node meanwhile.
    pub(super) fn not_waited(&mut self, detaching: Detaching, fault: Fault, now: Timestamp) {
        let node = &detaching.spec.node;
        let over = matches!(
            self.standing(node, AbsentSource::LeaveBehind),
            Ok(Standing::Ending(_) | Standing::Detached(_))
        );
        if over {
            return self.waited(detaching, now);
        }
        let record = self.nodes.get(node);
        let lag = record
            .and_then(|record| self.registry.slot(record))
            .map(|slot| slot.lag.0);
        let fault = match (fault.kind, lag) {
            (FaultKind::Timeout, lag) => {
                let lag =
                    lag.map_or_else(String::new, |lag| format!("; {lag} bytes of WAL are left"));
                let text = format!(
                    "it has not applied within {} s what was written before the command{lag}",
                    detaching.seconds
                );
                let fault = Fault::new(FaultKind::Timeout, text).on(node);
                fault.hint(format!(
                    "nothing was changed; see steep-repl status {node} for what holds it up, then wait longer with \
                     --timeout or detach without --wait"
                ))
            }
            (_, _) => {
                let hint = match fault.hint.as_str() {
                    "" => "nothing was changed".to_owned(),
                    hint => format!("nothing was changed; {hint}"),
                };
                fault.hint(hint)
            }
        };
        self.answer(detaching.ticket, Err(fault));
    }

    pub(super) fn detach_now(
        &mut self,
        spec: &DetachSpec,
        operator: &str,
        ticket: Ticket,
        now: Timestamp,
    ) -> Result<Option<JobId>, Fault> {
        let node = &spec.node;
        let (id, joined) = match self.standing(node, spec.absent)? {
            Standing::Detached(_) => {
                let job = self.nodes[node].job;
                self.answer(ticket, Ok(Answer::Replies(Vec::new())));
                return Ok(job);
            }
            Standing::Ending(id) => (id, true),
            Standing::Follows(job) => {
                let id = job.id;
                if self.revive_last(node, now).map_err(unreadable)?.is_none() {
                    self.take_over(*job, operator, now);
                }
                (id, false)
            }
        };
        let alone = self.nodes[node]
            .source
            .clone()
            .is_some_and(|s| self.reachable(&s).is_err());
        let note = Note::info("node.detach_requested", format!("by {operator}"));
        self.cancel_job(id, CancelledData::Detach, (note, operator, ticket), now)?;
        if spec.absent == AbsentSource::LeaveBehind && (alone || joined) {
            self.advance(id, JobEvent::GiveUp, now);
        }
        Ok(Some(id))
    }

    /// The job of a replica that was adopted, as far as it is known by what the node follows. `None` where that was
    /// prepared for a backup.
    fn job_of_replica(&self, node: &NodeId) -> Option<Job> {
        let record = self.nodes.get(node)?;
        let (source, replication) = (record.source.clone()?, record.replication()?);
        let (id, shared) = match &record.slot {
            None => (replication, None),
            Some(slot) => match SlotOwner::of(slot.as_str())? {
                SlotOwner::Made(snapshot, job) => (job, Some(snapshot)),
                SlotOwner::Job(_) | SlotOwner::Template(_) => return None,
            },
        };
        let spec = JobSpec::new(source, node.clone());
        let mut job = Job::new(id, spec, "", 0, self.clock.now());
        job.shared = shared;
        job.stage = Stage::Closed(Closed::Synchronized);
        Some(job)
    }

    /// From here on, that job is known.
    fn take_over(&mut self, mut job: Job, operator: &str, now: Timestamp) {
        job.first_command = self.take_commands(COMMANDS_PER_JOB);
        operator.clone_into(&mut job.operator);
        let replication = job.replication();
        if let Some(record) = self.nodes.get_mut(&job.spec.target) {
            record.job = Some(job.id);
            record.replicates_by(&replication);
            self.out.writes.push(Write::Node(Box::new(record.clone())));
        }
        self.out.writes.push(Write::Job(Box::new(job.clone())));
        let (id, ends) = (job.id, [job.spec.source.clone(), job.spec.target.clone()]);
        self.adopt(job, CopyProgress::default(), now);
        for node in ends {
            self.note_presence(id, &node, now);
        }
    }

    /// What the node is to a detach, if it can be detached.
    pub(super) fn standing(
        &mut self,
        node: &NodeId,
        absent: AbsentSource,
    ) -> Result<Standing, Fault> {
        self.known(node)?;
        let record = &self.nodes[node];
        let (state, job) = (record.state, record.job);
        let detached = record.detached.clone();
        let refuse =
            |text: String, hint: &str| Err(Fault::new(FaultKind::Failed, text).on(node).hint(hint));
        if let Some(live) = self.live_job(node).and_then(|id| self.jobs.get(&id)) {
            let ending = match &live.job.stage {
                Stage::Ending(ending) => matches!(ending.why, Why::Cancelled(_)),
                _ => false,
            };
            if ending {
                return Ok(Standing::Ending(live.job.id));
            }
        }
        match state {
            NodeState::Synchronized | NodeState::Diverged => {}
            NodeState::Uninitialized => {
                return match detached {
                    Some(from) => Ok(Standing::Detached(from)),
                    None => refuse("it follows nobody".to_owned(), "see steep-repl nodes"),
                };
            }
            NodeState::Failed => {
                let hint =
                    format!("remove its job with steep-repl init cancel --node {node} --keep-data");
                return refuse(
                    "its job has failed, and it does not follow".to_owned(),
                    &hint,
                );
            }
            _ => {
                let hint = format!(
                    "wait for it, or stop it with steep-repl init cancel --node {node} --keep-data"
                );
                return refuse(format!("it is still being initialised ({state})"), &hint);
            }
        }
        let stored = match job {
            Some(job) => self.store.job(job).map_err(unreadable)?,
            None => None,
        };
        let stored = stored.map(|stored| stored.job);
        let Some(job) = stored.or_else(|| self.job_of_replica(node)) else {
            let text = "this coordinator does not remember the job that made it";
            let hint = format!(
                "steep-repl init cancel --node {node} --keep-data --force-cleanup ends its replication and \
                 keeps its rows"
            );
            return refuse(text.to_owned(), &hint);
        };
        self.reachable(node).map_err(|why| {
            let hint = "nothing was changed: its subscription is dropped by its own agent, so start that first. \
                        If the host is gone, use steep-repl nodes remove";
            Fault::new(FaultKind::Unreachable, why).on(node).hint(hint)
        })?;
        let source = &job.spec.source;
        match (self.reachable(source), absent) {
            (Ok(()), _) | (Err(_), AbsentSource::LeaveBehind) => {
                Ok(Standing::Follows(Box::new(job)))
            }
            (Err(why), AbsentSource::Refuse) => {
                let hint = format!(
                    "nothing was changed; start it again, or detach {node} alone with --force: what it leaves on \
                     {source} is then removed when that is back"
                );
                let fault = Fault::new(FaultKind::Unreachable, why).on(source);
                Err(fault.hint(hint).retry(Retry::Backoff))
            }
        }
    }

    /// Whether a node's agent and PostgreSQL can be reached, or why not.
    pub(super) fn reachable(&self, node: &NodeId) -> Result<(), String> {
        match self.registry.get(node) {
            None => Err("its agent has no session".to_owned()),
            Some(agent) => match &agent.observed.postgres {
                Some(Err(why)) => Err(format!("its PostgreSQL cannot be reached: {why}")),
                Some(Ok(_)) | None => Ok(()),
            },
        }
    }

    /// What operators who wait for a detach should know beside what was left behind.
    pub(super) fn detach_left(job: &Job, mut left: Vec<String>) -> Vec<String> {
        if !left.is_empty() {
            let source = &job.spec.source;
            left.push(format!(
                "what is left on {source} is removed as soon as its agent is back: nobody has to do that by hand"
            ));
        }
        let sequences = job
            .warnings
            .iter()
            .filter(|finding| finding.code == SEQUENCE_NOT_TAKEN_OVER);
        left.extend(sequences.map(|finding| format!("{}: {}", finding.what, finding.fix)));
        left
    }

    /// Removes what detached nodes have left on sources that are back.
    pub(super) fn tick_left(&mut self, now: Timestamp) {
        self.left_again.retain(|_, again| *again > now);
        let free = |left: &&LeftBehind| {
            self.registry
                .get(&left.source)
                .is_some_and(Agent::postgres_answers)
                && !self.left_again.contains_key(&left.source)
        };
        let due = self.nodes.values().filter_map(|record| {
            let left = record.left.iter().find(free)?;
            Some((record.id.clone(), left.clone()))
        });
        for (node, left) in due.collect::<Vec<_>>() {
            if self.check_query(&left.source).is_err() {
                continue;
            }
            self.left_again
                .insert(left.source.clone(), after(now, AGAIN));
            let command = SourceCommand::Cleanup {
                sync_slots: None,
                earlier: Vec::new(),
            };
            let (job, source) = (swept_id(&left.replication), left.source.clone());
            let replication = left.replication.clone();
            let purpose = Purpose::RemoveLeft(node, Box::new(left));
            self.begin_query_as(job, &source, replication, (command.into(), purpose), now);
        }
    }

    /// Something that was left behind is removed.
    pub(super) fn left_removed(&mut self, node: &NodeId, left: &LeftBehind, now: Timestamp) {
        self.left_again.remove(&left.source);
        self.unlist_slot(&left.source, &left.replication, now);
        if let Some(record) = self.nodes.get_mut(node) {
            record.left.retain(|other| other != left);
            self.out.writes.push(Write::Node(Box::new(record.clone())));
        }
        let (source, slot) = (&left.source, &left.replication.slot);
        let text = format!("{source}: what {node} left there is removed");
        let note = Note::info("node.left_removed", text).node(node);
        self.log(note.of(Some(source), None).field("slot", slot), now);
    }

    /// It could not be removed; that is tried again.
    pub(super) fn left_stays(node: &NodeId, left: &LeftBehind, fault: &Fault) {
        tracing::warn!(node_id = %node, source_node = %left.source, error = %fault, "what a node left on its source cannot be removed yet");
    }
}

/// What waits to be removed, for people.
pub(super) fn waits(left: &LeftBehind) -> String {
    let (source, slot) = (&left.source, &left.replication.slot);
    format!(
        "its slot {slot} and publication are still on {source}, and the slot keeps WAL; the agent of {source} removes \
         them as soon as it is online"
    )
}
