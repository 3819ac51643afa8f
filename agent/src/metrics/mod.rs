//! What this agent tells Prometheus: a page written when somebody scrapes.
//!
//! Owns nothing: each value is asked of who owns it at the moment of a scrape. Labels are peers' names and
//! fixed words, never tables or jobs, so the number of series is bounded by the cluster's size. Names,
//! units and labels: docs/metrics.md.

mod page;

use std::sync::Arc;

use steep_daemon::http::{Health, Scrape};
use steep_daemon::metrics::{self, Registry};
use steep_protocol::NodeId;
use steep_protocol::message::agent::{MirrorRow, Observed};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::budget::Budget;
use crate::session::Reports;
use crate::snapshot::SourceJobs;
use crate::telemetry::Telemetry;

/// Everything that a scrape looks at.
#[derive(Debug)]
pub(crate) struct Sources {
    /// This node.
    pub(crate) node: NodeId,
    /// The counters.
    pub(crate) telemetry: Arc<Telemetry>,
    /// Jobs for which it is the source.
    pub(crate) jobs: Arc<SourceJobs>,
    /// What its tasks report.
    pub(crate) reports: Arc<Reports>,
    /// What is observed of the server.
    pub(crate) seen: watch::Receiver<Observed>,
    /// Rows waiting to be mirrored.
    pub(crate) mirror: mpsc::Sender<MirrorRow>,
    /// What parts that are served may hold in memory, and those that are fetched.
    pub(crate) budgets: Budgets,
}

/// The budgets of both directions.
#[derive(Debug)]
pub(crate) struct Budgets {
    /// For parts that are served.
    pub(crate) sent: Budget,
    /// For parts that are fetched.
    pub(crate) received: Budget,
}

/// Answers scrapes.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    drain: CancellationToken,
}

impl Metrics {
    /// Metrics out of these. Once `drain` is cancelled, the agent is said to stop.
    #[must_use]
    pub(crate) fn new(sources: Sources, drain: CancellationToken) -> Self {
        let mut registry = metrics::registry();
        registry.register_collector(Box::new(sources));
        Self { registry, drain }
    }
}

impl Scrape for Metrics {
    async fn scrape(&self) -> Option<String> {
        Some(metrics::text(&self.registry))
    }

    async fn health(&self) -> Health {
        if self.drain.is_cancelled() {
            Health::Stopping
        } else {
            Health::Well
        }
    }
}
