//! The next command of a switchover. Pure.
//!
//! Forward until the old node has decided; then nothing is undone, and what fails is tried until it succeeds. Before
//! that, every fault, every lost operator and the end of its time leads to [`Step::ReopenOld`], which asks
//! the old node what it has decided: it may have been the other way.

use std::time::Duration;

use jiff::Timestamp;
use steep_protocol::message::agent::{Outcome, SequencesRaised};
use steep_protocol::message::switchover::{
    Lacking, RowsCheck, SwitchoverSpec, SwitchoverStep as Step, WayBack, WriteState,
};
use steep_protocol::message::verify::VerifyReport;
use steep_protocol::{CommandId, Fault, FaultKind, NodeId, Retry};

use super::{COMMANDS, Side, Stale, Switchover};
use crate::job::retry::pause;
use crate::job::time::after;
use crate::snapshot::Trouble;

/// How long the new node waits for a last look at sequences before it takes writes.
const LAST_LOOK: Duration = Duration::from_secs(5);

/// How long rows are compared while writes are stopped: small tables take a fraction of a second.
const ROWS_BUDGET: Duration = Duration::from_secs(2);

/// Where nobody can write, pauses stop growing after so many failures: at 4 s.
const NOBODY_WRITES_TRIES: u32 = 3;

/// What happens to a switchover.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// It was accepted.
    Begin,
    /// An agent has a session.
    Up(NodeId),
    /// A command ended.
    Ended {
        /// Its id.
        id: CommandId,
        /// Its outcome.
        outcome: Box<Result<Outcome, Fault>>,
    },
    /// Somebody or something wants it undone.
    Undo(Fault),
    /// The new node's replication is removed.
    Detached,
    /// The old node follows, or why it does not.
    Followed(Result<(), Fault>),
    /// What the loop does itself failed for now.
    Hindered(Fault),
    /// Time has passed.
    Tick,
}

/// What a step asks for.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Send the command of the step.
    Send(CommandId),
    /// Cancel a command.
    Abort(CommandId, Side),
    /// A step was begun.
    Entered(Step),
    /// A step has failed and is tried again.
    TriesAgain(Fault),
    /// It is undone, for that reason.
    Undoing(Fault),
}

/// The first step.
pub(super) fn first(spec: &SwitchoverSpec) -> Step {
    match (spec.way_back, spec.rows) {
        (WayBack::Follow, _) => Step::PrepareWayBack,
        (WayBack::None, RowsCheck::Compared) => Step::AdmitRows,
        (WayBack::None, RowsCheck::Skipped) => Step::CloseNew,
    }
}

/// When writes that were stopped at that time are given back.
pub(super) fn deadline(stopped: Timestamp, spec: &SwitchoverSpec) -> Timestamp {
    after(stopped, Duration::from_secs(spec.max_stop_seconds.into()))
}

impl Switchover {
    /// Takes a step.
    pub fn step(&mut self, event: Event, now: Timestamp) -> Vec<Effect> {
        let mut effects = Vec::new();
        let out = &mut effects;
        match event {
            Event::Begin => self.enter(self.step, now, out),
            Event::Up(node) => self.up(&node, now, out),
            Event::Ended { id, outcome } => self.ended(id, *outcome, now, out),
            Event::Undo(fault) if self.is_undecided() => self.undo(fault, now, out),
            Event::Detached if self.step == Step::Detach => self.go_on(now, out),
            Event::Followed(followed) if self.step == Step::Follow => {
                self.go_on(now, out);
                // Writes have moved all the same.
                self.fault = followed.err();
            }
            Event::Hindered(fault) if matches!(self.step, Step::Detach | Step::Follow) => {
                self.again(fault, now, out);
            }
            Event::Tick => self.tick(now, out),
            Event::Undo(_) | Event::Detached | Event::Followed(_) | Event::Hindered(_) => {}
        }
        effects
    }

