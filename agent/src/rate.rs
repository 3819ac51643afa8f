//! The operator's limit on bytes a second, over all workers of a job.

use std::sync::Mutex;
use std::time::Duration;

use steep_protocol::ByteCount;
use tokio::time::Instant;

use crate::mutex::lock;

/// Shared by workers. Keeps one instant: when everything admitted so far would have passed at the allowed
/// rate.
#[derive(Debug)]
pub struct Rate {
    per_second: Option<u64>,
    paid_until: Mutex<Instant>,
}

/// A worker may be ahead by this much, so that waits are long enough for timers and short enough not to
/// show.
const BURST: Duration = Duration::from_millis(100);

impl Rate {
    /// At most that many bytes a second, or no limit.
    #[must_use]
    pub fn new(per_second: Option<ByteCount>) -> Self {
        Self {
            per_second: per_second.map(|b| b.0.max(1)),
            paid_until: Mutex::new(Instant::now()),
        }
    }

    /// Returns once those bytes may pass. Cancel-safe, though the bytes count as passed.
    pub async fn admit(&self, bytes: ByteCount) {
        let Some(per_second) = self.per_second else {
            return;
        };
        let until = {
            let mut paid = lock(&self.paid_until);
            *paid = next(*paid, Instant::now(), bytes, per_second);
            *paid
        };
        tokio::time::sleep_until(until - BURST).await;
    }
}

/// When everything including `bytes` will have passed. Idle time is not saved up.
fn next(paid_until: Instant, now: Instant, bytes: ByteCount, per_second: u64) -> Instant {
    let nanos = u128::from(bytes.0) * 1_000_000_000 / u128::from(per_second);
    paid_until.max(now) + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX / 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn ten_megabytes_at_one_a_second_take_ten_seconds() {
        let rate = Rate::new(Some(ByteCount(1_000_000)));
        let start = Instant::now();
        for _ in 0..100 {
            rate.admit(ByteCount(100_000)).await;
        }
        let took = start.elapsed();
        assert!(took >= Duration::from_millis(9_900) - BURST, "{took:?}");
        assert!(took <= Duration::from_millis(10_100), "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn idle_time_is_not_saved_up() {
        let rate = Rate::new(Some(ByteCount(1_000)));
        tokio::time::sleep(Duration::from_secs(60)).await;
        let start = Instant::now();
        rate.admit(ByteCount(2_000)).await;
        rate.admit(ByteCount(1)).await;
        assert!(start.elapsed() >= Duration::from_millis(1_900));
    }
}
