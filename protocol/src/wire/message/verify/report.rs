//! What a comparison of rows came to.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::super::repair::RepairPlan;
use super::RowKey;
use crate::wire::{Fault, Identifier, TableName};

/// The result.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct VerifyReport {
    /// Tables, by name.
    pub tables: Vec<TableReport>,
    /// How the two nodes hang together.
    pub relation: Relation,
    /// Of [`Comparing::Repair`](super::Comparing::Repair) and [`Comparing::Merge`](super::Comparing::Merge).
    pub plan: Option<RepairPlan>,
}

/// How the two nodes hang together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Relation {
    /// One is not a replica of the other: what is written during the comparison may count as a difference.
    #[default]
    Unrelated,
    /// One replicates from the other.
    Replicates,
    /// One replicates from the other, but its subscription was not connected.
    Stopped,
}

/// What came of a table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableReport {
    /// Its name.
    pub name: TableName,
    /// Why its rows are not compared.
    pub problem: Option<TableProblem>,
    /// The columns by which its rows are told apart; none where there is no common key.
    pub key: Vec<Identifier>,
    /// Rows read on the first node.
    pub rows_a: u64,
    /// Rows read on the second node.
    pub rows_b: u64,
    /// Rows that only the first node has.
    pub missing: u64,
    /// Rows that only the second node has.
    pub extra: u64,
    /// Rows with the same key and other columns.
    pub different: u64,
    /// Rows that changed too often to be compared.
    pub changing: u64,
    /// How many of the rows with the same key differ in which column, the most first; of an overlap.
    pub columns: Vec<(Identifier, u64)>,
    /// Some of the rows that differ.
    pub examples: Vec<RowDifference>,
}

impl TableReport {
    /// A table that was not compared yet.
    #[must_use]
    pub fn new(name: TableName) -> Self {
        Self {
            name,
            problem: None,
            key: Vec::new(),
            rows_a: 0,
            rows_b: 0,
            missing: 0,
            extra: 0,
            different: 0,
            changing: 0,
            columns: Vec::new(),
            examples: Vec::new(),
        }
    }

    /// Whether no difference was found.
    #[must_use]
    pub fn is_equal(&self) -> bool {
        self.problem.is_none() && self.differences() == 0
    }

    /// Whether it could not be read, so that nothing is known of its rows.
    #[must_use]
    pub fn is_unreadable(&self) -> bool {
        matches!(self.problem, Some(TableProblem::Unreadable(_)))
    }

    /// Rows that both nodes have, with the same columns.
    #[must_use]
    pub fn equal_rows(&self) -> u64 {
        let others = self.missing + self.different + self.changing;
        self.rows_a.saturating_sub(others)
    }

    /// Rows that differ.
    #[must_use]
    pub fn differences(&self) -> u64 {
        self.missing + self.extra + self.different
    }
}

impl VerifyReport {
    /// Whether no difference was found.
    #[must_use]
    pub fn is_equal(&self) -> bool {
        self.tables.iter().all(TableReport::is_equal)
    }

    /// The same, as seen from the other node.
    #[must_use]
    pub fn reversed(mut self) -> Self {
        for table in &mut self.tables {
            table.reverse();
        }
        self
    }
}

impl TableReport {
    /// The same, as seen from the other node.
    #[must_use]
    pub fn reversed(mut self) -> Self {
        self.reverse();
        self
    }

    /// The same without single rows and columns.
    #[must_use]
    pub fn summary(&self) -> Self {
        Self {
            key: Vec::new(),
            columns: Vec::new(),
            examples: Vec::new(),
            ..self.clone()
        }
    }

    fn reverse(&mut self) {
        std::mem::swap(&mut self.rows_a, &mut self.rows_b);
        std::mem::swap(&mut self.missing, &mut self.extra);
        self.problem = self.problem.take().map(|problem| match problem {
            TableProblem::OnlyOnA => TableProblem::OnlyOnB,
            TableProblem::OnlyOnB => TableProblem::OnlyOnA,
            TableProblem::NoKey => TableProblem::NoKey,
            TableProblem::Unreadable(why) => TableProblem::Unreadable(why),
            TableProblem::Columns { only_a, only_b } => TableProblem::Columns {
                only_a: only_b,
                only_b: only_a,
            },
        });
        for example in &mut self.examples {
            example.kind = match example.kind {
                DifferenceKind::Missing => DifferenceKind::Extra,
                DifferenceKind::Extra => DifferenceKind::Missing,
                DifferenceKind::Different => DifferenceKind::Different,
            };
            for column in &mut example.columns {
                std::mem::swap(&mut column.a, &mut column.b);
            }
        }
        self.examples
            .sort_by(|one, other| (one.kind, &one.key).cmp(&(other.kind, &other.key)));
    }
}

/// Why a table's rows are not compared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum TableProblem {
    /// Only the first node has it.
    OnlyOnA,
    /// Only the second node has it.
    OnlyOnB,
    /// No key is unique on both nodes, so nobody can say which rows are the same.
    NoKey,
    /// Its columns are not the same.
    Columns {
        /// Columns that only the first node has.
        only_a: Vec<Identifier>,
        /// Columns that only the second node has.
        only_b: Vec<Identifier>,
    },
    /// It could not be read; the fault says where and why.
    Unreadable(Box<Fault>),
}

/// How a row differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum DifferenceKind {
    /// Only the first node has it.
    Missing,
    /// Only the second node has it.
    Extra,
    /// Both have it, with other columns.
    Different,
}

/// A row that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowDifference {
    /// How.
    pub kind: DifferenceKind,
    /// Its key, in the order of [`TableReport::key`]. Without a key: the place of the row (`ctid`) on the node
    /// that has it.
    pub key: RowKey,
    /// The columns that differ; with values, all columns of a row that only one node has.
    pub columns: Vec<ColumnDifference>,
}

/// A column that differs.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ColumnDifference {
    /// Its name.
    pub column: Identifier,
    /// The beginning of its value on the first node, where values are shown; `None` for NULL.
    pub a: Option<String>,
    /// The same on the second node.
    pub b: Option<String>,
}

impl fmt::Debug for ColumnDifference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ColumnDifference({}, …)", self.column)
    }
}
