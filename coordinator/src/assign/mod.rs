//! The order in which parts are copied and the number of workers.
//!
//! Pure: takes the plan and the limits, returns an order and a number. The target's free workers take
//! parts from the order as from a queue, so a slow range never idles the others.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use steep_protocol::PartNo;

use crate::job::copy_progress::{CopyProgress, TableCopy};

/// What limits the workers of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorkerLimits {
    /// Requested by the operator.
    pub asked: u8,
    /// The maximum of the source's agent.
    pub source_max: u8,
    /// Used there by other jobs.
    pub source_used: u8,
    /// The maximum of the target's agent.
    pub target_max: u8,
    /// Used there by other jobs.
    pub target_used: u8,
}

/// Workers for the job: as many as requested and free on both agents, and at least one, so that a job
/// behind a large one is slow but not stuck.
#[must_use]
pub fn workers(limits: WorkerLimits) -> u8 {
    let source = limits.source_max.saturating_sub(limits.source_used);
    let target = limits.target_max.saturating_sub(limits.target_used);
    limits.asked.min(source).min(target).max(1)
}

/// Every part that is not done, in the order in which to start them, of `together` tables at a time.
///
/// Each next part is the next range of the table with the most estimated bytes left, among the `together` largest that
/// have begun. So the largest tables come first, ranges of one table keep their order on disk, tables of the same size
/// take turns (which spreads their locks and files), small parts remain for the end, and tables are completed one
/// after another: if the snapshot is lost, only those that have begun are copied again. Takes O(parts × log tables).
#[must_use]
pub fn order(copied: &CopyProgress, together: u8) -> Vec<PartNo> {
    let open = copied.tables().iter().filter(|table| !table.is_complete());
    let mut waiting: Vec<(u64, Reverse<u32>)> = open
        .map(|table| (weight(table, 0), Reverse(table.summary.no.0)))
        .collect();
    waiting.sort_unstable();
    let begin = waiting.len().saturating_sub(usize::from(together.max(1)));
    let mut heap = BinaryHeap::from(waiting.split_off(begin));
    let counted = copied.counted();
    let mut order = Vec::with_capacity((counted.planned - counted.done.parts) as usize);
    let mut taken = vec![0u32; copied.tables().len()];
    while let Some((_, Reverse(no))) = heap.pop() {
        let table = &copied.tables()[no as usize];
        let next = &mut taken[no as usize];
        let part = PartNo(table.summary.first_part.0 + *next);
        *next += 1;
        if !copied.is_done(part) {
            order.push(part);
        }
        if *next < table.summary.parts {
            heap.push((weight(table, *next), Reverse(no)));
        } else {
            heap.extend(waiting.pop());
        }
    }
    order
}

/// The order for one of several targets that share a snapshot and exchange its parts: first its own share,
/// every n-th part, then the others' shares, which they have by then.
#[must_use]
pub fn share(order: Vec<PartNo>, (place, targets): (usize, usize)) -> Vec<PartNo> {
    if targets < 2 {
        return order;
    }
    let from = |first: usize| order.iter().copied().skip(first).step_by(targets);
    let shares = (0..targets).map(|turn| (place + turn) % targets);
    shares.flat_map(from).collect()
}

