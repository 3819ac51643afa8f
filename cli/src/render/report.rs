//! The last word about a job.

use steep_protocol::NodeState;
use steep_protocol::message::api::{EndView, LostSnapshot, PhaseSeconds, Report, TableTime};
use steep_protocol::message::job::Method;

use super::nodes::state;
use super::progress::wire_ratio;
use super::table::{pairs, table};
use super::{Paint, clean, findings};
use crate::failure;
use crate::units;

/// Tables named in the list of the slowest; `--json` has all that are kept.
const SLOWEST_SHOWN: usize = 5;

/// What was copied, what crossed the network, where the time went, and what remains to be known;
/// for a job that failed, why and what next.
pub(crate) fn end(view: &EndView, paint: Paint) -> String {
    let mut text = match &view.fault {
        None if view.report.method == Some(Method::Load) => format!(
            "{} has the rows of a stored snapshot of {1} after {2}; it does not follow {1}\n",
            paint.bold(view.node_id.as_str()),
            view.source_node,
            units::duration(view.duration_seconds)
        ),
        None => format!(
            "{} is {} with {} after {}\n",
            paint.bold(view.node_id.as_str()),
            state(view.state, paint),
            view.source_node,
            units::duration(view.duration_seconds)
        ),
        Some(fault) => {
            let mut fault = fault.clone();
            fault.node.get_or_insert_with(|| view.node_id.clone());
            // "node_b failed after", but "node_b is uninitialized after".
            let is = match view.state {
                NodeState::Failed => "",
                _ => "is ",
            };
            format!(
                "{}\n{} {is}{} after {}\n",
                failure::render(&fault, paint),
                paint.bold(view.node_id.as_str()),
                state(view.state, paint),
                units::duration(view.duration_seconds)
            )
        }
    };
    text.push_str(&pairs(&facts(view), 2, paint));
    text.push_str(&slowest(&view.report, paint));
    for lost in &view.report.lost_snapshots {
        text.push_str(&format!(
            "  {} {}\n",
            paint.yellow("lost"),
            lost_snapshot(lost)
        ));
    }
    for missing in &view.report.not_copied {
        let missing = clean(missing);
        text.push_str(&format!("  {} {missing}\n", paint.yellow("not copied")));
    }
    text.push_str(&findings::list(&view.warnings, paint));
    text
}

/// When and how, how much, how long.
fn facts(view: &EndView) -> Vec<(&'static str, String)> {
    let mut lines = Vec::new();
    let report = &view.report;
    if let (Some(started), Some(ended)) = (report.started_at, report.ended_at) {
        let workers = match report.parallel_workers {
            1 => "1 worker".to_owned(),
            workers => format!("{workers} workers"),
        };
        let method = match report.method {
            Some(Method::Native) => ", method native".to_owned(),
            Some(Method::TwoPhase) => format!(", method two-phase, {workers}"),
            Some(Method::Snapshot) => format!(", method snapshot, {workers}"),
            Some(Method::Load) => format!(", from a stored snapshot alone, {workers}"),
            Some(Method::Stored) => format!(", from a stored snapshot, {workers}"),
            Some(Method::Backup) => ", rows from a backup".to_owned(),
            Some(Method::Add) => format!(", method add, {workers}"),
            Some(Method::Drop) => ", method drop".to_owned(),
            Some(Method::Reinit) => format!(", method reinit, {workers}"),
            Some(Method::Merge) => ", rows of both nodes merged".to_owned(),
            None => String::new(),
        };
        lines.push(("ran", format!("{started:.0} to {ended:.0}{method}")));
    }
    lines.push(("tables", units::count(view.tables)));
    lines.push(("rows", units::count(view.rows_copied)));
    let mut bytes = units::size(view.bytes_copied);
    if view.phases.copying > 0.0 {
        let rate = view.bytes_copied as f64 / view.phases.copying;
        bytes.push_str(&format!(", {}", units::rate(rate)));
    }
    lines.push(("bytes", bytes));
    let mut wire = units::size(view.wire_bytes);
    if let Some(ratio) = wire_ratio(view.wire_bytes, view.bytes_copied) {
        wire.push_str(&format!(", {ratio} of the rows' bytes"));
    }
    lines.push(("wire", wire));
    lines.push(("time", phases(report).unwrap_or_else(|| sums(view.phases))));
    lines
}

fn sums(phases: PhaseSeconds) -> String {
    let seconds = units::duration;
    format!(
        "preparing {}, copying {}, indexing {}, catching up {}",
        seconds(phases.preparing),
        seconds(phases.copying),
        seconds(phases.indexing),
        seconds(phases.catching_up)
    )
}

/// Phases one by one, where they are known.
fn phases(report: &Report) -> Option<String> {
    let times = report.phase_times.iter().map(|time| {
        format!(
            "{} {}",
            time.phase.as_str().replace('_', " "),
            units::duration(time.seconds)
        )
    });
    let times: Vec<_> = times.collect();
    (!times.is_empty()).then(|| times.join(", "))
}

fn lost_snapshot(lost: &LostSnapshot) -> String {
    let tables = match lost.tables {
        1 => "1 table".to_owned(),
        tables => format!("{} tables", units::count(u64::from(tables))),
    };
    let again = match lost.bytes_again {
        0 => String::new(),
        bytes => format!(", {} were read again", units::size(bytes)),
    };
    format!(
        "the snapshot at {} at {:.0}, of which {tables} ({}) were kept{again}: {}",
        lost.lsn,
        lost.lost_at,
        units::size(lost.bytes),
        clean(&lost.reason)
    )
}

fn slowest(report: &Report, paint: Paint) -> String {
    if report.slowest_tables.is_empty() {
        return String::new();
    }
    let row = |table: &TableTime| {
        vec![
            clean(&format!("  {}.{}", table.schema, table.table)),
            units::duration(table.seconds),
            units::size(table.bytes),
            units::count(table.rows),
        ]
    };
    let rows: Vec<_> = report
        .slowest_tables
        .iter()
        .take(SLOWEST_SHOWN)
        .map(row)
        .collect();
    table(&["  SLOWEST TABLES", "TIME", "BYTES", "ROWS"], &rows, paint)
}

#[cfg(test)]
mod tests {
    use super::super::samples;
    use super::*;
    use steep_protocol::{Fault, FaultKind, NodeState};

    #[test]
    fn a_good_end_reports_amounts_times_and_warnings() {
        insta::assert_snapshot!(end(&samples::end(), Paint::Plain));
    }

    #[test]
    fn the_end_of_a_load_says_that_nothing_follows() {
        let mut view = samples::end();
        view.state = NodeState::Uninitialized;
        view.report.method = Some(Method::Load);
        let text = end(&view, Paint::Plain);
        let first = text.lines().next().unwrap();
        assert!(
            first.starts_with("node_b has the rows of a stored snapshot of node_a"),
            "{text}"
        );
        assert!(first.ends_with("does not follow node_a"), "{text}");
        assert!(text.contains("from a stored snapshot alone"), "{text}");
    }

    #[test]
    fn a_bad_end_begins_with_the_cause() {
        let mut view = samples::end();
        view.state = NodeState::Failed;
        view.fault = Some(Fault::new(FaultKind::Failed, "the disk is full").hint("free space"));
        view.warnings.clear();
        insta::assert_snapshot!(end(&view, Paint::Plain));
    }
}
