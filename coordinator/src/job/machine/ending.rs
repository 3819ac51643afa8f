//! Stops a job and removes what it made.
//!
//! Aborts the running commands, waits until they have ended (or their process is gone, or the time limit
//! is reached), and cleans up the target, then the source. A side whose agent is offline is cleaned up
//! when the agent is back. The other side does not wait for that, and only a short time for a side that
//! cannot be cleaned up: the slot fills the source's disk (G5).

use steep_protocol::message::agent::Outcome;
use steep_protocol::message::facts::{Finding, Severity};
use steep_protocol::message::job::CancelledData;
use steep_protocol::{Fault, FaultKind, Phase, Retry};

use super::super::change::Joining;
use super::super::handover::SlotFate;
use super::super::{Attempt, Awaited, Shown, Unreachable, Why};
use super::{
    CLEANUP_AGAIN, Closed, Effect, Ending, Finish, JobEvent, NodeEvent, Process, Refused, Residue,
    Return, SHOW_AFTER_CANCEL, SHOW_AFTER_DEATH, SHOW_AFTER_FAULT, STOP_LIMIT, Side, Stage, Step,
    TARGET_FIRST, Turn, Work, add_hint, after,
};

/// The state of the cleanup on one side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cleanup {
    /// Nothing is left and nothing runs.
    Done,
    Running,
    /// Something is left that cannot be removed now.
    Pending,
}

