//! An agent of a running job has a session again, with the same process or another.

use steep_protocol::message::job::Method;

use super::super::Witness;
use super::epochs::is_over;
use super::{Effect, Process, Side, Snapshot, Step, Turn, Work};

impl Turn {
    /// An agent has a session again: its commands are sent again, and it answers by id.
    pub(super) fn came_back(
        &mut self,
        step: Step,
        side: Side,
        incarnation: u64,
        snapshot: Snapshot,
    ) {
        let process = self.arrived(side, incarnation);
        if side == Side::Target && process == Process::Restarted {
            self.target_restarted(step);
        }
        if side == Side::Source {
            if process == Process::Restarted {
                self.source_restarted(step);
            }
            let holds_none =
                snapshot == Snapshot::NotHeld && self.job.spec.method != Method::Native;
            let lost = process == Process::Restarted || holds_none;
            if lost && step != Step::OpenSource && self.needs_snapshot(step) {
                return self.snapshot_lost(step, self.lost_snapshot());
            }
        }
        self.send_again(side, step);
        self.hurry();
        if side == Side::Target && process == Process::Restarted && self.next_is_open(step) {
            // It waited for the old copy alone, which has died with its process.
            self.advance(step);
        }
    }

    /// The target's new process knows no command of a lost snapshot, and sends the whole plan of a carried one again.
    fn target_restarted(&mut self, step: Step) {
        self.job.running.retain(|r| !is_over(step, r.work));
        let opens = |work: Work| work == Work::OpenCarried;
        let opening = self.job.running.iter().any(|r| opens(r.work));
        if step == Step::OpenSource && opening {
            self.job.running.retain(|r| !opens(r.work));
            self.issue(Work::OpenCarried);
        }
    }

    /// The source's new process knows neither the commands' results nor who may ask it.
    fn source_restarted(&mut self, step: Step) {
        if step == Step::GatherSource {
            return;
        }
        if step == Step::OpenSource {
            // It may make a plan that differs from the pages received so far.
            self.job.running.retain(|r| r.work != Work::OpenSource);
            self.job.retrying.retain(|r| r.work != Work::OpenSource);
            return self.issue(Work::OpenSource);
        }
        if step >= Step::Copy {
            self.job.attempt.witness = Witness::Restarted;
            self.job.running.retain(|r| r.work != Work::ProveSource);
            self.job.retrying.retain(|r| r.work != Work::ProveSource);
        }
        self.job.running.retain(|r| r.work != Work::Regrant);
        self.job.retrying.retain(|r| r.work != Work::Regrant);
        self.issue(Work::Regrant);
    }

    /// Sends every command of that side again; the agent recognises them by id. Those of a lost snapshot are stopped.
    pub(super) fn send_again(&mut self, side: Side, step: Step) {
        for running in self.job.running.clone() {
            if running.work.side() != side {
                continue;
            }
            if is_over(step, running.work) {
                self.effects.push(Effect::Abort {
                    id: running.id,
                    side,
                });
            } else {
                self.send(running.id, running.work);
            }
        }
    }
}
