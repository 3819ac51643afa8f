//! An error as sent over the wire: what failed, where, why, what to do, and whether to retry.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{NodeId, TableName};

/// The kind of an error, for scripts. It determines the CLI's exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultKind {
    /// Anything else. Exit code 1.
    Failed,
    /// The request is invalid. Exit code 2.
    BadRequest,
    /// Schemas differ and the mode is strict. Exit code 3.
    SchemaMismatch,
    /// Cancelled by an operator. Exit code 4.
    Cancelled,
    /// The job's time limit has passed. Exit code 5.
    Timeout,
    /// A peer or server cannot be reached. Exit code 6.
    Unreachable,
    /// Reached, but refused. Exit code 6.
    Unauthorized,
    /// A table of the source changed since the job began, or its snapshot is gone: rows read before are
    /// useless, so nothing is kept. Exit code 1.
    SourceChanged,
    /// Others may have written to the target's tables while they were loaded: nothing can be proved of
    /// their rows, so nothing is kept. Exit code 1.
    TargetChanged,
    /// What was stored of a snapshot is damaged or gone. A spool is read anew. Exit code 1.
    StoreDamaged,
    /// What was stored of a snapshot is encrypted, and the agent has no key for it. Exit code 1.
    KeyMissing,
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
            Self::TargetChanged => "target_changed",
            Self::StoreDamaged => "store_damaged",
            Self::KeyMissing => "key_missing",
        }
    }
}

/// Whether to retry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Retry {
    /// It would fail again.
    Never,
    /// After a pause.
    Backoff,
    /// On a new connection.
    NewConnection,
}

/// An error for people and programs: it names the node, the cause and the next step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// The kind.
    pub kind: FaultKind,
    /// The node where it happened, if any.
    pub node: Option<NodeId>,
    /// What failed and why, in one sentence. Never a row value, password or connection string.
    pub message: String,
    /// What to do next, in one sentence; may be empty.
    pub hint: String,
    /// Whether to retry.
    pub retry: Retry,
    /// The table, if any; absent in records of older versions. Boxed, because most faults have none
    /// and every result carries a fault.
    #[serde(default)]
    pub table: Option<Box<TableName>>,
}

impl Fault {
    /// A fault of that kind without hint or retry.
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

    /// The hint of a command whose agent is gone.
    pub const ONCE_IT_IS_BACK: &'static str =
        "check that its agent runs, see steep-repl nodes; then run the command again";

    /// Of an agent whose answer does not belong to the question.
    #[must_use]
    pub fn unexpected_answer(from: &NodeId) -> Self {
        let text = format!("the agent of {from} sent an unexpected answer");
        Self::new(FaultKind::Failed, text)
            .on(from)
            .hint("run the same version on the coordinator and on all agents")
    }

    /// Sets the next step.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }

    /// Sets the node.
    #[must_use]
    pub fn on(mut self, node: &NodeId) -> Self {
        self.node = Some(node.clone());
        self
    }

    /// Sets the table.
    #[must_use]
    pub fn at(mut self, table: &TableName) -> Self {
        self.table = Some(Box::new(table.clone()));
        self
    }

    /// Sets whether to retry.
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
