//! Compared rows: as text, as JSON, and how far a comparison is.

use indicatif::ProgressBar;
use serde_json::{Value, json};
use steep_protocol::message::agent::WorkProgress;
use steep_protocol::message::verify::{
    ColumnDifference, DifferenceKind, Relation, RowDifference, RowValues, ScheduleSpec,
    TableProblem, TableReport, VerifyReport,
};
use steep_protocol::{Fault, Identifier, NodeId};

use super::table::table;
use super::{Paint, clean};
use crate::units::{count, duration};

/// The nodes as they are called: the first one counts as right.
pub(super) type Nodes<'a> = (&'a NodeId, &'a NodeId);

/// Tables named in an error.
const UNREAD_NAMED: usize = 5;

/// Every table, the rows that differ below, and what the result is worth.
pub(crate) fn report(report: &VerifyReport, nodes: Nodes<'_>, paint: Paint) -> String {
    let (a, b) = nodes;
    let header = [
        "TABLE",
        "ROWS A",
        "ROWS B",
        "MISSING",
        "EXTRA",
        "DIFFERENT",
        "RESULT",
    ];
    let rows: Vec<Vec<String>> = report.tables.iter().map(|t| row(t, nodes, paint)).collect();
    let mut text = match rows.is_empty() {
        true => String::new(),
        false => table(&header, &rows, paint),
    };
    for table in report
        .tables
        .iter()
        .filter(|table| !table.examples.is_empty())
    {
        let name = paint.bold(&clean(&table.name.to_string()));
        text.push_str(&format!("\n{name}\n"));
        let kinds = [
            format!("missing on {b}"),
            format!("extra on {b}"),
            "different".to_owned(),
        ];
        text.push_str(&examples(table, nodes, &kinds));
    }
    if !text.is_empty() {
        text.push('\n');
    }
    for note in notes(report, nodes) {
        text.push_str(&format!("{}\n", paint.yellow(&note)));
    }
    let unequal = report
        .tables
        .iter()
        .filter(|table| !table.is_equal())
        .count();
    let tables = |number: usize| match number {
        1 => "1 table".to_owned(),
        more => format!("{} tables", count(more as u64)),
    };
    let all = tables(report.tables.len());
    let unread = report.tables.iter().filter(|table| table.is_unreadable());
    let unread = unread.count();
    text.push_str(&match (report.tables.len(), unequal) {
        (0, _) => paint.yellow("there are no tables to compare"),
        (_, some) if some == unread && some > 0 => paint.red(&format!(
            "no difference was found, but {} of {all} could not be read",
            tables_of(some)
        )),
        (_, 0) => paint.green(&format!("{b} has the rows of {a}: {all} compared")),
        (_, some) => paint.red(&format!(
            "{b} differs from {a}: {} of {all}",
            tables_of(some)
        )),
    });
    text.push('\n');
    text
}

/// What cannot be said because these tables could not be read, and what to do first.
pub(crate) fn unreadable(tables: &[&TableReport]) -> Option<(String, String)> {
    let faults = tables.iter().filter_map(|table| match &table.problem {
        Some(TableProblem::Unreadable(fault)) => Some(&**fault),
        _ => None,
    });
    let faults: Vec<&Fault> = faults.collect();
    let first = faults.first()?;
    let names: Vec<String> = tables
        .iter()
        .take(UNREAD_NAMED)
        .map(|table| clean(&table.name.to_string()))
        .collect();
    let more = match tables.len().saturating_sub(UNREAD_NAMED) {
        0 => String::new(),
        more => format!(" and {} more", count(more as u64)),
    };
    let text = format!("not read: {}{more}", names.join(", "));
    let hint = faults.iter().map(|fault| fault.hint.as_str());
    let hint = hint.filter(|hint| !hint.is_empty()).collect::<Vec<_>>();
    let hint = match &hint[..] {
        [] => clean(&first.to_string()),
        hints => hints
            .iter()
            .take(UNREAD_NAMED)
            .map(|h| clean(h))
            .collect::<Vec<_>>()
            .join(" "),
    };
    Some((text, hint))
}

fn tables_of(number: usize) -> String {
    count(number as u64)
}

