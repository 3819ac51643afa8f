//! Repairs: what is planned, what came of it, as text and as JSON.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};
use steep_protocol::message::repair::{RepairCounts, RepairedTable};
use steep_protocol::message::verify::{RowValues, TableReport, VerifyReport};
use steep_protocol::{Fault, TableName};

use super::table::table;
use super::verify::{self, Nodes, extend, problem_text};
use super::{Paint, clean};
use crate::units::count;

/// Rows to be written by table: missing, extra and different ones.
type Planned<'a> = BTreeMap<&'a TableName, [usize; 3]>;

/// What a plan would write, and what it leaves.
pub(crate) fn planned(
    report: Option<&VerifyReport>,
    plan: &Planned<'_>,
    nodes: Nodes<'_>,
    paint: Paint,
) -> String {
    let (a, b) = nodes;
    let header = ["TABLE", "MISSING", "EXTRA", "DIFFERENT", "TO WRITE"];
    let rows: Vec<Vec<String>> = match report {
        Some(report) => {
            let unequal = report.tables.iter().filter(|table| !table.is_equal());
            unequal
                .map(|table| row(table, plan, nodes, paint))
                .collect()
        }
        None => plan
            .iter()
            .map(|(name, counts)| listed(name, *counts))
            .collect(),
    };
    let total: usize = plan.values().flatten().sum();
    let mut text = match rows.is_empty() {
        true => String::new(),
        false => format!("{}\n", table(&header, &rows, paint)),
    };
    let unread = |report: &VerifyReport| {
        let mut unequal = report.tables.iter().filter(|table| !table.is_equal());
        unequal.all(TableReport::is_unreadable)
    };
    text.push_str(&match (rows.len(), total) {
        (0, _) if report.is_none() => "the plan lists no rows: nothing to write".to_owned(),
        (0, _) => paint.green(&format!("nothing differs: {b} has the rows of {a}")),
        (_, 0) if report.is_some_and(unread) => {
            paint.yellow("nothing differs in the tables that could be read")
        }
        (_, 0) => paint.red(&format!(
            "{b} differs from {a}, and nothing of it can be repaired"
        )),
        (_, rows) => format!("{} to write to {b}", rows_of(rows as u64)),
    });
    text.push('\n');
    text
}

fn listed(name: &TableName, counts: [usize; 3]) -> Vec<String> {
    let [missing, extra, different] = counts.map(|rows| count(rows as u64));
    let total = count(counts.iter().sum::<usize>() as u64);
    vec![clean(&name.to_string()), missing, extra, different, total]
}

fn row(table: &TableReport, plan: &Planned<'_>, nodes: Nodes<'_>, paint: Paint) -> Vec<String> {
    let name = clean(&table.name.to_string());
    if let Some(problem) = &table.problem {
        let none = || "-".to_owned();
        let problem = paint.red(&problem_text(problem, nodes));
        return vec![name, none(), none(), none(), problem];
    }
    let counts = plan.get(&table.name).copied().unwrap_or_default();
    let written = counts.iter().sum::<usize>() as u64;
    let what = if table.key.is_empty() {
        paint.red(KEYLESS)
    } else if written < table.differences() {
        let (written, all) = (count(written), count(table.differences()));
        paint.yellow(&format!(
            "{written} of {all}: run the command again for the others"
        ))
    } else {
        count(written)
    };
    let differ = [table.missing, table.extra, table.different].map(count);
    let [missing, extra, different] = differ;
    vec![name, missing, extra, different, what]
}

/// Why rows that nobody can tell apart are not repaired.
const KEYLESS: &str =
    "refused: no key is unique on both; reinitialise it, or give it a primary key";

fn rows_of(number: u64) -> String {
    match number {
        1 => "1 row".to_owned(),
        more => format!("{} rows", count(more)),
    }
}

