//! An error as it crosses the wire: what failed, where, why, what next, and whether to try again.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{NodeId, TableName};

/// The kind of an error, as scripts tell them apart. The CLI's exit code is made of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultKind {
    /// Anything without a kind of its own. Exit code 1.
    Failed,
    /// The request itself makes no sense. Exit code 2.
    BadRequest,
    /// Schemas differ and the mode is strict. Exit code 3.
    SchemaMismatch,
    /// Cancelled by an operator. Exit code 4.
    Cancelled,
    /// The job's time is over. Exit code 5.
    Timeout,
    /// Somebody cannot be reached. Exit code 6.
    Unreachable,
    /// Reached, and refused. Exit code 6.
    Unauthorized,
    /// A table of the source is not any more what the job began with: what was read of it before is of
    /// no use, and nothing that is kept helps. Exit code 1.
    SourceChanged,
}

impl FaultKind {
    /// The name in JSON and traces: snake case.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::BadRequest => "bad_request",
            Self::SchemaMismatch => "schema_mismatch",
            Self::Cancelled => "cancelled",
            Self::Timeout => "timeout",
            Self::Unreachable => "unreachable",
            Self::Unauthorized => "unauthorized",
            Self::SourceChanged => "source_changed",
        }
    }
}

/// Whether the same thing may be tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Retry {
    /// It would fail in the same way.
    Never,
    /// After a pause.
    Backoff,
    /// On a new connection.
    NewConnection,
}

/// An error for a person and for a program: it names the node, the cause and the next step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// Which kind.
    pub kind: FaultKind,
    /// The node it happened on, where there is one.
    pub node: Option<NodeId>,
    /// What failed and why, in one sentence. Never a row value, password or connection string.
    pub message: String,
    /// What to do next, in one sentence; empty where there is nothing to add.
    pub hint: String,
    /// Whether trying again can help.
    pub retry: Retry,
    /// The table it happened at, where there is one; not in what older versions stored. Boxed, since
    /// most have none and faults travel in every result.
    #[serde(default)]
    pub table: Option<Box<TableName>>,
}

impl Fault {
    /// A fault of that kind, with nothing to add and no retry.
    pub fn new(kind: FaultKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            node: None,
            message: message.into(),
            hint: String::new(),
            retry: Retry::Never,
            table: None,
        }
    }

    /// With a next step.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }

    /// On that node.
    #[must_use]
    pub fn on(mut self, node: &NodeId) -> Self {
        self.node = Some(node.clone());
        self
    }

    /// At that table.
    #[must_use]
    pub fn at(mut self, table: &TableName) -> Self {
        self.table = Some(Box::new(table.clone()));
        self
    }

    /// With that answer to "again?".
    #[must_use]
    pub fn retry(mut self, retry: Retry) -> Self {
        self.retry = retry;
        self
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(node) = &self.node {
            write!(f, "{node}: ")?;
        }
        f.write_str(&self.message)
    }
}

impl std::error::Error for Fault {}
