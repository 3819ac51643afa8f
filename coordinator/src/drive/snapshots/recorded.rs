//! Stored snapshots that a source's database records: those that this coordinator does not know are adopted, since its
//! store was lost.
//!
//! What the coordinator has forgotten is never adopted: the ids are stored, as an agent can report a record that was
//! read before its removal, or one that it could not remove while it was away.

use jiff::Timestamp;
use steep_protocol::message::snapshot::{RecordedFate, RecordedSnapshot, SNAPSHOTS_MAX};
use steep_protocol::{NodeId, SnapshotId};

use super::super::Driver;
use super::super::log::Note;
use super::Stored;
use crate::job::COMMANDS_PER_JOB;
use crate::snapshot::machine::Event;
use crate::snapshot::{Owner, Snapshot, Stage};
use crate::store::{Store, Write};

impl<S: Store> Driver<S> {
    /// Takes the snapshots that an agent's node records.
    pub(in crate::drive) fn on_recorded(
        &mut self,
        node: &NodeId,
        recorded: Vec<RecordedSnapshot>,
        now: Timestamp,
    ) {
        let bounded = recorded.iter().all(RecordedSnapshot::is_bounded);
        if !bounded || recorded.len() > SNAPSHOTS_MAX {
            tracing::warn!(node_id = %node, "the snapshots that an agent reports exceed the limits and are ignored");
            return;
        }
        for one in recorded {
            let (id, fate) = (one.snapshot, one.fate);
            if !self.snapshots.contains_key(&id) && self.forgotten.contains(&id) {
                continue;
            }
            match self.why_not(node, &one) {
                Some(why) => self.refuse_recorded(node, id, &why, now),
                None => {
                    if !self.snapshots.contains_key(&id) {
                        self.adopt_recorded(one, now);
                    }
                    self.follow_fate(id, fate, now);
                    self.check_adopted(id, now);
                }
            }
        }
    }

    /// Why that node's record is not believed.
    fn why_not(&self, node: &NodeId, one: &RecordedSnapshot) -> Option<String> {
        let source = &one.order.spec.source;
        if source != node {
            return Some(format!("its record is of a snapshot of {source}"));
        }
        match self.snapshots.get(&one.snapshot) {
            Some(known) if known.snapshot.spec.source != *node => Some(format!(
                "{} has a snapshot with that id",
                known.snapshot.spec.source
            )),
            None if self.snapshots.len() >= SNAPSHOTS_MAX => Some(format!(
                "the coordinator remembers {SNAPSHOTS_MAX} snapshots already"
            )),
            Some(_) | None => None,
        }
    }

    /// Logs once that a record is ignored.
    fn refuse_recorded(&mut self, node: &NodeId, id: SnapshotId, why: &str, now: Timestamp) {
        if self.not_adopted.len() >= SNAPSHOTS_MAX || !self.not_adopted.insert((node.clone(), id)) {
            return;
        }
        let text = format!("{node} records snapshot {id}, which is ignored: {why}");
        let note = Note::warn("snapshot.not_adopted", text).node(node);
        let note = note.field("snapshot_id", id).field(
            "hint",
            format!(
                "if nobody needs it, on {node}: DELETE FROM steep_repl.snapshots WHERE snapshot_id = '{id}'"
            ),
        );
        self.log(note, now);
    }

    fn adopt_recorded(&mut self, one: RecordedSnapshot, now: Timestamp) {
        let (id, fate) = (one.snapshot, one.fate);
        let first = self.take_commands(COMMANDS_PER_JOB);
        let mut snapshot = Snapshot::recorded(one, first);
        let source = snapshot.spec.source.clone();
        let agent = self.registry.get(&source);
        snapshot.incarnation = agent.map(|agent| agent.registration.incarnation);
        let location = snapshot.location().unwrap_or_default().to_owned();
        let write = Write::Snapshot(Box::new(snapshot.clone()));
        self.out.writes.push(write);
        self.snapshots.insert(id, Stored::of(snapshot));
        self.forget_old_snapshots();
        let next = match fate {
            RecordedFate::Kept => "",
            RecordedFate::Expired => "; its time is over",
            RecordedFate::Removed => "; its removal had begun and goes on",
        };
        let text = format!(
            "snapshot {id} in {location} is adopted: this coordinator does not remember it, and {source} has recorded \
             it{next}"
        );
        let note = Note::info("snapshot.adopted", text).field("location", location);
        self.note_snapshot(id, note, now);
        self.out.observed = true;
    }

    /// Removes a complete snapshot whose time is over, or whose removal has begun.
    fn follow_fate(&mut self, id: SnapshotId, fate: RecordedFate, now: Timestamp) {
        let Some(stored) = self.snapshots.get_mut(&id) else {
            return;
        };
        if stored.snapshot.stage != Stage::Sealed || stored.snapshot.owner != Owner::Operator {
            return;
        }
        match fate {
            RecordedFate::Kept => {}
            RecordedFate::Expired => {
                stored.overdue = true;
                self.expire(id, now);
            }
            RecordedFate::Removed => self.step_snapshot(id, Event::Delete, now),
        }
    }
}