/// Estimated bytes left of a table after that many parts.
fn weight(table: &TableCopy, taken: u32) -> u64 {
    let left = u128::from(table.summary.parts - taken);
    let bytes = u128::from(table.summary.bytes_estimate.0) * left;
    u64::try_from(bytes / u128::from(table.summary.parts)).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;
    use steep_protocol::message::agent::{PartDone, TableSummary};
    use steep_protocol::{ByteCount, RowCount, TableName, TableNo};

    use super::*;

    proptest! {
        #[test]
        fn targets_begin_with_different_parts_and_all_have_every_part(parts in 0u32..40, targets in 1usize..7) {
            let order: Vec<PartNo> = (0..parts).map(PartNo).collect();
            let shares: Vec<Vec<PartNo>> =
                (0..targets).map(|place| share(order.clone(), (place, targets))).collect();
            for given in &shares {
                let mut sorted = given.clone();
                sorted.sort();
                prop_assert_eq!(&sorted, &order);
            }
            if parts as usize >= targets {
                let first: BTreeSet<_> = shares.iter().map(|share| share[0]).collect();
                prop_assert_eq!(first.len(), targets);
            }
        }
    }

    fn copied(tables: &[(u32, u64)]) -> CopyProgress {
        let mut copied = CopyProgress::default();
        for (i, (parts, bytes)) in tables.iter().enumerate() {
            let table = TableSummary {
                no: TableNo(i as u32),
                name: TableName::new("public", format!("t{i}")).unwrap(),
                rows_estimate: RowCount(0),
                bytes_estimate: ByteCount(*bytes),
                first_part: PartNo(copied.counted().planned),
                parts: *parts,
            };
            copied.add_page(&[table]).unwrap();
        }
        copied
    }

    fn numbers(order: &[PartNo]) -> Vec<u32> {
        order.iter().map(|p| p.0).collect()
    }

    #[test]
    fn the_largest_table_comes_first_and_equal_ones_take_turns() {
        // Two large tables of four parts, one small one and an empty one.
        let order = order(&copied(&[(1, 10), (4, 4_000), (4, 4_000), (1, 0)]), 4);
        assert_eq!(numbers(&order), [1, 5, 2, 6, 3, 7, 4, 8, 0, 9]);
    }

    #[test]
    fn a_job_behind_others_gets_one_worker() {
        let limits = WorkerLimits {
            asked: 8,
            source_max: 16,
            source_used: 12,
            target_max: 8,
            target_used: 0,
        };
        assert_eq!(workers(limits), 4);
        assert_eq!(
            workers(WorkerLimits {
                target_used: 8,
                ..limits
            }),
            1
        );
        assert_eq!(
            workers(WorkerLimits {
                target_used: 200,
                ..limits
            }),
            1
        );
    }

    proptest! {
        #[test]
        fn every_missing_part_once_in_ctid_order_largest_remainder_first(
            tables in proptest::collection::vec((1u32..9, 0u64..1_000), 1..30),
            done in proptest::collection::vec(any::<proptest::sample::Index>(), 0..40),
            together in 1u8..40,
        ) {
            let mut copied = copied(&tables);
            let parts = copied.counted().planned;
            for index in done {
                let part = PartNo(index.index(parts as usize) as u32);
                let part = PartDone { part, rows: RowCount(1), bytes: ByteCount(1), wire: ByteCount(1) };
                copied.note(&part).unwrap();
            }
            let order = order(&copied, together);
            let mut sorted = numbers(&order);
            sorted.sort_unstable();
            let missing: Vec<u32> = (0..parts).filter(|p| !copied.is_done(PartNo(*p))).collect();
            prop_assert_eq!(sorted, missing);
            let mut last = vec![None; tables.len()];
            let mut remaining_before = u64::MAX;
            let all_at_once = usize::from(together) >= tables.len();
            let begun = |until: usize| {
                let tables = order[..=until].iter().map(|part| copied.table_of(*part).unwrap());
                let open = |no: &TableNo| order[until + 1..].iter().any(|part| copied.table_of(*part) == Some(*no));
                tables.filter(open).collect::<BTreeSet<_>>().len()
            };
            for at in 0..order.len() {
                prop_assert!(begun(at) <= usize::from(together), "too many tables at once");
            }
            for part in order {
                let no = copied.table_of(part).unwrap();
                let table = copied.table(no).unwrap();
                prop_assert!(last[no.0 as usize] < Some(part), "a range out of order");
                last[no.0 as usize] = Some(part);
                let remaining = weight(table, part.0 - table.summary.first_part.0);
                prop_assert!(remaining <= remaining_before || !all_at_once, "a larger remainder came later");
                remaining_before = remaining;
            }
        }

        #[test]
        fn workers_are_within_every_limit_or_one(
            asked in 1u8..=16, source_max: u8, source_used: u8, target_max: u8, target_used: u8
        ) {
            let given = workers(WorkerLimits { asked, source_max, source_used, target_max, target_used });
            prop_assert!(given >= 1 && given <= asked);
            let free = |max: u8, used: u8| max.saturating_sub(used);
            prop_assert!(given == 1 || (given <= free(source_max, source_used) && given <= free(target_max, target_used)));
        }
    }
}
