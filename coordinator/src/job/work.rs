//! The two sides of a job, its commands and its steps.
//!
//! Values and tables only; [`super::machine`] decides what happens next.

use serde::{Deserialize, Serialize};
use steep_protocol::message::job::{CancelledData, JobSpec, Method};
use steep_protocol::{NodeId, Phase};

use super::state::NodeEvent;

/// One of the two agents of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Side {
    /// Rows are read here.
    Source,
    /// Rows are written here.
    Target,
}

impl Side {
    /// Both, in the order of their cleanup: the target's subscription uses the source's slot, so the
    /// target comes first.
    pub const BOTH: [Self; 2] = [Self::Target, Self::Source];

    /// The node on this side.
    #[must_use]
    pub fn node(self, spec: &JobSpec) -> &NodeId {
        match self {
            Self::Source => &spec.source,
            Self::Target => &spec.target,
        }
    }
}

/// A command without its arguments. `drive::compose` derives them from the job, its plan and the agents'
/// addresses whenever the command is sent, so it can be sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Work {
    /// `GatherSource`.
    GatherSource,
    /// `Admit`: a restarted source agent has forgotten which target may ask it about this job.
    Regrant,
    /// `GatherTarget`.
    GatherTarget,
    /// `OpenSource`.
    OpenSource,
    /// `TargetCommand::Open`: of a stored snapshot that was carried to the target.
    OpenCarried,
    /// `TakeSlot`.
    TakeSlot,
    /// `PrepareTarget`, or `MatchSchema` if the rows were restored from a backup.
    PrepareTarget,
    /// `Copy` of every part that is not known to be done.
    Copy,
    /// `CloseSnapshot`.
    CloseSnapshot,
    /// `BuildIndexes`.
    BuildIndexes,
    /// `BuildConstraints`.
    BuildConstraints,
    /// `Subscribe`.
    Subscribe,
    /// `AwaitNativeCopy`.
    AwaitNativeCopy,
    /// `AwaitFence`.
    AwaitFence,
    /// `Finish`.
    Finish,
    /// `Fold`.
    Fold,
    /// `Join`.
    Join,
    /// `Leave`.
    Leave,
    /// `Swap`.
    Swap,
    /// `ProveTarget`.
    ProveTarget,
    /// `ProveSource`.
    ProveSource,
    /// `ReleaseTarget`.
    ReleaseTarget,
    /// `ReleaseSource`.
    ReleaseSource,
    /// `CleanupTarget`.
    CleanupTarget(CancelledData),
    /// `CleanupSource`.
    CleanupSource,
}

impl Work {
    /// The side that performs it.
    #[must_use]
    pub fn side(self) -> Side {
        match self {
            Self::GatherSource
            | Self::Regrant
            | Self::OpenSource
            | Self::TakeSlot
            | Self::CloseSnapshot
            | Self::AwaitFence
            | Self::ProveSource
            | Self::ReleaseSource
            | Self::CleanupSource => Side::Source,
            Self::GatherTarget
            | Self::OpenCarried
            | Self::PrepareTarget
            | Self::Copy
            | Self::BuildIndexes
            | Self::BuildConstraints
            | Self::Subscribe
            | Self::AwaitNativeCopy
            | Self::Finish
            | Self::Fold
            | Self::Join
            | Self::Leave
            | Self::Swap
            | Self::ProveTarget
            | Self::ReleaseTarget
            | Self::CleanupTarget(_) => Side::Target,
        }
    }

    /// Whether it is a cleanup.
    #[must_use]
    pub fn is_cleanup(self) -> bool {
        matches!(self, Self::CleanupTarget(_) | Self::CleanupSource)
    }

    /// What it does, as a phrase: "copying rows".
    #[must_use]
    pub fn describe(self) -> &'static str {
        match self {
            Self::GatherSource => "looking at the source",
            Self::Regrant => "admitting the target",
            Self::GatherTarget => "looking at the target",
            Self::OpenSource => "opening the snapshot",
            Self::OpenCarried => "opening the snapshot that was carried to it",
            Self::TakeSlot => "taking the prepared slot",
            Self::PrepareTarget => "preparing the schema",
            Self::Copy => "copying rows",
            Self::CloseSnapshot => "closing the snapshot",
            Self::BuildIndexes => "building indexes",
            Self::BuildConstraints => "building constraints",
            Self::Subscribe => "subscribing",
            Self::AwaitNativeCopy => "awaiting PostgreSQL's own copy",
            Self::AwaitFence => "awaiting the fence",
            Self::Finish => "setting sequences and statistics",
            Self::Fold => "folding the epochs into one subscription",
            Self::Join => "letting the tables join the subscription",
            Self::Leave => "taking the tables out of the subscription",
            Self::Swap => "putting the new rows in the place of the old",
            Self::ProveTarget => "summing up the ledger",
            Self::ProveSource => "summing up what was sent",
            Self::ReleaseTarget => "releasing the ledger",
            Self::ReleaseSource => "forgetting the job",
            Self::CleanupTarget(_) | Self::CleanupSource => "cleaning up",
        }
    }
}

