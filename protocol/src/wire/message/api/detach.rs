//! A node that stops following, and the sequences of one that follows.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::wire::{NodeId, NodeState};

/// What a detach would do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DetachPlan {
    /// The node.
    pub node_id: NodeId,
    /// The node that it follows.
    pub source_node: NodeId,
    /// The node's state.
    pub state: NodeState,
    /// Whether the source's agent and PostgreSQL can be reached.
    pub source_reachable: bool,
    /// The subscription that is dropped on the node, with its origin.
    pub subscription: String,
    /// The slot that is dropped on the source.
    pub slot: String,
    /// The publication on the source.
    pub publication: String,
    /// Nodes that use the same publication, which stays for them.
    pub shared_with: Vec<NodeId>,
    /// WAL that the source has and the node has not confirmed, where known.
    pub lag_bytes: Option<u64>,
    /// WAL that the slot keeps on the source, where known.
    pub wal_held_bytes: Option<u64>,
    /// When the node was detached, if it already is.
    pub detached_at: Option<Timestamp>,
}

/// A node that no longer follows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DetachedFrom {
    /// The node that it followed.
    pub source_node: NodeId,
    /// When that ended.
    pub detached_at: Timestamp,
    /// Who ended it.
    pub operator: String,
}

/// How the sequences of a node that follows are kept up.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SequencesView {
    /// When they were last set to the source's.
    pub set_at: Option<Timestamp>,
    /// How many follow.
    pub followed: u64,
    /// Why some or all of them are not set.
    pub warning: Option<String>,
}
