//! How often an agent speaks: pure, time comes in as a value.
//!
//! What begins, ends or goes wrong is said at once. What only grows, parts done among it, is said as
//! often as somebody looks: hundreds of jobs that nobody watches are to cost their coordinator next to
//! nothing. What an agent has to say goes out together, and calm agents all speak on the same beat of
//! the wall clock, so that the coordinator wakes once for all of them instead of once for each. Nothing
//! depends on clocks being right: agents whose clocks differ speak as often, and cost more.

use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};

/// Between two reports while somebody watches, and between two of whatever kind. Who watches hears of
/// a report within 150 ms, so that a change is seen well within 500 ms.
pub const WATCHED_EVERY: Duration = Duration::from_millis(200);

/// The beat of what only grows while nobody watches: who asks once is told nothing that is older than
/// 2 s.
pub const CALM_EVERY: Duration = Duration::from_millis(1_500);

/// Between two looks at a server. Every second one is just before a beat ([`first_look`]).
pub const LOOK_EVERY: Duration = Duration::from_millis(750);

/// A look takes a few milliseconds; so long before the beat, it is told with it.
const LOOK_AHEAD: Duration = Duration::from_millis(150);

/// How closely somebody looks at what an agent does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Pace {
    /// Nobody watches.
    #[default]
    Calm,
    /// Somebody watches a job of this node.
    Watched,
}

/// What there is to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum News {
    /// Nothing.
    #[default]
    None,
    /// Something has grown.
    Growth,
    /// Something has begun, ended or gone wrong, or stands out.
    Event,
}

/// When an agent is to speak next, within one session.
#[derive(Debug, Clone, Copy)]
pub struct Cadence {
    pace: Pace,
    /// When it spoke last.
    spoke: Instant,
    /// Some beat of the wall clock.
    beat: Instant,
}

impl Cadence {
    /// An agent that has just spoken, at `now`, which its wall clock calls `wall`.
    #[must_use]
    pub fn new(pace: Pace, now: Instant, wall: SystemTime) -> Self {
        Self {
            pace,
            spoke: now,
            beat: next_beat(now, wall),
        }
    }

    /// From now on at that pace; what has waited for a calmer one is due at once.
    pub fn keep(&mut self, pace: Pace) {
        self.pace = pace;
    }

    /// It has spoken.
    pub fn spoke(&mut self, now: Instant) {
        self.spoke = now;
        while self.beat <= now {
            self.beat += CALM_EVERY;
        }
    }

    /// When that is to be said; `None` where there is nothing.
    #[must_use]
    pub fn due(&self, news: News) -> Option<Instant> {
        match (news, self.pace) {
            (News::None, _) => None,
            (News::Growth, Pace::Calm) => Some(self.beat),
            (News::Growth, Pace::Watched) | (News::Event, _) => Some(self.spoke + WATCHED_EVERY),
        }
    }
}

/// When to look at a server first, then every [`LOOK_EVERY`], at `now`, which the wall clock calls
/// `wall`.
#[must_use]
pub fn first_look(now: Instant, wall: SystemTime) -> Instant {
    // The beat after the next may be too far away, and the next one too near.
    let mut look = next_beat(now, wall) + LOOK_EVERY - LOOK_AHEAD;
    while look > now + LOOK_EVERY {
        look -= LOOK_EVERY;
    }
    look
}

fn next_beat(now: Instant, wall: SystemTime) -> Instant {
    let since = wall.duration_since(SystemTime::UNIX_EPOCH);
    let past = since.unwrap_or_default().as_nanos() % CALM_EVERY.as_nanos();
    // Less than a beat, which fits.
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
        let mut cadence = Cadence::new(Pace::Calm, began, wall);
        let beat = began + CALM_EVERY * 3 / 4;
        assert_eq!(cadence.due(News::None), None);
        assert_eq!(cadence.due(News::Growth), Some(beat));
        assert_eq!(cadence.due(News::Event), Some(began + WATCHED_EVERY));
        cadence.keep(Pace::Watched);
        assert_eq!(cadence.due(News::Growth), Some(began + WATCHED_EVERY));
        cadence.spoke(beat);
        assert_eq!(cadence.due(News::Event), Some(beat + WATCHED_EVERY));
        cadence.keep(Pace::Calm);
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
