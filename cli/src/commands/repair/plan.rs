//! A plan as a file that people read and edit: JSON lines, first a header, then a line for each row, in the order in
//! which rows are written. It has keys, and digests of whole rows, no other values. Pure.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use steep_protocol::limits::{REPAIR_KEY_MAX, REPAIR_PAGE_BYTES, REPAIR_PAGE_ROWS};
use steep_protocol::message::repair::{
    DatabaseId, PlannedRow, PlannedTable, RepairPlan, RowChange,
};
use steep_protocol::message::verify::{RowDigest, RowKey, RowShape};
use steep_protocol::{Identifier, NodeId, TableName};

/// The version of the format.
const VERSION: u32 = 1;

/// A plan in the order in which it is applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::commands) struct Plan {
    pub(in crate::commands) node_a: NodeId,
    pub(in crate::commands) node_b: NodeId,
    source: DatabaseId,
    target: DatabaseId,
    /// Rows of one table that follow one another. A table comes twice where rows are deleted and others written.
    runs: Vec<PlannedTable>,
}

/// The first line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    repair_plan: u32,
    created_at: String,
    node_a: NodeId,
    node_b: NodeId,
    database_a: Database,
    database_b: Database,
    tables: Vec<Table>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::commands) struct Database {
    /// As text, since JSON's numbers are too short for it.
    system_identifier: String,
    oid: u32,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    schema: Identifier,
    table: Identifier,
    key: Vec<Identifier>,
    columns: Vec<Identifier>,
    missing: usize,
    extra: usize,
    different: usize,
}

/// A further line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    schema: Identifier,
    table: Identifier,
    kind: Kind,
    key: Map<String, Value>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    columns: Vec<Identifier>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    digest_a: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    digest_b: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    Missing,
    Extra,
    Different,
}

/// Why a file is no plan.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {reason}")]
pub(in crate::commands) struct Invalid {
    pub(in crate::commands) line: usize,
    pub(in crate::commands) reason: String,
}

impl Plan {
    /// Puts a plan in order: rows are deleted first, those that refer to others before these; then the others are
    /// written, those that others refer to first.
    pub(in crate::commands) fn new(nodes: (NodeId, NodeId), plan: RepairPlan) -> Self {
        let (mut deleted, mut written) = (Vec::new(), Vec::new());
        for table in plan.tables {
            let PlannedTable { name, shape, rows } = table;
            let is_delete = |row: &PlannedRow| matches!(row.change, RowChange::Delete { .. });
            let (gone, new): (Vec<_>, Vec<_>) = rows.into_iter().partition(is_delete);
            for (rows, runs) in [(gone, &mut deleted), (new, &mut written)] {
                if !rows.is_empty() {
                    let (name, shape) = (name.clone(), shape.clone());
                    runs.push(PlannedTable { name, shape, rows });
                }
            }
        }
        let mut plan = Self {
            node_a: nodes.0,
            node_b: nodes.1,
            source: plan.source,
            target: plan.target,
            runs: Vec::new(),
        };
        for run in deleted.into_iter().rev().chain(written) {
            plan.push(run);
        }
        plan
    }

    /// Adds rows to those before, if they are of the same table.
    fn push(&mut self, run: PlannedTable) {
        match self.runs.last_mut().filter(|last| last.name == run.name) {
            Some(last) => last.rows.extend(run.rows),
            None => self.runs.push(run),
        }
    }

    /// Rows in it.
    pub(super) fn rows(&self) -> usize {
        self.runs.iter().map(|run| run.rows.len()).sum()
    }

    /// Missing, extra and different rows by table.
    pub(super) fn tables(&self) -> BTreeMap<&TableName, [usize; 3]> {
        let mut tables = BTreeMap::new();
        for run in &self.runs {
            let counts: &mut [usize; 3] = tables.entry(&run.name).or_default();
            for row in &run.rows {
                counts[match Kind::of(row.change) {
                    Kind::Missing => 0,
                    Kind::Extra => 1,
                    Kind::Different => 2,
                }] += 1;
            }
        }
        tables
    }

