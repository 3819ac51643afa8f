//! Prometheus metrics, collected from their owners at each scrape.
//!
//! Labels are peers' names and fixed words, never tables or jobs, so the cluster's size bounds the number
//! of series. Names, units and labels: docs/metrics.md.

mod page;

use std::sync::Arc;

use steep_daemon::http::{Health, Scrape};
use steep_daemon::metrics::{self, Registry};
use steep_protocol::NodeId;
use steep_protocol::message::agent::{MirrorRow, Observed};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::budget::Budget;
use crate::kept::Store;
use crate::session::Reports;
use crate::snapshot::SourceJobs;
use crate::telemetry::Telemetry;

#[derive(Debug)]
pub(crate) struct Sources {
    pub(crate) node: NodeId,
    pub(crate) telemetry: Arc<Telemetry>,
    pub(crate) jobs: Arc<SourceJobs>,
    pub(crate) reports: Arc<Reports>,
    pub(crate) seen: watch::Receiver<Observed>,
    pub(crate) mirror: mpsc::Sender<MirrorRow>,
    pub(crate) budgets: Budgets,
    pub(crate) kept: Arc<Store>,
}

#[derive(Debug)]
pub(crate) struct Budgets {
    /// For parts that are served.
    pub(crate) sent: Budget,
    /// For parts that are fetched.
    pub(crate) received: Budget,
}

#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    drain: CancellationToken,
}

impl Metrics {
    /// Reports `Stopping` once `drain` is cancelled.
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
