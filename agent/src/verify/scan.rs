//! How the pages of a table are read: in lanes at once, each in short statements. Pure.

use std::collections::VecDeque;
use std::time::Duration;

use steep_protocol::message::peer::CtidRange;
use steep_protocol::message::verify::HeapRange;

use super::catalog::PAGE;

/// Pages of a lane's first statement: 8 MiB.
const PAGES_FIRST: u32 = 1024;

/// Pages of the longest statement: 128 MiB.
const PAGES_MAX: u32 = 16 * 1024;

/// A statement that took less is followed by a longer one.
const SHORT: Duration = Duration::from_millis(400);

/// A statement that took more is followed by a shorter one: whoever wants to alter the table waits for it.
const LONG: Duration = Duration::from_millis(1_200);

/// Pages of a leaf: from `from` up to, not including, `end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stretch {
    leaf: u32,
    from: u32,
    end: u32,
    /// Whether it is the leaf's last, and so has pages that were added since.
    last: bool,
}

/// Divides the pages of leaves into at most `count` lanes of about the same length.
pub(super) fn lanes(pages: &[u32], count: u8) -> Vec<Vec<Stretch>> {
    let total: u64 = pages.iter().map(|pages| u64::from(*pages)).sum();
    let per_lane = total
        .div_ceil(u64::from(count.max(1)))
        .max(u64::from(PAGES_FIRST));
    let mut lanes: Vec<Vec<Stretch>> = vec![Vec::new()];
    let mut left = per_lane;
    for (leaf, end) in (0..).zip(pages.iter().copied()) {
        let mut from = 0;
        loop {
            if left == 0 {
                lanes.push(Vec::new());
                left = per_lane;
            }
            let taken = u64::from(end - from).min(left);
            let until = from + u32::try_from(taken).unwrap_or(end - from);
            let last = until == end;
            let stretch = Stretch {
                leaf,
                from,
                end: until,
                last,
            };
            if let Some(lane) = lanes.last_mut() {
                lane.push(stretch);
            }
            left -= taken;
            from = until;
            if last {
                break;
            }
        }
    }
    lanes.retain(|lane| !lane.is_empty());
    lanes
}

/// After a statement that was too much, so many have the new length before one gets longer.
const CAREFUL: u8 = 8;

/// A lane on its way.
#[derive(Debug)]
pub(super) struct Walk {
    left: VecDeque<Stretch>,
    pages: u32,
    most: u32,
    /// Statements that do not get longer yet.
    careful: u8,
    /// The end of the last stretch has more than fits: it is read page by page.
    overfull: bool,
}

/// What is read next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) range: HeapRange,
    /// Pages in it that were there when the table was opened.
    pub(super) pages: u64,
    /// Where the next step begins; `None` at the end of a stretch.
    next: Option<u32>,
}

/// A single page cannot be read in one statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stuck;

impl Walk {
    /// Begins a lane; no statement reads more than `piece` bytes, but at least a page.
    pub(super) fn new(lane: Vec<Stretch>, piece: u64) -> Self {
        let most = u32::try_from(piece / PAGE)
            .unwrap_or(u32::MAX)
            .clamp(1, PAGES_MAX);
        Self {
            left: lane.into(),
            pages: PAGES_FIRST.min(most),
            most,
            careful: 0,
            overfull: false,
        }
    }

    /// The next step, again and again the same until [`Walk::done`] or [`Walk::too_much`].
    pub(super) fn step(&self) -> Option<Step> {
        let stretch = self.left.front()?;
        let (from, known) = (stretch.from, stretch.end.saturating_sub(stretch.from));
        let whole = known <= self.pages && !(stretch.last && self.overfull);
        let to = match (whole, stretch.last) {
            (true, true) => None,
            (true, false) => Some(stretch.end),
            (false, _) => Some(from.saturating_add(self.pages)),
        };
        let pages = CtidRange {
            from: Some(from),
            to,
        };
        Some(Step {
            range: HeapRange {
                leaf: stretch.leaf,
                pages,
            },
            pages: u64::from(known.min(self.pages)),
            next: if whole { None } else { to },
        })
    }

