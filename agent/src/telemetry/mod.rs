//! What this agent tells Prometheus: counters that work adds to, and a page written when somebody
//! scrapes.
//!
//! Owns counters and the list of live connections; everything else is asked of who owns it at the
//! moment of a scrape. Labels are peers' names and fixed words, never tables or jobs, so the number
//! of series is bounded by the cluster's size. Names, units and labels: docs/metrics.md.

mod flow;
mod links;
mod page;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use steep_daemon::http::Scrape;
use steep_daemon::metrics::{self, Registry};
use steep_protocol::NodeId;
use steep_protocol::message::agent::{MirrorRow, Observed};
use tokio::sync::{mpsc, watch};

pub use flow::Flow;
pub use links::{Links, Watched};

use crate::peer::serve::SourceJobs;
use crate::session::Reports;

/// What work adds to.
#[derive(Debug, Default)]
pub struct Telemetry {
    /// Rows read here and sent to peers.
    pub sent: Flow,
    /// Connections.
    pub links: Links,
    coordinator: AtomicBool,
    running: AtomicU64,
    done: AtomicU64,
    failed: AtomicU64,
    cancelled: AtomicU64,
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommandEnd {
    /// Well.
    Done,
    /// With a fault.
    Failed,
    /// By an abort.
    Cancelled,
}

impl Telemetry {
    /// The coordinator has welcomed this agent, or has gone.
    pub fn coordinator(&self, connected: bool) {
        self.coordinator.store(connected, Ordering::Relaxed);
    }

    /// A command begins.
    pub fn command_began(&self) {
        self.running.fetch_add(1, Ordering::Relaxed);
    }

    /// One has ended.
    pub fn command_ended(&self, how: CommandEnd) {
        self.running.fetch_sub(1, Ordering::Relaxed);
        let counter = match how {
            CommandEnd::Done => &self.done,
            CommandEnd::Failed => &self.failed,
            CommandEnd::Cancelled => &self.cancelled,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// Everything that a scrape looks at.
#[derive(Debug)]
pub struct Sources {
    /// This node.
    pub node: NodeId,
    /// The counters.
    pub telemetry: Arc<Telemetry>,
    /// Jobs for which it is the source.
    pub jobs: Arc<SourceJobs>,
    /// What its tasks report.
    pub reports: Arc<Reports>,
    /// What is observed of the server.
    pub seen: watch::Receiver<Observed>,
    /// Rows waiting to be mirrored.
    pub mirror: mpsc::Sender<MirrorRow>,
}

/// Answers scrapes.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
}

impl Metrics {
    /// Metrics out of these.
    #[must_use]
    pub fn new(sources: Sources) -> Self {
        let mut registry = metrics::registry();
        registry.register_collector(Box::new(sources));
        Self { registry }
    }
}

impl Scrape for Metrics {
    async fn scrape(&self) -> Option<String> {
        Some(metrics::text(&self.registry))
    }
}
