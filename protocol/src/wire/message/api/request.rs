//! What an operator asks of the coordinator: the first and only message on its stream.

use serde::{Deserialize, Serialize};

use super::super::adjust::Adjustment;
use super::super::handover::{CompleteSpec, PrepareSpec, SlotName};
use super::super::job::{CancelledData, JobSpec, NewTables, TableFilter};
use super::super::merge::MergeSpec;
use super::super::repair::RepairSpec;
use super::super::snapshot::{ApplySpec, SnapshotSpec};
use super::super::switchover::SwitchoverSpec;
use super::super::tables::ChangeSpec;
use super::super::verify::{ScheduleSpec, TableReport, VerifySpec};
#[cfg(doc)]
use super::{ApiReply, EndView, EventView};
use crate::wire::{NodeId, SnapshotId};

/// What an operator asks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum ApiRequest {
    /// Changes nothing; the replies come at once.
    Query(Query),
    /// Changes something. It is audited, whether it is accepted or refused.
    Order(Order),
    /// [`ApiReply::Event`]s, oldest first; with `follow`, on and on.
    Events {
        /// Of which node; every node where `None`.
        node: Option<NodeId>,
        /// Whether to go on with new ones.
        follow: bool,
        /// Only those after this number ([`EventView::seq`]); 0 for all.
        after: u64,
    },
    /// [`ApiReply::Audit`]s, oldest first.
    Audit {
        /// About which node, on either side; every node where `None`.
        node: Option<NodeId>,
    },
    /// [`ApiReply::Progress`] once, or with `follow` until the job has [`ApiReply::Ended`].
    Progress {
        /// The node.
        node: NodeId,
        /// Whether to go on.
        follow: bool,
    },
    /// The node's last [`ApiReply::Event`]s and [`ApiReply::Job`], once, or with `follow` the job
    /// again whenever it has changed. A node that never had a job gives events only.
    Job {
        /// The node.
        node: NodeId,
        /// Whether to go on.
        follow: bool,
    },
    /// The whole cluster, on and on: [`ApiReply::Event`]s, the last
    /// [`crate::limits::RECENT_EVENTS`] first and then each new one; [`ApiReply::Nodes`] with all
    /// nodes and then with those that changed; [`ApiReply::Snapshots`] with all of which something is left,
    /// if there are any, and again when one changes; [`ApiReply::Progress`] of every job at work, and its
    /// [`ApiReply::Ended`]. What changed is said within 500 ms; a slow reader skips what was
    /// overtaken.
    Watch,
    /// [`ApiReply::Snapshots`] with that one, again whenever it has changed, until it is complete, lost
    /// or gone.
    Snapshot {
        /// Which.
        snapshot: SnapshotId,
    },
    /// [`ApiReply::Schema`] pages: a node's schema as it is now.
    Schema {
        /// The node.
        node: NodeId,
        /// Of which tables.
        filter: TableFilter,
    },
}

/// What changes nothing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Query {
    /// [`ApiReply::Nodes`].
    Nodes {
        /// Which; every node where `None`.
        node: Option<NodeId>,
    },
    /// [`ApiReply::Findings`] for each target: the preflight alone.
    Doctor(InitRequest),
    /// How the node's last job that is over ended: [`ApiReply::Ended`], with its
    /// [`EndView::report`].
    Report {
        /// The node.
        node: NodeId,
    },
    /// [`ApiReply::Prepared`]: the slots that are prepared on a node.
    Prepared {
        /// The node.
        node: NodeId,
    },
    /// [`ApiReply::Snapshots`], oldest first.
    Snapshots {
        /// Which; all where `None`.
        snapshot: Option<SnapshotId>,
        /// Of which source; of all where `None`.
        source: Option<NodeId>,
    },
    /// [`ApiReply::Verified`]: a stored snapshot is read again and checked.
    VerifySnapshot {
        /// Which.
        snapshot: SnapshotId,
    },
    /// [`ApiReply::Found`]: which stored snapshot that node's agent finds at a place.
    FindSnapshot {
        /// The node.
        node: NodeId,
        /// A path on its host, or a URL.
        location: String,
    },
    /// [`ApiReply::Missing`]: what a node lacks of its source's schema.
    Missing {
        /// The node.
        node: NodeId,
    },
    /// [`ApiReply::DetachPlan`]: what [`Order::Detach`] would do.
    DetachPlan {
        /// The node.
        node: NodeId,
        /// As in [`DetachSpec::absent`].
        absent: AbsentSource,
    },
    /// [`ApiReply::Findings`]: what speaks against [`Order::Switchover`].
    SwitchoverPlan(Box<SwitchoverSpec>),
    /// [`ApiReply::Tables`]: the tables that a node follows, and those of its source that it could.
    Tables {
        /// The node.
        node: NodeId,
    },
}

