//! Who watches, and so how often agents are to speak.
//!
//! A follower holds the feed of its job; who looks at everything, or at one job in full, asks again and
//! again, and is taken to watch for a while after each question. When the first comes and when the last
//! has gone, the agents concerned are told, and nobody else: following one job makes no other agent
//! talk.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;
use steep_protocol::message::agent::CoordinatorMessage;
use steep_protocol::pace::Pace;
use steep_protocol::{JobId, NodeId};

use super::{Driver, Interest, Live};
use crate::job::time::after;
use crate::job::{Presence, Side, Stage};
use crate::store::Store;

/// How long who asked is taken to watch. Watchers ask about every second; one that does not take what
/// it is sent asks no more, and need not be told anything new.
const LEASE_TIME: Duration = Duration::from_secs(3);

/// When what asks again and again has gone.
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
    /// Whether somebody follows the job, or looks at it in full.
    pub(super) fn is_watched(&self, now: Timestamp) -> bool {
        self.end.is_none() && (self.feed.receiver_count() > 0 || self.lease.is_taken(now))
    }

    /// Whether it is at work, with both agents there, and nobody looks: then no deadline is near that
    /// is to be kept to a part of a second.
    pub(super) fn is_calm(&self, now: Timestamp) -> bool {
        let there = |side| self.job.end(side).presence == Presence::Online;
        let working = matches!(self.job.stage, Stage::Working(_));
        working && Side::BOTH.into_iter().all(there) && !self.is_watched(now)
    }
}

impl<S: Store> Driver<S> {
    /// Somebody asked for a job in full, and may go on.
    pub(super) fn looks_at(&mut self, id: JobId, interest: Interest, now: Timestamp) {
        if let (Interest::GoesOn, Some(live)) = (interest, self.jobs.get_mut(&id)) {
            live.lease.take(now);
        }
    }

    /// Tells agents how closely somebody looks at their nodes, where that is not what they were told
    /// last.
    pub(super) fn set_paces(&mut self, now: Timestamp) {
        let watched = self.jobs.values().filter(|live| live.is_watched(now));
        let ends = watched.flat_map(|live| Side::BOTH.map(|side| side.node(&live.job.spec)));
        let ends: BTreeSet<&NodeId> = ends.collect();
        let everybody = self.overseer.is_taken(now);
        let news = self.registry.set_paces(|node| {
            if everybody || ends.contains(node) {
                Pace::Watched
            } else {
                Pace::Calm
            }
        });
        for (node, pace) in news {
            self.send(&node, CoordinatorMessage::Pace(pace));
        }
    }
}
