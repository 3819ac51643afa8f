//! Progress between two sends: the newest of each kind, and every part done.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};

use steep_protocol::message::agent::{
    AgentMessage, PartDone, PartProgress, ProgressReport, WorkProgress,
};
use steep_protocol::{JobId, PartNo, Phase};

use crate::task::ProgressSink;

/// Parts in one message; the rest follow in the next.
const PARTS_PER_MESSAGE: usize = 10_000;

/// Collects what tasks report until the session sends it.
#[derive(Debug, Default)]
pub struct Reports {
    jobs: Mutex<HashMap<JobId, JobReport>>,
}

#[derive(Debug, Default)]
struct JobReport {
    changed: bool,
    phase: Option<Phase>,
    work: Option<WorkProgress>,
    active: BTreeMap<PartNo, PartProgress>,
    /// Every part done, in the order of commits; those before `told` have been sent on this session.
    done: Vec<PartDone>,
    told: usize,
}

impl Reports {
    /// What has changed since the last call, as messages.
    pub fn take(&self) -> Vec<AgentMessage> {
        let mut messages = Vec::new();
        for (job, report) in self.lock().iter_mut() {
            for parts in report.done[report.told..].chunks(PARTS_PER_MESSAGE) {
                messages.push(AgentMessage::PartsDone {
                    job: *job,
                    parts: parts.to_vec(),
                });
            }
            report.told = report.done.len();
            if std::mem::take(&mut report.changed)
                && let Some(phase) = report.phase
            {
                messages.push(AgentMessage::Progress(ProgressReport {
                    job: *job,
                    phase,
                    active: report.active.values().cloned().collect(),
                    work: report.work.clone(),
                }));
            }
        }
        messages
    }

    /// A new session: the coordinator may have missed anything.
    pub fn tell_again(&self) {
        for report in self.lock().values_mut() {
            report.told = 0;
            report.changed = true;
        }
    }

    /// The job is over.
    pub fn forget(&self, job: JobId) {
        self.lock().remove(&job);
    }

    fn with(&self, job: JobId, change: impl FnOnce(&mut JobReport)) {
        let mut jobs = self.lock();
        let report = jobs.entry(job).or_default();
        change(report);
        report.changed = true;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<JobId, JobReport>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ProgressSink for Reports {
    fn work(&self, job: JobId, phase: Phase, work: WorkProgress) {
        self.with(job, |report| {
            if report.phase != Some(phase) {
                report.active.clear();
            }
            report.phase = Some(phase);
            report.work = Some(work);
        });
    }

    fn part(&self, job: JobId, progress: PartProgress) {
        self.with(job, |report| {
            report.phase = Some(Phase::Copy);
            report.work = None;
            report.active.insert(progress.part, progress);
        });
    }

    fn done(&self, job: JobId, done: PartDone) {
        self.with(job, |report| {
            report.phase = Some(Phase::Copy);
            report.work = None;
            report.active.remove(&done.part);
            report.done.push(done);
        });
    }
}

#[cfg(test)]
mod tests {
    use steep_protocol::{ByteCount, RowCount};

    use super::*;

    fn done(part: u32) -> PartDone {
        PartDone {
            part: PartNo(part),
            rows: RowCount(1),
            bytes: ByteCount(2),
            wire: ByteCount(3),
        }
    }

    fn parts(messages: &[AgentMessage]) -> Vec<u32> {
        messages
            .iter()
            .filter_map(|m| match m {
                AgentMessage::PartsDone { parts, .. } => Some(parts),
                _ => None,
            })
            .flatten()
            .map(|d| d.part.0)
            .collect()
    }

    #[test]
    fn every_part_is_told_once_a_session_and_again_on_the_next() {
        let reports = Reports::default();
        let job = JobId(1);
        reports.done(job, done(1));
        reports.done(job, done(2));
        assert_eq!(parts(&reports.take()), [1, 2]);
        reports.done(job, done(3));
        assert_eq!(parts(&reports.take()), [3]);
        reports.tell_again();
        assert_eq!(parts(&reports.take()), [1, 2, 3]);
    }

    #[test]
    fn nothing_is_said_where_nothing_changed() {
        let reports = Reports::default();
        let job = JobId(1);
        let bytes = ByteCount(10);
        reports.part(
            job,
            PartProgress {
                part: PartNo(1),
                bytes,
                wire: bytes,
            },
        );
        assert_eq!(reports.take().len(), 1);
        assert!(reports.take().is_empty());
    }
}
