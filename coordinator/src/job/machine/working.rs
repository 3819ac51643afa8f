//! A running job, from its first command to its success.

use steep_protocol::message::agent::Outcome;
use steep_protocol::message::facts::{Finding, Severity, TargetFacts};
use steep_protocol::message::job::{CancelledData, SchemaMode};
use steep_protocol::{Fault, FaultKind};

use super::super::change::Joining;
use super::super::preflight::{NO_ROOM, origin, spooling};
use super::super::{Plan, Spooling, WARNINGS_MAX, Why, Witness};
use super::epochs::is_over;
use super::{
    Case, Closed, Effect, Finish, JobEvent, NodeEvent, PARTS_PER_COPY, Parting, RECOUNTS_MAX,
    Refused, Residue, Return, Side, Stage, Step, Totals, Turn, Work,
};

/// Most problems named in the error of a failed preflight; the findings have all of them.
const NAMED_MAX: usize = 3;

impl Turn {
    /// Handles an event of a running job.
    pub(super) fn working(&mut self, step: Step, event: JobEvent) -> Result<(), Refused> {
        match event {
            JobEvent::Begin => {
                if self.job.commands_issued > 0 {
                    return Err(Refused::Begun);
                }
                let begins = match self.job.change {
                    Some(_) => NodeEvent::Redo,
                    None => NodeEvent::Begin,
                };
                self.effects.push(Effect::Node(begins));
                let method = self.job.spec.method;
                for passed in Step::path(method).iter().take_while(|s| **s != step) {
                    for event in passed.brings(method) {
                        self.bring(*event);
                    }
                }
                if self.job.recalled.is_some() {
                    // The source's agent may have restarted since it admitted the target.
                    self.issue(Work::Regrant);
                }
                self.enter(step);
            }
            JobEvent::Ended { id, outcome } => {
                if let Some(work) = self.take(id) {
                    match *outcome {
                        Ok(outcome) => self.answered(step, work, outcome),
                        Err(fault) => self.faulted(step, work, fault),
                    }
                }
            }
            JobEvent::Up {
                side,
                incarnation,
                snapshot,
            } => self.came_back(step, side, incarnation, snapshot),
            JobEvent::Down {
                side,
                since,
                parting,
            } => {
                self.left(side, since);
                if side == Side::Source && parting == Parting::Stopped && step != Step::OpenSource {
                    self.snapshot_lost(step, self.stopped());
                }
            }
            JobEvent::Server { side, answers } => {
                if self.saw_server(side, answers) == Return::Now {
                    self.hurry();
                }
            }
            // Until another one is open, agents report the one before, which the job has given up.
            JobEvent::SnapshotLost if step == Step::OpenSource && !self.next_is_open(step) => {}
            JobEvent::SnapshotLost => self.snapshot_lost(step, self.session_ended()),
            JobEvent::SnapshotReplaced => self.snapshot_lost(step, self.lost_snapshot()),
            JobEvent::Sealed => self.job.attempt.sealed = true,
            JobEvent::SpoolLost { fault } => {
                self.job.attempt.sealed = false;
                self.snapshot_lost(step, fault);
            }
            JobEvent::Cancel { .. } if step == Step::Leave => return Err(Refused::Leaving),
            JobEvent::Cancel { .. } if self.only_goes_on() => return Err(Refused::Swapping),
            JobEvent::Cancel { data } => self.end(Why::Cancelled(data)),
            JobEvent::Endangered { side, fault } => match side {
                // The slot is lost or harms the source: nothing can be resumed.
                Side::Source => self.fail(fault),
                Side::Target => self.give_up(step, fault),
            },
            JobEvent::GiveUp if self.only_goes_on() => {
                self.end(Why::Cancelled(CancelledData::Remove));
            }
            // Only an ending job has something to give up.
            JobEvent::GiveUp => {}
            JobEvent::Resume { .. } => return Err(Refused::NothingKept),
            JobEvent::Adjust(change) => self.adjust(change)?,
            JobEvent::Merge(news) => self.merged(step, news),
            JobEvent::Tick => self.check_limits(step),
        }
        Ok(())
    }

