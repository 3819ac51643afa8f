//! Which tables in which parts. Pure: catalog values in, plan out.
//!
//! Every page of a table lies in exactly one part: the first range is open below, the last one open above,
//! and the others meet. Parts are numbered through; those of a table are neighbours.

use std::collections::HashMap;

use steep_protocol::limits::PARTS_MAX;
use steep_protocol::message::agent::TableSummary;
use steep_protocol::message::job::TableFilter;
use steep_protocol::message::peer::{ColumnPlan, CtidRange, TablePlan};
use steep_protocol::{ByteCount, PartNo, RowCount, TableName, TableNo};

use super::listing::{Listing, Size};
use super::types::Types;

/// Ranges per worker for a table that is split: enough that a slow last range idles the others for at most
/// an eighth of their time, few enough that the cost per part does not matter.
const RANGES_PER_WORKER: u64 = 4;

/// Smaller tables get one part, unless the operator calls them large: a worker copies this much in about
/// half a second.
const SPLIT_FROM: u64 = 64 << 20;

/// The smallest range by default. A part costs a transaction on each side, some milliseconds, against about
/// 100 ms for this many bytes.
const RANGE_MIN: u64 = 16 << 20;

/// The smallest range of a table that the operator calls large. It makes a difference only where the threshold is
/// far below its default, under which ranges are larger anyway.
const RANGE_MIN_LARGE: u64 = 1 << 20;

/// The largest range: what is sent again when a part is lost, and the step in which progress moves.
const RANGE_MAX: u64 = 256 << 20;

/// How finely to split.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Splitting {
    pub(crate) parallel: u8,
    pub(crate) large_table_threshold: ByteCount,
}

#[derive(Debug, Default)]
pub(crate) struct Plan {
    pub(crate) tables: Vec<TablePlan>,
    pub(crate) summaries: Vec<TableSummary>,
    pub(crate) parts: u32,
}

/// More tables than a job can have parts.
#[derive(Debug, thiserror::Error)]
#[error("{0} tables are more than a job can hold ({PARTS_MAX}); split the job by schema")]
pub(crate) struct TooManyTables(usize);

/// Plans the tables in the order given.
pub(crate) fn make(
    listing: &Listing,
    names: &[TableName],
    sizes: &HashMap<u32, Size>,
    types: &Types,
    splitting: Splitting,
) -> Result<Plan, TooManyTables> {
    let size_of = |name| {
        let oid = listing.relations.get(name).map(|relation| relation.oid);
        oid.and_then(|oid| sizes.get(&oid))
            .copied()
            .unwrap_or_default()
    };
    let all: Vec<Size> = names.iter().map(size_of).collect();
    let counts = range_counts(&all, splitting).ok_or(TooManyTables(names.len()))?;
    let mut plan = Plan::default();
    for (no, ((name, size), count)) in (0..).zip(names.iter().zip(&all).zip(counts)) {
        let columns = listing
            .relations
            .get(name)
            .map(|relation| relation.columns.as_slice());
        let columns = columns.unwrap_or_default().iter().map(|column| ColumnPlan {
            name: column.name.clone(),
            type_name: column.type_name.clone(),
            binary: types.portable(column.type_oid),
        });
        let first_part = PartNo(plan.parts);
        plan.tables.push(TablePlan {
            no: TableNo(no),
            name: name.clone(),
            columns: columns.collect(),
            first_part,
            ranges: ranges(size.pages, count),
        });
        plan.summaries.push(TableSummary {
            no: TableNo(no),
            name: name.clone(),
            rows_estimate: RowCount(size.rows),
            bytes_estimate: ByteCount(size.bytes),
            first_part,
            parts: count,
        });
        plan.parts += count;
    }
    Ok(plan)
}

/// The tables that take part, by name.
pub(crate) fn names(listing: &Listing, filter: &TableFilter) -> Vec<TableName> {
    listing
        .relations
        .keys()
        .filter(|name| listing.takes_part(filter, name))
        .cloned()
        .collect()
}

/// Ranges for each table, [`PARTS_MAX`] in all. `None` where one each is too many.
fn range_counts(sizes: &[Size], splitting: Splitting) -> Option<Vec<u32>> {
    if sizes.len() > PARTS_MAX as usize {
        return None;
    }
    let mut coarser = 1;
    loop {
        let counts: Vec<u32> = sizes
            .iter()
            .map(|size| (range_count(*size, splitting) / coarser).max(1))
            .collect();
        let total: u64 = counts.iter().map(|count| u64::from(*count)).sum();
        if total <= u64::from(PARTS_MAX) {
            return Some(counts);
        }
        coarser *= 2;
    }
}

