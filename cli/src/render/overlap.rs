//! The rows that two nodes have in common: as text and as JSON.

use serde_json::{Value, json};
use steep_protocol::message::verify::{RowValues, TableProblem, TableReport, VerifyReport};

use super::table::table;
use super::verify::{
    Nodes, example_json, examples, extend, notes, problem_json, problem_text, relation,
};
use super::{Paint, clean};
use crate::units::count;

/// Every table, then what conflicts in which columns, with some of the rows.
pub(crate) fn report(report: &VerifyReport, nodes: Nodes<'_>, paint: Paint) -> String {
    let (a, b) = nodes;
    let header = [
        "TABLE",
        "ROWS A",
        "ROWS B",
        "ONLY A",
        "ONLY B",
        "EQUAL",
        "CONFLICTS",
    ];
    let rows: Vec<Vec<String>> = report.tables.iter().map(|t| row(t, nodes, paint)).collect();
    let mut text = match rows.is_empty() {
        true => format!("{}\n", paint.yellow("there are no tables to compare")),
        false => table(&header, &rows, paint),
    };
    for table in report.tables.iter().filter(|t| !t.examples.is_empty()) {
        let name = paint.bold(&clean(&table.name.to_string()));
        text.push_str(&format!("\n{name}\n"));
        let columns: Vec<String> = table
            .columns
            .iter()
            .map(|(column, rows)| format!("{} {}", clean(column.as_str()), count(*rows)))
            .collect();
        if !columns.is_empty() {
            text.push_str(&format!("  conflicts by column: {}\n", columns.join(", ")));
        }
        let kinds = [
            format!("only on {a}"),
            format!("only on {b}"),
            "conflict".to_owned(),
        ];
        text.push_str(&examples(table, nodes, &kinds));
    }
    let notes = notes(report, nodes);
    if !notes.is_empty() {
        text.push('\n');
    }
    for note in notes {
        text.push_str(&format!("{}\n", paint.yellow(&note)));
    }
    text
}

fn row(table: &TableReport, nodes: Nodes<'_>, paint: Paint) -> Vec<String> {
    let name = clean(&table.name.to_string());
    if let Some(problem) = &table.problem {
        let none = || "-".to_owned();
        let problem = paint.red(&problem_text(problem, nodes));
        return vec![name, none(), none(), none(), none(), none(), problem];
    }
    let conflicts = count(table.different);
    vec![
        name,
        count(table.rows_a),
        count(table.rows_b),
        count(table.missing),
        count(table.extra),
        count(table.equal_rows()),
        match table.different {
            0 => conflicts,
            _ => paint.red(&conflicts),
        },
    ]
}

/// The tables that were not counted. That one node alone has a table is a result, unless there is no other.
pub(crate) fn refused(report: &VerifyReport) -> Vec<String> {
    let one_sided = |table: &TableReport| {
        matches!(
            table.problem,
            Some(TableProblem::OnlyOnA | TableProblem::OnlyOnB)
        )
    };
    let counted = report.tables.iter().any(|table| table.problem.is_none());
    let refused = report.tables.iter().filter(|table| table.problem.is_some());
    let refused = refused.filter(|table| !(counted && one_sided(table)));
    refused
        .map(|table| clean(&table.name.to_string()))
        .collect()
}

/// `{"tables":[…]}`, then how the two nodes hang together. Values are left out where they are hidden.
pub(crate) fn json(report: &VerifyReport, values: RowValues) -> Value {
    let tables = report.tables.iter().map(|table| table_json(table, values));
    json!({
        "tables": tables.collect::<Vec<_>>(),
        "relation": relation(report.relation),
    })
}

fn table_json(table: &TableReport, values: RowValues) -> Value {
    let columns = table.columns.iter();
    let columns: serde_json::Map<String, Value> = columns
        .map(|(column, rows)| (column.as_str().to_owned(), Value::from(*rows)))
        .collect();
    let told = table
        .examples
        .iter()
        .map(|e| example_json(table, e, values));
    let mut view = json!({
        "schema": table.name.schema,
        "table": table.name.table,
        "rows_a": table.rows_a,
        "rows_b": table.rows_b,
        "only_a": table.missing,
        "only_b": table.extra,
        "equal": table.equal_rows(),
        "conflicts": table.different,
        "changing": table.changing,
        "key": table.key,
        "conflicts_by_column": columns,
        "examples": told.collect::<Vec<_>>(),
    });
    extend(&mut view, problem_json(table.problem.as_ref()));
    view
}
