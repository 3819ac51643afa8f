//! Views of nodes and jobs.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use steep_protocol::message::agent::{MirrorProgress, MirrorRow};
use steep_protocol::message::api::{
    EndView, JobView, NodeView, ProgressDetail, ProgressView, Report, TableView, WaitingView,
};
use steep_protocol::message::job::ReplicationNames;
use steep_protocol::{ByteCount, Fault, JobId, NodeId, NodeState, RowCount};

use super::{Driver, Feed, Follow, Live};
use crate::job::Job;
use crate::job::progress::{Detail, current_phase};
use crate::job::report::{phase_times, report, warnings};
use crate::job::retry;
use crate::job::time::after;
use crate::store::{NodeRecord, Store};

/// How often a follower gets an update if nothing changes.
const REPUBLISH: Duration = Duration::from_millis(500);

impl<S: Store> Driver<S> {
    /// Views of nodes. Watchers ask for all nodes often, so replicas are grouped by source once rather
    /// than searched for each node.
    pub(super) fn node_views<'a>(
        &self,
        records: impl Iterator<Item = &'a NodeRecord>,
        now: Timestamp,
    ) -> Vec<NodeView> {
        let mut replicas: BTreeMap<&NodeId, Vec<NodeId>> = BTreeMap::new();
        for record in self.nodes.values() {
            if let Some(source) = &record.source
                && self.has_rows_of_source(record)
            {
                replicas.entry(source).or_default().push(record.id.clone());
            }
        }
        records
            .map(|record| NodeView {
                replicas: replicas.remove(&record.id).unwrap_or_default(),
                ..self.node_view(record, now)
            })
            .collect()
    }

    /// Whether a node has rows of its source, or is to get them. A failed job that kept nothing leaves none.
    fn has_rows_of_source(&self, record: &NodeRecord) -> bool {
        let live = record.newest_job().and_then(|id| self.jobs.get(&id));
        record.state != NodeState::Failed
            || live.is_some_and(|live| live.job.kept_until().is_some())
    }

    /// A view of a node without its replicas.
    pub(super) fn node_view(&self, record: &NodeRecord, now: Timestamp) -> NodeView {
        let agent = self.registry.get(&record.id);
        let live = record.newest_job().and_then(|id| self.jobs.get(&id));
        let slot = self.registry.slot(record);
        let follows = matches!(
            record.state,
            NodeState::CatchingUp
                | NodeState::Synchronized
                | NodeState::Diverged
                | NodeState::Reinitializing
        );
        let observed = agent.and_then(|a| a.observed.postgres.as_ref());
        NodeView {
            node_id: record.id.clone(),
            state: record.state,
            source_node: record.source.clone(),
            init_started_at: record.init_started_at,
            init_completed_at: record
                .init_completed_at
                .filter(|completed| Some(*completed) >= record.init_started_at),
            error_message: record.error_message.clone(),
            agent_online: agent.is_some(),
            lag_bytes: slot.filter(|_| follows).map(|s| s.lag.0),
            progress: live
                .filter(|_| record.state.is_active())
                .map(|live| live.meter.overall_percent()),
            agent_version: record.agent_version.clone(),
            postgres_version: record.postgres_version,
            postgres_error: observed.and_then(|p| p.as_ref().err()).cloned(),
            wal_held_bytes: slot.map(|s| s.wal_held.0),
            missing_objects: record.missing.total,
            unseen_since: self.unseen_since(&record.id),
            warnings: self.warnings(record),
            waiting: live.and_then(|live| self.waiting(live, now)),
            kept_until: live.and_then(|live| live.job.kept_until()),
            replicas: Vec::new(),
            subscription_name: record
                .replication()
                .filter(|_| follows)
                .map(|job| ReplicationNames(job).name()),
            needs_init: record.lost.is_some(),
            loaded: record.loaded.clone(),
            detached: record.detached.clone(),
            sequences: self
                .sequences
                .get(&record.id)
                .filter(|_| record.state == NodeState::Synchronized)
                .map(|kept| kept.view.clone()),
            switchover: self.switchover_view(&record.id, now),
            verify: self.schedule_view(record),
        }
    }

    /// What a job waits for.
    fn waiting(&self, live: &Live, now: Timestamp) -> Option<WaitingView> {
        retry::waiting(&live.job, &self.rules.patience, now)
            .or_else(|| self.waiting_for_snapshot(&live.job, now))
            .or_else(|| live.health.waiting(&live.job, now))
    }

    /// How a job ended.
    pub(super) fn end_view(
        &self,
        id: &JobId,
        state: NodeState,
        fault: Option<Fault>,
        now: Timestamp,
    ) -> EndView {
        // The caller has checked that the job is in memory.
        let live = &self.jobs[id];
        let (job, counted) = (&live.job, live.copied.counted().done);
        EndView {
            node_id: job.spec.target.clone(),
            job_id: job.id,
            source_node: job.spec.source.clone(),
            state,
            fault,
            tables: live.meter.tables(job, &live.copied).1,
            rows_copied: counted.rows.0,
            bytes_copied: live.meter.bytes(&live.copied),
            wire_bytes: live.copied.wire().0,
            duration_seconds: job.elapsed_seconds(now),
            phases: job.clock.seconds(),
            warnings: warnings(job),
            report: Report {
                ended_at: Some(job.ended_at.unwrap_or(now)),
                ..report(job, live.workers, &live.slowest)
            },
        }
    }

    /// A job in memory in full.
    pub(super) fn live_job_view(&self, id: JobId, now: Timestamp) -> Option<JobView> {
        let live = self.jobs.get(&id)?;
        let state = self.state_of(&live.job.spec.target);
        let view = live.view(state, Detail::Shown, now);
        let end = live.end.as_deref().cloned();
        Some(job_view(&live.job, view.tables, end))
    }

    /// Publishes a job's newest view to its followers. Returns whether it has changed.
    pub(super) fn publish(&mut self, id: JobId, now: Timestamp) -> bool {
        let Some(live) = self.jobs.get(&id) else {
            return false;
        };
        // Without followers nothing is published, except the end, for who asks later.
        if live.feed.receiver_count() == 0 && live.end.is_none() {
            return false;
        }
        self.show(id, now)
    }

    /// Updates a job's feed. Returns whether it has changed.
    fn show(&mut self, id: JobId, now: Timestamp) -> bool {
        let Some(live) = self.jobs.get(&id) else {
            return false;
        };
        let state = self.state_of(&live.job.spec.target);
        let mut view = live.view(state, Detail::Active, now);
        view.detail.waiting = self.waiting(live, now);
        view.detail.spool_percent = self.spool_percent(&live.job);
        view.detail.spool_note = self.spool_note(&live.job, now);
        let Some(live) = self.jobs.get_mut(&id) else {
            return false;
        };
        let shown = live.feed.borrow().clone();
        let same = *shown.view == view && shown.end == live.end;
        if same && now < after(live.published, REPUBLISH) {
            return false;
        }
        live.published = now;
        live.feed.send_replace(Feed {
            version: shown.version + 1,
            view: Arc::new(view),
            end: live.end.clone(),
        });
        true
    }

    /// A job to follow from now on.
    pub(super) fn follow(&mut self, id: JobId, now: Timestamp) -> Option<Follow> {
        // The feed is not updated without followers.
        self.show(id, now);
        let live = self.jobs.get(&id)?;
        Some(Follow {
            node: live.job.spec.target.clone(),
            job: id,
            feed: live.feed.subscribe(),
        })
    }

    /// The progress of a job in memory, with all tables.
    pub(super) fn full_view(&self, id: JobId, now: Timestamp) -> Option<ProgressView> {
        let live = self.jobs.get(&id)?;
        let state = self.state_of(&live.job.spec.target);
        let view = live.view(state, Detail::All, now);
        let history = live.history.clone();
        Some(ProgressView {
            detail: ProgressDetail {
                history,
                waiting: self.waiting(live, now),
                spool_percent: self.spool_percent(&live.job),
                spool_note: self.spool_note(&live.job, now),
                ..view.detail
            },
            ..view
        })
    }

    /// A node's mirror row.
    pub(super) fn mirror_row(&self, node: &NodeId, now: Timestamp) -> Option<MirrorRow> {
        let record = self.nodes.get(node)?;
        let live = record.newest_job().and_then(|id| self.jobs.get(&id));
        let counted = live.map(|l| l.copied.counted().done).unwrap_or_default();
        let tables = live.map_or((0, 0), |l| {
            let (total, done) = l.meter.tables(&l.job, &l.copied);
            let narrow = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
            (narrow(done), narrow(total))
        });
        let finished = if record.state == NodeState::Synchronized {
            100.0
        } else {
            0.0
        };
        let progress = live.map(|live| {
            let view = live
                .meter
                .view(&live.job, record.state, &live.copied, Detail::Active, now);
            MirrorProgress {
                bytes_total: ByteCount(view.bytes_total),
                wire_bytes: ByteCount(view.wire_bytes),
                rows_sec: view.throughput_rows_sec,
                bytes_sec: view.throughput_bytes_sec,
                eta_seconds: view.eta_seconds,
                workers: view.parallel_workers,
                retries: view.detail.retries,
            }
        });
        Some(MirrorRow {
            progress: progress.unwrap_or_default(),
            state: record.state,
            source: record.source.clone(),
            // Nothing of a cancelled job is left.
            job: record
                .job
                .filter(|_| record.state != NodeState::Uninitialized),
            phase: live
                .filter(|_| record.state.is_active())
                .and_then(|l| current_phase(&l.job)),
            overall_percent: live.map_or(finished, |l| l.meter.overall_percent()),
            tables,
            rows: RowCount(counted.rows.0),
            bytes: live.map_or(counted.bytes, |l| ByteCount(l.meter.bytes(&l.copied))),
            error: record.error_message.clone(),
        })
    }
}

