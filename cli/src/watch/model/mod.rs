//! The state of the screen: the known cluster and the choices of the user. Updates ([`Model::apply`]) and keys
//! ([`super::keys`]) change it, [`super::view`] draws it.
//!
//! Text from outside is sanitized here, once, so that no control character reaches the terminal. The size
//! of everything is bounded.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};

use jiff::Timestamp;
use steep_protocol::message::api::{EndView, EventView, JobView, NodeView, ProgressView};
use steep_protocol::message::job::{ExistingRows, Method};
use steep_protocol::message::snapshot::SnapshotView;
use steep_protocol::{Fault, JobId, NodeId, NodeState};

use super::sanitize::{clean_job, clean_option, clean_snapshot, clean_table};
use super::state::{Detail, First, Focus, Order, Question, Sort};
use crate::render::clean;

/// Events kept: more than anybody scrolls through.
const EVENTS_KEPT: usize = 1_000;

/// Snapshots kept: the coordinator sends no more.
const SNAPSHOTS_KEPT: usize = 50;

/// Samples of throughput kept for each node, one a second: as wide as wide terminals are.
const SAMPLES_KEPT: usize = 400;

/// How long a notice stays, in seconds.
const NOTICE_SECONDS: i64 = 15;

/// The state of the screen.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Model {
    /// Now, as the screen is drawn.
    pub(crate) now: Timestamp,
    /// The address of the coordinator.
    pub(crate) address: String,
    /// The state of the connection.
    pub(crate) link: Link,
    /// Every node.
    pub(crate) nodes: BTreeMap<NodeId, Node>,
    /// Snapshots of which something is left.
    pub(crate) snapshots: Vec<SnapshotView>,
    /// The newest events, oldest first.
    pub(crate) events: VecDeque<EventView>,
    /// The node shown in detail.
    pub(crate) detail: Option<Detail>,
    /// The selected node.
    pub(crate) selected: Option<NodeId>,
    /// The order of rows.
    pub(crate) sort: Sort,
    /// Whether that order is turned around.
    pub(crate) order: Order,
    /// Only nodes that contain this text are shown.
    pub(crate) filter: String,
    /// The receiver of keys.
    pub(crate) focus: Focus,
    /// A message to the user.
    pub(crate) notice: Option<Notice>,
    /// What is left from before a reconnect.
    stale: Stale,
}

/// What has not been replaced since the reconnect. Old nodes and events stay on the screen until the first
/// new ones arrive, then all go at once: the coordinator may have lost its store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Stale {
    nodes: bool,
    events: bool,
}

/// The state of the connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Link {
    /// Connecting for the first time.
    Connecting,
    /// Connected.
    Live,
    /// Lost: what is shown is old.
    Away {
        /// Since when.
        since: Timestamp,
        /// Why it cannot be reached.
        why: String,
    },
}

/// What drawing returns to the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Drawn {
    /// How far the selected pane can be scrolled, in lines.
    pub(crate) scroll_most: usize,
}

/// A node and its job.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Node {
    /// The node.
    pub(crate) view: NodeView,
    /// The progress of its running job.
    pub(crate) progress: Option<ProgressView>,
    /// COPY bytes a second of the last job: one sample a second, oldest first.
    pub(crate) rates: VecDeque<u64>,
    sampled: Option<(Option<JobId>, Timestamp)>,
}

/// A message to the user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Notice {
    pub(crate) text: String,
    pub(crate) tone: Tone,
    at: Timestamp,
}

/// The kind of a notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tone {
    /// For information.
    Info,
    /// Something went wrong or cannot be done.
    Error,
}

/// A reply of the coordinator, or a change of the connection.
#[derive(Debug)]
pub(crate) enum Update {
    /// Connected. All nodes and events follow.
    Connected,
    /// The connection was lost.
    Lost(Fault),
    /// All nodes at first, then those that changed.
    Nodes(Vec<NodeView>),
    /// All snapshots.
    Snapshots(Vec<SnapshotView>),
    /// Progress of a job.
    Progress(Box<ProgressView>),
    /// A job has ended.
    Ended(Box<EndView>),
    Event(EventView),
    /// The job shown in detail.
    Job(Box<JobView>),
    /// The job that `r` would repeat; `None` if the node never had one.
    Last(NodeId, Option<Box<JobView>>),
    /// The result of an action.
    Answer(Result<String, Fault>),
}

impl Model {
    pub(crate) fn new(address: &str, now: Timestamp) -> Self {
        Self {
            now,
            address: clean(address),
            link: Link::Connecting,
            nodes: BTreeMap::new(),
            snapshots: Vec::new(),
            events: VecDeque::new(),
            detail: None,
            selected: None,
            sort: Sort::Name,
            order: Order::Usual,
            filter: String::new(),
            focus: Focus::Main,
            notice: None,
            stale: Stale::default(),
        }
    }

