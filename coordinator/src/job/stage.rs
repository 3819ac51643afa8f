//! Where a job stands: running, ending, kept after a failure, or closed.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use steep_protocol::Fault;
use steep_protocol::message::job::CancelledData;

use super::handover::SlotFate;
use super::work::Step;

/// What a job is doing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Stage {
    /// Running.
    Working(Step),
    /// Stopping its commands and removing what they made.
    Ending(Ending),
    /// Failed; everything is kept so that it can be resumed once the cause is fixed.
    Kept(Kept),
    /// Ended: nothing runs and nothing is left to remove.
    Closed(Closed),
}

/// A failed job that can be resumed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Kept {
    /// Why it failed.
    pub fault: Fault,
    /// The step it resumes with.
    pub step: Step,
    /// When everything it made is removed.
    pub until: Timestamp,
    /// When to stop waiting for commands that do not end.
    pub stop_by: Timestamp,
}

/// How a job ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Closed {
    /// Successfully: publication, slot and subscription replicate changes.
    Synchronized,
    /// Successfully: the rows are there, and nothing else was wanted.
    Loaded,
    /// Successfully: the tables have joined or left the replication that goes on.
    Changed,
    /// With this error; everything it made is removed.
    Failed(Fault),
    /// Cancelled by an operator; everything it made is removed.
    Cancelled,
}

/// A job that is being stopped and cleaned up.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ending {
    /// Why.
    pub why: Why,
    /// When to stop waiting for commands that do not end.
    pub stop_by: Timestamp,
    /// When the node is shown as FAILED even if the cleanup has not finished.
    pub show_by: Timestamp,
    /// Whether the node is shown as FAILED.
    pub shown: Shown,
    /// Whether an operator waits for the cleanup.
    pub awaited: Awaited,
    /// What happens to its prepared slot, if it has one.
    pub slot: SlotFate,
    /// What happens to objects that cannot be removed now.
    pub unreachable: Unreachable,
}

/// What happens to a job's objects on a server that is unreachable or refuses their removal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Unreachable {
    /// They are removed as soon as that is possible.
    Awaited,
    /// They are left behind.
    GivenUp,
}

/// Why a job ends early.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Why {
    /// It failed.
    Failed(Fault),
    /// The snapshot was lost: everything made under it is removed, and the job starts over.
    Again(Fault),
    /// An operator cancelled it.
    Cancelled(CancelledData),
}

/// Whether an ending job's node is shown as FAILED.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Shown {
    /// Not yet: the node is still in its active state.
    NotYet,
    /// Yes.
    Failed,
}

/// Whether someone waits for the result of a cleanup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Awaited {
    /// Nobody.
    Nobody,
    /// The operator who asked for it.
    Operator,
}
