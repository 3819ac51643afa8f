//! What a fault means for a running job: it retries, starts over, waits to be resumed, or cleans up.
//!
//! A transient fault is retried within the budget. A fault that an operator must fix fails the job, which
//! then keeps what it has if it can be resumed from there. A lost snapshot makes the job start over, since
//! nothing that was read under it can be completed. A failed job with nothing worth keeping is cleaned up
//! at once.

use std::time::Duration;

use steep_protocol::message::job::Method;
use steep_protocol::{Epoch, Fault, FaultKind, NodeId, Retry};

use super::super::retry::{KEEP_SNAPSHOT, Next, RESTARTS_MAX, Retrying};
use super::super::{Kept, Why};
use super::epochs::is_over;
use super::{
    Effect, Finish, NodeEvent, Presence, STOP_LIMIT, Side, Stage, Step, Turn, Work, add_hint, after,
};

impl Turn {
    /// A command ended with a fault.
    pub(super) fn faulted(&mut self, step: Step, work: Work, fault: Fault) {
        if is_over(step, work) {
            return self.advance(step);
        }
        let source = fault.node.as_ref() == Some(&self.job.spec.source);
        if fault.kind == FaultKind::Cancelled && source && self.needs_snapshot(step) {
            // While the agent is being stopped, it still removes what the job made there.
            return self.snapshot_lost(step, self.stopped());
        }
        let fault = self.blame(work, fault);
        let refused = work == Work::OpenSource && fault.kind == FaultKind::SourceChanged;
        if refused && self.job.adopted.is_some() {
            return self.snapshot_lost(step, fault);
        }
        match fault.retry {
            // Another try would ask the source for a plan that it may no longer have.
            Retry::Backoff | Retry::NewConnection if work == Work::Copy && self.has_all_parts() => {
                self.job.retrying.retain(|r| r.work != work);
                self.advance(step);
            }
            Retry::Backoff | Retry::NewConnection => self.try_again(step, work, fault),
            // The fence found the slot unusable, and nothing works without the slot.
            Retry::Never if work == Work::AwaitFence => self.fail(fault),
            // Under the job's snapshot that table can never be read completely, but those that are complete stay.
            Retry::Never if fault.kind == FaultKind::SourceChanged => {
                match self.needs_snapshot(step) && self.keeps_tables(step) {
                    true => self.next_epoch(fault),
                    false => self.fail(fault),
                }
            }
            // Which of the target's rows are not the source's, nobody can tell.
            Retry::Never if fault.kind == FaultKind::TargetChanged => self.fail(fault),
            Retry::Never if self.only_goes_on() => self.try_again(step, work, fault),
            Retry::Never => self.give_up(step, fault),
        }
    }

    /// Retries the work after a pause, unless the budget is used up.
    pub(super) fn try_again(&mut self, step: Step, work: Work, fault: Fault) {
        let at = self.job.retrying.iter().position(|r| r.work == work);
        let before = at.map(|at| self.job.retrying.remove(at));
        let first = before.is_none();
        let (parts, seed) = (self.counted.done.parts, self.job.id.0);
        let retrying = Retrying::after(before, (work, fault.clone()), parts, seed, self.now);
        let over = after(retrying.since, self.rules.patience.budget(step)) <= self.now;
        if over && !self.only_goes_on() {
            return self.give_up(step, self.retries_failed(&retrying));
        }
        self.job.retrying.push(retrying);
        if first {
            self.effects.push(Effect::TriesAgain { work, fault });
        }
    }

    /// Issues again the work whose pause is over.
    pub(super) fn retry_due(&mut self, step: Step) {
        let budget = self.rules.patience.budget(step);
        let over =
            |r: &&Retrying| matches!(r.next, Next::At(_)) && after(r.since, budget) <= self.now;
        if let Some(retrying) = self.job.retrying.iter().find(over)
            && !self.only_goes_on()
        {
            return self.give_up(step, self.retries_failed(retrying));
        }
        let now = self.now;
        for at in 0..self.job.retrying.len() {
            let work = self.job.retrying[at].work;
            if self.job.retrying[at].is_due(now) && self.online(work.side()) {
                self.job.retrying[at].next = Next::Running { since: now };
                self.issue(work);
            }
        }
    }

