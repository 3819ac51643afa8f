//! What the driver holds in memory of a job.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use steep_protocol::message::api::{Afterwards, EndView, ProgressSample};
use steep_protocol::message::snapshot::LoadedSnapshot;
use steep_protocol::{CommandId, TableNo};
use tokio::sync::watch;

use super::epochs::table_sum;
use super::{Feed, Ticket, watchers};
use crate::job::copy_progress::CopyProgress;
use crate::job::health::JobHealth;
use crate::job::locks::JobLocks;
use crate::job::progress::Meter;
use crate::job::report::Slowest;
use crate::job::{Job, Side};
use crate::store::{LeftBehind, TableSum};

/// A job in memory: running, kept after a failure, or being cleaned up.
pub(super) struct Live {
    pub(super) job: Job,
    pub(super) copied: CopyProgress,
    pub(super) health: JobHealth,
    pub(super) locks: JobLocks,
    pub(super) meter: Meter,
    pub(super) feed: watch::Sender<Feed>,
    /// Whether somebody watches it in full.
    pub(super) lease: watchers::Lease,
    /// Operators waiting for the end of a cancel.
    pub(super) waiting: Vec<Ticket>,
    /// When the tables being copied were started.
    pub(super) began: BTreeMap<TableNo, Timestamp>,
    /// Tables that took longest.
    pub(super) slowest: Slowest,
    /// Its last Copy command, and the workers of that.
    pub(super) copy: Option<CommandId>,
    pub(super) workers: u8,
    /// How it ended, once it has.
    pub(super) end: Option<Arc<EndView>>,
    /// What was given up, a sentence each.
    pub(super) given_up: Vec<String>,
    /// The sides on which something was given up.
    pub(super) left_on: Vec<Side>,
    /// Whether to forget its node once the job is closed.
    pub(super) afterwards: Afterwards,
    /// The last error of a cleanup, by side. Cleanups are retried; only another error is logged.
    pub(super) complaints: Vec<(Side, String)>,
    /// When its target last reported copy progress.
    pub(super) heard: Timestamp,
    pub(super) published: Timestamp,
    pub(super) mirrored: Timestamp,
    pub(super) sampled: Timestamp,
    /// Its progress over time, as in the store.
    pub(super) history: Vec<ProgressSample>,
}

impl Live {
    /// What its target has got without replication.
    pub(super) fn loaded(&self, now: Timestamp) -> Option<LoadedSnapshot> {
        let stored = self.job.stored.as_ref()?;
        Some(LoadedSnapshot {
            snapshot_id: stored.snapshot,
            job_id: self.job.id,
            source_node: self.job.spec.source.clone(),
            lsn: stored.lsn,
            rows: self.copied.counted().done.rows.0,
            loaded_at: now,
        })
    }

    /// What its target leaves on a source that cannot be reached.
    pub(super) fn left_on_source(&self) -> Vec<LeftBehind> {
        if !self.left_on.contains(&Side::Source) {
            return Vec::new();
        }
        let earlier = self
            .job
            .earlier
            .iter()
            .map(|epoch| epoch.replication.clone());
        let all = earlier.chain([self.job.replication()]);
        let source = &self.job.spec.source;
        all.map(|replication| LeftBehind {
            source: source.clone(),
            replication,
        })
        .collect()
    }

    /// Sums of each table with completed parts.
    pub(super) fn table_sums(&self) -> Vec<TableSum> {
        let begun = self.copied.tables().iter().filter(|t| t.done > 0);
        begun.map(table_sum).collect()
    }
}
