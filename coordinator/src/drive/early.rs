//! Questions that come before an agent has said what they are about.
//!
//! An agent looks at its PostgreSQL a moment after its session began. Somebody who asks for its prepared
//! slots in that moment waits for it, instead of being told to ask again.

use std::time::Duration;

use jiff::Timestamp;
use steep_protocol::NodeId;
use steep_protocol::message::api::{InitRequest, Order, Query};

use super::{Driver, Question, Reply};
use crate::job::time::after;
use crate::store::Store;

/// How long an agent is waited for. One that is silent for longer does not reach its PostgreSQL.
const PATIENCE: Duration = Duration::from_secs(5);

/// Questions that wait. Those beyond are answered at once.
const MAX: usize = 64;

/// One question that waits.
pub(super) struct Early {
    question: Question,
    reply: Reply,
    until: Timestamp,
}

impl Question {
    /// On which node the slots are that it is about.
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
    /// Answers a question, at once or as soon as the agent that it is about has looked at its slots.
    pub(super) fn on_ask(&mut self, question: Question, reply: Reply, now: Timestamp) {
        if self.is_early(&question) && self.early.len() < MAX {
            let until = after(now, PATIENCE);
            self.early.push(Early {
                question,
                reply,
                until,
            });
        } else {
            self.take_question(question, reply, now);
        }
    }

    /// Whether the agent is here and has not looked yet.
    fn is_early(&self, question: &Question) -> bool {
        let agent = question.slots_of().and_then(|node| self.registry.get(node));
        agent.is_some_and(|agent| agent.prepared.is_none())
    }

    /// Answers what need not wait any more, or has waited long enough.
    pub(super) fn tick_early(&mut self, now: Timestamp) {
        for early in std::mem::take(&mut self.early) {
            if early.until > now && self.is_early(&early.question) {
                self.early.push(early);
            } else {
                self.take_question(early.question, early.reply, now);
            }
        }
    }
}
