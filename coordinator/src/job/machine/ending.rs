//! Stopping a job and removing what it made.
//!
//! The order: abort what runs, wait until it has ended (or its process is gone, or its time is
//! over), clean the target, then the source. A side whose agent is away is cleaned when the agent
//! is back; the other side never waits for it, nor for long where it is there and cannot be cleaned,
//! least of all the source, whose disk is at stake (G5).

use steep_protocol::message::agent::Outcome;
use steep_protocol::message::job::CancelledData;
use steep_protocol::{Fault, FaultKind, Phase, Retry};

use super::super::handover::SlotFate;
use super::super::{Attempt, Awaited, Shown, Unreachable, Why};
use super::{
    CLEANUP_AGAIN, Closed, Effect, Ending, Finish, JobEvent, NodeEvent, Process, Refused, Residue,
    Return, SHOW_AFTER_CANCEL, SHOW_AFTER_DEATH, SHOW_AFTER_FAULT, STOP_LIMIT, Side, Stage, Step,
    TARGET_FIRST, Turn, Work, after,
};

/// Where the removal on a side is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tidy {
    /// Nothing is left and nothing runs.
    Clean,
    /// Being stopped or removed now.
    Busy,
    /// Something is left, and nothing can be done about it at this moment.
    Owed,
}

impl Turn {
    /// Begins to stop the job.
    pub(super) fn end(&mut self, why: Why) {
        self.phase(Phase::Cleanup);
        let slot = match &self.job.stage {
            Stage::Working(step) if *step >= Step::Subscribe => SlotFate::ReturnedUsed,
            Stage::Working(_) | Stage::Ending(_) | Stage::Kept(_) | Stage::Closed(_) => {
                SlotFate::Returned
            }
        };
        self.job.retrying.clear();
        self.job.preflight.source = None;
        let all_here = Side::BOTH.into_iter().all(|side| self.online(side));
        let (patience, awaited) = match &why {
            Why::Failed(_) if all_here => (SHOW_AFTER_FAULT, Awaited::Nobody),
            Why::Failed(_) => (SHOW_AFTER_DEATH, Awaited::Nobody),
            Why::Again(_) => (self.rules.patience.retry_for, Awaited::Nobody),
            Why::Cancelled(_) => (SHOW_AFTER_CANCEL, Awaited::Operator),
        };
        let ending = Ending {
            why,
            stop_by: after(self.now, STOP_LIMIT),
            show_by: after(self.now, patience),
            shown: Shown::NotYet,
            awaited,
            slot,
            unreachable: Unreachable::Awaited,
        };
        self.abort_all();
        self.tidy(ending);
    }

    /// Begins to remove a job that ended well long ago; its node is shown as FAILED meanwhile.
    pub(super) fn begin_undo(&mut self, data: CancelledData) {
        let ending = Ending {
            why: Why::Cancelled(data),
            stop_by: after(self.now, STOP_LIMIT),
            show_by: after(self.now, SHOW_AFTER_CANCEL),
            shown: Shown::Failed,
            awaited: Awaited::Operator,
            slot: SlotFate::Removed,
            unreachable: Unreachable::Awaited,
        };
        self.tidy(ending);
    }

    pub(super) fn abort_all(&mut self) {
        for running in self.job.running.clone() {
            let side = running.work.side();
            if self.online(side) && !running.work.is_cleanup() {
                self.effects.push(Effect::Abort {
                    id: running.id,
                    side,
                });
            }
        }
    }

