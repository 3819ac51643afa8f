//! The detail view of a node: progress, time by phase, rates; below them the panes.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::text::{Line, Span};
use steep_protocol::message::api::{JobView, ProgressView};
use steep_protocol::message::job::Method;
use steep_protocol::{NodeState, Phase};

use super::panes;
use super::theme::Theme;
use super::widgets::{bar, cell, flow, put, seconds, spark, width, wrap};
use crate::render::progress::{left, phase_name, phase_work, retries, wire, workers};
use crate::render::{clean, locks};
use crate::units;
use crate::watch::model::{Model, Node};

/// Phases of `--method snapshot`, in order.
const SNAPSHOT_PHASES: [Phase; 9] = [
    Phase::Preflight,
    Phase::Snapshot,
    Phase::Schema,
    Phase::Copy,
    Phase::Indexes,
    Phase::Constraints,
    Phase::Subscribe,
    Phase::CatchUp,
    Phase::Prove,
];

/// Phases of `snapshot apply --no-subscribe`.
const LOAD_PHASES: [Phase; 7] = [
    Phase::Preflight,
    Phase::Snapshot,
    Phase::Schema,
    Phase::Copy,
    Phase::Indexes,
    Phase::Constraints,
    Phase::Prove,
];

/// Phases of `reinit`.
const REINIT_PHASES: [Phase; 7] = [
    Phase::Preflight,
    Phase::Snapshot,
    Phase::Schema,
    Phase::Copy,
    Phase::Swap,
    Phase::Subscribe,
    Phase::CatchUp,
];

/// Phases of `--method native`.
const NATIVE_PHASES: [Phase; 5] = [
    Phase::Preflight,
    Phase::Schema,
    Phase::Subscribe,
    Phase::Copy,
    Phase::CatchUp,
];

/// Phases of `init complete`.
const BACKUP_PHASES: [Phase; 5] = [
    Phase::Preflight,
    Phase::Schema,
    Phase::Subscribe,
    Phase::CatchUp,
    Phase::Prove,
];

/// Draws the detail view. Returns how far its pane can be scrolled.
pub(super) fn draw(model: &Model, theme: &Theme, area: Rect, buffer: &mut Buffer) -> usize {
    let Some(detail) = &model.detail else {
        return 0;
    };
    let Some(node) = model.nodes.get(&detail.node) else {
        let text = format!(
            " the coordinator does not know {}: Esc goes back",
            detail.node
        );
        put(buffer, area, 0, &Line::styled(text, theme.warning()));
        return 0;
    };
    let job = detail.job.as_deref();
    let head = head(model, node, job, theme, area);
    for (line, text) in (0..area.height).zip(&head) {
        put(buffer, area, line, text);
    }
    let used = u16::try_from(head.len())
        .unwrap_or(u16::MAX)
        .min(area.height);
    let rest = Rect {
        y: area.y + used,
        height: area.height - used,
        ..area
    };
    panes::draw(model, detail, node, theme, rest, buffer)
}

/// What a job is doing, with the table at hand.
pub(super) fn doing(view: &ProgressView) -> String {
    let mut text = crate::render::progress::doing(view).unwrap_or_else(|| view.state.to_string());
    if view.phase == Some(Phase::Copy) && view.detail.waiting.is_none() {
        text = format!(
            "copying {}/{} tables",
            view.tables_completed, view.tables_total
        );
        if let Some(table) = &view.current_table {
            text.push_str(&format!(", {table}"));
        }
        if let Some(percent) = view.current_table_percent {
            text.push_str(&format!(" {}", units::percent(percent)));
        }
    }
    text
}

/// The lines above the panes. A small screen cuts the end.
fn head(
    model: &Model,
    node: &Node,
    job: Option<&JobView>,
    theme: &Theme,
    area: Rect,
) -> Vec<Line<'static>> {
    let columns = usize::from(area.width).saturating_sub(2);
    let mut lines = who(node, job, columns, theme);
    if let Some(view) = &node.progress {
        lines.push(overall(model, view, columns, theme));
        lines.extend(flow(amounts(view), columns, &dotted(theme)));
        for note in notes(view) {
            let text = wrap(&note, columns).into_iter().take(2);
            lines.extend(text.map(|text| Line::styled(format!(" {text}"), theme.warning())));
        }
        for (label, lock) in locks::lines(&view.detail.locks).into_iter().take(3) {
            let text = wrap(&format!("{label} {lock}"), columns)
                .into_iter()
                .take(2);
            lines.extend(text.map(|text| Line::styled(format!(" {text}"), theme.warning())));
        }
    } else if let Some(job) = job {
        lines.extend(outcome(job, columns, theme));
    } else {
        lines.push(Line::styled(" no job yet", theme.faint()));
    }
    let errors = node
        .view
        .error_message
        .iter()
        .chain(&node.view.postgres_error);
    for error in errors {
        let error = wrap(error, columns).into_iter().take(3);
        lines.extend(error.map(|text| Line::styled(format!(" {text}"), theme.bad())));
    }
    if let Some(hint) = hint(node, job) {
        let hint = wrap(&format!("next: {hint}"), columns).into_iter().take(2);
        lines.extend(hint.map(|text| Line::styled(format!(" {text}"), theme.moving())));
    }
    if let Some(job) = job {
        lines.extend(phases(model, job, columns, theme));
        if area.height >= 20 {
            lines.push(timeline(model, job, columns, theme));
        }
    }
    if node.progress.is_some() && node.rates.iter().any(|rate| *rate > 0) {
        lines.push(throughput(node, columns, theme));
    }
    lines
}

