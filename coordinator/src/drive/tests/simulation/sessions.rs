//! Connections between agents and the coordinator: what is on its way is lost with them.

use steep_protocol::NodeId;
use steep_protocol::message::agent::{AgentMessage, CoordinatorMessage, Registration, Seat};
use tokio::sync::mpsc;

use super::super::super::{AgentInput, Wake};
use super::agent::Session;
use super::world::{Cluster, Node, Trace};
use crate::job::machine::Parting;
use crate::registry::{Link, SessionId};

impl Cluster {
    pub(super) fn join(&mut self, n: usize) {
        if self.driver.is_none() {
            self.nodes[n].agent.dials_at = self.now + 500;
            return;
        }
        self.sessions += 1;
        let session = SessionId(self.sessions);
        let (outbox, queue) = mpsc::channel(1_000);
        let Node { name, agent, .. } = &mut self.nodes[n];
        let registration = Registration {
            advertise: format!("{name}:7401"),
            version: "0.1.0".to_owned(),
            incarnation: agent.incarnation,
            open_snapshots: agent.open_snapshots(),
            admitted: agent.jobs.keys().copied().collect(),
            max_workers: 16,
            spool: Some("/spool".to_owned()),
            seat: Seat(n as u64 + 1),
            sequence_interval_seconds: 0,
        };
        agent.session = Some(Session {
            id: session,
            queue,
            sent: Default::default(),
            lineage: None,
        });
        agent.looks_at = self.now;
        let joined = AgentInput::Joined {
            node: name.clone(),
            link: Link { session, outbox },
            registration,
        };
        self.note(|| format!("agent {n} joins"));
        self.turn(vec![joined], Wake::Agents);
        self.nodes[n].agent.tell_again();
    }

    /// The connection breaks: what is on its way in either direction is lost.
    pub(super) fn cut(&mut self, n: usize, dials_at: i64) {
        let agent = &mut self.nodes[n].agent;
        agent.dials_at = dials_at;
        let Some(session) = agent.session.take() else {
            return;
        };
        self.note(|| format!("the session of agent {n} breaks until {dials_at}"));
        let noticed = self.now + self.dice.pick(&[0, 0, 500, 3_000, 10_000]);
        let name = self.nodes[n].name.clone();
        self.unnoticed.push((noticed, name, session.id));
    }

    /// The process dies with everything that it knows.
    pub(super) fn kill(&mut self, n: usize, until: i64) {
        self.cut(n, until);
        self.note(|| format!("agent {n} is killed until {until}"));
        self.nodes[n].agent.kill(until);
    }

    /// The process stops in order: its commands are interrupted without an outcome.
    pub(super) fn stop(&mut self, n: usize, until: i64) {
        self.deliver_all(n);
        self.note(|| format!("agent {n} is stopped until {until}"));
        if let Some(session) = self.nodes[n].agent.session.take() {
            let name = self.nodes[n].name.clone();
            self.left(name, session.id, Parting::Stopped);
        }
        self.nodes[n].agent.kill(until);
    }

    pub(super) fn left(&mut self, node: NodeId, session: SessionId, parting: Parting) {
        let left = AgentInput::Left {
            node,
            session,
            parting,
        };
        self.turn(vec![left], Wake::Agents);
    }

    /// What the agent has sent arrives, sooner or later.
    pub(super) fn deliver(&mut self, n: usize) {
        if self.dice.chance(850) {
            self.nodes[n].agent.report();
            self.deliver_all(n);
        }
    }

    fn deliver_all(&mut self, n: usize) {
        let Node { name, agent, .. } = &mut self.nodes[n];
        let Some(session) = &mut agent.session else {
            return;
        };
        let messages: Vec<AgentMessage> = session.sent.drain(..).collect();
        let (node, session) = (name.clone(), session.id);
        if messages.is_empty() {
            return;
        }
        if self.trace == Trace::Aloud {
            for message in &messages {
                if !matches!(
                    message,
                    AgentMessage::Observed(_) | AgentMessage::Audited { .. }
                ) {
                    let said = format!("{n} says {message:?}");
                    self.note(|| said);
                }
            }
        }
        let said = AgentInput::Said {
            node,
            session,
            messages,
        };
        self.turn(vec![said], Wake::Agents);
    }

    /// What the coordinator has sent arrives.
    pub(super) fn listen(&mut self, n: usize) {
        if !self.dice.chance(850) {
            return;
        }
        let now = self.now;
        let mut messages = Vec::new();
        let agent = &mut self.nodes[n].agent;
        if let Some(session) = &mut agent.session {
            while let Ok(message) = session.queue.try_recv() {
                messages.push(message);
            }
        }
        for message in messages {
            let due = now + self.dice.pick(&[0, 20, 200, 1_000, 3_000]);
            if self.trace == Trace::Aloud
                && !matches!(
                    message,
                    CoordinatorMessage::Mirror(_) | CoordinatorMessage::Audit(_)
                )
            {
                let told = format!("{n} is told {message:?}");
                self.note(|| told);
            }
            let Node { name, agent, .. } = &mut self.nodes[n];
            agent.obey(name, message, due);
        }
    }
}