    fn next(&self) -> Step {
        match self.step {
            Step::PrepareWayBack if self.spec.rows == RowsCheck::Compared => Step::AdmitRows,
            Step::AdmitRows => Step::CompareRows,
            Step::PrepareWayBack | Step::CompareRows => Step::CloseNew,
            Step::CloseNew => Step::StopWrites,
            Step::StopWrites => Step::Drain,
            Step::Drain => Step::AdmitSequences,
            Step::AdmitSequences => Step::Sequences,
            Step::Sequences if !self.small.is_empty() => Step::AdmitSmall,
            Step::AdmitSmall => Step::CompareSmall,
            Step::Sequences | Step::CompareSmall => Step::ProveOpen,
            Step::ProveOpen => Step::Decide,
            Step::Decide => Step::AdmitLast,
            Step::AdmitLast => Step::LastSequences,
            Step::LastSequences => Step::Open,
            Step::Open => Step::Detach,
            Step::Detach if self.has_way_back() => Step::Follow,
            Step::Detach | Step::Follow | Step::Completed => Step::Completed,
            Step::ReopenOld => Step::ReopenNew,
            Step::ReopenNew if self.has_way_back() => Step::DropWayBack,
            Step::ReopenNew | Step::DropWayBack | Step::Undone => Step::Undone,
        }
    }

    fn go_on(&mut self, now: Timestamp, out: &mut Vec<Effect>) {
        self.enter(self.next(), now, out);
    }

    fn enter(&mut self, step: Step, now: Timestamp, out: &mut Vec<Effect>) {
        self.step = step;
        self.entered_at = now;
        self.trouble = None;
        self.hindrance = None;
        if step <= Step::Completed {
            self.reached = step;
            self.fault = None;
        }
        match step {
            Step::StopWrites => self.stopped_at = self.stopped_at.or(Some(now)),
            // It took writes for some moments already.
            Step::Detach | Step::ReopenNew => self.resumed_at = self.resumed_at.or(Some(now)),
            Step::Completed | Step::Undone => self.ended_at = Some(now),
            _ => {}
        }
        out.push(Effect::Entered(step));
        self.issue(out);
    }

    /// Issues the step's command, unless a cancelled one may still be at work on that node.
    fn issue(&mut self, out: &mut Vec<Effect>) {
        let Some(side) = Side::of(self.step) else {
            return;
        };
        if self.stale.is_some_and(|stale| stale.side == side) {
            return;
        }
        let id = CommandId(self.first_command + self.commands_issued % COMMANDS);
        self.commands_issued += 1;
        self.running = Some(id);
        out.push(Effect::Send(id));
    }

    fn up(&mut self, node: &NodeId, now: Timestamp, out: &mut Vec<Effect>) {
        let Some(side) = self.side_of(node) else {
            return;
        };
        if let Some(stale) = self.stale.filter(|stale| stale.side == side) {
            // Also a process that does not know it answers.
            out.push(Effect::Abort(stale.id, side));
        }
        match self.running {
            // The agent answers a command that it knows with the same outcome.
            Some(id) if Side::of(self.step) == Some(side) => out.push(Effect::Send(id)),
            Some(_) => {}
            None => {
                if let Some(trouble) = &mut self.trouble {
                    trouble.again = now;
                }
            }
        }
    }

    fn ended(
        &mut self,
        id: CommandId,
        outcome: Result<Outcome, Fault>,
        now: Timestamp,
        out: &mut Vec<Effect>,
    ) {
        if self.stale.is_some_and(|stale| stale.id == id) {
            self.stale = None;
            if self.running.is_none() {
                self.issue(out);
            }
            return;
        }
        if self.running != Some(id) {
            return;
        }
        self.running = None;
        match outcome {
            Ok(outcome) => match self.take(outcome, now) {
                Ok(step) => self.enter(step, now, out),
                Err(fault) => self.failed(fault, now, out),
            },
            Err(fault) => self.failed(fault, now, out),
        }
    }