fn who(node: &Node, job: Option<&JobView>, columns: usize, theme: &Theme) -> Vec<Line<'static>> {
    let view = &node.view;
    let name = match &view.source_node {
        Some(source) => format!("{} {} {source}", view.node_id, theme.signs.from),
        None => view.node_id.to_string(),
    };
    let mut spans = vec![Span::styled(name, theme.strong())];
    spans.push(Span::styled(
        view.state.to_string(),
        theme.state(view.state),
    ));
    if !view.agent_online {
        spans.push(Span::styled("agent offline", theme.bad()));
    }
    if let Some(job) = job {
        let text = format!("job {} by {}", job.job_id, job.operator);
        spans.push(Span::styled(text, theme.faint()));
    }
    for (name, bytes) in [("lag", view.lag_bytes), ("WAL held", view.wal_held_bytes)] {
        if let Some(bytes) = bytes {
            spans.push(Span::raw(format!("{name} {}", units::size(bytes))));
        }
    }
    flow(spans, columns, "  ")
}

fn overall(model: &Model, view: &ProgressView, columns: usize, theme: &Theme) -> Line<'static> {
    let mut text = format!(" {}", units::percent(view.overall_percent));
    if let Some(started) = view.started_at {
        let elapsed = units::eta(seconds(started, model.now) as u64);
        text.push_str(&format!("  elapsed {elapsed}"));
    }
    if let Some(left) = left(view) {
        text.push_str(&format!("  {left}"));
    }
    let room = columns.saturating_sub(width(&text)).min(60);
    let mut spans = vec![Span::raw(" ")];
    spans.extend(bar(view.overall_percent, room, theme.moving(), theme));
    spans.push(Span::styled(text, theme.strong()));
    Line::from(spans)
}

fn amounts(view: &ProgressView) -> Vec<Span<'static>> {
    let mut parts = vec![
        doing(view),
        format!(
            "{} of {}",
            units::size(view.bytes_copied),
            units::size(view.bytes_total.max(view.bytes_copied))
        ),
        format!("{} rows", units::count(view.rows_copied)),
    ];
    parts.extend(workers(view.parallel_workers));
    if view.throughput_rows_sec >= 1.0 {
        let rows = units::count(view.throughput_rows_sec as u64);
        parts.push(format!("{rows} rows/s"));
    }
    if view.phase == Some(Phase::Copy) {
        parts.push(units::rate(view.throughput_bytes_sec));
        parts.extend(wire(view));
    } else {
        // While rows move, the copy's own bytes say the same.
        parts.extend(phase_work(view).map(|work| format!("phase {work}")));
    }
    parts.extend(retries(view.detail.retries));
    parts.into_iter().map(Span::raw).collect()
}

/// What is out of the ordinary about the job's snapshot.
fn notes(view: &ProgressView) -> Vec<String> {
    let detail = &view.detail;
    let spool = detail.spool_note.as_ref().map(|note| clean(note));
    let lost = (detail.tables_kept > 0).then(|| {
        format!(
            "the snapshot was lost: {} tables that were complete are kept, the others are read again",
            units::count(u64::from(detail.tables_kept))
        )
    });
    spool.into_iter().chain(lost).collect()
}

fn dotted(theme: &Theme) -> String {
    format!(" {} ", theme.signs.dot)
}

