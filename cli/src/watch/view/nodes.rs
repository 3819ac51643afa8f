//! The table of nodes: as many columns as there is room for, the important ones first.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;
use ratatui::text::{Line, Span};
use steep_protocol::NodeId;

use super::pieces::{bar, cell, put, right};
use super::theme::Theme;
use crate::units;
use crate::watch::model::{Model, Node, Sort};

/// Columns of a name at most.
const NAME_MOST: usize = 24;

/// Columns of a bar at most.
const BAR_MOST: usize = 40;

/// What a bar gets before columns that are only good to have.
const BAR_MORE: usize = 10;

/// Of a bar and its percentage at least.
const PROGRESS_LEAST: usize = 14;

/// A column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Column {
    Name,
    State,
    Progress,
    Rate,
    Eta,
    Lag,
    Agent,
    Source,
    WalHeld,
    Postgres,
    Elapsed,
}

impl Column {
    /// In the order in which they get room.
    const BY_WORTH: [Self; 11] = [
        Self::Name,
        Self::State,
        Self::Progress,
        Self::Rate,
        Self::Eta,
        Self::Lag,
        Self::Source,
        Self::WalHeld,
        Self::Agent,
        Self::Elapsed,
        Self::Postgres,
    ];

    /// From left to right.
    const IN_PLACE: [Self; 11] = [
        Self::Name,
        Self::State,
        Self::Source,
        Self::Progress,
        Self::Rate,
        Self::Eta,
        Self::Elapsed,
        Self::Lag,
        Self::WalHeld,
        Self::Agent,
        Self::Postgres,
    ];

    fn title(self) -> &'static str {
        match self {
            Self::Name => "NODE",
            Self::State => "STATE",
            Self::Source => "SOURCE",
            Self::Progress => "PROGRESS",
            Self::Rate => "RATE",
            Self::Eta => "ETA",
            Self::Elapsed => "ELAPSED",
            Self::Lag => "LAG",
            Self::WalHeld => "WAL HELD",
            Self::Agent => "AGENT",
            Self::Postgres => "PG",
        }
    }

    /// Columns it takes, the names of nodes being so long.
    fn width(self, name: usize, source: usize) -> usize {
        match self {
            Self::Name => name + 2,
            Self::State => 13,
            Self::Source => source,
            Self::Progress => PROGRESS_LEAST,
            Self::Rate => 9,
            Self::Eta | Self::Elapsed | Self::Agent => 7,
            Self::Lag | Self::WalHeld => 8,
            Self::Postgres => 5,
        }
    }

    fn sort(self) -> Option<Sort> {
        match self {
            Self::Name => Some(Sort::Name),
            Self::State => Some(Sort::State),
            Self::Progress => Some(Sort::Progress),
            Self::Rate => Some(Sort::Rate),
            Self::Lag => Some(Sort::Lag),
            Self::WalHeld => Some(Sort::WalHeld),
            Self::Source | Self::Eta | Self::Elapsed | Self::Agent | Self::Postgres => None,
        }
    }

    fn is_number(self) -> bool {
        matches!(
            self,
            Self::Rate | Self::Eta | Self::Elapsed | Self::Lag | Self::WalHeld | Self::Postgres
        )
    }
}

/// Columns with their widths, from left to right.
fn columns(model: &Model, room: usize) -> Vec<(Column, usize)> {
    let longest = |names: &mut dyn Iterator<Item = &NodeId>, least: usize| {
        let longest = names.map(|id| id.as_str().len()).max().unwrap_or(0);
        longest.clamp(least, NAME_MOST)
    };
    let mut names = model.nodes.keys();
    let name = longest(&mut names, 6);
    let mut sources = model
        .nodes
        .values()
        .filter_map(|node| node.view.source_node.as_ref());
    let source = longest(&mut sources, 6);
    // A space at each end.
    let mut left = room.saturating_sub(1);
    let mut taken = Vec::new();
    for column in Column::BY_WORTH {
        let width = column.width(name, source) + 1;
        // What is good to have does not take the room that a bar can use.
        let spare = match column {
            Column::Elapsed | Column::Postgres => BAR_MORE,
            _ => 0,
        };
        if width + spare > left {
            break;
        }
        left -= width;
        taken.push(column);
    }
    let sized = |column: Column| {
        let more = if column == Column::Progress { left } else { 0 };
        let width = column.width(name, source) + more;
        let most = if column == Column::Progress {
            BAR_MOST
        } else {
            width
        };
        (column, width.min(most))
    };
    Column::IN_PLACE
        .into_iter()
        .filter(|column| taken.contains(column))
        .map(sized)
        .collect()
}

/// The first of the rows that are shown, so that the chosen one is among them.
pub(super) fn first_row(model: &Model, shown: usize) -> usize {
    let chosen = model.selected_row().unwrap_or(0);
    (chosen + 1).saturating_sub(shown)
}

/// The header, and a line for each node.
pub(super) fn draw(model: &Model, theme: &Theme, area: Rect, buffer: &mut Buffer) {
    let columns = columns(model, usize::from(area.width));
    put(buffer, area, 0, &header(model, &columns, theme));
    let shown = usize::from(area.height.saturating_sub(1));
    let first = first_row(model, shown);
    let chosen = model.selected_row();
    let rows = model.rows();
    for (line, (number, node)) in (1..area.height).zip(rows.iter().enumerate().skip(first)) {
        let mut text = row(node, model, &columns, theme);
        if Some(number) == chosen {
            let rest = usize::from(area.width).saturating_sub(text.width());
            text.push_span(Span::raw(" ".repeat(rest)));
            // One look for the whole row: colours in a reversed row would be a patchwork.
            for span in &mut text.spans {
                span.style = theme.reversed();
            }
        }
        put(buffer, area, line, &text);
    }
}

