//! Tables that join or leave the replication of a node that follows.
//!
//! Before the target touches that replication, the source learns that it may ask for it (G7), and the job records that
//! it may have been touched, so that a cleanup puts it back.

use super::super::change::Joining;
use super::{Step, Turn, Work};

impl Turn {
    /// The source has admitted the target: the step's own work begins, if it has not. Returns whether it has such a
    /// step.
    pub(super) fn changes(&mut self, step: Step) -> bool {
        let work = match step {
            Step::Join => Work::Join,
            Step::Leave => Work::Leave,
            _ => return false,
        };
        let waits = self.job.retrying.iter().any(|r| r.work == work);
        if !waits && !self.job.is_running(work) {
            self.joined(Joining::Begun);
            self.issue(work);
        }
        true
    }

    /// Records how far the tables have joined.
    pub(super) fn joined(&mut self, joining: Joining) {
        if let Some(change) = &mut self.job.change {
            change.joining = joining;
        }
    }
}
