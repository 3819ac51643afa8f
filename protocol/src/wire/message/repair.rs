//! Repairing a replica's rows: the plan that a comparison makes, and what is written of it.
//!
//! A plan has keys and digests, never values: these go from the source's agent to the replica's when the plan is
//! applied. The operator keeps the plan and orders it page by page, each an [`Order::Repair`](super::api::Order::Repair).

use std::fmt;

use serde::{Deserialize, Serialize};

use super::agent::PeerAddress;
use super::verify::{DifferenceKind, RowDigest, RowKey, RowShape};
use crate::wire::limits::{REPAIR_PAGE_BYTES, REPAIR_PAGE_ROWS};
use crate::wire::{ByteCount, Fault, Identifier, NodeId, TableName};

/// The rows that a comparison found to differ, as far as they can be repaired.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepairPlan {
    /// The source's database.
    pub source: DatabaseId,
    /// The replica's.
    pub target: DatabaseId,
    /// The tables in whose rows something is to be done, those that others refer to first.
    pub tables: Vec<PlannedTable>,
}

impl RepairPlan {
    /// Rows to be written.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.tables.iter().map(|table| table.rows.len()).sum()
    }
}

/// Which database a plan is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatabaseId {
    /// `pg_control_system().system_identifier`, without a sign.
    pub system: u64,
    /// `pg_database.oid`.
    pub database: u32,
}

impl fmt::Display for DatabaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "system {}, database {}", self.system, self.database)
    }
}

/// What is to be done in a table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedTable {
    /// Its name.
    pub name: TableName,
    /// How its rows were digested.
    pub shape: RowShape,
    /// The rows, in the order in which they are written.
    pub rows: Vec<PlannedRow>,
}

impl PlannedTable {
    /// About how many bytes its name and columns take in a message.
    #[must_use]
    pub fn overhead(&self) -> usize {
        let names = self.shape.columns.iter().chain(&self.shape.key);
        let names: usize = names.map(|name| name.as_str().len() + 2).sum();
        names + self.name.schema.as_str().len() + self.name.table.as_str().len() + 16
    }
}

/// What is to be done about a row.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PlannedRow {
    /// Its key, in the order of the shape.
    pub key: RowKey,
    /// What.
    pub change: RowChange,
    /// The columns in which the two rows differ, where both have it.
    pub columns: Vec<Identifier>,
    /// Of a merge, where both have it: which of them was modified last, if that was asked and can be told.
    pub newer: Option<MergeSide>,
    /// Of a merge: another row that stands in the way of this one.
    pub clash: Option<Clash>,
}

/// One of the two nodes of a merge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MergeSide {
    /// The first, which the operator named as the target.
    A,
    /// The second, which the operator named as the source.
    B,
}

/// A row with another key and the same values in a unique index.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Clash {
    /// Where it is.
    pub on: MergeSide,
    /// The columns of the index.
    pub columns: Vec<Identifier>,
    /// Its key.
    pub key: RowKey,
}

impl PlannedRow {
    /// A row of which only that is known.
    #[must_use]
    pub fn new(key: RowKey, change: RowChange) -> Self {
        Self {
            key,
            change,
            columns: Vec::new(),
            newer: None,
            clash: None,
        }
    }
}

impl PlannedRow {
    /// About how many bytes it takes in a message.
    #[must_use]
    pub fn size(&self) -> usize {
        let key: usize = self.key.0.iter().map(|part| part.len() + 4).sum();
        let columns: usize = self.columns.iter().map(|c| c.as_str().len() + 2).sum();
        let clash = self.clash.iter().map(|clash| {
            let names = clash.columns.iter().map(|c| c.as_str().len() + 2);
            let key = clash.key.0.iter().map(|part| part.len() + 4);
            names.chain(key).sum::<usize>() + 8
        });
        key + columns + clash.sum::<usize>() + 48
    }
}

/// A change of the replica's row. It is made only while both rows are still the ones with these digests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum RowChange {
    /// It is missing: the source's is inserted.
    Insert {
        /// The source's row.
        source: RowDigest,
    },
    /// The source has no such row: it is deleted.
    Delete {
        /// The replica's row.
        target: RowDigest,
    },
    /// It has other columns than the source's.
    Replace {
        /// The source's row.
        source: RowDigest,
        /// The replica's row.
        target: RowDigest,
    },
}

impl RowChange {
    /// The change that makes the replica's row the source's; `None` where they are equal.
    #[must_use]
    pub fn between(source: Option<RowDigest>, target: Option<RowDigest>) -> Option<Self> {
        match (source, target) {
            (Some(source), None) => Some(Self::Insert { source }),
            (None, Some(target)) => Some(Self::Delete { target }),
            (Some(source), Some(target)) if source != target => {
                Some(Self::Replace { source, target })
            }
            (Some(_), Some(_)) | (None, None) => None,
        }
    }

    /// The source's row.
    #[must_use]
    pub fn source(self) -> Option<RowDigest> {
        match self {
            Self::Insert { source } | Self::Replace { source, .. } => Some(source),
            Self::Delete { .. } => None,
        }
    }

    /// The replica's row.
    #[must_use]
    pub fn target(self) -> Option<RowDigest> {
        match self {
            Self::Delete { target } | Self::Replace { target, .. } => Some(target),
            Self::Insert { .. } => None,
        }
    }

    /// How the rows differ.
    #[must_use]
    pub fn kind(self) -> DifferenceKind {
        match self {
            Self::Insert { .. } => DifferenceKind::Missing,
            Self::Delete { .. } => DifferenceKind::Extra,
            Self::Replace { .. } => DifferenceKind::Different,
        }
    }
}

