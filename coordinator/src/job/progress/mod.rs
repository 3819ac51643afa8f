//! How far a job is, for people: percentages, rates, and when it will be over.
//!
//! Owns what must be remembered between two looks at a job: the smoothed rate, the work of the
//! current phase, and the highest percentage that was shown, so that a corrected estimate never makes
//! a bar go back. Pure: time comes in as a value.

use jiff::Timestamp;
use steep_protocol::message::agent::{WorkProgress, WorkUnit};
use steep_protocol::message::api::{ProgressView, TableState, TableView};
use steep_protocol::message::job::Method;
use steep_protocol::{ByteCount, Fault, NodeId, NodeState, Phase};

use super::tally::{TableTally, Tally};
use super::{Closed, Job, Stage, Why};

/// How fast a rate follows: after this many seconds about two thirds of a change are in it. Long
/// enough that the ends of parts do not show, short enough to see a stall.
const SMOOTHING_SECONDS: f64 = 4.0;

/// Copying is said to be complete when it is, not when an estimate says so.
const ALMOST: f64 = 99.9;

/// The percentage of the whole at which a phase begins and ends.
///
/// Weights are what phases take where rows dominate: most of the time is copying, then building
/// indexes. A phase without anything to do passes its share at once.
#[must_use]
pub fn span(method: Method, phase: Phase) -> (f64, f64) {
    match (method, phase) {
        (_, Phase::Preflight) => (0.0, 1.0),
        (_, Phase::Snapshot) => (1.0, 2.0),
        (_, Phase::Schema) => (2.0, 4.0),
        (Method::Native, Phase::Subscribe) => (4.0, 5.0),
        (Method::Native, Phase::Copy) => (5.0, 93.0),
        (Method::Native, Phase::CatchUp) => (93.0, 100.0),
        (_, Phase::Copy) => (4.0, 74.0),
        (_, Phase::Indexes) => (74.0, 88.0),
        (_, Phase::Constraints) => (88.0, 93.0),
        (_, Phase::Subscribe) => (93.0, 94.0),
        (_, Phase::CatchUp) => (94.0, 98.0),
        (_, Phase::Prove) => (98.0, 100.0),
        (_, Phase::Cleanup) => (0.0, 0.0),
    }
}

/// What is remembered of a job between two looks.
#[derive(Debug, Clone, Default)]
pub struct Meter {
    work: Option<(Phase, WorkProgress)>,
    native_bytes: u64,
    sample: Option<(Timestamp, u64)>,
    /// Seconds that have gone into `rate`.
    sampled: f64,
    rate: f64,
    shown: f64,
}

/// How much of the tables a view has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    /// Those being copied.
    Active,
    /// All of them.
    All,
}

impl Meter {
    /// Takes an agent's word on work that is not counted in parts.
    pub fn report(&mut self, phase: Phase, work: WorkProgress) {
        if phase == Phase::Copy && work.unit == WorkUnit::Bytes {
            self.native_bytes = self.native_bytes.max(work.done);
        }
        self.work = Some((phase, work));
    }

    /// Takes a sample for the rate and moves the percentage on. Call it about once a tick.
    pub fn observe(&mut self, job: &Job, tally: &Tally, now: Timestamp) {
        let phase = current_phase(job);
        if self.work.as_ref().is_some_and(|(p, _)| Some(*p) != phase) {
            self.work = None;
        }
        let moved = self.bytes(tally);
        if phase != Some(Phase::Copy) {
            self.sample = None;
            self.sampled = 0.0;
            self.rate = 0.0;
        } else if let Some((before, bytes)) = self.sample {
            let seconds = (now.as_microsecond() - before.as_microsecond()) as f64 / 1e6;
            if seconds <= 0.0 {
                return;
            }
            let now_rate = moved.saturating_sub(bytes) as f64 / seconds;
            // At first the plain average of what there is; smoothed once there is enough of it.
            self.sampled += seconds;
            let weight = (1.0 - (-seconds / SMOOTHING_SECONDS).exp()).max(seconds / self.sampled);
            self.rate += (now_rate - self.rate) * weight;
            self.sample = Some((now, moved));
        } else {
            self.sample = Some((now, moved));
        }
        self.shown = self.shown.max(self.overall(job, tally));
    }

