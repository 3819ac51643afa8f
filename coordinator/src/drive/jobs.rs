//! Applies events and agents' reports to jobs.

use std::time::Duration;

use jiff::Timestamp;
use steep_protocol::message::agent::{
    AgentMessage, CoordinatorMessage, PartDone, ProgressReport, TableSummary,
};
use steep_protocol::message::api::{ProgressSample, TableTime};
use steep_protocol::{JobId, NodeId, Phase, TableNo};

use super::log::Note;
use super::{Driver, Live};
use crate::job::copy_progress::{Noted, TableCopy};
use crate::job::machine::{self, JobEvent, Refused};
use crate::job::{Side, Stage, Step, progress};
use crate::store::{NodeRecord, SAMPLES_MAX, Store, TableTimes, Write};

/// Jobs with more tables log the start and end of large tables only.
const TABLE_EVENTS_MAX: usize = 1_000;

/// The estimated bytes of a large table.
const TABLE_EVENTS_BYTES: u64 = 64 * 1024 * 1024;

/// How often a node's mirror row is updated while its job is watched.
const MIRROR_EVERY: Duration = Duration::from_secs(1);

/// How often while it is not. The row says how fresh it is.
const MIRROR_EVERY_CALM: Duration = Duration::from_secs(5);

/// How often a job's progress is stored.
const SAMPLE_EVERY: Duration = Duration::from_secs(10);

impl<S: Store> Driver<S> {
    /// Applies an event to a job and carries out its effects.
    pub(super) fn step(
        &mut self,
        id: JobId,
        event: JobEvent,
        now: Timestamp,
    ) -> Result<(), Refused> {
        let Some(live) = self.jobs.get_mut(&id) else {
            return Ok(());
        };
        let (job, effects) = machine::step(
            live.job.clone(),
            event,
            live.copied.counted(),
            now,
            self.rules,
        )?;
        if job != live.job {
            let replication = job.replication();
            let renamed = (replication != live.job.replication()).then_some(replication);
            live.job = job;
            if let Some(replication) = renamed
                && let Some(record) = self.nodes.get_mut(&live.job.spec.target)
                && record.job == Some(id)
            {
                record.replicates_by(&replication);
                self.out.writes.push(Write::Node(Box::new(record.clone())));
            }
            // Events that the effects log include the job's current progress.
            live.meter.observe(&live.job, &live.copied, now);
            self.out.writes.push(Write::Job(Box::new(live.job.clone())));
            self.touch(id);
        }
        for effect in effects {
            self.execute(id, effect, now);
        }
        Ok(())
    }

    /// [`Driver::step`] for events that no job refuses.
    pub(super) fn advance(&mut self, id: JobId, event: JobEvent, now: Timestamp) {
        if let Err(refused) = self.step(id, event, now) {
            tracing::error!(job_id = %id, error = %refused, "a job refused an event it must take");
        }
    }

    /// A tick of the clock, for one job.
    pub(super) fn tick_job(&mut self, id: JobId, now: Timestamp) {
        self.advance(id, JobEvent::Tick, now);
        let total = self.known_bytes(id);
        let Some(live) = self.jobs.get_mut(&id) else {
            return;
        };
        live.copied.know_total(total);
        live.meter.observe(&live.job, &live.copied, now);
        let active = matches!(live.job.stage, Stage::Working(_)) || live.end.is_none();
        if !active {
            return;
        }
        let every = if live.is_watched(now) {
            MIRROR_EVERY
        } else {
            MIRROR_EVERY_CALM
        };
        let due = beat(live.mirrored, every) != beat(now, every);
        let target = live.job.spec.target.clone();
        if beat(live.sampled, SAMPLE_EVERY) != beat(now, SAMPLE_EVERY) {
            self.sample(id, now);
        }
        self.touch(id);
        if due {
            self.mirror(&target, now);
        }
    }

    /// Stores a job's progress.
    pub(super) fn sample(&mut self, id: JobId, now: Timestamp) {
        let Some(live) = self.jobs.get_mut(&id).filter(|live| live.end.is_none()) else {
            return;
        };
        live.sampled = now;
        let mark = live.meter.mark(&live.copied, now);
        live.history.push(mark.sample);
        thin(&mut live.history);
        self.out.writes.push(Write::Sample { job: id, mark });
    }

