//! What the user has chosen: the detail view, the order of rows, the open question.

use steep_protocol::message::api::JobView;
use steep_protocol::message::job::JobSpec;
use steep_protocol::{NodeId, NodeState, TableName};

/// The detail view of a node.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Detail {
    pub(crate) node: NodeId,
    /// The job; `None` until it is known, or where there is none.
    pub(crate) job: Option<Box<JobView>>,
    /// The selected pane.
    pub(crate) pane: Pane,
    /// How far the pane is scrolled, in lines.
    pub(crate) scroll: usize,
    /// How far it could be scrolled when it was last drawn.
    pub(crate) scroll_most: usize,
}

/// A pane in the lower part of the detail view.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pane {
    /// Tables with bars.
    Tables,
    /// Preflight findings and warnings.
    Findings,
    /// What happened.
    Events,
}

impl Pane {
    /// All of them, in the order of their keys.
    pub(crate) const ALL: [Self; 3] = [Self::Tables, Self::Findings, Self::Events];

    /// The one after it.
    pub(crate) fn next(self) -> Self {
        match self {
            Self::Tables => Self::Findings,
            Self::Findings => Self::Events,
            Self::Events => Self::Tables,
        }
    }
}

/// The order of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sort {
    /// By name.
    Name,
    /// What needs attention first.
    State,
    /// The least done first, nodes without a job last.
    Progress,
    /// The fastest first.
    Rate,
    /// The furthest behind first.
    Lag,
    /// What holds most WAL first.
    WalHeld,
}

impl Sort {
    /// The one after it.
    pub(crate) fn next(self) -> Self {
        match self {
            Self::Name => Self::State,
            Self::State => Self::Progress,
            Self::Progress => Self::Rate,
            Self::Rate => Self::Lag,
            Self::Lag => Self::WalHeld,
            Self::WalHeld => Self::Name,
        }
    }

    /// Its name.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::State => "state",
            Self::Progress => "progress",
            Self::Rate => "rate",
            Self::Lag => "lag",
            Self::WalHeld => "WAL held",
        }
    }
}

/// The direction of the order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// As [`Sort`] says.
    Usual,
    /// The other way round.
    Reversed,
}

/// The receiver of keys.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Focus {
    /// The table or the detail view.
    Main,
    /// The filter.
    Filter,
    /// The list of keys.
    Help,
    /// A question.
    Question(Question),
}

/// A question before an action.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Question {
    /// Cancel the node's job, or remove what is left of it?
    Cancel {
        /// The node.
        node: NodeId,
        /// Its state when asked.
        state: NodeState,
    },
    /// Give tables of a node that has diverged their rows again?
    Reinit {
        /// The node.
        node: NodeId,
        /// The tables; none for all of a node whose replication is lost.
        tables: Vec<TableName>,
    },
    /// Initialise the node again, with the settings of its last job?
    Again {
        /// The settings of its last job.
        spec: Box<JobSpec>,
        /// What must be done first.
        first: First,
    },
}

/// What must be done before a node can be initialised again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum First {
    /// Nothing is in the way.
    Nothing,
    /// Cancel: the node still has what its last job made.
    Cancel,
}
