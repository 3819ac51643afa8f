//! Tables of a plan, and progress.

use serde::{Deserialize, Serialize};

use crate::wire::{ByteCount, JobId, PartNo, Phase, RowCount, TableName, TableNo};

/// One table of a plan, as the coordinator needs it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TableSummary {
    /// Its number.
    pub no: TableNo,
    /// Its name.
    pub name: TableName,
    /// Estimated rows (`reltuples`); 0 if unknown.
    pub rows_estimate: RowCount,
    /// Estimated heap bytes (`relpages` or the file's size), as a weight for the order.
    pub bytes_estimate: ByteCount,
    /// Its first part.
    pub first_part: PartNo,
    /// Number of parts.
    pub parts: u32,
}

/// A part that is committed on the target.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PartDone {
    /// Its number.
    pub part: PartNo,
    /// Rows; both servers' counts agree.
    pub rows: RowCount,
    /// COPY bytes.
    pub bytes: ByteCount,
    /// Bytes on the wire; 0 if it was found in the ledger.
    pub wire: ByteCount,
}

/// Progress of a job, as seen by the working agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProgressReport {
    /// The job.
    pub job: JobId,
    /// The current phase.
    pub phase: Phase,
    /// Parts being copied now.
    pub active: Vec<PartProgress>,
    /// Progress of phases without parts.
    pub work: Option<WorkProgress>,
    /// How often this process restarted a part of the job after a fault.
    pub retries: u64,
}

/// A part in flight.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PartProgress {
    /// Its number.
    pub part: PartNo,
    /// COPY bytes so far.
    pub bytes: ByteCount,
    /// Bytes on the wire so far.
    pub wire: ByteCount,
}

/// Progress of work other than rows: indexes built, WAL to catch up on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkProgress {
    /// Done so far, in `unit`.
    pub done: u64,
    /// Total, in `unit`; may grow.
    pub total: u64,
    /// The unit.
    pub unit: WorkUnit,
    /// The current table or object, for display.
    pub current: Option<String>,
    /// Busy workers.
    pub workers: u8,
}

/// The unit of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkUnit {
    /// Bytes.
    Bytes,
    /// Statements, indexes or tables.
    Items,
}
