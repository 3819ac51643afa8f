//! `init adjust`: other terms for a node's running job.

use jiff::Timestamp;
use steep_protocol::message::adjust::{Adjusted, Adjustment};
use steep_protocol::message::api::ApiReply;
use steep_protocol::{Fault, FaultKind, JobId, NodeId, limits};

use super::log::Note;
use super::{Driver, Ticket};
use crate::job::machine::JobEvent;
use crate::job::progress::current_phase;
use crate::job::{Job, Stage};
use crate::store::Store;

impl<S: Store> Driver<S> {
    /// Changes the terms of a node's running job. Of several orders, the last counts.
    pub(super) fn adjust(
        &mut self,
        node: &NodeId,
        change: Adjustment,
        operator: &str,
        ticket: Ticket,
        now: Timestamp,
    ) -> Result<JobId, Fault> {
        self.known(node)?;
        check(change)?;
        let live = self.live_job(node).and_then(|id| self.jobs.get(&id));
        let Some(live) = live else {
            return Err(self.nothing_runs(node));
        };
        let id = live.job.id;
        if self.step(id, JobEvent::Adjust(change), now).is_err() {
            return Err(match self.jobs.get(&id) {
                Some(live) => self.too_late(&live.job, change),
                None => self.nothing_runs(node),
            });
        }
        let Some(live) = self.jobs.get(&id) else {
            return Err(self.nothing_runs(node));
        };
        let job = &live.job;
        let counts = [
            change.parallel.and(job.workers_count_from()),
            change.max_rate.and(job.rate_counts_from()),
        ];
        let from = counts.into_iter().flatten().next();
        let adjusted = Adjusted {
            job_id: id,
            parallel: job.spec.parallel,
            parallel_workers: self.workers(job),
            max_rate: job.spec.max_rate,
            from_phase: from.filter(|phase| current_phase(job) != Some(*phase)),
        };
        self.log(note(job, &adjusted, operator), now);
        self.answer(ticket, Ok(ApiReply::Adjusted(adjusted).into()));
        Ok(id)
    }

    fn nothing_runs(&self, node: &NodeId) -> Fault {
        let text = format!("no job of it is running: it is {}", self.state_of(node));
        Fault::new(FaultKind::Failed, text)
            .on(node)
            .hint("only a running job can be adjusted; see steep-repl nodes")
    }

    /// Why a job does not take new terms any more.
    fn too_late(&self, job: &Job, change: Adjustment) -> Fault {
        let target = &job.spec.target;
        let phase = current_phase(job).map_or_else(String::new, |phase| format!(" ({phase})"));
        let (text, hint) = match &job.stage {
            Stage::Closed(_) => return self.nothing_runs(target),
            Stage::Kept(_) => (
                "its job has failed".to_owned(),
                format!(
                    "resume it with the new options: steep-repl init {target} --from {} --resume",
                    job.spec.source
                ),
            ),
            Stage::Ending(_) => (
                "its job is being stopped".to_owned(),
                format!("steep-repl status {target} shows when that is done"),
            ),
            Stage::Working(_) if !job.copies() => (
                format!(
                    "no worker of ours copies its rows: the method is {}",
                    job.spec.method.name()
                ),
                "neither --parallel nor --max-rate counts for such a job".to_owned(),
            ),
            Stage::Working(_) if change.max_rate.and(job.workers_count_from()).is_some() => (
                format!("its rows are copied{phase}: --max-rate changes nothing any more"),
                "--parallel alone still counts for what has not begun".to_owned(),
            ),
            Stage::Working(_) => (
                format!(
                    "its rows are copied and its indexes built{phase}: nothing can be changed any more"
                ),
                format!("follow it with steep-repl init progress --node {target} --follow"),
            ),
        };
        Fault::new(FaultKind::Failed, text).on(target).hint(hint)
    }
}

fn check(change: Adjustment) -> Result<(), Fault> {
    let bad = |text: String| Err(Fault::new(FaultKind::BadRequest, text));
    if change.parallel.is_none() && change.max_rate.is_none() {
        return bad("name what changes: --parallel, --max-rate or both".to_owned());
    }
    let allowed = 1..=limits::WORKERS_MAX;
    if change
        .parallel
        .is_some_and(|parallel| !allowed.contains(&parallel))
    {
        return bad(format!("use 1 to {} parallel workers", limits::WORKERS_MAX));
    }
    Ok(())
}

fn note(job: &Job, adjusted: &Adjusted, operator: &str) -> Note {
    let rate = match adjusted.max_rate {
        Some(rate) => format!("at most {} bytes a second", rate.0),
        None => "no limit on the rate".to_owned(),
    };
    let when = match adjusted.from_phase {
        Some(phase) => format!("from the phase {phase} on"),
        None => "at once".to_owned(),
    };
    let text = format!(
        "{} workers, {rate}, {when}, ordered by {operator}",
        adjusted.parallel
    );
    let note = Note::info("init.adjusted", text)
        .job(job)
        .field("operator", operator)
        .field("parallel", adjusted.parallel);
    match adjusted.max_rate {
        Some(rate) => note.field("max_rate", rate.0),
        None => note,
    }
}
