//! The plan of a merge as a file that people read and edit: JSON lines, first a header, then a line for each row with
//! whose row counts. It has keys, and digests of whole rows, no other values. Pure.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use steep_protocol::message::repair::{
    Clash, DatabaseId, MergeSide, PlannedRow, PlannedTable, RepairPlan, RowChange,
};
use steep_protocol::message::verify::RowShape;
use steep_protocol::{Identifier, NodeId, TableName};

use crate::args::Strategy;
use crate::commands::repair::plan::{
    Database, Invalid, Plan as Ordered, digest, hexadecimal, key, line, reason, texts,
};

/// The version of the format.
const VERSION: u32 = 1;

/// The rows that differ, and whose count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) node_a: NodeId,
    pub(super) node_b: NodeId,
    database_a: DatabaseId,
    database_b: DatabaseId,
    /// Those that others refer to first.
    tables: Vec<Table>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Table {
    name: TableName,
    shape: RowShape,
    rows: Vec<(PlannedRow, Option<MergeSide>)>,
}

/// Rows of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Counts {
    /// Only the first node has.
    pub(crate) only_a: usize,
    /// Only the second node has.
    pub(crate) only_b: usize,
    /// Both have, with other columns.
    pub(crate) conflicts: usize,
    /// That clash with another row in a unique index.
    pub(crate) clashes: usize,
    /// That nobody has decided.
    pub(crate) undecided: usize,
    /// To be written to the first node.
    pub(crate) to_a: usize,
    /// To be written to the second node.
    pub(crate) to_b: usize,
}

/// The first line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    merge_plan: u32,
    created_at: String,
    node_a: NodeId,
    node_b: NodeId,
    strategy: String,
    database_a: Database,
    database_b: Database,
    tables: Vec<Head>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Head {
    schema: Identifier,
    table: Identifier,
    key: Vec<Identifier>,
    columns: Vec<Identifier>,
    only_a: usize,
    only_b: usize,
    conflicts: usize,
    undecided: usize,
}

/// A further line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    schema: Identifier,
    table: Identifier,
    kind: Kind,
    key: Map<String, Value>,
    /// Whose row counts: the other node's becomes it. If that node has none, the other node's is deleted.
    decision: Option<MergeSide>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    columns: Vec<Identifier>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    newer: Option<MergeSide>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    clash: Option<ClashEntry>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    digest_a: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    digest_b: Option<String>,
}

/// Another row that has the same values in a unique index.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ClashEntry {
    on: MergeSide,
    unique: Vec<Identifier>,
    key: Map<String, Value>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    OnlyA,
    OnlyB,
    Conflict,
}

impl Kind {
    fn of(change: RowChange) -> Self {
        match change {
            RowChange::Insert { .. } => Self::OnlyA,
            RowChange::Delete { .. } => Self::OnlyB,
            RowChange::Replace { .. } => Self::Conflict,
        }
    }
}

/// Whose row counts, if the strategy can say. Rows that clash with another one are the operator's to decide.
fn decision(row: &PlannedRow, strategy: Strategy) -> Option<MergeSide> {
    if row.clash.is_some() {
        return None;
    }
    match (Kind::of(row.change), strategy) {
        (Kind::OnlyA, _) | (Kind::Conflict, Strategy::PreferNodeA) => Some(MergeSide::A),
        (Kind::OnlyB, _) | (Kind::Conflict, Strategy::PreferNodeB) => Some(MergeSide::B),
        (Kind::Conflict, Strategy::LastModified) => row.newer,
        (Kind::Conflict, Strategy::Manual) => None,
    }
}

/// The same change, as seen from the other node.
fn reversed(row: &PlannedRow) -> Option<PlannedRow> {
    let change = RowChange::between(row.change.target(), row.change.source())?;
    Some(PlannedRow::new(row.key.clone(), change))
}

impl Plan {
    /// The plan of a comparison, decided as far as the strategy can.
    pub(super) fn new(nodes: (NodeId, NodeId), plan: RepairPlan, strategy: Strategy) -> Self {
        let decided = |row: PlannedRow| {
            let decision = decision(&row, strategy);
            (row, decision)
        };
        let tables = plan.tables.into_iter().map(|table| Table {
            name: table.name,
            shape: table.shape,
            rows: table.rows.into_iter().map(decided).collect(),
        });
        Self {
            node_a: nodes.0,
            node_b: nodes.1,
            database_a: plan.source,
            database_b: plan.target,
            tables: tables.collect(),
        }
    }

