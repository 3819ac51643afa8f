//! Resumes failed jobs that have kept their rows and slot, and resets the counts of jobs that restart by
//! themselves.

use jiff::Timestamp;
use steep_protocol::message::api::EndView;
use steep_protocol::message::facts::Finding;
use steep_protocol::message::job::JobSpec;
use steep_protocol::{Fault, FaultKind, JobId, NodeId, NodeState, Retry};

use super::Driver;
use super::log::Note;
use crate::job::copy_progress::CopyProgress;
use crate::job::health::JobHealth;
use crate::job::machine::{JobEvent, Refused, Terms};
use crate::job::preflight::resumed;
use crate::job::progress::Meter;
use crate::job::report::Slowest;
use crate::job::retry::RESTARTS_MAX;
use crate::job::{Job, Stage, Work};
use crate::store::{Store, TableSum, Write};

impl<S: Store> Driver<S> {
    /// Resumes the failed jobs of all targets, or of none.
    pub(super) fn resume_failed(
        &mut self,
        specs: &[JobSpec],
        operator: &str,
        now: Timestamp,
    ) -> Result<Vec<JobId>, Fault> {
        let mut ids = Vec::new();
        for spec in specs {
            ids.push(self.check_resume(spec)?);
        }
        for (id, spec) in ids.iter().zip(specs) {
            if let Some(live) = self.jobs.get(id) {
                let target = &spec.target;
                let text = format!("{target} resumes its failed job, ordered by {operator}");
                let note = Note::info("init.resumed", text).job(&live.job);
                self.log(note.field("operator", operator), now);
            }
            let terms = Terms::of(spec);
            let stepped = self.step(*id, JobEvent::Resume { terms }, now);
            stepped.map_err(|refused| self.refused(&spec.target, refused))?;
        }
        Ok(ids)
    }

    /// The preflight of a resume: what it keeps and what it reads again.
    pub(super) fn what_is_kept(&self, spec: &JobSpec) -> Result<Vec<Finding>, Fault> {
        let live = self.jobs.get(&self.check_resume(spec)?);
        let found = live.and_then(|live| match &live.job.stage {
            Stage::Kept(kept) => Some(resumed(&live.job, kept, &live.copied)),
            Stage::Working(_) | Stage::Ending(_) | Stage::Closed(_) => None,
        });
        Ok(found.into_iter().collect())
    }

    /// The job to resume, if that is allowed.
    pub(super) fn check_resume(&self, spec: &JobSpec) -> Result<JobId, Fault> {
        let (target, source) = (&spec.target, &spec.source);
        let live = self.live_job(target).and_then(|id| self.jobs.get(&id));
        let Some(live) = live.filter(|live| matches!(live.job.stage, Stage::Kept(_))) else {
            return Err(self.refused(target, Refused::NothingKept));
        };
        if live.job.spec.source != *source {
            let text = format!(
                "its failed job has rows of {}, not of {source}",
                live.job.spec.source
            );
            let hint = format!(
                "name --from {}, or remove the job with steep-repl init cancel --node {target}",
                live.job.spec.source
            );
            return Err(Fault::new(FaultKind::BadRequest, text)
                .on(target)
                .hint(hint));
        }
        if !live.job.running.is_empty() {
            return Err(self.refused(target, Refused::Stopping));
        }
        self.check_online(source)?;
        self.check_online(target)?;
        Ok(live.job.id)
    }

    fn refused(&self, target: &NodeId, refused: Refused) -> Fault {
        let fault = |text: String| Fault::new(FaultKind::Failed, text).on(target);
        match refused {
            Refused::Stopping => fault(refused.to_string())
                .hint("try again in a few seconds")
                .retry(Retry::Backoff),
            Refused::NothingKept
            | Refused::Over
            | Refused::Begun
            | Refused::Leaving
            | Refused::Swapping
            | Refused::TooLate => {
                let state = self.state_of(target);
                let hint = match state {
                    NodeState::Failed => {
                        "what the failed job created is removed or being removed: run init without \
                         --resume"
                    }
                    _ => "only a failed job can be resumed; see steep-repl nodes",
                };
                fault(format!("there is nothing to resume: it is {state}")).hint(hint)
            }
        }
    }

