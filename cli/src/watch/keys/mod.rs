//! What keys do. Pure: an input changes the model and may return an [`Effect`].

#[cfg(test)]
mod tests;

use steep_protocol::message::job::{CancelledData, JobSpec};
use steep_protocol::message::tables::{Change, ChangeSpec, Reinit};
use steep_protocol::{NodeId, NodeState};

use super::model::{Model, Tone};
use super::state::{Detail, First, Focus, Order, Pane, Question};

/// The longest filter, in characters.
const FILTER_MAX: usize = 64;

/// Rows that a page key moves.
const PAGE: isize = 10;

/// An input of the user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Input {
    Char(char),
    Enter,
    Escape,
    Backspace,
    Tab,
    /// Up by so many rows; negative is down.
    Up(isize),
    PageUp,
    PageDown,
    /// To the first.
    Home,
    /// To the last.
    End,
    /// Ctrl-C.
    Interrupt,
    /// Ctrl-L, or another size of the screen.
    Redraw,
    /// A click on the row of the table with that number.
    Row(usize),
}

/// What to do outside of the model.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Effect {
    Quit,
    /// Redraw everything.
    Redraw,
    /// Open the detail view of a node.
    Open(NodeId),
    /// Close the detail view.
    Close,
    /// Ask for the settings of the node's last job.
    AskLast(NodeId),
    Cancel(NodeId, CancelledData),
    Init(Box<JobSpec>),
    /// Give tables their rows again.
    Reinit(Box<ChangeSpec>),
    /// Cancel, then initialise.
    Restart(Box<JobSpec>),
}

/// Handles an input.
pub(crate) fn press(model: &mut Model, input: Input) -> Option<Effect> {
    if input == Input::Interrupt {
        return Some(Effect::Quit);
    }
    if input == Input::Redraw {
        return Some(Effect::Redraw);
    }
    match model.focus.clone() {
        Focus::Help => {
            model.focus = Focus::Main;
            None
        }
        Focus::Filter => {
            filter(model, input);
            None
        }
        Focus::Question(question) => answer(model, question, input),
        Focus::Main => {
            model.notice = None;
            main(model, input)
        }
    }
}

/// Handles pasted text. It goes to the filter only: as keys, it could cancel a job.
pub(crate) fn paste(model: &mut Model, text: &str) {
    if model.focus == Focus::Filter {
        for c in text.chars() {
            filter(model, Input::Char(c));
        }
    }
}

fn filter(model: &mut Model, input: Input) {
    match input {
        Input::Char(c) if !c.is_control() && model.filter.chars().count() < FILTER_MAX => {
            model.filter.push(c);
        }
        Input::Backspace => {
            model.filter.pop();
        }
        Input::Escape => {
            model.filter.clear();
            model.focus = Focus::Main;
        }
        Input::Enter => model.focus = Focus::Main,
        Input::Up(by) => move_selection(model, by),
        Input::Char(_)
        | Input::Tab
        | Input::PageUp
        | Input::PageDown
        | Input::Home
        | Input::End
        | Input::Row(_)
        | Input::Interrupt
        | Input::Redraw => {}
    }
}

fn main(model: &mut Model, input: Input) -> Option<Effect> {
    match input {
        Input::Char('q') => return Some(Effect::Quit),
        Input::Char('?') => model.focus = Focus::Help,
        Input::Char('c') => ask_cancel(model),
        Input::Char('r') => return ask_again(model),
        _ if model.detail.is_some() => return detail(model, input),
        Input::Enter | Input::Char('d') => return open(model, 0),
        Input::Char('/') => model.focus = Focus::Filter,
        Input::Char('s') => model.sort = model.sort.next(),
        Input::Char('S') => {
            model.order = match model.order {
                Order::Usual => Order::Reversed,
                Order::Reversed => Order::Usual,
            };
        }
        Input::Escape => model.filter.clear(),
        Input::Char('k') => move_selection(model, 1),
        Input::Char('j') => move_selection(model, -1),
        Input::Up(by) => move_selection(model, by),
        Input::PageUp => move_selection(model, PAGE),
        Input::PageDown => move_selection(model, -PAGE),
        Input::Home | Input::Char('g') => move_selection(model, isize::MAX),
        Input::End | Input::Char('G') => move_selection(model, -isize::MAX),
        Input::Row(row) => {
            let id = model.rows().get(row).map(|node| node.view.node_id.clone());
            if id.is_some() && id == model.selected {
                return open(model, 0);
            }
            model.selected = id.or(model.selected.take());
        }
        Input::Char(_) | Input::Backspace | Input::Tab | Input::Interrupt | Input::Redraw => {}
    }
    None
}

fn detail(model: &mut Model, input: Input) -> Option<Effect> {
    let detail = model.detail.as_mut()?;
    let most = detail.scroll_most;
    // Limited to what was drawn: the content may have become shorter.
    let scrolled = |by: isize| detail.scroll.min(most).saturating_add_signed(by).min(most);
    match input {
        Input::Escape | Input::Enter | Input::Char('d') | Input::Backspace => {
            model.detail = None;
            return Some(Effect::Close);
        }
        Input::Tab => show(detail, detail.pane.next()),
        Input::Char(digit @ '1'..='3') => {
            let place = digit as usize - '1' as usize;
            show(detail, Pane::ALL[place]);
        }
        Input::Char('n') => return open(model, -1),
        Input::Char('p') => return open(model, 1),
        Input::Up(by) => detail.scroll = scrolled(-by),
        Input::Char('k') => detail.scroll = scrolled(-1),
        Input::Char('j') => detail.scroll = scrolled(1),
        Input::PageUp => detail.scroll = scrolled(-PAGE),
        Input::PageDown => detail.scroll = scrolled(PAGE),
        Input::Home | Input::Char('g') => detail.scroll = 0,
        Input::End | Input::Char('G') => detail.scroll = most,
        Input::Char(_) | Input::Row(_) | Input::Interrupt | Input::Redraw => {}
    }
    None
}

