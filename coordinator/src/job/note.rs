//! What a target keeps of the job that fills it, for a coordinator that has lost its store. It holds no secret.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use steep_protocol::limits::JOB_NOTE_MAX;
use steep_protocol::message::agent::EarlierEpoch;
use steep_protocol::message::facts::Finding;
use steep_protocol::message::job::{JobSpec, Method};
use steep_protocol::message::lineage::ChangeOrigin;
use steep_protocol::{Epoch, JobId, SnapshotId};

use super::handover::StoredRows;
use super::{Complete, Job, Plan, Residue, Stage, Step, Witness};

/// 2: what was copied.
const VERSION: u32 = 2;

/// A job as its target knows it from the time when it is prepared, and again when all its rows are there.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobNote {
    version: u32,
    /// Its id.
    pub job: JobId,
    /// What was asked for.
    pub spec: JobSpec,
    /// The snapshot that its rows are from, or those of its present epoch.
    pub plan: Plan,
    /// What it goes on with.
    step: Step,
    /// What was copied, once that is all.
    pub copied: Option<Complete>,
    epoch: Epoch,
    earlier: Vec<EarlierEpoch>,
    kept: Complete,
    shared: Option<SnapshotId>,
    stored: Option<StoredRows>,
    restarts: u8,
    origin: ChangeOrigin,
    /// The name in the certificate of the operator who started it.
    pub operator: String,
    accepted_at: Timestamp,
    began_at: Timestamp,
    snapshot_at: Option<Timestamp>,
    warnings: Vec<Finding>,
}

impl JobNote {
    /// The note of a job that can go on without its coordinator's store: one with a snapshot of its own, its first,
    /// that is read live, or one that has all its rows and will follow. Without its warnings where it would be too long with
    /// them.
    #[must_use]
    pub fn of(job: &Job, copied: Option<Complete>) -> Option<String> {
        let plain = job.snapshot().is_none() && job.epoch == Epoch(0) && !job.spools();
        let goes_on = match job.spec.method {
            Method::Snapshot => plain || copied.is_some(),
            Method::TwoPhase | Method::Stored => copied.is_some(),
            Method::Load
            | Method::Native
            | Method::Backup
            | Method::Add
            | Method::Drop
            | Method::Reinit
            | Method::Merge => false,
        };
        if !goes_on {
            return None;
        }
        let mut note = Self {
            version: VERSION,
            job: job.id,
            spec: job.spec.clone(),
            plan: job.attempt.plan?,
            step: match (&job.stage, copied) {
                (Stage::Working(step), Some(_)) => *step,
                _ => Step::OpenSource,
            },
            copied,
            epoch: job.epoch,
            earlier: job.earlier.clone(),
            kept: job.kept,
            shared: job.shared,
            stored: job.stored.clone(),
            restarts: job.restarts,
            origin: job.origin,
            operator: job.operator.clone(),
            accepted_at: job.accepted_at,
            began_at: job.began_at,
            snapshot_at: job.attempt.snapshot_at,
            warnings: job.warnings.clone(),
        };
        let short = |text: &String| text.len() <= JOB_NOTE_MAX;
        if let Some(text) = serde_json::to_string(&note).ok().filter(short) {
            return Some(text);
        }
        note.warnings.clear();
        serde_json::to_string(&note).ok().filter(short)
    }

    /// Reads a note; `None` where it is damaged or another version's.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let note: Self = serde_json::from_str(text).ok()?;
        (note.version == VERSION).then_some(note)
    }

    /// The job, about to find its snapshot open or, once all its rows are there, to begin the step that brought the note: it
    /// and those after it find what was done of them. Both ends have objects of it.
    #[must_use]
    pub fn into_job(self, first_command: u64) -> Job {
        let accepted_at = self.accepted_at;
        let mut job = Job::new(
            self.job,
            self.spec,
            &self.operator,
            first_command,
            accepted_at,
        );
        job.stage = Stage::Working(self.step);
        match self.copied {
            None => job.adopted = Some(self.plan),
            Some(_) => {
                job.attempt.plan = Some(self.plan);
                // Its agent may have restarted since.
                job.attempt.witness = Witness::Restarted;
                job.recalled = self.copied;
                (job.epoch, job.earlier, job.kept) = (self.epoch, self.earlier, self.kept);
                (job.shared, job.stored) = (self.shared, self.stored);
            }
        }
        job.restarts = self.restarts;
        job.origin = self.origin;
        job.began_at = self.began_at;
        job.attempt.snapshot_at = self.snapshot_at;
        job.warnings = self.warnings;
        job.warnings.truncate(super::WARNINGS_MAX);
        job.source.residue = Residue::Objects;
        job.target.residue = Residue::Objects;
        job
    }
}

