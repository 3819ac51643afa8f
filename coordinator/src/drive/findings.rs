//! Logs what the commands of a job have found.

use jiff::Timestamp;
use steep_protocol::message::facts::{Finding, Severity};
use steep_protocol::{Fault, FaultKind, JobId};

use super::Driver;
use super::log::{Level, Note};
use crate::job::preflight;
use crate::store::Store;

/// Maximum number of findings of one command that are logged.
const FINDINGS_LOGGED: usize = 200;

/// The code of findings about differences between schemas.
const SCHEMA_MISMATCH: &str = "schema_mismatch";

/// The code of findings about statements that schema sync has run.
const SYNC_APPLIED: &str = "schema_sync_applied";

impl<S: Store> Driver<S> {
    pub(super) fn found(&mut self, id: JobId, findings: &[Finding], now: Timestamp) {
        self.schema_synced(id, findings, now);
        let single = |finding: &&Finding| finding.code != SYNC_APPLIED;
        let rest = findings.iter().filter(single).count();
        for finding in findings.iter().filter(single).take(FINDINGS_LOGGED) {
            let Some(live) = self.jobs.get(&id) else {
                return;
            };
            let level = match finding.severity {
                Severity::Info => Level::Info,
                Severity::Warning => Level::Warn,
                Severity::Error => Level::Error,
            };
            let event = match finding.code.as_str() {
                SCHEMA_MISMATCH => "schema.mismatch_detected",
                preflight::NO_ROOM => "snapshot.not_spooled",
                _ => "init.finding",
            };
            let mut note = Note::new(level, event, finding.what.clone())
                .job(&live.job)
                .field("code", &finding.code)
                .field("why", &finding.why)
                .field("hint", &finding.fix);
            if let Some(node) = &finding.node {
                note = note.field("found_on", node);
            }
            self.log(note, now);
        }
        let rest = rest.saturating_sub(FINDINGS_LOGGED);
        if let Some(live) = self.jobs.get(&id).filter(|_| rest > 0) {
            let text = format!("{rest} more findings are not logged");
            let note = Note::warn("init.finding", text).job(&live.job);
            self.log(note, now);
        }
    }

    /// Logs one event for all statements of schema sync. Each statement is a finding in the job's
    /// report.
    fn schema_synced(&mut self, id: JobId, findings: &[Finding], now: Timestamp) {
        let applied = findings.iter().filter(|f| f.code == SYNC_APPLIED).count();
        let Some(live) = self.jobs.get(&id).filter(|_| applied > 0) else {
            return;
        };
        let spec = &live.job.spec;
        let text = format!(
            "{applied} statements made the schema of {} like that of {}",
            spec.target, spec.source
        );
        let note = Note::info("schema.sync_applied", text)
            .job(&live.job)
            .field("statements", applied);
        self.log(note, now);
    }

    /// Logs that schemas differ, if that was found only when the target was prepared. Differences that
    /// preflight finds are logged one by one.
    pub(super) fn schema_differs(&mut self, id: JobId, fault: &Fault, now: Timestamp) {
        let Some(live) = self.jobs.get(&id) else {
            return;
        };
        let told = live.job.warnings.iter().any(|f| f.code == SCHEMA_MISMATCH);
        if fault.kind != FaultKind::SchemaMismatch || told {
            return;
        }
        let note = Note::new(Level::Error, "schema.mismatch_detected", fault.to_string())
            .job(&live.job)
            .field("code", SCHEMA_MISMATCH)
            .field("hint", &fault.hint);
        self.log(note, now);
    }
}
