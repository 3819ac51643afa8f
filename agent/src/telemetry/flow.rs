//! Rows on their way in one direction, counted.

use std::sync::atomic::{AtomicU64, Ordering};

use steep_protocol::{ByteCount, RowCount};

/// Counters of one direction, from the start of the process.
#[derive(Debug, Default)]
pub struct Flow {
    bytes: AtomicU64,
    wire: AtomicU64,
    rows: AtomicU64,
    parts: AtomicU64,
}

/// What a [`Flow`] has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FlowSum {
    /// COPY bytes.
    pub bytes: u64,
    /// The same bytes as they crossed the network, with their headers.
    pub wire: u64,
    /// Rows of whole parts.
    pub rows: u64,
    /// Whole parts.
    pub parts: u64,
}

impl Flow {
    /// So many bytes have moved.
    pub fn moved(&self, bytes: ByteCount, wire: ByteCount) {
        self.bytes.fetch_add(bytes.0, Ordering::Relaxed);
        self.wire.fetch_add(wire.0, Ordering::Relaxed);
    }

    /// A part is complete.
    pub fn completed(&self, rows: RowCount) {
        self.rows.fetch_add(rows.0, Ordering::Relaxed);
        self.parts.fetch_add(1, Ordering::Relaxed);
    }

    /// What it has come to.
    #[must_use]
    pub fn sum(&self) -> FlowSum {
        FlowSum {
            bytes: self.bytes.load(Ordering::Relaxed),
            wire: self.wire.load(Ordering::Relaxed),
            rows: self.rows.load(Ordering::Relaxed),
            parts: self.parts.load(Ordering::Relaxed),
        }
    }
}
