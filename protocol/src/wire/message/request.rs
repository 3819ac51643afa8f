//! What an operator asks of the coordinator: one request a stream, which says what is answered.
//!
//! A request goes from the command line to the coordinator's loop as it is. [`Query`] and [`Order`] are
//! answered once; the other requests are told on, page by page or as often as something changes.

use serde::{Deserialize, Serialize};

use super::handover::{CompleteSpec, PrepareSpec, SlotName};
use super::job::{CancelledData, JobSpec, TableFilter};
use crate::wire::NodeId;

/// The first and only message of an operator on its stream. Replies follow, until
/// [`ApiReply::End`](super::api::ApiReply::End) or [`ApiReply::Fault`](super::api::ApiReply::Fault).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum ApiRequest {
    /// What changes nothing.
    Query(Query),
    /// What changes something.
    Order(Order),
    /// `Event`s, oldest first; with `follow`, on and on.
    Events {
        /// Of which node; every node where `None`.
        node: Option<NodeId>,
        /// Whether to go on with new ones.
        follow: bool,
        /// Only those after this number ([`EventView::seq`](super::api::EventView::seq)); 0 for all.
        after: u64,
    },
    /// `Audit`s, oldest first: every order and who gave it.
    Audit {
        /// About which node, on either side; every node where `None`.
        node: Option<NodeId>,
    },
    /// `Progress` once, or with `follow` until the job has `Ended`.
    Progress {
        /// The node.
        node: NodeId,
        /// Whether to go on.
        follow: bool,
    },
    /// The node's last `Event`s and `Job`, once, or with `follow` the job again whenever it has changed.
    /// A node that never had a job gives events only.
    Job {
        /// The node.
        node: NodeId,
        /// Whether to go on.
        follow: bool,
    },
    /// The whole cluster, on and on: `Event`s, the last [`crate::limits::RECENT_EVENTS`] first and then
    /// each new one; `Nodes` with all nodes and then with those that changed; `Progress` of every job at
    /// work, and its `Ended`. What changed is said within 500 ms; a slow reader skips what was overtaken.
    Watch,
    /// `Schema` pages: a node's schema as it is now.
    Schema {
        /// The node.
        node: NodeId,
        /// Of which tables.
        filter: TableFilter,
    },
}

/// A question that is answered once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Query {
    /// `Nodes`, of one node or of all.
    Nodes {
        /// Which; every node where `None`.
        node: Option<NodeId>,
    },
    /// How the node's last job that is over ended: `Ended`, with its
    /// [`EndView::report`](super::api::EndView::report).
    Report {
        /// The node.
        node: NodeId,
    },
    /// `Prepared`: the slots that are prepared on a node.
    Prepared {
        /// The node.
        node: NodeId,
    },
    /// `Missing`: what a node lacks of its source's schema.
    Missing {
        /// The node.
        node: NodeId,
    },
    /// `Findings` for each target: the preflight alone.
    Doctor(InitRequest),
}

/// What changes something. Each order is kept in the audit trail with the certificate it came with,
/// whether it was carried out or refused.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Order {
    /// `Accepted` once all jobs are stored, then, for each, `Progress`, `Event` and `Ended`. Closing the
    /// stream leaves the jobs running.
    Init(InitRequest),
    /// Back to uninitialized, everything of ours removed; `End` when that is done.
    Cancel {
        /// The node.
        node: NodeId,
        /// What becomes of the rows.
        data: CancelledData,
    },
    /// As [`Order::Cancel`], also of jobs that the coordinator does not remember and of nodes that are
    /// gone; `Left` with what cannot be reached and stays.
    GiveUp {
        /// The node.
        node: NodeId,
        /// What becomes of the rows.
        data: CancelledData,
        /// What becomes of the node.
        afterwards: Afterwards,
    },
    /// `Captured`: the node stores its tables' fingerprints as they are now.
    Capture {
        /// The node.
        node: NodeId,
        /// Whose fingerprints it stores as well, for `steep_repl.compare_fingerprints`.
        peer: Option<NodeId>,
    },
    /// `Rebuilt` once the node has tried again what could not be made.
    Rebuild {
        /// The node.
        node: NodeId,
    },
    /// `Findings` of the source, where there are any, then `Prepared` with the slot that was made.
    Prepare(PrepareSpec),
    /// `End` once the prepared slot is dropped.
    DropPrepared {
        /// The source.
        node: NodeId,
        /// The slot.
        slot: SlotName,
    },
}

/// How targets are to be initialised.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum InitRequest {
    /// From the beginning: one spec per target.
    Copy(Vec<JobSpec>),
    /// Jobs that failed and have kept what they had go on. Of each spec workers, rate, compression and
    /// time count; what is copied stays as it was asked for first.
    Resume(Vec<JobSpec>),
    /// A target whose rows come from a backup.
    Complete(Box<CompleteSpec>),
}

impl InitRequest {
    /// The specs, one per target.
    #[must_use]
    pub fn specs(&self) -> &[JobSpec] {
        match self {
            Self::Copy(specs) | Self::Resume(specs) => specs,
            Self::Complete(spec) => std::slice::from_ref(&spec.job),
        }
    }
}

/// What becomes of a node once it is given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Afterwards {
    /// It is uninitialized.
    Keep,
    /// It is forgotten.
    Forget,
}
