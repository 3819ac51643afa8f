//! Boxes over the rest: questions that must be answered, and the list of keys.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;
use ratatui::symbols::border;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Clear, Widget};
use steep_protocol::message::job::{Confirmation, ExistingRows, JobSpec, SchemaMode};
use steep_protocol::{NodeId, NodeState, TableName};

use super::theme::{Signs, Theme};
use super::widgets::{put, wrap};
use crate::render::clean;
use crate::units;
use crate::watch::model::{Model, Node};
use crate::watch::state::{First, Focus, Question};

/// The widest box, with borders.
const WIDEST: u16 = 74;

/// Tables named in a question.
const TABLES_NAMED: usize = 5;

/// For terminals without line drawing.
const ASCII: border::Set<'_> = border::Set {
    top_left: "+",
    top_right: "+",
    bottom_left: "+",
    bottom_right: "+",
    vertical_left: "|",
    vertical_right: "|",
    horizontal_top: "-",
    horizontal_bottom: "-",
};

const KEYS: [(&str, &str); 13] = [
    ("Enter d", "detail: phases, tables, findings, events"),
    ("Esc", "back; clears the filter"),
    (
        "c",
        "cancel a job, or clean up after a failed one; asks first",
    ),
    ("r", "copy again what has diverged, or all; asks first"),
    ("/", "show only nodes with a text in name, state or source"),
    ("s S", "sort by the next column; turn the order around"),
    ("up down j k", "choose a node; in detail, scroll"),
    ("PgUp PgDn g G", "by pages; to the first and the last"),
    ("n p", "in detail: next and previous node"),
    ("Tab 1 2 3", "in detail: tables, findings, events"),
    ("Ctrl-L", "draw the screen anew"),
    ("?", "this list"),
    ("q Ctrl-C", "quit; jobs go on"),
];

/// Draws the open box, if any.
pub(super) fn draw(model: &Model, theme: &Theme, area: Rect, buffer: &mut Buffer) {
    let width = area.width.saturating_sub(4).min(WIDEST);
    let columns = usize::from(width).saturating_sub(4);
    let (title, lines) = match &model.focus {
        Focus::Main | Focus::Filter => return,
        Focus::Help => (" keys ", help(columns, theme)),
        Focus::Question(Question::Cancel { node, state }) => {
            (" cancel ", cancel(model, node, *state, columns, theme))
        }
        Focus::Question(Question::Reinit { node, tables }) => {
            (" reinitialise ", reinit(node, tables, columns, theme))
        }
        Focus::Question(Question::Again { spec, first }) => {
            (" initialise again ", again(spec, *first, columns, theme))
        }
    };
    let height = u16::try_from(lines.len() + 2)
        .unwrap_or(u16::MAX)
        .min(area.height);
    let place = Rect {
        x: area.x + (area.width - width) / 2,
        y: area.y + (area.height - height) / 2,
        width,
        height,
    };
    Clear.render(place, buffer);
    let set = if theme.signs == Signs::ASCII {
        ASCII
    } else {
        border::ROUNDED
    };
    let block = Block::bordered()
        .border_set(set)
        .title(Span::styled(title, theme.reversed()));
    let inner = block.inner(place);
    block.render(place, buffer);
    for (line, text) in (0..inner.height).zip(&lines) {
        put(buffer, inner, line, text);
    }
}

fn help(columns: usize, theme: &Theme) -> Vec<Line<'static>> {
    let line = |(keys, what): (&str, &str)| {
        Line::from(vec![
            Span::styled(format!(" {keys:<14}"), theme.strong()),
            Span::raw(super::cut(what, columns.saturating_sub(14), theme)),
        ])
    };
    let mut lines: Vec<_> = KEYS.into_iter().map(line).collect();
    let legend = format!(
        " {} agent online   {} offline   {} its PostgreSQL cannot be asked",
        theme.signs.agent[0], theme.signs.agent[1], theme.signs.trouble
    );
    lines.push(Line::styled(legend, theme.faint()));
    lines
}

fn cancel(
    model: &Model,
    node: &NodeId,
    asked: NodeState,
    columns: usize,
    theme: &Theme,
) -> Vec<Line<'static>> {
    let now = model.nodes.get(node);
    let state = now.map_or(asked, |node| node.view.state);
    let far = now
        .and_then(Node::percent)
        .map_or_else(String::new, |percent| {
            format!(", {}", units::percent(percent))
        });
    let text = match state {
        NodeState::Failed => format!(
            "{node} has failed. Whatever is left of its job is removed, and the node is \
             uninitialized."
        ),
        // Its copy was complete: the rows belong to the node now.
        NodeState::Diverged => format!(
            "{node} has diverged. Its slot, publication and subscription are removed, and it stops \
             following its source. Its tables and rows stay. (To copy it again: r.)"
        ),
        _ => format!(
            "{node} is {state}{far}. Cancel its job? Everything that the job made on both servers \
             is removed: slot, publication, subscription, and the tables it copied, unless they are \
             kept."
        ),
    };
    let keys: &[(&str, &str)] = if state == NodeState::Diverged {
        &[("y", "cancel"), ("n", "leave it")]
    } else {
        &[
            ("y", "cancel and remove"),
            ("k", "cancel, keep tables and rows"),
            ("n", "leave it"),
        ]
    };
    question(&text, keys, columns, theme, Style::new())
}

