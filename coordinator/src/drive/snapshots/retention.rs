//! Removes stored snapshots that newer ones supersede (`snapshot generate --keep`).

use jiff::Timestamp;

use super::super::Driver;
use super::super::log::Note;
use crate::snapshot::machine::Event;
use crate::snapshot::retention::superseded;
use crate::store::Store;

impl<S: Store> Driver<S> {
    /// Removes what is superseded. A snapshot that a job loads waits for that job.
    pub(super) fn tick_retention(&mut self, now: Timestamp) {
        let all = self.snapshots.values().map(|stored| &stored.snapshot);
        for older in superseded(all) {
            let Some(stored) = self.snapshots.get(&older.id) else {
                continue;
            };
            if self.is_applied(older.id) {
                continue;
            }
            let location = stored.snapshot.location().unwrap_or_default();
            let text = format!(
                "snapshot {} in {location} is removed: snapshot {} keeps the newest {} of its series",
                older.id, older.by, older.keep
            );
            let note = Note::info("snapshot.superseded", text).field("location", location);
            self.note_snapshot(older.id, note, now);
            self.step_snapshot(older.id, Event::Delete, now);
        }
    }
}
