//! Whether a slot that waits holds so much WAL that it will not be usable much longer.
//!
//! Pure. A template's slot, or one prepared for a backup, holds more WAL every day. Operators hear of it at
//! half of what is allowed, while there is time to act.

use steep_protocol::message::handover::{PreparedSlot, PreparedState, Replication};
use steep_protocol::{ByteCount, SnapshotId};

use super::Bounds;
use crate::job::preflight::text::bytes;

/// The share of its limit at which a slot is mentioned: whoever writes as much WAL as before has about as
/// much time left as the slot is old.
const MENTIONED: f64 = 0.5;

/// A slot that holds more than half of what is allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WalHeld {
    /// WAL that it holds.
    pub held: ByteCount,
    /// How much is allowed.
    pub limit: ByteCount,
    whose: Whose,
}

/// Whose limit it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whose {
    /// `max_slot_wal_keep_size` of the server.
    Server,
    /// `--max-wal-held` of the coordinator.
    Coordinator,
}

impl WalHeld {
    /// Judges a slot that waits, by the limit that it reaches first.
    #[must_use]
    pub fn of(slot: &PreparedSlot, bounds: Bounds) -> Option<Self> {
        if slot.state != PreparedState::Waiting {
            return None;
        }
        let server = slot.wal_limit.map(|limit| (limit, Whose::Server));
        let coordinator = bounds.wal_held.map(|limit| (limit, Whose::Coordinator));
        let limits = server.into_iter().chain(coordinator);
        let (limit, whose) = limits.min_by_key(|(limit, _)| *limit)?;
        let held = slot.wal_held;
        (held.0 as f64 > limit.0 as f64 * MENTIONED).then_some(Self { held, limit, whose })
    }

    /// How much of what limit: `holds 600 MB of WAL, 60 % of max_slot_wal_keep_size (1.0 GB)`.
    #[must_use]
    pub fn what(&self) -> String {
        let percent = self.held.0 as f64 / self.limit.0.max(1) as f64 * 100.0;
        let whose = match self.whose {
            Whose::Server => "max_slot_wal_keep_size of its server",
            Whose::Coordinator => "--max-wal-held of the coordinator",
        };
        let (held, limit) = (bytes(self.held), bytes(self.limit));
        format!("holds {held} of WAL, {percent:.0} % of {whose} ({limit})")
    }

    /// What happens beyond the limit.
    #[must_use]
    pub fn why(&self) -> &'static str {
        match self.whose {
            Whose::Server => {
                "beyond that PostgreSQL invalidates the slot, and no node can be made with it any more"
            }
            Whose::Coordinator => "beyond that every job that is made with it is stopped",
        }
    }

    /// What to do about a snapshot whose template it is.
    #[must_use]
    pub fn fix(&self, snapshot: SnapshotId) -> String {
        let raise = match self.whose {
            Whose::Server => "raise max_slot_wal_keep_size there (a reload suffices)",
            Whose::Coordinator => "raise --max-wal-held",
        };
        format!(
            "apply it soon, remove it (steep-repl snapshot delete {snapshot}), or {raise} if the disk has room"
        )
    }
}

/// The snapshot whose template that slot is.
#[must_use]
pub fn template_of(slot: &PreparedSlot) -> Option<SnapshotId> {
    let id = SnapshotId(slot.replication.id.0);
    (slot.replication == Replication::template(id)).then_some(id)
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use steep_protocol::{Lsn, NodeId};

    use super::*;

    fn slot(held: u64, limit: Option<u64>) -> PreparedSlot {
        PreparedSlot {
            replication: Replication::template(SnapshotId(7)),
            lsn: Lsn(1),
            created_at: Timestamp::UNIX_EPOCH,
            expires_at: Timestamp::MAX,
            wal_held: ByteCount(held),
            wal_limit: limit.map(ByteCount),
            state: PreparedState::Waiting,
        }
    }

    fn bounds(wal_held: Option<u64>) -> Bounds {
        Bounds {
            wal_held: wal_held.map(ByteCount),
            snapshot_age: None,
        }
    }

    #[test]
    fn a_slot_is_mentioned_beyond_half_of_the_limit_that_it_reaches_first() {
        let judge = |held, server, coordinator| {
            WalHeld::of(&slot(held, server), bounds(coordinator)).map(|held| held.limit.0)
        };
        for (held, server, coordinator, limit) in [
            (500, Some(1_000), Some(4_000), None),
            (501, Some(1_000), Some(4_000), Some(1_000)),
            (501, Some(4_000), Some(1_000), Some(1_000)),
            (501, Some(1_000), None, Some(1_000)),
            (u64::MAX, None, Some(1_000), Some(1_000)),
            (u64::MAX, None, None, None),
            (0, Some(0), None, None),
            (1, Some(0), None, Some(0)),
        ] {
            assert_eq!(judge(held, server, coordinator), limit, "{held} {server:?}");
        }
    }

    #[test]
    fn what_is_said_names_the_share_and_whose_limit_it_is() {
        let said = |server, coordinator| {
            let held = WalHeld::of(&slot(600_000_000, server), bounds(coordinator)).unwrap();
            format!("{}; {}", held.what(), held.why())
        };
        let server = said(Some(1_000_000_000), None);
        let text = "holds 600 MB of WAL, 60 % of max_slot_wal_keep_size of its server (1.0 GB)";
        assert!(server.starts_with(text), "{server}");
        assert!(server.contains("invalidates"), "{server}");
        let coordinator = said(None, Some(500_000_000));
        let text = "holds 600 MB of WAL, 120 % of --max-wal-held of the coordinator (500 MB)";
        assert!(coordinator.starts_with(text), "{coordinator}");
        assert!(coordinator.contains("stopped"), "{coordinator}");
    }

    #[test]
    fn a_slot_that_is_used_or_lost_is_not_judged() {
        let node = NodeId::parse("b").unwrap();
        let lost = PreparedState::Lost("gone".to_owned());
        for state in [PreparedState::Taken(node), PreparedState::Expired, lost] {
            let slot = PreparedSlot {
                state,
                ..slot(u64::MAX, Some(1))
            };
            assert_eq!(WalHeld::of(&slot, bounds(Some(1))), None);
        }
        assert_eq!(template_of(&slot(0, None)), Some(SnapshotId(7)));
    }
}
