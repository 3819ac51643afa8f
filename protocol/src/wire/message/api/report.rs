//! How a job went: its end, its final report, and the job in full.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{PhaseTime, TableView};
use crate::wire::message::facts::Finding;
use crate::wire::message::job::{JobSpec, Method};
use crate::wire::{Fault, JobId, Lsn, NodeId, NodeState, Phase};

/// How a job ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EndView {
    /// The target.
    pub node_id: NodeId,
    /// The job.
    pub job_id: JobId,
    /// The source.
    pub source_node: NodeId,
    /// The target's state now.
    pub state: NodeState,
    /// Why it failed, where it did.
    pub fault: Option<Fault>,
    /// Tables copied.
    pub tables: u64,
    /// Rows copied.
    pub rows_copied: u64,
    /// COPY bytes.
    pub bytes_copied: u64,
    /// Bytes on the wire.
    pub wire_bytes: u64,
    /// From request to end.
    pub duration_seconds: f64,
    /// Seconds by phase, in order: preparing, copying, indexing, catching up.
    pub phases: PhaseSeconds,
    /// What was found and did not stop the job.
    pub warnings: Vec<Finding>,
    /// What else belongs into the final report; empty in what older versions stored.
    #[serde(default)]
    pub report: Report,
}

/// What a final report says beyond the sums.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Report {
    /// When the job was accepted.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// How the rows got there.
    pub method: Option<Method>,
    /// Workers it was given.
    pub parallel_workers: u8,
    /// Every phase that took time, in the order it ran.
    pub phase_times: Vec<PhaseTime>,
    /// The tables that took longest, slowest first; at most [`crate::limits::SLOWEST_TABLES`].
    pub slowest_tables: Vec<TableTime>,
    /// What the target does not have of the source, a sentence each; at most
    /// [`crate::limits::LISTED_MAX`].
    pub not_copied: Vec<String>,
    /// Until when a failed job keeps what it has, where it does.
    #[serde(default)]
    pub kept_until: Option<Timestamp>,
    /// Snapshots that were lost before everything was read, in order.
    #[serde(default)]
    pub lost_snapshots: Vec<LostSnapshot>,
}

/// A snapshot that was lost before everything was read, and what the job has kept of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LostSnapshot {
    /// Its consistent point.
    pub lsn: Lsn,
    /// Tables that were completed under it.
    pub tables: u32,
    /// Their rows.
    pub rows: u64,
    /// Their COPY bytes.
    pub bytes: u64,
    /// COPY bytes of other tables that are read again.
    pub bytes_again: u64,
    /// When it was lost.
    pub lost_at: Timestamp,
    /// Why.
    pub reason: String,
}

/// How long a table took, from its first row to the commit of its last part.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TableTime {
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub table: String,
    /// Rows.
    pub rows: u64,
    /// COPY bytes.
    pub bytes: u64,
    /// How long.
    pub seconds: f64,
}

/// A job in full: what was asked for, how it went so far, what was found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobView {
    /// The job.
    pub job_id: JobId,
    /// What was asked for.
    pub spec: JobSpec,
    /// The name in the certificate of who asked.
    pub operator: String,
    /// When.
    pub accepted_at: Timestamp,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// Phases that are over, in the order they ran.
    pub phase_times: Vec<PhaseTime>,
    /// The phase at hand and when it began.
    pub current_phase: Option<(Phase, Timestamp)>,
    /// What preflight and later checks found, in the order found.
    pub findings: Vec<Finding>,
    /// At most [`crate::limits::TABLES_SHOWN`] tables: those being copied, then the largest of those
    /// to come, then the largest of those that are done.
    pub tables: Vec<TableView>,
    /// How it ended, once it has.
    pub end: Option<Box<EndView>>,
}

/// Seconds by phase.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct PhaseSeconds {
    /// Preflight, snapshot, schema.
    pub preparing: f64,
    /// Rows.
    pub copying: f64,
    /// Indexes and constraints.
    pub indexing: f64,
    /// Subscription, fence, proof.
    pub catching_up: f64,
}
