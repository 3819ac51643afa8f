//! Events. Each goes to the store and to the process's log, with names and fields of docs/logs.md.

use std::fmt::Display;

use jiff::Timestamp;
use steep_protocol::message::api::EventView;
use steep_protocol::{JobId, NodeId, Phase};

use super::{Driver, Live};
use crate::job::Job;
use crate::job::progress::current_phase;
use crate::store::{Store, Write};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Level {
    Info,
    Warn,
    Error,
}

impl Level {
    fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
        }
    }
}

/// An event.
#[derive(Debug, Clone)]
pub(super) struct Note {
    level: Level,
    event: &'static str,
    message: String,
    node: Option<NodeId>,
    source: Option<NodeId>,
    job: Option<JobId>,
    fields: Vec<(&'static str, String)>,
}

impl Note {
    pub(super) fn new(level: Level, event: &'static str, message: impl Into<String>) -> Self {
        Self {
            level,
            event,
            message: message.into(),
            node: None,
            source: None,
            job: None,
            fields: Vec::new(),
        }
    }

    pub(super) fn info(event: &'static str, message: impl Into<String>) -> Self {
        Self::new(Level::Info, event, message)
    }

    pub(super) fn warn(event: &'static str, message: impl Into<String>) -> Self {
        Self::new(Level::Warn, event, message)
    }

    /// Replaces the message.
    pub(super) fn text(mut self, message: String) -> Self {
        self.message = message;
        self
    }

    pub(super) fn node(mut self, node: &NodeId) -> Self {
        self.node = Some(node.clone());
        self
    }

    /// Sets node, source and id of the job.
    pub(super) fn job(mut self, job: &Job) -> Self {
        self.node = Some(job.spec.target.clone());
        self.source = Some(job.spec.source.clone());
        self.job = Some(job.id);
        self
    }

    /// Sets source and job.
    pub(super) fn of(mut self, source: Option<&NodeId>, job: Option<JobId>) -> Self {
        self.source = source.cloned();
        self.job = job;
        self
    }

    pub(super) fn event(&self) -> &'static str {
        self.event
    }

    pub(super) fn field(mut self, name: &'static str, value: impl Display) -> Self {
        self.fields.push((name, value.to_string()));
        self
    }

    /// Sets the phase that a job was in when it stopped.
    pub(super) fn stopped_in(self, phase: Option<Phase>) -> Self {
        match phase {
            Some(phase) => self.field("phase", phase),
            None => self,
        }
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.fields
            .iter()
            .find(|(n, _)| *n == name)
            .map(|(_, value)| value.as_str())
    }

    fn number(&self, name: &str) -> Option<u64> {
        self.get(name)?.parse().ok()
    }

    /// Sets a field unless it is set.
    fn or_field(self, name: &'static str, value: impl Display) -> Self {
        match self.get(name) {
            Some(_) => self,
            None => self.field(name, value),
        }
    }

    /// Sets the fields of the job's progress that are not set.
    fn within(self, live: &Live) -> Self {
        let done = live.copied.counted().done;
        let percent = format!("{:.1}", live.meter.overall_percent());
        let note = self
            .or_field("overall_progress", percent)
            .or_field("rows_copied", done.rows.0)
            .or_field("bytes_copied", done.bytes.0);
        match current_phase(&live.job).or_else(|| last_phase(&live.job)) {
            Some(phase) => note.or_field("phase", phase),
            None => note,
        }
    }
}

/// The last phase before cleanup.
pub(super) fn last_phase(job: &Job) -> Option<Phase> {
    let mut phases = job.clock.spent.iter().rev().map(|(phase, _)| *phase);
    phases.find(|phase| *phase != Phase::Cleanup)
}

macro_rules! trace_note {
    ($macro:ident, $note:expr) => {{
        let note = $note;
        tracing::$macro!(
            event = note.event,
            node_id = note.node.as_ref().map(NodeId::as_str),
            source_node = note.source.as_ref().map(NodeId::as_str),
            job_id = note.job.map(tracing::field::display),
            from = note.get("from"),
            to = note.get("to"),
            phase = note.get("phase"),
            table = note.get("table"),
            rows_copied = note.number("rows_copied"),
            bytes_copied = note.number("bytes_copied"),
            duration_ms = note.number("duration_ms"),
            overall_progress = note
                .get("overall_progress")
                .and_then(|p| p.parse::<f64>().ok()),
            statements = note.number("statements"),
            made = note.number("made"),
            missing = note.number("missing"),
            extra = note.number("extra"),
            different = note.number("different"),
            repaired = note.number("repaired"),
            changed = note.number("changed"),
            failed = note.number("failed"),
            rows_written_a = note.number("rows_written_a"),
            rows_written_b = note.number("rows_written_b"),
            tables = note.number("tables"),
            tables_unequal = note.number("tables_unequal"),
            operator = note.get("operator"),
            method = note.get("method"),
            parallel = note.number("parallel"),
            max_rate = note.number("max_rate"),
            version = note.get("version"),
            code = note.get("code"),
            hint = note.get("hint"),
            slot = note.get("slot"),
            lsn = note.get("lsn"),
            snapshot_id = note.get("snapshot_id"),
            switchover_id = note.get("switchover_id"),
            step = note.get("step"),
            stopped_ms = note.number("stopped_ms"),
            location = note.get("location"),
            replication = note.get("replication"),
            epoch = note.number("epoch"),
            tables_kept = note.number("tables_kept"),
            tables_left = note.number("tables_left"),
            wal_held = note.number("wal_held"),
            wal_limit = note.number("wal_limit"),
            "{}",
            note.message
        );
    }};
}

impl<S: Store> Driver<S> {
    /// Writes the note to the store and the log, with its job's progress.
    pub(super) fn log(&mut self, note: Note, now: Timestamp) {
        let note = match note.job.and_then(|id| self.jobs.get(&id)) {
            Some(live) => note.within(live),
            None => note,
        };
        match note.level {
            Level::Info => trace_note!(info, &note),
            Level::Warn => trace_note!(warn, &note),
            Level::Error => trace_note!(error, &note),
        }
        self.counters.event(note.event);
        let event = EventView {
            seq: self.next_event,
            timestamp: now,
            level: note.level.as_str().to_owned(),
            event: note.event.to_owned(),
            node_id: note.node,
            source_node: note.source,
            job_id: note.job,
            message: note.message,
            fields: note
                .fields
                .into_iter()
                .map(|(n, v)| (n.to_owned(), v))
                .collect(),
        };
        self.next_event += 1;
        self.out.writes.push(Write::Event(event));
    }
}