/// The steps of a running job; [`Step::path`] orders them for each method.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Step {
    /// Gather facts about the source.
    GatherSource,
    /// Gather facts about the target, and judge both.
    GatherTarget,
    /// Wait until both nodes of a merge have passed their preflight and their sequences are set apart.
    Apart,
    /// Assign the prepared slot to the target.
    TakeSlot,
    /// Make the publication, slot, snapshot and plan.
    OpenSource,
    /// Make the schema on the target.
    PrepareTarget,
    /// Copy the parts.
    Copy,
    /// Build indexes, while the source closes its snapshot.
    Indexes,
    /// Build constraints.
    Constraints,
    /// Set sequences and statistics on a target that will not follow.
    Settle,
    /// Compare the totals as [`Step::Prove`] does, before the new rows are used.
    ProveCopy,
    /// Put the new rows in the place of the old, while the source closes its snapshot.
    Swap,
    /// Create the subscription.
    Subscribe,
    /// Wait for PostgreSQL's own copy.
    NativeCopy,
    /// Wait for the fence on the source and, at the same time, set sequences and statistics on the target.
    Converge,
    /// Fold earlier epochs into the present one, where there are any.
    Fold,
    /// Let the tables join the replication that goes on.
    Join,
    /// Let the tables leave the replication that goes on.
    Leave,
    /// Wait until the rows of the two nodes are merged and proved to be equal.
    Merge,
    /// Compare the totals of the ledger, the source and the coordinator.
    Prove,
    /// Remove the ledger and what else the target notes about the job.
    Release,
}

impl Step {
    /// The next step; `None` after the last.
    #[must_use]
    pub fn next(self, method: Method) -> Option<Self> {
        let path = Self::path(method);
        let at = path.iter().position(|step| *step == self)?;
        path.get(at + 1).copied()
    }

