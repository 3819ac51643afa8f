//! The progress of a job, for people: percentages, rates and the time left.
//!
//! Owns what must be remembered between two observations of a job: the rate of what the current phase
//! counts (COPY bytes, bytes of tables being indexed, WAL to catch up on), and the highest percentages
//! shown, so that a corrected estimate never moves a bar back. Pure: time comes in as a value.

mod rate;
mod stall;
mod tables;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use steep_protocol::message::agent::{WorkProgress, WorkUnit};
use steep_protocol::message::api::{PhaseTime, ProgressDetail, ProgressSample, ProgressView};
use steep_protocol::message::job::Method;
use steep_protocol::{Fault, NodeId, NodeState, Phase};

use rate::Rate;
use stall::{Sign, Stall};
use tables::{leading_table, table_views};

use super::clock::seconds;
use super::copy_progress::CopyProgress;
use super::{Closed, Job, Stage, Why};

/// The percentage of a copy that is complete only by its estimate.
const ALMOST: f64 = 99.9;

/// The percentage of the whole at which a phase begins and ends.
///
/// The weights are those of a job dominated by rows: most of the time is spent copying, then building
/// indexes. A phase with nothing to do passes its share at once.
#[must_use]
pub fn span(method: Method, phase: Phase) -> (f64, f64) {
    match (method, phase) {
        (Method::Native, Phase::Subscribe) => (4.0, 5.0),
        (Method::Native, Phase::Copy) => (5.0, 93.0),
        (Method::Native, Phase::CatchUp) => (93.0, 99.0),
        (Method::Backup | Method::Merge, Phase::Preflight) => (0.0, 2.0),
        (Method::Merge, Phase::Snapshot) => (2.0, 4.0),
        (Method::Merge, Phase::Schema) => (4.0, 8.0),
        (Method::Backup, Phase::Schema) => (2.0, 8.0),
        (Method::Backup | Method::Merge, Phase::Subscribe) => (8.0, 10.0),
        (Method::Backup | Method::Merge, Phase::CatchUp) => (10.0, 99.0),
        (Method::Native | Method::Backup | Method::Merge, Phase::Prove) => (99.0, 100.0),
        (Method::Drop, Phase::CatchUp) => (0.0, 100.0),
        (Method::Load, Phase::Constraints) => (88.0, 98.0),
        (_, Phase::Preflight) => (0.0, 1.0),
        (_, Phase::Snapshot) => (1.0, 2.0),
        (_, Phase::Schema) => (2.0, 4.0),
        (_, Phase::Copy) => (4.0, 74.0),
        (_, Phase::Indexes) => (74.0, 88.0),
        (_, Phase::Constraints) => (88.0, 93.0),
        (_, Phase::Swap) => (74.0, 93.0),
        (_, Phase::Subscribe) => (93.0, 94.0),
        (_, Phase::CatchUp) => (94.0, 98.0),
        (_, Phase::Prove) => (98.0, 100.0),
        (_, Phase::Cleanup) => (0.0, 0.0),
    }
}

/// What is remembered of a job between two observations.
#[derive(Debug, Clone, Default)]
pub struct Meter {
    work: Option<(Phase, WorkProgress)>,
    native_bytes: u64,
    /// What is being counted, so that a rate never mixes units.
    counting: Option<(Phase, WorkUnit)>,
    rate: Rate,
    wire: Rate,
    shown: f64,
    /// The highest percentage shown for that phase.
    shown_within: Option<(Phase, f64)>,
    retries: Retries,
    stall: Stall,
}

/// Retries of parts, across restarts of the agent that counts them.
#[derive(Debug, Clone, Copy, Default)]
struct Retries {
    before: u64,
    now: u64,
}

/// The progress of a job at some time: what is shown, and what a restarted coordinator needs to count on.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Mark {
    /// What is shown.
    #[serde(flatten)]
    pub sample: ProgressSample,
    /// The sample's retries that earlier processes of the target's agent counted.
    pub retries_before: u64,
}

/// Which tables a view includes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    /// Those being copied.
    Active,
    /// At most [`steep_protocol::limits::TABLES_SHOWN`]: those being copied, then the largest of those to come,
    /// then the largest of those that are done.
    Shown,
    /// All of them.
    All,
}