/// Why a table's rows are not compared.
pub(super) fn problem_text(problem: &TableProblem, (a, b): Nodes<'_>) -> String {
    match problem {
        TableProblem::OnlyOnA => format!("only on {a}"),
        TableProblem::OnlyOnB => format!("only on {b}"),
        TableProblem::NoKey => "refused: no key is unique on both".to_owned(),
        TableProblem::Unreadable(fault) => format!("not read: {}", clean(&fault.to_string())),
        TableProblem::Columns { only_a, only_b } => {
            let side = |columns: &[Identifier], node: &NodeId| {
                let names: Vec<String> = columns.iter().map(|c| clean(c.as_str())).collect();
                (!names.is_empty()).then(|| format!("{} only on {node}", names.join(", ")))
            };
            let sides = [side(only_a, a), side(only_b, b)];
            let sides: Vec<String> = sides.into_iter().flatten().collect();
            format!("other columns: {}", sides.join("; "))
        }
    }
}

fn row(table: &TableReport, nodes: Nodes<'_>, paint: Paint) -> Vec<String> {
    let name = clean(&table.name.to_string());
    let result = match &table.problem {
        Some(problem) => paint.red(&problem_text(problem, nodes)),
        None if table.is_equal() => paint.green("equal"),
        None => paint.red("differs"),
    };
    if table.problem.is_some() {
        let none = || "-".to_owned();
        return vec![name, none(), none(), none(), none(), none(), result];
    }
    vec![
        name,
        count(table.rows_a),
        count(table.rows_b),
        count(table.missing),
        count(table.extra),
        count(table.different),
        result,
    ]
}

/// The rows of a table that are told, a line each; `kinds` are words for missing, extra and different ones.
pub(super) fn examples(table: &TableReport, nodes: Nodes<'_>, kinds: &[String; 3]) -> String {
    let mut text = String::new();
    for example in &table.examples {
        let kind = &kinds[match example.kind {
            DifferenceKind::Missing => 0,
            DifferenceKind::Extra => 1,
            DifferenceKind::Different => 2,
        }];
        let row = difference(table, example, nodes);
        text.push_str(&format!("  {kind}  {row}\n"));
    }
    let shown = table.examples.len() as u64;
    let more = table.differences().saturating_sub(shown);
    if more > 0 && !table.key.is_empty() {
        text.push_str(&format!("  and {} more\n", count(more)));
    }
    text
}

/// `id = 7: total, note`
fn difference(table: &TableReport, example: &RowDifference, (a, b): Nodes<'_>) -> String {
    let key = match &table.key[..] {
        [] => format!("a row at {}", clean(&example.key.0.join(" "))),
        names => pairs(names, &example.key.0),
    };
    let values = |column: &ColumnDifference| {
        let name = clean(column.column.as_str());
        let (one, other) = (value(column.a.as_deref()), value(column.b.as_deref()));
        match example.kind {
            // Without values, such rows have no columns.
            DifferenceKind::Missing => format!("{name} = {one}"),
            DifferenceKind::Extra => format!("{name} = {other}"),
            DifferenceKind::Different if column.a == column.b => name,
            DifferenceKind::Different => format!("{name} = {one} on {a}, {other} on {b}"),
        }
    };
    let columns: Vec<String> = example.columns.iter().map(values).collect();
    let columns = match columns.is_empty() {
        true => String::new(),
        false => format!(": {}", columns.join(", ")),
    };
    format!("{key}{columns}")
}

fn pairs(names: &[Identifier], values: &[String]) -> String {
    let pairs = names.iter().zip(values);
    let pairs: Vec<String> = pairs
        .map(|(name, text)| format!("{} = {}", clean(name.as_str()), value(Some(text))))
        .collect();
    pairs.join(", ")
}

fn value(text: Option<&str>) -> String {
    text.map_or_else(|| "NULL".to_owned(), |text| format!("'{}'", clean(text)))
}

/// What limits the result, a sentence each.
pub(super) fn notes(report: &VerifyReport, (a, b): Nodes<'_>) -> Vec<String> {
    let mut notes = Vec::new();
    match report.relation {
        Relation::Replicates => {}
        Relation::Unrelated => notes.push(format!(
            "note: neither {a} nor {b} replicates from the other, so rows written during the comparison may count as different"
        )),
        Relation::Stopped => notes.push(format!(
            "note: the subscription between {a} and {b} is not connected, so changes that it has not applied count as different"
        )),
    }
    let changing = report.tables.iter().filter(|table| table.changing > 0);
    notes.extend(changing.map(|table| {
        format!(
            "note: {} rows of {} changed too often to be compared",
            count(table.changing),
            clean(&table.name.to_string())
        )
    }));
    notes
}

