//! Compared schemas as text and ([`json`]) as JSON.

pub(crate) mod json;

#[cfg(test)]
mod tests;

use console::{measure_text_width, truncate_str};
use steep_protocol::TableName;
use steep_protocol::message::schema::{ColumnModel, ObjectModel};
use steep_schema::{Comparison, Schema, Status, TableComparison, line, named};

use super::{Paint, clean, paragraph};

/// What may differ without being a difference here: replication does not depend on it.
pub(crate) const NOT_COMPARED: [&str; 7] = [
    "functions",
    "triggers",
    "views",
    "materialized views",
    "rules",
    "policies",
    "privileges",
];

/// The narrowest half of a side by side view.
const HALF_MIN: usize = 20;

/// Every difference under its table, then a line that counts.
pub(crate) fn comparison(compared: &Comparison, local: &str, remote: &str, paint: Paint) -> String {
    let mut text = String::new();
    for table in compared.tables.iter().filter(|t| t.status != Status::Match) {
        let status = match table.status {
            Status::Match => String::new(),
            Status::Mismatch => paint.yellow("differs"),
            Status::LocalOnly => paint.red(&format!("only on {local}")),
            Status::RemoteOnly => paint.red(&format!("only on {remote}")),
        };
        let name = paint.bold(&clean(&table.name.to_string()));
        text.push_str(&format!("{name}  {status}\n"));
        if table.status == Status::Mismatch {
            for difference in &table.differences {
                text.push_str(&format!(
                    "  {}\n",
                    paragraph(&named(difference, local, remote))
                ));
            }
        }
    }
    for difference in &compared.objects {
        text.push_str(&format!(
            "{}\n",
            paragraph(&named(difference, local, remote))
        ));
    }
    let count = |status| compared.count(status);
    let summary = format!(
        "tables: {} match, {} differ, {} only on {local}, {} only on {remote}; other differences: {}",
        count(Status::Match),
        count(Status::Mismatch),
        count(Status::LocalOnly),
        count(Status::RemoteOnly),
        compared.objects.len()
    );
    let same = compared.differences().next().is_none();
    text.push_str(&match same {
        true => paint.green(&summary),
        false => paint.yellow(&summary),
    });
    text.push('\n');
    text.push_str(&paint.dim(&format!("not compared: {}", NOT_COMPARED.join(", "))));
    text.push('\n');
    text
}

/// A table on both sides: what each is called, and its schema.
pub(crate) struct Sides<'a> {
    /// The table.
    pub(crate) table: &'a TableName,
    /// The local side.
    pub(crate) local: (&'a str, &'a Schema),
    /// The remote side.
    pub(crate) remote: (&'a str, &'a Schema),
}

struct Row {
    local: Option<String>,
    remote: Option<String>,
}

/// One table, its two sides beside each other: `|` marks what differs, `<` and `>` what one side has.
pub(crate) fn side_by_side(
    table: &TableComparison,
    sides: &Sides<'_>,
    width: Option<usize>,
    paint: Paint,
) -> String {
    let rows = rows(sides);
    let longest = rows
        .iter()
        .filter_map(|row| row.local.as_deref())
        .chain([sides.local.0])
        .map(measure_text_width)
        .max()
        .unwrap_or(0);
    // Only a terminal has a width to cut to.
    let half = width
        .map(|columns| columns.saturating_sub(3) / 2)
        .map(|half| half.max(HALF_MIN));
    let left = half.map_or(longest, |half| longest.min(half));
    let cut = |text: &str| match half {
        Some(half) => truncate_str(text, half, "…").into_owned(),
        None => text.to_owned(),
    };
    let mut text = format!("{}\n", paint.bold(&clean(&sides.table.to_string())));
    let mut add = |local: &str, mark: &str, remote: &str, dress: &dyn Fn(&str) -> String| {
        let local = cut(local);
        let gap = " ".repeat(left.saturating_sub(measure_text_width(&local)));
        let line = format!("{}{gap} {mark} {}", dress(&local), dress(&cut(remote)));
        text.push_str(line.trim_end());
        text.push('\n');
    };
    add(sides.local.0, " ", sides.remote.0, &|text| paint.dim(text));
    for row in &rows {
        match (&row.local, &row.remote) {
            (Some(local), Some(remote)) if local == remote => {
                add(local, " ", remote, &|text| text.to_owned());
            }
            (Some(local), Some(remote)) => add(local, "|", remote, &|text| paint.yellow(text)),
            (Some(local), None) => add(local, "<", "", &|text| paint.red(text)),
            (None, Some(remote)) => add("", ">", remote, &|text| paint.green(text)),
            (None, None) => {}
        }
    }
    for difference in &table.differences {
        let sentence = paragraph(&named(difference, sides.local.0, sides.remote.0));
        text.push_str(&format!("{sentence}\n"));
    }
    if table.status == Status::Match {
        text.push_str(&paint.green("no difference"));
        text.push('\n');
    }
    text
}

/// Columns in local order, with those that only the remote has at their place; then other objects by kind and
/// name.
fn rows(sides: &Sides<'_>) -> Vec<Row> {
    let columns = |schema: &'_ Schema| -> Vec<ColumnModel> {
        let table = schema.table(sides.table);
        table.map_or_else(Vec::new, |t| t.columns.clone())
    };
    let (local, remote) = (columns(sides.local.1), columns(sides.remote.1));
    let mut rows = Vec::new();
    let mut next = 0;
    for column in &local {
        let there = remote.iter().position(|c| c.name == column.name);
        if let Some(at) = there {
            let alone = |c: &&ColumnModel| !local.iter().any(|l| l.name == c.name);
            for extra in remote[next.min(at)..at].iter().filter(alone) {
                rows.push(Row {
                    local: None,
                    remote: Some(shown(&line(extra))),
                });
            }
            next = next.max(at + 1);
        }
        rows.push(Row {
            local: Some(shown(&line(column))),
            remote: there.map(|at| shown(&line(&remote[at]))),
        });
    }
    for extra in &remote[next.min(remote.len())..] {
        if !local.iter().any(|c| c.name == extra.name) {
            rows.push(Row {
                local: None,
                remote: Some(shown(&line(extra))),
            });
        }
    }
    let said = |object: &ObjectModel| {
        let kind = object.kind.as_str().replace('_', " ");
        shown(format!("{kind} {} {}", object.name, object.definition).trim_end())
    };
    let here: Vec<_> = sides.local.1.objects_of(sides.table).collect();
    let there: Vec<_> = sides.remote.1.objects_of(sides.table).collect();
    let same =
        |one: &ObjectModel, other: &ObjectModel| one.kind == other.kind && one.name == other.name;
    for object in &here {
        let other = there.iter().find(|other| same(object, other));
        rows.push(Row {
            local: Some(said(object)),
            remote: other.map(|other| said(other)),
        });
    }
    for object in there {
        if !here.iter().any(|other| same(object, other)) {
            rows.push(Row {
                local: None,
                remote: Some(said(object)),
            });
        }
    }
    rows
}

/// On one line.
fn shown(text: &str) -> String {
    clean(text)
}
