//! What the person before the screen has chosen: a node, an order of rows, a question to answer.

use steep_protocol::message::api::JobView;
use steep_protocol::message::job::JobSpec;
use steep_protocol::{NodeId, NodeState};

/// A job in full.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Detail {
    /// Whose.
    pub(crate) node: NodeId,
    /// The job; `None` until it is known, or where there is none.
    pub(crate) job: Option<Box<JobView>>,
    /// What fills the lower part where not all fits.
    pub(crate) pane: Pane,
    /// Lines of it that are scrolled away.
    pub(crate) scroll: usize,
    /// How many can be, as it was drawn last: what is beyond that is the end.
    pub(crate) scroll_most: usize,
}

/// What the lower part of the detail shows.
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

/// Which way round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// As [`Sort`] says.
    Usual,
    /// The other way round.
    Reversed,
}

/// What keys go to.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Focus {
    /// The table, or the detail where one is open.
    Main,
    /// The filter is being typed.
    Filter,
    /// The list of keys is shown.
    Help,
    /// A question stands.
    Question(Question),
}

/// What is asked before something is done.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Question {
    /// Cancel that node's job, or remove what is left of it.
    Cancel {
        /// The node.
        node: NodeId,
        /// Its state when asked.
        state: NodeState,
    },
    /// Initialise it again, as it was asked for last.
    Again {
        /// As it was asked for.
        spec: Box<JobSpec>,
        /// What has to be done before.
        first: First,
    },
}

/// What has to be done before a node can be initialised again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum First {
    /// Nothing is in the way.
    Nothing,
    /// The node still has what its last job made: a cancel removes it.
    Cancel,
}
