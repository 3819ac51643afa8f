//! How fast a counter grows, and when it reaches a value. Pure: time comes in as a value.

use jiff::Timestamp;

/// The time constant of the rate that is shown: after it, about two thirds of a change have an effect. Long
/// enough to smooth the ends of parts, short enough to show a stall.
const SHOWN_SECONDS: f64 = 4.0;

/// The time constant of the rate behind the time left, which is minutes or hours and must not jump.
const STEADY_SECONDS: f64 = 30.0;

/// Seconds of samples before the time left is known.
const SAMPLED_MIN: f64 = 1.5;

/// A counter that has slowed to this share of its steady rate stands still, and the time left is unknown.
const STALLED: f64 = 0.02;

/// Rates below this are shown as 0: a smoothed rate only approaches 0, and people and alerts would take the
/// rest for movement.
const STILL: f64 = 1.0;

/// A month; longer estimates are shown as unknown.
const ETA_MAX: f64 = 30.0 * 86_400.0;

/// The rate of one counter.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Rate {
    last: Option<(Timestamp, u64)>,
    /// Seconds of samples so far.
    sampled: f64,
    shown: f64,
    steady: f64,
}

impl Rate {
    /// Takes a sample. A counter that decreased counts as standing still.
    pub(super) fn observe(&mut self, count: u64, now: Timestamp) {
        let Some((before, known)) = self.last else {
            self.last = Some((now, count));
            return;
        };
        let seconds = (now.as_microsecond() - before.as_microsecond()) as f64 / 1e6;
        if seconds <= 0.0 {
            return;
        }
        let rate = count.saturating_sub(known) as f64 / seconds;
        self.sampled += seconds;
        // The plain average at first; smoothed once there are enough samples.
        let weight = |over: f64| (1.0 - (-seconds / over).exp()).max(seconds / self.sampled);
        self.shown += (rate - self.shown) * weight(SHOWN_SECONDS);
        self.steady += (rate - self.steady) * weight(STEADY_SECONDS);
        self.last = Some((now, count));
    }

    /// Smoothed, per second; 0 before the second sample.
    pub(super) fn rate(&self) -> f64 {
        if self.shown < STILL { 0.0 } else { self.shown }
    }

    /// As [`Rate::rate`]; `None` before there are enough samples.
    pub(super) fn known_rate(&self) -> Option<f64> {
        (self.sampled >= SAMPLED_MIN).then(|| self.rate())
    }

    /// Seconds until the counter has grown by `left`. `None` if there are too few samples or it stands
    /// still.
    pub(super) fn eta(&self, left: u64) -> Option<u64> {
        let moving = self.steady > 0.0 && self.shown > self.steady * STALLED;
        if self.sampled < SAMPLED_MIN || !moving {
            return None;
        }
        let seconds = (left as f64 / self.steady).ceil();
        (seconds <= ETA_MAX).then_some(seconds as u64)
    }
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;
    use proptest::prelude::*;

    use super::*;

    fn at(millis: i64) -> Timestamp {
        Timestamp::UNIX_EPOCH + SignedDuration::from_millis(millis)
    }

    fn steady(speed: u64, seconds: i64) -> Rate {
        let mut rate = Rate::default();
        for tick in 0..=seconds * 4 {
            rate.observe(speed * tick as u64 / 4, at(tick * 250));
        }
        rate
    }

    #[test]
    fn an_unknown_time_left_is_none() {
        assert_eq!(Rate::default().eta(1), None);
        assert_eq!(steady(1_000, 1).eta(1_000), None);
        assert_eq!(steady(0, 60).eta(1_000), None);
        assert_eq!(steady(1_000, 60).eta(u64::MAX), None);
        assert_eq!(steady(1_000, 60).eta(5_000), Some(5));
    }

    #[test]
    fn a_stall_makes_the_end_unknown_and_a_burst_hardly_moves_it() {
        let mut rate = steady(1_000_000, 60);
        let before = rate.eta(600_000_000).unwrap();
        rate.observe(61_000_000 + 4_000_000, at(61_000));
        let after = rate.eta(600_000_000).unwrap();
        assert!((before - after) < before / 5, "{before} then {after}");
        for second in 62..90 {
            rate.observe(65_000_000, at(second * 1_000));
        }
        assert_eq!(rate.eta(600_000_000), None);
        assert!(rate.rate() < 10_000.0, "{}", rate.rate());
        for second in 90..200 {
            rate.observe(65_000_000, at(second * 1_000));
        }
        assert_eq!((rate.rate(), rate.known_rate()), (0.0, Some(0.0)));
    }

    proptest! {
        #[test]
        fn rates_are_finite_whatever_comes(samples in proptest::collection::vec((any::<u64>(), 0i64..100_000), 0..50)) {
            let mut rate = Rate::default();
            let mut now = 0;
            for (count, later) in samples {
                now += later;
                rate.observe(count, at(now));
                prop_assert!(rate.rate().is_finite() && rate.rate() >= 0.0);
                let _ = rate.eta(count);
            }
        }
    }
}