/// How a job that is over ended.
fn outcome(job: &JobView, columns: usize, theme: &Theme) -> Vec<Line<'static>> {
    let Some(end) = &job.end else {
        return vec![Line::styled(" no job at work", theme.faint())];
    };
    let took = units::duration(end.duration_seconds);
    let how = match &end.fault {
        None => format!("synchronized after {took}"),
        Some(_) => format!("ended after {took}"),
    };
    let ended = end
        .report
        .ended_at
        .map_or_else(String::new, |at| format!(", at {at:.0}"));
    let mut parts = vec![
        format!("{how}{ended}"),
        format!("{} tables", units::count(end.tables)),
        format!("{} rows", units::count(end.rows_copied)),
        units::size(end.bytes_copied),
    ];
    parts.push(format!("{} on the wire", units::size(end.wire_bytes)));
    flow(
        parts.into_iter().map(Span::raw).collect(),
        columns,
        &dotted(theme),
    )
}

/// Next steps for a node in trouble.
fn hint(node: &Node, job: Option<&JobView>) -> Option<String> {
    if !matches!(node.view.state, NodeState::Failed | NodeState::Diverged) {
        return None;
    }
    let fault = job.and_then(|job| job.end.as_ref()?.fault.as_ref());
    fault
        .map(|fault| fault.hint.clone())
        .filter(|hint| !hint.is_empty())
}

/// Every phase with its time: those that are over, the one at hand, those to come.
fn phases(model: &Model, job: &JobView, columns: usize, theme: &Theme) -> Vec<Line<'static>> {
    let mut spans = Vec::new();
    for time in &job.phase_times {
        let text = format!(
            "{} {} {}",
            theme.signs.done,
            phase_name(time.phase),
            units::duration(time.seconds)
        );
        spans.push(Span::raw(text));
    }
    if let Some((phase, began)) = job.current_phase {
        let took = units::eta(seconds(began, model.now) as u64);
        let text = format!("{} {} {took}", theme.signs.active, phase_name(phase));
        spans.push(Span::styled(text, theme.moving().patch(theme.strong())));
    }
    for phase in to_come(job) {
        spans.push(Span::styled(phase_name(phase), theme.faint()));
    }
    flow(spans, columns, "  ")
}

/// Phases that a job at work has before it.
fn to_come(job: &JobView) -> Vec<Phase> {
    let Some((current, _)) = job.current_phase else {
        return Vec::new();
    };
    let all: &[Phase] = match job.spec.method {
        Method::Native => &NATIVE_PHASES,
        Method::Backup | Method::Merge => &BACKUP_PHASES,
        Method::Load => &LOAD_PHASES,
        Method::Snapshot | Method::TwoPhase | Method::Stored | Method::Add => &SNAPSHOT_PHASES,
        Method::Drop => &[],
        Method::Reinit => &REINIT_PHASES,
    };
    let place = all.iter().position(|phase| *phase == current);
    place.map_or_else(Vec::new, |place| all[place + 1..].to_vec())
}

/// The time so far as a line, each phase as long as its share of it.
fn timeline(model: &Model, job: &JobView, columns: usize, theme: &Theme) -> Line<'static> {
    let mut times: Vec<(Phase, f64)> = job
        .phase_times
        .iter()
        .map(|time| (time.phase, time.seconds))
        .collect();
    if let Some((phase, began)) = job.current_phase {
        times.push((phase, seconds(began, model.now)));
    }
    let all: f64 = times.iter().map(|(_, seconds)| seconds).sum();
    let mut spans = vec![Span::raw(" ")];
    if all <= 0.0 {
        return Line::from(spans);
    }
    let mut passed = 0.0;
    let mut drawn = 0;
    let running = job.current_phase.map(|(phase, _)| phase);
    for (phase, took) in times {
        passed += took;
        // From the sum, so that rounding never adds up.
        let end = ((passed / all) * columns as f64).round() as usize;
        let room = end.saturating_sub(drawn);
        drawn = end.max(drawn);
        let name = phase_name(phase);
        // A gap keeps neighbours apart.
        let text = match room {
            0 => continue,
            1..6 => " ".repeat(room.max(2) - 1),
            _ => cell(&format!(" {name}"), room - 1, theme),
        };
        let style = if Some(phase) == running {
            theme.reversed().patch(theme.moving())
        } else {
            theme.reversed()
        };
        let gap = room - width(&text);
        spans.push(Span::styled(text, style));
        spans.push(Span::raw(" ".repeat(gap)));
    }
    Line::from(spans)
}

fn throughput(node: &Node, columns: usize, theme: &Theme) -> Line<'static> {
    let most = node.rates.iter().max().copied().unwrap_or(0);
    let now = node.rates.back().copied().unwrap_or(0);
    let label = "throughput ";
    let text = format!(
        " {}  most {}",
        units::rate(now as f64),
        units::rate(most as f64)
    );
    let room = columns.saturating_sub(width(label) + width(&text));
    Line::from(vec![
        Span::styled(format!(" {label}"), theme.faint()),
        Span::styled(spark(&node.rates, room, theme), theme.moving()),
        Span::raw(text),
    ])
}