/// What changes something.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Order {
    /// [`ApiReply::Accepted`] once all jobs are stored, then, for each, [`ApiReply::Progress`],
    /// [`ApiReply::Event`] and [`ApiReply::Ended`]. Closing the stream leaves the jobs running.
    Init(InitRequest),
    /// Back to uninitialized, everything of ours removed; [`ApiReply::End`] when that is done.
    Cancel {
        /// The node.
        node: NodeId,
        /// What becomes of the rows.
        data: CancelledData,
    },
    /// As [`Order::Cancel`], also of jobs that the coordinator does not remember and of nodes that
    /// are gone; [`ApiReply::Left`] with what cannot be reached and stays.
    GiveUp {
        /// The node.
        node: NodeId,
        /// What becomes of the rows.
        data: CancelledData,
        /// What becomes of the node.
        afterwards: Afterwards,
    },
    /// [`ApiReply::Captured`]: the node stores its tables' fingerprints as they are now.
    Capture {
        /// The node.
        node: NodeId,
        /// Whose fingerprints it stores as well, for `steep_repl.compare_fingerprints`.
        peer: Option<NodeId>,
    },
    /// [`ApiReply::Findings`] of the source, where there are any, then [`ApiReply::Prepared`] with the
    /// slot that was made.
    Prepare(PrepareSpec),
    /// [`ApiReply::End`] once the prepared slot is dropped.
    DropPrepared {
        /// The source.
        node: NodeId,
        /// The slot.
        slot: SlotName,
    },
    /// [`ApiReply::Findings`] of the source, where there are any, then [`ApiReply::Snapshots`] with the
    /// snapshot that is being made. It is made whether or not anyone watches.
    Generate(Box<SnapshotSpec>),
    /// [`ApiReply::End`] once its files, slot and publication are removed; with `force` at once, after
    /// [`ApiReply::Left`] with what may be left.
    DeleteSnapshot {
        /// Which.
        snapshot: SnapshotId,
        /// Whether to forget it although its removal has failed.
        force: bool,
    },
    /// [`ApiReply::Rebuilt`] once the node has tried again what could not be made.
    Rebuild {
        /// The node.
        node: NodeId,
    },
    /// [`ApiReply::Adjusted`]: the node's running job has other terms from now on.
    Adjust {
        /// The node.
        node: NodeId,
        /// What changes.
        change: Adjustment,
    },
    /// [`ApiReply::Verifying`] while rows are compared, then [`ApiReply::Compared`]. Closing the stream ends the
    /// comparison.
    Verify(Box<VerifySpec>),
    /// The node stops following for good and keeps tables and rows; [`ApiReply::End`] when that is done, after
    /// [`ApiReply::Left`] with what stays or was not done, if anything. Also of a node that is already detached.
    Detach(DetachSpec),
    /// [`ApiReply::Switchover`] whenever it has come further. Closing the stream before it is decided undoes it.
    Switchover(Box<SwitchoverSpec>),
    /// As [`Order::Init`], of one job: tables join the replication of a node that follows, or leave it.
    ChangeTables(ChangeSpec),
    /// [`ApiReply::End`]: from now on, the node does that about tables that are created on its source later.
    SetNewTables {
        /// The node.
        node: NodeId,
        /// What.
        policy: NewTables,
    },
    /// [`ApiReply::Repaired`]: a page of a plan is written to a replica. It is completed whether or not anyone waits.
    Repair(Box<RepairSpec>),
    /// [`ApiReply::End`] once the coordinator compares the rows of a replica regularly, or no longer.
    ScheduleVerify(Box<ScheduleSpec>),
    /// As [`Order::Verify`], of a comparison that was interrupted: what was found in these tables stands, and only the
    /// others are compared.
    VerifyRest {
        /// What is wanted.
        spec: Box<VerifySpec>,
        /// Tables that were compared, without examples; at most [`crate::limits::VERIFY_DONE_MAX`] bytes.
        done: Vec<TableReport>,
    },
    /// [`ApiReply::End`] once changes flow both ways between two nodes that are merged. Idempotent: it goes on whether or
    /// not anyone waits.
    Merge(Box<MergeSpec>),
    /// [`ApiReply::Repaired`]: a page of a plan is written to a node that is being merged with the other one.
    MergePage(Box<RepairSpec>),
}

/// Arguments of [`Order::Detach`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DetachSpec {
    /// The node.
    pub node: NodeId,
    /// Before anything is dropped, wait at most this many seconds until the node has applied everything written
    /// before the order.
    pub wait_seconds: Option<u64>,
    /// What to do without the source.
    pub absent: AbsentSource,
}

/// What a detach does where the source cannot be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum AbsentSource {
    /// Refuse.
    Refuse,
    /// Detach the node alone. What stays on the source is removed when its agent is back.
    LeaveBehind,
}

/// How targets get their rows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum InitRequest {
    /// From their sources; one spec per target.
    Copy(Vec<JobSpec>),
    /// Jobs that failed and have kept what they had go on, one spec per target. Workers, rate,
    /// compression and time are those of the spec; what is copied stays as it was first asked for.
    Resume(Vec<JobSpec>),
    /// One target, whose rows come from a backup.
    Complete(Box<CompleteSpec>),
    /// From a stored snapshot.
    Apply(Box<ApplySpec>),
}

impl InitRequest {
    /// One spec per target.
    pub fn specs(&self) -> &[JobSpec] {
        match self {
            Self::Copy(specs) | Self::Resume(specs) => specs,
            Self::Complete(spec) => std::slice::from_ref(&spec.job),
            Self::Apply(spec) => &spec.jobs,
        }
    }

    /// The same, to change them.
    pub fn specs_mut(&mut self) -> &mut [JobSpec] {
        match self {
            Self::Copy(specs) | Self::Resume(specs) => specs,
            Self::Complete(spec) => std::slice::from_mut(&mut spec.job),
            Self::Apply(spec) => &mut spec.jobs,
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

impl From<Query> for ApiRequest {
    fn from(query: Query) -> Self {
        Self::Query(query)
    }
}

impl From<Order> for ApiRequest {
    fn from(order: Order) -> Self {
        Self::Order(order)
    }
}

impl From<InitRequest> for Order {
    fn from(init: InitRequest) -> Self {
        Self::Init(init)
    }
}
