//! The metrics page. Each scrape asks the loop once; between scrapes it costs nothing. Labels are
//! nodes, phases and fixed words, never tables or job ids. A test compares this with docs/metrics.md.

use std::fmt;
use std::sync::{Mutex, PoisonError};

use steep_daemon::http::{Health, Scrape};
use steep_daemon::metrics::{self, Collector, DescriptorEncoder, Label, Page, Registry};
use steep_protocol::quic::{Links, PeerStats};
use steep_protocol::{NodeState, Phase};
use tokio::sync::{mpsc, oneshot};

use crate::drive::{Answer, Ask, Copied, Gauges, JobGauges, NodeGauges, Question, SourceGauges};

/// Answers scrapes from the loop's state.
#[derive(Debug)]
pub(crate) struct Metrics {
    asks: mpsc::Sender<Ask>,
    links: Links,
}

impl Metrics {
    /// Metrics of the loop that reads `asks`, and of the connections in `links`.
    pub(crate) fn new(asks: mpsc::Sender<Ask>, links: Links) -> Self {
        Self { asks, links }
    }
}

impl Scrape for Metrics {
    async fn health(&self) -> Health {
        let (reply, answer) = oneshot::channel();
        let question = Question::Alive;
        if self.asks.send(Ask { question, reply }).await.is_ok()
            && matches!(answer.await, Ok(Ok(_)))
        {
            Health::Well
        } else {
            Health::Ill
        }
    }

    async fn scrape(&self) -> Option<String> {
        let (reply, answer) = oneshot::channel();
        let question = Question::Gauges;
        self.asks.send(Ask { question, reply }).await.ok()?;
        let Ok(Ok(Answer::Gauges(gauges))) = answer.await else {
            return None;
        };
        let mut registry: Registry = metrics::registry();
        registry.register_collector(Box::new(Snapshot {
            gauges: Mutex::new(*gauges),
            paths: self.links.stats(),
        }));
        Some(metrics::text(&registry))
    }
}

/// The values of one scrape. The lock is never contended: `Collector` requires `Sync`.
#[derive(Debug)]
struct Snapshot {
    gauges: Mutex<Gauges>,
    paths: Vec<PeerStats>,
}

impl Collector for Snapshot {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let gauges = self.gauges.lock().unwrap_or_else(PoisonError::into_inner);
        let mut page = Page::new(encoder);
        let version = [("version", env!("CARGO_PKG_VERSION"))];
        page.gauge(
            "steep_coordinator_info",
            "1, with the version as a label",
            [(version, 1u64)],
        )?;
        nodes(&mut page, &gauges.nodes)?;
        jobs(&mut page, &gauges)?;
        job_progress(&mut page, &gauges.jobs)?;
        snapshots(&mut page, &gauges)?;
        copied(&mut page, &gauges)?;
        coordinator(&mut page, &gauges)?;
        paths(&mut page, &self.paths)
    }
}

fn nodes(page: &mut Page<'_>, nodes: &[NodeGauges]) -> fmt::Result {
    let in_state = |state| nodes.iter().filter(|n| n.state == state).count() as u64;
    page.gauge(
        "steep_coordinator_nodes",
        "Nodes by state",
        NodeState::ALL.map(|state| ([("state", state.as_str())], in_state(state))),
    )?;
    page.gauge(
        "steep_coordinator_node_state",
        "1 for the state that the node is in",
        nodes.iter().map(|n| {
            (
                [("node", n.node.as_str()), ("state", n.state.as_str())],
                1u64,
            )
        }),
    )?;
    page.gauge(
        "steep_coordinator_agent_connected",
        "Whether the node's agent has a session",
        nodes
            .iter()
            .map(|n| ([("node", n.node.as_str())], u64::from(n.connected))),
    )?;
    page.gauge(
        "steep_coordinator_postgres_up",
        "Whether the node's PostgreSQL answered its agent; absent if unknown",
        nodes
            .iter()
            .filter_map(|n| Some(([("node", n.node.as_str())], u64::from(n.postgres?)))),
    )?;
    page.gauge(
        "steep_coordinator_node_unseen_seconds",
        "How long the node's agent or PostgreSQL has been unreachable; 0 while both are reachable",
        nodes
            .iter()
            .map(|n| ([("node", n.node.as_str())], n.unseen)),
    )?;
    let following = || {
        nodes.iter().filter_map(|n| {
            let follows = n.follows.as_ref()?;
            let labels: [Label<'_>; 2] = [
                ("node", n.node.as_str()),
                ("source", follows.source.as_str()),
            ];
            Some((labels, follows))
        })
    };
    page.gauge(
        "steep_coordinator_replication_lag_bytes",
        "WAL of the source that the node has not confirmed",
        following().map(|(labels, follows)| (labels, follows.lag)),
    )?;
    page.gauge(
        "steep_coordinator_wal_held_bytes",
        "WAL that the source keeps for the node",
        following().map(|(labels, follows)| (labels, follows.wal_held)),
    )?;
    page.gauge(
        "steep_coordinator_subscriber_connected",
        "Whether the node's subscription is connected to its slot",
        following().map(|(labels, follows)| (labels, u64::from(follows.active))),
    )?;
    page.gauge(
        "steep_coordinator_sequences_set_timestamp_seconds",
        "When the node's sequences were last set to the source's; absent while unknown",
        following().filter_map(|(labels, follows)| Some((labels, follows.sequences_set? as f64))),
    )?;
    page.gauge(
        "steep_coordinator_tables_not_followed",
        "Tables that were created on the source since the node was initialised, and that it does not follow",
        following().map(|(labels, follows)| (labels, follows.not_followed)),
    )
}

