//! What an operator may change about a job that has begun: when resuming it, or, in part, while it runs.

use steep_protocol::message::adjust::{Adjustment, MaxRate};
use steep_protocol::message::job::{Compression, JobSpec};
use steep_protocol::{ByteCount, Phase};

use super::super::Why;
use super::{Job, Refused, Stage, Step, Turn, Work};

/// The terms of a job. What is copied, and how it is prepared, stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// COPY workers.
    pub parallel: u8,
    /// Seconds from now until the job fails.
    pub timeout_seconds: u64,
    /// COPY bytes a second over all workers.
    pub max_rate: Option<ByteCount>,
    /// Compression on the wire.
    pub compression: Compression,
}

impl Terms {
    /// Those of a job.
    #[must_use]
    pub fn of(spec: &JobSpec) -> Self {
        Self {
            parallel: spec.parallel,
            timeout_seconds: spec.timeout_seconds,
            max_rate: spec.max_rate,
            compression: spec.compression,
        }
    }

    /// These terms but for what changes.
    #[must_use]
    pub fn with(self, change: Adjustment) -> Self {
        Self {
            parallel: change.parallel.unwrap_or(self.parallel),
            max_rate: change.max_rate.map_or(self.max_rate, MaxRate::limit),
            ..self
        }
    }

    /// Makes them those of a job.
    pub(super) fn put_into(self, spec: &mut JobSpec) {
        spec.parallel = self.parallel;
        spec.timeout_seconds = self.timeout_seconds;
        spec.max_rate = self.max_rate;
        spec.compression = self.compression;
    }
}

impl Job {
    /// The phase from which on another number of workers counts: the copy, or the first phase with workers
    /// that has not begun. `None` if there is none.
    #[must_use]
    pub fn workers_count_from(&self) -> Option<Phase> {
        match self.next_step()? {
            step if step <= Step::Copy => Some(Phase::Copy),
            Step::Indexes => Some(Phase::Constraints),
            // ANALYZE runs while the node catches up.
            Step::Constraints | Step::Subscribe if self.follows() => Some(Phase::CatchUp),
            Step::Constraints => Some(Step::Settle.phase()),
            _ => None,
        }
    }

    /// The phase from which on another rate counts. `None` once the rows are copied.
    #[must_use]
    pub fn rate_counts_from(&self) -> Option<Phase> {
        let step = self.next_step()?;
        (step <= Step::Copy).then_some(Phase::Copy)
    }

    /// Whether workers of ours copy its rows.
    #[must_use]
    pub fn copies(&self) -> bool {
        Step::path(self.spec.method).contains(&Step::Copy)
    }

    /// The step of a job that copies, if it runs or is about to start over.
    fn next_step(&self) -> Option<Step> {
        if !self.copies() {
            return None;
        }
        match &self.stage {
            Stage::Working(step) => Some(*step),
            Stage::Ending(ending) => {
                matches!(ending.why, Why::Again(_)).then_some(Step::GatherSource)
            }
            Stage::Kept(_) | Stage::Closed(_) => None,
        }
    }
}

impl Turn {
    /// Takes new terms, all or none. A running copy hears of them at once: its command is sent again, and the
    /// agent takes them from there.
    pub(super) fn adjust(&mut self, change: Adjustment) -> Result<(), Refused> {
        let job = &self.job;
        let workers = change.parallel.is_none() || job.workers_count_from().is_some();
        let rate = change.max_rate.is_none() || job.rate_counts_from().is_some();
        if !workers || !rate {
            return Err(Refused::TooLate);
        }
        let terms = Terms::of(&job.spec).with(change);
        terms.put_into(&mut self.job.spec);
        for running in self.job.running.clone() {
            if running.work == Work::Copy && matches!(self.job.stage, Stage::Working(_)) {
                self.send(running.id, running.work);
            }
        }
        Ok(())
    }
}
