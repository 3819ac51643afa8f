//! When and for how long a job tries again: backoff, budget, and what it waits for meanwhile.
//!
//! Pure: time comes in as a value, and jitter is derived from the job's id. Holds no command;
//! [`super::machine`] decides which one is issued again.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use steep_protocol::message::api::{WaitingView, WaitsFor};
use steep_protocol::{Fault, NodeId};

use super::time::after;
use super::{Job, Presence, ServerState, Side, Stage, Step, Why, Work};

/// How long a job tries again without progress by default: long enough for somebody to be called and to
/// repair a server.
pub const RETRY_FOR: Duration = Duration::from_secs(30 * 60);

/// How long a failed job can be resumed by default.
pub const KEEP_FAILED: Duration = Duration::from_secs(24 * 3600);

/// How long a failed job keeps its snapshot open. Shorter than [`KEEP_FAILED`]: meanwhile vacuum on the
/// source removes nothing, and DDL there waits for the copied tables.
pub const KEEP_SNAPSHOT: Duration = Duration::from_secs(3600);

/// How long the preflight is retried: nothing is lost yet, and an operator waits for its answer.
pub const RETRY_PREFLIGHT: Duration = Duration::from_secs(10);

/// How often a job starts over after it lost its snapshot.
pub const RESTARTS_MAX: u8 = 5;

/// The first pause; doubled with every further failure.
const PAUSE: Duration = Duration::from_secs(1);

/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// A try that ran this long got further than the one before: the budget starts over.
const STEADY: Duration = Duration::from_secs(60);

/// How often the budget starts over. A build that crashes its server after minutes, each time, must fail at
/// last.
const RENEWALS_MAX: u8 = 10;

/// How long the coordinator waits for its jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// How long a job tries again without progress.
    pub retry_for: Duration,
    /// How long a failed job can be resumed; `None` cleans up at once.
    pub keep_failed: Option<Duration>,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            retry_for: RETRY_FOR,
            keep_failed: Some(KEEP_FAILED),
        }
    }
}

impl Patience {
    /// How long a job tries again in that step.
    #[must_use]
    pub fn budget(&self, step: Step) -> Duration {
        match step {
            Step::GatherSource | Step::GatherTarget => self.retry_for.min(RETRY_PREFLIGHT),
            Step::Apart
            | Step::Merge
            | Step::TakeSlot
            | Step::OpenSource
            | Step::PrepareTarget
            | Step::Copy
            | Step::Indexes
            | Step::Constraints
            | Step::Settle
            | Step::ProveCopy
            | Step::Swap
            | Step::Subscribe
            | Step::NativeCopy
            | Step::Converge
            | Step::Fold
            | Step::Join
            | Step::Leave
            | Step::Prove
            | Step::Release => self.retry_for,
        }
    }
}

/// Work that failed with a transient fault.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Retrying {
    /// What failed.
    pub work: Work,
    /// The last fault.
    pub fault: Fault,
    /// Since when there has been no progress.
    pub since: Timestamp,
    /// Failures since then.
    pub tries: u32,
    /// How often a steady try has renewed the budget.
    renewals: u8,
    /// Parts that were done at the last failure.
    parts: u32,
    /// What comes next.
    pub next: Next,
}

/// The next try of [`Retrying`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Next {
    /// It is issued again at this time.
    At(Timestamp),
    /// It has been issued again.
    Running {
        /// When.
        since: Timestamp,
    },
}

impl Retrying {
    /// The state after a failure of that work; `before` is the state of earlier failures, and `parts`
    /// the number of copied parts.
    #[must_use]
    pub fn after(
        before: Option<Self>,
        (work, fault): (Work, Fault),
        parts: u32,
        seed: u64,
        now: Timestamp,
    ) -> Self {
        let mut this = before.unwrap_or_else(|| Self {
            work,
            fault: fault.clone(),
            since: now,
            tries: 0,
            renewals: 0,
            parts,
            next: Next::At(now),
        });
        let steady = match this.next {
            Next::Running { since } => after(since, STEADY) <= now,
            Next::At(_) => false,
        };
        if parts > this.parts {
            (this.since, this.tries, this.renewals) = (now, 0, 0);
        } else if steady && this.renewals < RENEWALS_MAX {
            (this.since, this.tries) = (now, 0);
            this.renewals += 1;
        }
        this.tries = this.tries.saturating_add(1);
        this.parts = parts;
        this.fault = fault;
        this.next = Next::At(after(now, pause(this.tries, seed)));
        this
    }

    /// Whether to issue it again now.
    #[must_use]
    pub fn is_due(&self, now: Timestamp) -> bool {
        matches!(self.next, Next::At(at) if at <= now)
    }

    /// Ends the pause, since the cause of the failure is gone.
    pub fn hurry(&mut self, now: Timestamp) {
        if let Next::At(at) = &mut self.next {
            *at = now.min(*at);
        }
    }
}

