//! Merges: what is planned, what was written, as text and as JSON.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};
use steep_protocol::message::repair::RepairedTable;
use steep_protocol::{NodeId, TableName};

use super::table::table;
use super::{Paint, clean};
use crate::commands::MergeCounts as Counts;
use crate::units::count;

/// Rows by table.
type Planned<'a> = BTreeMap<&'a TableName, Counts>;

/// What was written in a merge.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// Rows written to the first node.
    pub(crate) rows_a: u64,
    /// Rows written to the second node.
    pub(crate) rows_b: u64,
    /// Tables of the last round with rows that could not be written.
    pub(crate) failed: Vec<RepairedTable>,
    /// Comparisons after the first rows were written.
    pub(crate) rounds: u32,
    /// From the begin of the command.
    pub(crate) seconds: f64,
}

/// What a plan would write.
pub(crate) fn planned(plan: &Planned<'_>, (a, b): (&NodeId, &NodeId), paint: Paint) -> String {
    if plan.values().all(|counts| *counts == Counts::default()) {
        return format!(
            "{}\n",
            paint.green(&format!("{a} and {b} have the same rows"))
        );
    }
    let header = [
        "TABLE",
        "ONLY A",
        "ONLY B",
        "CONFLICTS",
        "CLASHES",
        "UNDECIDED",
        "TO A",
        "TO B",
    ];
    let row = |(name, counts): (&&TableName, &Counts)| {
        let number = |rows: usize| count(rows as u64);
        let warned = |rows: usize| match rows {
            0 => number(rows),
            _ => paint.red(&number(rows)),
        };
        vec![
            clean(&name.to_string()),
            number(counts.only_a),
            number(counts.only_b),
            number(counts.conflicts),
            warned(counts.clashes),
            warned(counts.undecided),
            number(counts.to_a),
            number(counts.to_b),
        ]
    };
    let rows: Vec<Vec<String>> = plan.iter().map(row).collect();
    let total = |of: fn(&Counts) -> usize| count(plan.values().map(of).sum::<usize>() as u64);
    format!(
        "A is {a}, B is {b}\n{}\n{} rows to write to {a}, {} to {b}\n",
        table(&header, &rows, paint),
        total(|counts| counts.to_a),
        total(|counts| counts.to_b)
    )
}

/// The same for programs.
pub(crate) fn planned_json(plan: &Planned<'_>, path: Option<&Path>) -> Value {
    let table = |(name, counts): (&&TableName, &Counts)| {
        json!({
            "schema": name.schema, "table": name.table, "only_a": counts.only_a, "only_b": counts.only_b,
            "conflicts": counts.conflicts, "clashes": counts.clashes, "undecided": counts.undecided,
            "to_a": counts.to_a, "to_b": counts.to_b,
        })
    };
    let total = |of: fn(&Counts) -> usize| plan.values().map(of).sum::<usize>();
    json!({
        "event": "merge.planned",
        "tables": plan.iter().map(table).collect::<Vec<_>>(),
        "undecided": total(|counts| counts.undecided),
        "to_a": total(|counts| counts.to_a),
        "to_b": total(|counts| counts.to_b),
        "plan": path,
    })
}

/// How far it is.
pub(crate) fn line(round: u32, page: usize, pages: usize) -> String {
    match round {
        0 => format!("writing rows: page {page} of {pages}"),
        _ => format!("round {round}: writing rows: page {page} of {pages}"),
    }
}

/// What is written so far, for whoever stops.
pub(crate) fn so_far(why: &str, written: &Outcome, (a, b): (&NodeId, &NodeId)) -> String {
    let (rows_a, rows_b) = (count(written.rows_a), count(written.rows_b));
    format!("{why}; {rows_a} rows are written to {a}, {rows_b} to {b}")
}

/// The end.
pub(crate) fn done(written: &Outcome, (a, b): (&NodeId, &NodeId), paint: Paint) -> String {
    let (rows_a, rows_b) = (count(written.rows_a), count(written.rows_b));
    let equal = paint.green(&format!(
        "{a} and {b} have the same rows and follow each other"
    ));
    let seconds = written.seconds;
    format!("{equal}: {rows_a} rows were written to {a}, {rows_b} to {b}, in {seconds:.1} s\n")
}

/// The same for programs.
pub(crate) fn done_json(written: &Outcome, (a, b): (&NodeId, &NodeId)) -> Value {
    json!({
        "event": "merge.completed", "node_a": a, "node_b": b, "equal": true,
        "rows_written_a": written.rows_a, "rows_written_b": written.rows_b,
        "rounds": written.rounds, "duration_seconds": written.seconds,
    })
}
