//! Turns the server's rows into conflicts to report and sessions to end. Pure.

use std::time::Duration;

use steep_protocol::JobId;
use steep_protocol::limits::LOCK_CONFLICTS_MAX;
use steep_protocol::message::agent::{LockConflict, LockRole};
use tokio::time::Instant;

/// Our statements leave the lock queue and come back; two waits this close together count as one.
const BRIDGED: Duration = Duration::from_secs(3);

/// How long a session that gave way is still reported.
const GAVE_WAY_TOLD: Duration = Duration::from_secs(10);

#[derive(Debug, Clone)]
pub(super) struct Row {
    pub(super) role: LockRole,
    pub(super) job: Option<JobId>,
    pub(super) ours: String,
    pub(super) own: i32,
    pub(super) pid: i32,
    pub(super) application: String,
    pub(super) statement: String,
    pub(super) table: String,
    pub(super) oid: u32,
    pub(super) waited: f64,
    pub(super) queued: u32,
}

impl Row {
    pub(super) fn other(&self) -> String {
        describe(self.pid, &self.application, &self.statement)
    }

    /// Whether our session may be ended: it reads rows or the catalog, and is not a target's, whose tables
    /// belong to the job.
    pub(super) fn can_give_way(&self) -> bool {
        const STAY: [&str; 4] = ["snapshot", "slot", "observer", "locks"];
        self.role == LockRole::BlockedByUs
            && !STAY.contains(&self.ours.as_str())
            && !self.ours.starts_with("sink-")
    }
}

/// For messages: `process 123 (psql): ALTER TABLE …`.
fn describe(pid: i32, application: &str, statement: &str) -> String {
    let mut text = match pid {
        0 => "a prepared transaction".to_owned(),
        pid => format!("process {pid}"),
    };
    if !application.is_empty() {
        text.push_str(&format!(" ({application})"));
    }
    if !statement.is_empty() {
        text.push_str(&format!(": {statement}"));
    }
    text
}

/// Parses an `application_name` such as `steep-repl copy 00c0ffee00c0ffee`.
pub(super) fn purpose(name: &str, prefix: &str) -> (String, Option<JobId>) {
    let rest = name.strip_prefix(prefix).unwrap_or(name).trim();
    match rest.rsplit_once(' ') {
        Some((purpose, job)) => match job.parse() {
            Ok(job) => (purpose.to_owned(), Some(job)),
            Err(_) => (rest.to_owned(), None),
        },
        None => (rest.to_owned(), None),
    }
}

#[derive(Debug)]
struct Known {
    conflict: LockConflict,
    first: Instant,
    last: Instant,
}

#[derive(Debug, Default)]
pub(super) struct Conflicts {
    known: Vec<Known>,
}

impl Conflicts {
    pub(super) fn take(&mut self, rows: &[Row], now: Instant) {
        for row in rows {
            self.note(row, row.role, now);
        }
        self.known.retain(|known| {
            let age = now.duration_since(known.last);
            match known.conflict.role {
                LockRole::BlockedByUs => age.is_zero(),
                LockRole::BlocksUs => age < BRIDGED,
                LockRole::GaveWay => age < GAVE_WAY_TOLD,
            }
        });
    }

    pub(super) fn gave_way(&mut self, row: &Row, now: Instant) {
        self.note(row, LockRole::GaveWay, now);
    }

    fn note(&mut self, row: &Row, role: LockRole, now: Instant) {
        let waited = |first: Instant| {
            let seen = now.duration_since(first).as_secs_f64();
            // Never negative, and far below what fits.
            row.waited.max(seen).min(f64::from(u32::MAX)) as u32
        };
        let mut conflict = LockConflict {
            job: row.job,
            role,
            ours: row.ours.clone(),
            pid: row.pid,
            application: row.application.clone(),
            statement: row.statement.clone(),
            table: row.table.clone(),
            waited_seconds: waited(now),
            queued: row.queued,
        };
        if let Some(known) = self
            .known
            .iter_mut()
            .find(|k| k.conflict.is_same(&conflict))
        {
            conflict.waited_seconds = waited(known.first);
            known.conflict = conflict;
            known.last = now;
        } else {
            self.known.push(Known {
                conflict,
                first: now,
                last: now,
            });
        }
    }

    /// Longest first.
    pub(super) fn shown(&self) -> Vec<LockConflict> {
        let mut all: Vec<LockConflict> = self.known.iter().map(|k| k.conflict.clone()).collect();
        all.sort_by_key(|conflict| std::cmp::Reverse(conflict.waited_seconds));
        all.truncate(LOCK_CONFLICTS_MAX);
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(role: LockRole, ours: &str) -> Row {
        Row {
            role,
            job: Some(JobId(7)),
            ours: ours.to_owned(),
            own: 10,
            pid: 99,
            application: "psql".to_owned(),
            statement: "ALTER TABLE t ADD c int".to_owned(),
            table: "public.t".to_owned(),
            oid: 16_384,
            waited: 4.5,
            queued: 2,
        }
    }

    #[test]
    fn a_session_is_named_with_what_is_known_of_it() {
        let all = row(LockRole::BlockedByUs, "copy");
        assert_eq!(all.other(), "process 99 (psql): ALTER TABLE t ADD c int");
        assert_eq!(describe(0, "", ""), "a prepared transaction");
    }

    #[test]
    fn purpose_and_job_are_read_from_the_name() {
        let job = JobId(0x2a);
        let name = format!("shop copy {job}");
        assert_eq!(purpose(&name, "shop"), ("copy".to_owned(), Some(job)));
        let name = format!("steep-repl sink-build {job}");
        assert_eq!(
            purpose(&name, "steep-repl"),
            ("sink-build".to_owned(), Some(job))
        );
        assert_eq!(purpose("steep-repl preflight", "steep-repl").1, None);
    }

    #[test]
    fn readers_give_way_and_what_holds_the_job_together_does_not() {
        for ours in ["copy", "schema", "preflight", "open"] {
            assert!(row(LockRole::BlockedByUs, ours).can_give_way(), "{ours}");
        }
        for ours in ["snapshot", "slot", "sink-build", "sink-load"] {
            assert!(!row(LockRole::BlockedByUs, ours).can_give_way(), "{ours}");
        }
        assert!(!row(LockRole::BlocksUs, "copy").can_give_way());
    }

    #[test]
    fn a_wait_that_is_over_goes_at_once_and_one_that_comes_back_is_one() {
        let mut conflicts = Conflicts::default();
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let both = [
            row(LockRole::BlockedByUs, "copy"),
            row(LockRole::BlocksUs, "schema"),
        ];
        conflicts.take(&both, at(0));
        assert_eq!(conflicts.shown().len(), 2);
        conflicts.take(&[], at(2));
        let left = conflicts.shown();
        assert_eq!(left.len(), 1);
        assert_eq!(left[0].role, LockRole::BlocksUs);
        conflicts.take(&both[1..], at(7));
        assert_eq!(conflicts.shown()[0].waited_seconds, 7);
        conflicts.take(&[], at(11));
        assert!(conflicts.shown().is_empty());
        conflicts.gave_way(&both[0], at(11));
        conflicts.take(&[], at(20));
        assert_eq!(conflicts.shown()[0].role, LockRole::GaveWay);
        conflicts.take(&[], at(22));
        assert!(conflicts.shown().is_empty());
    }
}
