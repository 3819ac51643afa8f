//! The lower part of the detail view: tables, findings and events, all at once if there is room.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::text::{Line, Span};
use steep_protocol::NodeId;
use steep_protocol::message::api::{TableState, TableView};
use steep_protocol::message::facts::{Finding, Severity};

use super::theme::Theme;
use super::widgets::{bar, cell, cut, put, right, width, wrap};
use super::{event_line, rule};
use crate::units;
use crate::watch::model::{Model, Node};
use crate::watch::state::{Detail, Pane};

/// With this many lines, all panes are shown.
const ALL_PANES: u16 = 24;

/// With this many columns, panes are side by side.
const SIDE_BY_SIDE: u16 = 150;

/// Draws all panes, or the selected one if there is little room. Returns how far that one can be scrolled.
pub(super) fn draw(
    model: &Model,
    detail: &Detail,
    node: &Node,
    theme: &Theme,
    area: Rect,
    buffer: &mut Buffer,
) -> usize {
    let alone = area.height < ALL_PANES;
    let mut most = 0;
    for (pane, area) in places(detail.pane, area) {
        let chosen = pane == detail.pane;
        let heading = if alone {
            tabs(detail, node, theme, area.width)
        } else {
            let style = if chosen {
                theme.reversed()
            } else {
                theme.strong()
            };
            rule(&pane_name(pane, detail, node), style, theme, area.width)
        };
        put(buffer, area, 0, &heading);
        let lines = match pane {
            Pane::Tables => tables(detail, node, theme, area.width),
            Pane::Findings => findings(detail, theme, area.width),
            Pane::Events => events(model, &detail.node, theme, area.width),
        };
        let room = usize::from(area.height.saturating_sub(1));
        let last = lines.len().saturating_sub(room);
        let first = if chosen { detail.scroll.min(last) } else { 0 };
        if chosen {
            most = last;
        }
        for (line, text) in (1..area.height).zip(lines.iter().skip(first)) {
            put(buffer, area, line, text);
        }
    }
    most
}

/// Which panes are shown, and where.
fn places(chosen: Pane, area: Rect) -> Vec<(Pane, Rect)> {
    if area.height < ALL_PANES {
        return vec![(chosen, area)];
    }
    let below = |area: Rect, from: u16| Rect {
        y: area.y + from,
        height: area.height - from,
        ..area
    };
    if area.width >= SIDE_BY_SIDE {
        let width = area.width / 2;
        let right = Rect {
            x: area.x + width + 1,
            width: area.width - width - 1,
            ..area
        };
        let height = area.height / 2;
        return vec![
            (Pane::Tables, Rect { width, ..area }),
            (Pane::Findings, Rect { height, ..right }),
            (Pane::Events, below(right, height)),
        ];
    }
    let (tables, findings) = (area.height / 2, area.height / 4);
    let second = below(area, tables);
    vec![
        (
            Pane::Tables,
            Rect {
                height: tables,
                ..area
            },
        ),
        (
            Pane::Findings,
            Rect {
                height: findings,
                ..second
            },
        ),
        (Pane::Events, below(second, findings)),
    ]
}

fn pane_name(pane: Pane, detail: &Detail, node: &Node) -> String {
    let job = detail.job.as_deref();
    match pane {
        Pane::Tables => match &node.progress {
            Some(view) => format!("tables {}/{}", view.tables_completed, view.tables_total),
            None => "tables".to_owned(),
        },
        Pane::Findings => match job.map_or(0, |job| job.findings.len()) {
            0 => "findings".to_owned(),
            number => format!("findings {number}"),
        },
        Pane::Events => "events".to_owned(),
    }
}

/// The names of all panes, the shown one standing out.
fn tabs(detail: &Detail, node: &Node, theme: &Theme, columns: u16) -> Line<'static> {
    let line = |length: usize| String::from_iter(std::iter::repeat_n(theme.signs.line, length));
    let mut spans = vec![Span::styled(format!("{} ", line(2)), theme.faint())];
    let mut used = 3;
    for (number, pane) in (1..).zip(Pane::ALL) {
        let text = format!(" {number} {} ", pane_name(pane, detail, node));
        let style = if pane == detail.pane {
            theme.reversed()
        } else {
            theme.faint()
        };
        used += width(&text) + 1;
        spans.push(Span::styled(text, style));
        spans.push(Span::raw(" "));
    }
    let rest = usize::from(columns).saturating_sub(used);
    spans.push(Span::styled(line(rest), theme.faint()));
    Line::from(spans)
}

