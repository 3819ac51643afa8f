//! The template slots of snapshots, as the sources' agents report them: how much WAL they hold, whether they
//! are lost, and when their time is over.

use jiff::Timestamp;
use steep_protocol::message::handover::{PreparedState, SlotName};
use steep_protocol::{NodeId, SnapshotId};

use super::super::Driver;
use super::super::log::Note;
use crate::job::health::wal_held::WalHeld;
use crate::snapshot::machine::Event;
use crate::snapshot::{Snapshot, Stage};
use crate::store::Store;

impl<S: Store> Driver<S> {
    /// The agent has said which template slots its server has.
    pub(in crate::drive) fn check_templates(&mut self, node: &NodeId, now: Timestamp) {
        for id in self.snapshots_of(node) {
            self.check_template(id, now);
        }
    }

    /// Looks at the template slot of a snapshot as it was last reported.
    fn check_template(&mut self, id: SnapshotId, now: Timestamp) {
        self.tell_wal_held(id, now);
        let Some(stored) = self.snapshots.get(&id) else {
            return;
        };
        let agent = self.registry.get(&stored.snapshot.spec.source);
        let Some(agent) = agent.filter(|_| stored.snapshot.stage == Stage::Sealed) else {
            return;
        };
        let why = match agent.template(id).map(|slot| &slot.state) {
            None => "its note is gone".to_owned(),
            Some(PreparedState::Lost(why)) => why.clone(),
            Some(PreparedState::Waiting | PreparedState::Taken(_) | PreparedState::Expired) => {
                return;
            }
        };
        self.step_snapshot(id, Event::SlotGone { why }, now);
    }

    /// The same for one that was just adopted. A slot that is not among those reported before may be newer than they.
    pub(super) fn check_adopted(&mut self, id: SnapshotId, now: Timestamp) {
        let stored = self.snapshots.get(&id);
        let agent = stored.and_then(|s| self.registry.get(&s.snapshot.spec.source));
        if agent.is_some_and(|agent| agent.template(id).is_some()) {
            self.check_template(id, now);
        }
    }

    /// Whether the expired slot was a snapshot's template.
    pub(in crate::drive) fn template_expired(
        &mut self,
        node: &NodeId,
        slot: &SlotName,
        now: Timestamp,
    ) -> bool {
        let own = |id: &SnapshotId| {
            let stored = self.snapshots.get(id);
            stored.is_some_and(|s| s.snapshot.replication().slot == *slot)
        };
        let Some(id) = self.snapshots_of(node).into_iter().find(own) else {
            return slot.is_reserved();
        };
        if let Some(stored) = self.snapshots.get_mut(&id) {
            stored.overdue = true;
        }
        self.expire(id, now);
        true
    }

    /// Removes a snapshot whose time is over, unless a job loads it.
    pub(super) fn expire(&mut self, id: SnapshotId, now: Timestamp) {
        let overdue = self.snapshots.get(&id).is_some_and(|stored| stored.overdue);
        if !overdue || self.is_applied(id) {
            return;
        }
        if let Some(stored) = self.snapshots.get_mut(&id) {
            stored.overdue = false;
        }
        self.step_snapshot(id, Event::Expired, now);
    }

    /// A snapshot whose slot holds more than half of what is allowed.
    pub(super) fn much_wal_held(&self, snapshot: &Snapshot) -> Option<WalHeld> {
        if matches!(snapshot.stage, Stage::Removing(_) | Stage::Over(_)) {
            return None;
        }
        let agent = self.registry.get(&snapshot.spec.source)?;
        WalHeld::of(agent.template(snapshot.id)?, self.rules.bounds)
    }

    /// Logs that a slot has come to hold much WAL; again only after the limit was raised.
    fn tell_wal_held(&mut self, id: SnapshotId, now: Timestamp) {
        let Some(stored) = self.snapshots.get(&id) else {
            return;
        };
        let held = self.much_wal_held(&stored.snapshot);
        let told = stored.wal_told;
        if let Some(stored) = self.snapshots.get_mut(&id) {
            stored.wal_told = held.is_some();
        }
        let Some(held) = held.filter(|_| !told) else {
            return;
        };
        let text = format!("the slot of snapshot {id} {}: {}", held.what(), held.why());
        let note = Note::warn("snapshot.wal_held", text)
            .field("wal_held", held.held.0)
            .field("wal_limit", held.limit.0)
            .field("hint", held.fix(id));
        self.note_snapshot(id, note, now);
    }
}
