//! Limits log lines that callers can cause to one of each kind a minute, with the number of those
//! left out, so that nobody can fill a disk from outside.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The interval between two lines of one kind.
const EVERY: Duration = Duration::from_secs(60);

/// Decides which lines are written. There are few kinds, because they are constants.
#[derive(Debug, Default)]
pub struct Throttle {
    kinds: Mutex<BTreeMap<&'static str, Kind>>,
}

#[derive(Debug)]
struct Kind {
    said: Instant,
    left_out: u64,
}

impl Throttle {
    /// Whether to write a line of that kind now: if so, how many were left out since the last one.
    pub fn pass(&self, kind: &'static str) -> Option<u64> {
        self.pass_at(kind, Instant::now())
    }

    fn pass_at(&self, kind: &'static str, now: Instant) -> Option<u64> {
        let mut kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(known) = kinds.get_mut(kind) else {
            let first = Kind {
                said: now,
                left_out: 0,
            };
            kinds.insert(kind, first);
            return Some(0);
        };
        if now.saturating_duration_since(known.said) < EVERY {
            known.left_out += 1;
            return None;
        }
        known.said = now;
        Some(std::mem::take(&mut known.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_has_one_line_a_minute_and_the_others_are_counted() {
        let throttle = Throttle::default();
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(throttle.pass_at("a", start), Some(0));
        for second in 1..60 {
            assert_eq!(throttle.pass_at("a", after(second)), None);
        }
        assert_eq!(throttle.pass_at("b", after(1)), Some(0));
        assert_eq!(throttle.pass_at("a", after(60)), Some(59));
        assert_eq!(throttle.pass_at("a", after(61)), None);
        assert_eq!(throttle.pass_at("a", after(121)), Some(1));
    }
}
