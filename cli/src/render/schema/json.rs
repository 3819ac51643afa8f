//! Machine output of `schema compare` and `schema diff`: the keys of the contract, then what else is known.

use serde_json::{Value, json};
use steep_protocol::message::schema::{SchemaDifference, Subject};
use steep_schema::{Comparison, Status, TableComparison, line};

use super::{NOT_COMPARED, Sides};
use crate::render::json::joined;

/// Two schemas: every table, equal ones included.
pub(crate) fn comparison(compared: &Comparison) -> Value {
    let tables: Vec<_> = compared.tables.iter().map(table).collect();
    let objects: Vec<_> = compared.objects.iter().map(difference).collect();
    json!({
        "comparisons": tables,
        "match_count": compared.count(Status::Match),
        "mismatch_count": compared.count(Status::Mismatch),
        "local_only_count": compared.count(Status::LocalOnly),
        "remote_only_count": compared.count(Status::RemoteOnly),
        "objects": objects,
        "object_difference_count": compared.objects.len(),
        "not_compared": NOT_COMPARED,
    })
}

fn table(table: &TableComparison) -> Value {
    let differences: Vec<_> = table.differences.iter().map(difference).collect();
    json!({
        "table_schema": table.name.schema,
        "table_name": table.name.table,
        "local_fingerprint": table.local_fingerprint,
        "remote_fingerprint": table.remote_fingerprint,
        "status": table.status.as_str(),
        "differences": differences,
    })
}

/// One difference; `kind` says of what, and one that is not a column's has `object_name`.
fn difference(difference: &SchemaDifference) -> Value {
    let definition = |text: &String| (!text.is_empty()).then(|| text.clone());
    let name = difference.name.as_deref();
    let column = difference.subject == Subject::Column;
    json!({
        "column_name": name.filter(|_| column),
        "difference_type": difference.change.as_str(),
        "local_definition": definition(&difference.local),
        "remote_definition": definition(&difference.remote),
        "kind": difference.subject.as_str(),
        "object_name": name.filter(|_| !column),
    })
}

/// One table on both sides, with the columns of each in order.
pub(crate) fn diff(compared: &TableComparison, sides: &Sides<'_>) -> Value {
    let columns = |schema: &steep_schema::Schema| {
        let table = schema.table(sides.table)?;
        Some(table.columns.iter().map(line).collect::<Vec<_>>())
    };
    let both = json!({
        "local_columns": columns(sides.local.1),
        "remote_columns": columns(sides.remote.1),
    });
    joined(table(compared), both)
}
