//! Steps of queries that look before something else begins.

use jiff::Timestamp;
use steep_protocol::message::agent::Outcome;
use steep_protocol::message::api::ApiReply;
use steep_protocol::{Fault, NodeId};

use super::{Next, Purpose};
use crate::drive::Driver;
use crate::store::Store;

impl<S: Store> Driver<S> {
    /// The same of a look before a switchover, of a stored snapshot, and of what is no such outcome.
    pub(super) fn other_step(
        &mut self,
        on: &NodeId,
        purpose: Purpose,
        outcome: Outcome,
        now: Timestamp,
    ) -> Next {
        match (purpose, outcome) {
            (Purpose::LookAtWayBack(looking), Outcome::SourceFacts(facts)) => {
                self.look_at_follower(looking, facts)
            }
            (Purpose::LookAtFollower(looking, source), Outcome::TargetFacts(target)) => {
                self.looked_at_follower(looking, &source, &target)
            }
            (Purpose::LookAtOld(looking), Outcome::SwitchoverFacts(facts)) => {
                Self::look_at_new(looking, facts)
            }
            (Purpose::LookAtNew(looking, old), Outcome::SwitchoverFacts(facts)) => {
                self.looked_before_switchover(*looking, &old, &facts, now);
                None
            }
            (Purpose::FindSnapshot(ticket), Outcome::Found(found)) => {
                self.answer(ticket, Ok(ApiReply::Found(found).into()));
                None
            }
            (purpose, _) => {
                self.query_failed(purpose, Fault::unexpected_answer(on), now);
                None
            }
        }
    }
}
