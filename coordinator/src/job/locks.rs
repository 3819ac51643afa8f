//! Lock conflicts between a job and other sessions, across observations.
//!
//! Owns the conflicts last reported by each side, and which were announced. Pure, in memory only: a
//! restarted coordinator announces current conflicts again.

use std::collections::BTreeSet;

use steep_protocol::limits::{LOCK_CONFLICTS_MAX, STATEMENT_SHOWN};
use steep_protocol::message::agent::{LockConflict, LockRole, Observed};
use steep_protocol::message::api::LockView;
use steep_protocol::message::job::{JobSpec, YieldToDdl};

use super::{Job, Side};

/// Most conflicts remembered as announced; beyond that, some may be announced twice.
const ANNOUNCED_MAX: usize = 1_000;

/// Identifies a conflict: a session that waits for the same table again is not announced again.
type Key = (Side, LockRole, i32, String);

/// Conflicts of one job.
#[derive(Debug, Clone, Default)]
pub struct JobLocks {
    source: Vec<LockConflict>,
    target: Vec<LockConflict>,
    announced: BTreeSet<Key>,
}

impl JobLocks {
    /// Takes an observation of the agent on that side. Returns the conflicts to announce.
    pub fn observe(&mut self, job: &Job, side: Side, seen: &Observed) -> Vec<LockView> {
        let own = seen.locks.iter().filter(|lock| lock.job == Some(job.id));
        let own: Vec<LockConflict> = own.take(LOCK_CONFLICTS_MAX).map(bounded).collect();
        let mut news = Vec::new();
        for lock in &own {
            let key = (side, lock.role, lock.pid, lock.table.clone());
            if self.announced.len() >= ANNOUNCED_MAX {
                self.announced.pop_first();
            }
            if self.announced.insert(key) {
                news.push(view(lock, side, &job.spec));
            }
        }
        match side {
            Side::Source => self.source = own,
            Side::Target => self.target = own,
        }
        news
    }

    /// The agent on that side lost its session.
    pub fn lost(&mut self, side: Side) {
        match side {
            Side::Source => self.source.clear(),
            Side::Target => self.target.clear(),
        }
    }

    /// All current conflicts; those in which others wait for the job come first.
    #[must_use]
    pub fn views(&self, spec: &JobSpec) -> Vec<LockView> {
        let source = self
            .source
            .iter()
            .map(|lock| view(lock, Side::Source, spec));
        let target = self
            .target
            .iter()
            .map(|lock| view(lock, Side::Target, spec));
        let mut all: Vec<LockView> = source.chain(target).collect();
        all.sort_by_key(|lock| (lock.role, std::cmp::Reverse(lock.waited_seconds)));
        all
    }
}

/// Cuts an agent's texts to the limit it should have kept.
fn bounded(lock: &LockConflict) -> LockConflict {
    let cut = |text: &str| text.chars().take(STATEMENT_SHOWN + 1).collect();
    LockConflict {
        ours: cut(&lock.ours),
        application: cut(&lock.application),
        statement: cut(&lock.statement),
        table: cut(&lock.table),
        ..lock.clone()
    }
}

fn view(lock: &LockConflict, side: Side, spec: &JobSpec) -> LockView {
    LockView {
        node_id: side.node(spec).clone(),
        role: lock.role,
        ours: lock.ours.clone(),
        pid: lock.pid,
        application: lock.application.clone(),
        statement: lock.statement.clone(),
        table: lock.table.clone(),
        waited_seconds: lock.waited_seconds,
        queued: lock.queued,
    }
}

/// A conflict as one sentence.
#[must_use]
pub fn sentence(lock: &LockView, spec: &JobSpec) -> String {
    let LockView {
        node_id,
        ours,
        table,
        ..
    } = lock;
    let who = lock.who();
    match lock.role {
        LockRole::BlockedByUs => {
            let limit = match (*node_id == spec.source, spec.yield_to_ddl) {
                (true, YieldToDdl::After(seconds)) => format!("; it gives way after {seconds} s"),
                (true, YieldToDdl::Never) => "; it does not give way (--yield-to-ddl never)".into(),
                (false, _) => String::new(),
            };
            format!("on {node_id}, {who} waits for the job's {ours} of {table}{limit}")
        }
        LockRole::BlocksUs => {
            format!("on {node_id}, the job's {ours} waits for {table}, which is held by {who}")
        }
        LockRole::GaveWay => format!(
            "on {node_id}, the job's {ours} of {table} gave way to {who}, which had waited for {} s",
            lock.waited_seconds
        ),
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use steep_protocol::JobId;

    use super::*;
    use crate::testing;

    fn conflict(role: LockRole, job: u64) -> LockConflict {
        LockConflict {
            job: Some(JobId(job)),
            role,
            ours: "copy".to_owned(),
            pid: 99,
            application: "psql".to_owned(),
            statement: "ALTER TABLE t ADD c int".to_owned(),
            table: "public.t".to_owned(),
            waited_seconds: 3,
            queued: 0,
        }
    }

    fn seen(locks: &[LockConflict]) -> Observed {
        Observed {
            locks: locks.to_vec(),
            ..Observed::default()
        }
    }

    #[test]
    fn each_conflict_of_the_job_is_announced_once_and_shown_while_it_lasts() {
        let spec = testing::spec("a", "b");
        let job = Job::new(JobId(7), spec.clone(), "op", 1_000, Timestamp::UNIX_EPOCH);
        let mut locks = JobLocks::default();
        let both = seen(&[
            conflict(LockRole::BlockedByUs, 7),
            conflict(LockRole::BlockedByUs, 8),
        ]);
        assert_eq!(locks.observe(&job, Side::Source, &both).len(), 1);
        assert!(locks.observe(&job, Side::Source, &both).is_empty());
        assert_eq!(locks.views(&spec)[0].node_id, spec.source);
        let gave_way = seen(&[conflict(LockRole::GaveWay, 7)]);
        assert_eq!(locks.observe(&job, Side::Source, &gave_way).len(), 1);
        locks.observe(&job, Side::Source, &seen(&[]));
        assert!(locks.views(&spec).is_empty());
        let waits = seen(&[conflict(LockRole::BlocksUs, 7)]);
        locks.observe(&job, Side::Target, &waits);
        assert_eq!(locks.views(&spec)[0].node_id, spec.target);
        locks.lost(Side::Target);
        assert!(locks.views(&spec).is_empty());
    }

    #[test]
    fn a_sentence_says_who_waits_for_what_and_what_comes_next() {
        let spec = testing::spec("a", "b");
        let text = |role| sentence(&view(&conflict(role, 7), Side::Source, &spec), &spec);
        assert_eq!(
            text(LockRole::BlockedByUs),
            "on a, process 99 (psql: ALTER TABLE t ADD c int) waits for the job's copy of public.t; it \
             gives way after 10 s"
        );
        assert_eq!(
            text(LockRole::BlocksUs),
            "on a, the job's copy waits for public.t, which is held by process 99 (psql: ALTER TABLE t \
             ADD c int)"
        );
        assert!(text(LockRole::GaveWay).contains("gave way"));
    }
}
