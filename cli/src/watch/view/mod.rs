//! Draws the model into a frame. Pure, so that it can be tested without a terminal. The layout adapts to the
//! size, down to 40 columns and 8 lines.

mod detail;
mod dialog;
mod nodes;
mod panes;
mod snapshots;
pub(crate) mod theme;
mod widgets;

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Clear, Widget as _};
use steep_protocol::message::api::EventView;
use steep_protocol::{NodeId, NodeState};

use self::theme::Theme;
use self::widgets::{cell, clock, cut, flow, put, seconds, width, wrap};
use super::model::{Drawn, Link, Model, Node, Tone};
use super::state::{Focus, Order, Sort};
use crate::units;

/// The smallest supported screen.
const SMALLEST: (u16, u16) = (40, 8);

/// The fewest lines for events; with less room they are left out.
const EVENTS_LEAST: u16 = 4;

/// The order of states in the summary: a narrow screen cuts the end.
const BY_WORTH: [NodeState; 8] = [
    NodeState::Failed,
    NodeState::Diverged,
    NodeState::Preparing,
    NodeState::Copying,
    NodeState::CatchingUp,
    NodeState::Reinitializing,
    NodeState::Synchronized,
    NodeState::Uninitialized,
];

/// How many of them are bad.
const BAD_STATES: usize = 2;

/// Draws everything.
pub(crate) fn draw(model: &Model, theme: &Theme, area: Rect, buffer: &mut Buffer) -> Drawn {
    let mut drawn = Drawn::default();
    if area.width < SMALLEST.0 || area.height < SMALLEST.1 {
        let text = Line::from(format!(
            "the screen must be at least {}x{}",
            SMALLEST.0, SMALLEST.1
        ));
        put(buffer, area, 0, &text);
        return drawn;
    }
    put(buffer, area, 0, &title(model, theme, area.width));
    let inner = Rect {
        y: area.y + 1,
        height: area.height - 2,
        ..area
    };
    if model.detail.is_some() {
        drawn.scroll_most = detail::draw(model, theme, inner, buffer);
    } else {
        main(model, theme, inner, buffer);
    }
    dialog::draw(model, theme, inner, buffer);
    let words = bottom(model, theme, area.width);
    let height = u16::try_from(words.len()).unwrap_or(1);
    let lines = Rect {
        y: area.bottom() - height,
        height,
        ..area
    };
    Clear.render(lines, buffer);
    for (line, text) in (0..height).zip(&words) {
        put(buffer, lines, line, text);
    }
    drawn
}

/// The row of the table on that line of the screen.
pub(crate) fn row_at(model: &Model, area: Rect, line: u16) -> Option<usize> {
    if model.detail.is_some() || area.height < SMALLEST.1 {
        return None;
    }
    let parts = Parts::of(model, area.height - 2);
    let line = usize::from(line.checked_sub(2 + parts.header)?);
    let rows = model.rows().len();
    let shown = usize::from(parts.rows);
    (line < shown)
        .then(|| nodes::first_row(model, shown) + line)
        .filter(|row| *row < rows)
}

/// Heights of the parts between title and keys.
struct Parts {
    /// Summary, and an empty line where there is room.
    header: u16,
    /// Rows of nodes, below their header.
    rows: u16,
    /// Text about the selected node.
    words: u16,
    /// Snapshots, with their header.
    snapshots: u16,
    /// Events, with their header.
    events: u16,
}

impl Parts {
    fn of(model: &Model, height: u16) -> Self {
        let header = if height >= 18 { 2 } else { 1 };
        let wanted = u16::try_from(model.rows().len().max(1)).unwrap_or(u16::MAX);
        let words = if height >= 14 { 3 } else { 0 };
        let room = height.saturating_sub(header + 1 + words);
        let least = if room >= 2 * EVENTS_LEAST {
            EVENTS_LEAST + 1
        } else {
            0
        };
        let rows = wanted.min(room - least);
        let left = room - rows;
        // Snapshots are the first to give way; a header alone says nothing.
        let spare = left.saturating_sub(EVENTS_LEAST);
        let snapshots = snapshots::height(model).min(spare);
        let snapshots = if snapshots >= 2 { snapshots } else { 0 };
        Self {
            header,
            rows,
            words,
            snapshots,
            events: if left >= EVENTS_LEAST {
                left - snapshots
            } else {
                0
            },
        }
    }
}

fn main(model: &Model, theme: &Theme, area: Rect, buffer: &mut Buffer) {
    let parts = Parts::of(model, area.height);
    put(buffer, area, 0, &summary(model, theme, area.width));
    let table = Rect {
        y: area.y + parts.header,
        height: parts.rows + 1,
        ..area
    };
    nodes::draw(model, theme, table, buffer);
    let words = Rect {
        y: table.bottom(),
        height: parts.words,
        ..area
    };
    about(model, theme, words, buffer);
    let stored = Rect {
        y: words.bottom(),
        height: parts.snapshots,
        ..area
    };
    snapshots::draw(model, theme, stored, buffer);
    if parts.events > 0 {
        let below = Rect {
            y: area.bottom() - parts.events,
            height: parts.events,
            ..area
        };
        put(
            buffer,
            below,
            0,
            &rule("events", theme.strong(), theme, below.width),
        );
        let lines = Rect {
            y: below.y + 1,
            height: below.height - 1,
            ..below
        };
        events(model.events.iter().rev(), model, theme, lines, buffer);
    }
}