    /// What is ordered at once, in order.
    pub(in crate::commands) fn pages(&self) -> Vec<RepairPlan> {
        let mut pages: Vec<Vec<PlannedTable>> = Vec::new();
        let (mut rows, mut bytes) = (usize::MAX, usize::MAX);
        for run in &self.runs {
            let mut begins = true;
            for row in &run.rows {
                // Only people want to know the columns.
                let row = PlannedRow {
                    columns: Vec::new(),
                    ..row.clone()
                };
                let more = row.size() + if begins { run.overhead() } else { 0 };
                let full = rows >= REPAIR_PAGE_ROWS
                    || bytes.saturating_add(more) > REPAIR_PAGE_BYTES && rows > 0;
                if full {
                    pages.push(Vec::new());
                    (rows, bytes, begins) = (0, run.overhead(), true);
                }
                let Some(page) = pages.last_mut() else {
                    continue;
                };
                if begins {
                    page.push(PlannedTable {
                        name: run.name.clone(),
                        shape: run.shape.clone(),
                        rows: Vec::new(),
                    });
                    begins = false;
                }
                if let Some(table) = page.last_mut() {
                    table.rows.push(row);
                }
                rows += 1;
                bytes = bytes.saturating_add(more);
            }
        }
        let page = |tables| RepairPlan {
            source: self.source,
            target: self.target,
            tables,
        };
        pages.into_iter().map(page).collect()
    }

    /// The file.
    pub(super) fn to_lines(&self, created_at: &str) -> String {
        let mut tables: BTreeMap<&TableName, Table> = BTreeMap::new();
        let counts = self.tables();
        for run in &self.runs {
            let [missing, extra, different] = counts.get(&run.name).copied().unwrap_or_default();
            tables.entry(&run.name).or_insert_with(|| Table {
                schema: run.name.schema.clone(),
                table: run.name.table.clone(),
                key: run.shape.key.clone(),
                columns: run.shape.columns.clone(),
                missing,
                extra,
                different,
            });
        }
        let header = Header {
            repair_plan: VERSION,
            created_at: created_at.to_owned(),
            node_a: self.node_a.clone(),
            node_b: self.node_b.clone(),
            database_a: Database::of(self.source),
            database_b: Database::of(self.target),
            tables: tables.into_values().collect(),
        };
        let mut text = line(&header);
        for run in &self.runs {
            for row in &run.rows {
                text.push_str(&line(&Entry::of(run, row)));
            }
        }
        text
    }

    /// Reads a file. Lines may be missing, since people take out what they don't want.
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
        let version: Value = serde_json::from_str(first)
            .map_err(|_| invalid(0, "this is not a plan of steep-repl repair".to_owned()))?;
        let version = version.get("repair_plan").and_then(Value::as_u64);
        match version {
            Some(version) if version == u64::from(VERSION) => {}
            Some(version) => {
                let text = format!("the plan has format {version}, this version reads {VERSION}");
                return Err(invalid(0, text));
            }
            None => {
                let text = "this is not a plan of steep-repl repair";
                return Err(invalid(0, text.to_owned()));
            }
        }
        let header: Header =
            serde_json::from_str(first).map_err(|error| invalid(0, reason(&error)))?;
        let database = |database: &Database| {
            let parsed = database.id();
            parsed.ok_or_else(|| invalid(0, "a system identifier is a number".to_owned()))
        };
        let mut plan = Self {
            source: database(&header.database_a)?,
            target: database(&header.database_b)?,
            node_a: header.node_a,
            node_b: header.node_b,
            runs: Vec::new(),
        };
        let mut shapes = BTreeMap::new();
        for table in header.tables {
            let Table {
                schema,
                table,
                columns,
                key,
                ..
            } = table;
            let (name, shape) = (TableName { schema, table }, RowShape { columns, key });
            shapes.insert(name, shape);
        }
        for (at, line) in lines.filter(|(_, line)| !line.trim().is_empty()) {
            let entry: Entry =
                serde_json::from_str(line).map_err(|error| invalid(at, reason(&error)))?;
            plan.add(entry, &shapes)
                .map_err(|reason| invalid(at, reason))?;
        }
        Ok(plan)
    }

    fn add(&mut self, entry: Entry, shapes: &BTreeMap<TableName, RowShape>) -> Result<(), String> {
        let name = TableName {
            schema: entry.schema.clone(),
            table: entry.table.clone(),
        };
        let shape = shapes
            .get(&name)
            .ok_or_else(|| format!("the header has no table {name}"))?;
        let row = entry.row(shape)?;
        let shape = shape.clone();
        self.push(PlannedTable {
            name,
            shape,
            rows: vec![row],
        });
        Ok(())
    }
}

