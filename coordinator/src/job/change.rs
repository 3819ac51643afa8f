//! A job that changes which tables a node follows, while the replication that it follows by goes on.
//!
//! Tables that are added are copied and caught up with like those of any job, by a slot, publication and subscription of
//! the job's own, and then join the replication that goes on. Until then nothing of that is touched: a cancel or a
//! failure removes what the job made, and the node is as it was.

use serde::{Deserialize, Serialize};
use steep_protocol::message::tables::Followed;
use steep_protocol::{JobId, TableName};

use super::state::NodeEvent;

/// What a job changes of a node that follows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changing {
    /// The node's job.
    pub base: JobId,
    /// What the node follows by.
    pub followed: Followed,
    /// The tables that join or leave.
    pub tables: Vec<TableName>,
    /// How far that is.
    pub joining: Joining,
    /// Why the node had diverged when it began, if it had.
    #[serde(default)]
    pub diverged: Option<String>,
}

/// How far the tables of a job have joined the replication that goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Joining {
    /// It is as it was.
    NotYet,
    /// It may stand still, and may have some of them.
    Begun,
    /// It has all of them.
    Done,
}

impl Changing {
    /// Nothing of the replication has been touched.
    #[must_use]
    pub fn new(base: JobId, followed: Followed, tables: Vec<TableName>) -> Self {
        Self {
            base,
            followed,
            tables,
            joining: Joining::NotYet,
            diverged: None,
        }
    }

    /// What becomes of the node if nothing was changed in the end.
    #[must_use]
    pub fn returned(&self) -> NodeEvent {
        match self.diverged {
            Some(_) => NodeEvent::ReturnedDiverged,
            None => NodeEvent::Returned,
        }
    }
}
