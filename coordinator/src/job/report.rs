//! The final report of a job, beyond its sums: time by phase, the slowest tables, what was not copied. Pure.

use steep_protocol::limits::{LISTED_MAX, SLOWEST_TABLES};
use steep_protocol::message::api::{PhaseTime, Report, TableTime};
use steep_protocol::message::facts::Finding;

use super::clock::seconds;
use super::{Job, PhaseClock};

/// Codes of findings about objects that are not copied.
const NOT_COPIED: [&str; 3] = ["unlogged", "large_objects", "foreign_tables"];

/// The slowest tables so far, slowest first.
#[derive(Debug, Clone, Default)]
pub struct Slowest {
    tables: Vec<TableTime>,
}

impl Slowest {
    /// Records a finished table.
    pub fn note(&mut self, table: TableTime) {
        let at = self
            .tables
            .partition_point(|known| known.seconds >= table.seconds);
        if at < SLOWEST_TABLES {
            self.tables.truncate(SLOWEST_TABLES - 1);
            self.tables.insert(at, table);
        }
    }
}

/// Finished phases in the order they ran; consecutive runs of one phase are merged.
#[must_use]
pub fn phase_times(clock: &PhaseClock) -> Vec<PhaseTime> {
    let runs = clock.spent.chunk_by(|one, next| one.0 == next.0);
    runs.map(|run| PhaseTime {
        phase: run[0].0,
        seconds: seconds(run.iter().map(|(_, millis)| millis).sum()),
    })
    .collect()
}

/// The report on a job, as far as it is known now.
#[must_use]
pub fn report(job: &Job, workers: u8, slowest: &Slowest) -> Report {
    Report {
        started_at: Some(job.accepted_at),
        ended_at: job.ended_at,
        method: Some(job.spec.method),
        parallel_workers: workers,
        phase_times: phase_times(&job.clock),
        slowest_tables: slowest.tables.clone(),
        not_copied: not_copied(job),
        kept_until: job.kept_until(),
        lost_snapshots: job.lost_snapshots.clone(),
    }
}

/// Findings of a finished job. Preflight's finding about missing roles is dropped if the target has reported
/// what it left out for each role.
#[must_use]
pub fn warnings(job: &Job) -> Vec<Finding> {
    let of_target = |finding: &Finding| finding.fix.contains("init rebuild");
    let is_role = |finding: &&Finding| finding.code == "missing_role";
    let reported = job.warnings.iter().filter(is_role).any(of_target);
    job.warnings
        .iter()
        .filter(|finding| !(reported && is_role(finding) && !of_target(finding)))
        .cloned()
        .collect()
}

fn not_copied(job: &Job) -> Vec<String> {
    let filter = &job.spec.filter;
    let mut all = Vec::new();
    if !filter.include_schemas.is_empty() {
        let names: Vec<_> = filter
            .include_schemas
            .iter()
            .map(ToString::to_string)
            .collect();
        let also = filter.include_tables.iter();
        let named: Vec<_> = names
            .into_iter()
            .chain(also.map(ToString::to_string))
            .collect();
        all.push(format!("schemas other than {}", named.join(", ")));
    }
    let excluded = filter.exclude_tables.iter();
    all.extend(excluded.map(|table| format!("{table}, which was excluded")));
    all.extend(
        job.warnings
            .iter()
            .filter(|finding| NOT_COPIED.contains(&finding.code.as_str()))
            .map(|finding| finding.what.clone()),
    );
    all.truncate(LISTED_MAX);
    all
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use steep_protocol::message::facts::Severity;
    use steep_protocol::{Identifier, JobId, Phase, TableName};

    use super::*;
    use crate::testing;

    fn took(table: &str, seconds: f64) -> TableTime {
        TableTime {
            schema: "public".to_owned(),
            table: table.to_owned(),
            rows: 1,
            bytes: 2,
            seconds,
        }
    }

    #[test]
    fn the_slowest_are_kept_slowest_first() {
        let mut slowest = Slowest::default();
        for n in 0..100u32 {
            // 37 and 100 are coprime: every number once, in mixed order.
            let seconds = f64::from(n * 37 % 100);
            slowest.note(took(&format!("t{seconds}"), seconds));
        }
        let kept: Vec<_> = slowest.tables.iter().map(|table| table.seconds).collect();
        let wanted: Vec<_> = (90..100u32).rev().map(f64::from).collect();
        assert_eq!(kept, wanted);
    }

    #[test]
    fn consecutive_runs_of_a_phase_are_merged() {
        let clock = PhaseClock {
            current: None,
            spent: vec![
                (Phase::Preflight, 500),
                (Phase::Copy, 1_000),
                (Phase::Copy, 250),
                (Phase::Indexes, 100),
            ],
        };
        let times = phase_times(&clock);
        assert_eq!(
            times
                .iter()
                .map(|t| (t.phase, t.seconds))
                .collect::<Vec<_>>(),
            [
                (Phase::Preflight, 0.5),
                (Phase::Copy, 1.25),
                (Phase::Indexes, 0.1)
            ]
        );
    }

    #[test]
    fn a_missing_role_is_reported_once() {
        let spec = testing::spec("a", "b");
        let mut job = Job::new(JobId(1), spec, "dba", 1, Timestamp::UNIX_EPOCH);
        let role = |fix: &str| Finding {
            severity: Severity::Warning,
            code: "missing_role".to_owned(),
            node: None,
            what: String::new(),
            why: String::new(),
            fix: fix.to_owned(),
        };
        job.warnings = vec![role("CREATE ROLE it")];
        assert_eq!(warnings(&job), job.warnings);
        job.warnings.push(role("run steep-repl init rebuild"));
        assert_eq!(warnings(&job), job.warnings[1..]);
    }

    #[test]
    fn what_was_left_out_or_cannot_be_replicated_is_named() {
        let mut job = Job::new(
            JobId(1),
            testing::spec("a", "b"),
            "dba",
            1,
            Timestamp::UNIX_EPOCH,
        );
        assert!(not_copied(&job).is_empty());
        job.spec.filter.include_schemas = vec![Identifier::parse("app").unwrap()];
        job.spec.filter.exclude_tables = vec![TableName::new("app", "log").unwrap()];
        for code in ["unlogged", "clock"] {
            job.warnings.push(Finding {
                severity: Severity::Warning,
                code: code.to_owned(),
                node: None,
                what: format!("what {code} says"),
                why: String::new(),
                fix: String::new(),
            });
        }
        assert_eq!(
            not_copied(&job),
            [
                "schemas other than app",
                "app.log, which was excluded",
                "what unlogged says"
            ]
        );
    }
}
