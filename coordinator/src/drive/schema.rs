//! Queries about schemas: describing one, storing fingerprints, comparing a node with its source.

use jiff::Timestamp;
use steep_protocol::message::agent::{Command, NodeCommand, SourceCommand};
use steep_protocol::message::job::TableFilter;
use steep_protocol::message::schema::SchemaCursor;
use steep_protocol::{Fault, FaultKind, JobId, NodeId};

use super::query::Purpose;
use super::{Driver, Ticket};
use crate::store::Store;

/// A node and the peer that it is compared with.
#[derive(Clone)]
pub(super) struct Pair {
    pub(super) node: NodeId,
    pub(super) peer: NodeId,
    pub(super) filter: TableFilter,
}

/// The purpose of a comparison.
pub(super) enum After {
    /// Store the peer's fingerprints on the node. The answer is the number of the node's own tables.
    Captured { tables: u64, ticket: Ticket },
    /// Find out whether the node has drifted from that replication's source.
    Drift { replication: JobId },
    /// Raise the node's sequences to those that its replication covers.
    Sequences { replication: JobId },
}

impl After {
    pub(super) fn replicated(&self) -> Option<JobId> {
        match self {
            Self::Captured { .. } => None,
            Self::Drift { replication } | Self::Sequences { replication } => Some(*replication),
        }
    }
}

impl<S: Store> Driver<S> {
    /// Starts to read a page of a node's schema.
    pub(super) fn describe(
        &mut self,
        node: &NodeId,
        filter: TableFilter,
        cursor: Option<SchemaCursor>,
        ticket: Ticket,
        now: Timestamp,
    ) -> Result<(), Fault> {
        self.check_query(node)?;
        let command = NodeCommand::DescribeSchema { filter, cursor };
        self.begin_query(node, command, Purpose::Describe(ticket), now);
        Ok(())
    }

    /// Starts to store a node's fingerprints and a peer's on the node.
    pub(super) fn capture(
        &mut self,
        node: &NodeId,
        peer: Option<NodeId>,
        ticket: Ticket,
        now: Timestamp,
    ) -> Result<(), Fault> {
        self.check_query(node)?;
        if let Some(peer) = &peer {
            if peer == node {
                let text = "a node is not its own peer";
                return Err(Fault::new(FaultKind::BadRequest, text).on(node));
            }
            self.check_query(peer)?;
        }
        let command = NodeCommand::CaptureFingerprints;
        self.begin_query(node, command, Purpose::Capture { peer, ticket }, now);
        Ok(())
    }

    /// Starts to compare what a node replicates with its source; `drift` takes the result. Returns
    /// whether it was started.
    pub(super) fn compare_with_source(
        &mut self,
        node: &NodeId,
        source: &NodeId,
        filter: TableFilter,
        replication: JobId,
        now: Timestamp,
    ) -> bool {
        let busy = self.queries.iter().any(|query| query.compares(node));
        let after = After::Drift { replication };
        !busy && self.begin_admitted((node, source, filter), after, now)
    }

    /// Starts a query by which `node` asks `source`. Returns whether it was started.
    pub(super) fn begin_admitted(
        &mut self,
        (node, source, filter): (&NodeId, &NodeId, TableFilter),
        after: After,
        now: Timestamp,
    ) -> bool {
        if self.check_query(node).is_err() || self.check_query(source).is_err() {
            return false;
        }
        let pair = Pair {
            node: node.clone(),
            peer: source.clone(),
            filter,
        };
        let command = admit(&pair, &after);
        self.begin_query(source, command, Purpose::Admit(pair, after), now);
        true
    }
}

/// Permits the node to send requests to its peer.
pub(super) fn admit(pair: &Pair, after: &After) -> Command {
    Command::Source(SourceCommand::Admit {
        target: pair.node.clone(),
        filter: pair.filter.clone(),
        replicated: after.replicated(),
    })
}