    /// What an ending job does with an event.
    pub(super) fn ending(&mut self, mut ending: Ending, event: JobEvent) -> Result<(), Refused> {
        match event {
            JobEvent::Begin => return Err(Refused::Begun),
            JobEvent::Ended { id, outcome, .. } => match self.take(id) {
                Some(work) if work.is_cleanup() => {
                    let fault = match *outcome {
                        Ok(Outcome::Warned(findings)) => {
                            self.warn(findings);
                            None
                        }
                        Ok(_) => None,
                        Err(fault) => Some(fault),
                    };
                    self.cleaned(work.side(), fault);
                }
                Some(_) | None => {}
            },
            JobEvent::Up {
                side, incarnation, ..
            } => {
                self.returned(side, incarnation);
                ending.stop_by = ending.stop_by.max(after(self.now, STOP_LIMIT));
            }
            JobEvent::Down { side, since, .. } => self.left(side, since),
            JobEvent::Server { side, answers } => {
                if self.saw_server(side, answers) == Return::Now {
                    self.retry_stuck(side);
                }
            }
            // It ends already, and for its first cause.
            JobEvent::Endangered { .. } | JobEvent::SnapshotLost => {}
            JobEvent::Resume { .. } => return Err(Refused::NothingKept),
            JobEvent::Cancel { data } => {
                if !matches!(ending.why, Why::Cancelled(_)) {
                    ending.why = Why::Cancelled(data);
                    ending.show_by = after(self.now, SHOW_AFTER_CANCEL);
                }
                ending.awaited = Awaited::Operator;
                self.retry_stuck(Side::Target);
                self.retry_stuck(Side::Source);
            }
            JobEvent::GiveUp => {
                ending.unreachable = Unreachable::GivenUp;
                ending.show_by = after(self.now, SHOW_AFTER_CANCEL);
                self.retry_stuck(Side::Target);
                self.retry_stuck(Side::Source);
            }
            JobEvent::Tick => {
                if ending.stop_by <= self.now {
                    self.job.running.retain(|r| r.work.is_cleanup());
                }
                for side in Side::BOTH {
                    let due = matches!(
                        self.job.end(side).residue,
                        Residue::Stuck { again, .. } if again <= self.now
                    );
                    if due && self.online(side) {
                        self.retry_stuck(side);
                    }
                }
            }
        }
        self.tidy(ending);
        Ok(())
    }

    /// An agent is back while its job ends.
    fn returned(&mut self, side: Side, incarnation: u64) {
        if self.arrived(side, incarnation) == Process::Restarted {
            // What that process was doing died with it.
            self.job
                .running
                .retain(|r| r.work.side() != side || r.work.is_cleanup());
        }
        for running in self.job.running.clone() {
            if running.work.side() != side {
                continue;
            }
            if running.work.is_cleanup() {
                self.send(running.id, running.work);
            } else {
                self.effects.push(Effect::Abort {
                    id: running.id,
                    side,
                });
            }
        }
        self.retry_stuck(side);
    }

    fn retry_stuck(&mut self, side: Side) {
        let end = self.end_mut(side);
        if matches!(end.residue, Residue::Stuck { .. }) {
            end.residue = Residue::Objects;
        }
    }

    /// A removal ended.
    fn cleaned(&mut self, side: Side, fault: Option<Fault>) {
        let again = after(self.now, CLEANUP_AGAIN);
        let end = self.end_mut(side);
        match fault {
            // Nothing but the agent's own note was there to remove; a server that cannot be
            // reached does not change that.
            Some(_) if end.residue == Residue::Grant => end.residue = Residue::Removed,
            None => end.residue = Residue::Removed,
            Some(fault) => {
                end.residue = Residue::Stuck {
                    why: fault.message.clone(),
                    again,
                };
                self.effects.push(Effect::CleanupFailed {
                    side,
                    why: fault.message,
                });
            }
        }
    }

    /// Gives the removals that can be given, and says how the job stands.
    pub(super) fn tidy(&mut self, mut ending: Ending) {
        let data = match &ending.why {
            Why::Failed(_) | Why::Again(_) => CancelledData::Remove,
            Why::Cancelled(data) => *data,
        };
        for side in Side::BOTH {
            if !self.online(side) {
                self.leave_alone(side);
            }
        }
        if self.can_clean(Side::Target) {
            self.give(Work::CleanupTarget(data));
        }
        let target_first = self.progress_of(Side::Target) == Tidy::Busy
            && self.now < after(ending.stop_by, TARGET_FIRST);
        if self.can_clean(Side::Source) && !target_first {
            self.give(Work::CleanupSource);
        }
        let sides = Side::BOTH.map(|side| self.progress_of(side));
        if sides == [Tidy::Clean; 2] {
            return self.all_clean(ending);
        }
        let in_time = self.now < ending.show_by;
        if let (false, Why::Again(fault)) = (in_time, &ending.why) {
            ending.why = Why::Failed(fault.clone());
        }
        let waits = match ending.why {
            // Whatever it waits for may come back.
            Why::Again(_) => true,
            Why::Failed(_) | Why::Cancelled(_) => in_time && sides.contains(&Tidy::Busy),
        };
        if !waits && ending.unreachable == Unreachable::GivenUp {
            for (side, tidy) in Side::BOTH.into_iter().zip(sides) {
                if tidy != Tidy::Clean {
                    self.abandon(side);
                }
            }
            return self.all_clean(ending);
        }
        if !waits {
            self.tell(&mut ending);
        }
        self.job.stage = Stage::Ending(ending);
    }

