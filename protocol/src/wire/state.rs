//! The states of a node and the phases of a job. `coordinator/src/job/state.rs` defines the
//! transitions.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The state of a node as a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeState {
    /// Known, but not a replica.
    Uninitialized,
    /// Preflight, slot and snapshot, schema.
    Preparing,
    /// Rows are being copied, or indexes and constraints built.
    Copying,
    /// The subscription runs but has not passed the fence yet.
    CatchingUp,
    /// Verified equal up to a fence, and following its source.
    Synchronized,
    /// Was synchronized; something broke or drifted since.
    Diverged,
    /// A job failed; the cause is stored with the node.
    Failed,
    /// Some or all tables are being copied again.
    Reinitializing,
}

impl NodeState {
    /// Every state, in the order of a node's life.
    pub const ALL: [Self; 8] = [
        Self::Uninitialized,
        Self::Preparing,
        Self::Copying,
        Self::CatchingUp,
        Self::Synchronized,
        Self::Diverged,
        Self::Failed,
        Self::Reinitializing,
    ];

    /// Whether the node has a running job.
    #[must_use]
    pub fn is_active(self) -> bool {
        matches!(
            self,
            Self::Preparing | Self::Copying | Self::CatchingUp | Self::Reinitializing
        )
    }

    /// The name in JSON, SQL and logs: snake case.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Uninitialized => "uninitialized",
            Self::Preparing => "preparing",
            Self::Copying => "copying",
            Self::CatchingUp => "catching_up",
            Self::Synchronized => "synchronized",
            Self::Diverged => "diverged",
            Self::Failed => "failed",
            Self::Reinitializing => "reinitializing",
        }
    }

    /// The state with that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|s| s.as_str() == name)
    }
}

impl fmt::Display for NodeState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The current step of a job, finer than the node's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Checks on both servers, before anything is touched.
    Preflight,
    /// Publication, slot and exported snapshot on the source; the plan.
    Snapshot,
    /// Schema on the target; indexes and constraints deferred.
    Schema,
    /// Rows.
    Copy,
    /// Indexes and the constraints that need one.
    Indexes,
    /// Foreign keys, triggers and everything else after the data.
    Constraints,
    /// Creating and enabling the subscription.
    Subscribe,
    /// Waiting until the subscription has passed the fence; meanwhile sequences and statistics.
    CatchUp,
    /// Comparing everything with the ledger.
    Prove,
    /// Removing what the job made.
    Cleanup,
    /// New rows take the place of the old ones (`reinit`).
    Swap,
}

impl Phase {
    /// Every phase, in the order of a job.
    pub const ALL: [Self; 11] = [
        Self::Preflight,
        Self::Snapshot,
        Self::Schema,
        Self::Copy,
        Self::Indexes,
        Self::Constraints,
        Self::Swap,
        Self::Subscribe,
        Self::CatchUp,
        Self::Prove,
        Self::Cleanup,
    ];

    /// The name in JSON, SQL and logs: snake case.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Preflight => "preflight",
            Self::Snapshot => "snapshot",
            Self::Schema => "schema",
            Self::Copy => "copy",
            Self::Indexes => "indexes",
            Self::Constraints => "constraints",
            Self::Subscribe => "subscribe",
            Self::CatchUp => "catch_up",
            Self::Prove => "prove",
            Self::Cleanup => "cleanup",
            Self::Swap => "swap",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}
