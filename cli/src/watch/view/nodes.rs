//! The table of nodes: as many columns as there is room for, the important ones first.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;
use ratatui::text::{Line, Span};
use steep_protocol::{NodeId, NodeState};

use super::theme::Theme;
use super::widgets::{bar, cell, put, right};
use crate::units;
use crate::watch::model::{Model, Node};
use crate::watch::state::Sort;

/// The widest and the narrowest column of names.
const NAME: (usize, usize) = (24, 8);

/// The widest bar.
const BAR_MOST: usize = 40;

/// The room that a bar gets before less important columns.
const BAR_MORE: usize = 10;

/// The first of [`Column::BY_WORTH`], which an 80-column screen always shows.
const WANTED: usize = 8;

/// How wide values are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Room {
    /// In full.
    Ample,
    /// Abbreviated states, short bars.
    Scarce,
}

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
    Wire,
    Postgres,
    Elapsed,
}

impl Column {
    /// The most important first.
    const BY_WORTH: [Self; 12] = [
        Self::Name,
        Self::State,
        Self::Progress,
        Self::WalHeld,
        Self::Eta,
        Self::Lag,
        Self::Rate,
        Self::Source,
        Self::Wire,
        Self::Agent,
        Self::Elapsed,
        Self::Postgres,
    ];

    /// From left to right.
    const IN_PLACE: [Self; 12] = [
        Self::Name,
        Self::State,
        Self::Source,
        Self::Progress,
        Self::Rate,
        Self::Wire,
        Self::Eta,
        Self::Elapsed,
        Self::Lag,
        Self::WalHeld,
        Self::Agent,
        Self::Postgres,
    ];

    fn title(self, room: Room) -> &'static str {
        match (self, room) {
            (Self::Name, _) => "NODE",
            (Self::State, _) => "STATE",
            (Self::Source, _) => "SOURCE",
            (Self::Progress, _) => "PROGRESS",
            (Self::Rate, _) => "RATE",
            (Self::Wire, _) => "WIRE",
            // The ETA of the whole job is not known.
            (Self::Eta, _) => "PHASE ETA",
            (Self::Elapsed, _) => "ELAPSED",
            (Self::Lag, _) => "LAG",
            (Self::WalHeld, Room::Ample) => "WAL HELD",
            (Self::WalHeld, Room::Scarce) => "WAL",
            (Self::Agent, _) => "AGENT",
            (Self::Postgres, _) => "PG",
        }
    }

    /// The width, given those of node and source names.
    fn width(self, room: Room, name: usize, source: usize) -> usize {
        match (self, room) {
            (Self::Name, _) => name + 2,
            (Self::State, Room::Ample) => 13,
            (Self::State, Room::Scarce) => 9,
            (Self::Source, _) => source,
            // A bar, and its percentage.
            (Self::Progress, Room::Ample) => 14,
            (Self::Progress, Room::Scarce) => 11,
            (Self::Rate | Self::Wire | Self::Eta, _) => 9,
            (Self::Elapsed | Self::Agent, _) => 7,
            (Self::Lag, _) | (Self::WalHeld, Room::Scarce) => 7,
            (Self::WalHeld, Room::Ample) => 8,
            (Self::Postgres, _) => 5,
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
            Self::Source
            | Self::Wire
            | Self::Eta
            | Self::Elapsed
            | Self::Agent
            | Self::Postgres => None,
        }
    }

    fn is_number(self) -> bool {
        matches!(
            self,
            Self::Rate
                | Self::Wire
                | Self::Eta
                | Self::Elapsed
                | Self::Lag
                | Self::WalHeld
                | Self::Postgres
        )
    }
}

/// The columns that are shown.
struct Columns {
    room: Room,
    /// With their widths, from left to right.
    all: Vec<(Column, usize)>,
}

/// Chooses the columns that fit.
fn columns(model: &Model, room: usize) -> Columns {
    let longest = |names: &mut dyn Iterator<Item = &NodeId>| {
        let longest = names.map(|id| id.as_str().len()).max().unwrap_or(0);
        longest.clamp(6, NAME.0)
    };
    let mut name = longest(&mut model.nodes.keys());
    let mut sources = model
        .nodes
        .values()
        .filter_map(|node| node.view.source_node.as_ref());
    let mut source = longest(&mut sources);
    // A space at the left end, and one after each column.
    let left = room.saturating_sub(1);
    let wanted = |space: Room, name: usize, source: usize| -> usize {
        let wanted = Column::BY_WORTH[..WANTED].iter();
        wanted.map(|c| c.width(space, name, source) + 1).sum()
    };
    let mut space = Room::Ample;
    if wanted(space, name, source) > left {
        space = Room::Scarce;
    }
    // Names are cut, the longer one first, before anything that matters is left out.
    while wanted(space, name, source) > left && name.max(source) > NAME.1 {
        if name >= source {
            name -= 1;
        } else {
            source -= 1;
        }
    }
    let mut left = left;
    let mut taken = Vec::new();
    for column in Column::BY_WORTH {
        let width = column.width(space, name, source) + 1;
        // Less important columns leave room for the bar.
        let spare = match column {
            Column::Wire | Column::Elapsed | Column::Postgres => BAR_MORE,
            _ => 0,
        };
        // A narrower, less important one may still fit.
        if width + spare <= left {
            left -= width;
            taken.push(column);
        }
    }
    let sized = |column: Column| {
        let width = column.width(space, name, source);
        match column {
            Column::Progress => (column, (width + left).min(BAR_MOST)),
            _ => (column, width),
        }
    };
    let shown = Column::IN_PLACE
        .into_iter()
        .filter(|column| taken.contains(column));
    Columns {
        room: space,
        all: shown.map(sized).collect(),
    }
}

