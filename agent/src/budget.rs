//! How much memory rows may take up at once, over all jobs of an agent (G8).
//!
//! What a part under way can hold is bounded, whatever its rows are like, and the same for all. So
//! a budget of bytes is a number of parts: those beyond it wait until another has ended, which
//! lowers the concurrency instead of using the memory that PostgreSQL needs beside the agent.
//!
//! Parts that are served and parts that are fetched have a budget each: with a common one, two
//! agents that fetch from each other could wait for each other.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The most that one part under way holds on either end: 256 KiB of COPY data being read, as much
/// being packed, as much packed and waiting, and a stream's window of 1 MiB on its way.
const PART: usize = 1792 * 1024;

/// For the parts of one direction. With both directions in use an agent stays below 128 MiB.
const TOTAL: usize = 48 * 1024 * 1024;

/// The parts that may be under way at once in one direction. Clones share it.
#[derive(Debug, Clone)]
pub struct Budget {
    room: Arc<Semaphore>,
    parts: usize,
}

/// A part's share of the budget, given back when dropped.
#[derive(Debug)]
pub struct Share(#[expect(dead_code, reason = "held for its Drop")] Option<OwnedSemaphorePermit>);

impl Default for Budget {
    fn default() -> Self {
        Self::of(TOTAL)
    }
}

impl Budget {
    /// A budget of so many bytes; room for one part at least.
    fn of(bytes: usize) -> Self {
        let parts = (bytes / PART).max(1);
        Self {
            room: Arc::new(Semaphore::new(parts)),
            parts,
        }
    }

    /// Bytes that all parts at once may hold.
    #[must_use]
    pub fn limit(&self) -> usize {
        self.parts * PART
    }

    /// Bytes set aside for the parts under way now.
    #[must_use]
    pub fn used(&self) -> usize {
        self.parts.saturating_sub(self.room.available_permits()) * PART
    }

    /// Waits for room for one more part. Those who wait are served in order.
    pub async fn part(&self) -> Share {
        // The semaphore is never closed.
        Share(Arc::clone(&self.room).acquire_owned().await.ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    /// Parts that could begin at once.
    fn room(budget: &Budget) -> usize {
        budget.room.available_permits()
    }

    #[test]
    fn parts_beyond_the_budget_wait_until_one_has_ended() {
        let budget = Budget::of(2 * PART + 1);
        let first = budget.part().now_or_never().unwrap();
        let second = budget.part().now_or_never().unwrap();
        assert!(budget.part().now_or_never().is_none());
        assert_eq!((budget.used(), budget.limit()), (2 * PART, 2 * PART));
        drop(first);
        assert!(budget.part().now_or_never().is_some());
        drop(second);
        assert_eq!(room(&budget), 2);
    }

    #[test]
    fn there_is_room_for_one_part_however_little_is_given() {
        assert_eq!(room(&Budget::of(0)), 1);
    }

    #[test]
    fn a_job_with_all_its_workers_fits() {
        assert!(room(&Budget::default()) >= 16);
    }
}
