//! Handles agents' sessions: their start, their end and their messages.

use jiff::Timestamp;
use steep_protocol::message::agent::{
    AgentMessage, CoordinatorMessage, Outcome, Registration, SourceCommand,
};
use steep_protocol::message::handover::Replication;
use steep_protocol::{CommandId, Fault, FaultKind, JobId, NodeId, NodeState};

use super::log::Note;
use super::{AgentInput, Driver};
use crate::job::machine::{JobEvent, Parting, Snapshot};
use crate::job::{ServerState, Side};
use crate::registry::{Link, SessionId};
use crate::store::{NodeRecord, Store, Write};

/// Whether permissions of jobs that nobody remembers are revoked, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Forgotten {
    No,
    Yes,
}

impl<S: Store> Driver<S> {
    pub(super) fn on_agent(&mut self, input: AgentInput, now: Timestamp) {
        match input {
            AgentInput::Joined {
                node,
                link,
                registration,
            } => self.on_joined(&node, link, registration, now),
            AgentInput::Said {
                node,
                session,
                messages,
            } => {
                for message in messages {
                    self.on_said(&node, session, message, now);
                }
            }
            AgentInput::Left {
                node,
                session,
                parting,
            } => self.on_left(&node, session, parting, now),
        }
    }

    fn on_joined(&mut self, node: &NodeId, link: Link, registration: Registration, now: Timestamp) {
        if let Some(fault) = self.registry.rejects(node, &registration, now) {
            return self.reject(node, &link, &registration, fault, now);
        }
        if let Some(before) = self.registry.session(node) {
            // Its jobs must see the old session end before the new one starts.
            self.on_left(node, before, Parting::Lost, now);
        }
        let record = self
            .nodes
            .entry(node.clone())
            .or_insert_with(|| NodeRecord::new(node.clone()));
        let before = record.clone();
        record.agent_version = Some(registration.version.clone());
        record.advertise = Some(registration.advertise.clone());
        let state = record.state;
        if *record != before || before == NodeRecord::new(node.clone()) {
            self.out.writes.push(Write::Node(Box::new(record.clone())));
        }
        let text = format!(
            "the agent of {node} registered from {}",
            registration.advertise
        );
        let note = Note::info("agent.connected", text).node(node);
        self.log(note.field("version", &registration.version), now);
        self.registry.join(node.clone(), link, registration, now);
        self.send(node, CoordinatorMessage::Welcome { state });
        self.set_report_intervals(now);
        for id in self.jobs_of(node) {
            self.note_presence(id, node, now);
        }
        self.snapshots_up(node, now);
        self.switchovers_up(node, now);
        self.release_idle(node, Forgotten::No);
        if self.may_mirror(node) {
            self.mirror(node, now);
        }
        self.tell_audit(node);
    }

    /// Rejects a process because another one is the node's agent. Two would end each other's sessions
    /// in turn.
    fn reject(
        &mut self,
        node: &NodeId,
        link: &Link,
        registration: &Registration,
        fault: Fault,
        now: Timestamp,
    ) {
        if self.registry.note_rejected(node, registration.incarnation) {
            let note = Note::warn("agent.rejected", fault.to_string()).node(node);
            self.log(note.field("address", &registration.advertise), now);
        }
        // The queue of a new session is empty. Dropping the link afterwards closes the session.
        let _ = link.outbox.try_send(CoordinatorMessage::Rejected(fault));
    }

    /// Revokes the permissions of jobs that ended while a source's agent was away (G7), and later those of queries and
    /// of jobs that nobody remembers. Leaves jobs with an open snapshot alone.
    fn release_idle(&mut self, source: &NodeId, which: Forgotten) {
        let Some(agent) = self.registry.get(source) else {
            return;
        };
        let registration = agent.registration.clone();
        for job in registration.admitted.iter().copied() {
            let used = self.jobs.contains_key(&job)
                || self.is_snapshot(job)
                || self.is_asking(job)
                || self.is_switching(job)
                || holds(&registration, job);
            let mut remembered = || matches!(self.store.job(job), Ok(Some(_)));
            if used || which == Forgotten::No && !remembered() {
                continue;
            }
            let id = self.take_commands(1);
            self.release_permission(job, id, source);
        }
    }

