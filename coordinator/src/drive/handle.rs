//! The loop's interface: input from agents' sessions, questions of operators' streams, and answers.

use std::sync::{Arc, OnceLock};

use steep_protocol::message::agent::{AgentMessage, Registration, WorkProgress};
use steep_protocol::message::api::{
    ApiReply, AuditView, EndView, EventView, JobView, NodeView, Order, ProgressView, Query,
};
use steep_protocol::message::job::TableFilter;
use steep_protocol::message::schema::{SchemaCursor, SchemaPage};
use steep_protocol::message::snapshot::SnapshotView;
use steep_protocol::message::switchover::SwitchoverView;
use steep_protocol::message::verify::{TableReport, VerifyReport};
use steep_protocol::{Fault, JobId, NodeId};
use tokio::sync::{mpsc, oneshot, watch};

use super::Gauges;
use crate::job::machine::Parting;
use crate::registry::{Link, SessionId};
use crate::store::EventQuery;

/// Input from agents' sessions.
#[derive(Debug)]
pub enum AgentInput {
    /// A session started.
    Joined {
        /// The agent's node.
        node: NodeId,
        /// The session's sending end.
        link: Link,
        /// The agent's registration.
        registration: Registration,
    },
    /// Messages arrived.
    Said {
        /// The agent's node.
        node: NodeId,
        /// The session.
        session: SessionId,
        /// The messages in order.
        messages: Vec<AgentMessage>,
    },
    /// A session ended.
    Left {
        /// The agent's node.
        node: NodeId,
        /// The session.
        session: SessionId,
        /// Whether the agent was stopped.
        parting: Parting,
    },
}

/// A question of an operator's stream. Followers and watchers ask many.
#[derive(Debug, Clone)]
pub enum Question {
    /// Answered with [`Answer::Replies`].
    Query(Query),
    /// Answered with [`Answer::Accepted`] if jobs start, else [`Answer::Replies`].
    Order(Order, Operator),
    /// A page of events.
    Events(EventQuery),
    /// The newest events.
    Recent {
        /// The node; `None` for all.
        node: Option<NodeId>,
        /// Maximum number of events.
        limit: u32,
    },
    /// A page of the audit trail.
    Audit(EventQuery),
    /// The progress of a node's job.
    Progress {
        /// The node.
        node: NodeId,
        /// Whether to follow it.
        interest: Interest,
    },
    /// All nodes, all running jobs and the number of the last event.
    Overview {
        /// Jobs that are already followed.
        known: Vec<JobId>,
    },
    /// A node's last job in full.
    Job {
        /// The node.
        node: NodeId,
        /// A job that has ended and was answered before; it is not read again.
        seen: Option<JobId>,
        /// Whether it is watched.
        interest: Interest,
    },
    /// A page of a node's schema.
    Schema {
        /// The node.
        node: NodeId,
        /// The tables.
        filter: TableFilter,
        /// The page, unless the first.
        cursor: Option<SchemaCursor>,
    },
    /// The values of all metrics.
    Gauges,
    /// A health check: any answer shows that the loop runs.
    Alive,
}

/// How long an operator is interested in a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interest {
    /// Only for one answer.
    Once,
    /// Until the job ends or the operator leaves.
    Ongoing,
}

/// Who sent a request, according to the connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operator {
    /// The name in the certificate.
    pub name: String,
    /// The certificate's serial number.
    pub certificate: String,
    /// The address the request came from, without its port.
    pub address: String,
}

/// Snapshots that a watcher is told of: more than fit on a screen.
pub(super) const SNAPSHOTS_WATCHED: usize = 50;

/// What the loop answers.
#[derive(Debug)]
pub enum Answer {
    /// All replies to the operator.
    Replies(Vec<ApiReply>),
    /// The jobs are stored and have started.
    Accepted {
        /// The jobs, to follow.
        jobs: Vec<Follow>,
        /// The number of the last event before they started.
        after: u64,
    },
    /// Events, oldest first.
    Events(Vec<EventView>),
    /// Audit entries, oldest first.
    Audit(Vec<AuditView>),
    /// The progress of the node's last job.
    Progress {
        /// Its current progress, with all tables.
        view: Box<ProgressView>,
        /// Its future progress, if it is running and that was asked for.
        follow: Option<Follow>,
        /// How it ended, once it has.
        end: Option<Box<EndView>>,
    },
    /// The whole cluster.
    Overview {
        /// Nodes by name.
        nodes: Vec<NodeView>,
        /// Jobs that have not ended and are not followed yet.
        jobs: Vec<Follow>,
        /// The newest snapshots of which something is left, oldest first.
        snapshots: Vec<SnapshotView>,
        /// The number of the last event; 0 if there is none.
        last_event: u64,
    },
    /// A job in full; `None` if there is none, or if it was answered before.
    Job(Option<Box<JobView>>),
    /// A page of a schema.
    Schema {
        /// The page.
        page: Box<SchemaPage>,
        /// The next page, if any.
        next: Option<SchemaCursor>,
    },
    /// The progress and the result of a comparison of rows.
    Verifying(watch::Receiver<VerifyFeed>),
    /// The newest state of a switchover, until it has ended.
    Switching(watch::Receiver<SwitchoverView>),
    /// The values of all metrics.
    Gauges(Box<Gauges>),
    /// The loop runs.
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
    /// Where its answer goes. Dropped without an answer only when the coordinator stops.
    pub reply: Reply,
}

/// A job that is followed.
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
    /// Its progress.
    pub view: Arc<ProgressView>,
    /// How it ended, once it has.
    pub end: Option<Arc<EndView>>,
}

/// The newest of a comparison of rows.
#[derive(Debug, Default)]
pub struct VerifyFeed {
    /// The tables that are compared.
    pub tables: Vec<Arc<TableReport>>,
    /// How far it is, once something was heard of it.
    pub work: Option<WorkProgress>,
    /// What came of it.
    pub ended: Option<Result<Arc<VerifyReport>, Fault>>,
}

/// The channels to the loop.
#[derive(Debug, Clone)]
pub struct Handle {
    /// For agents' sessions.
    pub agents: mpsc::Sender<AgentInput>,
    /// For operators' streams.
    pub asks: mpsc::Sender<Ask>,
    /// Changes whenever a feed, the event log or an observation changes.
    pub pulse: watch::Receiver<u64>,
    /// Why the loop ended, if its store failed.
    pub failure: Arc<OnceLock<String>>,
}
