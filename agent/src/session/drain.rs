//! The stages of a shutdown, and what each does to running commands. Pure.
//!
//! ```text
//! Up ─▶ Draining ─▶ Cut ─▶ Over        Draining ─▶ Over where nothing is left
//! ```
//!
//! Draining ends what can soon be ended and is worth it: parts of a copy under way, whose rows would
//! have to be sent again. What may take hours is cancelled at once, since it is found again by ledger,
//! statement and slot: waiting for it would only make every stop slow.

use std::time::{Duration, Instant};

/// How long running work may go on. A part of 256 MiB, the largest, takes less at 15 MB/s, and the whole
/// shutdown stays well below systemd's 90 s.
const DRAIN_LIMIT: Duration = Duration::from_secs(20);

/// How long cancelled work has to cancel its statements, and a job that fails by it to be cleaned up.
const CUT_LIMIT: Duration = Duration::from_secs(5);

/// How long the coordinator has to react to an outcome: a round trip and a write to disk.
const LAST_ORDERS: Duration = Duration::from_millis(500);

/// The longest shutdown after the first signal, last messages included.
pub(super) const WAY_DOWN_MAX: Duration = DRAIN_LIMIT
    .saturating_add(CUT_LIMIT)
    .saturating_add(LAST_WORDS);

/// The longest shutdown after the second signal.
pub(super) const HURRY_MAX: Duration = CUT_LIMIT.saturating_add(LAST_WORDS);

/// How long the coordinator has to receive the last messages.
pub(super) const LAST_WORDS: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    Up,
    /// Running work goes on, no new work starts.
    Draining {
        since: Instant,
    },
    Cut {
        since: Instant,
        why: Why,
    },
    Over,
}

/// Why running work was cancelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    Late,
    Hurried,
}

/// The signals received.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Told {
    Nothing,
    Stop,
    Hurry,
}

/// What a shutdown waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Load {
    /// Commands and answers to other agents.
    pub(super) at_work: usize,
    /// Snapshots that the connected coordinator will have closed: their jobs end now, and are cleaned up
    /// while this agent still can.
    pub(super) held: usize,
    /// When a command ended to which the coordinator may react.
    pub(super) ended: Option<Instant>,
}

impl Stage {
    /// The stage that is due.
    pub(super) fn next(self, told: Told, load: Load, now: Instant) -> Self {
        match self {
            Self::Up if told == Told::Nothing => self,
            Self::Up => Self::Draining { since: now },
            Self::Draining { .. } if told == Told::Hurry => Self::Cut {
                since: now,
                why: Why::Hurried,
            },
            Self::Draining { .. } if load.is_done(now) => Self::Over,
            Self::Draining { since } if since + DRAIN_LIMIT <= now => Self::Cut {
                since: now,
                why: Why::Late,
            },
            Self::Cut {
                since,
                why: Why::Late,
            } if told == Told::Hurry => Self::Cut {
                since,
                why: Why::Hurried,
            },
            Self::Cut { since, .. } if since + CUT_LIMIT <= now => Self::Over,
            Self::Cut { why: Why::Late, .. } if load.is_done(now) => Self::Over,
            Self::Cut {
                why: Why::Hurried, ..
            } if load.at_work == 0 => Self::Over,
            Self::Draining { .. } | Self::Cut { .. } | Self::Over => self,
        }
    }

    /// When the next stage is due by time alone.
    pub(super) fn due(self, load: Load) -> Option<Instant> {
        let limit = match self {
            Self::Up | Self::Over => return None,
            Self::Draining { since } => since + DRAIN_LIMIT,
            Self::Cut { since, .. } => since + CUT_LIMIT,
        };
        let quiet = load.ended.filter(|_| load.at_work == 0 && load.held == 0);
        Some(quiet.map_or(limit, |ended| limit.min(ended + LAST_ORDERS)))
    }
}