    /// Applies an update.
    pub(crate) fn apply(&mut self, update: Update, now: Timestamp) {
        self.at(now);
        match update {
            Update::Connected => {
                self.link = Link::Live;
                // They come again if there are any.
                self.snapshots.clear();
                self.stale = Stale {
                    nodes: true,
                    events: true,
                };
            }
            Update::Lost(fault) => {
                let since = match self.link {
                    Link::Away { since, .. } => since,
                    Link::Connecting | Link::Live => now,
                };
                let why = clean(&fault.message);
                self.link = Link::Away { since, why };
            }
            Update::Nodes(views) => {
                // Events come before nodes. If none came, there are none.
                self.forget_events();
                if std::mem::take(&mut self.stale.nodes) {
                    let known: Vec<_> = views.iter().map(|view| &view.node_id).collect();
                    self.nodes.retain(|id, _| known.contains(&id));
                    // Running jobs are reported again.
                    self.nodes
                        .values_mut()
                        .for_each(|node| node.progress = None);
                }
                for view in views {
                    self.node(view);
                }
                if self.selected.is_none() {
                    self.selected = self.most_interesting();
                }
            }
            Update::Snapshots(mut views) => {
                views.truncate(SNAPSHOTS_KEPT);
                views.iter_mut().for_each(clean_snapshot);
                self.snapshots = views;
            }
            Update::Progress(view) => self.progress(*view),
            Update::Ended(end) => {
                if let Some(node) = self.nodes.get_mut(&end.node_id) {
                    node.progress = None;
                }
            }
            Update::Event(event) => {
                self.forget_events();
                self.event(event);
            }
            Update::Job(mut view) => {
                clean_job(&mut view);
                if let Some(detail) = &mut self.detail
                    && detail.node == view.spec.target
                {
                    detail.job = Some(view);
                }
            }
            Update::Last(node, view) => self.last(&node, view),
            Update::Answer(Ok(text)) => self.notify(text, Tone::Info),
            Update::Answer(Err(fault)) => {
                let mut text = fault.to_string();
                if !fault.hint.is_empty() {
                    text = format!("{text} ({})", fault.hint);
                }
                self.notify(text, Tone::Error);
            }
        }
    }

    /// Sets the time, and removes an old notice.
    pub(crate) fn at(&mut self, now: Timestamp) {
        self.now = now;
        let old = |notice: &Notice| now.as_second() - notice.at.as_second() >= NOTICE_SECONDS;
        if self.notice.as_ref().is_some_and(old) {
            self.notice = None;
        }
    }

    /// Shows a message.
    pub(crate) fn notify(&mut self, text: impl AsRef<str>, tone: Tone) {
        self.notice = Some(Notice {
            text: clean(text.as_ref()),
            tone,
            at: self.now,
        });
    }

    fn forget_events(&mut self) {
        if std::mem::take(&mut self.stale.events) {
            self.events.clear();
        }
    }

    /// Takes the results of drawing.
    pub(crate) fn drawn(&mut self, drawn: Drawn) {
        if let Some(detail) = &mut self.detail {
            detail.scroll_most = drawn.scroll_most;
        }
    }

    fn node(&mut self, mut view: NodeView) {
        for text in [
            &mut view.error_message,
            &mut view.postgres_error,
            &mut view.agent_version,
        ] {
            clean_option(text);
        }
        let id = view.node_id.clone();
        match self.nodes.get_mut(&id) {
            Some(node) => {
                if !view.state.is_active() {
                    node.progress = None;
                }
                node.view = view;
            }
            None => {
                self.forget_job_of(&id);
                let node = Node {
                    view,
                    progress: None,
                    rates: VecDeque::new(),
                    sampled: None,
                };
                self.nodes.insert(id, node);
            }
        }
    }

    /// A removed node comes back without its job.
    fn forget_job_of(&mut self, node: &NodeId) {
        if let Some(detail) = &mut self.detail
            && detail.node == *node
        {
            detail.job = None;
        }
    }

    fn progress(&mut self, mut view: ProgressView) {
        let Some(node) = self.nodes.get_mut(&view.node_id) else {
            return;
        };
        clean_option(&mut view.error_message);
        clean_option(&mut view.current_table);
        view.tables.iter_mut().for_each(clean_table);
        if node.sampled.is_some_and(|(job, _)| job != view.job_id) {
            node.rates.clear();
            node.sampled = None;
        }
        let due = node
            .sampled
            .is_none_or(|(_, at)| self.now.as_millisecond() - at.as_millisecond() >= 1_000);
        if due {
            node.sampled = Some((view.job_id, self.now));
            // NaN becomes 0.
            push(
                &mut node.rates,
                view.throughput_bytes_sec as u64,
                SAMPLES_KEPT,
            );
        }
        node.view.state = view.state;
        node.progress = Some(view).filter(|view| view.state.is_active());
    }

    /// Inserts a new event in order.
    fn event(&mut self, mut event: EventView) {
        event.level = clean(&event.level);
        event.event = clean(&event.event);
        event.message = clean(&event.message);
        // Fields are not shown.
        event.fields = Vec::new();
        let place = self.events.partition_point(|known| known.seq < event.seq);
        if self.events.get(place).is_some_and(|k| k.seq == event.seq) {
            return;
        }
        if event.event == "node.removed"
            && let Some(node) = &event.node_id
        {
            self.nodes.remove(node);
            let node = node.clone();
            self.forget_job_of(&node);
        }
        self.events.insert(place, event);
        if self.events.len() > EVENTS_KEPT {
            self.events.pop_front();
        }
    }