fn header(model: &Model, columns: &[(Column, usize)], theme: &Theme) -> Line<'static> {
    let mut spans = vec![Span::raw(" ")];
    for (column, width) in columns {
        let title = match column {
            Column::Name => format!("  {}", column.title()),
            _ => column.title().to_owned(),
        };
        let text = if column.is_number() {
            right(&title, *width, theme)
        } else {
            cell(&title, *width, theme)
        };
        let style = if column.sort() == Some(model.sort) {
            theme.strong()
        } else {
            theme.faint()
        };
        spans.push(Span::styled(text, style));
        spans.push(Span::raw(" "));
    }
    Line::from(spans)
}

fn row(node: &Node, model: &Model, columns: &[(Column, usize)], theme: &Theme) -> Line<'static> {
    let mut spans = vec![Span::raw(" ")];
    for (column, room) in columns {
        if *column == Column::Progress {
            spans.extend(progress(node, *room, theme));
        } else if *column == Column::Name {
            let (sign, style) = health(node, theme);
            spans.push(Span::styled(format!("{sign} "), style));
            let name = cell(node.view.node_id.as_str(), room - 2, theme);
            spans.push(Span::styled(name, theme.strong()));
        } else {
            let (text, style) = value(node, *column, model, theme);
            let text = if column.is_number() {
                right(&text, *room, theme)
            } else {
                cell(&text, *room, theme)
            };
            spans.push(Span::styled(text, style));
        }
        spans.push(Span::raw(" "));
    }
    Line::from(spans)
}

/// A sign for the agent and its PostgreSQL.
fn health(node: &Node, theme: &Theme) -> (char, Style) {
    match (node.view.agent_online, &node.view.postgres_error) {
        (false, _) => (theme.signs.agent[1], theme.bad()),
        (true, Some(_)) => (theme.signs.trouble, theme.bad()),
        (true, None) => (theme.signs.agent[0], theme.good()),
    }
}

fn progress(node: &Node, room: usize, theme: &Theme) -> Vec<Span<'static>> {
    let Some(percent) = node.percent() else {
        return vec![Span::styled(cell("-", room, theme), theme.faint())];
    };
    let text = right(&units::percent(percent), 6, theme);
    let mut spans = Vec::from(bar(percent, room - 7, theme.moving(), theme));
    spans.push(Span::raw(format!(" {text}")));
    spans
}

fn value(node: &Node, column: Column, model: &Model, theme: &Theme) -> (String, Style) {
    let view = &node.view;
    let job = node.progress.as_ref();
    let plain = Style::new();
    let known = match column {
        Column::State => Some((view.state.to_string(), theme.state(view.state))),
        Column::Source => view.source_node.as_ref().map(|id| (id.to_string(), plain)),
        Column::Rate => node.rate().map(|rate| (units::rate(rate as f64), plain)),
        Column::Eta => job
            .and_then(|view| view.eta_seconds)
            .map(|eta| (units::eta(eta), plain)),
        Column::Elapsed => job.and_then(|view| view.started_at).map(|at| {
            let elapsed = super::pieces::seconds(at, model.now);
            (units::eta(elapsed as u64), plain)
        }),
        Column::Lag => view.lag_bytes.map(|lag| (units::size(lag), plain)),
        Column::WalHeld => view.wal_held_bytes.map(|held| (units::size(held), plain)),
        Column::Agent => Some(match (view.agent_online, &view.postgres_error) {
            (false, _) => ("offline".to_owned(), theme.bad()),
            (true, Some(_)) => ("no PG".to_owned(), theme.bad()),
            (true, None) => ("online".to_owned(), theme.good()),
        }),
        Column::Postgres => view.postgres_version.map(|version| {
            let text = format!("{}.{}", version / 10_000, version % 10_000);
            (text, plain)
        }),
        // Drawn by themselves.
        Column::Name | Column::Progress => None,
    };
    known.unwrap_or_else(|| ("-".to_owned(), theme.faint()))
}

#[cfg(test)]
mod tests {
    use super::super::pieces::width;
    use super::*;

    #[test]
    fn every_column_has_a_place_and_a_worth() {
        for column in Column::BY_WORTH {
            assert!(Column::IN_PLACE.contains(&column), "{column:?}");
            assert!(width(column.title()) <= column.width(6, 6), "{column:?}");
        }
    }

    #[test]
    fn whatever_the_room_columns_fit_and_the_name_comes_first() {
        let model = Model::new("host:7400", jiff::Timestamp::UNIX_EPOCH);
        for room in 40..300usize {
            let columns = columns(&model, room);
            let taken: usize = columns.iter().map(|(_, width)| width + 1).sum();
            assert!(taken < room, "{taken} of {room}: {columns:?}");
            assert_eq!(columns[0].0, Column::Name);
        }
        let on_80 = columns_of(&model, 80);
        for column in [Column::Progress, Column::Rate, Column::Eta, Column::Lag] {
            assert!(on_80.contains(&column), "{on_80:?}");
        }
        assert_eq!(columns_of(&model, 140).len(), Column::IN_PLACE.len());
    }

    fn columns_of(model: &Model, room: usize) -> Vec<Column> {
        columns(model, room).into_iter().map(|(c, _)| c).collect()
    }
}