fn reinit(
    node: &NodeId,
    tables: &[TableName],
    columns: usize,
    theme: &Theme,
) -> Vec<Line<'static>> {
    let text = match tables {
        [] => format!(
            "{node} has lost changes. Copy all its tables again from its source, and follow that by a new slot?"
        ),
        tables => {
            let (named, more) = tables.split_at(tables.len().min(TABLES_NAMED));
            let named: Vec<String> = named.iter().map(ToString::to_string).collect();
            let more = match more.len() {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            let named = clean(&named.join(", "));
            format!("Rows of {node} differ from its source's. Copy {named}{more} again?")
        }
    };
    let mut lines = question(&text, &[], columns, theme, Style::new());
    let rows =
        "READERS SEE THE OLD ROWS, THEN THE NEW ONES; ROWS THAT ARE ON THIS NODE ALONE ARE LOST.";
    let keys = [
        ("y", "copy"),
        ("i", "initialise from the start"),
        ("n", "leave it"),
    ];
    lines.extend(question(rows, &keys, columns, theme, theme.warning()));
    lines
}

fn again(spec: &JobSpec, first: First, columns: usize, theme: &Theme) -> Vec<Line<'static>> {
    let (source, target) = (&spec.source, &spec.target);
    let method = spec.method.name();
    let workers = match spec.parallel {
        1 => "1 worker".to_owned(),
        workers => format!("{workers} workers"),
    };
    let mut text = format!(
        "Copy everything from {source} to {target} again, from the start, as it was asked for \
         last: method {method}, {workers}, compression {}",
        spec.compression
    );
    if let Some(rate) = spec.max_rate {
        text.push_str(&format!(", at most {}", units::rate(rate.0 as f64)));
    }
    if !spec.filter.is_everything() {
        text.push_str(", with the same choice of tables");
    }
    text.push('.');
    let mut lines = question(&text, &[], columns, theme, Style::new());
    if first == First::Cancel {
        let text = format!(
            "{target} has diverged: its subscription, and its slot on {source}, are removed first."
        );
        lines.extend(question(&text, &[], columns, theme, Style::new()));
    }
    // Nothing else warns of this.
    let (schemas, style) = schemas(spec, theme);
    lines.extend(question(schemas, &[], columns, theme, style));
    let (rows, style) = match (first, spec.existing) {
        (First::Cancel, _) => (
            "ITS TABLES ARE EMPTIED FIRST: WHAT WAS WRITTEN ON THIS NODE ALONE IS LOST.",
            theme.warning(),
        ),
        (First::Nothing, ExistingRows::Refuse) => (
            "Where tables of the target hold rows, the job is refused.",
            Style::new(),
        ),
        (First::Nothing, ExistingRows::Replace) => (
            "TABLES OF THE TARGET THAT HOLD ROWS ARE EMPTIED FIRST (--force was given).",
            theme.warning(),
        ),
    };
    let keys = [("y", "initialise"), ("n", "leave it")];
    lines.extend(question(rows, &keys, columns, theme, style));
    lines
}

/// What happens if the schemas differ.
fn schemas(spec: &JobSpec, theme: &Theme) -> (&'static str, Style) {
    match (spec.schema_mode, spec.confirmation) {
        (SchemaMode::Strict, _) => (
            "Where schemas differ, it is refused (--schema-sync strict).",
            Style::new(),
        ),
        (SchemaMode::Auto, _) => (
            "WHERE SCHEMAS DIFFER, THE TARGET IS MADE TO MATCH (--schema-sync auto).",
            theme.warning(),
        ),
        (SchemaMode::Manual, Confirmation::Needed) => (
            "Where schemas differ, it is refused (--schema-sync manual, not confirmed).",
            Style::new(),
        ),
        (SchemaMode::Manual, Confirmation::Given) => (
            "WHERE SCHEMAS DIFFER, IT GOES ON ALL THE SAME (--schema-sync manual, confirmed then).",
            theme.warning(),
        ),
    }
}

fn question(
    text: &str,
    keys: &[(&str, &str)],
    columns: usize,
    theme: &Theme,
    style: Style,
) -> Vec<Line<'static>> {
    let text = wrap(text, columns).into_iter();
    let mut lines: Vec<_> = text
        .map(|text| Line::styled(format!(" {text}"), style))
        .collect();
    if keys.is_empty() {
        return lines;
    }
    lines.push(Line::default());
    let mut spans = vec![Span::raw(" ")];
    for (key, what) in keys {
        spans.push(Span::styled((*key).to_owned(), theme.strong()));
        spans.push(Span::raw(format!(" {what}   ")));
    }
    lines.push(Line::from(spans));
    lines
}
