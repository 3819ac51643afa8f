//! Questions about prepared slots that come before the agent has reported them.
//!
//! An agent reports its slots a moment after its session started. Questions about them wait until then.

use std::time::Duration;

use jiff::Timestamp;
use steep_protocol::NodeId;
use steep_protocol::message::api::{InitRequest, Order, Query};

use super::{Driver, Question, Reply};
use crate::job::time::after;
use crate::store::Store;

/// How long to wait for an agent. One that takes longer cannot reach its PostgreSQL.
const PATIENCE: Duration = Duration::from_secs(5);

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
    /// Answers a question, at once or when the agent has reported its slots.
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

    /// Whether the agent is connected and has not reported its slots yet.
    fn is_early(&self, question: &Question) -> bool {
        let agent = question.slots_of().and_then(|node| self.registry.get(node));
        agent.is_some_and(|agent| agent.prepared.is_none())
    }

    /// Answers questions that need not wait any longer.
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
