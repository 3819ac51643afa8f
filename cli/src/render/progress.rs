//! A job's progress for people: a calm line, a block, and what the bars show.

use steep_protocol::message::api::{ProgressView, TableState};
use steep_protocol::{NodeState, Phase};

use super::nodes::state;
use super::table::{pairs, table};
use super::{Paint, clean};
use crate::units;

/// Tables shown in the block of one question.
const TABLES_SHOWN: usize = 20;

/// A job as bars: full at a thousand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Frame {
    /// Who, from whom, in which state and phase, how long.
    pub(crate) title: String,
    /// By bytes.
    pub(crate) overall: Bar,
    /// Workers, throughput, wire, time left.
    pub(crate) rates: String,
    /// Tables being copied.
    pub(crate) tables: Vec<Bar>,
}

/// A bar and the text beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bar {
    /// 0 to 1000.
    pub(crate) permille: u64,
    /// What stands beside it.
    pub(crate) text: String,
}

/// What the bars show of a job that has run for that many seconds, with at most that many tables.
pub(crate) fn frame(view: &ProgressView, elapsed: f64, tables: usize, paint: Paint) -> Frame {
    let source = view
        .source_node
        .as_ref()
        .map_or("?", |source| source.as_str());
    let doing = match doing(view) {
        Some(doing) => format!("{} ({doing})", state(view.state, paint)),
        None => state(view.state, paint),
    };
    let title = format!(
        "{} from {source}  {doing}  {} overall  {}",
        paint.bold(view.node_id.as_str()),
        units::percent(view.overall_percent),
        paint.dim(&units::duration(elapsed)),
    );
    let overall = Bar {
        permille: copied_permille(view),
        text: format!(
            "{} of {}  {}/{} tables  {} rows",
            units::size(view.bytes_copied),
            units::size(view.bytes_total.max(view.bytes_copied)),
            view.tables_completed,
            view.tables_total,
            units::count(view.rows_copied),
        ),
    };
    let copying = view
        .tables
        .iter()
        .filter(|table| table.state == TableState::Copying);
    let tables = copying
        .take(tables)
        .map(|table| Bar {
            permille: permille(table.percent / 100.0),
            text: clean(&format!(
                "{:>6}  {}  {}.{}",
                units::percent(table.percent),
                units::size(table.bytes),
                table.schema,
                table.table
            )),
        })
        .collect();
    Frame {
        title,
        overall,
        rates: rates(view),
        tables,
    }
}

/// One line for a log: what a person would want to read every ten seconds.
pub(crate) fn line(view: &ProgressView, elapsed: f64) -> String {
    let mut text = format!(
        "[{}] {}: {}",
        units::duration(elapsed),
        view.node_id,
        view.state
    );
    if let Some(doing) = doing(view) {
        text.push_str(&format!(", {doing}"));
    }
    text.push_str(&format!(
        ", {} overall",
        units::percent(view.overall_percent)
    ));
    if view.phase == Some(Phase::Copy) {
        text.push_str(&format!(
            ", {} of {}, {}/{} tables, {}",
            units::size(view.bytes_copied),
            units::size(view.bytes_total.max(view.bytes_copied)),
            view.tables_completed,
            view.tables_total,
            rates(view).replace("  ", ", "),
        ));
    } else if let Some(eta) = view.eta_seconds {
        text.push_str(&format!(", ETA {}", units::eta(eta)));
    }
    text
}

/// The whole of it, once.
pub(crate) fn block(view: &ProgressView, paint: Paint) -> String {
    let mut lines = Vec::new();
    if let Some(source) = &view.source_node {
        lines.push(("source", source.to_string()));
    }
    if let Some(job) = view.job_id {
        lines.push(("job", job.to_string()));
    }
    if let Some(doing) = doing(view) {
        lines.push(("phase", doing));
    }
    lines.push(("overall", units::percent(view.overall_percent)));
    let copied = format!(
        "{} of {}, {} rows, {}/{} tables",
        units::size(view.bytes_copied),
        units::size(view.bytes_total.max(view.bytes_copied)),
        units::count(view.rows_copied),
        view.tables_completed,
        view.tables_total
    );
    lines.push(("copied", copied));
    if view.state.is_active() {
        lines.push(("now", rates(view).replace("  ", ", ")));
    }
    if let Some(started) = view.started_at {
        lines.push(("started", format!("{started:.0}")));
    }
    if let Some(error) = &view.error_message {
        lines.push(("error", paint.red(&clean(error))));
    }
    let mut text = format!(
        "{}  {}\n{}",
        paint.bold(view.node_id.as_str()),
        state(view.state, paint),
        pairs(&lines, 2, paint)
    );
    text.push_str(&tables(view, paint));
    text
}