    /// Rows by table.
    pub(super) fn counts(&self) -> BTreeMap<&TableName, Counts> {
        let mut all: BTreeMap<&TableName, Counts> = BTreeMap::new();
        for table in &self.tables {
            let counts = all.entry(&table.name).or_default();
            for (row, decision) in &table.rows {
                match Kind::of(row.change) {
                    Kind::OnlyA => counts.only_a += 1,
                    Kind::OnlyB => counts.only_b += 1,
                    Kind::Conflict => counts.conflicts += 1,
                }
                counts.clashes += usize::from(row.clash.is_some());
                match decision {
                    Some(MergeSide::A) => counts.to_b += 1,
                    Some(MergeSide::B) => counts.to_a += 1,
                    None => counts.undecided += 1,
                }
            }
        }
        all
    }

    /// Rows in it.
    pub(super) fn rows(&self) -> usize {
        self.tables.iter().map(|table| table.rows.len()).sum()
    }

    /// Rows that nobody has decided.
    pub(super) fn undecided(&self) -> usize {
        self.counts().values().map(|counts| counts.undecided).sum()
    }

    /// Those of which neither row is known to be the newer one.
    pub(super) fn undated(&self) -> usize {
        let rows = self.tables.iter().flat_map(|table| &table.rows);
        let undated = rows.filter(|(row, decision)| {
            let conflict = Kind::of(row.change) == Kind::Conflict && row.clash.is_none();
            decision.is_none() && conflict && row.newer.is_none()
        });
        undated.count()
    }

    /// Some of those that clash with others, each as a sentence.
    pub(super) fn clashes(&self, most: usize) -> Vec<String> {
        let rows = self.tables.iter().flat_map(|table| {
            let undecided = table.rows.iter().filter(|(_, decision)| decision.is_none());
            undecided.filter_map(move |(row, _)| Some((table, row, row.clash.as_ref()?)))
        });
        let sentence = |(table, row, clash): (&Table, &PlannedRow, &Clash)| {
            let on = match clash.on {
                MergeSide::A => &self.node_a,
                MergeSide::B => &self.node_b,
            };
            let unique: Vec<&str> = clash.columns.iter().map(Identifier::as_str).collect();
            format!(
                "{}: the row ({}) has the same {} as ({}) on {on}",
                table.name,
                row.key.0.join(", "),
                unique.join(", "),
                clash.key.0.join(", ")
            )
        };
        rows.map(sentence).take(most).collect()
    }

    /// The pages of what is decided, each with the node that it is written to: those whose rows come from the first
    /// node, then the others.
    pub(super) fn pages(&self) -> Vec<(MergeSide, RepairPlan)> {
        let mut all = Vec::new();
        for from in [MergeSide::A, MergeSide::B] {
            let tables = self.tables.iter().map(|table| {
                let decided = table.rows.iter().filter(|(_, side)| *side == Some(from));
                let rows = decided.filter_map(|(row, _)| match from {
                    MergeSide::A => Some(PlannedRow::new(row.key.clone(), row.change)),
                    MergeSide::B => reversed(row),
                });
                PlannedTable {
                    name: table.name.clone(),
                    shape: table.shape.clone(),
                    rows: rows.collect(),
                }
            });
            let a = (self.node_a.clone(), self.database_a);
            let b = (self.node_b.clone(), self.database_b);
            let (to, source, target) = match from {
                MergeSide::A => (MergeSide::B, a, b),
                MergeSide::B => (MergeSide::A, b, a),
            };
            let plan = RepairPlan {
                source: source.1,
                target: target.1,
                tables: tables.collect(),
            };
            let ordered = Ordered::new((source.0, target.0), plan);
            all.extend(ordered.pages().into_iter().map(|page| (to, page)));
        }
        all
    }

