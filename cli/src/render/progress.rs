//! A job's progress as text: a line, a block, and the texts of the bars.

use steep_protocol::message::api::{ProgressDetail, ProgressView, TableState};
use steep_protocol::{NodeState, Phase};

use super::nodes::state;
use super::table::{pairs, table};
use super::waiting::waiting;
use super::{Paint, clean, locks};
use crate::units;

/// Tables shown in the block of one question.
const TABLES_SHOWN: usize = 20;

/// The texts and values of a job's bars.
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
        // Locks and time left first: a narrow terminal cuts the end.
        rates: locks::lines(&view.detail.locks)
            .into_iter()
            .take(1)
            .map(|(label, lock)| format!("{label} {lock}"))
            .chain(left(view))
            .chain(rates(view))
            .collect::<Vec<_>>()
            .join("  "),
        tables,
    }
}

/// One line for a log.
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
            ", {} of {}, {}/{} tables",
            units::size(view.bytes_copied),
            units::size(view.bytes_total.max(view.bytes_copied)),
            view.tables_completed,
            view.tables_total,
        ));
    }
    for part in rates(view).into_iter().chain(left(view)) {
        text.push_str(", ");
        text.push_str(&part);
    }
    if let Some((label, lock)) = locks::lines(&view.detail.locks).first() {
        text.push_str(&format!(", {label} {lock}"));
    }
    text
}

/// All details, for `init progress`.
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
        let now: Vec<_> = rates(view).into_iter().chain(left(view)).collect();
        lines.push(("now", now.join(", ")));
    }
    if let Some(note) = &view.detail.spool_note {
        lines.push(("spool", paint.yellow(&clean(note))));
    }
    lines.extend(locks::lines(&view.detail.locks));
    if view.detail.restarts > 0 {
        let ProgressDetail {
            restarts,
            tables_kept,
            ..
        } = view.detail;
        let kept = match tables_kept {
            0 => String::new(),
            kept => format!("; {kept} tables that were complete are kept"),
        };
        let text = format!("{restarts} times: the snapshot was lost{kept}");
        lines.push(("begun again", text));
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
    if let Some(waits) = &view.detail.waiting {
        return Some(waiting(waits));
    }
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
        Phase::Swap => "replacing rows",
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

/// Workers, throughput and compression.
fn rates(view: &ProgressView) -> Vec<String> {
    let mut parts = Vec::new();
    parts.extend(workers(view.parallel_workers));
    if view.phase == Some(Phase::Copy) {
        let rows = view.throughput_rows_sec.max(0.0).round() as u64;
        parts.push(format!("{} rows/s", units::count(rows)));
        parts.push(units::rate(view.throughput_bytes_sec));
        parts.extend(wire(view));
    } else {
        parts.extend(phase_work(view));
    }
    let spool = view.detail.spool_percent;
    parts.extend(spool.map(|percent| format!("spool {percent:.0}%")));
    parts.extend(retries(view.detail.retries));
    parts
}

/// `4 workers`; nothing where none is at work.
pub(crate) fn workers(workers: u8) -> Option<String> {
    match workers {
        0 => None,
        1 => Some("1 worker".to_owned()),
        workers => Some(format!("{workers} workers")),
    }
}

/// `1 retry`; nothing where there was none.
pub(crate) fn retries(retries: u64) -> Option<String> {
    match retries {
        0 => None,
        1 => Some("1 retry".to_owned()),
        retries => Some(format!("{} retries", units::count(retries))),
    }
}

/// What crosses the network now, and how much less that is than the rows: `26.4 MB/s wire (31%)`.
/// Nothing before anything crossed it.
pub(crate) fn wire(view: &ProgressView) -> Option<String> {
    // Not the totals, which count parts that crossed it before a restart in one sum only.
    let ratio = view.detail.compression_ratio.filter(|ratio| *ratio > 0.0)?;
    let rate = units::rate(view.detail.throughput_wire_bytes_sec);
    Some(format!("{rate} wire ({:.0}%)", 100.0 / ratio))
}

/// The bytes of a phase that copies no rows, and how fast they are done.
pub(crate) fn phase_work(view: &ProgressView) -> Option<String> {
    let detail = &view.detail;
    let (done, total) = (detail.phase_bytes_done?, detail.phase_bytes_total?);
    let what = match view.phase? {
        Phase::CatchUp => " of WAL",
        _ => "",
    };
    let mut text = format!("{} of {}{what}", units::size(done), units::size(total));
    if let Some(rate) = detail.phase_bytes_sec {
        text.push_str(&format!(" at {}", units::rate(rate)));
    }
    Some(text)
}

/// When the phase ends, of a job that is at work. Never when the job does: how long later phases take
/// is not known before they begin.
pub(crate) fn left(view: &ProgressView) -> Option<String> {
    if !view.state.is_active() {
        return None;
    }
    let phase = match view.phase {
        Some(phase) => format!("{}: ", phase_name(phase)),
        None => String::new(),
    };
    Some(match view.eta_seconds {
        Some(eta) => format!("{phase}{} left", units::eta(eta)),
        None => format!("{phase}ETA unknown"),
    })
}

/// A phase for people, in a word or two.
pub(crate) fn phase_name(phase: Phase) -> &'static str {
    match phase {
        Phase::Preflight => "preflight",
        Phase::Snapshot => "snapshot",
        Phase::Schema => "schema",
        Phase::Copy => "copy",
        Phase::Indexes => "indexes",
        Phase::Constraints => "constraints",
        Phase::Subscribe => "subscribe",
        Phase::CatchUp => "catch up",
        Phase::Prove => "prove",
        Phase::Swap => "swap",
        Phase::Cleanup => "clean up",
    }
}

