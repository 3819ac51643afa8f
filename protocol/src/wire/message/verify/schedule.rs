//! Comparisons that the coordinator begins by itself, again and again.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::wire::{ByteCount, NodeId, TableName};

/// A replica that is to be compared with its source regularly, or no longer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScheduleSpec {
    /// The source.
    pub node_a: NodeId,
    /// The replica.
    pub node_b: NodeId,
    /// How; `None` ends it.
    pub schedule: Option<VerifySchedule>,
}

/// How a replica is compared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifySchedule {
    /// From the end of one comparison to the begin of the next, in seconds.
    pub every_seconds: u64,
    /// Which tables; where empty, those that are replicated.
    pub tables: Vec<TableName>,
    /// Sessions on each server.
    pub parallel: u8,
    /// Heap bytes read in a second, on each server.
    pub max_rate: Option<ByteCount>,
}

/// What is known of the regular comparisons of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScheduleView {
    /// How often, in seconds.
    pub every_seconds: u64,
    /// Which tables; where empty, those that are replicated.
    pub tables: Vec<TableName>,
    /// Whether one is at work.
    pub running: bool,
    /// When the next begins.
    pub next_at: Timestamp,
    /// When the last one ended.
    pub last_at: Option<Timestamp>,
    /// Whether rows were equal then; `None` where that is not known.
    pub equal: Option<bool>,
    /// Why it is not, or what differs.
    pub message: Option<String>,
    /// The tables whose rows differ, until they are known to be equal; none where they are many.
    pub differing: Vec<TableName>,
}