    /// The percentage that is shown; never less than one shown before.
    #[must_use]
    pub fn overall_percent(&self) -> f64 {
        self.shown
    }

    /// COPY bytes that have moved.
    #[must_use]
    pub fn bytes(&self, tally: &Tally) -> u64 {
        tally.bytes().0.max(self.native_bytes)
    }

    fn overall(&self, job: &Job, tally: &Tally) -> f64 {
        match &job.stage {
            Stage::Working(step) => {
                let (from, to) = span(job.spec.method, step.phase());
                let within = self.phase_percent(job, tally).unwrap_or(0.0);
                from + (to - from) * within / 100.0
            }
            Stage::Closed(Closed::Synchronized) => 100.0,
            Stage::Ending(_) | Stage::Closed(_) => self.shown,
        }
    }

    /// 0 to 100 within the current phase, where it can be told.
    #[must_use]
    pub fn phase_percent(&self, job: &Job, tally: &Tally) -> Option<f64> {
        let phase = current_phase(job)?;
        if phase == Phase::Copy && job.spec.method != Method::Native {
            let wanted = job.plan.map_or(0, |p| p.parts);
            if tally.counted().done.parts == wanted {
                return Some(100.0);
            }
            return Some(percent(tally.bytes().0, tally.expected().0).min(ALMOST));
        }
        let (_, work) = self.work.as_ref().filter(|(p, _)| *p == phase)?;
        Some(percent(work.done, work.total))
    }

    /// Seconds until the phase ends, where it can be told.
    fn eta(&self, job: &Job, tally: &Tally, now: Timestamp) -> Option<u64> {
        let (phase, began) = job.clock.current?;
        if phase == Phase::Copy && job.spec.method != Method::Native {
            if self.rate < 1.0 {
                return None;
            }
            let left = tally.expected() - tally.bytes();
            return Some((left.0 as f64 / self.rate).ceil() as u64);
        }
        let (_, work) = self.work.as_ref().filter(|(p, _)| *p == phase)?;
        if work.done == 0 || work.total <= work.done {
            return None;
        }
        let elapsed = (now.as_millisecond() - began.as_millisecond()).max(0) as f64 / 1e3;
        let left = (work.total - work.done) as f64;
        Some((elapsed * left / work.done as f64).ceil() as u64)
    }

    /// How far the job is.
    #[must_use]
    pub fn view(
        &self,
        job: &Job,
        state: NodeState,
        tally: &Tally,
        detail: Detail,
        now: Timestamp,
    ) -> ProgressView {
        let work = self.work.as_ref().map(|(_, work)| work);
        let (tables_total, tables_completed) = self.tables(job, tally);
        let leading = leading_table(tally);
        let (current_table, current_table_percent) = match leading {
            Some((no, percent)) => (tally.name(no).map(ToString::to_string), Some(percent)),
            None => (work.and_then(|w| w.current.clone()), None),
        };
        let counted = tally.counted().done;
        let bytes_copied = self.bytes(tally);
        let rows_each = if counted.bytes.0 == 0 {
            0.0
        } else {
            counted.rows.0 as f64 / counted.bytes.0 as f64
        };
        let workers = u8::try_from(tally.flight().len()).unwrap_or(u8::MAX);
        ProgressView {
            node_id: job.spec.target.clone(),
            job_id: Some(job.id),
            source_node: Some(job.spec.source.clone()),
            state,
            phase: current_phase(job),
            overall_percent: self.shown,
            phase_percent: self.phase_percent(job, tally),
            tables_total,
            tables_completed,
            current_table,
            current_table_percent,
            rows_copied: counted.rows.0,
            bytes_copied,
            bytes_total: self.bytes_total(job, tally).max(bytes_copied),
            wire_bytes: tally.wire().0,
            // Rows come in whole parts; bytes move all the time and rows move with them.
            throughput_rows_sec: self.rate * rows_each,
            throughput_bytes_sec: self.rate,
            eta_seconds: self.eta(job, tally, now),
            parallel_workers: workers.max(work.map_or(0, |w| w.workers)),
            started_at: Some(job.accepted_at),
            error_message: error_of(job),
            tables: table_views(tally, detail),
        }
    }

