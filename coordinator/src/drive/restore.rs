//! Loads jobs from the store: to continue them after a restart, or to show them.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use steep_protocol::message::api::Afterwards;
use steep_protocol::{ByteCount, JobId, NodeId, NodeState};
use tokio::sync::watch;

use super::jobs::table_time;
use super::watchers::Lease;
use super::{Driver, Feed, Live};
use crate::job::copy_progress::{CopyProgress, TableCopy};
use crate::job::health::JobHealth;
use crate::job::locks::JobLocks;
use crate::job::machine::{JobEvent, Parting};
use crate::job::progress::{Detail, Meter};
use crate::job::report::Slowest;
use crate::job::{Job, Side};
use crate::store::{Store, StoreError, StoredJob, StoredTable, TableTimes};

impl Live {
    /// Restores when tables started and ended, for the report and so that no start is logged twice.
    fn restore_times(&mut self, times: &[TableTimes]) {
        for table in times {
            match table.ended {
                None => {
                    self.began.insert(table.no, table.began);
                }
                Some(ended) => {
                    if let Some(copied) = self.copied.table(table.no) {
                        self.slowest.note(table_time(copied, table.began, ended));
                    }
                }
            }
        }
    }
}

impl StoredTable {
    /// The counters of a table that an earlier epoch has copied.
    fn complete(self) -> TableCopy {
        TableCopy {
            done: self.summary.parts,
            rows: self.sum.rows,
            bytes: self.sum.bytes,
            summary: self.summary,
        }
    }
}

impl<S: Store> Driver<S> {
    /// Continues a job after a restart. Its agents are offline until they register.
    pub(super) fn resume(&mut self, job: Job) -> Result<(), StoreError> {
        let id = job.id;
        let now = self.clock.now();
        self.hold_back(&job);
        let (copied, times) = self.recount(&job)?;
        let end = self.store.job(id)?.and_then(|stored| stored.end);
        self.adopt(job, copied, now);
        let history = self.store.samples(id)?;
        let last = self.store.last_mark(id)?;
        if let Some(live) = self.jobs.get_mut(&id) {
            live.end = end.map(Arc::new);
            if let Some(last) = last {
                live.meter.resume(&last);
                live.heard = last.sample.at;
            }
            live.history = history;
            live.restore_times(&times);
        }
        for side in Side::BOTH {
            let event = JobEvent::Down {
                side,
                since: now,
                parting: Parting::Lost,
            };
            self.advance(id, event, now);
        }
        Ok(())
    }

    /// Adds a job to those in memory.
    pub(super) fn adopt(&mut self, job: Job, copied: CopyProgress, now: Timestamp) {
        let mut meter = Meter::default();
        meter.observe(&job, &copied, now);
        let state = self.state_of(&job.spec.target);
        let view = meter.view(&job, state, &copied, Detail::Active, now);
        let (feed, _) = watch::channel(Feed {
            version: 0,
            view: Arc::new(view),
            end: None,
        });
        let live = Live {
            copied,
            health: JobHealth::default(),
            locks: JobLocks::default(),
            meter,
            feed,
            lease: Lease::EMPTY,
            waiting: Vec::new(),
            began: BTreeMap::new(),
            slowest: Slowest::default(),
            workers: job.spec.parallel,
            copy: None,
            end: None,
            complaints: Vec::new(),
            given_up: Vec::new(),
            left_on: Vec::new(),
            afterwards: Afterwards::Keep,
            heard: now,
            published: now,
            mirrored: now,
            sampled: now,
            history: Vec::new(),
            job,
        };
        self.jobs.insert(live.job.id, live);
    }

    /// Loads a job that has ended into memory, with the presence of its agents.
    pub(super) fn revive(&mut self, stored: StoredJob, now: Timestamp) -> Result<(), StoreError> {
        let id = stored.job.id;
        let ends: [NodeId; 2] = Side::BOTH.map(|side| side.node(&stored.job.spec).clone());
        let (copied, _) = self.recount(&stored.job)?;
        self.adopt(stored.job, copied, now);
        for node in ends {
            self.note_presence(id, &node, now);
        }
        Ok(())
    }

    /// The stored plan, copied parts and table times.
    fn recount(&mut self, job: &Job) -> Result<(CopyProgress, Vec<TableTimes>), StoreError> {
        let id = job.id;
        let mut copied = CopyProgress::recalled(job.recalled.unwrap_or_default());
        let mut times = Vec::new();
        let mut plan = self.store.plan(id)?;
        let rest = plan.split_off(plan.len().min(job.kept.tables as usize));
        if !plan.is_empty() {
            copied.keep(plan.into_iter().map(StoredTable::complete).collect());
        }
        for table in rest {
            let sum = table.sum;
            times.extend(table.times);
            if let Err(misfit) = copied.add_page(std::slice::from_ref(&table.summary)) {
                return Err(StoreError::Corrupt {
                    what: format!("plan of job {id}"),
                    reason: misfit.to_string(),
                });
            }
            copied.restore_table(sum.no, sum.done, sum.rows, sum.bytes);
        }
        let mut misfit = None;
        self.store.parts(id, &mut |part| {
            if let Err(error) = copied.note(&part) {
                misfit = Some(error);
            }
        })?;
        match misfit {
            Some(error) => Err(StoreError::Corrupt {
                what: format!("parts of job {id}"),
                reason: error.to_string(),
            }),
            None => Ok((copied, times)),
        }
    }

    /// The progress and meter of a job that has ended.
    pub(super) fn look_at(
        &mut self,
        stored: &StoredJob,
        now: Timestamp,
    ) -> Result<(CopyProgress, Meter), StoreError> {
        let (mut copied, _) = self.recount(&stored.job)?;
        if let Some(end) = &stored.end {
            copied.restore_wire(ByteCount(end.wire_bytes));
        }
        let mut meter = Meter::default();
        meter.observe(&stored.job, &copied, now);
        Ok((copied, meter))
    }

    /// The active job whose source the node is, if any.
    pub(super) fn serves(&self, node: &NodeId) -> Option<JobId> {
        let at_work = |live: &&Live| {
            live.job.spec.source == *node && self.state_of(&live.job.spec.target).is_active()
        };
        self.jobs.values().find(at_work).map(|live| live.job.id)
    }

    /// The job at work on the node, or its last one, if it is in memory.
    pub(super) fn live_job(&self, node: &NodeId) -> Option<JobId> {
        let id = self.nodes.get(node)?.newest_job()?;
        self.jobs.contains_key(&id).then_some(id)
    }

    /// Whether the node's state allows it to be a source.
    pub(super) fn may_be_source(&self, node: &NodeId) -> bool {
        matches!(
            self.state_of(node),
            NodeState::Synchronized | NodeState::Uninitialized
        )
    }
}