fn show(detail: &mut Detail, pane: Pane) {
    detail.pane = pane;
    detail.scroll = 0;
}

/// Moves the selection up by so many rows and opens the node there.
fn open(model: &mut Model, up: isize) -> Option<Effect> {
    let pane = model.detail.as_ref().map_or(Pane::Tables, |d| d.pane);
    move_selection(model, up);
    let node = model
        .rows()
        .get(model.selected_row()?)?
        .view
        .node_id
        .clone();
    let unchanged = model.detail.as_ref().is_some_and(|d| d.node == node);
    if unchanged {
        return None;
    }
    model.detail = Some(Detail {
        node: node.clone(),
        job: None,
        pane,
        scroll: 0,
        scroll_most: 0,
    });
    Some(Effect::Open(node))
}

/// Moves the selection within the rows.
fn move_selection(model: &mut Model, up: isize) {
    let Some(row) = model.selected_row() else {
        return;
    };
    let rows = model.rows();
    let row = row.saturating_add_signed(-up).min(rows.len() - 1);
    model.selected = Some(rows[row].view.node_id.clone());
}

fn ask_cancel(model: &mut Model) {
    let Some(node) = model.subject() else { return };
    let (id, state) = (node.view.node_id.clone(), node.view.state);
    match state {
        NodeState::Preparing
        | NodeState::Copying
        | NodeState::CatchingUp
        | NodeState::Reinitializing
        | NodeState::Failed
        | NodeState::Diverged => {
            model.focus = Focus::Question(Question::Cancel { node: id, state });
        }
        NodeState::Uninitialized | NodeState::Synchronized => {
            let text = format!("{id} is {state}: no job is at work, so there is nothing to cancel");
            model.notify(text, Tone::Error);
        }
    }
}

fn ask_again(model: &mut Model) -> Option<Effect> {
    let view = &model.subject()?.view;
    let id = view.node_id.clone();
    if view.state == NodeState::Diverged && view.agent_online {
        let verify = view.verify.as_ref();
        let tables = match view.needs_init {
            true => Vec::new(),
            false => verify.map_or_else(Vec::new, |verify| verify.differing.clone()),
        };
        if view.needs_init || !tables.is_empty() {
            model.focus = Focus::Question(Question::Reinit { node: id, tables });
            return None;
        }
    }
    let why_not = match view.state {
        NodeState::Failed | NodeState::Uninitialized | NodeState::Diverged if view.agent_online => {
            None
        }
        NodeState::Failed | NodeState::Uninitialized | NodeState::Diverged => Some(format!(
            "the agent of {id} is offline: start it, then initialise the node"
        )),
        NodeState::Preparing
        | NodeState::Copying
        | NodeState::CatchingUp
        | NodeState::Reinitializing => Some(format!(
            "a job is at work on {id}, which is {}: c cancels it",
            view.state
        )),
        NodeState::Synchronized => Some(format!(
            "{id} follows its source. steep-repl reinit --node {id} --tables S.T,S.T (or --full) copies \
             tables again, while readers see the old rows and the others go on"
        )),
    };
    match why_not {
        Some(text) => {
            model.notify(text, Tone::Error);
            None
        }
        None => Some(Effect::AskLast(id)),
    }
}

/// Only `y` confirms, or `k` to keep rows; `i` asks whether to initialise instead.
fn answer(model: &mut Model, question: Question, input: Input) -> Option<Effect> {
    let effect = match (question, input) {
        (_, Input::Char('n' | 'N' | 'q') | Input::Escape) => None,
        (Question::Cancel { node, .. }, Input::Char('y' | 'Y')) => {
            model.notify(format!("{node}: cancelling"), Tone::Info);
            Some(Effect::Cancel(node, CancelledData::Remove))
        }
        (Question::Cancel { node, .. }, Input::Char('k' | 'K')) => {
            model.notify(format!("{node}: cancelling, rows are kept"), Tone::Info);
            Some(Effect::Cancel(node, CancelledData::Keep))
        }
        (Question::Reinit { node, tables }, Input::Char('y' | 'Y')) => {
            model.notify(format!("{node}: asking for its rows again"), Tone::Info);
            Some(Effect::Reinit(Box::new(ChangeSpec {
                node,
                tables,
                change: Change::Reinit(Reinit {
                    source: None,
                    parallel: None,
                    max_rate: None,
                }),
            })))
        }
        (Question::Reinit { node, .. }, Input::Char('i' | 'I')) => Some(Effect::AskLast(node)),
        (Question::Again { spec, first }, Input::Char('y' | 'Y')) => {
            let target = &spec.target;
            match first {
                First::Nothing => {
                    model.notify(format!("{target}: asking for a new job"), Tone::Info);
                    Some(Effect::Init(spec))
                }
                First::Cancel => {
                    let text = format!("{target}: removing what there is, for a new job");
                    model.notify(text, Tone::Info);
                    Some(Effect::Restart(spec))
                }
            }
        }
        // Other keys leave the question open.
        _ => return None,
    };
    model.focus = Focus::Main;
    effect
}