fn jobs(page: &mut Page<'_>, gauges: &Gauges) -> fmt::Result {
    let in_phase = |phase| {
        gauges
            .jobs
            .iter()
            .filter(|j| j.phase == Some(phase))
            .count() as u64
    };
    let phases = Phase::ALL
        .into_iter()
        .filter(|phase| *phase != Phase::Cleanup);
    let cleaning =
        gauges.cleaning + gauges.jobs.iter().filter(|j| j.phase.is_none()).count() as u64;
    page.gauge(
        "steep_coordinator_jobs",
        "Jobs by phase; cleanup counts ended jobs that are kept or being cleaned up",
        phases
            .map(|phase| ([("phase", phase.as_str())], in_phase(phase)))
            .chain([(
                [("phase", Phase::Cleanup.as_str())],
                cleaning + in_phase(Phase::Cleanup),
            )]),
    )?;
    let in_state = |state| gauges.jobs.iter().filter(|j| j.state == state).count() as u64;
    page.gauge(
        "steep_coordinator_jobs_at_work",
        "Running jobs by the state of their node",
        NodeState::ALL.map(|state| ([("state", state.as_str())], in_state(state))),
    )?;
    let ended = gauges.ended;
    page.counter(
        "steep_coordinator_jobs_ended",
        "Jobs that have ended, by outcome",
        [
            ([("outcome", "completed")], ended.completed),
            ([("outcome", "failed")], ended.failed),
            ([("outcome", "cancelled")], ended.cancelled),
        ],
    )
}

fn job_progress(page: &mut Page<'_>, jobs: &[JobGauges]) -> fmt::Result {
    fn each<'a, V>(
        jobs: &'a [JobGauges],
        value: impl Fn(&JobGauges) -> V,
    ) -> impl Iterator<Item = ([Label<'a>; 1], V)> {
        jobs.iter()
            .map(move |job| ([("node", job.node.as_str())], value(job)))
    }
    page.gauge(
        "steep_coordinator_job_progress_ratio",
        "How far the node's job is, 0 to 1",
        each(jobs, |j| j.overall_percent / 100.0),
    )?;
    page.gauge(
        "steep_coordinator_job_bytes",
        "COPY bytes of the node's job so far",
        each(jobs, |j| j.bytes),
    )?;
    page.gauge(
        "steep_coordinator_job_expected_bytes",
        "Estimated total COPY bytes of the node's job",
        each(jobs, |j| j.bytes_total),
    )?;
    page.gauge(
        "steep_coordinator_job_bytes_per_second",
        "Bytes of the current phase's work per second, smoothed; absent while unknown",
        jobs.iter()
            .filter_map(|j| Some(([("node", j.node.as_str())], j.bytes_sec?))),
    )?;
    page.gauge(
        "steep_coordinator_job_seconds_since_progress",
        "Time since the node's job made progress: a count, a part in transfer or a phase",
        jobs.iter().filter_map(|j| {
            let labels = [("node", j.node.as_str()), ("phase", j.phase?.as_str())];
            Some((labels, j.still))
        }),
    )?;
    page.gauge(
        "steep_coordinator_job_rows",
        "Rows of the node's job that are committed",
        each(jobs, |j| j.rows),
    )?;
    page.gauge(
        "steep_coordinator_job_parts",
        "Parts of the node's job that are committed",
        each(jobs, |j| j.parts.0),
    )?;
    page.gauge(
        "steep_coordinator_job_expected_parts",
        "Total parts of the node's job",
        each(jobs, |j| j.parts.1),
    )?;
    page.gauge(
        "steep_coordinator_job_retries",
        "Parts of the node's job that were retried",
        each(jobs, |j| j.retries),
    )?;
    page.gauge(
        "steep_coordinator_job_workers",
        "Workers of the node's job that are busy",
        each(jobs, |j| u64::from(j.workers)),
    )?;
    page.gauge(
        "steep_coordinator_job_age_seconds",
        "Time since the node's job was accepted",
        each(jobs, |j| j.age),
    )?;
    page.gauge(
        "steep_coordinator_job_eta_seconds",
        "Time until the current phase ends; absent while unknown",
        jobs.iter()
            .filter_map(|j| Some(([("node", j.node.as_str())], j.eta?))),
    )
}