impl Meter {
    /// Takes an agent's report on work that is not counted in parts.
    pub fn report(&mut self, phase: Phase, work: WorkProgress) {
        if phase == Phase::Copy && work.unit == WorkUnit::Bytes {
            self.native_bytes = self.native_bytes.max(work.done);
        }
        self.stall.heard(&work);
        self.work = Some((phase, work));
    }

    /// Takes a report on background work, which is not shown and only proves that the job moves.
    pub fn report_aside(&mut self, work: &WorkProgress) {
        self.stall.heard_background(work);
    }

    /// Seconds without any movement: no count, no part in flight, no phase has changed.
    #[must_use]
    pub fn seconds_still(&self, now: Timestamp) -> f64 {
        self.stall.seconds(now)
    }

    /// Takes the target's count of retried parts, which starts at zero with each process. Returns whether
    /// it comes from another process than the last one.
    pub fn retried(&mut self, count: u64) -> bool {
        let another = count < self.retries.now;
        if another {
            self.retries.before += self.retries.now;
        }
        self.retries.now = count;
        another
    }

    /// Retries of parts so far.
    #[must_use]
    pub fn retries(&self) -> u64 {
        self.retries.before + self.retries.now
    }

    /// Continues where a stopped coordinator was. The agent's process is taken to be the same, so its counts
    /// go on.
    pub fn resume(&mut self, last: &Mark) {
        let sample = &last.sample;
        self.shown = self.shown.max(sample.overall_percent.clamp(0.0, 100.0));
        self.retries = Retries {
            before: last.retries_before,
            now: sample.retries.saturating_sub(last.retries_before),
        };
        self.native_bytes = self.native_bytes.max(sample.bytes_copied);
    }

    /// The job's progress now, for the store.
    #[must_use]
    pub fn mark(&self, copied: &CopyProgress, now: Timestamp) -> Mark {
        Mark {
            sample: ProgressSample {
                at: now,
                overall_percent: self.shown,
                rows_copied: copied.counted().done.rows.0,
                bytes_copied: self.bytes(copied),
                wire_bytes: copied.wire().0,
                retries: self.retries(),
            },
            retries_before: self.retries.before,
        }
    }

    /// Samples the rates and updates the percentages. Call it about once per tick.
    pub fn observe(&mut self, job: &Job, copied: &CopyProgress, now: Timestamp) {
        let phase = current_phase(job);
        self.stall.observe(Sign::of(job, copied), now);
        if self.work.as_ref().is_some_and(|(p, _)| Some(*p) != phase) {
            self.work = None;
        }
        let counted = self.counted(job, copied);
        let counting = phase.zip(counted.map(|c| c.unit));
        if counting != self.counting {
            self.counting = counting;
            self.rate = Rate::default();
            self.wire = Rate::default();
        }
        if let Some(counted) = counted {
            self.rate.observe(counted.done, now);
        }
        if phase == Some(Phase::Copy) {
            self.wire.observe(copied.wire().0, now);
        }
        if let Some(phase) = phase {
            let percent = self.percent_now(job, copied).unwrap_or(0.0);
            let before = self.shown_within.filter(|(p, _)| *p == phase);
            self.shown_within = Some((phase, before.map_or(percent, |(_, b)| b.max(percent))));
        }
        self.shown = self.shown.max(self.overall(job, copied));
    }

    /// What the current phase counts, with its progress.
    fn counted(&self, job: &Job, copied: &CopyProgress) -> Option<Counting> {
        let phase = current_phase(job)?;
        if phase == Phase::Copy && job.spec.method != Method::Native {
            return Some(Counting {
                unit: WorkUnit::Bytes,
                done: copied.bytes().0,
                total: copied.expected().0,
            });
        }
        let (_, work) = self.work.as_ref().filter(|(p, _)| *p == phase)?;
        Some(Counting {
            unit: work.unit,
            done: work.done,
            total: work.total,
        })
    }

    /// The percentage shown; it never decreases.
    #[must_use]
    pub fn overall_percent(&self) -> f64 {
        self.shown
    }

    /// COPY bytes copied so far.
    #[must_use]
    pub fn bytes(&self, copied: &CopyProgress) -> u64 {
        copied.bytes().0.max(self.native_bytes)
    }