    /// The step was read, in that time.
    pub(super) fn done(&mut self, step: Step, took: Duration) {
        self.overfull = false;
        if took < SHORT && self.careful == 0 {
            self.pages = self.pages.saturating_mul(2).min(self.most);
        } else if took > LONG {
            self.pages = (self.pages / 2).max(1);
        }
        self.careful = self.careful.saturating_sub(1);
        match (step.next, self.left.front_mut()) {
            (Some(next), Some(stretch)) => stretch.from = next,
            _ => {
                self.left.pop_front();
            }
        }
    }

    /// The step was more than one statement can read.
    ///
    /// # Errors
    /// [`Stuck`] if it was a single page.
    pub(super) fn too_much(&mut self, step: Step) -> Result<(), Stuck> {
        let open = step.range.pages.to.is_none();
        if self.pages == 1 && !open {
            return Err(Stuck);
        }
        self.pages = (self.pages / 2).max(1);
        self.careful = CAREFUL;
        self.overfull |= open;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Walks all lanes; `fits` says whether a step of so many pages fits. Returns the ranges of each leaf.
    fn walked(
        pages: &[u32],
        count: u8,
        piece: u64,
        fits: impl Fn(Step) -> bool,
    ) -> Vec<Vec<CtidRange>> {
        let mut ranges = vec![Vec::new(); pages.len()];
        for lane in lanes(pages, count) {
            let mut walk = Walk::new(lane, piece);
            while let Some(step) = walk.step() {
                if fits(step) {
                    ranges[step.range.leaf as usize].push(step.range.pages);
                    walk.done(
                        step,
                        Duration::from_millis(u64::from(step.range.leaf) * 900),
                    );
                } else {
                    walk.too_much(step).unwrap();
                }
            }
        }
        ranges
    }

    proptest! {
        #[test]
        fn every_page_is_read_exactly_once_also_those_that_are_added(
            pages in proptest::collection::vec(prop_oneof![Just(0), 1..10_u32, 1..100_000_u32], 0..6),
            count in 1..9_u8,
            piece in prop_oneof![Just(u64::MAX), 1..100_000_000_u64],
            most in 1..5_000_u64,
        ) {
            // A step fits if it is short; an open end, if it begins beyond some pages that were added.
            let fits = |step: Step| match step.range.pages.to {
                Some(to) => u64::from(to - step.range.pages.from.unwrap()) <= most,
                None => u64::from(pages[step.range.leaf as usize]) + 7 <= u64::from(step.range.pages.from.unwrap()) + most,
            };
            for leaf in walked(&pages, count, piece, fits) {
                let mut sorted = leaf.clone();
                sorted.sort_by_key(|range| range.from);
                prop_assert_eq!(sorted.first().unwrap().from, Some(0));
                prop_assert_eq!(sorted.last().unwrap().to, None);
                for pair in sorted.windows(2) {
                    prop_assert_eq!(pair[0].to, pair[1].from);
                }
            }
        }
    }

    #[test]
    fn large_tables_are_read_in_several_lanes_and_small_ones_in_one() {
        assert_eq!(lanes(&[10, 0, 20], 4).len(), 1);
        assert_eq!(lanes(&[100_000], 4).len(), 4);
        assert_eq!(lanes(&[], 4).len(), 0);
        assert_eq!(lanes(&[0], 4).len(), 1);
    }

    #[test]
    fn statements_get_longer_while_they_are_short_and_shorter_when_they_are_long() {
        let mut walk = Walk::new(lanes(&[1_000_000], 1).remove(0), u64::MAX);
        let mut lengths = Vec::new();
        for millis in [100, 100, 1_000, 2_000] {
            let step = walk.step().unwrap();
            lengths.push(step.pages);
            walk.done(step, Duration::from_millis(millis));
        }
        assert_eq!(lengths, [1024, 2048, 4096, 4096]);
        assert_eq!(walk.step().unwrap().pages, 2048);
    }

    #[test]
    fn a_page_that_cannot_be_read_ends_the_walk() {
        let mut walk = Walk::new(lanes(&[5], 1).remove(0), u64::MAX);
        let stuck = (0..30).find_map(|_| walk.too_much(walk.step()?).err());
        assert_eq!(stuck, Some(Stuck));
    }

    #[test]
    fn a_rate_keeps_statements_short() {
        let walk = Walk::new(lanes(&[5_000], 1).remove(0), 10 * PAGE);
        assert_eq!(walk.step().unwrap().pages, 10);
    }
}
