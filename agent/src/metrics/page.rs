//! The metrics page. A test compares it with docs/metrics.md.

use std::fmt;
use std::sync::atomic::Ordering;

use steep_daemon::metrics::{Collector, DescriptorEncoder, Page};
use steep_protocol::message::agent::Observed;
use steep_protocol::quic::PeerStats;

use super::Sources;

impl Collector for Sources {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut page = Page::new(encoder);
        let labels = [
            ("node", self.node.as_str()),
            ("version", env!("CARGO_PKG_VERSION")),
        ];
        page.gauge(
            "steep_agent_info",
            "1; who this is and which version",
            [(labels, 1u64)],
        )?;
        self.rows(&mut page)?;
        self.work(&mut page)?;
        self.server(&mut page)?;
        paths(&mut page, &self.telemetry.links.stats())
    }
}

impl Sources {
    fn rows(&self, page: &mut Page<'_>) -> fmt::Result {
        let (sent, received) = (self.telemetry.sent.sum(), self.reports.received.sum());
        let both = |sent: u64, received: u64| {
            [
                ([("direction", "sent")], sent),
                ([("direction", "received")], received),
            ]
        };
        page.counter(
            "steep_agent_copy_bytes",
            "COPY bytes before compression, of parts that failed later too",
            both(sent.bytes, received.bytes),
        )?;
        page.counter(
            "steep_agent_copy_wire_bytes",
            "The same bytes as they crossed the network",
            both(sent.wire, received.wire),
        )?;
        page.counter(
            "steep_agent_copy_rows",
            "Rows of whole parts: sent, or received and committed",
            both(sent.rows, received.rows),
        )?;
        page.counter(
            "steep_agent_copy_parts",
            "Whole parts: sent, or received and committed",
            both(sent.parts, received.parts),
        )?;
        page.counter(
            "steep_agent_part_retries",
            "Parts begun again after a fault",
            [([], self.reports.retries())],
        )?;
        self.exchanged(page)
    }

    fn exchanged(&self, page: &mut Page<'_>) -> fmt::Result {
        let (sent, received) = (self.kept.served.sum(), self.kept.fetched.sum());
        let both = |sent: u64, received: u64| {
            [
                ([("direction", "sent")], sent),
                ([("direction", "received")], received),
            ]
        };
        page.counter(
            "steep_agent_exchanged_parts",
            "Whole parts that targets of a shared snapshot sent one another; the copy counters count them too",
            both(sent.parts, received.parts),
        )?;
        page.counter(
            "steep_agent_exchanged_wire_bytes",
            "The same parts' bytes as they crossed the network",
            both(sent.wire, received.wire),
        )?;
        page.gauge(
            "steep_agent_kept_bytes",
            "Disk space of parts that are kept for other targets",
            [([], self.kept.used().0)],
        )?;
        page.gauge(
            "steep_agent_kept_limit_bytes",
            "Disk space that such parts may take",
            [([], self.kept.limit().0)],
        )
    }

    fn work(&self, page: &mut Page<'_>) -> fmt::Result {
        let load = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let telemetry = &self.telemetry;
        page.gauge(
            "steep_agent_commands_running",
            "Commands of the coordinator at work",
            [([], load(&telemetry.running))],
        )?;
        page.counter(
            "steep_agent_commands",
            "Commands that have ended, by how",
            [
                ([("outcome", "done")], load(&telemetry.done)),
                ([("outcome", "failed")], load(&telemetry.failed)),
                ([("outcome", "cancelled")], load(&telemetry.cancelled)),
            ],
        )?;
        let queues = self.reports.depths();
        page.gauge(
            "steep_agent_workers_busy",
            "Parts being loaded now",
            [([], queues.loading)],
        )?;
        let mirror = self.mirror.max_capacity() - self.mirror.capacity();
        page.gauge(
            "steep_agent_queue_depth",
            "What waits: parts to be fetched, parts done that the coordinator has not been told of, \
             rows for steep_repl",
            [
                ([("queue", "parts")], queues.waiting),
                ([("queue", "reports")], queues.untold),
                ([("queue", "mirror")], mirror as u64),
            ],
        )?;
        let budgets = [
            ("sent", &self.budgets.sent),
            ("received", &self.budgets.received),
        ];
        page.gauge(
            "steep_agent_memory_budget_bytes",
            "Memory that parts under way may hold at once",
            budgets.map(|(direction, budget)| ([("direction", direction)], budget.limit() as u64)),
        )?;
        page.gauge(
            "steep_agent_memory_used_bytes",
            "Of that memory, what is set aside for parts under way",
            budgets.map(|(direction, budget)| ([("direction", direction)], budget.used() as u64)),
        )?;
        page.gauge(
            "steep_agent_coordinator_connected",
            "Whether there is a session with the coordinator",
            [([], u64::from(telemetry.coordinator.load(Ordering::Relaxed)))],
        )
    }

