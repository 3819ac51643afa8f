//! How often an agent reports. Pure: time is an argument.
//!
//! Starts, ends and faults are reported at once. Growing numbers, including finished parts, are
//! reported as often as somebody watches, so that hundreds of unwatched jobs cost the coordinator
//! next to nothing. An agent sends everything it has together, and unwatched agents all report on
//! the same beat of the wall clock, so that the coordinator wakes once for all of them. Correct
//! clocks are not required: agents with different clocks report as often, but cost more.

use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};

/// The interval between reports while somebody watches, and the minimum between any two. A watcher
/// gets a report within 150 ms, so a change is visible well within 500 ms.
pub const WATCHED_EVERY: Duration = Duration::from_millis(200);

/// The beat of growing numbers while nobody watches: a single query returns nothing older than 2 s.
pub const CALM_EVERY: Duration = Duration::from_millis(1_500);

/// The interval between observations of a server. Every second one falls just before a beat
/// ([`first_look`]).
pub const LOOK_EVERY: Duration = Duration::from_millis(750);

/// An observation takes a few milliseconds; starting this long before the beat, it is in the same
/// report.
const LOOK_AHEAD: Duration = Duration::from_millis(150);

/// Whether somebody watches an agent's work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum ReportInterval {
    /// Nobody watches.
    #[default]
    Calm,
    /// Somebody watches a job of this node.
    Watched,
}

/// What there is to report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum News {
    /// Nothing.
    #[default]
    None,
    /// A number has grown.
    Growth,
    /// Something has begun, ended or failed, or stands out.
    Event,
}

/// When an agent reports next, within one session.
#[derive(Debug, Clone, Copy)]
pub struct Cadence {
    interval: ReportInterval,
    /// The time of the last report.
    spoke: Instant,
    /// A beat of the wall clock in the future.
    beat: Instant,
}

impl Cadence {
    /// For an agent that has just reported at `now`, which is `wall` by its wall clock.
    #[must_use]
    pub fn new(interval: ReportInterval, now: Instant, wall: SystemTime) -> Self {
        Self {
            interval,
            spoke: now,
            beat: next_beat(now, wall),
        }
    }

    /// Changes the interval. What has waited for a slower one becomes due at once.
    pub fn keep(&mut self, interval: ReportInterval) {
        self.interval = interval;
    }

    /// Notes that a report was sent.
    pub fn spoke(&mut self, now: Instant) {
        self.spoke = now;
        while self.beat <= now {
            self.beat += CALM_EVERY;
        }
    }

    /// When that must be reported; `None` for no news.
    #[must_use]
    pub fn due(&self, news: News) -> Option<Instant> {
        match (news, self.interval) {
            (News::None, _) => None,
            (News::Growth, ReportInterval::Calm) => Some(self.beat),
            (News::Growth, ReportInterval::Watched) | (News::Event, _) => {
                Some(self.spoke + WATCHED_EVERY)
            }
        }
    }
}

/// The time of the first observation of a server, then every [`LOOK_EVERY`]. `now` is `wall` by the
/// wall clock.
#[must_use]
pub fn first_look(now: Instant, wall: SystemTime) -> Instant {
    // Observations start `LOOK_AHEAD` before each beat and half a beat later: take the next one.
    let mut look = next_beat(now, wall) + LOOK_EVERY - LOOK_AHEAD;
    while look > now + LOOK_EVERY {
        look -= LOOK_EVERY;
    }
    look
}

fn next_beat(now: Instant, wall: SystemTime) -> Instant {
    let since = wall.duration_since(SystemTime::UNIX_EPOCH);
    let past = since.unwrap_or_default().as_nanos() % CALM_EVERY.as_nanos();
    // Less than a beat, so it fits.
    let past = Duration::from_nanos(u64::try_from(past).unwrap_or(0));
    now + (CALM_EVERY - past)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_grows_waits_for_its_pace_and_what_ends_does_not() {
        let began = Instant::now();
        let wall = SystemTime::UNIX_EPOCH + CALM_EVERY * 7 + CALM_EVERY / 4;
        let mut cadence = Cadence::new(ReportInterval::Calm, began, wall);
        let beat = began + CALM_EVERY * 3 / 4;
        assert_eq!(cadence.due(News::None), None);
        assert_eq!(cadence.due(News::Growth), Some(beat));
        assert_eq!(cadence.due(News::Event), Some(began + WATCHED_EVERY));
        cadence.keep(ReportInterval::Watched);
        assert_eq!(cadence.due(News::Growth), Some(began + WATCHED_EVERY));
        cadence.spoke(beat);
        assert_eq!(cadence.due(News::Event), Some(beat + WATCHED_EVERY));
        cadence.keep(ReportInterval::Calm);
        assert_eq!(cadence.due(News::Growth), Some(beat + CALM_EVERY));
        cadence.spoke(beat + CALM_EVERY * 5 / 2);
        assert_eq!(cadence.due(News::Growth), Some(beat + CALM_EVERY * 3));
    }

    #[test]
    fn looks_begin_soon_and_every_second_one_is_just_before_a_beat() {
        let began = Instant::now();
        for part in 0..20 {
            let wall = SystemTime::UNIX_EPOCH + CALM_EVERY * 9 + CALM_EVERY * part / 20;
            let (look, beat) = (first_look(began, wall), next_beat(began, wall));
            assert!(look >= began && look <= began + LOOK_EVERY, "{part}");
            let before = (beat + CALM_EVERY - look).as_nanos() % LOOK_EVERY.as_nanos();
            assert_eq!(before, LOOK_AHEAD.as_nanos(), "{part}");
        }
    }
}
