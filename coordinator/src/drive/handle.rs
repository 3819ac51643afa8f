//! How everybody else speaks with the loop: what agents' sessions bring, what operators' streams ask, and
//! what they are answered.

use std::sync::{Arc, OnceLock};

use steep_protocol::message::agent::{AgentMessage, Registration};
use steep_protocol::message::api::{
    ApiReply, AuditView, EndView, EventView, JobView, NodeView, Order, ProgressView, Query,
};
use steep_protocol::message::job::TableFilter;
use steep_protocol::message::schema::{SchemaCursor, SchemaPage};
use steep_protocol::{Fault, JobId, NodeId};
use tokio::sync::{mpsc, oneshot, watch};

use super::Gauges;
use crate::job::machine::Parting;
use crate::registry::{Link, SessionId};
use crate::store::EventQuery;

/// What comes from the agents' sessions.
#[derive(Debug)]
pub enum AgentInput {
    /// A session began.
    Joined {
        /// Whose.
        node: NodeId,
        /// Its sending end.
        link: Link,
        /// What the agent said of itself.
        registration: Registration,
    },
    /// Something was said in it.
    Said {
        /// By whom.
        node: NodeId,
        /// In which session.
        session: SessionId,
        /// What, in order.
        messages: Vec<AgentMessage>,
    },
    /// It ended.
    Left {
        /// Whose.
        node: NodeId,
        /// Which.
        session: SessionId,
        /// What became of the agent.
        parting: Parting,
    },
}

/// What an operator's stream asks the loop. A stream that goes on asks many times.
#[derive(Debug, Clone)]
pub enum Question {
    /// [`Answer::Replies`].
    Query(Query),
    /// [`Answer::Accepted`] where jobs begin, else [`Answer::Replies`].
    Order(Order, Operator),
    /// A page of events.
    Events(EventQuery),
    /// The newest events.
    Recent {
        /// Of which node; of all where `None`.
        node: Option<NodeId>,
        /// At most so many.
        limit: u32,
    },
    /// A page of the audit trail.
    Audit(EventQuery),
    /// How far a node's job is.
    Progress {
        /// The node.
        node: NodeId,
        /// Whether it is to be followed.
        interest: Interest,
    },
    /// Every node, every job at work, and where the event log ends.
    Overview {
        /// Jobs that are followed already.
        known: Vec<JobId>,
    },
    /// A node's last job in full.
    Job {
        /// The node.
        node: NodeId,
        /// The last job that is over and was answered; it is not read again.
        seen: Option<JobId>,
        /// Whether it is asked for again and again.
        interest: Interest,
    },
    /// A page of a node's schema.
    Schema {
        /// The node.
        node: NodeId,
        /// Of which tables.
        filter: TableFilter,
        /// Which page, unless the first.
        cursor: Option<SchemaCursor>,
    },
    /// Everything that metrics tell.
    Gauges,
    /// Nothing: that there is an answer shows that the loop turns.
    Alive,
}

/// Whether who asks watches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interest {
    /// One answer is all.
    Once,
    /// It will want to know what becomes of it.
    GoesOn,
}

/// Who asks, as far as the connection shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operator {
    /// The name in the certificate.
    pub name: String,
    /// The certificate's serial number.
    pub certificate: String,
    /// The address the request came from, without its port.
    pub address: String,
}

/// What the loop answers.
#[derive(Debug)]
pub enum Answer {
    /// All there is to say to the operator.
    Replies(Vec<ApiReply>),
    /// The jobs are stored and run.
    Accepted {
        /// Each, to follow.
        jobs: Vec<Follow>,
        /// The last event before they began.
        after: u64,
    },
    /// Events, oldest first.
    Events(Vec<EventView>),
    /// Audit entries, oldest first.
    Audit(Vec<AuditView>),
    /// How far the node's last job is.
    Progress {
        /// Now, with every table.
        view: Box<ProgressView>,
        /// How it goes on, while it does and where that was asked for.
        follow: Option<Follow>,
        /// How it ended, once it has.
        end: Option<Box<EndView>>,
    },
    /// Everything there is.
    Overview {
        /// Nodes by name.
        nodes: Vec<NodeView>,
        /// Jobs that have not ended and are not followed yet.
        jobs: Vec<Follow>,
        /// The number of the last event; 0 where there is none.
        last_event: u64,
    },
    /// A job in full; `None` where there is none, or it is the one that was seen.
    Job(Option<Box<JobView>>),
    /// A page of a schema.
    Schema {
        /// The page.
        page: Box<SchemaPage>,
        /// Where it goes on.
        next: Option<SchemaCursor>,
    },
    /// What metrics tell.
    Gauges(Box<Gauges>),
    /// The loop turns.
    Alive,
}

impl From<ApiReply> for Answer {
    fn from(reply: ApiReply) -> Self {
        Self::Replies(vec![reply])
    }
}

/// Where an answer goes.
pub type Reply = oneshot::Sender<Result<Answer, Fault>>;

/// A question and where its answer goes.
#[derive(Debug)]
pub struct Ask {
    /// The question.
    pub question: Question,
    /// Where the answer goes. Dropped unanswered only when the coordinator stops.
    pub reply: Reply,
}

/// A running job, watched.
#[derive(Debug, Clone)]
pub struct Follow {
    /// The target.
    pub node: NodeId,
    /// The job.
    pub job: JobId,
    /// Its newest state.
    pub feed: watch::Receiver<Feed>,
}

/// The newest state of a job.
#[derive(Debug, Clone)]
pub struct Feed {
    /// Grows with every change.
    pub version: u64,
    /// How far it is.
    pub view: Arc<ProgressView>,
    /// How it ended, once it has.
    pub end: Option<Arc<EndView>>,
}

/// How sessions and streams reach the loop.
#[derive(Debug, Clone)]
pub struct Handle {
    /// For agents' sessions.
    pub agents: mpsc::Sender<AgentInput>,
    /// For operators' streams.
    pub asks: mpsc::Sender<Ask>,
    /// Changes whenever a feed or the event log has something new.
    pub pulse: watch::Receiver<u64>,
    /// Why the loop has ended, where its store failed.
    pub failure: Arc<OnceLock<String>>,
}
