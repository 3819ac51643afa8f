//! The agents, as far as they are there: who has a session, what they said of themselves, what they
//! see, when they were last heard.
//!
//! Memory only; what must survive is in the store's node records. Decides nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use steep_protocol::message::agent::{
    CoordinatorMessage, Observed, PublicationStatus, Registration, SlotStatus, SubscriptionStatus,
};
use steep_protocol::message::handover::PreparedSlot;
use steep_protocol::pace::Pace;
use steep_protocol::{Fault, FaultKind, JobId, NodeId};
use tokio::sync::mpsc;

use crate::job::time::after;

/// One session of one agent, for the life of the coordinator's process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

/// The sending end of a session. Dropping it closes the session.
#[derive(Debug)]
pub struct Link {
    /// Which session.
    pub session: SessionId,
    /// What is to be sent; bounded.
    pub outbox: mpsc::Sender<CoordinatorMessage>,
}

/// An agent that has a session.
#[derive(Debug)]
pub struct Agent {
    link: Link,
    /// What it said of itself.
    pub registration: Registration,
    /// What it saw last.
    pub observed: Observed,
    /// Slots that are prepared there; nothing until it has said so.
    pub prepared: Option<Vec<PreparedSlot>>,
    /// Whether it has said in this session what its node's lineage is.
    pub lineage_known: bool,
    /// When it was last heard.
    pub last_heard: Timestamp,
    /// How often it speaks, as far as it has been told.
    pace: Pace,
}

/// All of them.
#[derive(Debug, Default)]
pub struct Registry {
    agents: BTreeMap<NodeId, Agent>,
    /// The process that was last rejected as a node's agent.
    rejected: BTreeMap<NodeId, u64>,
}

/// An agent that was heard within this time is alive: it speaks every 1.5 s.
const ALIVE: Duration = Duration::from_secs(5);

/// The agent's queue is full or its session is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the agent's session takes no more messages")]
pub struct Clogged;

impl Registry {
    /// Takes an agent's new session; one it had before is closed by dropping it.
    pub fn join(&mut self, node: NodeId, link: Link, registration: Registration, now: Timestamp) {
        let agent = Agent {
            pace: Pace::default(),
            link,
            registration,
            observed: Observed::default(),
            prepared: None,
            lineage_known: false,
            last_heard: now,
        };
        self.rejected.remove(&node);
        self.agents.insert(node, agent);
    }

    /// Why a process may not be the node's agent: another one is. The same process comes back after its
    /// network broke; one in the same seat shows that the one before is gone; and one that has said
    /// nothing for a while has given up its place.
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

    /// Notes that a process was rejected; whether that is news.
    pub fn note_rejected(&mut self, node: &NodeId, incarnation: u64) -> bool {
        self.rejected.insert(node.clone(), incarnation) != Some(incarnation)
    }

    /// Ends a session, if it is the node's current one.
    pub fn leave(&mut self, node: &NodeId, session: SessionId) -> Option<Agent> {
        self.agents
            .get(node)
            .filter(|agent| agent.link.session == session)?;
        self.agents.remove(node)
    }

    /// The agent, if that session is its current one; it has just been heard.
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

    /// [`Registry::get`], to note what it says.
    #[must_use]
    pub fn get_mut(&mut self, node: &NodeId) -> Option<&mut Agent> {
        self.agents.get_mut(node)
    }

    /// Slots prepared on the node, to note what becomes of them; nothing until its agent has said so.
    #[must_use]
    pub fn prepared_mut(&mut self, node: &NodeId) -> Option<&mut Vec<PreparedSlot>> {
        self.agents.get_mut(node)?.prepared.as_mut()
    }

    /// Whether the node's agent has a session.
    #[must_use]
    pub fn is_online(&self, node: &NodeId) -> bool {
        self.agents.contains_key(node)
    }

    /// Notes how closely somebody looks at each node, and which agents are to be told so.
    pub fn set_paces(&mut self, wanted: impl Fn(&NodeId) -> Pace) -> Vec<(NodeId, Pace)> {
        let mut news = Vec::new();
        for (node, agent) in &mut self.agents {
            let pace = wanted(node);
            if agent.pace != pace {
                agent.pace = pace;
                news.push((node.clone(), pace));
            }
        }
        news
    }

    /// Queues a message without waiting. `Ok` too where the agent has no session: what it must hear
    /// is said again when it registers.
    ///
    /// # Errors
    /// [`Clogged`] where the session takes no more; the caller ends it.
    pub fn send(&self, node: &NodeId, message: CoordinatorMessage) -> Result<(), Clogged> {
        let Some(agent) = self.agents.get(node) else {
            return Ok(());
        };
        let outbox = &agent.link.outbox;
        // A mirror row is replaced by the next one; it never takes the place of a command.
        let droppable = matches!(message, CoordinatorMessage::Mirror(_));
        if droppable && outbox.capacity() < outbox.max_capacity() / 2 {
            return Ok(());
        }
        outbox.try_send(message).map_err(|_| Clogged)
    }

    /// Messages waiting for the agent that is furthest behind.
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

    /// The job's slot as its source's agent saw it last.
    #[must_use]
    pub fn slot(&self, source: &NodeId, job: JobId) -> Option<&SlotStatus> {
        self.agents
            .get(source)?
            .observed
            .slots
            .iter()
            .find(|slot| slot.job == job)
    }
}

impl Agent {
    /// Whether its PostgreSQL answered when it last looked, so that what it does not list is not
    /// there.
    #[must_use]
    pub fn sees(&self) -> bool {
        matches!(self.observed.postgres, Some(Ok(_)))
    }

    /// The job's subscription as it saw it last.
    #[must_use]
    pub fn subscription(&self, job: JobId) -> Option<&SubscriptionStatus> {
        self.observed.subscriptions.iter().find(|s| s.job == job)
    }

    /// The digest over the columns of what the job replicates, as it saw them last.
    #[must_use]
    pub fn digest(&self, job: JobId) -> Option<&str> {
        let found = self.observed.digests.iter().find(|d| d.job == job);
        found.map(|d| d.digest.as_str())
    }

    /// The job's publication as it saw it last.
    #[must_use]
    pub fn publication(&self, job: JobId) -> Option<&PublicationStatus> {
        self.observed.publications.iter().find(|p| p.job == job)
    }

    /// The job's slot as it saw it last.
    #[must_use]
    pub fn slot(&self, job: JobId) -> Option<&SlotStatus> {
        self.observed.slots.iter().find(|s| s.job == job)
    }
}