    /// Ends all pauses: what has come back may be what any command failed for, such as the agent that rows come
    /// from, whichever node its fault names.
    pub(super) fn hurry(&mut self) {
        for retrying in &mut self.job.retrying {
            retrying.hurry(self.now);
        }
    }

    /// Fails the job and cleans up.
    pub(super) fn fail(&mut self, fault: Fault) {
        self.end(Why::Failed(fault));
    }

    /// Fails the job, and keeps what it has if it can be resumed from there.
    pub(super) fn give_up(&mut self, step: Step, mut fault: Fault) {
        let Some(keep) = self.worth_keeping(step) else {
            return self.fail(fault);
        };
        let until = after(self.now, keep);
        let spec = &self.job.spec;
        let kept = match step {
            _ if !self.job.follows() => "the rows that were copied are",
            _ if step < Step::Copy => "the tables that were copied and their slot are",
            Step::Copy => "the rows that were copied, the snapshot and the slot are",
            _ => "its rows and the slot are",
        };
        let resume = format!(
            "run steep-repl init {} --from {} --resume",
            spec.target, spec.source
        );
        let next = if fault.kind == FaultKind::Timeout {
            fault.hint.clear();
            format!("{resume} with a longer --timeout or more --parallel workers")
        } else {
            fault.hint = without_new_run(&fault.hint).to_owned();
            format!("fix the cause, then {resume}")
        };
        add_hint(
            &mut fault,
            &format!(
                "{kept} kept until {until:.0}: {next}; steep-repl init cancel --node {} removes everything",
                spec.target
            ),
        );
        self.stop_phase();
        self.abort_all();
        self.job.retrying.clear();
        self.job.ended_at = Some(self.now);
        self.job.stage = Stage::Kept(Kept {
            fault: fault.clone(),
            step,
            until,
            stop_by: after(self.now, STOP_LIMIT),
        });
        if step == Step::PrepareTarget && self.job.epoch != Epoch(0) {
            self.let_go_of(fault.clone());
        }
        self.effects.push(Effect::Node(NodeEvent::Failed));
        self.effects.push(Effect::Finished(Finish::Failed(fault)));
    }

    /// How long to keep what the job has; `None` if it is of no use.
    fn worth_keeping(&self, step: Step) -> Option<Duration> {
        let keep = self.rules.patience.keep_failed?;
        if self.job.change.is_some() {
            // Its node goes on following without it.
            return None;
        }
        if step.has_rows(self.job.spec.method) {
            return Some(keep);
        }
        let method = self.job.spec.method;
        if step == Step::Copy && (method.is_from_store() || self.job.attempt.sealed) {
            return Some(keep);
        }
        if step < Step::Copy && self.job.epoch != Epoch(0) {
            return Some(keep);
        }
        let copies = matches!(method, Method::Snapshot | Method::TwoPhase);
        let holds = self.job.source.presence == Presence::Online;
        if step != Step::Copy || !copies {
            return None;
        }
        if !holds {
            return self.keeps_tables(step).then_some(keep);
        }
        let keep = keep.min(KEEP_SNAPSHOT);
        let (Some(limit), Some(asked)) =
            (self.rules.bounds.snapshot_age, self.job.attempt.snapshot_at)
        else {
            return Some(keep);
        };
        let left = after(asked, limit).as_millisecond() - self.now.as_millisecond();
        let left = Duration::from_millis(u64::try_from(left).unwrap_or(0));
        Some(keep.min(left))
    }

    /// Starts the job over if it still has rows to read under the lost snapshot.
    pub(super) fn snapshot_lost(&mut self, step: Step, fault: Fault) {
        if !self.needs_snapshot(step) {
            return;
        }
        if self.keeps_tables(step) {
            return self.next_epoch(fault);
        }
        if self.job.restarts >= RESTARTS_MAX {
            let mut fault = fault;
            fault.message = format!(
                "{}; the job had already started over {RESTARTS_MAX} times",
                fault.message
            );
            return self.fail(fault);
        }
        self.job.restarts += 1;
        self.effects.push(Effect::BeginsAgain {
            fault: fault.clone(),
            restarts: self.job.restarts,
        });
        self.end(Why::Again(fault));
    }

    /// Whether losing the snapshot harms the job in that step. It does not once all parts are committed.
    pub(super) fn needs_snapshot(&self, step: Step) -> bool {
        let copied = step == Step::Copy && self.has_all_parts();
        step.needs_snapshot(self.job.spec.method) && !self.job.attempt.sealed && !copied
    }