/// A job in full.
pub(super) fn job_view(job: &Job, tables: Vec<TableView>, end: Option<EndView>) -> JobView {
    JobView {
        job_id: job.id,
        spec: job.spec.clone(),
        operator: job.operator.clone(),
        accepted_at: job.accepted_at,
        ended_at: job.ended_at,
        phase_times: phase_times(&job.clock),
        current_phase: job.clock.current,
        findings: job.warnings.clone(),
        tables,
        end: end.map(Box::new),
    }
}

/// The progress of a node without a job.
pub(super) fn idle_view(record: &NodeRecord) -> ProgressView {
    ProgressView {
        node_id: record.id.clone(),
        job_id: None,
        source_node: record.source.clone(),
        state: record.state,
        phase: None,
        overall_percent: 0.0,
        phase_percent: None,
        tables_total: 0,
        tables_completed: 0,
        current_table: None,
        current_table_percent: None,
        rows_copied: 0,
        bytes_copied: 0,
        bytes_total: 0,
        wire_bytes: 0,
        throughput_rows_sec: 0.0,
        throughput_bytes_sec: 0.0,
        eta_seconds: None,
        parallel_workers: 0,
        started_at: record.init_started_at,
        error_message: record.error_message.clone(),
        tables: Vec::new(),
        detail: ProgressDetail::default(),
    }
}
