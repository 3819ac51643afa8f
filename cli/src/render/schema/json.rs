//! Machine output of `schema`: the keys of the contract, then what else is known.

use std::path::Path;

use serde::Serialize;
use steep_protocol::NodeId;
use steep_protocol::message::schema::{SchemaDifference, Subject};
use steep_schema::{Comparison, Status, TableComparison, line};

use super::Sides;

/// Two schemas.
#[derive(Debug, Serialize)]
pub(crate) struct Compared<'a> {
    comparisons: Vec<Table<'a>>,
    match_count: usize,
    mismatch_count: usize,
    local_only_count: usize,
    remote_only_count: usize,
    objects: Vec<Difference<'a>>,
    object_difference_count: usize,
}

impl<'a> Compared<'a> {
    /// Of every table, equal ones included.
    pub(crate) fn new(compared: &'a Comparison) -> Self {
        Self {
            comparisons: compared.tables.iter().map(Table::new).collect(),
            match_count: compared.count(Status::Match),
            mismatch_count: compared.count(Status::Mismatch),
            local_only_count: compared.count(Status::LocalOnly),
            remote_only_count: compared.count(Status::RemoteOnly),
            objects: compared.objects.iter().map(Difference::new).collect(),
            object_difference_count: compared.objects.len(),
        }
    }
}

/// One table.
#[derive(Debug, Serialize)]
struct Table<'a> {
    table_schema: &'a str,
    table_name: &'a str,
    local_fingerprint: Option<&'a str>,
    remote_fingerprint: Option<&'a str>,
    status: &'static str,
    differences: Vec<Difference<'a>>,
}

impl<'a> Table<'a> {
    fn new(table: &'a TableComparison) -> Self {
        Self {
            table_schema: table.name.schema.as_str(),
            table_name: table.name.table.as_str(),
            local_fingerprint: table.local_fingerprint.as_deref(),
            remote_fingerprint: table.remote_fingerprint.as_deref(),
            status: table.status.as_str(),
            differences: table.differences.iter().map(Difference::new).collect(),
        }
    }
}

/// One difference; `kind` says of what, and one that is not a column's has `object_name`.
#[derive(Debug, Serialize)]
struct Difference<'a> {
    column_name: Option<&'a str>,
    difference_type: &'static str,
    local_definition: Option<&'a str>,
    remote_definition: Option<&'a str>,
    kind: &'static str,
    object_name: Option<&'a str>,
}

impl<'a> Difference<'a> {
    fn new(difference: &'a SchemaDifference) -> Self {
        let said = |text: &'a String| (!text.is_empty()).then_some(text.as_str());
        let name = difference.name.as_deref();
        let column = difference.subject == Subject::Column;
        Self {
            column_name: name.filter(|_| column),
            difference_type: difference.change.as_str(),
            local_definition: said(&difference.local),
            remote_definition: said(&difference.remote),
            kind: difference.subject.as_str(),
            object_name: name.filter(|_| !column),
        }
    }
}

/// One table on both sides.
#[derive(Debug, Serialize)]
pub(crate) struct Diff<'a> {
    #[serde(flatten)]
    table: Table<'a>,
    local_columns: Option<Vec<String>>,
    remote_columns: Option<Vec<String>>,
}

impl<'a> Diff<'a> {
    /// With the columns of each side, in order.
    pub(crate) fn new(table: &'a TableComparison, sides: &Sides<'_>) -> Self {
        let columns = |schema: &steep_schema::Schema| {
            let table = schema.table(sides.table)?;
            Some(table.columns.iter().map(line).collect())
        };
        Self {
            table: Table::new(table),
            local_columns: columns(sides.local.1),
            remote_columns: columns(sides.remote.1),
        }
    }
}

/// Fingerprints that were stored.
#[derive(Debug, Serialize)]
pub(crate) struct Captured<'a> {
    event: &'static str,
    node_id: &'a NodeId,
    peer: Option<&'a NodeId>,
    tables: u64,
}

impl<'a> Captured<'a> {
    /// On that node.
    pub(crate) fn new(node_id: &'a NodeId, peer: Option<&'a NodeId>, tables: u64) -> Self {
        Self {
            event: "schema.captured",
            node_id,
            peer,
            tables,
        }
    }
}

/// A schema that was written to a file.
#[derive(Debug, Serialize)]
pub(crate) struct Exported<'a> {
    event: &'static str,
    node_id: &'a NodeId,
    output: String,
    tables: usize,
}

impl<'a> Exported<'a> {
    /// There.
    pub(crate) fn new(node_id: &'a NodeId, output: &Path, tables: usize) -> Self {
        Self {
            event: "schema.exported",
            node_id,
            output: output.display().to_string(),
            tables,
        }
    }
}