/// The same for programs.
pub(crate) fn planned_json(
    report: Option<&VerifyReport>,
    plan: &Planned<'_>,
    path: Option<&Path>,
) -> Value {
    let tables: Vec<Value> = match report {
        Some(report) => report.tables.iter().map(|t| compared(t, plan)).collect(),
        None => plan
            .iter()
            .map(|(name, counts)| entry(name, *counts))
            .collect(),
    };
    let rows: usize = plan.values().flatten().sum();
    // A plan alone says nothing of rows that it does not list.
    let equal = report.map(|report| report.is_equal() && rows == 0);
    json!({ "tables": tables, "rows": rows, "plan": path, "equal": equal })
}

fn compared(table: &TableReport, plan: &Planned<'_>) -> Value {
    let mut view = verify::table_json(table, RowValues::Hidden);
    let planned = plan.get(&table.name).copied().unwrap_or_default();
    extend(
        &mut view,
        json!({ "planned": planned.iter().sum::<usize>() }),
    );
    if let Value::Object(view) = &mut view {
        // The plan has all of them.
        view.remove("examples");
    }
    view
}

fn entry(name: &TableName, counts: [usize; 3]) -> Value {
    let [missing, extra, different] = counts;
    json!({
        "schema": name.schema, "table": name.table, "missing": missing, "extra": extra,
        "different": different, "planned": counts.iter().sum::<usize>(),
    })
}

/// How far it is.
pub(crate) fn line(page: u32, pages: u32) -> String {
    format!("writing rows: page {page} of {pages}")
}

/// Why it stopped, and what is written.
pub(crate) fn so_far(why: &str, counts: &RepairCounts, rows: usize) -> String {
    let left = (rows as u64).saturating_sub(counts.rows());
    format!(
        "{why}; {} repaired so far, {} left",
        rows_of(counts.repaired),
        rows_of(left)
    )
}

/// What was written.
pub(crate) fn done(tables: &[RepairedTable], paint: Paint) -> String {
    if tables.is_empty() {
        return String::new();
    }
    let header = ["TABLE", "REPAIRED", "EQUAL ALREADY", "CHANGED", "FAILED"];
    let row = |table: &RepairedTable| {
        let RepairCounts {
            repaired,
            equal,
            changed,
            failed,
        } = table.counts;
        let failed = match failed {
            0 => count(failed),
            _ => paint.red(&count(failed)),
        };
        let name = clean(&table.name.to_string());
        vec![name, count(repaired), count(equal), count(changed), failed]
    };
    let rows: Vec<Vec<String>> = tables.iter().map(row).collect();
    let mut text = self::table(&header, &rows, paint);
    for table in tables {
        if let Some(fault) = &table.reason {
            let name = clean(&table.name.to_string());
            let why = clean(&fault.to_string());
            text.push_str(&format!("{}\n", paint.red(&format!("{name}: {why}"))));
            if !fault.hint.is_empty() {
                text.push_str(&format!("  hint: {}\n", clean(&fault.hint)));
            }
        }
    }
    text.push('\n');
    text
}

/// The same for programs, with why it stopped or how the tables compare now.
pub(crate) fn done_json(
    tables: &[RepairedTable],
    stopped: Option<&Fault>,
    verified: Option<&VerifyReport>,
) -> Value {
    let mut all = RepairCounts::default();
    for table in tables {
        all.add(&table.counts);
    }
    let table = |table: &RepairedTable| {
        let mut view = json!({
            "schema": table.name.schema,
            "table": table.name.table,
            "reason": table.reason.as_ref().map(|fault| &fault.message),
        });
        extend(&mut view, counts_json(&table.counts));
        view
    };
    let mut view = json!({
        "tables": tables.iter().map(table).collect::<Vec<_>>(),
        "stopped": stopped.map(|fault| &fault.message),
        "verified": verified.map(|report| verify::json(report, RowValues::Hidden)),
        "equal": verified.is_some_and(VerifyReport::is_equal),
    });
    extend(&mut view, counts_json(&all));
    view
}