fn title(model: &Model, theme: &Theme, columns: u16) -> Line<'static> {
    let columns = usize::from(columns);
    let state = match &model.link {
        Link::Connecting => "connecting".to_owned(),
        Link::Live => format!("{} live", theme.signs.agent[0]),
        Link::Away { since, .. } => {
            let for_ = units::eta(seconds(*since, model.now) as u64);
            format!("{} reconnecting, away for {for_}", theme.signs.agent[1])
        }
    };
    let right = format!("{state}  {}Z ", clock(model.now));
    let left = format!(" steep-repl watch  {}", model.address);
    let room = columns.saturating_sub(width(&right));
    let bar = theme.reversed();
    let alarm = match model.link {
        Link::Away { .. } => theme.warning().patch(bar),
        Link::Connecting | Link::Live => bar,
    };
    Line::from(vec![
        Span::styled(cell(&left, room, theme), bar),
        Span::styled(cut(&right, columns, theme), alarm),
    ])
}

/// Counts of nodes by state, and totals. The most important comes first; what does not fit is left out.
fn summary(model: &Model, theme: &Theme, columns: u16) -> Line<'static> {
    let rows = model.rows();
    let all = model.nodes.len();
    let nodes = if all == 1 { "node" } else { "nodes" };
    let counted = match rows.len() {
        shown if shown == all => format!("{all} {nodes}"),
        shown => format!("{shown} of {all} {nodes}"),
    };
    let mut parts = vec![Span::styled(counted, theme.strong())];
    let offline = rows.iter().filter(|n| !n.view.agent_online).count();
    if offline > 0 {
        parts.push(Span::styled(format!("{offline} offline"), theme.bad()));
    }
    let (bad, rest) = BY_WORTH.split_at(BAD_STATES);
    let count = |state: &NodeState| {
        let number = rows.iter().filter(|n| n.view.state == *state).count();
        let text = format!("{number} {state}");
        (number > 0).then(|| Span::styled(text, theme.state(*state)))
    };
    parts.extend(bad.iter().filter_map(count));
    let sum = |of: &dyn Fn(&Node) -> Option<u64>| -> u64 {
        rows.iter().filter_map(|node| of(node)).sum()
    };
    let rate = sum(&|node| node.rate());
    if rate > 0 {
        let text = units::rate(rate as f64);
        parts.push(Span::styled(text, theme.strong()));
    }
    let held = sum(&|node| node.view.wal_held_bytes);
    if held > 0 {
        parts.push(Span::raw(format!("WAL held {}", units::size(held))));
    }
    if model.sort != Sort::Name || model.order == Order::Reversed {
        let turned = match model.order {
            Order::Usual => "",
            Order::Reversed => ", reversed",
        };
        let text = format!("by {}{turned}", model.sort.as_str());
        parts.push(Span::styled(text, theme.faint()));
    }
    parts.extend(rest.iter().filter_map(count));
    let columns = usize::from(columns).saturating_sub(2);
    let mut lines = flow(parts, columns, "  ");
    lines.swap_remove(0)
}

/// Text about the selected node: its error, what it is doing, or its role.
fn about(model: &Model, theme: &Theme, area: Rect, buffer: &mut Buffer) {
    if area.height == 0 {
        return;
    }
    let columns = usize::from(area.width).saturating_sub(2);
    let Some(node) = model.subject() else {
        let text = match (&model.link, model.filter.is_empty()) {
            (Link::Live, true) => "no agent has registered yet: start one with `steep-agent run`",
            (Link::Live, false) => "no node fits the filter: Esc clears it",
            _ => "",
        };
        let line = Line::styled(format!(" {text}"), theme.faint());
        return put(buffer, area, 1, &line);
    };
    let errors = node
        .view
        .error_message
        .iter()
        .chain(&node.view.postgres_error);
    let errors: Vec<_> = errors.map(String::as_str).collect();
    let (text, style) = if !errors.is_empty() {
        (errors.join("; "), theme.bad())
    } else if let Some(view) = &node.progress {
        (detail::doing(view), theme.moving())
    } else if let Some(text) = standing(node) {
        (text, theme.faint())
    } else {
        return;
    };
    let text = format!("{}: {text}", node.view.node_id);
    for (line, text) in (1..area.height).zip(wrap(&text, columns)) {
        put(buffer, area, line, &Line::styled(format!(" {text}"), style));
    }
}

/// The role of a node without a job.
fn standing(node: &Node) -> Option<String> {
    let view = &node.view;
    let mut parts = Vec::new();
    if let (NodeState::Synchronized, Some(source), Some(at)) =
        (view.state, &view.source_node, view.init_completed_at)
    {
        let mut text = format!("follows {source} since {at:.0}");
        if let Some(started) = view.init_started_at {
            let took = units::duration(seconds(started, at));
            text.push_str(&format!(", initialised in {took}"));
        }
        parts.push(text);
    }
    if !view.replicas.is_empty() {
        let replicas: Vec<_> = view.replicas.iter().map(NodeId::as_str).collect();
        parts.push(format!("source of {}", replicas.join(", ")));
    }
    (!parts.is_empty()).then(|| parts.join("; "))
}

