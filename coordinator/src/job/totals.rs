//! Sizes of a plan, and sums over parts.

use std::ops::Add;

use serde::{Deserialize, Serialize};
use steep_protocol::{ByteCount, Lsn, RowCount};

/// The size of the plan and its consistent point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The consistent point; 0/0 without a slot.
    pub lsn: Lsn,
    /// Tables.
    pub tables: u32,
    /// Parts.
    pub parts: u32,
}

/// Sums over distinct parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Totals {
    /// Parts.
    pub parts: u32,
    /// Rows in them.
    pub rows: RowCount,
    /// COPY bytes in them.
    pub bytes: ByteCount,
}

impl Add for Totals {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            parts: self.parts.saturating_add(other.parts),
            rows: self.rows + other.rows,
            bytes: self.bytes + other.bytes,
        }
    }
}

/// Tables whose parts are all committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Complete {
    /// Tables.
    pub tables: u32,
    /// Their parts.
    pub sum: Totals,
}

/// Whether the source's agent can prove what it sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Witness {
    /// The process that sent it is still running.
    #[default]
    Present,
    /// It restarted after the last row was sent. Each part was compared with the source's counts when
    /// it was committed, so the ledger and our sums still prove the copy.
    Restarted,
}
