//! Questions about schemas that agents answer: describing one, storing fingerprints, comparing a node with
//! its source.

use jiff::Timestamp;
use steep_protocol::message::agent::NodeCommand;
use steep_protocol::message::job::TableFilter;
use steep_protocol::message::schema::SchemaCursor;
use steep_protocol::{Fault, FaultKind, JobId, NodeId};

use super::audit::AuditEntry;
use super::query::{After, Pair, Purpose, admit};
use super::{Driver, Operator, Reply};
use crate::store::Store;

impl<S: Store> Driver<S> {
    /// Reads a node's schema, from the first page or on from another.
    pub(super) fn describe(
        &mut self,
        node: &NodeId,
        filter: TableFilter,
        cursor: Option<SchemaCursor>,
        reply: Reply,
        now: Timestamp,
    ) {
        match self.check_query(node) {
            Ok(()) => {
                let command = NodeCommand::DescribeSchema { filter, cursor };
                self.begin_query(node, command, Purpose::Describe(reply), now);
            }
            Err(fault) => self.answer(reply, Err(fault)),
        }
    }

    /// Has a node store its fingerprints, and a peer's. It writes on the node, so it is in the audit
    /// trail.
    pub(super) fn capture(
        &mut self,
        node: &NodeId,
        peer: Option<NodeId>,
        operator: &Operator,
        reply: Reply,
        now: Timestamp,
    ) {
        let checked = self.check_query(node).and_then(|()| match &peer {
            Some(peer) if peer == node => {
                let text = "a node is not its own peer";
                Err(Fault::new(FaultKind::BadRequest, text).on(node))
            }
            Some(peer) => self.check_query(peer),
            None => Ok(()),
        });
        let outcome = checked.as_ref().map(|()| None).map_err(Fault::to_string);
        self.audit(
            AuditEntry::capture(node, peer.as_ref()),
            operator,
            outcome,
            now,
        );
        match checked {
            Ok(()) => {
                let command = NodeCommand::CaptureFingerprints;
                self.begin_query(node, command, Purpose::Capture { peer, reply }, now);
            }
            Err(fault) => self.answer(reply, Err(fault)),
        }
    }

    /// Compares what a node replicates with its source; what comes of it is `drift`'s. Says whether it
    /// could be begun.
    pub(super) fn compare_with_source(
        &mut self,
        node: &NodeId,
        source: &NodeId,
        filter: TableFilter,
        replication: JobId,
        now: Timestamp,
    ) -> bool {
        let busy = self.queries.iter().any(|query| query.compares(node));
        if busy || self.check_query(node).is_err() || self.check_query(source).is_err() {
            return false;
        }
        let pair = Pair {
            node: node.clone(),
            peer: source.clone(),
            filter,
        };
        let after = After::Drift { replication };
        let command = admit(&pair, &after);
        self.begin_query(source, command, Purpose::Admit(pair, after), now);
        true
    }
}
