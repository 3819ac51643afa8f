//! The failure of a command: a fault, its exit code, and its text.

use steep_protocol::{Fault, FaultKind, NodeId};

use crate::render::{Paint, clean, paragraph};

/// The exit codes of the contract.
pub(crate) const SUCCESS: u8 = 0;
/// Any failure that has no code of its own.
pub(crate) const ERROR: u8 = 1;
/// The arguments make no sense.
pub(crate) const BAD_ARGUMENTS: u8 = 2;
/// Schemas differ, and the mode does not allow it.
pub(crate) const SCHEMA_MISMATCH: u8 = 3;
/// Rows differ.
pub(crate) const ROWS_DIFFER: u8 = 3;
/// Cancelled.
pub(crate) const CANCELLED: u8 = 4;
/// The job timed out.
pub(crate) const TIMEOUT: u8 = 5;
/// Cannot connect, or not authorised.
pub(crate) const CANNOT_CONNECT: u8 = 6;

/// A command's failure.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Failure(pub(crate) Box<Fault>);

impl Failure {
    pub(crate) fn new(kind: FaultKind, message: impl Into<String>) -> Self {
        Self(Box::new(Fault::new(kind, message)))
    }

    /// The request or a setting makes no sense.
    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(FaultKind::BadRequest, message)
    }

    /// Adds a next step.
    #[must_use]
    pub(crate) fn hint(self, hint: impl Into<String>) -> Self {
        Self(Box::new(self.0.hint(hint)))
    }

    /// Names the node.
    #[must_use]
    pub(crate) fn on(self, node: &NodeId) -> Self {
        Self(Box::new(self.0.on(node)))
    }

    /// The nodes that the failure concerns: the one it names, or all of them if it names none.
    pub(crate) fn concerns<'a>(&self, nodes: &'a [NodeId]) -> Vec<&'a NodeId> {
        let named = nodes
            .iter()
            .filter(|node| self.0.node.as_ref() == Some(*node));
        let named: Vec<_> = named.collect();
        if named.is_empty() {
            nodes.iter().collect()
        } else {
            named
        }
    }

    pub(crate) fn exit_code(&self) -> u8 {
        exit_code(self.0.kind)
    }
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        Self(Box::new(fault))
    }
}

/// The exit code of that kind of fault.
pub(crate) fn exit_code(kind: FaultKind) -> u8 {
    match kind {
        FaultKind::Failed
        | FaultKind::SourceChanged
        | FaultKind::TargetChanged
        | FaultKind::StoreDamaged
        | FaultKind::KeyMissing => ERROR,
        FaultKind::BadRequest => BAD_ARGUMENTS,
        FaultKind::SchemaMismatch => SCHEMA_MISMATCH,
        FaultKind::Cancelled => CANCELLED,
        FaultKind::Timeout => TIMEOUT,
        FaultKind::Unreachable | FaultKind::Unauthorized => CANNOT_CONNECT,
    }
}

/// A fault in one line: where and what.
pub(crate) fn line(fault: &Fault) -> String {
    clean(&fault.to_string())
}

/// A fault as text: the node, what failed and why, then a hint.
pub(crate) fn render(fault: &Fault, paint: Paint) -> String {
    let node = match &fault.node {
        Some(node) => format!("{}: ", paint.bold(node.as_str())),
        None => String::new(),
    };
    let mut text = format!(
        "{} {node}{}",
        paint.red("error:"),
        paragraph(&fault.message)
    );
    if !fault.hint.is_empty() {
        text.push_str(&format!(
            "\n{} {}",
            paint.cyan("hint:"),
            paragraph(&fault.hint)
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_the_exit_code_of_the_contract() {
        let codes = [
            (FaultKind::Failed, 1),
            (FaultKind::BadRequest, 2),
            (FaultKind::SchemaMismatch, 3),
            (FaultKind::Cancelled, 4),
            (FaultKind::Timeout, 5),
            (FaultKind::Unreachable, 6),
            (FaultKind::Unauthorized, 6),
        ];
        for (kind, code) in codes {
            assert_eq!(Failure::new(kind, "x").exit_code(), code, "{kind:?}");
        }
    }

    #[test]
    fn an_error_says_what_where_why_and_what_next() {
        let node = NodeId::parse("node_b").unwrap();
        let failure = Failure::new(FaultKind::Failed, "the disk is full: cannot extend a file")
            .on(&node)
            .hint("free space and run init again");
        insta::assert_snapshot!(render(&failure.0, Paint::Plain), @r"
        error: node_b: the disk is full: cannot extend a file
        hint: free space and run init again
        ");
    }
}
