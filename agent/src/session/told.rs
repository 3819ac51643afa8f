//! How a command's begin and end are logged.

use std::time::Instant;

use steep_protocol::message::agent::{Command, Logged};
use steep_protocol::{Fault, FaultKind, JobId, NodeId};
use tracing::{debug, info, warn};

use crate::telemetry::CommandEnd;

/// A command as logged.
pub(super) struct Told {
    job: JobId,
    node: NodeId,
    source: Option<NodeId>,
    name: &'static str,
    logged: Logged,
    began: Instant,
}

impl Told {
    /// Logs that a command begins on `node`.
    pub(super) fn began(node: &NodeId, job: JobId, command: &Command) -> Self {
        let policy = command.policy();
        let told = Self {
            job,
            node: node.clone(),
            source: source_of(node, command),
            name: policy.name,
            logged: policy.logged,
            began: Instant::now(),
        };
        let source = told.source();
        match told.logged {
            Logged::Info => {
                info!(event = "command.started", node_id = %node, source_node = source, job_id = %job, command = told.name, "command began");
            }
            Logged::Debug => {
                debug!(event = "command.started", node_id = %node, source_node = source, job_id = %job, command = told.name, "command began");
            }
        }
        told
    }

    /// Logs how it ended.
    pub(super) fn ended(&self, fault: Option<&Fault>) -> CommandEnd {
        let took = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let (node, source) = (&self.node, self.source());
        let Self { job, name, .. } = self;
        match fault {
            None if self.logged == Logged::Debug => {
                debug!(event = "command.completed", node_id = %node, source_node = source, job_id = %job, command = name, duration_ms = took, "command done");
                CommandEnd::Done
            }
            None => {
                info!(event = "command.completed", node_id = %node, source_node = source, job_id = %job, command = name, duration_ms = took, "command done");
                CommandEnd::Done
            }
            Some(fault) if fault.kind == FaultKind::Cancelled => {
                info!(event = "command.cancelled", node_id = %node, source_node = source, job_id = %job, command = name, duration_ms = took, "command stopped");
                CommandEnd::Cancelled
            }
            Some(fault) => {
                warn!(event = "command.failed", node_id = %node, source_node = source, job_id = %job, command = name, duration_ms = took, table = fault.table.as_ref().map(tracing::field::display), error = %fault, hint = %fault.hint, "command failed");
                CommandEnd::Failed
            }
        }
    }

    fn source(&self) -> Option<&str> {
        self.source.as_ref().map(NodeId::as_str)
    }
}

/// The node that has the rows, where the command says it.
fn source_of(node: &NodeId, command: &Command) -> Option<NodeId> {
    match command {
        Command::Source(_) => Some(node.clone()),
        Command::Target(_) | Command::Node(_) => command.peer().map(|peer| peer.node.clone()),
    }
}