    /// Starts a step.
    pub(super) fn enter(&mut self, step: Step) {
        self.job.stage = Stage::Working(step);
        self.phase(step.phase());
        if step == Step::Fold && self.job.earlier.is_empty() {
            return self.leave(step);
        }
        if step == Step::Join && (self.job.joining() == Joining::Done || self.job.replaces()) {
            return self.leave(step);
        }
        self.job.attempt.released |= step == Step::Release;
        let carried = self.job.carried();
        for work in step.begins(self.job.spec.method) {
            if *work == Work::Finish && step == Step::Converge && self.unites() {
                continue;
            }
            // A restarted agent no longer knows what it sent; of a carried snapshot it has sent nothing.
            let witness = carried.is_none() && self.job.attempt.witness != Witness::Restarted;
            if *work != Work::ProveSource || witness {
                self.issue(*work);
            }
        }
        if step == Step::OpenSource && carried.is_some() {
            self.issue(Work::OpenCarried);
        }
    }

    /// Takes a command's outcome, and moves on if the step is complete.
    fn answered(&mut self, step: Step, work: Work, outcome: Outcome) {
        let counted = self.counted;
        if is_over(step, work) {
            return self.advance(step);
        }
        self.job.retrying.retain(|r| r.work != work);
        match (work, outcome) {
            (Work::GatherSource, Outcome::SourceFacts(facts)) => {
                self.job.preflight.source = Some(facts);
            }
            (Work::GatherTarget, Outcome::TargetFacts(facts)) => return self.judge(&facts),
            (planner, Outcome::SourceOpened { lsn, tables, parts })
                if planner == self.job.planner() =>
            {
                // The source has counted a carried snapshot when it was made.
                self.job.attempt.proved_source = self.job.carried();
                let plan = Plan { lsn, tables, parts };
                if self.job.adopted.is_some_and(|adopted| adopted != plan) {
                    return self.snapshot_lost(step, self.lost_snapshot());
                }
                self.job.attempt.plan = Some(plan);
                let kept = self.job.kept;
                let whole = (tables + kept.tables, parts + kept.sum.parts);
                if (counted.tables, counted.planned) != whole {
                    let fault = self.incomplete_plan();
                    return self.try_again(step, work, fault);
                }
                if parts > PARTS_PER_COPY {
                    let text =
                        format!("the plan has {parts} parts, over the limit of {PARTS_PER_COPY}");
                    return self.fail(Fault::new(FaultKind::Failed, text).on(self.node(work)));
                }
            }
            (Work::ProveTarget, Outcome::Totals { parts, rows, bytes }) => {
                self.job.attempt.proved_target = Some(Totals { parts, rows, bytes });
            }
            (Work::ProveSource, Outcome::Totals { parts, rows, bytes }) => {
                self.job.attempt.proved_source = Some(Totals { parts, rows, bytes });
            }
            (Work::Subscribe, Outcome::Subscribed { sync_slots }) => {
                self.job.attempt.sync_slots = Some(sync_slots);
            }
            (Work::Finish, Outcome::Finished { findings, missing }) => {
                self.warn(findings);
                self.warn(missing.findings.clone());
                self.effects.push(Effect::Missing(missing));
            }
            (Work::Regrant, _) if self.changes(step) => return,
            (Work::Regrant, _) => {}
            (Work::Join, Outcome::Done) => {
                self.joined(Joining::Done);
                return self.enter(Step::Converge);
            }
            (Work::Fold, Outcome::Done) => {
                self.folded();
                return self.enter(Step::Converge);
            }
            (Work::AwaitFence, Outcome::FencePassed { .. }) => self.fence_passed(step),
            (_, Outcome::Warned(findings)) => self.warn(findings),
            (_, Outcome::Done | Outcome::FencePassed { .. } | Outcome::Totals { .. }) => {}
            (
                _,
                Outcome::SourceFacts(_)
                | Outcome::TargetFacts(_)
                | Outcome::SourceOpened { .. }
                | Outcome::SchemaPage { .. }
                | Outcome::Captured { .. }
                | Outcome::Reviewed(_)
                | Outcome::SlotPrepared(_)
                | Outcome::Subscribed { .. }
                | Outcome::Finished { .. }
                | Outcome::Rebuilt(_)
                | Outcome::Sealed(_)
                | Outcome::Verified(_)
                | Outcome::Found(_)
                | Outcome::SequencesRaised(_)
                | Outcome::SwitchoverFacts(_)
                | Outcome::WritesStopped(_)
                | Outcome::WriteState(_)
                | Outcome::Compared(_)
                | Outcome::Listed(_)
                | Outcome::Repaired(_)
                | Outcome::Sequences(_)
                | Outcome::SequencesPassed(_),
            ) => return self.fail(self.unexpected_answer(work)),
        }
        if self.missing(work) {
            return self.fail(self.unexpected_answer(work));
        }
        self.advance(step);
    }