    /// Leaves on a side what cannot be removed there.
    fn abandon(&mut self, side: Side) {
        let why = match (&self.job.end(side).residue, self.online(side)) {
            (_, false) => "its agent has no session".to_owned(),
            (Residue::Stuck { why, .. }, true) => why.clone(),
            (_, true) => "its agent does not end".to_owned(),
        };
        self.end_mut(side).residue = Residue::Removed;
        self.job.running.retain(|r| r.work.side() != side);
        self.effects.push(Effect::GivenUp { side, why });
    }

    /// An agent that is away and has nothing of the job on its server is not waited for.
    fn leave_alone(&mut self, side: Side) {
        match self.job.end(side).residue {
            Residue::Grant | Residue::Nothing | Residue::Removed => {
                self.end_mut(side).residue = Residue::Removed;
                self.job.running.retain(|r| r.work.side() != side);
            }
            Residue::Objects | Residue::Stuck { .. } => {}
        }
    }

    fn can_clean(&self, side: Side) -> bool {
        let owed = matches!(
            self.job.end(side).residue,
            Residue::Grant | Residue::Objects
        );
        owed && self.online(side) && !self.job.is_busy(side)
    }

    fn progress_of(&self, side: Side) -> Tidy {
        let busy = self.job.is_busy(side);
        match (&self.job.end(side).residue, self.online(side)) {
            (Residue::Nothing | Residue::Removed, _) if !busy => Tidy::Clean,
            (Residue::Stuck { .. }, _) if !busy => Tidy::Owed,
            (_, true) => Tidy::Busy,
            (_, false) => Tidy::Owed,
        }
    }

    fn all_clean(&mut self, ending: Ending) {
        self.stop_phase();
        match ending.why {
            Why::Failed(fault) => {
                if ending.shown == Shown::NotYet {
                    self.effects.push(Effect::Node(NodeEvent::Failed));
                    self.effects
                        .push(Effect::Finished(Finish::Failed(fault.clone())));
                }
                self.close(Closed::Failed(fault));
            }
            Why::Again(_) => self.begin_again(),
            Why::Cancelled(_) => {
                self.effects.push(Effect::Node(NodeEvent::Cancelled));
                self.effects.push(Effect::Finished(Finish::Cancelled));
                self.close(Closed::Cancelled);
            }
        }
    }

    /// Nothing of the job is left on either side: it begins anew, without another preflight.
    fn begin_again(&mut self) {
        self.job.running.clear();
        for side in Side::BOTH {
            self.end_mut(side).residue = Residue::Nothing;
        }
        self.job.attempt = Attempt::default();
        self.enter(Step::OpenSource);
    }

    /// Shows FAILED, once, and tells the operator who waits, each time.
    fn tell(&mut self, ending: &mut Ending) {
        let first = ending.shown == Shown::NotYet;
        if first {
            ending.shown = Shown::Failed;
            self.job.ended_at.get_or_insert(self.now);
            self.effects.push(Effect::Node(NodeEvent::Failed));
        }
        match &ending.why {
            Why::Failed(fault) if first => {
                let mut fault = fault.clone();
                if !fault.hint.is_empty() {
                    fault.hint.push_str(". ");
                }
                fault.hint.push_str(&self.owed());
                self.effects.push(Effect::Finished(Finish::Failed(fault)));
            }
            Why::Cancelled(_) if first || ending.awaited == Awaited::Operator => {
                let away = Side::BOTH.into_iter().any(|side| !self.online(side));
                let fault = Fault::new(
                    match away {
                        true => FaultKind::Unreachable,
                        false => FaultKind::Failed,
                    },
                    "the job is stopped, but what it made is not all removed yet",
                )
                .on(&self.job.spec.target)
                .hint(self.owed())
                .retry(Retry::Backoff);
                self.effects
                    .push(Effect::Finished(Finish::CancelPending(fault)));
            }
            Why::Failed(_) | Why::Again(_) | Why::Cancelled(_) => {}
        }
        ending.awaited = Awaited::Nobody;
    }

    /// What is left to remove and what it waits for.
    fn owed(&self) -> String {
        let sides = Side::BOTH.into_iter().filter_map(|side| {
            let node = side.node(&self.job.spec);
            match (&self.job.end(side).residue, self.online(side)) {
                (Residue::Nothing | Residue::Removed, _) => None,
                (_, false) => Some(format!(
                    "cleanup on {node} is pending: its agent is offline, and it is done as soon as \
                     the agent is back"
                )),
                (Residue::Stuck { why, .. }, true) => Some(format!(
                    "cleanup on {node} failed ({why}) and is tried again every {} s",
                    CLEANUP_AGAIN.as_secs()
                )),
                (Residue::Grant | Residue::Objects, true) => {
                    Some(format!("cleanup on {node} is still running"))
                }
            }
        });
        sides.collect::<Vec<_>>().join(". ")
    }
}