    fn server(&self, page: &mut Page<'_>) -> fmt::Result {
        let seen = self.seen.borrow().clone();
        let up = matches!(seen.postgres, Some(Ok(_)));
        page.gauge(
            "steep_agent_postgres_up",
            "Whether PostgreSQL answered when it was last asked, about every second",
            [([], u64::from(up))],
        )?;
        let ages = self.jobs.snapshot_ages();
        page.gauge(
            "steep_agent_snapshots_open",
            "Exported snapshots held open, each holding back VACUUM",
            [([], ages.len() as u64)],
        )?;
        let oldest = ages.iter().max().copied().unwrap_or_default();
        page.gauge(
            "steep_agent_snapshot_age_seconds",
            "Age of the oldest snapshot held open; 0 without one",
            [([], oldest.as_secs_f64())],
        )?;
        if up {
            replication(page, &seen)?;
        }
        Ok(())
    }
}

/// Left out where the server does not answer.
fn replication(page: &mut Page<'_>, seen: &Observed) -> fmt::Result {
    let (slots, subscriptions) = (&seen.slots, &seen.subscriptions);
    let active = slots.iter().filter(|s| s.active).count() as u64;
    let state = |first: &'static str, second: &'static str, of_first: u64, all: usize| {
        [
            ([("state", first)], of_first),
            ([("state", second)], all as u64 - of_first),
        ]
    };
    page.gauge(
        "steep_agent_slots",
        "Replication slots of ours on this server",
        state("active", "inactive", active, slots.len()),
    )?;
    let lost = slots.iter().filter(|s| s.wal_status == "lost").count();
    page.gauge(
        "steep_agent_slots_lost",
        "Slots of ours whose WAL is gone: their nodes must be initialised again",
        [([], lost as u64)],
    )?;
    let lag = slots.iter().map(|s| s.lag.0).max().unwrap_or(0);
    page.gauge(
        "steep_agent_slot_lag_bytes",
        "WAL that the furthest behind of our slots' subscribers has not confirmed",
        [([], lag)],
    )?;
    let held = slots.iter().map(|s| s.wal_held.0).max().unwrap_or(0);
    page.gauge(
        "steep_agent_wal_held_bytes",
        "WAL that this server keeps because of our slots",
        [([], held)],
    )?;
    let running = subscriptions.iter().filter(|s| s.running).count() as u64;
    page.gauge(
        "steep_agent_subscriptions",
        "Subscriptions of ours on this server",
        state("running", "stopped", running, subscriptions.len()),
    )?;
    let errors = subscriptions.iter().map(|s| s.apply_errors).sum::<u64>();
    page.gauge(
        "steep_agent_apply_errors",
        "Errors of our subscriptions' apply workers, as PostgreSQL 15 and newer count them",
        [([], errors)],
    )
}

fn paths(page: &mut Page<'_>, peers: &[PeerStats]) -> fmt::Result {
    page.paths("steep_agent", "by the peer's name", peers)?;
    let live = peers.iter().filter(|p| p.connections > 0);
    page.gauge(
        "steep_agent_quic_congestion_window_bytes",
        "Bytes that may be on their way to the peer",
        live.map(|p| ([("peer", p.peer.as_str())], p.congestion_window)),
    )
}
