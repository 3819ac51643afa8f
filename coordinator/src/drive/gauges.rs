//! The values of metrics: counters that the loop keeps, and gauges that are collected for each scrape.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use steep_protocol::message::agent::PartDone;
use steep_protocol::message::snapshot::SnapshotState;
use steep_protocol::{NodeId, NodeState, Phase};

use super::Driver;
use crate::job::progress::{Detail, current_phase};
use crate::store::Store;

/// Counters since the coordinator was started.
#[derive(Debug, Clone, Default)]
pub(super) struct Counters {
    copied: BTreeMap<NodeId, Copied>,
    events: BTreeMap<&'static str, u64>,
    ended: Ended,
    turns: u64,
    busy: Duration,
}

/// What has been copied to a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Copied {
    /// Parts committed.
    pub parts: u64,
    /// Rows in them.
    pub rows: u64,
    /// COPY bytes in them.
    pub bytes: u64,
    /// The same bytes as they crossed the network.
    pub wire: u64,
}

/// Jobs that have ended, by outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ended {
    /// Well.
    pub completed: u64,
    /// With an error.
    pub failed: u64,
    /// By an operator.
    pub cancelled: u64,
}

impl Counters {
    /// Counts newly committed parts.
    pub(super) fn copied(&mut self, node: &NodeId, parts: &[PartDone]) {
        let copied = self.copied.entry(node.clone()).or_default();
        for part in parts {
            copied.parts += 1;
            copied.rows += part.rows.0;
            copied.bytes += part.bytes.0;
            copied.wire += part.wire.0;
        }
    }

    /// Counts an event.
    pub(super) fn event(&mut self, event: &'static str) {
        *self.events.entry(event).or_default() += 1;
    }

    /// Counts a job that ended with that event.
    pub(super) fn ended(&mut self, event: &str) {
        match event {
            "init.completed" | "tables.added" | "tables.dropped" => self.ended.completed += 1,
            "init.failed" => self.ended.failed += 1,
            // init.cancelled, or init.cleanup_pending where something is left to remove.
            _ => self.ended.cancelled += 1,
        }
    }

    /// Counts a turn of the loop.
    pub(super) fn turn(&mut self, took: Duration) {
        self.turns += 1;
        self.busy += took;
    }
}

/// The values of all metrics.
#[derive(Debug, Clone, Default)]
pub struct Gauges {
    /// Every node.
    pub nodes: Vec<NodeGauges>,
    /// Running jobs.
    pub jobs: Vec<JobGauges>,
    /// Jobs that have ended and are kept or being cleaned up.
    pub cleaning: u64,
    /// Snapshots by state.
    pub snapshots: Vec<(SnapshotState, u64)>,
    /// Snapshots by source.
    pub sources: Vec<(NodeId, SourceGauges)>,
    /// What has been copied, by target.
    pub copied: Vec<(NodeId, Copied)>,
    /// How often each event was logged.
    pub events: Vec<(&'static str, u64)>,
    /// Jobs that have ended.
    pub ended: Ended,
    /// Agents' messages waiting for the loop.
    pub agent_queue: u64,
    /// Questions waiting for the loop.
    pub ask_queue: u64,
    /// The length of the longest outbox.
    pub outbox: u64,
    /// Audit entries that nodes have not confirmed.
    pub audit_due: u64,
    /// Turns of the loop.
    pub turns: u64,
    /// Time spent in them.
    pub busy: Duration,
}

/// One node.
#[derive(Debug, Clone)]
pub struct NodeGauges {
    /// Its name.
    pub node: NodeId,
    /// Its state.
    pub state: NodeState,
    /// Whether its agent has a session.
    pub connected: bool,
    /// Whether its PostgreSQL answered last; `None` if unknown.
    pub postgres: Option<bool>,
    /// For how many seconds it has been unreachable.
    pub unseen: f64,
    /// Its replication from its source, if it follows one.
    pub follows: Option<Follows>,
}

/// A subscriber's slot, as its source's agent last observed it.
#[derive(Debug, Clone)]
pub struct Follows {
    /// The source.
    pub source: NodeId,
    /// WAL that is not confirmed, in bytes.
    pub lag: u64,
    /// WAL that the source keeps for it, in bytes.
    pub wal_held: u64,
    /// Whether it is connected.
    pub active: bool,
    /// When its sequences were last set to the source's, in seconds since 1970.
    pub sequences_set: Option<i64>,
    /// Tables of the source that were created since and that it does not follow.
    pub not_followed: u64,
}

/// The snapshots of one source.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct SourceGauges {
    /// WAL that the template which holds most of it keeps: the others' WAL is among that.
    pub wal_held: Option<u64>,
    /// Bytes of the complete ones' files.
    pub stored: u64,
    /// Seconds until the first of them expires.
    pub expires: Option<f64>,
    /// Age of the oldest one that is held open, in seconds.
    pub live_age: Option<f64>,
}

