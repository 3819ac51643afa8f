//! Passes the locks that agents observe to jobs, events and views.

use jiff::Timestamp;
use steep_protocol::message::agent::LockRole;
use steep_protocol::message::api::ProgressView;
use steep_protocol::{NodeId, NodeState};

use super::log::Note;
use super::{Driver, Live};
use crate::job::locks::sentence;
use crate::job::progress::Detail;
use crate::store::Store;

impl Live {
    /// Its progress and locks.
    pub(super) fn view(&self, state: NodeState, detail: Detail, now: Timestamp) -> ProgressView {
        let mut view = self.meter.view(&self.job, state, &self.copied, detail, now);
        view.detail.locks = self.locks.views(&self.job.spec);
        view
    }
}

impl<S: Store> Driver<S> {
    /// Updates jobs with the locks that an agent observes.
    pub(super) fn check_locks(&mut self, node: &NodeId, now: Timestamp) {
        let mut notes = Vec::new();
        for live in self.jobs.values_mut() {
            let (Some(side), Some(agent)) = (live.job.side_of(node), self.registry.get(node))
            else {
                continue;
            };
            for lock in live.locks.observe(&live.job, side, &agent.observed) {
                let text = sentence(&lock, &live.job.spec);
                let note = match lock.role {
                    LockRole::BlockedByUs => Note::warn("lock.blocking", text),
                    LockRole::BlocksUs => Note::warn("lock.waiting", text),
                    LockRole::GaveWay => Note::warn("lock.gave_way", text),
                };
                notes.push(note.job(&live.job).field("table", &lock.table));
            }
        }
        for note in notes {
            self.log(note, now);
        }
    }
}
