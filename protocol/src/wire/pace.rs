//! How often an agent speaks: pure, time comes in as a value.
//!
//! What ends or goes wrong is said at once. What only grows is said as often as somebody looks:
//! hundreds of jobs that nobody watches are to cost their coordinator next to nothing. What an agent
//! has to say goes out together.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// The first protocol ([`crate::hello::VERSION`]) in which the coordinator says how closely somebody
/// looks. In an older one nobody will: an agent speaks as if it were watched.
pub const SINCE: u16 = 2;

/// Between two reports while somebody watches, and between two of whatever kind. Who watches hears of
/// a report within 150 ms, so that a change is seen well within 500 ms.
pub const WATCHED_EVERY: Duration = Duration::from_millis(200);

/// Between two reports of what only grows while nobody watches. Who asks once is told something that
/// is no older than 2 s.
pub const CALM_EVERY: Duration = Duration::from_millis(1_500);

/// How closely somebody looks at what an agent does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Pace {
    /// Nobody watches.
    #[default]
    Calm,
    /// Somebody watches a job of this node.
    Watched,
}

impl Pace {
    /// The pace of a session before anything is said of it.
    #[must_use]
    pub fn of_session(protocol: u16) -> Self {
        if protocol < SINCE {
            Self::Watched
        } else {
            Self::Calm
        }
    }
}

/// What there is to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum News {
    /// Nothing.
    #[default]
    None,
    /// Something has grown.
    Growth,
    /// Something has ended, begun or gone wrong.
    Event,
}

/// When an agent is to speak next, within one session.
#[derive(Debug, Clone, Copy)]
pub struct Cadence {
    pace: Pace,
    /// When it spoke last.
    spoke: Instant,
    /// When it said last what it observes.
    observed: Instant,
}

impl Cadence {
    /// An agent that has just spoken.
    #[must_use]
    pub fn new(pace: Pace, now: Instant) -> Self {
        Self {
            pace,
            spoke: now,
            observed: now,
        }
    }

    /// From now on at that pace; what has waited for a calmer one is due at once.
    pub fn keep(&mut self, pace: Pace) {
        self.pace = pace;
    }

    /// It has spoken.
    pub fn spoke(&mut self, now: Instant) {
        self.spoke = now;
    }

    /// It has said what it observes.
    pub fn observed(&mut self, now: Instant) {
        self.observed = now;
    }

    /// When that is to be said; `None` where there is nothing.
    #[must_use]
    pub fn due(&self, news: News) -> Option<Instant> {
        let pause = match (news, self.pace) {
            (News::None, _) => return None,
            (News::Growth, Pace::Calm) => CALM_EVERY,
            (News::Growth, Pace::Watched) | (News::Event, _) => WATCHED_EVERY,
        };
        Some(self.spoke + pause)
    }

    /// Whether an observation in which nothing stands out is worth a word of its own.
    #[must_use]
    pub fn observes(&self, now: Instant) -> bool {
        match self.pace {
            Pace::Watched => true,
            Pace::Calm => now.saturating_duration_since(self.observed) >= CALM_EVERY,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_grows_waits_for_its_pace_and_what_ends_does_not() {
        let began = Instant::now();
        let mut cadence = Cadence::new(Pace::Calm, began);
        assert_eq!(cadence.due(News::None), None);
        assert_eq!(cadence.due(News::Growth), Some(began + CALM_EVERY));
        assert_eq!(cadence.due(News::Event), Some(began + WATCHED_EVERY));
        cadence.keep(Pace::Watched);
        assert_eq!(cadence.due(News::Growth), Some(began + WATCHED_EVERY));
        let later = began + CALM_EVERY;
        cadence.spoke(later);
        assert_eq!(cadence.due(News::Event), Some(later + WATCHED_EVERY));
    }

    #[test]
    fn a_coordinator_that_will_not_say_who_watches_is_told_everything() {
        assert_eq!(Pace::of_session(SINCE - 1), Pace::Watched);
        assert_eq!(Pace::of_session(SINCE), Pace::Calm);
    }

    #[test]
    fn while_nobody_watches_every_second_observation_is_enough() {
        let began = Instant::now();
        let second = |n| began + Duration::from_secs(n);
        let mut cadence = Cadence::new(Pace::Calm, began);
        assert!(!cadence.observes(second(1)));
        assert!(cadence.observes(second(2)));
        cadence.observed(second(2));
        assert!(!cadence.observes(second(3)));
        cadence.keep(Pace::Watched);
        assert!(cadence.observes(second(3)));
    }
}
