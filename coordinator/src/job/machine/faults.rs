//! What a fault means for a job at work: it tries again, begins again, keeps what it has, or cleans up.
//!
//! One rule. A fault that may pass is waited out within the budget. What an operator must mend fails the
//! job and keeps what it has, where it can go on from there. A lost snapshot begins the job again, since
//! nothing that was read under it can be completed. Only where nothing is worth keeping is it removed at
//! once.

use std::time::Duration;

use steep_protocol::message::job::Method;
use steep_protocol::{Fault, FaultKind, NodeId, Retry};

use super::super::retry::{KEEP_SNAPSHOT, Next, RESTARTS_MAX, Retrying};
use super::super::{Kept, Why};
use super::{
    Effect, Finish, NodeEvent, Presence, STOP_LIMIT, Side, Stage, Step, Turn, Work, after,
};

impl Turn {
    /// A command ended with a fault.
    pub(super) fn faulted(&mut self, step: Step, work: Work, fault: Fault) {
        let source = fault.node.as_ref() == Some(&self.job.spec.source);
        if fault.kind == FaultKind::Cancelled && source && self.loses_by_it(step) {
            // While it is being stopped, its agent still removes what the job made there.
            return self.snapshot_lost(step, self.stopped());
        }
        let fault = self.blame(work, fault);
        match fault.retry {
            Retry::Backoff | Retry::NewConnection => self.try_again(step, work, fault),
            // What the fence says of the slot is final, and without the slot nothing can go on.
            Retry::Never if work == Work::AwaitFence => self.fail(fault),
            // Under the job's snapshot that table can never be read whole.
            Retry::Never if fault.kind == FaultKind::SourceChanged => self.fail(fault),
            Retry::Never => self.give_up(step, fault),
        }
    }

    /// Gives the work again after a pause, unless the budget is used up.
    pub(super) fn try_again(&mut self, step: Step, work: Work, fault: Fault) {
        let at = self.job.retrying.iter().position(|r| r.work == work);
        let before = at.map(|at| self.job.retrying.remove(at));
        let first = before.is_none();
        let (parts, seed) = (self.counted.done.parts, self.job.id.0);
        let retrying = Retrying::after(before, (work, fault.clone()), parts, seed, self.now);
        if after(retrying.since, self.rules.patience.budget(step)) <= self.now {
            return self.give_up(step, self.tried_in_vain(&retrying));
        }
        self.job.retrying.push(retrying);
        if first {
            self.effects.push(Effect::TriesAgain { work, fault });
        }
    }

    /// Gives again what is due.
    pub(super) fn retry_due(&mut self, step: Step) {
        let budget = self.rules.patience.budget(step);
        let over =
            |r: &&Retrying| matches!(r.next, Next::At(_)) && after(r.since, budget) <= self.now;
        if let Some(retrying) = self.job.retrying.iter().find(over) {
            return self.give_up(step, self.tried_in_vain(retrying));
        }
        let now = self.now;
        for at in 0..self.job.retrying.len() {
            let work = self.job.retrying[at].work;
            if self.job.retrying[at].is_due(now) && self.online(work.side()) {
                self.job.retrying[at].next = Next::Running { since: now };
                self.give(work);
            }
        }
    }

    /// What failed for want of that side need not wait any longer.
    pub(super) fn hurry(&mut self, side: Side) {
        let now = self.now;
        let node = side.node(&self.job.spec);
        for retrying in &mut self.job.retrying {
            if retrying.work.side() == side || retrying.fault.node.as_ref() == Some(node) {
                retrying.hurry(now);
            }
        }
    }

    /// Stops the job with that error, and removes what it made.
    pub(super) fn fail(&mut self, fault: Fault) {
        self.end(Why::Failed(fault));
    }

    /// Stops the job with that error, and keeps what it has where it can go on from there.
    pub(super) fn give_up(&mut self, step: Step, mut fault: Fault) {
        let Some(keep) = self.worth_keeping(step) else {
            return self.fail(fault);
        };
        let until = after(self.now, keep);
        let spec = &self.job.spec;
        let kept = match step {
            Step::Copy => "the rows that were copied, the snapshot and the slot are",
            _ => "its rows and the slot are",
        };
        if !fault.hint.is_empty() {
            fault.hint.push_str(". ");
        }
        fault.hint.push_str(&format!(
            "{kept} kept until {until:.0}: mend the cause, then run steep-repl init {} --from {} \
             --resume; steep-repl init cancel --node {} removes everything",
            spec.target, spec.source, spec.target
        ));
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
        self.effects.push(Effect::Node(NodeEvent::Failed));
        self.effects.push(Effect::Finished(Finish::Failed(fault)));
    }

    /// How long what the job has is kept, where it is of any use.
    fn worth_keeping(&self, step: Step) -> Option<Duration> {
        let keep = self.rules.patience.keep_failed?;
        if step.has_rows(self.job.spec.method) {
            return Some(keep);
        }
        let copies = matches!(self.job.spec.method, Method::Snapshot | Method::TwoPhase);
        let holds = self.job.source.presence == Presence::Online;
        if step != Step::Copy || !copies || !holds {
            return None;
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

    /// The snapshot is gone. Where rows are still to be read under it, the job begins again: without
    /// it they could not be completed.
    pub(super) fn snapshot_lost(&mut self, step: Step, fault: Fault) {
        if !self.loses_by_it(step) {
            return;
        }
        if self.job.restarts >= RESTARTS_MAX {
            let mut fault = fault;
            fault.message = format!(
                "{}; the job had begun again {RESTARTS_MAX} times already",
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

    /// Whether the loss of the snapshot costs the job anything in that step. Parts that are all
    /// committed have no more need of it.
    pub(super) fn loses_by_it(&self, step: Step) -> bool {
        let wanted = self.job.attempt.plan.map(|plan| plan.parts);
        let copied = step == Step::Copy && wanted == Some(self.counted.done.parts);
        step.needs_snapshot(self.job.spec.method) && !copied
    }

    pub(super) fn node(&self, work: Work) -> &NodeId {
        work.side().node(&self.job.spec)
    }

    /// A command's error, with its node, and told apart from an operator's cancel.
    fn blame(&self, work: Work, mut fault: Fault) -> Fault {
        if fault.kind == FaultKind::Cancelled {
            // Nobody here asked for it: an agent is being stopped, and is started again.
            fault.kind = FaultKind::Failed;
            fault.message = format!("an agent was stopped during {}", work.describe());
            fault.retry = Retry::Backoff;
        }
        if fault.node.is_none() {
            fault = fault.on(self.node(work));
        }
        fault
    }

    fn tried_in_vain(&self, retrying: &Retrying) -> Fault {
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

    pub(super) fn misunderstood(&self, work: Work) -> Fault {
        let text = format!(
            "the agent gave an answer that does not fit to {}",
            work.describe()
        );
        Fault::new(FaultKind::Failed, text)
            .on(self.node(work))
            .hint("run the same version on the coordinator and on all agents")
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