    fn bytes_total(&self, job: &Job, tally: &Tally) -> u64 {
        let reported = self
            .work
            .as_ref()
            .filter(|(phase, work)| *phase == Phase::Copy && work.unit == WorkUnit::Bytes);
        match reported {
            Some((_, work)) if job.spec.method == Method::Native => work.total,
            _ => tally.expected().0,
        }
    }

    /// Tables in all and finished. Natively, PostgreSQL's own count stands in for ours.
    #[must_use]
    pub fn tables(&self, job: &Job, tally: &Tally) -> (u64, u64) {
        let total = tally.tables().len() as u64;
        if job.spec.method != Method::Native {
            return (total, u64::from(tally.completed()));
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

/// What the job is doing, while it is doing something.
#[must_use]
pub fn current_phase(job: &Job) -> Option<Phase> {
    job.clock.current.map(|(phase, _)| phase)
}

/// The error as it is told of that node: another node it happened on is named, this one is not.
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
            Why::Cancelled(_) => None,
        },
        Stage::Closed(Closed::Failed(fault)) => Some(told_of(fault, &job.spec.target)),
        Stage::Working(_) | Stage::Closed(Closed::Synchronized | Closed::Cancelled) => None,
    }
}

/// The largest table on its way, and how far it is.
fn leading_table(tally: &Tally) -> Option<(steep_protocol::TableNo, f64)> {
    let tables = tally
        .flight()
        .iter()
        .filter_map(|f| tally.table(tally.table_of(f.part)?));
    let largest = tables.max_by_key(|t| t.summary.bytes_estimate)?;
    let moving = in_flight(tally, largest);
    Some((largest.summary.no, table_percent(tally, largest, moving)))
}

/// Bytes of that table on their way.
fn in_flight(tally: &Tally, table: &TableTally) -> ByteCount {
    let own = |f: &&steep_protocol::message::agent::PartProgress| {
        tally.table_of(f.part) == Some(table.summary.no)
    };
    tally.flight().iter().filter(own).map(|f| f.bytes).sum()
}

fn table_percent(tally: &Tally, table: &TableTally, moving: ByteCount) -> f64 {
    if table.is_complete() {
        return 100.0;
    }
    percent((table.bytes + moving).0, tally.expected_of(table).0).min(ALMOST)
}

fn table_views(tally: &Tally, detail: Detail) -> Vec<TableView> {
    let view = |table: &TableTally| {
        let moving = in_flight(tally, table);
        let begun = table.done > 0
            || tally
                .flight()
                .iter()
                .any(|f| tally.table_of(f.part) == Some(table.summary.no));
        TableView {
            schema: table.summary.name.schema.to_string(),
            table: table.summary.name.table.to_string(),
            rows: table.rows.0,
            bytes: (table.bytes + moving).0,
            state: match (table.is_complete(), begun) {
                (true, _) => TableState::Completed,
                (false, true) => TableState::Copying,
                (false, false) => TableState::Pending,
            },
            percent: table_percent(tally, table, moving),
        }
    };
    match detail {
        Detail::All => tally.tables().iter().map(view).collect(),
        Detail::Active => {
            let mut numbers: Vec<_> = tally
                .flight()
                .iter()
                .filter_map(|f| tally.table_of(f.part))
                .collect();
            numbers.sort_unstable();
            numbers.dedup();
            numbers
                .into_iter()
                .filter_map(|no| tally.table(no))
                .map(view)
                .collect()
        }
    }
}

/// 0 to 100; 0 where there is nothing to compare with.
fn percent(done: u64, total: u64) -> f64 {
    if total == 0 {
        0.0
    } else {
        (done as f64 / total as f64 * 100.0).clamp(0.0, 100.0)
    }
}

#[cfg(test)]
mod tests;
