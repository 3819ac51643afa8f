//! A failed job that can be resumed: it keeps its rows, ledger, slot and, if it is still held, the snapshot.
//!
//! This ends by a resume, by a cancel, by its time limit, or when what it keeps becomes useless or harms
//! the source (G5).

use steep_protocol::message::job::Method;
use steep_protocol::{Fault, FaultKind};

use super::super::handover::SlotFate;
use super::super::{Awaited, Kept, Opened, ServerState, Shown, Unreachable, Why, Witness};
use super::{
    Effect, Ending, JobEvent, NodeEvent, Process, Refused, SHOW_AFTER_CANCEL, STOP_LIMIT, Side,
    Snapshot, Stage, Step, Terms, Turn, Work, after,
};

impl Turn {
    /// Handles an event of a failed job that can be resumed.
    pub(super) fn kept(&mut self, mut kept: Kept, event: JobEvent) -> Result<(), Refused> {
        // At that step the next one is yet to be opened.
        let holds_snapshot = kept.step != Step::OpenSource && self.needs_snapshot(kept.step);
        match event {
            JobEvent::Begin => return Err(Refused::Begun),
            JobEvent::Ended { id, .. } => _ = self.take(id),
            JobEvent::Up {
                side,
                incarnation,
                snapshot,
            } => {
                let process = self.arrived(side, incarnation);
                if process == Process::Restarted {
                    self.job.running.retain(|r| r.work.side() != side);
                    if side == Side::Source {
                        self.job.attempt.witness = Witness::Restarted;
                    }
                }
                kept.stop_by = kept.stop_by.max(after(self.now, STOP_LIMIT));
                self.abort_all();
                let unneeded = kept.step == Step::OpenSource && snapshot == Snapshot::Held;
                if side == Side::Source && unneeded {
                    self.issue(Work::CloseSnapshot);
                }
                let gone = process == Process::Restarted || snapshot == Snapshot::NotHeld;
                if side == Side::Source && holds_snapshot && gone {
                    let why = self.lost_snapshot();
                    if !self.keeps_tables(kept.step) {
                        return self.keep_no_longer(&kept, &why.message);
                    }
                    self.part_with_snapshot(&mut kept, why);
                }
            }
            JobEvent::Down { side, since, .. } => self.left(side, since),
            JobEvent::Server { side, answers } => _ = self.saw_server(side, answers),
            // Such a job keeps nothing.
            JobEvent::Merge(_) => {}
            JobEvent::Sealed => self.job.attempt.sealed = true,
            JobEvent::SpoolLost { fault } => {
                self.job.attempt.sealed = false;
                if self.needs_snapshot(kept.step) {
                    if !self.keeps_tables(kept.step) {
                        return self.keep_no_longer(&kept, &fault.message);
                    }
                    self.part_with_snapshot(&mut kept, fault);
                }
            }
            JobEvent::SnapshotLost => {
                if holds_snapshot {
                    let why = self.session_ended();
                    if !self.keeps_tables(kept.step) {
                        return self.keep_no_longer(&kept, &why.message);
                    }
                    self.part_with_snapshot(&mut kept, why);
                }
            }
            // One that is kept opens nothing, and only an ending job has something to give up.
            JobEvent::SnapshotReplaced | JobEvent::GiveUp => {}
            JobEvent::Endangered { side, fault } => match side {
                Side::Source => return self.keep_no_longer(&kept, &fault.message),
                Side::Target => {}
            },
            JobEvent::Cancel { data } => {
                self.end_shown(Why::Cancelled(data));
                return Ok(());
            }
            JobEvent::Resume { terms } => return self.resume(&kept, terms),
            JobEvent::Adjust(_) => return Err(Refused::TooLate),
            JobEvent::Tick => {
                if kept.stop_by <= self.now {
                    self.job.running.clear();
                }
                if kept.until <= self.now {
                    let keep = self.rules.patience.keep_failed.unwrap_or_default();
                    let until = after(self.job.ended_at.unwrap_or(self.now), keep);
                    let tables = kept.step == Step::Copy && self.keeps_tables(kept.step);
                    if !tables || until <= self.now {
                        return self.keep_no_longer(&kept, "the time to resume it is over");
                    }
                    kept.until = until;
                    self.let_go(&mut kept);
                }
            }
        }
        self.job.stage = Stage::Kept(kept);
        Ok(())
    }