    /// What a command came to; returns the next step, or why it is no success.
    fn take(&mut self, outcome: Outcome, now: Timestamp) -> Result<Step, Fault> {
        match (self.step, outcome) {
            (Step::PrepareWayBack, Outcome::SlotPrepared(_))
            | (
                Step::AdmitRows | Step::AdmitSequences | Step::AdmitSmall | Step::AdmitLast,
                Outcome::Done,
            )
            | (Step::CloseNew, Outcome::WritesStopped(_))
            | (Step::Drain, Outcome::FencePassed { .. })
            | (Step::Decide, Outcome::WriteState(WriteState::Final))
            | (Step::ReopenOld | Step::ReopenNew, Outcome::WriteState(WriteState::Open { .. }))
            | (Step::ProveOpen | Step::DropWayBack, Outcome::Done) => {}
            (Step::CompareRows, Outcome::Compared(report)) => {
                if !report.is_equal() {
                    return Err(self.unequal());
                }
                self.tables_compared = report.tables.len() as u64;
            }
            (Step::CompareSmall, Outcome::Compared(report)) => self.compared(&report)?,
            (Step::StopWrites, Outcome::WritesStopped(stopped)) => {
                self.reopen = Some(stopped.reopen);
                self.ended_sessions = stopped.ended_idle + stopped.ended_running;
            }
            (Step::Sequences | Step::LastSequences, Outcome::SequencesRaised(raised)) => {
                self.check(&raised)?;
            }
            (Step::Open, Outcome::WriteState(WriteState::Open { position })) => {
                self.position = Some(position);
                self.resumed_at = Some(now);
            }
            // It had decided before it was asked to undo.
            (Step::ReopenOld, Outcome::WriteState(WriteState::Final)) => {
                return Ok(Step::AdmitLast);
            }
            (step, _) => {
                let node = self.node(Side::of(step).unwrap_or(Side::Old));
                return Err(Fault::unexpected_answer(node));
            }
        }
        Ok(self.next())
    }

    fn unequal(&self) -> Fault {
        let (from, to) = (&self.spec.from, &self.spec.to);
        let text = format!("its rows differ from those of {from}");
        let hint = format!("see which: steep-repl verify {from} {to}; nothing was changed");
        Fault::new(FaultKind::SchemaMismatch, text)
            .on(to)
            .hint(hint)
    }

    /// The rows of small tables, of which nobody writes any more.
    fn compared(&mut self, report: &VerifyReport) -> Result<(), Fault> {
        let (from, to) = (&self.spec.from, &self.spec.to);
        if let Some(table) = report.tables.iter().find(|table| table.differences() > 0) {
            let text = format!(
                "{} has {} rows there and {} on {from}, of which {} differ",
                table.name,
                table.rows_b,
                table.rows_a,
                table.differences()
            );
            let hint = format!("see which: steep-repl verify {from} {to}");
            let fault = Fault::new(FaultKind::SchemaMismatch, text).on(to);
            return Err(fault.hint(hint));
        }
        let (equal, others): (Vec<_>, Vec<_>) =
            report.tables.iter().partition(|table| table.is_equal());
        self.tables_compared = equal.len() as u64;
        let others = others.iter().map(|table| table.name.to_string());
        self.tables_not_compared.extend(others);
        Ok(())
    }

    /// Nothing is wrong with rows that could not be compared in the time for that.
    fn go_on_without_rows(&mut self, now: Timestamp, out: &mut Vec<Effect>) {
        self.abort(out);
        let names = self.small.iter().map(ToString::to_string);
        self.tables_not_compared.extend(names);
        self.enter(Step::ProveOpen, now, out);
    }

    /// A sequence that is not set could hand out a number that is used.
    fn check(&mut self, raised: &SequencesRaised) -> Result<(), Fault> {
        let mut problems = raised.problems.clone();
        let mut hint = "";
        if let Some(left) = &raised.left_alone {
            match self.spec.lacking {
                Lacking::Refused => {
                    problems.push(left.clone());
                    hint = "or accept with --force that these stay as they are";
                }
                Lacking::Accepted if self.warnings.contains(left) => {}
                Lacking::Accepted => self.warnings.push(left.clone()),
            }
        }
        if problems.is_empty() {
            return Ok(());
        }
        let text = format!(
            "some sequences cannot be set to those of {}: {}",
            self.spec.from,
            problems.join("; ")
        );
        let fault = Fault::new(FaultKind::Failed, text).on(&self.spec.to);
        Err(fault.hint(hint))
    }