/// A running job.
#[derive(Debug, Clone)]
pub struct JobGauges {
    /// Its target.
    pub node: NodeId,
    /// Its phase.
    pub phase: Option<Phase>,
    /// 0 to 100.
    pub overall_percent: f64,
    /// COPY bytes so far.
    pub bytes: u64,
    /// COPY bytes in total, an estimate.
    pub bytes_total: u64,
    /// The state of its target.
    pub state: NodeState,
    /// Bytes per second of the phase's work, if known.
    pub bytes_sec: Option<f64>,
    /// Seconds since it last made progress.
    pub still: f64,
    /// Rows committed.
    pub rows: u64,
    /// Parts committed and in total.
    pub parts: (u64, u64),
    /// Parts restarted.
    pub retries: u64,
    /// Workers busy.
    pub workers: u8,
    /// Seconds since it was accepted.
    pub age: f64,
    /// Seconds until the phase ends, if known.
    pub eta: Option<u64>,
}

impl<S: Store> Driver<S> {
    /// Collects the values of all metrics.
    pub(super) fn gauges(&self, now: Timestamp) -> Gauges {
        let jobs: Vec<JobGauges> = self
            .jobs
            .values()
            .filter(|live| live.end.is_none())
            .map(|live| self.job_gauges(live, now))
            .collect();
        Gauges {
            nodes: self
                .nodes
                .values()
                .map(|n| self.node_gauges(n, now))
                .collect(),
            cleaning: (self.jobs.len() - jobs.len()) as u64,
            jobs,
            snapshots: SnapshotState::ALL
                .map(|state| (state, self.snapshots_in(state)))
                .to_vec(),
            sources: self.source_gauges(now),
            copied: pairs(&self.counters.copied),
            events: pairs(&self.counters.events),
            ended: self.counters.ended,
            agent_queue: self.agents.len() as u64,
            ask_queue: self.asks.len() as u64,
            outbox: self.registry.longest_outbox() as u64,
            audit_due: self.audit_due.values().map(Vec::len).sum::<usize>() as u64,
            turns: self.counters.turns,
            busy: self.counters.busy,
        }
    }

    fn node_gauges(&self, record: &crate::store::NodeRecord, now: Timestamp) -> NodeGauges {
        let view = self.node_view(record, now);
        let agent = self.registry.get(&record.id);
        let slot = self.registry.slot(record);
        NodeGauges {
            node: record.id.clone(),
            state: record.state,
            connected: view.agent_online,
            postgres: agent
                .and_then(|a| a.observed.postgres.as_ref())
                .map(Result::is_ok),
            unseen: self.unseen_for(&record.id, now).as_secs_f64(),
            follows: record
                .source
                .as_ref()
                .zip(slot)
                .map(|(source, slot)| Follows {
                    source: source.clone(),
                    lag: slot.lag.0,
                    wal_held: slot.wal_held.0,
                    active: slot.active,
                    sequences_set: view
                        .sequences
                        .as_ref()
                        .and_then(|known| known.set_at)
                        .map(Timestamp::as_second),
                    not_followed: record.appeared.len() as u64,
                }),
        }
    }

    fn job_gauges(&self, live: &super::Live, now: Timestamp) -> JobGauges {
        let (job, copied) = (&live.job, &live.copied);
        let state = self.state_of(&job.spec.target);
        let view = live.meter.view(job, state, copied, Detail::Active, now);
        let counted = copied.counted();
        JobGauges {
            node: view.node_id,
            phase: current_phase(job),
            overall_percent: view.overall_percent,
            bytes: view.bytes_copied,
            bytes_total: view.bytes_total,
            state,
            bytes_sec: view.detail.phase_bytes_sec,
            still: live.meter.seconds_still(now),
            rows: view.rows_copied,
            parts: (counted.done.parts.into(), counted.planned.into()),
            retries: view.detail.retries,
            workers: view.parallel_workers,
            age: job.elapsed_seconds(now),
            eta: view.eta_seconds,
        }
    }
}

fn pairs<K: Clone, V: Copy>(map: &BTreeMap<K, V>) -> Vec<(K, V)> {
    map.iter()
        .map(|(key, value)| (key.clone(), *value))
        .collect()
}
