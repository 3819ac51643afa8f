//! Slots prepared for a backup, for people.

use steep_protocol::NodeId;
use steep_protocol::message::handover::{PreparedSlot, PreparedState};

use super::table::pairs;
use super::{Paint, clean};
use crate::units;

/// A slot that has just been made, and what to do with it.
pub(crate) fn made(node: &NodeId, slot: &PreparedSlot, next: &str, paint: Paint) -> String {
    let lines = [
        ("consistent point", slot.lsn.to_string()),
        ("expires", format!("{:.0}", slot.expires_at)),
        ("next", next.to_owned()),
    ];
    let name = paint.bold(slot.replication.slot.as_str());
    format!(
        "slot {name} is prepared on {node}\n{}",
        pairs(&lines, 2, paint)
    )
}

/// What to do with a slot that has just been made.
pub(crate) fn next(node: &NodeId, slot: &PreparedSlot) -> String {
    let (name, lsn) = (&slot.replication.slot, slot.lsn);
    format!(
        "take a backup of {node} that is consistent at some LSN from {lsn} on and restore it on the \
         target, then: steep-repl init complete --node TARGET --source {node} --slot {name} \
         --source-lsn LSN"
    )
}

/// A slot among others, in one line.
pub(crate) fn line(slot: &PreparedSlot, paint: Paint) -> String {
    let name = &slot.replication.slot;
    let held = units::size(slot.wal_held.0);
    let text = format!("{name} from {}, holds {held} of WAL", slot.lsn);
    match &slot.state {
        PreparedState::Waiting => format!("{text}, until {:.0}", slot.expires_at),
        PreparedState::Taken(by) => format!("{text}, used by {by}"),
        PreparedState::Expired => format!("{text}, expired {:.0}", slot.expires_at),
        PreparedState::Lost(why) => paint.red(&format!("{name} is lost: {}", clean(why))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::samples::{at, id};
    use steep_protocol::message::handover::{Replication, SlotName};
    use steep_protocol::{ByteCount, JobId, Lsn};

    fn slot(state: PreparedState) -> PreparedSlot {
        PreparedSlot {
            replication: Replication {
                id: JobId(1),
                slot: SlotName::parse("monday").unwrap(),
            },
            lsn: Lsn(0x16_B374_D848),
            created_at: at(0),
            expires_at: at(604_800),
            wal_held: ByteCount(12_300_000),
            wal_limit: None,
            state,
        }
    }

    #[test]
    fn a_prepared_slot_says_what_to_do_next() {
        let (node, slot) = (id("node_a"), slot(PreparedState::Waiting));
        let text = made(&node, &slot, &next(&node, &slot), Paint::Plain);
        insta::assert_snapshot!(text);
    }

    #[test]
    fn slots_say_what_became_of_them() {
        let states = [
            PreparedState::Waiting,
            PreparedState::Taken(id("node_b")),
            PreparedState::Expired,
            PreparedState::Lost("somebody dropped it".to_owned()),
        ];
        let lines = states.map(|state| line(&slot(state), Paint::Plain));
        insta::assert_snapshot!(lines.join("\n"));
    }
}