#[cfg(test)]
mod tests {
    use steep_protocol::limits::API_REQUEST_MAX;
    use steep_protocol::message::facts::Severity;
    use steep_protocol::{ByteCount, Lsn, RowCount, SnapshotId, TableName};

    use super::*;
    use crate::job::Totals;
    use crate::testing::spec;

    fn job() -> Job {
        let mut job = Job::new(JobId(7), spec("a", "b"), "dba", 1, Timestamp::UNIX_EPOCH);
        job.attempt.plan = Some(Plan {
            lsn: Lsn(9),
            tables: 3,
            parts: 6,
        });
        job.attempt.snapshot_at = Some(Timestamp::UNIX_EPOCH);
        job.restarts = 1;
        job
    }

    #[test]
    fn a_job_is_as_before_after_its_note() {
        let text = JobNote::of(&job(), None).unwrap();
        let again = JobNote::parse(&text).unwrap().into_job(99);
        assert_eq!((again.id, again.restarts), (JobId(7), 1));
        assert_eq!(again.spec, job().spec);
        assert_eq!(again.adopted, job().attempt.plan);
        assert_eq!(again.attempt.snapshot_at, job().attempt.snapshot_at);
        assert_eq!((again.operator.as_str(), again.first_command), ("dba", 99));
    }

    #[test]
    fn a_job_that_has_all_rows_goes_on_with_their_sums_and_its_step() {
        let copied = Complete {
            tables: 3,
            sum: Totals {
                parts: 6,
                rows: RowCount(70),
                bytes: ByteCount(700),
            },
        };
        let mut job = job();
        job.stage = Stage::Working(Step::Fold);
        let text = JobNote::of(&job, Some(copied)).unwrap();
        let again = JobNote::parse(&text).unwrap().into_job(99);
        assert_eq!(again.stage, Stage::Working(Step::Fold));
        assert_eq!((again.adopted, again.recalled), (None, Some(copied)));
        assert_eq!(again.attempt.plan, job.attempt.plan);
        assert_eq!(again.attempt.witness, Witness::Restarted);
    }

    #[test]
    fn only_a_plain_job_with_a_plan_has_a_note() {
        let refused = |change: fn(&mut Job)| {
            let mut job = job();
            change(&mut job);
            assert_eq!(JobNote::of(&job, None), None);
        };
        refused(|job| job.attempt.plan = None);
        refused(|job| job.epoch = Epoch(1));
        refused(|job| job.shared = Some(SnapshotId(5)));
        refused(|job| job.spec.method = Method::Native);
        refused(|job| job.spec.method = Method::TwoPhase);
    }

    #[test]
    fn one_with_all_rows_has_a_note_whatever_snapshots_they_are_from() {
        let same = |change: fn(&mut Job)| {
            let mut job = job();
            change(&mut job);
            let note = JobNote::of(&job, Some(Complete::default())).unwrap();
            let again = JobNote::parse(&note).unwrap().into_job(99);
            assert_eq!(again.replication(), job.replication());
            assert_eq!((again.epoch, again.kept), (job.epoch, job.kept));
            assert_eq!(again.earlier, job.earlier);
            assert_eq!(again.parts(), job.parts());
        };
        same(|_| {});
        same(|job| job.shared = Some(SnapshotId(5)));
        same(|job| job.spec.method = Method::TwoPhase);
        same(|job| {
            let (replication, lsn) = (job.replication(), Lsn(3));
            job.earlier.push(EarlierEpoch { replication, lsn });
            job.epoch = Epoch(1);
            job.kept.tables = 2;
            job.kept.sum.parts = 4;
        });
        for method in [Method::Load, Method::Native, Method::Backup] {
            let mut job = job();
            job.spec.method = method;
            assert_eq!(JobNote::of(&job, Some(Complete::default())), None);
        }
    }

    #[test]
    fn what_is_no_note_of_this_version_is_not_read() {
        let text = JobNote::of(&job(), None).unwrap();
        let newer = text.replace("\"version\":2", "\"version\":3");
        assert_ne!(newer, text);
        for bad in ["", "{}", "null", &newer, &text[..text.len() - 1]] {
            assert_eq!(JobNote::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_long_note_goes_without_warnings_and_one_that_is_still_too_long_is_none() {
        let mut job = job();
        job.warnings = vec![Finding {
            severity: Severity::Warning,
            code: "x".to_owned(),
            node: None,
            what: "w".repeat(JOB_NOTE_MAX),
            why: String::new(),
            fix: String::new(),
        }];
        let note = JobNote::parse(&JobNote::of(&job, None).unwrap()).unwrap();
        assert_eq!(note.warnings, Vec::new());
        let name = TableName::new("public", "t".repeat(60)).unwrap();
        job.spec.filter.exclude_tables = vec![name; API_REQUEST_MAX / 20];
        assert_eq!(JobNote::of(&job, None), None);
    }
}