/// Events, newest at the top.
fn events<'a>(
    all: impl Iterator<Item = &'a EventView>,
    model: &Model,
    theme: &Theme,
    area: Rect,
    buffer: &mut Buffer,
) {
    let longest = model.nodes.keys().map(|id| id.as_str().len()).max();
    let names = longest.unwrap_or(0).clamp(6, 16);
    for (line, event) in (0..area.height).zip(all) {
        put(
            buffer,
            area,
            line,
            &event_line(event, names, theme, area.width),
        );
    }
}

fn event_line(event: &EventView, names: usize, theme: &Theme, columns: u16) -> Line<'static> {
    let style = match event.level.as_str() {
        "error" => theme.bad(),
        "warn" => theme.warning(),
        _ => Style::new(),
    };
    let mark = match event.level.as_str() {
        "error" | "warn" => theme.signs.trouble,
        _ => ' ',
    };
    let node = event.node_id.as_ref().map_or("-", NodeId::as_str);
    let mut spans = vec![
        Span::styled(format!(" {}", clock(event.timestamp)), theme.faint()),
        Span::styled(format!(" {mark} "), style),
        Span::styled(cell(node, names, theme), theme.strong()),
        Span::raw(" "),
    ];
    if columns >= 120 {
        spans.push(Span::styled(
            format!("{}  ", cell(&event.event, 22, theme)),
            theme.faint(),
        ));
    }
    let taken: usize = spans.iter().map(|span| width(&span.content)).sum();
    let room = usize::from(columns).saturating_sub(taken);
    // Most messages begin with the name of the node, which the line already has.
    let message = event
        .message
        .strip_prefix(node)
        .and_then(|rest| rest.strip_prefix(": "))
        .unwrap_or(&event.message);
    spans.push(Span::styled(cut(message, room, theme), style));
    Line::from(spans)
}

/// A horizontal line with a title.
fn rule(word: &str, style: Style, theme: &Theme, columns: u16) -> Line<'static> {
    let line = |length: usize| String::from_iter(std::iter::repeat_n(theme.signs.line, length));
    let rest = usize::from(columns).saturating_sub(width(word) + 4);
    Line::from(vec![
        Span::styled(format!("{} ", line(2)), theme.faint()),
        Span::styled(word.to_owned(), style),
        Span::styled(format!(" {}", line(rest)), theme.faint()),
    ])
}

/// The most lines of a notice.
const NOTICE_LINES: usize = 3;

/// The notice, the filter or the keys. Never empty. A notice may cover lines above the last.
fn bottom(model: &Model, theme: &Theme, columns: u16) -> Vec<Line<'static>> {
    let columns = usize::from(columns);
    if model.focus == Focus::Filter {
        return vec![Line::from(vec![
            Span::styled(" filter: ", theme.strong()),
            Span::raw(cut(&model.filter, columns.saturating_sub(32), theme)),
            Span::styled(" ", theme.reversed()),
            Span::styled("  Enter keep  Esc clear", theme.faint()),
        ])];
    }
    let said = match (&model.notice, &model.link) {
        (Some(notice), _) => Some((&notice.text, notice.tone)),
        (None, Link::Away { why, .. }) => Some((why, Tone::Error)),
        (None, Link::Connecting | Link::Live) => None,
    };
    if let Some((text, tone)) = said {
        let style = match tone {
            Tone::Info => theme.strong(),
            Tone::Error => theme.warning(),
        };
        let lines = wrap(text, columns.saturating_sub(2)).into_iter();
        let line = |text: String| Line::styled(format!(" {text}"), style);
        return lines.take(NOTICE_LINES).map(line).collect();
    }
    vec![keys(model, theme)]
}

fn keys(model: &Model, theme: &Theme) -> Line<'static> {
    let keys: &[(&str, &str)] = if model.detail.is_some() {
        &[
            ("Esc", "back"),
            ("Tab", "next pane"),
            (theme.signs.arrows, "scroll"),
            ("n/p", "node"),
            ("c", "cancel"),
            ("r", "again"),
            ("?", "help"),
            ("q", "quit"),
        ]
    } else {
        &[
            ("Enter", "detail"),
            ("c", "cancel"),
            ("r", "again"),
            ("/", "filter"),
            ("s", "sort"),
            ("?", "help"),
            ("q", "quit"),
        ]
    };
    let mut spans = vec![Span::raw(" ")];
    if !model.filter.is_empty() && model.detail.is_none() {
        let text = format!("filter: {}", cut(&model.filter, 16, theme));
        spans.push(Span::styled(text, theme.warning()));
        spans.push(Span::raw("  "));
    }
    for (key, what) in keys {
        spans.push(Span::styled((*key).to_owned(), theme.strong()));
        spans.push(Span::styled(format!(" {what}  "), theme.faint()));
    }
    Line::from(spans)
}