    /// Sends a node its mirror row.
    pub(super) fn mirror(&mut self, node: &NodeId, now: Timestamp) {
        let Some(row) = self.mirror_row(node, now) else {
            return;
        };
        let job = self.nodes.get(node).and_then(NodeRecord::newest_job);
        if let Some(live) = job.and_then(|id| self.jobs.get_mut(&id)) {
            live.mirrored = now;
        }
        self.send(node, CoordinatorMessage::Mirror(row));
    }

    /// A page of a plan.
    pub(super) fn on_plan(&mut self, node: &NodeId, id: JobId, tables: Vec<TableSummary>) {
        let Some(live) = self.jobs.get_mut(&id) else {
            return;
        };
        let planner = live.job.planner().side().node(&live.job.spec);
        if planner != node || live.job.stage != Stage::Working(Step::OpenSource) {
            return;
        }
        let tables = live.copied.page_here(tables);
        // The job stops when the totals arrive, since the tables of this page are missing.
        if let Err(misfit) = live.copied.add_page(&tables) {
            tracing::warn!(node_id = %node, job_id = %id, error = %misfit, "a page of the plan does not fit");
            return;
        }
        self.out.writes.push(Write::Plan { job: id, tables });
    }

    /// A progress report.
    pub(super) fn on_progress(&mut self, node: &NodeId, report: ProgressReport, now: Timestamp) {
        let id = report.job;
        let Some(live) = self.jobs.get_mut(&id) else {
            return;
        };
        let Some(side) = live.job.side_of(node) else {
            return;
        };
        if progress::current_phase(&live.job) != Some(report.phase) {
            return;
        }
        if let Some(work) = report.work {
            // While both ends work, the phase's progress is that of replication.
            if report.phase == Phase::CatchUp && side == Side::Target {
                live.meter.report_aside(&work);
            } else {
                live.meter.report(report.phase, work);
            }
        }
        if report.phase != Phase::Copy || side != Side::Target {
            return self.touch(id);
        }
        let another = live.meter.retried(report.retries);
        live.heard = now;
        live.copied.set_flight(&report.active);
        let mut begun: Vec<TableNo> = live
            .copied
            .flight()
            .iter()
            .filter_map(|part| live.copied.table_of(part.part))
            .collect();
        begun.dedup();
        for table in begun {
            self.table_began(id, table, now, now);
        }
        if another {
            // The agent's process was replaced; only this count includes the previous one's retries.
            self.sample(id, now);
        }
        self.touch(id);
    }

    /// Committed parts.
    pub(super) fn on_parts(
        &mut self,
        node: &NodeId,
        id: JobId,
        parts: Vec<PartDone>,
        now: Timestamp,
    ) {
        let Some(live) = self.live_of(id, node, Side::Target) else {
            return;
        };
        // Before that step they are of a snapshot that is lost.
        if !matches!(live.job.stage, Stage::Working(step) if step >= Step::Copy) {
            return;
        }
        // Tables that started and completed since the last report were never reported as active. They
        // may have started right after it.
        let phase = live.job.clock.current.map(|(_, began)| began);
        let since = std::mem::replace(&mut live.heard, now).max(phase.unwrap_or(now));
        let mut new = Vec::with_capacity(parts.len());
        let mut tables = Vec::new();
        for mut part in parts {
            part.part = live.copied.here(part.part);
            match live.copied.note(&part) {
                Ok(Noted::Known) => {}
                Ok(Noted::Part(table)) => {
                    tables.push((table, false));
                    new.push(part);
                }
                Ok(Noted::Table(table)) => {
                    tables.push((table, true));
                    new.push(part);
                }
                Err(misfit) => {
                    tracing::warn!(node_id = %node, job_id = %id, error = %misfit, "a part does not fit");
                }
            }
        }
        if new.is_empty() {
            return;
        }
        self.counters.copied(node, &new);
        self.touch(id);
        self.parts_due.entry(id).or_default().extend(new);
        for (table, complete) in tables {
            self.table_began(id, table, since, now);
            if complete {
                self.table_completed(id, table, now);
            }
        }
    }

    /// The live job, if the node is on that side of it (G7: an agent reports on its own jobs only).
    fn live_of(&mut self, id: JobId, node: &NodeId, side: Side) -> Option<&mut Live> {
        self.jobs
            .get_mut(&id)
            .filter(|live| side.node(&live.job.spec) == node)
    }