    fn failed(&mut self, fault: Fault, now: Timestamp, out: &mut Vec<Effect>) {
        let unequal = fault.kind == FaultKind::SchemaMismatch;
        if matches!(self.step, Step::AdmitSmall | Step::CompareSmall) && !unequal {
            return self.go_on_without_rows(now, out);
        }
        if self.is_undecided() {
            return self.undo(fault, now, out);
        }
        if self.is_last_look() {
            return self.open_without(&fault.message, now, out);
        }
        if self.step == Step::DropWayBack && fault.retry == Retry::Never {
            // There is none, or somebody took it.
            return self.go_on(now, out);
        }
        self.again(fault, now, out);
    }

    /// Sequences are set once more for those who wrote until the end; they were set before.
    fn is_last_look(&self) -> bool {
        matches!(self.step, Step::AdmitLast | Step::LastSequences)
    }

    /// Nobody writes meanwhile: that is worse than what a writer that overrode the setting may have used.
    fn open_without(&mut self, why: &str, now: Timestamp, out: &mut Vec<Effect>) {
        self.abort(out);
        self.warnings.push(format!(
            "sequences were set before writes were locked out, and could not be set again after that: {why}; if \
             a session had overridden the setting, it may have used numbers that {} gives out again",
            self.spec.to
        ));
        self.enter(Step::Open, now, out);
    }

    /// Cancels the command of the step.
    fn abort(&mut self, out: &mut Vec<Effect>) {
        if let Some(id) = self.running.take()
            && let Some(side) = Side::of(self.step)
        {
            self.stale = Some(Stale { id, side });
            out.push(Effect::Abort(id, side));
        }
    }

    fn again(&mut self, fault: Fault, now: Timestamp, out: &mut Vec<Effect>) {
        let (since, tries) = self.trouble.map_or((now, 0), |t| (t.since, t.tries));
        let tries = tries.saturating_add(1);
        let paused = match self.step {
            Step::Open | Step::ReopenOld => tries.min(NOBODY_WRITES_TRIES),
            _ => tries,
        };
        let again = after(now, pause(paused, self.id.0));
        self.trouble = Some(Trouble {
            since,
            tries,
            again,
        });
        self.hindrance = Some(fault.clone());
        out.push(Effect::TriesAgain(fault));
    }

    fn undo(&mut self, fault: Fault, now: Timestamp, out: &mut Vec<Effect>) {
        self.abort(out);
        self.fault = Some(fault.clone());
        out.push(Effect::Undoing(fault));
        let step = match self.reached {
            Step::PrepareWayBack | Step::AdmitRows | Step::CompareRows if self.has_way_back() => {
                Step::DropWayBack
            }
            Step::PrepareWayBack | Step::AdmitRows | Step::CompareRows => Step::Undone,
            Step::CloseNew => Step::ReopenNew,
            _ => Step::ReopenOld,
        };
        self.enter(step, now, out);
    }

    fn tick(&mut self, now: Timestamp, out: &mut Vec<Effect>) {
        let stopped = self.stopped_at.filter(|_| self.is_undecided());
        if stopped.is_some_and(|at| deadline(at, &self.spec) <= now) {
            let text = format!(
                "{} had not applied everything when the {} s were over for which writes may be stopped",
                self.spec.to, self.spec.max_stop_seconds
            );
            let hint = "see steep-repl status for its lag, then try again, with a larger --max-stop if it needs one";
            return self.undo(Fault::new(FaultKind::Timeout, text).hint(hint), now, out);
        }
        if self.step == Step::CompareSmall && after(self.entered_at, ROWS_BUDGET) <= now {
            return self.go_on_without_rows(now, out);
        }
        if self.is_last_look() && after(self.entered_at, LAST_LOOK) <= now {
            let why = format!("{} s were over", LAST_LOOK.as_secs());
            return self.open_without(&why, now, out);
        }
        if self.running.is_none() && self.trouble.is_some_and(|trouble| trouble.again <= now) {
            self.issue(out);
        }
    }
}

#[cfg(test)]
mod tests;