/// `{"tables":[…],"equal":…}`, then how the two nodes hang together.
///
/// Values are left out where they are hidden.
pub(crate) fn json(report: &VerifyReport, values: RowValues) -> Value {
    let tables = report.tables.iter().map(|table| table_json(table, values));
    json!({
        "tables": tables.collect::<Vec<_>>(),
        "equal": report.is_equal(),
        "relation": relation(report.relation),
    })
}

pub(super) fn relation(relation: Relation) -> &'static str {
    match relation {
        Relation::Unrelated => "unrelated",
        Relation::Replicates => "replicates",
        Relation::Stopped => "stopped",
    }
}

/// A table's problem as one word, and the columns that only one node has.
pub(super) fn problem_json(problem: Option<&TableProblem>) -> Value {
    if let Some(TableProblem::Unreadable(fault)) = problem {
        let (node, message) = (&fault.node, &fault.message);
        return json!({
            "problem": "unreadable", "columns_only_a": [], "columns_only_b": [],
            "error": { "node_id": node, "message": message, "hint": fault.hint },
        });
    }
    let (word, only_a, only_b) = match problem {
        None | Some(TableProblem::Unreadable(_)) => (None, &[][..], &[][..]),
        Some(TableProblem::OnlyOnA) => (Some("only_on_a"), &[][..], &[][..]),
        Some(TableProblem::OnlyOnB) => (Some("only_on_b"), &[][..], &[][..]),
        Some(TableProblem::NoKey) => (Some("no_key"), &[][..], &[][..]),
        Some(TableProblem::Columns { only_a, only_b }) => {
            (Some("columns"), only_a.as_slice(), only_b.as_slice())
        }
    };
    json!({ "problem": word, "columns_only_a": only_a, "columns_only_b": only_b })
}

pub(super) fn table_json(table: &TableReport, values: RowValues) -> Value {
    let examples: Vec<Value> = table
        .examples
        .iter()
        .map(|e| example_json(table, e, values))
        .collect();
    let mut view = json!({
        "schema": table.name.schema,
        "table": table.name.table,
        "rows_a": table.rows_a,
        "rows_b": table.rows_b,
        "missing": table.missing,
        "extra": table.extra,
        "different": table.different,
        "equal": table.is_equal(),
        "changing": table.changing,
        "key": table.key,
        "examples": examples,
    });
    extend(&mut view, problem_json(table.problem.as_ref()));
    view
}

/// Adds the keys of another object.
pub(super) fn extend(view: &mut Value, more: Value) {
    if let (Value::Object(view), Value::Object(more)) = (view, more) {
        view.extend(more);
    }
}

pub(super) fn example_json(
    table: &TableReport,
    example: &RowDifference,
    values: RowValues,
) -> Value {
    let kind = match example.kind {
        DifferenceKind::Missing => "missing",
        DifferenceKind::Extra => "extra",
        DifferenceKind::Different => "different",
    };
    let columns: Vec<Value> = example
        .columns
        .iter()
        .map(|column| match values {
            RowValues::Hidden => json!({ "column": column.column }),
            RowValues::Shown => json!({ "column": column.column, "a": column.a, "b": column.b }),
        })
        .collect();
    match &table.key[..] {
        [] => json!({ "kind": kind, "place": example.key.0.join(" "), "columns": columns }),
        names => {
            let names = names.iter().map(|name| name.as_str().to_owned());
            let values = example.key.0.iter().map(|value| Value::from(value.clone()));
            let key: serde_json::Map<String, Value> = names.zip(values).collect();
            json!({ "kind": kind, "key": key, "columns": columns })
        }
    }
}

/// What was ordered.
pub(crate) fn schedule(spec: &ScheduleSpec) -> String {
    let (a, b) = (&spec.node_a, &spec.node_b);
    match &spec.schedule {
        None => format!("{b} is no longer compared with {a} regularly"),
        Some(schedule) => {
            #[expect(clippy::cast_precision_loss, reason = "at most a year")]
            let every = duration(schedule.every_seconds as f64);
            format!("{b} is compared with {a} now, and again {every} after each comparison")
        }
    }
}