    fn table_began(&mut self, id: JobId, table: TableNo, began: Timestamp, now: Timestamp) {
        let Some(live) = self.jobs.get_mut(&id) else {
            return;
        };
        if live.began.contains_key(&table) {
            return;
        }
        live.began.insert(table, began);
        let times = TableTimes {
            no: table,
            began,
            ended: None,
        };
        self.times_due.entry(id).or_default().push(times);
        let Some(copied) = live.copied.table(table).filter(|t| is_logged(live, t)) else {
            return;
        };
        let name = copied.summary.name.to_string();
        let note = Note::info("init.table_started", format!("copying {name}"))
            .job(&live.job)
            .field("table", name);
        self.log(note, now);
    }

    fn table_completed(&mut self, id: JobId, table: TableNo, now: Timestamp) {
        let Some(live) = self.jobs.get_mut(&id) else {
            return;
        };
        let began = live.began.remove(&table).unwrap_or(now);
        let times = TableTimes {
            no: table,
            began,
            ended: Some(now),
        };
        self.times_due.entry(id).or_default().push(times);
        let millis = (now.as_millisecond() - began.as_millisecond()).max(0);
        let Some(copied) = live.copied.table(table) else {
            return;
        };
        live.slowest.note(table_time(copied, began, now));
        if !is_logged(live, copied) {
            return;
        }
        let name = copied.summary.name.to_string();
        let text = format!("{name} is complete: {} rows", copied.rows.0);
        let note = Note::info("init.table_complete", text)
            .job(&live.job)
            .field("table", name)
            .field("rows_copied", copied.rows.0)
            .field("bytes_copied", copied.bytes.0)
            .field("duration_ms", millis);
        self.log(note, now);
    }

    /// An agent's message about a job.
    pub(super) fn on_job_message(&mut self, node: &NodeId, message: AgentMessage, now: Timestamp) {
        match message {
            AgentMessage::PlanPage { job, tables } => self.on_plan(node, job, tables),
            AgentMessage::Progress(report) if self.is_snapshot(report.job) => {
                self.on_snapshot_progress(node, report.job, report.work);
            }
            AgentMessage::Progress(report) if self.is_asking(report.job) => {
                self.verify_progress(node, report.job, report.work, now);
            }
            AgentMessage::Progress(report) => self.on_progress(node, report, now),
            AgentMessage::PartsDone { job, parts } => self.on_parts(node, job, parts, now),
            AgentMessage::TableCompared { job, report } => {
                self.table_compared(node, job, *report, now);
            }
            AgentMessage::Finished { command, outcome } => {
                self.on_finished(node, command, outcome, now);
            }
            // Not about jobs; handled by `on_said`.
            AgentMessage::Register(_)
            | AgentMessage::Observed(_)
            | AgentMessage::Audited { .. }
            | AgentMessage::Prepared(_)
            | AgentMessage::Lineage(_)
            | AgentMessage::Recorded(_)
            | AgentMessage::SlotExpired { .. } => {}
        }
    }
}

/// The duration and size of a completed table.
pub(super) fn table_time(table: &TableCopy, began: Timestamp, ended: Timestamp) -> TableTime {
    let millis = (ended.as_millisecond() - began.as_millisecond()).max(0);
    TableTime {
        schema: table.summary.name.schema.to_string(),
        table: table.summary.name.table.to_string(),
        rows: table.rows.0,
        bytes: table.bytes.0,
        seconds: millis as f64 / 1e3,
    }
}

/// The number of the current period. All jobs change periods in the same turn, so that their samples
/// are one write and their mirror rows wake agents together.
pub(super) fn beat(now: Timestamp, every: Duration) -> i128 {
    now.as_nanosecond()
        .div_euclid(every.as_nanos().cast_signed())
}

/// Drops every second sample of the older half if there are too many, as the store does.
fn thin(history: &mut Vec<ProgressSample>) {
    if history.len() > SAMPLES_MAX {
        let mut place = 0;
        history.retain(|_| {
            place += 1;
            place > SAMPLES_MAX / 2 || place % 2 == 1
        });
    }
}

/// Whether a table's start and end are logged.
fn is_logged(live: &Live, table: &TableCopy) -> bool {
    live.copied.tables().len() <= TABLE_EVENTS_MAX
        || table.summary.bytes_estimate.0 >= TABLE_EVENTS_BYTES
}

/// A note that small tables are not logged, if so.
pub(super) fn table_events(live: &Live) -> Option<String> {
    let tables = live.copied.tables().len();
    (tables > TABLE_EVENTS_MAX).then(|| {
        format!(
            "; of {tables} tables only those of {} MiB and more are logged one by one",
            TABLE_EVENTS_BYTES / (1024 * 1024)
        )
    })
}
