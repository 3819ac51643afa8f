//! Agents that have a session: their registration, their last observation, when they were last heard.
//!
//! In memory only; what must survive is in the store's node records. Decides nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use steep_protocol::message::agent::{
    CoordinatorMessage, Observed, PublicationStatus, Registration, SlotStatus, SubscriptionStatus,
};
use steep_protocol::message::handover::PreparedSlot;
use steep_protocol::report_interval::ReportInterval;
use steep_protocol::{Fault, FaultKind, JobId, NodeId, SnapshotId};
use tokio::sync::mpsc;

use crate::job::health::wal_held::template_of;
use crate::job::time::after;
use crate::store::NodeRecord;

/// A session of an agent; unique within the coordinator's process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

/// The sending end of a session. Dropping it closes the session.
#[derive(Debug)]
pub struct Link {
    /// The session.
    pub session: SessionId,
    /// Messages to send; bounded.
    pub outbox: mpsc::Sender<CoordinatorMessage>,
}

/// An agent that has a session.
#[derive(Debug)]
pub struct Agent {
    link: Link,
    /// Its registration.
    pub registration: Registration,
    /// Its last observation.
    pub observed: Observed,
    /// Slots prepared on its node for backups; `None` until it has reported them.
    pub prepared: Option<Vec<PreparedSlot>>,
    /// Template slots of stored snapshots.
    pub templates: Vec<PreparedSlot>,
    /// Whether it has reported its node's lineage in this session.
    pub lineage_known: bool,
    /// The note of the unfinished job on its node, as last reported.
    pub note: Option<String>,
    /// When permissions of jobs that nobody remembers are revoked, unless they were.
    pub unknown_until: Option<Timestamp>,
    /// When its last message arrived.
    pub last_heard: Timestamp,
    /// The interval it was last told.
    interval: ReportInterval,
}

impl Agent {
    /// Notes the slots that it has reported: those with reserved names are templates. Returns whether a
    /// template has changed.
    pub fn note_prepared(&mut self, slots: Vec<PreparedSlot>) -> bool {
        let template = |slot: &PreparedSlot| slot.replication.slot.is_reserved();
        let (templates, prepared) = slots.into_iter().partition(template);
        let changed = self.templates != templates;
        self.templates = templates;
        self.prepared = Some(prepared);
        changed
    }

    /// Its prepared slots and its templates.
    pub fn waiting_slots(&self) -> impl Iterator<Item = &PreparedSlot> {
        self.prepared.iter().flatten().chain(&self.templates)
    }

    /// The template slot of a snapshot, as last reported.
    #[must_use]
    pub fn template(&self, snapshot: SnapshotId) -> Option<&PreparedSlot> {
        let mut templates = self.templates.iter();
        templates.find(|slot| template_of(slot) == Some(snapshot))
    }
}

/// All agents that have a session.
#[derive(Debug, Default)]
pub struct Registry {
    agents: BTreeMap<NodeId, Agent>,
    /// The incarnation of the process last rejected as a node's agent.
    rejected: BTreeMap<NodeId, u64>,
    /// Nodes whose agents have had a session since the coordinator started.
    met: BTreeSet<NodeId>,
}

/// An agent heard within this time is alive: agents send something every 1.5 s.
const ALIVE: Duration = Duration::from_secs(5);

/// A job that the coordinator does not remember may still be adopted by then: its target's agent comes back later.
const UNKNOWN_FOR: Duration = Duration::from_secs(30);

/// The agent's queue is full or its session has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the agent's session takes no more messages")]
pub struct Clogged;

impl Registry {
    /// Adds an agent's new session. Its previous one, if any, is dropped and so closed.
    pub fn join(&mut self, node: NodeId, link: Link, registration: Registration, now: Timestamp) {
        let agent = Agent {
            interval: ReportInterval::default(),
            link,
            registration,
            observed: Observed::default(),
            prepared: None,
            templates: Vec::new(),
            lineage_known: false,
            note: None,
            unknown_until: Some(after(now, UNKNOWN_FOR)),
            last_heard: now,
        };
        self.rejected.remove(&node);
        self.met.insert(node.clone());
        self.agents.insert(node, agent);
    }

    /// The nodes whose agents' unknown permissions are due to be revoked, each once.
    pub fn unknown_due(&mut self, now: Timestamp) -> Vec<NodeId> {
        let due = |agent: &mut Agent| agent.unknown_until.take_if(|at| *at <= now).is_some();
        let agents = self.agents.iter_mut();
        let due = agents.filter_map(|(node, agent)| due(agent).then(|| node.clone()));
        due.collect()
    }

    /// Whether the node's agent has had a session since the coordinator started.
    #[must_use]
    pub fn has_met(&self, node: &NodeId) -> bool {
        self.met.contains(node)
    }

    /// Why a process may not be the node's agent: another process is. Accepted are the same process
    /// after a network failure, a process in the same seat, since the one before it must have ended,
    /// and any process once the known one has been silent for [`ALIVE`].
    #[must_use]
    pub fn rejects(
        &self,
        node: &NodeId,
        registration: &Registration,
        now: Timestamp,
    ) -> Option<Fault> {
        let agent = self.agents.get(node)?;
        let known = &agent.registration;
        let same = known.incarnation == registration.incarnation || known.seat == registration.seat;
        if same || after(agent.last_heard, ALIVE) <= now {
            return None;
        }
        let text = format!(
            "another process is the agent of {node} already; it is reached at {}",
            known.advertise
        );
        Some(Fault::new(FaultKind::Unauthorized, text).on(node).hint(
            "give each agent a node name and a certificate of its own, or stop the other process",
        ))
    }

