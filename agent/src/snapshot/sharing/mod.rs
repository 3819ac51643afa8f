//! A snapshot that several targets share: who has which part, and who waits for one.

mod tracker;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use steep_protocol::message::peer::{CopyFormat, NextPart, PartAs, PartSum, Patience};
use steep_protocol::{NodeId, PartNo};
use tokio::sync::Notify;

use self::tracker::{Ask, Ended, Next, Tracker};
use crate::mutex::lock;

/// How long a target waits at least for a part that is on its way to another one. Then it is read again: a
/// fast target does not wait for a slow one.
const WAIT: Duration = Duration::from_secs(5);

/// It waits longer where it needs longer itself: so many times the time of a part.
const PARTS_TIME: u32 = 2;

#[derive(Debug)]
pub(crate) struct Sharing {
    tracker: Mutex<Tracker>,
    changed: Notify,
    /// How many parts were read for each target, and how long that took.
    times: Mutex<HashMap<NodeId, (u32, Duration)>>,
}

/// Where a target gets a part.
#[derive(Debug)]
pub(crate) enum Chosen {
    Read(Reading),
    /// Who has it, and what was sent of it.
    Ask(PartAs, NodeId, PartSum),
    /// All are on their way to others, and the target has more to ask for.
    Later,
}

/// A part that is being read for a target. Dropped before [`Reading::sent`], the target has not got it.
#[derive(Debug)]
pub(crate) struct Reading {
    sharing: Arc<Sharing>,
    target: NodeId,
    part: PartAs,
    serial: u64,
    how: Ended,
    began: Instant,
}

impl Sharing {
    /// Of a snapshot that is read by so many connections at once.
    pub(crate) fn new(connections: u8) -> Self {
        Self {
            tracker: Mutex::new(Tracker::new(usize::from(connections.max(1)))),
            changed: Notify::new(),
            times: Mutex::default(),
        }
    }

    /// Chooses one of the parts that `target` wants. Waits for some seconds at most, and only if it asks
    /// for that. Cancel-safe.
    pub(crate) async fn next(self: &Arc<Self>, target: &NodeId, request: &NextPart) -> Chosen {
        if let (Some(failed), Some(part)) = (&request.failed, request.wanted.first()) {
            lock(&self.tracker).failed(failed, *part);
            self.changed.notify_waiters();
        }
        let ask = Ask {
            target,
            wanted: &request.wanted,
            peers: &request.peers,
            keeping: request.keeping,
        };
        let until = tokio::time::Instant::now() + self.patience(target);
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            // From here on no change is missed.
            changed.as_mut().enable();
            let next = lock(&self.tracker).next(&ask, Instant::now());
            if let Some(chosen) = self.chosen(target, next) {
                return chosen;
            }
            if request.patience == Patience::None {
                return Chosen::Later;
            }
            if tokio::time::timeout_at(until, changed).await.is_err() {
                let next = lock(&self.tracker).read_anyway(&ask);
                let chosen = next.and_then(|next| self.chosen(target, next));
                return chosen.unwrap_or(Chosen::Later);
            }
        }
    }

    fn patience(&self, target: &NodeId) -> Duration {
        let times = lock(&self.times);
        let own = times.get(target).map(|(parts, took)| *took / *parts);
        WAIT.max(own.unwrap_or_default() * PARTS_TIME)
    }

    /// `None` where the target has to wait.
    fn chosen(self: &Arc<Self>, target: &NodeId, next: Next) -> Option<Chosen> {
        match next {
            Next::Read(part, serial) => Some(Chosen::Read(Reading {
                sharing: Arc::clone(self),
                target: target.clone(),
                part,
                serial,
                how: Ended::Broken,
                began: Instant::now(),
            })),
            Next::Ask(part, peer, sum) => Some(Chosen::Ask(part, peer, sum)),
            Next::Wait => None,
        }
    }

    /// What a target did with parts that it has received.
    pub(crate) fn received(&self, target: &NodeId, kept: &[PartAs], dropped: &[PartAs]) {
        {
            let mut tracker = lock(&self.tracker);
            for part in kept {
                tracker.received(target, *part, true);
            }
            for part in dropped {
                tracker.received(target, *part, false);
            }
        }
        self.changed.notify_waiters();
    }

    /// Nobody is sent to that target any more.
    pub(crate) fn left(&self, target: &NodeId) {
        lock(&self.times).remove(target);
        lock(&self.tracker).left(target);
        self.changed.notify_waiters();
    }

    pub(crate) fn format(&self, target: &NodeId, part: PartNo) -> Option<CopyFormat> {
        lock(&self.tracker).format(target, part)
    }
}

impl Reading {
    pub(crate) fn part(&self) -> PartAs {
        self.part
    }

    /// All of it has been sent.
    pub(crate) fn sent(&mut self, sum: PartSum) {
        self.how = Ended::Sent(sum);
        let mut times = lock(&self.sharing.times);
        let (parts, took) = times.entry(self.target.clone()).or_default();
        *parts += 1;
        *took += self.began.elapsed();
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        let of = (self.part, self.serial);
        lock(&self.sharing.tracker).ended(&self.target, of, self.how, Instant::now());
        self.sharing.changed.notify_waiters();
    }
}
