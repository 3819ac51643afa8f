//! The health of a subscription's apply worker, from the observations of the target's agent: while a job
//! runs ([`super::health`]) and while its node follows after that.
//!
//! Pure, and in memory only: a restarted coordinator starts over. Judged by time, so the agents' observation
//! interval does not matter. The caller decides what follows from it.

use std::time::Duration;

use jiff::Timestamp;
use steep_protocol::message::agent::SubscriptionStatus;

use super::time::after;

/// A subscription is broken after this many new errors without a [`CALM`] between them. Workers restart
/// after five seconds (`wal_retrieve_retry_interval`), so this is about fifteen seconds of errors.
const STRIKES: u8 = 3;

/// A subscription works again after this long without a new error: three restarts of its worker.
pub const CALM: Duration = Duration::from_secs(15);

/// How long a subscription may be without an apply worker, for servers that do not count errors or have no
/// free worker.
pub const ABSENT: Duration = Duration::from_secs(60);

/// The observed state of one subscription's worker.
#[derive(Debug, Clone, Default)]
pub struct ApplyWatch {
    /// The server's error count at the last observation.
    errors: Option<u64>,
    strikes: u8,
    struck: Option<Timestamp>,
    absent: Option<Timestamp>,
}

/// The health of an apply worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ApplyHealth {
    /// Not observed yet.
    Unseen,
    /// It runs without new errors.
    Well,
    /// It failed or was absent recently: neither broken nor healthy.
    Wavering,
    /// It fails whenever it starts.
    KeepsFailing {
        /// Errors that the server has counted.
        errors: u64,
    },
    /// There has been no worker for [`ABSENT`].
    Absent,
}

impl ApplyWatch {
    /// Takes an observation.
    pub fn observe(&mut self, seen: &SubscriptionStatus, now: Timestamp) -> ApplyHealth {
        let calm = self.struck.is_some_and(|struck| after(struck, CALM) <= now);
        match self.errors.replace(seen.apply_errors) {
            // A lower count means that statistics were reset.
            Some(before) if seen.apply_errors > before => {
                self.strikes = self.strikes.saturating_add(1);
                self.struck = Some(now);
            }
            Some(_) | None if calm => self.strikes = 0,
            Some(_) | None => {}
        }
        if seen.running {
            self.absent = None;
        } else {
            self.absent.get_or_insert(now);
        }
        self.health(now)
    }

    /// The source does not answer. Without it no worker can run, and each try may count as an error;
    /// neither is the subscription's fault.
    pub fn excuse(&mut self) {
        *self = Self::default();
    }

    /// Since when no worker was seen.
    #[must_use]
    pub fn absent_since(&self) -> Option<Timestamp> {
        self.absent
    }

    /// The health as of the last observation.
    #[must_use]
    pub fn health(&self, now: Timestamp) -> ApplyHealth {
        let Some(errors) = self.errors else {
            return ApplyHealth::Unseen;
        };
        if self.strikes >= STRIKES {
            return ApplyHealth::KeepsFailing { errors };
        }
        match self.absent {
            Some(since) if after(since, ABSENT) <= now => ApplyHealth::Absent,
            None if self.strikes == 0 => ApplyHealth::Well,
            Some(_) | None => ApplyHealth::Wavering,
        }
    }
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;
    use steep_protocol::JobId;

    use super::*;

    /// The health after each observation: its error count, and whether a worker ran.
    fn watched(every: Duration, seen: &[(u64, bool)]) -> Vec<ApplyHealth> {
        let (mut apply, mut now) = (ApplyWatch::default(), Timestamp::UNIX_EPOCH);
        let every = SignedDuration::try_from(every).unwrap();
        let observe = |(apply_errors, running): &(u64, bool)| {
            now += every;
            let status = SubscriptionStatus {
                job: JobId(1),
                enabled: true,
                running: *running,
                apply_errors: *apply_errors,
                wiring: steep_protocol::message::agent::SubscriptionWiring::Sound,
                mark: 0,
                altered_by: 0,
                trouble: None,
            };
            apply.observe(&status, now)
        };
        seen.iter().map(observe).collect()
    }

    #[test]
    fn a_worker_that_keeps_failing_is_broken_and_one_that_is_calm_again_is_not() {
        let second = Duration::from_secs(1);
        let seen = [(7, true), (8, false), (9, false), (10, false)];
        let failing = ApplyHealth::KeepsFailing { errors: 10 };
        let wavers = ApplyHealth::Wavering;
        assert_eq!(
            watched(second, &seen),
            [ApplyHealth::Well, wavers, wavers, failing],
            "errors of before do not count"
        );
        let calm: Vec<_> = seen.into_iter().chain([(10, true); 15]).collect();
        let health = watched(second, &calm);
        assert_eq!(health[17], failing, "14 seconds are not enough");
        assert_eq!(health[18], ApplyHealth::Well);
    }

    #[test]
    fn a_worker_that_never_comes_is_broken_after_a_minute_however_often_it_is_looked_for() {
        for every in [1, 3, 20] {
            let looks = [(0, false); 62];
            let health = watched(Duration::from_secs(every), &looks);
            let broken = health
                .iter()
                .position(|health| *health == ApplyHealth::Absent);
            assert_eq!(broken, Some(60 / every as usize), "{every}");
        }
    }
}