fn range_count(size: Size, splitting: Splitting) -> u32 {
    let large = size.bytes > splitting.large_table_threshold.0;
    if !large && size.bytes < SPLIT_FROM {
        return 1;
    }
    let wanted = u64::from(splitting.parallel.max(1)) * RANGES_PER_WORKER;
    let smallest = if large { RANGE_MIN_LARGE } else { RANGE_MIN };
    let bytes = (size.bytes / wanted).clamp(smallest, RANGE_MAX);
    let count = size.bytes.div_ceil(bytes).min(u64::from(size.pages));
    u32::try_from(count)
        .unwrap_or(PARTS_MAX)
        .clamp(1, PARTS_MAX)
}

/// `count` ranges over `pages`, as even as possible.
fn ranges(pages: u32, count: u32) -> Vec<CtidRange> {
    let bound = |n: u32| {
        let inner = n > 0 && n < count;
        // Fits: n < count, so the quotient is below pages.
        inner.then(|| (u64::from(pages) * u64::from(n) / u64::from(count)) as u32)
    };
    (0..count)
        .map(|n| CtidRange {
            from: bound(n),
            to: bound(n + 1),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SPLITTING: Splitting = Splitting {
        parallel: 4,
        large_table_threshold: ByteCount(10 << 30),
    };

    fn size(bytes: u64) -> Size {
        Size {
            pages: u32::try_from(bytes / 8192).unwrap(),
            bytes,
            rows: 0,
        }
    }

    #[test]
    fn one_large_table_keeps_every_worker_busy() {
        let accounts = size(1_340_000_000);
        assert_eq!(range_count(accounts, SPLITTING), 16);
        assert_eq!(
            range_count(
                accounts,
                Splitting {
                    parallel: 2,
                    ..SPLITTING
                }
            ),
            8
        );
        assert_eq!(range_count(size(63 << 20), SPLITTING), 1);
        assert_eq!(range_count(size(0), SPLITTING), 1);
        assert_eq!(range_count(size(100 << 30), SPLITTING), 400);
    }

    #[test]
    fn a_table_that_the_operator_calls_large_is_split_finely() {
        let splitting = Splitting {
            parallel: 4,
            large_table_threshold: ByteCount(10 << 20),
        };
        assert_eq!(range_count(size(16 << 20), splitting), 16);
        assert_eq!(range_count(size(10 << 20), splitting), 1);
    }

    #[test]
    fn rows_kept_out_of_line_count_and_a_range_has_a_page_at_least() {
        let toasted = Size {
            pages: 10,
            bytes: 50 << 30,
            rows: 0,
        };
        assert_eq!(range_count(toasted, SPLITTING), 10);
    }

    #[test]
    fn a_job_never_has_more_parts_than_the_limit() {
        let sizes = vec![size(16 << 40); 200];
        let splitting = Splitting {
            parallel: 16,
            large_table_threshold: ByteCount(0),
        };
        let counts = range_counts(&sizes, splitting).unwrap();
        let total: u64 = counts.iter().map(|c| u64::from(*c)).sum();
        assert!(
            total <= u64::from(PARTS_MAX) && total > u64::from(PARTS_MAX) / 4,
            "{total}"
        );
    }

    proptest! {
        #[test]
        fn ranges_cover_every_page_exactly_once_in_order(pages in 0u32.., count in 1u32..5000) {
            let count = count.min(pages.max(1));
            let ranges = ranges(pages, count);
            prop_assert_eq!(ranges.len(), count as usize);
            prop_assert_eq!(ranges.first().unwrap().from, None);
            prop_assert_eq!(ranges.last().unwrap().to, None);
            let mut last = 0;
            for pair in ranges.windows(2) {
                let bound = pair[0].to.unwrap();
                prop_assert_eq!(pair[1].from, Some(bound));
                prop_assert!(bound > last && bound < pages, "{} after {}", bound, last);
                last = bound;
            }
        }

        #[test]
        fn counts_are_within_pages_and_limits(
            pages in 0u32.., toast in 0u64..1 << 45, parallel in 1u8..=16, threshold: u64,
        ) {
            let size = Size { pages, bytes: u64::from(pages) * 8192 + toast, rows: 0 };
            let splitting = Splitting { parallel, large_table_threshold: ByteCount(threshold) };
            let count = range_count(size, splitting);
            prop_assert!(count >= 1 && count <= pages.max(1));
        }
    }
}
