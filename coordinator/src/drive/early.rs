//! Questions that come before agents have said what is needed to answer them.
//!
//! An agent reports its slots a moment after its session started. Questions about them wait until then. After a
//! restart of the coordinator, agents are back within seconds: nodes are not made from a snapshot before.

use std::time::Duration;

use jiff::Timestamp;
use steep_protocol::NodeId;
use steep_protocol::message::api::{InitRequest, Order, Query};

use super::{Driver, Question, Reply};
use crate::job::time::after;
use crate::store::Store;

/// How long to wait for an agent. One that takes longer cannot reach its PostgreSQL.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long agents may take to be back once the coordinator has started.
const RETURN: Duration = Duration::from_secs(10);

/// Maximum number of waiting questions. Others are answered at once.
const MAX: usize = 64;

/// A waiting question.
pub(super) struct Early {
    question: Question,
    reply: Reply,
    until: Timestamp,
}

impl Question {
    /// The node whose prepared slots it is about, if it is.
    fn slots_of(&self) -> Option<&NodeId> {
        match self {
            Self::Query(Query::Prepared { node })
            | Self::Order(Order::DropPrepared { node, .. }, _) => Some(node),
            Self::Query(Query::Doctor(InitRequest::Complete(spec)))
            | Self::Order(Order::Init(InitRequest::Complete(spec)), _) => Some(&spec.job.source),
            _ => None,
        }
    }
}

impl<S: Store> Driver<S> {
    /// Answers a question, at once or when the agents have said what it needs.
    pub(super) fn on_ask(&mut self, question: Question, reply: Reply, now: Timestamp) {
        if self.is_early(&question, now) && self.early.len() < MAX {
            let until = match self.awaits_agents(&question, now) {
                true => after(now, RETURN),
                false => after(now, PATIENCE),
            };
            self.early.push(Early {
                question,
                reply,
                until,
            });
        } else {
            self.take_question(question, reply, now);
        }
    }

    /// Whether the agent is connected and has not reported its slots yet, or is expected back.
    fn is_early(&self, question: &Question, now: Timestamp) -> bool {
        let agent = question.slots_of().and_then(|node| self.registry.get(node));
        agent.is_some_and(|agent| agent.prepared.is_none()) || self.awaits_agents(question, now)
    }

    /// Whether the coordinator has just started, and an agent that the question needs is not back yet.
    fn awaits_agents(&self, question: &Question, now: Timestamp) -> bool {
        now < after(self.clock.began, RETURN)
            && self
                .agents_for(question)
                .iter()
                .any(|node| self.nodes.contains_key(node) && !self.registry.has_met(node))
    }

    /// The agents of nodes to be made from a snapshot, and its source's.
    fn agents_for(&self, question: &Question) -> Vec<NodeId> {
        match question {
            Question::Query(Query::Doctor(InitRequest::Apply(spec)))
            | Question::Order(Order::Init(InitRequest::Apply(spec)), _) => {
                let targets = spec.jobs.iter().map(|job| job.target.clone());
                targets.chain(self.snapshot_source(spec.snapshot)).collect()
            }
            Question::Query(Query::FindSnapshot { node, .. }) => vec![node.clone()],
            _ => Vec::new(),
        }
    }

    /// Answers questions that need not wait any longer.
    pub(super) fn tick_early(&mut self, now: Timestamp) {
        for early in std::mem::take(&mut self.early) {
            if early.until > now && self.is_early(&early.question, now) {
                self.early.push(early);
            } else {
                self.take_question(early.question, early.reply, now);
            }
        }
    }
}
