//! What a plan holds, and what moves.

use serde::{Deserialize, Serialize};

use crate::wire::{ByteCount, JobId, PartNo, Phase, RowCount, TableName, TableNo};

/// One table of a plan, as the coordinator needs it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TableSummary {
    /// Its number.
    pub no: TableNo,
    /// Its name.
    pub name: TableName,
    /// Estimated rows (`reltuples`); 0 where PostgreSQL does not know.
    pub rows_estimate: RowCount,
    /// Estimated heap bytes (`relpages` or the file's size), as a weight for the order.
    pub bytes_estimate: ByteCount,
    /// Its first part.
    pub first_part: PartNo,
    /// How many parts.
    pub parts: u32,
}

/// A part that is committed on the target.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PartDone {
    /// Which.
    pub part: PartNo,
    /// Rows, counted alike by both servers.
    pub rows: RowCount,
    /// COPY bytes.
    pub bytes: ByteCount,
    /// Bytes on the wire; 0 where it was found in the ledger.
    pub wire: ByteCount,
}

/// What moves, as the agent at work sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProgressReport {
    /// The job.
    pub job: JobId,
    /// What it is doing.
    pub phase: Phase,
    /// Parts being copied now.
    pub active: Vec<PartProgress>,
    /// For phases that are not counted in parts.
    pub work: Option<WorkProgress>,
    /// How often this process began a part of the job again after a fault.
    pub retries: u64,
}

/// A part on its way.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PartProgress {
    /// Which.
    pub part: PartNo,
    /// COPY bytes so far.
    pub bytes: ByteCount,
    /// Bytes on the wire so far.
    pub wire: ByteCount,
}

/// Work that is not rows: indexes built, WAL to catch up on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkProgress {
    /// Done so far, in `unit`.
    pub done: u64,
    /// In all, in `unit`; may grow.
    pub total: u64,
    /// Of what.
    pub unit: WorkUnit,
    /// The table or object at hand, for display.
    pub current: Option<String>,
    /// How many are at work.
    pub workers: u8,
}

/// What work is counted in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkUnit {
    /// Bytes.
    Bytes,
    /// Statements, indexes, tables: things.
    Items,
}
