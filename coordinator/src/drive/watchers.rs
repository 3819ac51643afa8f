//! Who watches what, and so how often agents report.
//!
//! A follower holds a receiver of its job's feed. Watchers of the cluster, or of one job in full, ask
//! repeatedly; each question takes a short lease. Only the agents concerned are told when the first
//! watcher comes and when the last leaves.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;
use steep_protocol::message::agent::CoordinatorMessage;
use steep_protocol::report_interval::ReportInterval;
use steep_protocol::{JobId, NodeId};

use super::{Driver, Interest, Live};
use crate::job::time::after;
use crate::job::{Presence, Side, Stage};
use crate::store::Store;

/// How long a question counts as watching. Watchers ask about every second, unless their operator does
/// not read.
const LEASE_TIME: Duration = Duration::from_secs(3);

/// Watches until it expires; renewed by each question.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lease {
    until: Timestamp,
}

impl Lease {
    pub(super) const EMPTY: Self = Self {
        until: Timestamp::MIN,
    };

    pub(super) fn take(&mut self, now: Timestamp) {
        self.until = after(now, LEASE_TIME);
    }

    fn is_taken(self, now: Timestamp) -> bool {
        now < self.until
    }
}

impl Live {
    /// Whether somebody follows the job or watches it in full.
    pub(super) fn is_watched(&self, now: Timestamp) -> bool {
        self.end.is_none() && (self.feed.receiver_count() > 0 || self.lease.is_taken(now))
    }

    /// Whether it is running with both agents online and nobody watches. Then ticks of a second are
    /// precise enough.
    pub(super) fn is_calm(&self, now: Timestamp) -> bool {
        let there = |side| self.job.end(side).presence == Presence::Online;
        let working = matches!(self.job.stage, Stage::Working(_));
        working && Side::BOTH.into_iter().all(there) && !self.is_watched(now)
    }
}

impl<S: Store> Driver<S> {
    /// Notes that a job was asked for in full.
    pub(super) fn renew_lease(&mut self, id: JobId, interest: Interest, now: Timestamp) {
        if let (Interest::Ongoing, Some(live)) = (interest, self.jobs.get_mut(&id)) {
            live.lease.take(now);
        }
    }

    /// Tells agents whether they are watched, if that has changed.
    pub(super) fn set_report_intervals(&mut self, now: Timestamp) {
        let watched = self.jobs.values().filter(|live| live.is_watched(now));
        let ends: BTreeSet<&NodeId> = watched
            .flat_map(|live| Side::BOTH.map(|side| side.node(&live.job.spec)))
            .collect();
        let everybody = self.cluster_lease.is_taken(now);
        let news = self.registry.set_report_intervals(|node| {
            if everybody || ends.contains(node) {
                ReportInterval::Watched
            } else {
                ReportInterval::Calm
            }
        });
        for (node, interval) in news {
            self.send(&node, CoordinatorMessage::ReportInterval(interval));
        }
    }
}