/// The same for programs.
pub(crate) fn schedule_json(spec: &ScheduleSpec) -> Value {
    let every = spec
        .schedule
        .as_ref()
        .map(|schedule| schedule.every_seconds);
    json!({ "node_a": spec.node_a, "node_b": spec.node_b, "every_seconds": every })
}

/// How far a comparison is, in one line that changes rarely.
pub(crate) fn line(work: &WorkProgress) -> String {
    let tenth = work.done.saturating_mul(10) / work.total.max(1);
    format!("comparing rows: about {} %", (tenth * 10).min(100))
}

/// Moves the bar.
pub(crate) fn advance(bar: &ProgressBar, work: &WorkProgress) {
    bar.set_prefix("comparing");
    bar.set_length(work.total);
    bar.set_position(work.done);
    bar.set_message(clean(work.current.as_deref().unwrap_or_default()));
}

#[cfg(test)]
mod tests {
    use steep_protocol::TableName;
    use steep_protocol::message::verify::RowKey;

    use super::*;

    fn name(text: &str) -> Identifier {
        Identifier::parse(text).unwrap()
    }

    fn sample() -> VerifyReport {
        let table = |name: &str| TableReport {
            rows_a: 1_234,
            rows_b: 1_234,
            key: vec![self::name("id")],
            ..TableReport::new(TableName::new("app", name).unwrap())
        };
        let column = |name: &str, a: Option<&str>, b: Option<&str>| ColumnDifference {
            column: self::name(name),
            a: a.map(str::to_owned),
            b: b.map(str::to_owned),
        };
        let row = |kind, key: &str, columns| RowDifference {
            kind,
            key: RowKey(vec![key.to_owned()]),
            columns,
        };
        let orders = TableReport {
            rows_b: 1_235,
            missing: 1,
            extra: 2,
            different: 200,
            changing: 3,
            examples: vec![
                row(DifferenceKind::Missing, "7", Vec::new()),
                row(
                    DifferenceKind::Extra,
                    "8",
                    vec![
                        column("note", None, Some("new")),
                        column("total", None, None),
                    ],
                ),
                row(
                    DifferenceKind::Different,
                    "a'b\u{1b}[2J",
                    vec![column("total", None, None)],
                ),
                row(
                    DifferenceKind::Different,
                    "z",
                    vec![column("total", Some("1"), None)],
                ),
            ],
            ..table("orders")
        };
        let log = TableReport {
            key: Vec::new(),
            missing: 5,
            examples: vec![row(DifferenceKind::Missing, "app.log (0,1)", Vec::new())],
            ..table("log")
        };
        let columns = TableProblem::Columns {
            only_a: vec![name("old")],
            only_b: vec![name("new")],
        };
        VerifyReport {
            tables: vec![
                TableReport {
                    problem: Some(columns),
                    ..table("changed")
                },
                table("customers"),
                log,
                TableReport {
                    problem: Some(TableProblem::OnlyOnB),
                    ..table("mine")
                },
                orders,
            ],
            relation: Relation::Unrelated,
            plan: None,
        }
    }

    fn nodes() -> (NodeId, NodeId) {
        (
            NodeId::parse("node_a").unwrap(),
            NodeId::parse("node_b").unwrap(),
        )
    }

    #[test]
    fn differences_are_shown_with_keys_columns_and_values() {
        let (a, b) = nodes();
        insta::assert_snapshot!(report(&sample(), (&a, &b), Paint::Plain));
        let mut equal = sample();
        equal.tables.retain(TableReport::is_equal);
        equal.relation = Relation::Replicates;
        insta::assert_snapshot!(report(&equal, (&a, &b), Paint::Plain));
    }

    #[test]
    fn json_has_the_keys_of_the_contract_first() {
        insta::assert_snapshot!(
            serde_json::to_string_pretty(&json(&sample(), RowValues::Shown)).unwrap()
        );
    }

    #[test]
    fn seen_from_the_other_node_missing_is_extra() {
        let there = sample().reversed();
        let orders = &there.tables[4];
        assert_eq!((orders.missing, orders.extra, orders.rows_a), (2, 1, 1_235));
        assert_eq!(there.reversed(), sample());
    }
}
