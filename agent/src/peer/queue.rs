//! The parts of a copy that nobody has taken, and how many workers may take them. Pure.

use std::collections::VecDeque;

use steep_protocol::PartNo;

/// Workers are counted here, so that two that end and one that is wanted back cannot miss each other.
#[derive(Debug)]
pub(super) struct Queue {
    parts: VecDeque<PartNo>,
    workers: usize,
    wanted: usize,
}

impl Queue {
    /// Parts in their order, and no worker yet.
    pub(super) fn new(parts: VecDeque<PartNo>) -> Self {
        Self {
            parts,
            workers: 0,
            wanted: 0,
        }
    }

    /// Sets how many workers may take parts, at least one. Returns how many must start, so that each finds
    /// a part.
    pub(super) fn hire(&mut self, wanted: u8) -> usize {
        self.wanted = usize::from(wanted.max(1));
        let useful = self.wanted.min(self.workers + self.parts.len());
        let new = useful.saturating_sub(self.workers);
        self.workers += new;
        new
    }

    /// A worker's next part; without one, it must end.
    pub(super) fn take(&mut self) -> Option<PartNo> {
        let part = match self.workers <= self.wanted {
            true => self.parts.pop_front(),
            false => None,
        };
        if part.is_none() {
            self.workers = self.workers.saturating_sub(1);
        }
        part
    }

    /// Parts that nobody has taken.
    pub(super) fn left(&self) -> usize {
        self.parts.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn queue(parts: u32) -> Queue {
        Queue::new((0..parts).map(PartNo).collect())
    }

    #[test]
    fn more_workers_start_at_once_and_fewer_end_after_their_part() {
        let mut queue = queue(100);
        assert_eq!(queue.hire(4), 4);
        assert_eq!(queue.hire(8), 4, "four more");
        assert_eq!(queue.hire(3), 0);
        let ended = (0..8).filter(|_| queue.take().is_none()).count();
        assert_eq!(ended, 5);
        assert_eq!(queue.hire(8), 5, "as many again");
    }

    #[test]
    fn workers_that_are_wanted_back_in_time_stay() {
        let mut queue = queue(100);
        queue.hire(8);
        queue.hire(1);
        assert_eq!(queue.hire(8), 0);
        assert!((0..8).all(|_| queue.take().is_some()));
    }

    #[test]
    fn nobody_starts_without_a_part() {
        let mut queue = queue(2);
        assert_eq!(queue.hire(16), 2);
        assert_eq!(
            (queue.take(), queue.take()),
            (Some(PartNo(0)), Some(PartNo(1)))
        );
        assert_eq!(queue.hire(16), 0);
        assert_eq!((queue.take(), queue.take()), (None, None));
        assert_eq!((queue.hire(16), queue.left()), (0, 0));
        assert_eq!(super::tests::queue(0).hire(0), 0);
    }

    proptest! {
        #[test]
        fn every_part_is_taken_once_whatever_is_wanted(
            parts in 0u32..50,
            orders in proptest::collection::vec((any::<u8>(), 0usize..20), 1..20),
        ) {
            let mut queue = queue(parts);
            let (mut workers, mut taken) = (0, Vec::new());
            for (wanted, takes) in orders.into_iter().chain([(1, usize::MAX)]) {
                workers += queue.hire(wanted);
                for _ in 0..takes {
                    if workers == 0 {
                        break;
                    }
                    match queue.take() {
                        Some(part) => taken.push(part),
                        None => workers -= 1,
                    }
                }
            }
            prop_assert_eq!(workers, 0);
            prop_assert!(taken.into_iter().eq((0..parts).map(PartNo)));
        }
    }
}