    /// Whether every part of the plan is committed.
    fn has_all_parts(&self) -> bool {
        self.job.parts() == Some(self.counted.done.parts)
    }

    pub(super) fn node(&self, work: Work) -> &NodeId {
        work.side().node(&self.job.spec)
    }

    /// Adds the node to a command's fault, and distinguishes a stopped agent from an operator's cancel.
    fn blame(&self, work: Work, mut fault: Fault) -> Fault {
        if fault.kind == FaultKind::Cancelled {
            // The coordinator did not ask for it, so the agent is being stopped, and will be restarted.
            fault.kind = FaultKind::Failed;
            fault.message = format!("an agent was stopped during {}", work.describe());
            fault.retry = Retry::Backoff;
        }
        if fault.node.is_none() {
            fault = fault.on(self.node(work));
        }
        fault
    }

    fn retries_failed(&self, retrying: &Retrying) -> Fault {
        let seconds = (self.now.as_millisecond() - retrying.since.as_millisecond()) / 1000;
        let mut fault = retrying.fault.clone().retry(Retry::Never);
        fault.message = format!(
            "{} has failed for {seconds} s, {} times in a row: {}",
            retrying.work.describe(),
            retrying.tries,
            fault.message
        );
        fault
    }

    pub(super) fn unexpected_answer(&self, work: Work) -> Fault {
        Fault::unexpected_answer(self.node(work))
    }

    pub(super) fn incomplete_plan(&self) -> Fault {
        let (tables, parts) = self
            .job
            .attempt
            .plan
            .map_or((0, 0), |p| (p.tables, p.parts));
        let text = format!(
            "the plan arrived incomplete: {} of {tables} tables, {} of {parts} parts",
            self.counted.tables, self.counted.planned
        );
        Fault::new(FaultKind::Failed, text)
            .on(&self.job.spec.source)
            .hint("the connection to the source's agent broke meanwhile; run init again")
            .retry(Retry::Backoff)
    }

    pub(super) fn stopped(&self) -> Fault {
        self.without_snapshot("the source's agent was stopped")
    }

    pub(super) fn lost_snapshot(&self) -> Fault {
        self.without_snapshot("the source's agent restarted or lost its session to PostgreSQL")
    }

    pub(super) fn session_ended(&self) -> Fault {
        self.without_snapshot("the session that held the snapshot on the source has ended")
    }

    fn without_snapshot(&self, what: &str) -> Fault {
        let text =
            format!("{what}, and the snapshot that the rows were copied under ended with it");
        Fault::new(FaultKind::Failed, text)
            .on(&self.job.spec.source)
            .hint("see the logs of the source and of its agent for why; then run init again")
    }

    pub(super) fn gone(&self, side: Side, step: Step, budget: Duration) -> Fault {
        let text = format!(
            "the agent has been away for {} s while the job needed it for {}",
            budget.as_secs(),
            step.phase()
        );
        Fault::new(FaultKind::Unreachable, text)
            .on(side.node(&self.job.spec))
            .hint("start the agent again")
    }

    pub(super) fn server_gone(&self, side: Side, step: Step, budget: Duration, why: &str) -> Fault {
        let text = format!(
            "PostgreSQL has not answered for {} s while the job needed it for {}: {why}",
            budget.as_secs(),
            step.phase()
        );
        Fault::new(FaultKind::Unreachable, text)
            .on(side.node(&self.job.spec))
            .hint("see whether the server runs, and its log")
    }
}

/// A hint without its advice to run `init` again, which is refused while rows are kept.
fn without_new_run(hint: &str) -> &str {
    let ends = [
        ", then run init again",
        "; then run init again",
        "; run init again",
        "run init again",
    ];
    let end = ends.iter().find_map(|end| hint.strip_suffix(end));
    end.unwrap_or(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hint_does_not_advise_what_is_refused() {
        assert_eq!(without_new_run("fix that, then run init again"), "fix that");
        assert_eq!(
            without_new_run("see its log; then run init again"),
            "see its log"
        );
        assert_eq!(without_new_run("run init again"), "");
        assert_eq!(without_new_run("start the agent"), "start the agent");
    }
}
