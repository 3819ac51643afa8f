//! Limits the memory for rows over all jobs of an agent (G8).
//!
//! What a running part can hold is bounded, whatever its rows: fixed buffers, a stream's window, a
//! compressor's context. So a budget of bytes is a number of parts, and further parts wait until one ends,
//! rather than use the memory that PostgreSQL needs. The operator sets it (`--memory-mib`).
//!
//! Served and fetched parts have half each: with a common budget, two agents that fetch from each other
//! could deadlock.

use std::sync::Arc;

use steep_protocol::limits::{CHUNK_RAW_MAX, STREAM_WINDOW};
use steep_protocol::message::job::Compression;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::chunk::context_bytes;
use crate::pg::raw::READ_BUFFER;

/// The most that a running part holds on either end, besides a compressor's context: the read buffer of its
/// PostgreSQL connection; a chunk raw, packed and handed over; a stream's window in flight.
const PART: usize = READ_BUFFER + 3 * CHUNK_RAW_MAX + STREAM_WINDOW as usize;

/// Default. With everything else an agent then stays below 128 MiB.
pub(crate) const DEFAULT_MIB: u32 = 96;

/// The minimum: one part in each direction with the largest context.
pub(crate) const LEAST_MIB: u32 = 16;

/// Granularity: a semaphore counts no further than 32 bits.
const UNIT: usize = 64 * 1024;

/// The concurrent parts in one direction. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Budget {
    room: Arc<Semaphore>,
    units: u32,
}

/// A part's share, returned when dropped.
#[derive(Debug)]
pub(crate) struct Share(
    #[expect(dead_code, reason = "held for its Drop")] Option<OwnedSemaphorePermit>,
);

impl Budget {
    /// Half of the given mebibytes, for one direction.
    pub(crate) fn half_of(mebibytes: u32) -> Self {
        let units = mebibytes.max(LEAST_MIB) * (1024 * 1024 / UNIT as u32) / 2;
        Self {
            room: Arc::new(Semaphore::new(units as usize)),
            units,
        }
    }

    pub(crate) fn limit(&self) -> usize {
        self.units as usize * UNIT
    }

    /// Bytes reserved by running parts.
    pub(crate) fn used(&self) -> usize {
        self.limit()
            .saturating_sub(self.room.available_permits() * UNIT)
    }

    /// Waits, in order, for room for a part that is packed that way.
    pub(crate) async fn part(&self, compression: Compression) -> Share {
        self.room_for(context_bytes(compression)).await
    }

    /// Waits, in order, for room for a part that needs so many bytes besides its buffers.
    pub(crate) async fn room_for(&self, further: usize) -> Share {
        let units = u32::try_from((PART + further).div_ceil(UNIT)).unwrap_or(u32::MAX);
        let units = units.min(self.units);
        // The semaphore is never closed.
        Share(Arc::clone(&self.room).acquire_many_owned(units).await.ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    /// Starts parts until one has to wait.
    fn begin(budget: &Budget, compression: Compression) -> Vec<Share> {
        std::iter::from_fn(|| budget.part(compression).now_or_never()).collect()
    }

    #[test]
    fn parts_beyond_the_budget_wait_until_one_has_ended() {
        let budget = Budget::half_of(LEAST_MIB);
        let mut shares = begin(&budget, Compression::Lz4);
        assert_eq!(shares.len(), LEAST_MIB as usize / 2 * 1024 * 1024 / PART);
        assert!(budget.part(Compression::Lz4).now_or_never().is_none());
        assert!(budget.used() > budget.limit() - PART && budget.used() <= budget.limit());
        shares.pop();
        assert_eq!(begin(&budget, Compression::Lz4).len(), 1);
    }

    #[test]
    fn parts_that_take_more_memory_are_fewer_at_once_and_never_none() {
        let budget = Budget::half_of(0);
        let strong = begin(&budget, Compression::Zstd(19)).len();
        assert_eq!(strong, 1);
        assert!(begin(&budget, Compression::None).len() > strong);
    }

    #[test]
    fn a_job_that_keeps_its_parts_for_others_fits_too() {
        let budget = Budget::half_of(DEFAULT_MIB);
        let further = context_bytes(Compression::Auto) + crate::kept::Writer::MEMORY;
        let shares = std::iter::from_fn(|| budget.room_for(further).now_or_never());
        assert!(shares.take(16).count() >= 16);
    }

    #[test]
    fn a_job_with_all_its_workers_fits_where_nothing_is_said() {
        let budget = Budget::half_of(DEFAULT_MIB);
        assert!(begin(&budget, Compression::Auto).len() >= 16);
    }
}