impl Database {
    pub(in crate::commands) fn of(database: DatabaseId) -> Self {
        Self {
            system_identifier: database.system.to_string(),
            oid: database.database,
        }
    }

    pub(in crate::commands) fn id(&self) -> Option<DatabaseId> {
        Some(DatabaseId {
            system: self.system_identifier.parse().ok()?,
            database: self.oid,
        })
    }
}

impl Kind {
    fn of(change: RowChange) -> Self {
        match change {
            RowChange::Insert { .. } => Self::Missing,
            RowChange::Delete { .. } => Self::Extra,
            RowChange::Replace { .. } => Self::Different,
        }
    }
}

impl Entry {
    fn of(table: &PlannedTable, row: &PlannedRow) -> Self {
        Self {
            schema: table.name.schema.clone(),
            table: table.name.table.clone(),
            kind: Kind::of(row.change),
            key: texts(&row.key, &table.shape),
            columns: row.columns.clone(),
            digest_a: row.change.source().map(hexadecimal),
            digest_b: row.change.target().map(hexadecimal),
        }
    }

    fn row(&self, shape: &RowShape) -> Result<PlannedRow, String> {
        let key = key(&self.key, shape)?;
        let change = RowChange::between(digest(&self.digest_a)?, digest(&self.digest_b)?);
        match change {
            Some(change) if Kind::of(change) == self.kind => Ok(PlannedRow {
                columns: self.columns.clone(),
                ..PlannedRow::new(key, change)
            }),
            _ => Err("the digests do not belong to that kind of difference".to_owned()),
        }
    }
}

/// A row's key in a file.
pub(in crate::commands) fn key(
    texts: &Map<String, Value>,
    shape: &RowShape,
) -> Result<RowKey, String> {
    let part = |name: &Identifier| {
        let value = texts.get(name.as_str()).and_then(Value::as_str);
        let value = value.map(str::to_owned);
        value.ok_or_else(|| format!("the key has no text for the column {name}"))
    };
    let key: Vec<String> = shape.key.iter().map(part).collect::<Result<_, _>>()?;
    if key.is_empty() || texts.len() != key.len() {
        return Err("the key has other columns than the table's".to_owned());
    }
    if key.iter().map(String::len).sum::<usize>() > REPAIR_KEY_MAX {
        return Err(format!("the key is longer than {REPAIR_KEY_MAX} bytes"));
    }
    Ok(RowKey(key))
}

/// The same, written.
pub(in crate::commands) fn texts(key: &RowKey, shape: &RowShape) -> Map<String, Value> {
    let names = shape.key.iter().map(|name| name.as_str().to_owned());
    let values = key.0.iter().map(|value| Value::from(value.clone()));
    names.zip(values).collect()
}

/// A digest in a file.
pub(in crate::commands) fn digest(text: &Option<String>) -> Result<Option<RowDigest>, String> {
    match text {
        None => Ok(None),
        Some(text) => match u128::from_str_radix(text, 16) {
            Ok(digest) if text.len() == 32 => Ok(Some(RowDigest(digest))),
            _ => Err("a digest is 32 hexadecimal digits".to_owned()),
        },
    }
}

/// The same, written.
pub(in crate::commands) fn hexadecimal(digest: RowDigest) -> String {
    format!("{:032x}", digest.0)
}

pub(in crate::commands) fn line(value: &impl Serialize) -> String {
    // Names, texts and numbers always are.
    let mut line = serde_json::to_string(value).unwrap_or_default();
    line.push('\n');
    line
}

/// Without the place, which is always within the line.
pub(in crate::commands) fn reason(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.rfind(" at line ") {
        Some(at) => text[..at].to_owned(),
        None => text,
    }
}

#[cfg(test)]
mod tests;