/// The pause after `tries` failures: doubled from 1 s to 30 s, and up to a quarter shorter, so that jobs
/// that failed together do not retry together.
#[must_use]
pub fn pause(tries: u32, seed: u64) -> Duration {
    let doublings = tries.saturating_sub(1).min(10);
    let longest = (PAUSE * 2u32.pow(doublings)).min(PAUSE_MAX);
    // SplitMix64's mixing: neighbouring seeds give unrelated numbers.
    let mut mixed = seed.wrapping_add(u64::from(tries).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    let share = u32::try_from((mixed ^ (mixed >> 31)) % 251).unwrap_or(0);
    (longest - longest * share / 1000).max(PAUSE)
}

/// What a job waits for, if it waits: an agent before a server, a server before a retry.
#[must_use]
pub fn waiting(job: &Job, patience: &Patience, now: Timestamp) -> Option<WaitingView> {
    let (step, budget) = match &job.stage {
        Stage::Working(step) => (*step, patience.budget(*step)),
        Stage::Ending(ending) if matches!(ending.why, Why::Again(_)) => {
            (Step::OpenSource, patience.retry_for)
        }
        Stage::Ending(_) | Stage::Kept(_) | Stage::Closed(_) => return None,
    };
    let view = |node: &NodeId, what, since, reason: &str| WaitingView {
        node_id: node.clone(),
        what,
        for_seconds: seconds(since, now),
        tries: 0,
        next_try_seconds: None,
        gives_up_seconds: seconds(now, after(since, budget)),
        reason: reason.to_owned(),
    };
    let next_try = |side: Side| {
        job.retrying.iter().find_map(|r| match r.next {
            Next::At(at) if r.work.side() == side => Some((r.tries, seconds(now, at))),
            Next::At(_) | Next::Running { .. } => None,
        })
    };
    for side in Side::BOTH {
        if let Presence::Away { since } = job.end(side).presence
            && job.needs_agent(side, step)
        {
            let reason = "its agent has no session with the coordinator, which rows that flow between agents do not need";
            return Some(view(side.node(&job.spec), WaitsFor::Agent, since, reason));
        }
    }
    for side in Side::BOTH {
        if let ServerState::Silent { since, why } = &job.end(side).server
            && job.needs_server(side, step)
        {
            let mut view = view(side.node(&job.spec), WaitsFor::Postgresql, *since, why);
            if let Some((tries, next)) = next_try(side) {
                (view.tries, view.next_try_seconds) = (tries, Some(next));
            }
            return Some(view);
        }
    }
    let retrying = job
        .retrying
        .iter()
        .find(|r| matches!(r.next, Next::At(_)))?;
    let node = retrying.fault.node.as_ref();
    let node = node.unwrap_or_else(|| retrying.work.side().node(&job.spec));
    let reason = retrying.fault.message.as_str();
    let mut view = view(node, WaitsFor::Retry, retrying.since, reason);
    view.tries = retrying.tries;
    if let Next::At(at) = retrying.next {
        view.next_try_seconds = Some(seconds(now, at));
    }
    Some(view)
}

/// Whole seconds from one point in time to another; 0 if it has passed.
pub(crate) fn seconds(from: Timestamp, to: Timestamp) -> u64 {
    let span = SignedDuration::from_millis(to.as_millisecond() - from.as_millisecond());
    u64::try_from(span.as_secs()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use steep_protocol::{FaultKind, Retry};

    use super::*;

    fn fault() -> Fault {
        Fault::new(FaultKind::Failed, "gone").retry(Retry::Backoff)
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn failed(before: Option<Retrying>, parts: u32, second: i64) -> Retrying {
        Retrying::after(before, (Work::Copy, fault()), parts, 7, at(second))
    }

    fn given(mut retrying: Retrying, second: i64) -> Option<Retrying> {
        retrying.next = Next::Running { since: at(second) };
        Some(retrying)
    }

    #[test]
    fn pauses_grow_from_a_second_to_thirty_and_differ_from_job_to_job() {
        for seed in 0..200 {
            let pauses: Vec<Duration> = (1..40).map(|tries| pause(tries, seed)).collect();
            assert_eq!(pauses[0], PAUSE);
            assert!(pauses.iter().all(|p| (PAUSE..=PAUSE_MAX).contains(p)));
            assert!(pauses[5..].iter().all(|p| *p >= PAUSE_MAX * 3 / 4));
        }
        let seeds: std::collections::BTreeSet<Duration> =
            (0..200).map(|seed| pause(6, seed)).collect();
        assert!(seeds.len() > 50, "{}", seeds.len());
    }

    #[test]
    fn copied_parts_and_a_long_try_renew_the_budget() {
        let first = failed(None, 3, 0);
        assert_eq!((first.since, first.tries), (at(0), 1));
        let second = failed(given(first, 1), 3, 5);
        assert_eq!((second.since, second.tries), (at(0), 2));
        let copied = failed(given(second.clone(), 10), 4, 20);
        assert_eq!((copied.since, copied.tries), (at(20), 1));
        let steady = failed(given(second, 10), 3, 70);
        assert_eq!((steady.since, steady.tries), (at(70), 1));
    }

    #[test]
    fn a_budget_is_renewed_a_limited_number_of_times() {
        let mut retrying = failed(None, 0, 0);
        for round in 1..=i64::from(RENEWALS_MAX) + 3 {
            retrying = failed(given(retrying, round * 100), 0, round * 100 + 80);
        }
        assert_eq!(retrying.since, at(i64::from(RENEWALS_MAX) * 100 + 80));
        assert_eq!(retrying.tries, 4);
    }
}
