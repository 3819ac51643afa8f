//! The jobs for which this agent is the source: who may ask for what, and their open snapshots.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use steep_protocol::message::agent::HeldSnapshot;
use steep_protocol::message::job::TableFilter;
use steep_protocol::message::tables::Followed;
use steep_protocol::message::verify::RowAccess;
use steep_protocol::{ByteCount, JobId, NodeId, RowCount, SnapshotId};

use super::OpenSnapshot;
use super::stored::{Holder, StoredSnapshot};
use crate::locks::LockRegistry;
use crate::mutex::lock;

/// Shared by the session, which opens and closes jobs, and the peer server, which looks them up.
#[derive(Debug, Default)]
pub(crate) struct SourceJobs {
    jobs: Mutex<HashMap<JobId, SourceJob>>,
    locks: Arc<LockRegistry>,
}

#[derive(Debug, Clone)]
pub(crate) struct SourceJob {
    /// The only node that may ask.
    pub(crate) target: NodeId,
    pub(crate) filter: TableFilter,
    /// The replication whose published tables the description names.
    pub(crate) replication: Option<JobId>,
    /// Whether its target may compare rows, and what it may see of them.
    pub(crate) compares: Option<RowAccess>,
    /// The replication that its tables join or leave.
    pub(crate) followed: Option<Followed>,
    pub(crate) open: Option<Holder>,
    /// `None` where the server holds no snapshot.
    held_since: Option<Instant>,
    /// What its target got, once that is all.
    counted: Option<Counted>,
}

/// Parts, rows and bytes.
type Counted = (u32, RowCount, ByteCount);

impl SourceJob {
    /// What its target got so far.
    pub(crate) fn totals(&self) -> Option<Counted> {
        let open = self.open.as_ref();
        (self.counted).or_else(|| open.map(|open| open.totals(&self.target)))
    }
}

impl SourceJobs {
    /// Lets `target` ask for the job. An open snapshot of the job stays, and so does what it follows.
    pub(crate) fn admit(
        &self,
        job: JobId,
        target: NodeId,
        filter: TableFilter,
        replication: Option<JobId>,
    ) {
        let mut jobs = self.lock();
        let old = jobs.remove(&job);
        let counted = old.as_ref().and_then(|old| old.counted);
        let followed = old.as_ref().and_then(|old| old.followed.clone());
        let (open, held_since) = old.map_or((None, None), |old| (old.open, old.held_since));
        jobs.insert(
            job,
            SourceJob {
                target,
                filter,
                replication,
                compares: None,
                followed,
                open,
                held_since,
                counted,
            },
        );
    }

    /// Lets `target` read rows under that job, and nothing else.
    pub(crate) fn admit_comparison(&self, job: JobId, target: NodeId, access: RowAccess) {
        let filter = TableFilter::default();
        self.admit(job, target, filter, None);
        if let Some(entry) = self.lock().get_mut(&job) {
            entry.compares = Some(access);
        }
    }

    /// Lets `target` have tables join or leave what it follows, under that job.
    pub(crate) fn admit_change(
        &self,
        job: JobId,
        target: NodeId,
        filter: TableFilter,
        followed: Followed,
    ) {
        self.admit(job, target, filter, None);
        if let Some(entry) = self.lock().get_mut(&job) {
            entry.followed = Some(followed);
        }
    }

    pub(crate) fn open(&self, job: JobId, holder: Holder) {
        if let Some(entry) = self.lock().get_mut(&job) {
            entry.held_since = holder.is_live().then(Instant::now);
            entry.open = Some(holder);
            // What was sent under another one was counted there.
            entry.counted = None;
        }
    }

    /// Its target has all rows: the job needs no snapshot any more, which the caller closes. What was sent
    /// stays known. Idempotent.
    pub(crate) fn released(&self, job: JobId) -> Option<Holder> {
        let mut jobs = self.lock();
        let entry = jobs.get_mut(&job)?;
        entry.counted = entry.totals();
        entry.held_since = None;
        entry.open.take()
    }

    /// Jobs whose snapshot the server holds although nobody has read under it for that long.
    pub(crate) fn idle(&self, at_least: Duration) -> Vec<JobId> {
        let jobs = self.lock();
        let idle = |job: &SourceJob| match (&job.open, job.held_since) {
            (Some(Holder::Live(open)), Some(_)) => {
                open.idle_for().is_some_and(|idle| idle >= at_least)
            }
            _ => false,
        };
        let idle = jobs.iter().filter(|(_, job)| idle(job));
        idle.map(|(id, _)| *id).collect()
    }

    /// A shared snapshot counts once.
    pub(crate) fn snapshot_ages(&self) -> Vec<Duration> {
        let jobs = self.lock();
        jobs.values()
            .filter(|job| !matches!(job.open, Some(Holder::Shared(_))))
            .filter_map(|job| Some(job.held_since?.elapsed()))
            .collect()
    }

    /// The open snapshot of that id, for targets that share it.
    pub(crate) fn shared(&self, snapshot: SnapshotId) -> Option<Arc<OpenSnapshot>> {
        match self.get(JobId(snapshot.0))?.open? {
            Holder::Live(open) if !open.is_lost() => Some(open),
            Holder::Live(_) | Holder::Shared(_) | Holder::Stored(_) => None,
        }
    }

    /// Opens a stored snapshot, or shares the same one with the jobs that have it open.
    pub(crate) fn open_stored(&self, job: JobId, stored: StoredSnapshot) -> Arc<StoredSnapshot> {
        let mut jobs = self.lock();
        let same = jobs.values().find_map(|other| match &other.open {
            Some(Holder::Stored(open)) if open.is_same(&stored) => Some(Arc::clone(open)),
            _ => None,
        });
        let stored = same.unwrap_or_else(|| Arc::new(stored));
        if let Some(entry) = jobs.get_mut(&job) {
            entry.held_since = None;
            entry.open = Some(Holder::Stored(Arc::clone(&stored)));
        }
        stored
    }

    pub(crate) fn get(&self, job: JobId) -> Option<SourceJob> {
        self.lock().get(&job).cloned()
    }

    pub(crate) fn locks(&self) -> &Arc<LockRegistry> {
        &self.locks
    }

    /// The caller closes its snapshot, if there is one.
    pub(crate) fn remove(&self, job: JobId) -> Option<SourceJob> {
        self.locks.forget(job);
        self.lock().remove(&job)
    }

    pub(crate) fn admitted(&self) -> Vec<JobId> {
        self.lock().keys().copied().collect()
    }

    /// Snapshots that the server holds.
    pub(crate) fn open_snapshots(&self) -> Vec<HeldSnapshot> {
        let jobs = self.lock();
        let held = jobs.iter().filter(|(_, job)| job.held_since.is_some());
        held.filter_map(|(id, job)| {
            Some(HeldSnapshot {
                job: *id,
                target: job.target.clone(),
                lsn: job.open.as_ref()?.lsn(),
            })
        })
        .collect()
    }

    /// Jobs whose snapshot was lost without being closed.
    pub(crate) fn lost_snapshots(&self) -> Vec<JobId> {
        let jobs = self.lock();
        let broken = |job: &SourceJob| {
            job.held_since.is_some() && job.open.as_ref().is_some_and(Holder::is_broken)
        };
        let lost = jobs.iter().filter(|(_, job)| broken(job));
        lost.map(|(id, _)| *id).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<JobId, SourceJob>> {
        // A critical section is a single map operation, so no panic leaves the map inconsistent.
        lock(&self.jobs)
    }
}