/// The first row to show, so that the selected one is visible.
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
            // The reversed row has one style: colours would be hard to read.
            for span in &mut text.spans {
                span.style = theme.reversed();
            }
        }
        put(buffer, area, line, &text);
    }
}

fn header(model: &Model, columns: &Columns, theme: &Theme) -> Line<'static> {
    let mut spans = vec![Span::raw(" ")];
    for (column, width) in &columns.all {
        let title = column.title(columns.room);
        let title = match column {
            Column::Name => format!("  {title}"),
            _ => title.to_owned(),
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

fn row(node: &Node, model: &Model, columns: &Columns, theme: &Theme) -> Line<'static> {
    let mut spans = vec![Span::raw(" ")];
    for (column, room) in &columns.all {
        if *column == Column::Progress {
            spans.extend(progress(node, *room, theme));
        } else if *column == Column::Name {
            let (sign, style) = health(node, theme);
            spans.push(Span::styled(format!("{sign} "), style));
            let name = cell(node.view.node_id.as_str(), room - 2, theme);
            spans.push(Span::styled(name, theme.strong()));
        } else {
            let (text, style) = value(node, *column, columns.room, model, theme);
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
    let text = right(&units::percent(percent), 5, theme);
    let mut spans = Vec::from(bar(percent, room - 6, theme.moving(), theme));
    spans.push(Span::raw(format!(" {text}")));
    spans
}

fn value(node: &Node, column: Column, room: Room, model: &Model, theme: &Theme) -> (String, Style) {
    let view = &node.view;
    let job = node.progress.as_ref();
    let plain = Style::new();
    let known = match column {
        Column::State => {
            let text = match (view.state, room) {
                // Nothing has to be done to a node that is a source alone.
                (NodeState::Uninitialized, _) if !view.replicas.is_empty() => "source".to_owned(),
                (NodeState::Uninitialized, _) if view.loaded.is_some() => "loaded".to_owned(),
                (state, Room::Ample) => state.to_string(),
                (state, Room::Scarce) => brief(state).to_owned(),
            };
            Some((text, theme.state(view.state)))
        }
        Column::Source => view.source_node.as_ref().map(|id| (id.to_string(), plain)),
        Column::Rate => node.rate().map(|rate| (units::rate(rate as f64), plain)),
        Column::Wire => job.and_then(|view| {
            let rate = view.detail.throughput_wire_bytes_sec;
            (rate >= 1.0).then(|| (units::rate(rate), plain))
        }),
        Column::Eta => job.map(|view| match view.eta_seconds {
            Some(eta) => (units::eta(eta), plain),
            None => ("unknown".to_owned(), theme.faint()),
        }),
        Column::Elapsed => job.and_then(|view| view.started_at).map(|at| {
            let elapsed = super::widgets::seconds(at, model.now);
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

/// A state in at most nine letters.
fn brief(state: NodeState) -> &'static str {
    match state {
        NodeState::Uninitialized => "uninit.",
        NodeState::Preparing => "preparing",
        NodeState::Copying => "copying",
        NodeState::CatchingUp => "catch. up",
        NodeState::Synchronized => "synced",
        NodeState::Diverged => "diverged",
        NodeState::Failed => "failed",
        NodeState::Reinitializing => "reinit.",
    }
}

#[cfg(test)]
mod tests {
    use super::super::widgets::width;
    use super::*;
    use crate::render::samples::node;
    use crate::watch::model::Update;

    #[test]
    fn every_column_has_a_place_and_a_worth() {
        for column in Column::BY_WORTH {
            assert!(Column::IN_PLACE.contains(&column), "{column:?}");
            for room in [Room::Ample, Room::Scarce] {
                let title = column.title(room);
                assert!(width(title) <= column.width(room, 6, 6), "{column:?}");
            }
        }
        for state in NodeState::ALL {
            assert!(width(brief(state)) <= Column::State.width(Room::Scarce, 6, 6));
        }
    }

    #[test]
    fn whatever_the_room_columns_fit_and_the_name_comes_first() {
        let model = Model::new("host:7400", jiff::Timestamp::UNIX_EPOCH);
        for room in 40..300usize {
            let columns = columns(&model, room).all;
            let taken: usize = columns.iter().map(|(_, width)| width + 1).sum();
            assert!(taken < room, "{taken} of {room}: {columns:?}");
            assert_eq!(columns[0].0, Column::Name);
        }
        assert_eq!(columns_of(&model, 150).len(), Column::IN_PLACE.len());
    }

    #[test]
    fn eighty_columns_show_all_that_matters_however_long_names_are() {
        let mut model = Model::new("host:7400", jiff::Timestamp::UNIX_EPOCH);
        for name in ["a", "berlin-replica-2", "a-name-that-is-longer-than-others"] {
            let mut view = node(name, NodeState::Copying);
            view.source_node = Some(view.node_id.clone());
            let update = Update::Nodes(vec![view]);
            model.apply(update, jiff::Timestamp::UNIX_EPOCH);
            let on_80 = columns_of(&model, 80);
            for column in &Column::BY_WORTH[..WANTED] {
                assert!(on_80.contains(column), "{name}: no {column:?} in {on_80:?}");
            }
        }
    }

    fn columns_of(model: &Model, room: usize) -> Vec<Column> {
        let columns = columns(model, room).all.into_iter();
        columns.map(|(column, _)| column).collect()
    }
}