    fn overall(&self, job: &Job, copied: &CopyProgress) -> f64 {
        match &job.stage {
            Stage::Working(step) => {
                let (from, to) = span(job.spec.method, step.phase());
                let within = self.phase_percent(job, copied).unwrap_or(0.0);
                from + (to - from) * within / 100.0
            }
            Stage::Closed(Closed::Synchronized | Closed::Loaded | Closed::Changed) => 100.0,
            Stage::Ending(_) | Stage::Kept(_) | Stage::Closed(_) => self.shown,
        }
    }

    /// 0 to 100 within the current phase, if known; it never decreases.
    #[must_use]
    pub fn phase_percent(&self, job: &Job, copied: &CopyProgress) -> Option<f64> {
        let phase = current_phase(job)?;
        let percent = self.percent_now(job, copied)?;
        let before = self.shown_within.filter(|(p, _)| *p == phase);
        Some(before.map_or(percent, |(_, b)| b.max(percent)))
    }

    fn percent_now(&self, job: &Job, copied: &CopyProgress) -> Option<f64> {
        let counted = self.counted(job, copied)?;
        if current_phase(job) == Some(Phase::Copy) && job.spec.method != Method::Native {
            let wanted = job.parts().unwrap_or(0);
            if copied.counted().done.parts == wanted {
                return Some(100.0);
            }
            return Some(percent(counted.done, counted.total).min(ALMOST));
        }
        Some(percent(counted.done, counted.total))
    }

    /// Seconds until the phase ends, if known.
    fn eta(&self, job: &Job, copied: &CopyProgress) -> Option<u64> {
        let counted = self.counted(job, copied)?;
        // A used-up estimate says nothing about what is left.
        if counted.total <= counted.done {
            return None;
        }
        self.rate.eta(counted.total - counted.done)
    }

    /// COPY bytes a second.
    fn copy_rate(&self) -> f64 {
        match self.counting {
            Some((Phase::Copy, WorkUnit::Bytes)) => self.rate.rate(),
            _ => 0.0,
        }
    }

    fn detail(&self, job: &Job, copied: &CopyProgress, now: Timestamp) -> ProgressDetail {
        let counted = self.counted(job, copied);
        let counted = counted.filter(|c| c.unit == WorkUnit::Bytes);
        // Only bytes that crossed the network have both sizes.
        let (bytes, wire) = (copied.crossed().0, copied.wire().0);
        ProgressDetail {
            throughput_wire_bytes_sec: self.wire.rate(),
            compression_ratio: (wire > 0).then(|| bytes as f64 / wire as f64),
            retries: self.retries(),
            phase_bytes_done: counted.map(|c| c.done),
            phase_bytes_total: counted.map(|c| c.total.max(c.done)),
            phase_bytes_sec: counted.and_then(|_| self.rate.known_rate()),
            phase_times: phase_times(job, now),
            history: Vec::new(),
            locks: Vec::new(),
            waiting: None,
            restarts: job.restarts,
            tables_kept: job.kept.tables,
            spool_percent: None,
            spool_note: None,
        }
    }

    /// The job's progress as shown to people.
    #[must_use]
    pub fn view(
        &self,
        job: &Job,
        state: NodeState,
        copied: &CopyProgress,
        detail: Detail,
        now: Timestamp,
    ) -> ProgressView {
        let work = self.work.as_ref().map(|(_, work)| work);
        let (tables_total, tables_completed) = self.tables(job, copied);
        let leading = leading_table(copied);
        let (current_table, current_table_percent) = match leading {
            Some((no, percent)) => (copied.name(no).map(ToString::to_string), Some(percent)),
            None => (work.and_then(|w| w.current.clone()), None),
        };
        let counted = copied.counted().done;
        let bytes_copied = self.bytes(copied);
        let rows_each = if counted.bytes.0 == 0 {
            0.0
        } else {
            counted.rows.0 as f64 / counted.bytes.0 as f64
        };
        let workers = u8::try_from(copied.flight().len()).unwrap_or(u8::MAX);
        ProgressView {
            node_id: job.spec.target.clone(),
            job_id: Some(job.id),
            source_node: Some(job.spec.source.clone()),
            state,
            phase: current_phase(job),
            overall_percent: self.shown,
            phase_percent: self.phase_percent(job, copied),
            tables_total,
            tables_completed,
            current_table,
            current_table_percent,
            rows_copied: counted.rows.0,
            bytes_copied,
            bytes_total: self.bytes_total(job, copied).max(bytes_copied),
            wire_bytes: copied.wire().0,
            // Rows are counted in whole parts, bytes all the time: derive the row rate from the byte rate.
            throughput_rows_sec: self.copy_rate() * rows_each,
            throughput_bytes_sec: self.copy_rate(),
            eta_seconds: self.eta(job, copied),
            parallel_workers: workers.max(work.map_or(0, |w| w.workers)),
            started_at: Some(job.accepted_at),
            error_message: error_of(job),
            tables: table_views(copied, detail),
            detail: self.detail(job, copied, now),
        }
    }