impl Turn {
    /// Starts to stop the job.
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
        self.clean_up(ending);
    }

    /// Starts the cleanup of a job that succeeded earlier; its node is shown as FAILED meanwhile, unless it is detached.
    pub(super) fn begin_undo(&mut self, data: CancelledData) {
        let ending = Ending {
            why: Why::Cancelled(data),
            stop_by: after(self.now, STOP_LIMIT),
            show_by: after(self.now, SHOW_AFTER_CANCEL),
            shown: match data {
                CancelledData::Detach => Shown::NotYet,
                CancelledData::Remove | CancelledData::Keep => Shown::Failed,
            },
            awaited: Awaited::Operator,
            slot: SlotFate::Removed,
            unreachable: Unreachable::Awaited,
        };
        self.clean_up(ending);
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

    /// Handles an event of an ending job.
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
            // The first cause counts.
            JobEvent::Endangered { .. }
            | JobEvent::SnapshotLost
            | JobEvent::SnapshotReplaced
            | JobEvent::Sealed
            | JobEvent::Merge(_)
            | JobEvent::SpoolLost { .. } => {}
            JobEvent::Resume { .. } => return Err(Refused::NothingKept),
            JobEvent::Adjust(change) => self.adjust(change)?,
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
        self.clean_up(ending);
        Ok(())
    }

    /// An agent is online again while its job ends.
    fn returned(&mut self, side: Side, incarnation: u64) {
        if self.arrived(side, incarnation) == Process::Restarted {
            // The old process's commands died with it.
            self.job
                .running
                .retain(|r| r.work.side() != side || r.work.is_cleanup());
        }
        for running in self.job.running.clone() {
            if running.work.side() != side {
                continue;
            }
            let asks = running.work == Work::CleanupTarget(CancelledData::Detach);
            if asks || self.job.joining() != Joining::NotYet {
                // The source was cleaned up or restarted meanwhile, which ends the permission.
                self.admit_for_cleanup();
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

    /// Lets the target ask the source about sequences, or have tables leave the replication that goes on.
    fn admit_for_cleanup(&mut self) {
        if self.online(Side::Source) && !self.job.is_busy(Side::Source) {
            self.issue(Work::Regrant);
        }
    }

    fn retry_stuck(&mut self, side: Side) {
        let end = self.end_mut(side);
        if matches!(end.residue, Residue::Stuck { .. }) {
            end.residue = Residue::Objects;
        }
    }

    /// The cleanup command of a side ended.
    fn cleaned(&mut self, side: Side, fault: Option<Fault>) {
        let again = after(self.now, CLEANUP_AGAIN);
        let end = self.end_mut(side);
        match fault {
            // Only the agent's own note was left to remove, for which it needs no server.
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

    /// Issues the cleanup commands that are possible now, and updates the job's stage.
    pub(super) fn clean_up(&mut self, mut ending: Ending) {
        let data = self.rows_of(&ending.why);
        for side in Side::BOTH {
            if !self.online(side) {
                self.skip_offline(side);
            }
        }
        if self.can_clean(Side::Target) {
            if data == CancelledData::Detach || self.job.joining() != Joining::NotYet {
                self.admit_for_cleanup();
            }
            self.issue(Work::CleanupTarget(data));
        }
        let target = self.progress_of(Side::Target);
        let target_first = target == Cleanup::Running
            && self.now < after(ending.stop_by, TARGET_FIRST)
            // Until its replication is as it was, the target asks the source.
            || target != Cleanup::Done && self.job.joining() != Joining::NotYet;
        if self.can_clean(Side::Source) && !target_first {
            self.issue(Work::CleanupSource);
        }
        let sides = Side::BOTH.map(|side| self.progress_of(side));
        if sides == [Cleanup::Done; 2] {
            return self.all_clean(ending);
        }
        let in_time = self.now < ending.show_by;
        if let (false, Why::Again(fault)) = (in_time, &ending.why) {
            ending.why = Why::Failed(fault.clone());
        }
        let waits = match ending.why {
            // Agents and servers may come back.
            Why::Again(_) => true,
            Why::Failed(_) | Why::Cancelled(_) => in_time && sides.contains(&Cleanup::Running),
        };
        if !waits && ending.unreachable == Unreachable::GivenUp {
            for (side, cleanup) in Side::BOTH.into_iter().zip(sides) {
                if cleanup != Cleanup::Done {
                    self.abandon(side);
                }
            }
            return self.all_clean(ending);
        }
        if !waits {
            self.announce(&mut ending);
        }
        self.job.stage = Stage::Ending(ending);
    }

    /// Gives up the cleanup of one side.
    fn abandon(&mut self, side: Side) {
        let why = match (&self.job.end(side).residue, self.online(side)) {
            (_, false) => "its agent has no session".to_owned(),
            (Residue::Stuck { why, .. }, true) => why.clone(),
            (_, true) => "a command on it does not end".to_owned(),
        };
        self.end_mut(side).residue = Residue::Removed;
        self.job.running.retain(|r| r.work.side() != side);
        self.effects.push(Effect::GivenUp { side, why });
    }

    /// Does not wait for an offline agent whose server has nothing of the job.
    fn skip_offline(&mut self, side: Side) {
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

    fn progress_of(&self, side: Side) -> Cleanup {
        let busy = self.job.is_busy(side);
        match (&self.job.end(side).residue, self.online(side)) {
            (Residue::Nothing | Residue::Removed, _) if !busy => Cleanup::Done,
            (Residue::Stuck { .. }, _) if !busy => Cleanup::Pending,
            (_, true) => Cleanup::Running,
            (_, false) => Cleanup::Pending,
        }
    }

    /// What happens to the copied rows. Those of a proved copy stay: the target may have forgotten which they are.
    fn rows_of(&self, why: &Why) -> CancelledData {
        match why {
            Why::Cancelled(CancelledData::Detach) => CancelledData::Detach,
            _ if self.job.attempt.released => CancelledData::Keep,
            Why::Failed(_) | Why::Again(_) => CancelledData::Remove,
            Why::Cancelled(data) => *data,
        }
    }

    /// Says that the rows of a job that has not succeeded stay.
    fn say_complete(&mut self) {
        let target = self.job.spec.target.clone();
        self.warn(vec![Finding {
            severity: Severity::Warning,
            code: "copy_complete".to_owned(),
            what: format!(
                "the copy on {target} was complete when its job ended: its tables and rows stay"
            ),
            why: "once a copy is proved, the target forgets which rows are the job's".to_owned(),
            fix: "drop or truncate the tables if they are not wanted".to_owned(),
            node: Some(target),
        }]);
    }

    fn all_clean(&mut self, ending: Ending) {
        self.stop_phase();
        let rows = self.rows_of(&ending.why);
        let had_succeeded = ending.slot == SlotFate::Removed;
        if self.job.attempt.released && !had_succeeded {
            self.say_complete();
        }
        match ending.why {
            Why::Failed(fault) => {
                if let Some(change) = &self.job.change {
                    self.effects.push(Effect::Node(change.returned()));
                } else if ending.shown == Shown::NotYet {
                    self.effects.push(Effect::Node(NodeEvent::Failed));
                }
                if ending.shown == Shown::NotYet {
                    self.effects
                        .push(Effect::Finished(Finish::Failed(fault.clone())));
                }
                self.close(Closed::Failed(fault));
            }
            Why::Again(_) => self.begin_again(),
            Why::Cancelled(data) => {
                self.effects
                    .push(Effect::Node(match (data, &self.job.change) {
                        (CancelledData::Detach, _) => NodeEvent::Detached,
                        (_, Some(change)) => change.returned(),
                        (CancelledData::Remove | CancelledData::Keep, None) => NodeEvent::Cancelled,
                    }));
                self.effects.push(Effect::Finished(Finish::Cancelled(rows)));
                self.close(Closed::Cancelled);
            }
        }
    }

    /// Starts the job over, without another preflight, once both sides are clean.
    fn begin_again(&mut self) {
        self.job.running.clear();
        for side in Side::BOTH {
            self.end_mut(side).residue = Residue::Nothing;
        }
        self.job.attempt = Attempt::default();
        self.job.adopted = None;
        self.job.recalled = None;
        self.joined(Joining::NotYet);
        self.forget_epochs();
        self.enter(Step::OpenSource);
    }

    /// Shows FAILED once, and answers every waiting operator.
    fn announce(&mut self, ending: &mut Ending) {
        let first = ending.shown == Shown::NotYet;
        if first {
            ending.shown = Shown::Failed;
            self.job.ended_at.get_or_insert(self.now);
            if self.job.change.is_none() {
                self.effects.push(Effect::Node(NodeEvent::Failed));
            }
        }
        match &ending.why {
            Why::Failed(fault) if first => {
                let mut fault = fault.clone();
                for (_, next) in self.pending() {
                    add_hint(&mut fault, &next);
                }
                self.effects.push(Effect::Finished(Finish::Failed(fault)));
            }
            Why::Cancelled(_) if first || ending.awaited == Awaited::Operator => {
                let away = Side::BOTH.into_iter().any(|side| !self.online(side));
                let kind = match away {
                    true => FaultKind::Unreachable,
                    false => FaultKind::Failed,
                };
                let pending = self.pending();
                let what: Vec<&str> = pending.iter().map(|(what, _)| what.as_str()).collect();
                let text = format!(
                    "the job is stopped, but not everything that it made is removed yet: {}",
                    what.join("; ")
                );
                let mut fault = Fault::new(kind, text)
                    .on(&self.job.spec.target)
                    .retry(Retry::Backoff);
                for (_, next) in pending {
                    add_hint(&mut fault, &next);
                }
                self.effects
                    .push(Effect::Finished(Finish::CancelPending(fault)));
            }
            Why::Failed(_) | Why::Again(_) | Why::Cancelled(_) => {}
        }
        ending.awaited = Awaited::Nobody;
    }

    /// For each side with something left to remove: what holds that up, and what to do.
    fn pending(&self) -> Vec<(String, String)> {
        let target = &self.job.spec.target;
        let detaches = matches!(
            &self.job.stage,
            Stage::Ending(Ending {
                why: Why::Cancelled(CancelledData::Detach),
                ..
            })
        );
        let give_up = match detaches {
            true => format!(
                "steep-repl detach --node {target} --force goes on without what cannot be reached"
            ),
            false => format!(
                "steep-repl init cancel --node {target} --force-cleanup removes what can be reached and gives up the rest"
            ),
        };
        let sides = Side::BOTH.into_iter().filter_map(|side| {
            let node = side.node(&self.job.spec);
            match (&self.job.end(side).residue, self.online(side)) {
                (Residue::Nothing | Residue::Removed, _) => None,
                (_, false) => Some((
                    format!("cleanup on {node} is pending, since its agent is offline"),
                    format!(
                        "start the agent of {node}: what the job made there is removed as soon as it is back; if it never comes back, {give_up}"
                    ),
                )),
                (Residue::Stuck { why, .. }, true) => Some((
                    format!("cleanup on {node} failed ({why})"),
                    format!(
                        "fix the cause on {node}: the cleanup is tried again every {} s; {give_up}",
                        CLEANUP_AGAIN.as_secs()
                    ),
                )),
                (Residue::Grant | Residue::Objects, true) => Some((
                    format!("cleanup on {node} is still running"),
                    format!("wait for it: steep-repl status {target} shows when it is done"),
                )),
            }
        });
        sides.collect()
    }
}