/// Tables at work first, then those to come, then those that are done.
fn tables(view: &ProgressView, paint: Paint) -> String {
    let mut sorted: Vec<_> = view.tables.iter().collect();
    sorted.sort_by_key(|table| match table.state {
        TableState::Copying => 0,
        TableState::Pending => 1,
        TableState::Completed => 2,
    });
    if sorted.is_empty() {
        return String::new();
    }
    let rows: Vec<_> = sorted
        .iter()
        .take(TABLES_SHOWN)
        .map(|table| {
            let state = match table.state {
                TableState::Pending => "pending",
                TableState::Copying => "copying",
                TableState::Completed => "completed",
            };
            vec![
                clean(&format!("  {}.{}", table.schema, table.table)),
                state.to_owned(),
                units::percent(table.percent),
                units::size(table.bytes),
                units::count(table.rows),
            ]
        })
        .collect();
    let header = ["  TABLE", "STATE", "DONE", "BYTES", "ROWS"];
    let mut text = format!("\n{}", table(&header, &rows, paint));
    if let Some(more) = sorted
        .len()
        .checked_sub(TABLES_SHOWN)
        .filter(|more| *more > 0)
    {
        text.push_str(&format!(
            "  and {} more: --json lists all\n",
            units::count(more as u64)
        ));
    }
    text
}

/// The phase, how far it is, and on what.
pub(crate) fn doing(view: &ProgressView) -> Option<String> {
    let mut text = match view.phase? {
        Phase::Preflight => "preflight",
        Phase::Snapshot => "taking the snapshot",
        Phase::Schema => "schema",
        Phase::Copy => return Some("rows".to_owned()),
        Phase::Indexes => "building indexes",
        Phase::Constraints => "constraints",
        Phase::Subscribe => "subscribing",
        Phase::CatchUp => "catching up",
        Phase::Prove => "proving",
        Phase::Cleanup => "cleaning up",
    }
    .to_owned();
    if let Some(percent) = view.phase_percent {
        text.push_str(&format!(" {}", units::percent(percent)));
    }
    if let Some(current) = &view.current_table {
        text.push_str(&format!(" {}", clean(current)));
    }
    Some(text)
}

/// Two spaces apart.
fn rates(view: &ProgressView) -> String {
    let mut parts = vec![match view.parallel_workers {
        1 => "1 worker".to_owned(),
        workers => format!("{workers} workers"),
    }];
    if view.phase == Some(Phase::Copy) {
        let rows = view.throughput_rows_sec.max(0.0).round() as u64;
        parts.push(format!("{} rows/s", units::count(rows)));
        parts.push(units::rate(view.throughput_bytes_sec));
        if let Some(ratio) = wire_ratio(view.wire_bytes, view.bytes_copied) {
            parts.push(format!("wire {ratio}"));
        }
    }
    if let Some(eta) = view.eta_seconds {
        parts.push(format!("ETA {}", units::eta(eta)));
    }
    parts.join("  ")
}

/// What crossed the network for each byte of rows, such as `31%`.
pub(crate) fn wire_ratio(wire: u64, copied: u64) -> Option<String> {
    (copied > 0).then(|| format!("{:.0}%", wire as f64 / copied as f64 * 100.0))
}

/// By bytes while rows move; full after that.
fn copied_permille(view: &ProgressView) -> u64 {
    match view.phase {
        Some(
            Phase::Indexes | Phase::Constraints | Phase::Subscribe | Phase::CatchUp | Phase::Prove,
        ) => 1_000,
        _ if view.state == NodeState::Synchronized => 1_000,
        _ if view.bytes_total == 0 => 0,
        _ => permille(view.bytes_copied as f64 / view.bytes_total as f64),
    }
}

fn permille(share: f64) -> u64 {
    if share.is_finite() {
        (share.clamp(0.0, 1.0) * 1_000.0) as u64
    } else {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::super::samples;
    use super::*;

    #[test]
    fn bars_show_bytes_tables_workers_rates_and_time_left() {
        insta::assert_debug_snapshot!(frame(&samples::progress(), 14.5, 4, Paint::Plain));
    }

    #[test]
    fn no_more_tables_are_shown_than_fit() {
        let mut view = samples::progress();
        view.tables = vec![samples::table("t", 1.0); 30];
        assert_eq!(frame(&view, 1.0, 8, Paint::Plain).tables.len(), 8);
        assert!(block(&view, Paint::Plain).contains("and 10 more"));
    }

    #[test]
    fn a_line_says_what_changes_with_the_phase() {
        let copying = samples::progress();
        let mut indexing = samples::progress();
        indexing.phase = Some(Phase::Indexes);
        indexing.phase_percent = Some(25.0);
        indexing.current_table = Some("public.pgbench_accounts_pkey".to_owned());
        let mut preparing = samples::progress();
        preparing.state = NodeState::Preparing;
        preparing.phase = None;
        preparing.eta_seconds = None;
        let lines = [copying, indexing, preparing].map(|view| line(&view, 83.0));
        insta::assert_snapshot!(lines.join("\n"));
    }

    #[test]
    fn a_block_says_all_of_it() {
        let mut view = samples::progress();
        view.tables.push(samples::table("done", 100.0));
        insta::assert_snapshot!(block(&view, Paint::Plain));
    }

    #[test]
    fn broken_numbers_make_no_broken_bar() {
        let mut view = samples::progress();
        view.bytes_total = 0;
        view.throughput_bytes_sec = f64::NAN;
        view.throughput_rows_sec = f64::NEG_INFINITY;
        view.tables[0].percent = f64::INFINITY;
        let frame = frame(&view, f64::NAN, 4, Paint::Plain);
        assert_eq!(frame.overall.permille, 0);
        assert_eq!(frame.tables[0].permille, 0);
        assert!(frame.rates.contains("0 rows/s"), "{}", frame.rates);
    }
}