    /// Closes the snapshot, which has been held for long enough. The tables that are complete stay.
    fn let_go(&mut self, kept: &mut Kept) {
        let text = "the failed job's snapshot was not needed for so long that it is closed";
        let why = Fault::new(FaultKind::Failed, text).on(&self.job.spec.source);
        self.part_with_snapshot(kept, why);
        self.issue(Work::CloseSnapshot);
    }

    /// A job that failed before it could read anything under its snapshot takes another one when it is resumed, so
    /// that the source need not hold this one open.
    pub(super) fn let_go_of(&mut self, why: Fault) {
        if let Stage::Kept(mut kept) = self.job.stage.clone() {
            self.part_with_snapshot(&mut kept, why);
            self.job.stage = Stage::Kept(kept);
            self.issue(Work::CloseSnapshot);
        }
    }

    /// A resume takes another snapshot, for the tables that are not complete.
    fn part_with_snapshot(&mut self, kept: &mut Kept, why: Fault) {
        self.begin_epoch(why);
        kept.step = Step::OpenSource;
    }

    /// Removes what was kept, keeping the job's own error and adding why.
    fn keep_no_longer(&mut self, kept: &Kept, why: &str) -> Result<(), Refused> {
        self.effects.push(Effect::KeepEnds {
            why: why.to_owned(),
        });
        let fault = Fault {
            hint: format!("what was kept for --resume is being removed: {why}. Run init again"),
            ..kept.fault.clone()
        };
        self.end_shown(Why::Failed(fault));
        Ok(())
    }

    /// Starts the cleanup of a job whose node is already shown as FAILED.
    fn end_shown(&mut self, why: Why) {
        let awaited = match why {
            Why::Cancelled(_) => Awaited::Operator,
            Why::Failed(_) | Why::Again(_) => Awaited::Nobody,
        };
        self.abort_all();
        self.clean_up(Ending {
            why,
            stop_by: after(self.now, STOP_LIMIT),
            show_by: after(self.now, SHOW_AFTER_CANCEL),
            shown: Shown::Failed,
            unreachable: Unreachable::Awaited,
            awaited,
            slot: SlotFate::ReturnedUsed,
        });
    }

    /// Resumes with the step that failed, or with the subscription where that may be to blame: its connection
    /// string may have been mended.
    fn resume(&mut self, kept: &Kept, terms: Terms) -> Result<(), Refused> {
        if !self.job.running.is_empty() {
            return Err(Refused::Stopping);
        }
        terms.put_into(&mut self.job.spec);
        let method = self.job.spec.method;
        self.job.began_at = self.now;
        self.job.ended_at = None;
        self.job.cancelled_by = None;
        self.job.attempt.recounts = 0;
        if kept.step == Step::OpenSource {
            self.job.restarts = 0;
        }
        self.job.opened = Opened::No;
        // An outage that goes on counts from now.
        for end in [&mut self.job.source, &mut self.job.target] {
            if let ServerState::Silent { since, .. } = &mut end.server {
                *since = self.now;
            }
        }
        self.effects.push(Effect::Resumed);
        let step = match kept.step {
            Step::NativeCopy | Step::Converge => Step::Subscribe,
            step => step,
        };
        for event in way_back(step, method) {
            self.bring(*event);
        }
        // The agent may have restarted since; admitting is idempotent.
        self.issue(Work::Regrant);
        self.enter(step);
        Ok(())
    }
}

/// The events that bring a FAILED node to the state of that step.
fn way_back(step: Step, method: Method) -> &'static [NodeEvent] {
    let is_copied = match method {
        Method::Snapshot | Method::TwoPhase | Method::Stored => step > Step::Constraints,
        // It goes on copying to its end.
        Method::Load => false,
        // They are not kept.
        Method::Add | Method::Drop | Method::Reinit | Method::Merge => false,
        Method::Native => step > Step::NativeCopy,
        Method::Backup => step > Step::PrepareTarget,
    };
    if is_copied {
        &[NodeEvent::Begin, NodeEvent::Opened, NodeEvent::Copied]
    } else {
        // Only steps after the schema are resumed.
        &[NodeEvent::Begin, NodeEvent::Opened]
    }
}
