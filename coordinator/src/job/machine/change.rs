//! Tables that join or leave the replication of a node that follows, or get new rows.
//!
//! Before the target touches that replication, the source learns that it may ask for it (G7), and the job records that
//! it may have been touched, so that a cleanup puts it back.

use steep_protocol::message::job::Method;

use super::super::change::Joining;
use super::{Step, Turn, Work};

impl Turn {
    /// The source has admitted the target: the step's own work begins, if it has not. Returns whether it has such a
    /// step.
    pub(super) fn changes(&mut self, step: Step) -> bool {
        let work = match step {
            Step::Join => Work::Join,
            Step::Leave => Work::Leave,
            Step::Swap => Work::Swap,
            _ => return false,
        };
        let waits = self.job.retrying.iter().any(|r| r.work == work);
        if !waits && !self.job.is_running(work) {
            if step == Step::Swap && self.job.joining() == Joining::NotYet {
                self.issue(Work::CloseSnapshot);
            }
            self.joined(Joining::Begun);
            self.issue(work);
        }
        true
    }

    /// Whether the job can only go on: its tables have left the replication, and what was written to them since comes by
    /// its own alone. So whatever fails is tried again until it succeeds or an operator gives it up.
    pub(super) fn only_goes_on(&self) -> bool {
        self.job.spec.method == Method::Reinit && self.job.joining() != Joining::NotYet
    }

    /// Records how far the tables have joined.
    pub(super) fn joined(&mut self, joining: Joining) {
        if let Some(change) = &mut self.job.change {
            change.joining = joining;
        }
    }
}
