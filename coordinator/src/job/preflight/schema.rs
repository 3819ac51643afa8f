//! Differences between the target's schema and the source's, as each mode treats them: strict stops, auto
//! shows the statements it will run, manual asks for confirmation.

use steep_protocol::message::facts::{Finding, Severity};
use steep_protocol::message::job::{AbsentTables, Confirmation, ExistingRows, Method, SchemaMode};
use steep_protocol::message::schema::{Change, PlannedStatement, SchemaDifference, Subject};
use steep_schema::{blocker, creates, named};

use super::text::counted;
use super::{Pair, Text, finding};

/// The code of a difference.
const MISMATCH: &str = "schema_mismatch";

/// The code of a statement that auto runs or would run.
const PLAN: &str = "schema_plan";

/// The code of a difference that auto has no statement for.
const UNPLANNED: &str = "schema_unplanned";

/// How differences are treated. Where the target lacks whole tables alone, and they are to be created, as auto does.
fn mode(pair: &Pair<'_>) -> SchemaMode {
    let review = &pair.target.review;
    let listed = review.differences.len() as u64 == review.differences_total;
    let created = listed && review.differences.iter().all(creates);
    match pair.spec.absent {
        AbsentTables::Created if created => SchemaMode::Auto,
        AbsentTables::Created | AbsentTables::Differ => pair.spec.schema_mode,
    }
}

/// Tables that get new rows need the columns that are copied; whatever else differs stays as it is.
fn columns(pair: &Pair<'_>, findings: &mut Vec<Finding>) {
    let lacks = |d: &&SchemaDifference| {
        d.change == Change::Missing && matches!(d.subject, Subject::Table | Subject::Column)
    };
    let lacking = pair.target.review.differences.iter().filter(lacks);
    let listed: Vec<_> = lacking
        .map(|d| (Severity::Error, named(d, "the source", "the target")))
        .collect();
    let total = listed.len() as u64;
    let why = "the new rows have values that the target has no place for";
    let fix = "make the tables alike, or leave those that differ out";
    add(pair, findings, MISMATCH, listed, total, (why, fix));
}

pub(super) fn judge(pair: &Pair<'_>, findings: &mut Vec<Finding>) {
    if pair.spec.method == Method::Reinit {
        return columns(pair, findings);
    }
    let review = &pair.target.review;
    let mode = mode(pair);
    let (severity, why, fix) = verdict(mode, pair.spec.confirmation);
    let described = |all: &[SchemaDifference], severity| -> Vec<(Severity, String)> {
        let describe = |d| (severity, named(d, "the source", "the target"));
        all.iter().map(describe).collect()
    };
    let is_order = |d: &SchemaDifference| d.change == Change::Order;
    let (order, others): (Vec<_>, Vec<_>) = review.differences.iter().cloned().partition(is_order);
    let moved = order.len() as u64;
    let differences = described(&others, severity);
    let total = review.differences_total.saturating_sub(moved);
    add(pair, findings, MISMATCH, differences, total, (why, fix));
    let differences = described(&order, severity);
    let told = order_of_columns(mode, (why, fix));
    add(pair, findings, MISMATCH, differences, moved, told);
    if mode != SchemaMode::Auto {
        return;
    }
    let mut unlisted = review.unplanned_total;
    for difference in &review.unplanned {
        let one = described(std::slice::from_ref(difference), Severity::Error);
        add(pair, findings, UNPLANNED, one, 1, blocker(difference));
        unlisted = unlisted.saturating_sub(1);
    }
    let why = "there is no statement for these either";
    let fix =
        "make these changes on the target yourself, or start with a target database without tables";
    add(pair, findings, UNPLANNED, Vec::new(), unlisted, (why, fix));
    let force = pair.spec.existing == ExistingRows::Replace;
    // Numbered, since findings are sorted by severity.
    let statements = (1..).zip(&review.plan).map(|(number, planned)| {
        let (severity, text) = statement(planned, force);
        (
            severity,
            format!("{number} of {}: {text}", review.plan_total),
        )
    });
    let statements: Vec<_> = statements.collect();
    let why = "with --schema-sync auto this is run on the target, all of it in one transaction, before any row is copied";
    let fix = "nothing; --force allows the statements that lose something";
    add(
        pair,
        findings,
        PLAN,
        statements,
        review.plan_total,
        (why, fix),
    );
}

/// Adds a finding for each, and one for those that are only counted.
fn add(
    pair: &Pair<'_>,
    findings: &mut Vec<Finding>,
    code: &str,
    listed: Vec<(Severity, String)>,
    total: u64,
    (why, fix): (&str, &str),
) {
    let node = &pair.spec.target;
    let unlisted = total.saturating_sub(listed.len() as u64);
    let gravest = listed.iter().map(|(severity, _)| *severity).max();
    let rest = (unlisted > 0).then(|| {
        let what = counted(unlisted, "further one", "further ones");
        (gravest.unwrap_or(Severity::Error), what)
    });
    findings.extend(
        listed
            .into_iter()
            .chain(rest)
            .map(|(severity, what)| finding(severity, code, node, Text::new(what, why, fix))),
    );
}

fn statement(statement: &PlannedStatement, force: bool) -> (Severity, String) {
    let PlannedStatement { sql, loses } = statement;
    match loses {
        None => (Severity::Info, sql.clone()),
        Some(what) if force => (Severity::Warning, format!("{sql} (loses {what})")),
        Some(what) => (
            Severity::Error,
            format!("{sql} would lose {what}; give --force to allow it"),
        ),
    }
}

/// Why another order of columns matters, and what to do: no statement changes it.
fn order_of_columns(
    mode: SchemaMode,
    usual: (&'static str, &'static str),
) -> (&'static str, &'static str) {
    match mode {
        SchemaMode::Strict => (
            usual.0,
            "create the table on the target anew with its columns in the source's order, or start with a target database without tables; --schema-sync manual accepts the difference",
        ),
        SchemaMode::Auto => (
            "with --schema-sync auto the order of columns stays as it is: rows and changes go by the columns' names",
            "nothing, or create the table on the target anew if something there depends on the order",
        ),
        SchemaMode::Manual => usual,
    }
}

/// The severity of a difference, why it matters, and what to do.
fn verdict(mode: SchemaMode, word: Confirmation) -> (Severity, &'static str, &'static str) {
    match (mode, word) {
        (SchemaMode::Strict, _) => (
            Severity::Error,
            "rows and later changes may not fit; with --schema-sync strict any difference stops the job",
            "make the two schemas equal (--schema-sync auto does, --dry-run shows how), or start with a target database without tables",
        ),
        (SchemaMode::Auto, _) => (
            Severity::Warning,
            "with --schema-sync auto the target is made to match before rows are copied",
            "look at the statements below",
        ),
        (SchemaMode::Manual, Confirmation::Needed) => (
            Severity::Error,
            "rows and later changes may not fit; with --schema-sync manual somebody must confirm that they do",
            "look at the difference, then confirm with --yes",
        ),
        (SchemaMode::Manual, Confirmation::Given) => (
            Severity::Warning,
            "rows and later changes may not fit; it was confirmed that they do",
            "if the copy or the subscription fails at this table, make the two schemas equal",
        ),
    }
}
