//! Schemas of two nodes: fingerprints that are stored, and what is compared.

use jiff::Timestamp;
use steep_protocol::NodeId;
use steep_protocol::message::agent::{Comparison, TargetCommand};
use steep_protocol::message::api::ApiReply;
use steep_protocol::message::job::TableFilter;
use steep_protocol::message::schema::SchemaReview;

use super::super::schema::{After, Pair, admit};
use super::super::{Driver, Ticket};
use super::{Course, Next, Purpose};
use crate::store::Store;

impl<S: Store> Driver<S> {
    /// The node's fingerprints are stored; those of its peer follow, if it has one.
    pub(super) fn captured(
        &mut self,
        course: &Course,
        peer: Option<NodeId>,
        (tables, ticket): (u64, Ticket),
    ) -> Next {
        let Some(peer) = peer else {
            self.answer(ticket, Ok(ApiReply::Captured { tables }.into()));
            return None;
        };
        let pair = Pair {
            node: course.on.clone(),
            peer,
            filter: TableFilter::default(),
        };
        let after = After::Captured { tables, ticket };
        let command = admit(&pair, &after);
        Some((pair.peer.clone(), command, Purpose::Admit(pair, after)))
    }

    /// The node was compared with its peer.
    pub(super) fn compared(
        &mut self,
        pair: &Pair,
        after: After,
        review: &SchemaReview,
        now: Timestamp,
    ) {
        match after {
            After::Captured { tables, ticket } => {
                self.answer(ticket, Ok(ApiReply::Captured { tables }.into()));
            }
            After::Drift { replication } => {
                self.columns_compared(&pair.node, &pair.peer, replication, review, now);
            }
            // Nothing is compared for them.
            After::Sequences { .. } => {}
        }
    }

    /// The command that compares the node with its peer.
    pub(super) fn compare(&self, pair: &Pair, after: &After) -> TargetCommand {
        TargetCommand::Compare {
            source: self.peer(&pair.peer),
            filter: pair.filter.clone(),
            what: match after.replicated() {
                None => Comparison::Schemas,
                Some(replication) => Comparison::Replicated(replication),
            },
        }
    }
}