fn tables(detail: &Detail, node: &Node, theme: &Theme, columns: u16) -> Vec<Line<'static>> {
    let live = node.progress.as_ref().map_or(&[][..], |view| &view.tables);
    let known = detail.job.as_ref().map_or(&[][..], |job| &job.tables);
    // Those at work are said more often than all of them.
    let newest = |table: &TableView| {
        let same = |other: &&TableView| other.schema == table.schema && other.table == table.table;
        live.iter().find(same).unwrap_or(table).clone()
    };
    let shown: Vec<TableView> = if known.is_empty() {
        live.to_vec()
    } else {
        known.iter().map(newest).collect()
    };
    if shown.is_empty() {
        return vec![Line::styled(
            " no table has been planned yet",
            theme.faint(),
        )];
    }
    let columns = usize::from(columns);
    let numbers = 7 + 9 + 15;
    let longest = shown
        .iter()
        .map(|table| width(&table.schema) + 1 + width(&table.table));
    let longest = longest.max().unwrap_or(0).max(12);
    let name = columns.saturating_sub(numbers + 16).min(longest);
    let room = columns.saturating_sub(name + numbers + 3).min(40);
    let line = |table: &TableView| {
        let style = match table.state {
            TableState::Pending => theme.faint(),
            TableState::Copying => theme.moving(),
            TableState::Completed => theme.good(),
        };
        let text = format!("{}.{}", table.schema, table.table);
        let mut spans = vec![
            Span::raw(" "),
            Span::styled(cell(&text, name, theme), style),
            Span::raw(" "),
        ];
        spans.extend(bar(table.percent, room, style, theme));
        let numbers = format!(
            "{}{}{}",
            right(&units::percent(table.percent), 7, theme),
            right(&units::size(table.bytes), 9, theme),
            right(&format!("{} rows", units::count(table.rows)), 15, theme),
        );
        spans.push(Span::raw(numbers));
        Line::from(spans)
    };
    let mut lines: Vec<Line<'static>> = shown.iter().map(line).collect();
    let all = node.progress.as_ref().map_or(0, |view| view.tables_total);
    let more = all.saturating_sub(shown.len() as u64);
    if more > 0 && !known.is_empty() {
        let text = format!(" and {} more", units::count(more));
        lines.push(Line::styled(text, theme.faint()));
    }
    lines
}

fn findings(detail: &Detail, theme: &Theme, columns: u16) -> Vec<Line<'static>> {
    let Some(job) = &detail.job else {
        return vec![Line::styled(" nothing is known yet", theme.faint())];
    };
    let columns = usize::from(columns).saturating_sub(4);
    let mut lines = Vec::new();
    if let Some(end) = &job.end {
        for text in &end.report.not_copied {
            lines.push(Line::styled(
                format!(
                    " not copied: {}",
                    cut(text, columns.saturating_sub(12), theme)
                ),
                theme.warning(),
            ));
        }
    }
    let mut all: Vec<&Finding> = job.findings.iter().collect();
    all.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    for finding in all {
        let (word, style) = match finding.severity {
            Severity::Error => ("error", theme.bad()),
            Severity::Warning => ("warning", theme.warning()),
            Severity::Info => ("info", theme.faint()),
        };
        let node = finding.node.as_ref().map_or("", NodeId::as_str);
        let text = format!("{word} {node}: {}", finding.what);
        for (number, text) in wrap(&text, columns).into_iter().enumerate() {
            let indent = if number == 0 { " " } else { "   " };
            lines.push(Line::styled(format!("{indent}{text}"), style));
        }
        for (name, text) in [("why", &finding.why), ("fix", &finding.fix)] {
            if text.is_empty() {
                continue;
            }
            let text = format!("{name}: {text}");
            let text = wrap(&text, columns.saturating_sub(2)).into_iter();
            lines.extend(text.map(|text| Line::from(format!("   {text}"))));
        }
    }
    if lines.is_empty() {
        lines.push(Line::styled(" nothing stands in the way", theme.good()));
    }
    lines
}

fn events(model: &Model, node: &NodeId, theme: &Theme, columns: u16) -> Vec<Line<'static>> {
    let all = model.events_of(node).rev();
    let names = node.as_str().len().clamp(6, 16);
    all.map(|event| event_line(event, names, theme, columns))
        .collect()
}