    /// The job that `r` would repeat.
    fn last(&mut self, node: &NodeId, view: Option<Box<JobView>>) {
        if self.focus != Focus::Main {
            return;
        }
        match view {
            Some(view) if view.spec.method == Method::Backup => self.notify(
                format!(
                    "the rows of {node} came from a backup: restore one, then run \
                     `steep-repl init complete`, or `steep-repl init` to copy them"
                ),
                Tone::Error,
            ),
            Some(view) => {
                let diverged = self
                    .nodes
                    .get(node)
                    .is_some_and(|node| node.view.state == NodeState::Diverged);
                let mut spec = Box::new(view.spec);
                let first = if diverged {
                    // The cancel of a diverged node keeps its rows, which the new copy must replace.
                    spec.existing = ExistingRows::Replace;
                    First::Cancel
                } else {
                    First::Nothing
                };
                self.focus = Focus::Question(Question::Again { spec, first });
            }
            None => self.notify(
                format!(
                    "{node} has never been initialised, so there is nothing to repeat: \
                     run `steep-repl init {node} --from SOURCE`"
                ),
                Tone::Error,
            ),
        }
    }

    /// The node to open on: one with a job at work, else one in trouble.
    fn most_interesting(&self) -> Option<NodeId> {
        let all = || self.nodes.values().map(|node| &node.view);
        let active = all().find(|view| view.state.is_active());
        let trouble = |state| matches!(state, NodeState::Failed | NodeState::Diverged);
        let found = active.or_else(|| all().find(|view| trouble(view.state)));
        found.map(|view| view.node_id.clone())
    }

    /// The nodes to show, in order.
    pub(crate) fn rows(&self) -> Vec<&Node> {
        let wanted = self.filter.to_lowercase();
        let holds = |node: &&Node| {
            let source = node.view.source_node.as_ref().map_or("", NodeId::as_str);
            [node.view.node_id.as_str(), node.view.state.as_str(), source]
                .iter()
                .any(|text| text.to_lowercase().contains(&wanted))
        };
        let mut rows: Vec<&Node> = self.nodes.values().filter(holds).collect();
        // Stable: equal rows stay in the order of their names.
        rows.sort_by_key(|node| node.rank(self.sort));
        if self.order == Order::Reversed {
            rows.reverse();
        }
        rows
    }

    /// The row of the selected node, else the first.
    pub(crate) fn selected_row(&self) -> Option<usize> {
        let rows = self.rows();
        let found = rows
            .iter()
            .position(|node| Some(&node.view.node_id) == self.selected.as_ref());
        found.or((!rows.is_empty()).then_some(0))
    }

    /// The node that keys act on: the one in detail, else the selected one.
    pub(crate) fn subject(&self) -> Option<&Node> {
        if let Some(detail) = &self.detail {
            return self.nodes.get(&detail.node);
        }
        self.rows().get(self.selected_row()?).copied()
    }

    /// Events about that node, oldest first.
    pub(crate) fn events_of(&self, node: &NodeId) -> impl DoubleEndedIterator<Item = &EventView> {
        self.events.iter().filter(move |event| {
            event.node_id.as_ref() == Some(node) || event.source_node.as_ref() == Some(node)
        })
    }
}

impl Node {
    /// The sort key: smaller is further up.
    fn rank(&self, sort: Sort) -> u64 {
        let down = |value: Option<u64>| value.map_or(u64::MAX, |value| u64::MAX - 1 - value);
        match sort {
            Sort::Name => 0,
            Sort::State => match self.view.state {
                NodeState::Failed => 0,
                NodeState::Diverged => 1,
                NodeState::Copying => 2,
                NodeState::CatchingUp => 3,
                NodeState::Preparing => 4,
                NodeState::Reinitializing => 5,
                NodeState::Synchronized => 6,
                NodeState::Uninitialized => 7,
            },
            Sort::Progress => self
                .percent()
                .map_or(u64::MAX, |percent| (percent * 100.0) as u64),
            Sort::Rate => down(self.rate()),
            Sort::Lag => down(self.view.lag_bytes),
            Sort::WalHeld => down(self.view.wal_held_bytes),
        }
    }

    /// Percent of the running job.
    pub(crate) fn percent(&self) -> Option<f64> {
        let known = self.progress.as_ref().map(|view| view.overall_percent);
        known.or(self.view.progress)
    }

    /// COPY bytes a second, while rows move.
    pub(crate) fn rate(&self) -> Option<u64> {
        let view = self.progress.as_ref()?;
        (view.throughput_bytes_sec >= 1.0).then_some(view.throughput_bytes_sec as u64)
    }
}

fn push<T>(all: &mut VecDeque<T>, one: T, kept: usize) {
    all.push_back(one);
    if all.len() > kept {
        all.pop_front();
    }
}
