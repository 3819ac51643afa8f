//! The states of a node and the phases of a job, as everyone sees them. Which state may follow
//! which is the coordinator's to say (`coordinator/src/job/state.rs`).

use std::fmt;

use serde::{Deserialize, Serialize};

/// The state of a node as a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeState {
    /// Known, and not a replica of anything.
    Uninitialized,
    /// Preflight, slot and snapshot, schema.
    Preparing,
    /// Rows are moving, or indexes and constraints are being built on them.
    Copying,
    /// The subscription runs and has not passed the fence yet.
    CatchingUp,
    /// Proved equal up to a fence, and following its source.
    Synchronized,
    /// Was synchronized; something broke or drifted since.
    Diverged,
    /// A job ended with an error; the cause is kept with the node.
    Failed,
    /// Some or all tables are being copied again.
    Reinitializing,
}

impl NodeState {
    /// Every state, in the order of a life.
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

    /// Whether a job is at work on the node.
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

    /// The state of that name, if there is one.
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

/// What a job is doing, finer than the node's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Looking at both servers before touching either.
    Preflight,
    /// Publication, slot and exported snapshot on the source; the plan.
    Snapshot,
    /// Schema on the target; indexes and constraints put aside.
    Schema,
    /// Rows.
    Copy,
    /// Indexes and the constraints that need one.
    Indexes,
    /// Foreign keys, triggers and what else comes after the data.
    Constraints,
    /// Creating and enabling the subscription.
    Subscribe,
    /// Until the subscription has passed the fence; sequences and statistics meanwhile.
    CatchUp,
    /// Everything is checked against the ledger.
    Prove,
    /// Removing what the job made.
    Cleanup,
}

impl Phase {
    /// Every phase, in the order in which a snapshot job goes through them.
    pub const ALL: [Self; 10] = [
        Self::Preflight,
        Self::Snapshot,
        Self::Schema,
        Self::Copy,
        Self::Indexes,
        Self::Constraints,
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
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}
