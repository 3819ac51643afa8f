//! What a node shows of itself to whoever asks it in SQL.

use serde::{Deserialize, Serialize};

use crate::wire::{ByteCount, JobId, NodeId, NodeState, Phase, RowCount};

/// One node's row in its own `steep_repl` tables.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MirrorRow {
    /// Its state.
    pub state: NodeState,
    /// Where it replicates from, or is being initialised from.
    pub source: Option<NodeId>,
    /// The job, where one is or was at work.
    pub job: Option<JobId>,
    /// The phase, while a job is active.
    pub phase: Option<Phase>,
    /// 0 to 100.
    pub overall_percent: f64,
    /// Tables finished and in all.
    pub tables: (u32, u32),
    /// Rows so far.
    pub rows: RowCount,
    /// COPY bytes so far.
    pub bytes: ByteCount,
    /// Why it failed, where it did.
    pub error: Option<String>,
    /// What else `steep_repl.init_progress` says.
    pub progress: MirrorProgress,
}

/// What moves, for SQL users.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct MirrorProgress {
    /// COPY bytes in all, as far as can be told.
    pub bytes_total: ByteCount,
    /// Bytes on the wire so far.
    pub wire_bytes: ByteCount,
    /// Rows a second, smoothed.
    pub rows_sec: f64,
    /// COPY bytes a second, smoothed.
    pub bytes_sec: f64,
    /// Seconds until the phase ends, where that can be told.
    pub eta_seconds: Option<u64>,
    /// Workers busy now.
    pub workers: u8,
    /// Parts that were begun again.
    pub retries: u64,
}