    fn bytes_total(&self, job: &Job, copied: &CopyProgress) -> u64 {
        let reported = self
            .work
            .as_ref()
            .filter(|(phase, work)| *phase == Phase::Copy && work.unit == WorkUnit::Bytes);
        match reported {
            Some((_, work)) if job.spec.method == Method::Native => work.total,
            _ => copied.expected().0,
        }
    }

    /// All tables and finished tables. Natively these are PostgreSQL's own counts.
    #[must_use]
    pub fn tables(&self, job: &Job, copied: &CopyProgress) -> (u64, u64) {
        let total = u64::from(copied.planned_tables());
        if job.spec.method != Method::Native {
            return (total, u64::from(copied.completed()));
        }
        let items = self
            .work
            .as_ref()
            .filter(|(phase, work)| *phase == Phase::Copy && work.unit == WorkUnit::Items);
        let past_copy = job
            .clock
            .spent
            .iter()
            .any(|(phase, _)| *phase == Phase::Copy);
        match items {
            Some((_, work)) => (work.total, work.done),
            None if past_copy => (total, total),
            None => (total, 0),
        }
    }
}

/// The progress of a phase.
#[derive(Debug, Clone, Copy)]
struct Counting {
    unit: WorkUnit,
    done: u64,
    total: u64,
}

/// The duration of each phase, the current one last.
fn phase_times(job: &Job, now: Timestamp) -> Vec<PhaseTime> {
    let mut times: Vec<(Phase, u64)> = Vec::new();
    let current = job.clock.current.map(|(phase, began)| {
        let millis = (now.as_millisecond() - began.as_millisecond()).max(0);
        (phase, millis.unsigned_abs())
    });
    // A resumed job can have been in a phase twice.
    for (phase, millis) in job.clock.spent.iter().copied().chain(current) {
        match times.iter_mut().find(|(of, _)| *of == phase) {
            Some((_, sum)) => *sum += millis,
            None => times.push((phase, millis)),
        }
    }
    let times = times.into_iter();
    times
        .map(|(phase, millis)| PhaseTime {
            phase,
            seconds: seconds(millis),
        })
        .collect()
}

/// The current phase, while the job is in one.
#[must_use]
pub fn current_phase(job: &Job) -> Option<Phase> {
    job.clock.current.map(|(phase, _)| phase)
}

/// The error as shown for that node: only another node is named in it.
#[must_use]
pub fn told_of(fault: &Fault, node: &NodeId) -> String {
    if fault.node.as_ref() == Some(node) {
        fault.message.clone()
    } else {
        fault.to_string()
    }
}

fn error_of(job: &Job) -> Option<String> {
    match &job.stage {
        Stage::Ending(ending) => match &ending.why {
            Why::Failed(fault) => Some(told_of(fault, &job.spec.target)),
            Why::Again(_) | Why::Cancelled(_) => None,
        },
        Stage::Kept(kept) => Some(told_of(&kept.fault, &job.spec.target)),
        Stage::Closed(Closed::Failed(fault)) => Some(told_of(fault, &job.spec.target)),
        Stage::Working(_)
        | Stage::Closed(
            Closed::Synchronized | Closed::Loaded | Closed::Changed | Closed::Cancelled,
        ) => None,
    }
}

/// 0 to 100; 0 if the total is 0.
fn percent(done: u64, total: u64) -> f64 {
    if total == 0 {
        0.0
    } else {
        (done as f64 / total as f64 * 100.0).clamp(0.0, 100.0)
    }
}

#[cfg(test)]
mod tests;