/// What crossed the network for each byte of rows in all, such as `31%`.
pub(crate) fn wire_ratio(wire: u64, copied: u64) -> Option<String> {
    (copied > 0).then(|| format!("{:.0}%", wire as f64 / copied as f64 * 100.0))
}

/// By bytes while rows move; full after that.
fn copied_permille(view: &ProgressView) -> u64 {
    match view.phase {
        Some(
            Phase::Indexes
            | Phase::Constraints
            | Phase::Swap
            | Phase::Subscribe
            | Phase::CatchUp
            | Phase::Prove,
        ) => 1_000,
        _ if view.state == NodeState::Synchronized => 1_000,
        // The bytes in all may turn out to be more; the percentage never goes back.
        Some(Phase::Copy) if view.phase_percent.is_some() => {
            permille(view.phase_percent.unwrap_or(0.0) / 100.0)
        }
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
    use steep_protocol::message::api::ProgressDetail;

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
        indexing.detail.phase_bytes_sec = Some(42_000_000.0);
        indexing.detail.phase_bytes_done = Some(500_000_000);
        indexing.eta_seconds = None;
        let mut catching_up = indexing.clone();
        catching_up.state = NodeState::CatchingUp;
        catching_up.phase = Some(Phase::CatchUp);
        catching_up.current_table = None;
        catching_up.parallel_workers = 0;
        catching_up.detail.retries = 2;
        catching_up.eta_seconds = Some(57);
        let mut preparing = samples::progress();
        preparing.state = NodeState::Preparing;
        preparing.phase = None;
        preparing.eta_seconds = None;
        preparing.parallel_workers = 0;
        preparing.detail = ProgressDetail::default();
        let mut over = preparing.clone();
        over.state = NodeState::Synchronized;
        over.overall_percent = 100.0;
        let lines = [copying, indexing, catching_up, preparing, over].map(|view| line(&view, 83.0));
        insta::assert_snapshot!(lines.join("\n"));
    }

    #[test]
    fn time_left_is_the_phases_and_said_to_be_unknown_where_it_is() {
        let mut view = samples::progress();
        let said = |view: &ProgressView| {
            let frame = frame(view, 1.0, 1, Paint::Plain).rates;
            [frame, line(view, 1.0), block(view, Paint::Plain)]
        };
        for text in said(&view) {
            assert!(text.contains("copy: 19s left"), "{text}");
        }
        view.eta_seconds = None;
        for phase in [Phase::Copy, Phase::Indexes, Phase::CatchUp] {
            view.phase = Some(phase);
            let unknown = format!("{}: ETA unknown", phase_name(phase));
            for text in said(&view) {
                assert!(text.contains(&unknown), "{text}");
            }
        }
    }

    #[test]
    fn what_is_said_of_the_wire_counts_only_what_crossed_it() {
        let mut view = samples::progress();
        // Half of the bytes came from the ledger, which does not know what they took on the wire.
        view.wire_bytes /= 2;
        for text in [
            frame(&view, 1.0, 1, Paint::Plain).rates,
            line(&view, 1.0),
            block(&view, Paint::Plain),
        ] {
            assert!(text.contains("26.4 MB/s wire (31%)"), "{text}");
        }
        view.detail.compression_ratio = None;
        assert!(!line(&view, 1.0).contains("wire"));
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
        view.phase_percent = Some(f64::NAN);
        view.throughput_bytes_sec = f64::NAN;
        view.throughput_rows_sec = f64::NEG_INFINITY;
        view.tables[0].percent = f64::INFINITY;
        let frame = frame(&view, f64::NAN, 4, Paint::Plain);
        assert_eq!(frame.overall.permille, 0);
        assert_eq!(frame.tables[0].permille, 0);
        assert!(frame.rates.contains("0 rows/s"), "{}", frame.rates);
    }
}
