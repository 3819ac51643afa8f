//! The jobs for which this agent is the source: who may ask for what, and the snapshots held open.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use steep_protocol::message::job::TableFilter;
use steep_protocol::{JobId, Lsn, NodeId};

use super::OpenSnapshot;
use crate::locks::LockRegistry;

/// The jobs for which this agent is the source. Shared by the session, which opens and closes them,
/// and the server, which looks them up.
#[derive(Debug, Default)]
pub(crate) struct SourceJobs {
    jobs: Mutex<HashMap<JobId, SourceJob>>,
    locks: Arc<LockRegistry>,
}

/// One of them.
#[derive(Debug, Clone)]
pub(crate) struct SourceJob {
    /// The one node that may ask.
    pub(crate) target: NodeId,
    /// Which tables.
    pub(crate) filter: TableFilter,
    /// Of which replication the description names the published tables.
    pub(crate) replication: Option<JobId>,
    /// The snapshot, once there is one.
    pub(crate) open: Option<Arc<OpenSnapshot>>,
    /// Since when it is held open on the server, while it is.
    held_since: Option<Instant>,
}

impl SourceJobs {
    /// Lets `target` ask for that job. An open snapshot of the job stays.
    pub(crate) fn admit(
        &self,
        job: JobId,
        target: NodeId,
        filter: TableFilter,
        replication: Option<JobId>,
    ) {
        let mut jobs = self.lock();
        let (open, held_since) = jobs
            .remove(&job)
            .map_or((None, None), |old| (old.open, old.held_since));
        jobs.insert(
            job,
            SourceJob {
                target,
                filter,
                replication,
                open,
                held_since,
            },
        );
    }

    /// Puts a job's snapshot where its target can reach it.
    pub(crate) fn open(&self, job: JobId, snapshot: Arc<OpenSnapshot>) {
        if let Some(entry) = self.lock().get_mut(&job) {
            entry.held_since = (snapshot.lsn() != Lsn(0)).then(Instant::now);
            entry.open = Some(snapshot);
        }
    }

    /// The job's snapshot is no longer held on the server; its plan stays.
    pub(crate) fn released(&self, job: JobId) {
        if let Some(entry) = self.lock().get_mut(&job) {
            entry.held_since = None;
        }
    }

    /// How long each snapshot has been held open.
    #[must_use]
    pub(crate) fn snapshot_ages(&self) -> Vec<Duration> {
        let jobs = self.lock();
        jobs.values()
            .filter_map(|job| Some(job.held_since?.elapsed()))
            .collect()
    }

    /// That job, if this agent is its source.
    #[must_use]
    pub(crate) fn get(&self, job: JobId) -> Option<SourceJob> {
        self.lock().get(&job).cloned()
    }

    /// What is known of locks on this server.
    #[must_use]
    pub(crate) fn locks(&self) -> &Arc<LockRegistry> {
        &self.locks
    }

    /// Forgets a job. Its snapshot, if any, is the caller's to close.
    pub(crate) fn remove(&self, job: JobId) -> Option<SourceJob> {
        self.locks.forget(job);
        self.lock().remove(&job)
    }

    /// Jobs for which a target may ask.
    #[must_use]
    pub(crate) fn admitted(&self) -> Vec<JobId> {
        self.lock().keys().copied().collect()
    }

    /// Jobs whose snapshot is held open on the server.
    #[must_use]
    pub(crate) fn open_snapshots(&self) -> Vec<JobId> {
        self.lock()
            .iter()
            .filter(|(_, j)| j.held_since.is_some())
            .map(|(id, _)| *id)
            .collect()
    }

    /// Jobs whose snapshot is gone although nobody closed it.
    #[must_use]
    pub(crate) fn lost_snapshots(&self) -> Vec<JobId> {
        let jobs = self.lock();
        let broken = |job: &SourceJob| job.open.as_ref().is_some_and(|open| open.is_broken());
        let lost = jobs.iter().filter(|(_, job)| broken(job));
        lost.map(|(id, _)| *id).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<JobId, SourceJob>> {
        // Every critical section is a map operation; none can leave the map half changed.
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