    /// Whether the command's outcome lacks what the next step needs.
    fn missing(&self, work: Work) -> bool {
        match work {
            Work::GatherSource => match &self.job.preflight.source {
                Some(facts) => self.job.starts_from().is_some() && facts.slot.is_none(),
                None => true,
            },
            Work::OpenSource | Work::OpenCarried => {
                work == self.job.planner() && self.job.attempt.plan.is_none()
            }
            Work::ProveTarget => self.job.attempt.proved_target.is_none(),
            Work::ProveSource => self.job.attempt.proved_source.is_none(),
            Work::GatherTarget => true,
            _ => false,
        }
    }

    /// Moves on if every command of this step has ended.
    pub(super) fn advance(&mut self, step: Step) {
        let holds_up = |work: Work| match step {
            // Closing the snapshot may go on while indexes and constraints are built.
            Step::Indexes => work == Work::BuildIndexes,
            _ => work != Work::Regrant,
        };
        let running = self.job.running.iter().any(|r| holds_up(r.work));
        if running || self.job.retrying.iter().any(|r| holds_up(r.work)) {
            return;
        }
        match step {
            Step::Copy => self.copied(),
            Step::Prove | Step::ProveCopy => self.prove(step),
            // Only the other node's job, and a proof, lead on from there.
            Step::Apart | Step::Merge => {}
            _ => self.leave(step),
        }
    }

    /// Completes a step: starts the next one, or has succeeded.
    pub(super) fn leave(&mut self, step: Step) {
        let method = self.job.spec.method;
        for event in step.brings(method) {
            self.bring(*event);
        }
        match step.next(method) {
            Some(next) => self.enter(next),
            None => self.succeeded(),
        }
    }

    /// Judges the facts of both ends.
    fn judge(&mut self, target: &TargetFacts) {
        let Some(source) = self.job.preflight.source.take() else {
            return self.fail(self.unexpected_answer(Work::GatherSource));
        };
        let around = std::mem::take(&mut self.job.preflight.around);
        let handover = self.job.starts_from();
        let case = Case {
            spec: &self.job.spec,
            source: &source,
            target,
            handover: handover.as_ref().zip(source.slot.as_ref()),
            stored: self.job.stored.as_ref(),
            around: &around,
        };
        let mut findings = (self.rules.judge)(&case);
        let origin = origin(&case);
        // The room was taken by the snapshot that it has joined.
        let joined = self.job.spooling == Spooling::Joined;
        let changes = self.job.change.is_some();
        findings.retain(|finding| !joined && !changes || finding.code != NO_ROOM);
        let spooling = match joined {
            true => Spooling::Joined,
            false if changes => Spooling::Live,
            false => spooling(&case),
        };
        let errors: Vec<&Finding> = findings
            .iter()
            .filter(|f| f.severity == Severity::Error)
            .collect();
        let fault = (!errors.is_empty()).then(|| self.preflight_fault(&errors));
        self.job.origin = origin;
        self.job.spooling = spooling;
        self.warn(findings);
        match fault {
            Some(fault) => self.fail(fault),
            None => self.leave(Step::GatherTarget),
        }
    }

    /// The error of a preflight with these findings.
    fn preflight_fault(&self, errors: &[&Finding]) -> Fault {
        // Strict mode promises this error for any difference, whatever else was found.
        let schema = self.job.spec.schema_mode == SchemaMode::Strict
            && errors.iter().any(|f| f.code == "schema_mismatch");
        let link = errors
            .iter()
            .all(|f| matches!(f.code.as_str(), "agent_link" | "server_link"));
        let kind = match (schema, link) {
            (true, _) => FaultKind::SchemaMismatch,
            (_, true) => FaultKind::Unreachable,
            _ => FaultKind::Failed,
        };
        let mut what: Vec<&str> = errors
            .iter()
            .take(NAMED_MAX)
            .map(|f| f.what.as_str())
            .collect();
        let rest = format!("and {} more", errors.len().saturating_sub(NAMED_MAX));
        if errors.len() > NAMED_MAX {
            what.push(&rest);
        }
        let text = format!("preflight stopped the job: {}", what.join("; "));
        let fix = errors.first().map_or("", |f| f.fix.as_str());
        let node = errors
            .first()
            .and_then(|f| f.node.as_ref())
            .unwrap_or(&self.job.spec.target);
        Fault::new(kind, text)
            .on(node)
            .hint(format!("nothing was changed; {fix}"))
    }