    /// Refuses a plain init of a target whose failed job has kept something.
    pub(super) fn check_kept(&self, target: &NodeId) -> Result<(), Fault> {
        let live = self.live_job(target).and_then(|id| self.jobs.get(&id));
        let Some((job, until)) = live.and_then(|l| Some((&l.job, l.job.kept_until()?))) else {
            return Ok(());
        };
        let text = format!(
            "its failed job {} has kept its rows and slot, until {until:.0}",
            job.id
        );
        let hint = format!(
            "resume it with steep-repl init {target} --from {} --resume, or remove it with steep-repl \
             init cancel --node {target}",
            job.spec.source
        );
        Err(Fault::new(FaultKind::Failed, text).on(target).hint(hint))
    }

    /// Logs that work failed and is retried.
    pub(super) fn tries_again(&mut self, id: JobId, work: Work, fault: &Fault, now: Timestamp) {
        let Some(live) = self.jobs.get(&id) else {
            return;
        };
        let text = format!("{} failed and is retried: {fault}", work.describe());
        let note = Note::warn("init.retrying", text).job(&live.job);
        self.log(note.field("hint", &fault.hint), now);
    }

    /// Logs that the job restarts.
    pub(super) fn begins_again(&mut self, id: JobId, fault: &Fault, restarts: u8, now: Timestamp) {
        let Some(live) = self.jobs.get(&id) else {
            return;
        };
        let text = format!(
            "the job removes what it copied and starts again (restart {restarts} of at most \
             {RESTARTS_MAX}): {fault}"
        );
        let note = Note::warn("init.restarted", text).job(&live.job);
        self.log(note, now);
    }

    /// Drops a job's plan, if any, and its counts.
    pub(super) fn drop_plan(&mut self, id: JobId, now: Timestamp) {
        let Some(live) = self.jobs.get_mut(&id) else {
            return;
        };
        // What earlier epochs have copied stays.
        let kept = live.job.kept.tables;
        if live.copied.planned_tables() == kept {
            return;
        }
        if kept > 0 {
            live.copied.drop_plan();
        } else {
            live.copied = CopyProgress::default();
            live.meter = Meter::default();
            live.slowest = Slowest::default();
        }
        live.meter.observe(&live.job, &live.copied, now);
        live.began.clear();
        self.parts_due.remove(&id);
        self.times_due.remove(&id);
        let kept = self.kept_tables(id);
        self.out.writes.push(Write::PlanDropped { job: id, kept });
        self.touch(id);
    }

    /// A failed job is resumed.
    pub(super) fn resumed(&mut self, id: JobId) {
        if let Some(live) = self.jobs.get_mut(&id) {
            live.end = None;
            live.complaints.clear();
            // Suspicions from before the failure no longer count.
            live.health = JobHealth::default();
            self.out.writes.push(Write::Reopen { job: id });
        }
    }

    /// What a failed job kept is being removed, so its report is final.
    pub(super) fn keep_ends(&mut self, id: JobId, why: &str, now: Timestamp) {
        let Some(live) = self.jobs.get(&id) else {
            return;
        };
        let text = format!("what the failed job had kept is removed: {why}");
        let note = Note::warn("init.keep_ended", text).job(&live.job);
        if let Some(end) = &live.end {
            let mut end = end.as_ref().clone();
            end.report.kept_until = None;
            self.out.writes.push(Write::Seal {
                end: Box::new(end),
                tables: live.table_sums(),
            });
        }
        self.log(note, now);
    }

    /// The write of a job's end. A kept job may be resumed, so its parts stay.
    pub(super) fn end_write(job: &Job, end: Box<EndView>, tables: Vec<TableSum>) -> Write {
        match job.stage {
            Stage::Kept(_) => Write::Pause { end },
            Stage::Working(_) | Stage::Ending(_) | Stage::Closed(_) => Write::Seal { end, tables },
        }
    }
}