fn snapshots(page: &mut Page<'_>, gauges: &Gauges) -> fmt::Result {
    page.gauge(
        "steep_coordinator_snapshots",
        "Snapshots by state",
        gauges
            .snapshots
            .iter()
            .map(|(state, count)| ([("state", state.name())], *count)),
    )?;
    let each = |value: fn(&SourceGauges) -> Option<f64>| {
        let sources = gauges.sources.iter();
        sources
            .filter_map(move |(node, source)| Some(([("source", node.as_str())], value(source)?)))
    };
    page.gauge(
        "steep_coordinator_snapshot_wal_held_bytes",
        "WAL that the source keeps for the template slot that holds most",
        each(|s| Some(s.wal_held? as f64)),
    )?;
    page.gauge(
        "steep_coordinator_snapshot_stored_bytes",
        "Bytes of the files of the source's complete snapshots",
        each(|s| Some(s.stored as f64)),
    )?;
    page.gauge(
        "steep_coordinator_snapshot_expires_seconds",
        "Time until the first of the source's complete snapshots expires; absent without one",
        each(|s| s.expires),
    )?;
    page.gauge(
        "steep_coordinator_snapshot_live_age_seconds",
        "Age of the oldest snapshot that the source holds open; absent without one",
        each(|s| s.live_age),
    )
}

fn copied(page: &mut Page<'_>, gauges: &Gauges) -> fmt::Result {
    let each = |value: fn(&Copied) -> u64| {
        gauges
            .copied
            .iter()
            .map(move |(node, copied)| ([("node", node.as_str())], value(copied)))
    };
    page.counter(
        "steep_coordinator_copied_bytes",
        "COPY bytes committed on the node",
        each(|c| c.bytes),
    )?;
    page.counter(
        "steep_coordinator_copied_wire_bytes",
        "The same bytes as they crossed the network",
        each(|c| c.wire),
    )?;
    page.counter(
        "steep_coordinator_copied_rows",
        "Rows committed on the node",
        each(|c| c.rows),
    )?;
    page.counter(
        "steep_coordinator_copied_parts",
        "Parts committed on the node",
        each(|c| c.parts),
    )
}

fn coordinator(page: &mut Page<'_>, gauges: &Gauges) -> fmt::Result {
    page.counter(
        "steep_coordinator_events",
        "Events logged, by name",
        gauges
            .events
            .iter()
            .map(|(event, count)| ([("event", *event)], *count)),
    )?;
    page.gauge(
        "steep_coordinator_queue_depth",
        "Queue lengths: agents' messages, operators' questions, the longest queue to an agent, \
         unconfirmed audit entries",
        [
            ([("queue", "agents")], gauges.agent_queue),
            ([("queue", "operators")], gauges.ask_queue),
            ([("queue", "outbox")], gauges.outbox),
            ([("queue", "audit")], gauges.audit_due),
        ],
    )?;
    page.counter(
        "steep_coordinator_turns",
        "Turns of the coordinator's main loop",
        [([], gauges.turns)],
    )?;
    page.counter(
        "steep_coordinator_turn_seconds",
        "Time spent in those turns, the store's writes included",
        [([], gauges.busy.as_secs_f64())],
    )
}

/// Network paths to agents and operators. Agents' own metrics cover the paths between them.
fn paths(page: &mut Page<'_>, peers: &[PeerStats]) -> fmt::Result {
    let by = "by the node's name; operators together";
    page.paths("steep_coordinator", by, peers)
}
