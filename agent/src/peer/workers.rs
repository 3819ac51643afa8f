//! How many workers a copy has, and how many it may have. Pure.

/// Counted in one place, so that one that leaves and one that is wanted back cannot miss each other.
#[derive(Debug, Default)]
pub(super) struct Workers {
    at_work: usize,
    wanted: usize,
}

impl Workers {
    /// Sets how many there may be, at least one. Returns how many must start, so that each of them finds one
    /// of the `parts` that nobody has taken.
    pub(super) fn hire(&mut self, wanted: u8, parts: usize) -> usize {
        self.wanted = usize::from(wanted.max(1));
        let useful = self.wanted.min(self.at_work + parts);
        let new = useful.saturating_sub(self.at_work);
        self.at_work += new;
        new
    }

    /// How many there may be.
    pub(super) fn wanted(&self) -> usize {
        self.wanted
    }

    /// Asked by a worker before each part: whether it may take one. If not, it has left.
    pub(super) fn goes_on(&mut self) -> bool {
        let goes_on = self.at_work <= self.wanted;
        if !goes_on {
            self.leaves();
        }
        goes_on
    }

    /// A worker has found no part.
    pub(super) fn leaves(&mut self) {
        self.at_work = self.at_work.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn more_start_at_once_and_of_too_many_each_leaves_before_its_next_part() {
        let mut workers = Workers::default();
        assert_eq!(workers.hire(4, 100), 4);
        assert_eq!(workers.hire(8, 96), 4, "four more");
        assert_eq!(workers.hire(3, 92), 0);
        assert_eq!((0..8).filter(|_| !workers.goes_on()).count(), 5);
        assert_eq!(workers.hire(8, 92), 5, "as many again");
    }

    #[test]
    fn those_that_are_wanted_back_in_time_stay() {
        let mut workers = Workers::default();
        workers.hire(8, 100);
        workers.hire(1, 92);
        assert_eq!(workers.hire(8, 92), 0);
        assert!((0..8).all(|_| workers.goes_on()));
    }

    #[test]
    fn nobody_starts_without_a_part() {
        let mut workers = Workers::default();
        assert_eq!(workers.hire(16, 2), 2);
        assert_eq!(workers.hire(16, 0), 0);
        workers.leaves();
        workers.leaves();
        assert_eq!((workers.hire(16, 0), workers.hire(0, 1)), (0, 1));
    }

    proptest! {
        #[test]
        fn every_part_is_taken_whatever_is_wanted(
            parts in 0usize..50,
            orders in proptest::collection::vec((any::<u8>(), 0usize..20), 1..20),
        ) {
            let (mut workers, mut left, mut running) = (Workers::default(), parts, 0);
            for (wanted, takes) in orders.into_iter().chain([(1, usize::MAX)]) {
                running += workers.hire(wanted, left);
                for _ in 0..takes {
                    if running == 0 {
                        break;
                    }
                    if !workers.goes_on() {
                        running -= 1;
                    } else if left > 0 {
                        left -= 1;
                    } else {
                        workers.leaves();
                        running -= 1;
                    }
                }
            }
            prop_assert_eq!((running, left), (0, 0));
        }
    }
}