impl Load {
    fn is_done(self, now: Instant) -> bool {
        let heard = self.ended.is_none_or(|ended| ended + LAST_ORDERS <= now);
        self.at_work == 0 && self.held == 0 && heard
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUSY: Load = Load {
        at_work: 1,
        held: 0,
        ended: None,
    };

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn an_idle_agent_goes_at_once() {
        let now = Instant::now();
        let idle = Load::default();
        assert_eq!(Stage::Up.next(Told::Nothing, idle, now), Stage::Up);
        let draining = Stage::Up.next(Told::Stop, idle, now);
        assert_eq!(draining, Stage::Draining { since: now });
        assert_eq!(draining.next(Told::Stop, idle, now), Stage::Over);
    }

    #[test]
    fn what_is_under_way_has_until_the_deadline_and_then_a_little_to_end() {
        let now = Instant::now();
        let draining = Stage::Draining { since: now };
        let held = Load {
            held: 1,
            ..Load::default()
        };
        for load in [BUSY, held] {
            assert_eq!(draining.next(Told::Stop, load, now + seconds(19)), draining);
            assert_eq!(draining.due(load), Some(now + DRAIN_LIMIT));
            let late = now + DRAIN_LIMIT;
            let why = Why::Late;
            let cut = Stage::Cut { since: late, why };
            assert_eq!(draining.next(Told::Stop, load, late), cut);
            assert_eq!(cut.next(Told::Stop, load, late), cut);
            assert_eq!(cut.due(load), Some(late + CUT_LIMIT));
            assert_eq!(cut.next(Told::Stop, load, late + CUT_LIMIT), Stage::Over);
        }
    }

    #[test]
    fn the_coordinator_has_a_moment_for_what_it_makes_of_an_end() {
        let now = Instant::now();
        let draining = Stage::Draining { since: now };
        let told = Load {
            ended: Some(now),
            ..Load::default()
        };
        assert_eq!(draining.next(Told::Stop, told, now), draining);
        assert_eq!(draining.due(told), Some(now + LAST_ORDERS));
        let heard = now + LAST_ORDERS;
        assert_eq!(draining.next(Told::Stop, told, heard), Stage::Over);
    }

    #[test]
    fn a_second_signal_cancels_and_waits_for_nothing_but_that() {
        let now = Instant::now();
        let why = Why::Hurried;
        let hurried = Stage::Cut { since: now, why };
        let draining = Stage::Draining { since: now };
        assert_eq!(draining.next(Told::Hurry, BUSY, now), hurried);
        let why = Why::Late;
        let late = Stage::Cut { since: now, why };
        assert_eq!(late.next(Told::Hurry, BUSY, now), hurried);
        assert_eq!(hurried.next(Told::Hurry, BUSY, now), hurried);
        let rest = Load {
            at_work: 0,
            held: 1,
            ended: Some(now),
        };
        assert_eq!(hurried.next(Told::Hurry, rest, now), Stage::Over);
    }

    #[test]
    fn whatever_there_is_to_wait_for_the_way_down_ends_in_time_and_never_turns_back() {
        let begun = Instant::now();
        let rank = |stage| match stage {
            Stage::Up => 0,
            Stage::Draining { .. } => 1,
            Stage::Cut { .. } => 2,
            Stage::Over => 3,
        };
        for mask in 0..8 {
            let load = |now| Load {
                at_work: mask & 1,
                held: mask >> 1 & 1,
                // Something ends all the time.
                ended: (mask & 4 != 0).then_some(now),
            };
            let mut stage = Stage::Up;
            let mut now = begun;
            while stage != Stage::Over {
                let next = stage.next(Told::Stop, load(now), now);
                assert!(rank(next) >= rank(stage), "{stage:?} to {next:?}");
                stage = next;
                now += Duration::from_millis(100);
                assert!(now < begun + WAY_DOWN_MAX, "still {stage:?}");
            }
        }
    }

    #[test]
    fn a_drain_fits_into_what_service_managers_give() {
        assert!(WAY_DOWN_MAX < seconds(45), "half of systemd's 90 s");
    }
}