fn counts_json(counts: &RepairCounts) -> Value {
    json!({
        "repaired": counts.repaired,
        "equal_already": counts.equal,
        "changed": counts.changed,
        "failed": counts.failed,
    })
}

#[cfg(test)]
mod tests {
    use steep_protocol::message::verify::TableProblem;
    use steep_protocol::{FaultKind, Identifier, NodeId};

    use super::*;

    fn name(text: &str) -> TableName {
        TableName::new("app", text).unwrap()
    }

    fn report() -> VerifyReport {
        let id = || vec![Identifier::parse("id").unwrap()];
        let table = |text: &str| TableReport {
            key: id(),
            ..TableReport::new(name(text))
        };
        let fault = Fault::new(
            FaultKind::Unauthorized,
            "the role x may not read app.secret",
        );
        VerifyReport {
            tables: vec![
                table("customers"),
                TableReport {
                    key: Vec::new(),
                    missing: 5,
                    ..table("log")
                },
                TableReport {
                    missing: 1,
                    extra: 2,
                    different: 1_200,
                    ..table("orders")
                },
                TableReport {
                    different: 3,
                    ..table("items")
                },
                TableReport {
                    problem: Some(TableProblem::Unreadable(Box::new(fault))),
                    ..table("secret")
                },
            ],
            ..VerifyReport::default()
        }
    }

    fn done_tables() -> Vec<RepairedTable> {
        let counts = RepairCounts {
            repaired: 1_203,
            equal: 1,
            changed: 2,
            failed: 1,
        };
        let fault = Fault::new(FaultKind::Failed, "duplicate key (SQLSTATE 23505)");
        vec![
            RepairedTable::new(name("items")),
            RepairedTable {
                counts,
                reason: Some(fault.hint("look at it")),
                ..RepairedTable::new(name("orders"))
            },
        ]
    }

    #[test]
    fn a_plan_says_what_is_written_and_what_is_not() {
        let [a, b] = ["node_a", "node_b"].map(|node| NodeId::parse(node).unwrap());
        let (orders, items) = (name("orders"), name("items"));
        let plan: Planned<'_> = [(&orders, [1, 2, 1_000]), (&items, [0, 0, 3])].into();
        let nodes = (&a, &b);
        insta::assert_snapshot!(planned(Some(&report()), &plan, nodes, Paint::Plain));
        insta::assert_snapshot!(planned(None, &plan, nodes, Paint::Plain));
        let equal = VerifyReport::default();
        let nothing = planned(Some(&equal), &Planned::new(), nodes, Paint::Plain);
        assert_eq!(nothing, "nothing differs: node_b has the rows of node_a\n");
        let listed = planned(None, &Planned::new(), nodes, Paint::Plain);
        assert_eq!(listed, "the plan lists no rows: nothing to write\n");
        let unread = VerifyReport {
            tables: report().tables.split_off(4),
            ..VerifyReport::default()
        };
        let text = planned(Some(&unread), &Planned::new(), nodes, Paint::Plain);
        assert!(
            text.ends_with("in the tables that could be read\n"),
            "{text}"
        );
        let json = planned_json(Some(&report()), &plan, Some(Path::new("p.jsonl")));
        insta::assert_snapshot!(serde_json::to_string_pretty(&json).unwrap());
    }

    #[test]
    fn what_was_written_is_told_by_table_with_reasons() {
        insta::assert_snapshot!(done(&done_tables(), Paint::Plain));
        let json = done_json(&done_tables(), None, Some(&VerifyReport::default()));
        insta::assert_snapshot!(serde_json::to_string_pretty(&json).unwrap());
        let counts = RepairCounts {
            repaired: 1_000,
            ..RepairCounts::default()
        };
        let text = so_far("interrupted", &counts, 1_001);
        assert_eq!(text, "interrupted; 1,000 rows repaired so far, 1 row left");
    }
}