    /// The node events that completing this step triggers.
    #[must_use]
    pub fn brings(self, method: Method) -> &'static [NodeEvent] {
        match (self, method) {
            // Its node is being reinitialised all the while.
            (_, Method::Add | Method::Drop | Method::Reinit) => &[],
            // The rows are there.
            (Self::PrepareTarget, Method::Backup | Method::Merge) => {
                &[NodeEvent::Opened, NodeEvent::Copied]
            }
            (Self::PrepareTarget, _) => &[NodeEvent::Opened],
            // Nothing is caught up with.
            (Self::Constraints, Method::Load) => &[],
            (Self::Constraints | Self::NativeCopy, _) => &[NodeEvent::Copied],
            _ => &[],
        }
    }

    /// The phase that people see.
    #[must_use]
    pub fn phase(self) -> Phase {
        match self {
            Self::GatherSource | Self::GatherTarget | Self::Apart | Self::TakeSlot => {
                Phase::Preflight
            }
            Self::OpenSource => Phase::Snapshot,
            Self::PrepareTarget => Phase::Schema,
            Self::Copy | Self::NativeCopy | Self::ProveCopy => Phase::Copy,
            Self::Indexes => Phase::Indexes,
            Self::Constraints | Self::Settle => Phase::Constraints,
            Self::Swap => Phase::Swap,
            Self::Subscribe => Phase::Subscribe,
            Self::Converge | Self::Fold | Self::Join | Self::Leave | Self::Merge => Phase::CatchUp,
            Self::Prove | Self::Release => Phase::Prove,
        }
    }

    /// The commands that start it.
    #[must_use]
    pub fn begins(self, method: Method) -> &'static [Work] {
        match self {
            // The sequences are read from the snapshot, too.
            Self::Indexes if method == Method::Load => &[Work::BuildIndexes],
            Self::GatherSource => &[Work::GatherSource],
            Self::GatherTarget => &[Work::GatherTarget],
            Self::TakeSlot => &[Work::TakeSlot],
            Self::OpenSource => &[Work::OpenSource],
            Self::PrepareTarget => &[Work::PrepareTarget],
            Self::Copy => &[Work::Copy],
            Self::Indexes => &[Work::CloseSnapshot, Work::BuildIndexes],
            Self::Constraints => &[Work::BuildConstraints],
            Self::Settle => &[Work::Finish],
            Self::Subscribe => &[Work::Subscribe],
            Self::NativeCopy => &[Work::AwaitNativeCopy],
            // Its sequences are set apart, not set to the source's.
            Self::Converge if method == Method::Merge => &[Work::AwaitFence],
            Self::Converge => &[Work::AwaitFence, Work::Finish],
            // The driver says when it is over.
            Self::Apart | Self::Merge => &[],
            Self::Fold => &[Work::Fold],
            // The source must know that the target may.
            Self::Join | Self::Leave | Self::Swap => &[Work::Regrant],
            Self::Prove | Self::ProveCopy => &[Work::ProveTarget, Work::ProveSource],
            Self::Release => &[Work::ReleaseTarget],
        }
    }

    /// Whether the source's agent must be online even without commands of its own: the target's commands
    /// ask it for the schema, rows, sequences and its connection string.
    #[must_use]
    pub fn needs_source(self) -> bool {
        match self {
            Self::GatherSource
            | Self::GatherTarget
            | Self::TakeSlot
            | Self::OpenSource
            | Self::PrepareTarget
            | Self::Copy
            | Self::Settle
            | Self::Swap
            | Self::Subscribe
            | Self::Converge
            | Self::Fold
            | Self::Join
            | Self::Leave => true,
            Self::Apart
            | Self::Merge
            | Self::Indexes
            | Self::Constraints
            | Self::ProveCopy
            | Self::NativeCopy
            | Self::Prove
            | Self::Release => false,
        }
    }

    /// Whether the subscription must be working, and therefore the target's server.
    #[must_use]
    pub fn needs_subscription(self, method: Method) -> bool {
        match self {
            Self::NativeCopy
            | Self::Converge
            | Self::Fold
            | Self::Join
            | Self::Leave
            | Self::Prove
            | Self::Release => method.follows(),
            Self::GatherSource
            | Self::GatherTarget
            | Self::Apart
            | Self::TakeSlot
            | Self::OpenSource
            | Self::PrepareTarget
            | Self::Copy
            | Self::Indexes
            | Self::Constraints
            | Self::Settle
            | Self::ProveCopy
            | Self::Swap
            | Self::Subscribe
            // It may wait for days; whoever merges says what is missing.
            | Self::Merge => false,
        }
    }

    /// Whether it or a later step reads the snapshot that the rows come from.
    #[must_use]
    pub fn reads_snapshot(self, method: Method) -> bool {
        match method {
            Method::Load => self <= Self::Settle,
            Method::Snapshot
            | Method::TwoPhase
            | Method::Native
            | Method::Backup
            | Method::Stored
            | Method::Add
            | Method::Drop
            | Method::Reinit
            | Method::Merge => self <= Self::Copy,
        }
    }

    /// Whether this job has copied all rows, so that only work on top of them remains.
    #[must_use]
    pub fn has_rows(self, method: Method) -> bool {
        match method {
            Method::Snapshot
            | Method::TwoPhase
            | Method::Stored
            | Method::Load
            | Method::Add
            | Method::Reinit => self > Self::Copy,
            Method::Native => self > Self::NativeCopy,
            // They were there before the job, and stay however it ends.
            Method::Backup | Method::Drop | Method::Merge => false,
        }
    }

    /// Whether the source agent's memory must hold the exported snapshot (or, natively, the plan).
    #[must_use]
    pub fn needs_snapshot(self, method: Method) -> bool {
        match self {
            // A stored one is opened again whenever it is needed.
            _ if method.is_from_store() => false,
            Self::OpenSource => true,
            Self::PrepareTarget => !matches!(method, Method::Backup | Method::Merge),
            Self::Copy => method != Method::Native,
            Self::GatherSource
            | Self::GatherTarget
            | Self::Apart
            | Self::Merge
            | Self::TakeSlot
            | Self::Indexes
            | Self::Constraints
            | Self::Settle
            | Self::ProveCopy
            | Self::Swap
            | Self::Subscribe
            | Self::NativeCopy
            | Self::Converge
            | Self::Fold
            | Self::Join
            | Self::Leave
            | Self::Prove
            | Self::Release => false,
        }
    }
}