    /// Revokes the permissions of jobs that nobody has adopted.
    pub(super) fn tick_permissions(&mut self, now: Timestamp) {
        for source in self.registry.unknown_due(now) {
            self.release_idle(&source, Forgotten::Yes);
        }
    }

    /// Whether a query with that id is running.
    pub(super) fn is_asking(&self, job: JobId) -> bool {
        self.queries.iter().any(|query| query.asks_as(job))
    }

    /// Revokes a target's permission to send requests to a source (G7). Nothing on the source's server
    /// changes.
    pub(super) fn release_permission(&mut self, job: JobId, id: u64, source: &NodeId) {
        let message = CoordinatorMessage::Command {
            id: CommandId(id),
            job,
            replication: Replication::of(job),
            command: SourceCommand::Release.into(),
        };
        self.send(source, message);
    }

    /// Tells a job whether that node's agent is online.
    pub(super) fn note_presence(&mut self, id: JobId, node: &NodeId, now: Timestamp) {
        if self.held_back.contains(&id) {
            return;
        }
        let Some(side) = self.jobs.get(&id).and_then(|live| live.job.side_of(node)) else {
            return;
        };
        let event = match self.registry.get(node) {
            Some(agent) => JobEvent::Up {
                side,
                incarnation: agent.registration.incarnation,
                snapshot: if holds(&agent.registration, id) {
                    Snapshot::Held
                } else {
                    Snapshot::NotHeld
                },
            },
            None => JobEvent::Down {
                side,
                since: now,
                parting: Parting::Lost,
            },
        };
        self.advance(id, event, now);
    }

    /// An agent's session ended.
    pub(super) fn on_left(
        &mut self,
        node: &NodeId,
        session: SessionId,
        parting: Parting,
        now: Timestamp,
    ) {
        let Some(agent) = self.registry.leave(node, session) else {
            return;
        };
        let text = match parting {
            Parting::Lost => format!("the agent of {node} is disconnected"),
            Parting::Stopped => format!("the agent of {node} was stopped"),
        };
        self.log(Note::warn("agent.lost", text).node(node), now);
        // QUIC notices late that a process was killed, so the agent counts as offline since its last
        // message.
        let since = agent.last_heard;
        for id in self.jobs_of(node) {
            let live = self.jobs.get_mut(&id);
            let side = live.and_then(|live| {
                let side = live.job.side_of(node)?;
                live.locks.lost(side);
                Some(side)
            });
            if let Some(side) = side {
                let event = JobEvent::Down {
                    side,
                    since,
                    parting,
                };
                self.advance(id, event, now);
            }
        }
        self.queries_lost(node, now);
    }

    fn on_said(
        &mut self,
        node: &NodeId,
        session: SessionId,
        message: AgentMessage,
        now: Timestamp,
    ) {
        let Some(agent) = self.registry.heard(node, session, now) else {
            return;
        };
        match message {
            // The session module ends the session.
            AgentMessage::Register(_) => {}
            AgentMessage::Audited { seq } => self.on_audited(node, seq),
            AgentMessage::Prepared(slots) => {
                // Watchers see how much WAL templates hold.
                self.out.observed |= agent.note_prepared(slots);
                self.check_templates(node, now);
            }
            AgentMessage::SlotExpired { slot } => self.slot_expired(node, &slot, now),
            AgentMessage::Lineage(lineage) => self.on_lineage(node, lineage, now),
            AgentMessage::Recorded(recorded) => self.on_recorded(node, recorded, now),
            AgentMessage::Observed(observed) => {
                let version = match observed.postgres {
                    Some(Ok(version)) => Some(version),
                    Some(Err(_)) | None => None,
                };
                // Watchers must see the lag without delay.
                self.out.observed |= agent.observed != observed;
                let back = matches!(agent.observed.postgres, Some(Err(_))) && version.is_some();
                agent.observed = observed;
                let lost = agent.observed.lost_snapshots.clone();
                self.check_snapshots(node, &lost, now);
                if back {
                    self.snapshots_hurry(node, now);
                }
                self.note_version(node, version);
                self.check_jobs(node, now);
                self.check_locks(node, now);
                self.check_drift(node, now);
            }
            other @ (AgentMessage::PlanPage { .. }
            | AgentMessage::Progress(_)
            | AgentMessage::PartsDone { .. }
            | AgentMessage::TableCompared { .. }
            | AgentMessage::Finished { .. }) => self.on_job_message(node, other, now),
        }
    }

