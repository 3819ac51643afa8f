//! The operator's limit on bytes a second, over all workers of a job. It can change at any time.

use std::time::Duration;

use steep_protocol::ByteCount;
use tokio::sync::{Mutex, watch};
use tokio::time::{Instant, sleep_until};

/// Bytes pass in pieces of so much time, so that a slow rate is as even as a fast one.
const PIECE: Duration = Duration::from_millis(50);

/// Idle time is saved up so far: who was held up for a moment catches up. Four per cent of ten seconds.
const SAVED: Duration = Duration::from_millis(400);

/// Shared by workers, who take turns.
#[derive(Debug)]
pub struct Rate {
    per_second: watch::Sender<Option<u64>>,
    /// When everything that has passed would have passed at the rate allowed at the time. Whoever holds it is
    /// next.
    paid_until: Mutex<Instant>,
}

impl Rate {
    /// At most that many bytes a second, or no limit.
    #[must_use]
    pub fn new(per_second: Option<ByteCount>) -> Self {
        Self {
            per_second: watch::Sender::new(nonzero(per_second)),
            paid_until: Mutex::new(Instant::now()),
        }
    }

    /// Changes the limit, also for those who wait.
    pub fn set(&self, per_second: Option<ByteCount>) {
        self.per_second.send_replace(nonzero(per_second));
    }

    /// Waits until some of so many bytes may pass, and returns how many. Cancel-safe: they count once it
    /// returns.
    pub async fn admit(&self, bytes: usize) -> usize {
        if self.per_second.borrow().is_none() {
            return bytes;
        }
        let mut limit = self.per_second.subscribe();
        let mut paid_until = self.paid_until.lock().await;
        loop {
            let Some(per_second) = *limit.borrow_and_update() else {
                return bytes;
            };
            let piece = bytes.min(piece(per_second));
            let now = Instant::now();
            let free_since = now.checked_sub(SAVED).unwrap_or(now).max(*paid_until);
            let until = free_since + time(piece, per_second);
            tokio::select! {
                () = sleep_until(until) => {
                    *paid_until = until;
                    return piece;
                }
                // The sender is ours, so this never errs.
                _ = limit.changed() => {}
            }
        }
    }

    /// Waits until all of so many bytes have passed. Cancel-safe: those that have passed count.
    pub async fn admit_all(&self, bytes: usize) {
        let mut left = bytes;
        while left > 0 {
            left -= self.admit(left).await;
        }
    }

    /// The most bytes that pass at once.
    #[must_use]
    pub fn piece(&self) -> usize {
        self.per_second.borrow().map_or(usize::MAX, piece)
    }
}

fn nonzero(per_second: Option<ByteCount>) -> Option<u64> {
    per_second.map(|bytes| bytes.0.max(1))
}

fn piece(per_second: u64) -> usize {
    let bytes = u128::from(per_second) * PIECE.as_millis() / 1_000;
    usize::try_from(bytes).unwrap_or(usize::MAX).max(1)
}

/// At most a second, since no piece is larger than one byte or [`PIECE`].
fn time(bytes: usize, per_second: u64) -> Duration {
    let nanos = bytes as u128 * 1_000_000_000 / u128::from(per_second);
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex as StdMutex};

    use tokio::task::JoinSet;

    use super::*;
    use crate::mutex::lock;

    const CHUNK: usize = 256 * 1024;
    const WINDOW: Duration = Duration::from_secs(10);

    /// What passed, and when.
    type Passed = Arc<StdMutex<Vec<(Instant, usize)>>>;

    /// Workers that load one chunk after the other for ever; each chunk takes them some time.
    fn load(rate: &Arc<Rate>, workers: u64) -> (JoinSet<()>, Passed) {
        let passed = Passed::default();
        let mut running = JoinSet::new();
        for number in 0..workers {
            let (rate, passed) = (Arc::clone(rate), Arc::clone(&passed));
            running.spawn(async move {
                for chunk in 0.. {
                    let mut rest = CHUNK;
                    while rest > 0 {
                        let piece = rate.admit(rest).await;
                        lock(&passed).push((Instant::now(), piece));
                        rest -= piece;
                    }
                    let busy = 1 + (number * 7 + chunk * 13) % 20;
                    tokio::time::sleep(Duration::from_millis(busy)).await;
                }
            });
        }
        (running, passed)
    }

    /// Every window of ten seconds between the two has what is allowed, within five per cent.
    fn assert_even(passed: &Passed, per_second: u64, from: Instant, to: Instant) {
        let passed = lock(passed);
        let allowed = per_second as f64 * WINDOW.as_secs_f64();
        let mut begin = from;
        while begin + WINDOW <= to {
            let within = passed
                .iter()
                .filter(|(at, _)| (begin..begin + WINDOW).contains(at));
            let bytes: usize = within.map(|(_, bytes)| bytes).sum();
            let share = bytes as f64 / allowed;
            let second = (begin - from).as_secs_f64();
            assert!(
                (0.95..=1.05).contains(&share),
                "{share:.3} of {per_second} B/s after {second} s"
            );
            begin += Duration::from_millis(130);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_limit_holds_in_any_ten_seconds_with_one_worker_and_with_sixteen() {
        for workers in [1, 16] {
            // The first is slower than a tenth of a chunk a second.
            for per_second in [20_000, 1_000_000, 8_000_000] {
                let rate = Arc::new(Rate::new(Some(ByteCount(per_second))));
                let begun = Instant::now();
                let (_running, passed) = load(&rate, workers);
                tokio::time::sleep(Duration::from_secs(40)).await;
                assert_even(&passed, per_second, begun, Instant::now());
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn another_limit_holds_from_the_moment_it_is_set() {
        for workers in [1, 16] {
            let rate = Arc::new(Rate::new(Some(ByteCount(50_000))));
            let (_running, passed) = load(&rate, workers);
            for per_second in [5_000_000, 30_000, 1_000_000] {
                tokio::time::sleep(Duration::from_millis(7_010)).await;
                rate.set(Some(ByteCount(per_second)));
                let from = Instant::now();
                tokio::time::sleep(Duration::from_secs(30)).await;
                assert_even(&passed, per_second, from, Instant::now());
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_the_slowest_rate_passes_at_once_where_the_limit_is_removed() {
        let rate = Arc::new(Rate::new(Some(ByteCount(1))));
        let (_running, passed) = load(&rate, 16);
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(lock(&passed).len() <= 61);
        rate.set(None);
        tokio::time::sleep(Duration::from_millis(100)).await;
        let bytes: usize = lock(&passed).iter().map(|(_, bytes)| bytes).sum();
        assert!(bytes >= 16 * CHUNK, "{bytes}");
        assert_eq!(rate.piece(), usize::MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn idle_time_is_not_saved_up() {
        let rate = Rate::new(Some(ByteCount(1_000)));
        tokio::time::sleep(Duration::from_secs(60)).await;
        let start = Instant::now();
        rate.admit_all(2_001).await;
        assert!(start.elapsed() >= Duration::from_millis(1_600));
    }

    #[tokio::test(start_paused = true)]
    async fn any_number_of_bytes_passes_at_any_rate() {
        for per_second in [0, 1, u64::MAX] {
            let rate = Rate::new(Some(ByteCount(per_second)));
            assert_eq!(rate.admit(0).await, 0);
            assert!((1..=5).contains(&rate.admit(5).await));
            assert!(rate.admit(usize::MAX).await > 0);
        }
    }
}
