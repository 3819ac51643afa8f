//! The loop's clock.

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

/// Wall time that never jumps: read once, then advanced by the monotonic clock, so that correcting the
/// system clock times out no job or agent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    pub(super) began: Timestamp,
    pub(super) instant: Instant,
}

impl Clock {
    pub(super) fn start() -> Self {
        Self {
            began: Timestamp::now(),
            instant: Instant::now(),
        }
    }

    pub(super) fn now(self) -> Timestamp {
        SignedDuration::try_from(self.instant.elapsed())
            .ok()
            .and_then(|elapsed| self.began.checked_add(elapsed).ok())
            .unwrap_or(Timestamp::MAX)
    }
}