    /// Updates an agent's jobs with its observation.
    fn check_jobs(&mut self, node: &NodeId, now: Timestamp) {
        for id in self.jobs_of(node) {
            let bounds = self.rules.bounds;
            let (Some(live), Some(agent)) = (self.jobs.get_mut(&id), self.registry.get(node))
            else {
                continue;
            };
            let Some(side) = live.job.side_of(node) else {
                continue;
            };
            let seen = agent.observed.clone();
            let danger = live.health.observe(&live.job, side, &seen, bounds, now);
            let known = live.job.end(side).server == ServerState::Answers;
            if side == Side::Target && matches!(seen.postgres, Some(Err(_))) {
                self.cannot_be_asked(id, now);
            }
            if let Some(answers) = seen.postgres.filter(|seen| seen.is_ok() != known) {
                let answers = answers.map(drop);
                self.advance(id, JobEvent::Server { side, answers }, now);
            }
            if side == Side::Source && seen.lost_snapshots.contains(&id) {
                self.advance(id, JobEvent::SnapshotLost, now);
            }
            if let Some(fault) = danger {
                self.let_go_on(id, now);
                self.advance(id, JobEvent::Endangered { side, fault }, now);
            }
        }
    }

    fn note_version(&mut self, node: &NodeId, version: Option<u32>) {
        let Some(record) = self.nodes.get_mut(node) else {
            return;
        };
        if version.is_some() && record.postgres_version != version {
            record.postgres_version = version;
            self.out.writes.push(Write::Node(Box::new(record.clone())));
        }
    }

    /// A command ended: one of a job, of a query, or of a job that is over.
    pub(super) fn on_finished(
        &mut self,
        node: &NodeId,
        command: CommandId,
        outcome: Result<Outcome, Fault>,
        now: Timestamp,
    ) {
        let owner = self.jobs.iter().find_map(|(id, live)| {
            let own = |r: &&crate::job::Running| {
                r.id == command && r.work.side().node(&live.job.spec) == node
            };
            live.job.running.iter().find(own).map(|_| *id)
        });
        if let Some(id) = owner {
            if let Err(fault) = &outcome
                && fault.kind == FaultKind::StoreDamaged
            {
                self.spool_damaged(id, fault, now);
            }
            if outcome.is_ok() {
                self.note_returned(id, command);
            }
            if matches!(outcome, Ok(Outcome::TargetFacts(_))) {
                let around = self.around();
                if let Some(live) = self.jobs.get_mut(&id) {
                    *live.job.preflight.around = around;
                }
            }
            let outcome = Box::new(outcome);
            let event = JobEvent::Ended {
                id: command,
                outcome,
            };
            return self.advance(id, event, now);
        }
        if let Some(id) = self.snapshot_running(node, command) {
            return self.snapshot_finished(id, command, outcome, now);
        }
        self.send(node, CoordinatorMessage::Forget { id: command });
        if let Some(id) = self.switchover_running(node, command) {
            return self.switchover_finished(id, node, command, outcome, now);
        }
        self.query_finished(node, command, outcome, now);
    }

    /// Jobs in memory with that node on either side.
    fn jobs_of(&self, node: &NodeId) -> Vec<JobId> {
        self.jobs
            .iter()
            .filter(|(_, live)| live.job.side_of(node).is_some())
            .map(|(id, _)| *id)
            .collect()
    }

    /// The state of a node; an unknown one is uninitialized.
    pub(super) fn state_of(&self, node: &NodeId) -> NodeState {
        self.nodes
            .get(node)
            .map_or(NodeState::Uninitialized, |record| record.state)
    }
}

/// Whether that process held the job's snapshot open when it registered.
fn holds(registration: &Registration, job: JobId) -> bool {
    let mut held = registration.open_snapshots.iter();
    held.any(|held| held.job == job)
}