    /// Keeps findings with the job, up to the limit, and announces all of them.
    pub(super) fn warn(&mut self, findings: Vec<Finding>) {
        if findings.is_empty() {
            return;
        }
        let room = WARNINGS_MAX.saturating_sub(self.job.warnings.len());
        self.job
            .warnings
            .extend(findings.iter().take(room).cloned());
        self.effects.push(Effect::Found(findings));
    }

    /// Copy ended. If parts are missing, their messages were lost with a session; when Copy is issued
    /// again, the agent finds them in the ledger and reports them again.
    fn copied(&mut self) {
        let counted = self.counted;
        let wanted = self.job.parts().unwrap_or(0);
        if counted.done.parts == wanted {
            return self.leave(Step::Copy);
        }
        if self.job.attempt.recounts < RECOUNTS_MAX {
            self.job.attempt.recounts += 1;
            return self.issue(Work::Copy);
        }
        let text = format!(
            "the copy ended with {} of {wanted} parts accounted for",
            counted.done.parts
        );
        self.fail(Fault::new(FaultKind::Failed, text).on(&self.job.spec.target));
    }

    /// Compares the plan, the ledger, the source and our own sums (G4).
    fn prove(&mut self, step: Step) {
        let counted = self.counted;
        let plan = self.job.parts().unwrap_or(0);
        // Of earlier epochs each part was compared when it was committed, and their source's count is gone.
        let kept = self.job.kept.sum;
        let sent = self.job.attempt.proved_source.map(|sent| sent + kept);
        let sums = [
            ("the ledger on the target", self.job.attempt.proved_target),
            ("the source's count of what it sent", sent),
        ];
        for (name, sum) in sums {
            let Some(sum) = sum else { continue };
            if sum != counted.done || sum.parts != plan {
                let text = format!(
                    "the copy is not proved: {name} has {} parts, {} rows, {} bytes; the \
                     coordinator counted {} of {plan} parts, {} rows, {} bytes",
                    sum.parts,
                    sum.rows.0,
                    sum.bytes.0,
                    counted.done.parts,
                    counted.done.rows.0,
                    counted.done.bytes.0
                );
                let fault = Fault::new(FaultKind::Failed, text)
                    .on(&self.job.spec.target)
                    .hint("what was copied has been removed; run init again and report this");
                return self.fail(fault);
            }
        }
        self.leave(step);
    }

    fn succeeded(&mut self) {
        // Its result does not matter: it revokes a permission, which an offline agent has lost with its
        // process, or revokes when it is back.
        self.issue(Work::ReleaseSource);
        self.stop_phase();
        let replaces = self.job.replaces();
        if replaces {
            // From now on it is its node's job, like any that has made one.
            self.job.change = None;
        }
        let (event, finish, closed) = match self.job.follows() {
            _ if replaces => (NodeEvent::Proved, Finish::Changed, Closed::Synchronized),
            _ if self.job.change.is_some() => {
                (NodeEvent::Returned, Finish::Changed, Closed::Changed)
            }
            true => (
                NodeEvent::Proved,
                Finish::Synchronized,
                Closed::Synchronized,
            ),
            false => (NodeEvent::Loaded, Finish::Loaded, Closed::Loaded),
        };
        self.effects.push(Effect::Node(event));
        self.effects.push(Effect::Finished(finish));
        self.close(closed);
    }

    /// Undoes the job of a synchronized node. One that is detached keeps its state until that is done.
    pub(super) fn undo(&mut self, data: CancelledData) {
        self.job.source.residue = Residue::Objects;
        self.job.target.residue = Residue::Objects;
        if data != CancelledData::Detach {
            self.effects.push(Effect::Node(NodeEvent::Failed));
        }
        self.begin_undo(data);
    }
}
