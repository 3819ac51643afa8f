//! Waits until the target has applied everything that the source had committed.

use std::sync::Mutex;
use std::time::Duration;

use steep_protocol::message::verify::{Relation, SlotPosition, VerifyAsk, VerifyReply};
use steep_protocol::{Fault, FaultKind, Identifier, Lsn, NodeId};

use tokio::time::Instant;

use super::Dial;
use super::pool::Pool;
use super::table::Comparison;
use crate::mutex::lock;

/// How often the slots are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// A subscription that is not connected for so long is taken to be stopped.
const CONNECTS_WITHIN: Duration = Duration::from_secs(20);

/// A subscription that is connected and confirms nothing for so long is an error.
const CONFIRMS_WITHIN: Duration = Duration::from_secs(180);

/// Between two looks at servers that do not replicate.
const APART: Duration = Duration::from_millis(100);

/// How the target follows the source.
#[derive(Debug)]
pub(super) struct Following {
    /// The slots of its subscriptions.
    slots: Vec<Identifier>,
    relation: Mutex<Relation>,
}

impl Following {
    /// By these slots of the source; without any, the two are unrelated.
    pub(super) fn by(slots: Vec<Identifier>) -> Self {
        let relation = match slots.is_empty() {
            true => Relation::Unrelated,
            false => Relation::Replicates,
        };
        Self {
            slots,
            relation: Mutex::new(relation),
        }
    }

    pub(super) fn relation(&self) -> Relation {
        *lock(&self.relation)
    }
}

/// Whether a fence is passed.
#[derive(Debug, PartialEq, Eq)]
enum Passed {
    Yes,
    /// Some subscription is connected and behind: the sum of what is confirmed tells whether it advances.
    Behind(u64),
    /// One that is behind is not connected, or its slot is gone.
    Stopped,
}

/// Judges what the source says of its slots.
fn passed(wanted: &[Identifier], found: &[SlotPosition], fence: Lsn) -> Passed {
    let behind = |slot: &&SlotPosition| slot.confirmed < fence;
    if found.len() < wanted.len() || found.iter().filter(behind).any(|slot| !slot.active) {
        return Passed::Stopped;
    }
    match found.iter().any(|slot| behind(&slot)) {
        false => Passed::Yes,
        true => Passed::Behind(
            found
                .iter()
                .fold(0_u64, |sum, slot| sum.wrapping_add(slot.confirmed.0)),
        ),
    }
}

impl<A: Dial, B: Dial> Comparison<A, B> {
    /// Takes a fence on the source and waits until the target is past it; the same the other way round where the source
    /// follows the target, too. Servers that do not replicate, or whose subscription is stopped, are only given a moment.
    pub(super) async fn fence(&self) -> Result<(), Fault> {
        let ways = [&self.following, &self.back];
        if ways
            .iter()
            .all(|way| way.relation() != Relation::Replicates)
        {
            tokio::time::sleep(APART).await;
            return Ok(());
        }
        let there = self.pass(&self.a, self.b.node(), &self.following);
        let back = self.pass(&self.b, self.a.node(), &self.back);
        tokio::try_join!(there, back).map(|_| ())
    }

    /// How the two hang together: in both directions, where there are two.
    pub(super) fn relation(&self) -> Relation {
        match (self.following.relation(), self.back.relation()) {
            (Relation::Replicates, Relation::Stopped) => Relation::Stopped,
            (relation, _) => relation,
        }
    }

    /// Whether each follows the other.
    pub(super) fn both_ways(&self) -> bool {
        self.back.relation() == Relation::Replicates
    }

    /// Waits until `follower` is past what `source` has written.
    async fn pass<D: Dial>(
        &self,
        source: &Pool<D>,
        follower: &NodeId,
        way: &Following,
    ) -> Result<(), Fault> {
        if way.relation() != Relation::Replicates {
            return Ok(());
        }
        let VerifyReply::Fence(fence) = source.ask(VerifyAsk::TakeFence).await? else {
            return Err(source.unexpected());
        };
        let (mut moved, mut connected) = (Instant::now(), Instant::now());
        let mut last = 0;
        loop {
            let ask = VerifyAsk::Slots(way.slots.clone());
            let VerifyReply::Slots(found) = source.ask(ask).await? else {
                return Err(source.unexpected());
            };
            match passed(&way.slots, &found, fence) {
                Passed::Yes => return Ok(()),
                Passed::Behind(confirmed) => {
                    connected = Instant::now();
                    if confirmed != last {
                        moved = connected;
                    }
                    last = confirmed;
                }
                Passed::Stopped if connected.elapsed() > CONNECTS_WITHIN => {
                    *lock(&way.relation) = Relation::Stopped;
                    return Ok(());
                }
                Passed::Stopped => {}
            }
            if moved.elapsed() > CONFIRMS_WITHIN {
                return Err(stands_still(source.node(), follower));
            }
            self.progress.alive();
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

fn stands_still(a: &NodeId, b: &NodeId) -> Fault {
    let limit = CONFIRMS_WITHIN.as_secs();
    let text =
        format!("the subscription to {a} is connected and has confirmed nothing for {limit} s");
    Fault::new(FaultKind::Timeout, text).on(b).hint(format!(
        "see steep-repl status {b} for what holds it up; once it has caught up, run the command again"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(name: &str, confirmed: u64, active: bool) -> SlotPosition {
        SlotPosition {
            name: Identifier::parse(name).unwrap(),
            confirmed: Lsn(confirmed),
            active,
        }
    }

    #[test]
    fn all_slots_must_have_confirmed_the_fence() {
        let wanted: Vec<Identifier> = ["x", "y"].map(|n| Identifier::parse(n).unwrap()).into();
        let judged = |found: &[SlotPosition]| passed(&wanted, found, Lsn(10));
        assert_eq!(
            judged(&[slot("x", 10, true), slot("y", 11, false)]),
            Passed::Yes
        );
        assert_eq!(
            judged(&[slot("x", 10, true), slot("y", 9, false)]),
            Passed::Stopped
        );
        assert_eq!(judged(&[slot("x", 10, true)]), Passed::Stopped);
        let (one, other) = (
            judged(&[slot("x", 10, true), slot("y", 9, true)]),
            judged(&[slot("x", 10, true), slot("y", 8, true)]),
        );
        assert!(
            matches!((&one, &other), (Passed::Behind(a), Passed::Behind(b)) if a != b),
            "{one:?} {other:?}"
        );
    }
}