    /// Notes that a process was rejected. Returns whether it is another process than the last time.
    pub fn note_rejected(&mut self, node: &NodeId, incarnation: u64) -> bool {
        self.rejected.insert(node.clone(), incarnation) != Some(incarnation)
    }

    /// Removes a session, if it is the node's current one.
    pub fn leave(&mut self, node: &NodeId, session: SessionId) -> Option<Agent> {
        self.agents
            .get(node)
            .filter(|agent| agent.link.session == session)?;
        self.agents.remove(node)
    }

    /// Notes that the agent was heard and returns it, if that session is its current one.
    pub fn heard(
        &mut self,
        node: &NodeId,
        session: SessionId,
        now: Timestamp,
    ) -> Option<&mut Agent> {
        let agent = self
            .agents
            .get_mut(node)
            .filter(|a| a.link.session == session)?;
        agent.last_heard = now;
        Some(agent)
    }

    /// The node's agent, if it has a session.
    #[must_use]
    pub fn get(&self, node: &NodeId) -> Option<&Agent> {
        self.agents.get(node)
    }

    /// [`Registry::get`], mutable.
    #[must_use]
    pub fn get_mut(&mut self, node: &NodeId) -> Option<&mut Agent> {
        self.agents.get_mut(node)
    }

    /// Slots prepared on the node; `None` until its agent has reported them.
    #[must_use]
    pub fn prepared_mut(&mut self, node: &NodeId) -> Option<&mut Vec<PreparedSlot>> {
        self.agents.get_mut(node)?.prepared.as_mut()
    }

    /// Whether the node's agent has a session.
    #[must_use]
    pub fn is_online(&self, node: &NodeId) -> bool {
        self.agents.contains_key(node)
    }

    /// Sets each agent's interval and returns those that changed.
    pub fn set_report_intervals(
        &mut self,
        wanted: impl Fn(&NodeId) -> ReportInterval,
    ) -> Vec<(NodeId, ReportInterval)> {
        let mut news = Vec::new();
        for (node, agent) in &mut self.agents {
            let interval = wanted(node);
            if agent.interval != interval {
                agent.interval = interval;
                news.push((node.clone(), interval));
            }
        }
        news
    }

    /// Queues a message without waiting. `Ok` even if the agent has no session: what it must know is
    /// sent again when it registers.
    ///
    /// # Errors
    /// [`Clogged`] if the session takes no more messages; the caller ends it.
    pub fn send(&self, node: &NodeId, message: CoordinatorMessage) -> Result<(), Clogged> {
        let Some(agent) = self.agents.get(node) else {
            return Ok(());
        };
        let outbox = &agent.link.outbox;
        // The next mirror row replaces this one; commands have priority.
        let droppable = matches!(message, CoordinatorMessage::Mirror(_));
        if droppable && outbox.capacity() < outbox.max_capacity() / 2 {
            return Ok(());
        }
        outbox.try_send(message).map_err(|_| Clogged)
    }

    /// The length of the longest outbox.
    #[must_use]
    pub fn longest_outbox(&self) -> usize {
        let waiting = |agent: &Agent| {
            let outbox = &agent.link.outbox;
            outbox.max_capacity() - outbox.capacity()
        };
        self.agents.values().map(waiting).max().unwrap_or(0)
    }

    /// The node's current session.
    #[must_use]
    pub fn session(&self, node: &NodeId) -> Option<SessionId> {
        self.agents.get(node).map(|agent| agent.link.session)
    }

    /// A node's slot as its source's agent last observed it.
    #[must_use]
    pub fn slot(&self, record: &NodeRecord) -> Option<&SlotStatus> {
        self.agents.get(record.source.as_ref()?)?.slot_of(record)
    }
}

impl Agent {
    /// Whether its PostgreSQL answered the last observation, so that what is not listed does not
    /// exist.
    #[must_use]
    pub fn postgres_answers(&self) -> bool {
        matches!(self.observed.postgres, Some(Ok(_)))
    }

    /// The job's subscription as last observed.
    #[must_use]
    pub fn subscription(&self, job: JobId) -> Option<&SubscriptionStatus> {
        self.observed.subscriptions.iter().find(|s| s.job == job)
    }

    /// The last observed digest over the columns of what the job replicates.
    #[must_use]
    pub fn digest(&self, job: JobId) -> Option<&str> {
        let found = self.observed.digests.iter().find(|d| d.job == job);
        found.map(|d| d.digest.as_str())
    }

    /// The job's publication as last observed.
    #[must_use]
    pub fn publication(&self, job: JobId) -> Option<&PublicationStatus> {
        self.observed.publications.iter().find(|p| p.job == job)
    }

    /// A slot of that replication as last observed.
    #[must_use]
    pub fn slot(&self, job: JobId) -> Option<&SlotStatus> {
        self.observed.slots.iter().find(|s| s.job == job)
    }

    /// The slot of a node that follows this one, as last observed: nodes made from one snapshot share the
    /// replication's id.
    #[must_use]
    pub fn slot_of(&self, record: &NodeRecord) -> Option<&SlotStatus> {
        match &record.slot {
            Some(name) => self.observed.slots.iter().find(|s| s.slot == *name),
            None => self.slot(record.replication()?),
        }
    }
}
