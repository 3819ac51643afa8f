//! What this agent tells Prometheus: counters that work adds to, and a page written when somebody
//! scrapes.
//!
//! Owns counters; everything else is asked of who owns it at the
//! moment of a scrape. Labels are peers' names and fixed words, never tables or jobs, so the number
//! of series is bounded by the cluster's size. Names, units and labels: docs/metrics.md.

mod flow;
mod page;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use steep_daemon::http::{Health, Scrape};
use steep_daemon::metrics::{self, Registry};
use steep_protocol::NodeId;
use steep_protocol::message::agent::{MirrorRow, Observed};
use steep_protocol::quic::Links;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

pub use flow::Flow;

use crate::budget::Budget;
use crate::session::Reports;
use crate::source::SourceJobs;

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

    /// A command begins. It runs until the value goes.
    #[must_use]
    pub fn command_began(&self) -> RunningCommand<'_> {
        self.running.fetch_add(1, Ordering::Relaxed);
        RunningCommand {
            telemetry: self,
            how: CommandEnd::Failed,
        }
    }
}

/// A command at work. One that ends without saying how, by a panic, has failed.
#[derive(Debug)]
pub struct RunningCommand<'a> {
    telemetry: &'a Telemetry,
    how: CommandEnd,
}

impl RunningCommand<'_> {
    /// It has ended, and so.
    pub fn ended(mut self, how: CommandEnd) {
        self.how = how;
    }
}

impl Drop for RunningCommand<'_> {
    fn drop(&mut self) {
        self.telemetry.running.fetch_sub(1, Ordering::Relaxed);
        let counter = match self.how {
            CommandEnd::Done => &self.telemetry.done,
            CommandEnd::Failed => &self.telemetry.failed,
            CommandEnd::Cancelled => &self.telemetry.cancelled,
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
    /// What parts that are served may hold in memory, and those that are fetched.
    pub budgets: Budgets,
}

/// The budgets of both directions.
#[derive(Debug)]
pub struct Budgets {
    /// For parts that are served.
    pub sent: Budget,
    /// For parts that are fetched.
    pub received: Budget,
}

/// Answers scrapes.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    drain: CancellationToken,
}

impl Metrics {
    /// Metrics out of these. Once `drain` is cancelled, the agent is said to stop.
    #[must_use]
    pub fn new(sources: Sources, drain: CancellationToken) -> Self {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_that_panics_runs_no_longer_and_has_failed() {
        let telemetry = Telemetry::default();
        telemetry.command_began().ended(CommandEnd::Done);
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _running = telemetry.command_began();
            panic!("as a mistake of ours would");
        }));
        assert!(panicked.is_err());
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let ended = [&telemetry.done, &telemetry.failed, &telemetry.cancelled].map(load);
        assert_eq!((load(&telemetry.running), ended), (0, [1, 1, 0]));
    }
}