    /// The file.
    pub(super) fn to_lines(&self, strategy: Strategy, created_at: &str) -> String {
        let counts = self.counts();
        let head = |table: &Table| {
            let counts = counts.get(&table.name).copied().unwrap_or_default();
            Head {
                schema: table.name.schema.clone(),
                table: table.name.table.clone(),
                key: table.shape.key.clone(),
                columns: table.shape.columns.clone(),
                only_a: counts.only_a,
                only_b: counts.only_b,
                conflicts: counts.conflicts,
                undecided: counts.undecided,
            }
        };
        let mut text = line(&Header {
            merge_plan: VERSION,
            created_at: created_at.to_owned(),
            node_a: self.node_a.clone(),
            node_b: self.node_b.clone(),
            strategy: strategy.name().to_owned(),
            database_a: Database::of(self.database_a),
            database_b: Database::of(self.database_b),
            tables: self.tables.iter().map(head).collect(),
        });
        for table in &self.tables {
            for (row, decision) in &table.rows {
                text.push_str(&line(&Entry::of(table, row, *decision)));
            }
        }
        text
    }

    /// Reads a file. Lines may be missing, since people take out what they don't want yet.
    ///
    /// # Errors
    /// The first line that is not understood, and why.
    pub(super) fn parse(text: &str) -> Result<Self, Invalid> {
        let mut lines = text.lines().enumerate();
        let invalid = |at: usize, reason: String| Invalid {
            line: at + 1,
            reason,
        };
        let first = lines.next().map_or("", |(_, line)| line);
        let version: Option<u64> = serde_json::from_str::<Value>(first)
            .ok()
            .and_then(|header| header.get("merge_plan").and_then(Value::as_u64));
        if version != Some(u64::from(VERSION)) {
            let text = match version {
                Some(other) => format!("the plan has format {other}, this version reads {VERSION}"),
                None => "this is not a plan of a merge".to_owned(),
            };
            return Err(invalid(0, text));
        }
        let header: Header =
            serde_json::from_str(first).map_err(|error| invalid(0, reason(&error)))?;
        let database = |database: &Database| {
            let parsed = database.id();
            parsed.ok_or_else(|| invalid(0, "a system identifier is a number".to_owned()))
        };
        let mut plan = Self {
            database_a: database(&header.database_a)?,
            database_b: database(&header.database_b)?,
            node_a: header.node_a,
            node_b: header.node_b,
            tables: Vec::new(),
        };
        for head in header.tables {
            plan.tables.push(Table {
                name: TableName {
                    schema: head.schema,
                    table: head.table,
                },
                shape: RowShape {
                    columns: head.columns,
                    key: head.key,
                },
                rows: Vec::new(),
            });
        }
        for (at, line) in lines.filter(|(_, line)| !line.trim().is_empty()) {
            let entry: Entry =
                serde_json::from_str(line).map_err(|error| invalid(at, reason(&error)))?;
            plan.add(&entry).map_err(|reason| invalid(at, reason))?;
        }
        Ok(plan)
    }

    fn add(&mut self, entry: &Entry) -> Result<(), String> {
        let own = |table: &&mut Table| {
            (&table.name.schema, &table.name.table) == (&entry.schema, &entry.table)
        };
        let table = self.tables.iter_mut().find(own);
        let table = table
            .ok_or_else(|| format!("the header has no table {}.{}", entry.schema, entry.table))?;
        let row = entry.row(&table.shape)?;
        table.rows.push((row, entry.decision));
        Ok(())
    }
}

impl Entry {
    fn of(table: &Table, row: &PlannedRow, decision: Option<MergeSide>) -> Self {
        Self {
            schema: table.name.schema.clone(),
            table: table.name.table.clone(),
            kind: Kind::of(row.change),
            key: texts(&row.key, &table.shape),
            decision,
            columns: row.columns.clone(),
            newer: row.newer,
            clash: row.clash.as_ref().map(|clash| ClashEntry {
                on: clash.on,
                unique: clash.columns.clone(),
                key: texts(&clash.key, &table.shape),
            }),
            digest_a: row.change.source().map(hexadecimal),
            digest_b: row.change.target().map(hexadecimal),
        }
    }

    fn row(&self, shape: &RowShape) -> Result<PlannedRow, String> {
        let clash = match &self.clash {
            None => None,
            Some(clash) => Some(Clash {
                on: clash.on,
                columns: clash.unique.clone(),
                key: key(&clash.key, shape)?,
            }),
        };
        let change = RowChange::between(digest(&self.digest_a)?, digest(&self.digest_b)?);
        match change {
            Some(change) if Kind::of(change) == self.kind => Ok(PlannedRow {
                columns: self.columns.clone(),
                newer: self.newer,
                clash,
                ..PlannedRow::new(key(&self.key, shape)?, change)
            }),
            _ => Err("the digests do not belong to that kind of difference".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests;