/// A page of a plan that an operator orders to be applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepairSpec {
    /// The source.
    pub node_a: NodeId,
    /// The replica, which is written to.
    pub node_b: NodeId,
    /// The page: at most [`REPAIR_PAGE_ROWS`] rows and about [`REPAIR_PAGE_BYTES`].
    pub plan: RepairPlan,
    /// Bytes of rows a second.
    pub max_rate: Option<ByteCount>,
    /// Its place in the whole.
    pub place: PagePlace,
}

/// Where a page is in its plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PagePlace {
    /// From 1.
    pub page: u32,
    /// Pages in all.
    pub pages: u32,
    /// What came of the pages before.
    pub before: RepairCounts,
}

impl RepairSpec {
    /// Whether it is no longer than a page may be.
    #[must_use]
    pub fn fits(&self) -> bool {
        let tables = &self.plan.tables;
        let rows = tables.iter().flat_map(|table| &table.rows);
        let bytes: usize = rows.map(PlannedRow::size).sum();
        let names: usize = tables.iter().map(PlannedTable::overhead).sum();
        self.plan.rows() <= REPAIR_PAGE_ROWS && bytes + names <= 2 * REPAIR_PAGE_BYTES
    }
}

/// Arguments of the command to the replica's agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepairRows {
    /// The source's agent.
    pub source: PeerAddress,
    /// See [`RepairSpec::plan`].
    pub plan: RepairPlan,
    /// See [`RepairSpec::max_rate`].
    pub max_rate: Option<ByteCount>,
}

/// What came of a page.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RepairReport {
    /// Each table of the page.
    pub tables: Vec<RepairedTable>,
    /// Why it went no further; what is counted is written.
    pub stopped: Option<Fault>,
}

impl RepairReport {
    /// Over all tables.
    #[must_use]
    pub fn counts(&self) -> RepairCounts {
        let mut all = RepairCounts::default();
        for table in &self.tables {
            all.add(&table.counts);
        }
        all
    }
}

/// What came of a table's rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepairedTable {
    /// Its name.
    pub name: TableName,
    /// How many of its rows.
    pub counts: RepairCounts,
    /// The first reason why a row could not be written.
    pub reason: Option<Fault>,
}

impl RepairedTable {
    /// A table of which nothing was written yet.
    #[must_use]
    pub fn new(name: TableName) -> Self {
        Self {
            name,
            counts: RepairCounts::default(),
            reason: None,
        }
    }
}

/// Rows of a plan, by what came of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RepairCounts {
    /// Written.
    pub repaired: u64,
    /// The replica's row was the source's already.
    pub equal: u64,
    /// One of the rows was no longer what the plan saw, or was just being written to.
    pub changed: u64,
    /// Refused by the server.
    pub failed: u64,
}

impl RepairCounts {
    /// Adds others.
    pub fn add(&mut self, other: &Self) {
        self.repaired += other.repaired;
        self.equal += other.equal;
        self.changed += other.changed;
        self.failed += other.failed;
    }

    /// All of them.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.repaired + self.equal + self.changed + self.failed
    }
}

/// One version of a row in a server's heap (PostgreSQL manual, "System Columns"). While two readings show the same
/// place and the same `xmin`, nobody has changed the row in between, however often it was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowVersion {
    /// `tableoid` and `ctid`.
    pub place: String,
    /// The transaction that wrote it.
    pub xmin: u32,
    /// One that locks, deletes or replaces it, or has tried to; 0 where there was none.
    pub xmax: u32,
}

impl RowVersion {
    /// Whether it is the same version as at another time.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        (&self.place, self.xmin) == (&other.place, other.xmin)
    }
}

/// The transactions of a server at one moment (`pg_current_snapshot()`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Horizon {
    /// The oldest that is not over.
    pub oldest: u64,
    /// The first that has not begun.
    pub next: u64,
}

/// A row that a server has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeenRow {
    /// Its version.
    pub version: RowVersion,
    /// Its digest.
    pub digest: RowDigest,
}

/// A row with its values.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FetchedRow {
    /// The row.
    pub seen: SeenRow,
    /// Its columns as text, in the order of the shape; `None` where they are longer than was asked for.
    pub values: Option<Vec<Option<String>>>,
}

impl fmt::Debug for FetchedRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FetchedRow")
            .field("seen", &self.seen)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_what_makes_the_replicas_row_the_sources() {
        let [one, two] = [1, 2].map(RowDigest);
        let between = RowChange::between;
        assert_eq!(
            between(Some(one), None),
            Some(RowChange::Insert { source: one })
        );
        assert_eq!(
            between(None, Some(two)),
            Some(RowChange::Delete { target: two })
        );
        let replace = RowChange::Replace {
            source: one,
            target: two,
        };
        assert_eq!(between(Some(one), Some(two)), Some(replace));
        assert_eq!(between(Some(one), Some(one)), None);
        assert_eq!(between(None, None), None);
        assert_eq!((replace.source(), replace.target()), (Some(one), Some(two)));
    }

    #[test]
    fn values_are_in_no_debug_form() {
        let seen = SeenRow {
            version: RowVersion {
                place: "1 (0,1)".to_owned(),
                xmin: 1,
                xmax: 0,
            },
            digest: RowDigest(1),
        };
        let row = FetchedRow {
            seen,
            values: Some(vec![Some("4711".to_owned())]),
        };
        assert!(!format!("{row:?}").contains("4711"));
    }
}
