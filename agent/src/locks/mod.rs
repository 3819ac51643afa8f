//! Lock conflicts between our sessions and others'.
//!
//! [`LockRegistry`] is shared by readers and the [`LockWatch`]: which tables parts wait for, how long
//! others may wait for a job, which of our sessions were ended and for whom. The watch looks at the server
//! while anything of ours is at work there, reports who blocks whom, and ends a session of ours that has
//! blocked somebody for too long (G5). Only `watch` does IO.

mod conflicts;
mod statement;
mod watch;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use steep_protocol::JobId;
use steep_protocol::message::job::YieldToDdl;
use tokio::time::Instant;

use crate::mutex::lock;

pub(crate) use watch::LockWatch;

/// Limit for each of the maps below.
const SUSPECTS_MAX: usize = 1_000;

#[derive(Debug, Default)]
pub(crate) struct LockRegistry {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// Running tasks; the watch looks while there are any.
    attended: usize,
    rules: HashMap<JobId, YieldToDdl>,
    awaited: HashMap<(JobId, u32), Awaited>,
    /// By process id, with the session it was ended for.
    ended: HashMap<i32, String>,
    /// Whom our statements waited for, by job and purpose, since they were last asked for.
    waited: HashMap<(JobId, String), String>,
    /// By table, the session last seen to want an exclusive lock.
    suspects: HashMap<u32, String>,
}

#[derive(Debug, Clone, Copy)]
struct Awaited {
    parts: usize,
    since: Instant,
}

impl LockRegistry {
    /// The watch runs while the guard lives.
    pub(crate) fn attend(self: &Arc<Self>) -> Attended {
        self.lock().attended += 1;
        Attended(Arc::clone(self))
    }

    pub(crate) fn set_rule(&self, job: JobId, rule: YieldToDdl) {
        self.lock().rules.insert(job, rule);
    }

    pub(crate) fn forget(&self, job: JobId) {
        let mut inner = self.lock();
        inner.rules.remove(&job);
        inner.waited.retain(|(of, _), _| *of != job);
    }

    /// A part waits for the table, outside the lock queue, while the guard lives.
    pub(crate) fn wait_for(self: &Arc<Self>, job: JobId, table: u32) -> WaitsFor {
        let mut inner = self.lock();
        let fresh = Awaited {
            parts: 0,
            since: Instant::now(),
        };
        inner.awaited.entry((job, table)).or_insert(fresh).parts += 1;
        WaitsFor {
            registry: Arc::clone(self),
            key: (job, table),
        }
    }

    /// The session for which ours was ended, if it was.
    pub(crate) fn ended_for(&self, pid: i32) -> Option<String> {
        self.lock().ended.remove(&pid)
    }

    /// Whom that purpose's session waited for, or was ended for, since the last call.
    pub(crate) fn hindered(&self, job: JobId, purpose: &str) -> Option<String> {
        self.lock().waited.remove(&(job, purpose.to_owned()))
    }

    /// The session last seen to want an exclusive lock on the table.
    pub(crate) fn suspect(&self, table: u32) -> Option<String> {
        self.lock().suspects.get(&table).cloned()
    }

    fn is_attended(&self) -> bool {
        self.lock().attended > 0
    }

    fn awaited(&self) -> Vec<(JobId, u32, Instant)> {
        let inner = self.lock();
        let all = inner.awaited.iter();
        all.map(|((job, table), a)| (*job, *table, a.since))
            .collect()
    }

    fn rule(&self, job: Option<JobId>) -> YieldToDdl {
        let inner = self.lock();
        let rule = job.and_then(|job| inner.rules.get(&job).copied());
        rule.unwrap_or_default()
    }

    fn note_suspect(&self, table: u32, who: String) {
        let mut inner = self.lock();
        if inner.suspects.len() >= SUSPECTS_MAX {
            inner.suspects.clear();
        }
        inner.suspects.insert(table, who);
    }

    fn note_waited(&self, job: JobId, purpose: &str, who: String) {
        let mut inner = self.lock();
        if inner.waited.len() < SUSPECTS_MAX {
            inner.waited.insert((job, purpose.to_owned()), who);
        }
    }

    /// Called before the session is ended, so that its owner finds the reason.
    fn note_ended(&self, pid: i32, who: String) {
        let mut inner = self.lock();
        if inner.ended.len() >= SUSPECTS_MAX {
            inner.ended.clear();
        }
        inner.ended.insert(pid, who);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A critical section is a single map operation, so no panic leaves a map inconsistent.
        lock(&self.inner)
    }
}

#[derive(Debug)]
pub(crate) struct Attended(Arc<LockRegistry>);

impl Drop for Attended {
    fn drop(&mut self) {
        let mut inner = self.0.lock();
        inner.attended = inner.attended.saturating_sub(1);
    }
}

#[derive(Debug)]
pub(crate) struct WaitsFor {
    registry: Arc<LockRegistry>,
    key: (JobId, u32),
}

impl Drop for WaitsFor {
    fn drop(&mut self) {
        let mut inner = self.registry.lock();
        if let Some(awaited) = inner.awaited.get_mut(&self.key) {
            awaited.parts -= 1;
            if awaited.parts == 0 {
                inner.awaited.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_table_is_awaited_as_long_as_one_part_waits_for_it() {
        let registry = Arc::new(LockRegistry::default());
        let one = registry.wait_for(JobId(1), 16_384);
        let two = registry.wait_for(JobId(1), 16_384);
        drop(one);
        assert_eq!(registry.awaited().len(), 1);
        drop(two);
        assert!(registry.awaited().is_empty());
        assert!(!registry.is_attended());
        let guard = registry.attend();
        assert!(registry.is_attended());
        drop(guard);
        assert!(!registry.is_attended());
    }
}
