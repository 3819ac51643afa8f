//! What a node shows about itself in SQL.

use serde::{Deserialize, Serialize};

use crate::wire::{ByteCount, JobId, NodeId, NodeState, Phase, RowCount};

/// One node's row in its own `steep_repl` tables.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MirrorRow {
    /// Its state.
    pub state: NodeState,
    /// Its source.
    pub source: Option<NodeId>,
    /// Its current or last job.
    pub job: Option<JobId>,
    /// The phase, while a job is active.
    pub phase: Option<Phase>,
    /// 0 to 100.
    pub overall_percent: f64,
    /// Tables finished, and tables in total.
    pub tables: (u32, u32),
    /// Rows so far.
    pub rows: RowCount,
    /// COPY bytes so far.
    pub bytes: ByteCount,
    /// Why it failed, if it did.
    pub error: Option<String>,
    /// The remaining columns of `steep_repl.init_progress`.
    pub progress: MirrorProgress,
}

/// Progress for SQL users.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct MirrorProgress {
    /// Estimated COPY bytes in total.
    pub bytes_total: ByteCount,
    /// Bytes on the wire so far.
    pub wire_bytes: ByteCount,
    /// Rows a second, smoothed.
    pub rows_sec: f64,
    /// COPY bytes a second, smoothed.
    pub bytes_sec: f64,
    /// Seconds until the phase ends, if known.
    pub eta_seconds: Option<u64>,
    /// Workers busy now.
    pub workers: u8,
    /// Parts that were restarted.
    pub retries: u64,
}
