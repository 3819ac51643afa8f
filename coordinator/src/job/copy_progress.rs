//! The plan of a copy and its finished parts, counted in little memory.
//!
//! Owns one counter per table and one bit per part; 10,000 tables in 100,000 parts take about 2 MB.
//! Never keeps a part's own numbers, never decides anything. Repeated reports count once, and reports
//! that do not fit the plan are refused.
//!
//! Every update is O(log tables); only the query that lists the tables visits them all.

use steep_protocol::message::agent::{PartDone, PartProgress, TableSummary};
use steep_protocol::{ByteCount, PartNo, RowCount, TableName, TableNo, limits};

use super::machine::Counted;

mod estimate;
mod kept;
use super::{Complete, Totals};

/// A page or part that does not fit the plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Misfit {
    /// Tables and parts must be numbered from 0 without gaps.
    #[error("table {} of the plan does not follow the ones before it", .0.0)]
    Table(TableNo),
    /// More parts than any plan may have.
    #[error("the plan has more than {} parts", limits::PARTS_MAX)]
    TooManyParts,
    /// A part that the plan does not have.
    #[error("part {0} is not in the plan")]
    Part(PartNo),
}

/// What a finished part means for its table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Noted {
    /// It was counted before.
    Known,
    /// It is new, and other parts of its table are missing.
    Part(TableNo),
    /// It was the last of its table.
    Table(TableNo),
}

/// One table's counters.
#[derive(Debug, Clone, PartialEq)]
pub struct TableCopy {
    /// The table in the plan.
    pub summary: TableSummary,
    /// Parts done.
    pub done: u32,
    /// Rows in them.
    pub rows: RowCount,
    /// COPY bytes in them.
    pub bytes: ByteCount,
}

impl TableCopy {
    /// Whether every part is done.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.done >= self.summary.parts
    }

    /// What is done of it.
    fn sum(&self) -> Totals {
        Totals {
            parts: self.done,
            rows: self.rows,
            bytes: self.bytes,
        }
    }

    /// COPY bytes of the whole table, extrapolated from its finished parts; `None` before the first.
    fn projected(&self) -> Option<u64> {
        (self.done > 0).then(|| {
            let whole = u128::from(self.bytes.0) * u128::from(self.summary.parts);
            u64::try_from(whole / u128::from(self.done)).unwrap_or(u64::MAX)
        })
    }

    /// One part's share of the table's estimated bytes.
    fn part_estimate(&self) -> u64 {
        self.summary.bytes_estimate.0 / u64::from(self.summary.parts.max(1))
    }
}

impl Complete {
    fn add(&mut self, table: &TableCopy) {
        self.tables += 1;
        self.sum = self.sum + table.sum();
    }
}

/// All counters of one job.
#[derive(Debug, Clone, Default)]
pub struct CopyProgress {
    tables: Vec<TableCopy>,
    bits: Vec<u64>,
    planned: u32,
    done: Totals,
    wire: ByteCount,
    /// COPY bytes of the parts counted in `wire`.
    crossed: ByteCount,
    /// Tables whose parts are all done.
    complete: Complete,
    /// Tables that were copied before a coordinator lost its store. They are not listed.
    recalled: u32,
    /// The first tables and parts are those of earlier epochs. The present plan's numbers begin at zero.
    kept: (u32, u32),
    flight: Vec<PartProgress>,
    /// Sum of [`TableCopy::projected`] over tables that have begun.
    projected: u64,
    /// Sum of estimates over tables that have not.
    untouched: u64,
    /// Sum of estimates over finished parts.
    estimated_done: u64,
    /// COPY bytes in all, once they were counted.
    total: Option<ByteCount>,
    /// Whether the estimates of the tables were counted, too.
    exact: bool,
}

impl CopyProgress {
    /// Adds a page of the plan. Idempotent.
    ///
    /// # Errors
    /// [`Misfit`] if the page does not continue the plan; tables before the misfit are added.
    pub fn add_page(&mut self, page: &[TableSummary]) -> Result<(), Misfit> {
        for table in page {
            let misfit = Misfit::Table(table.no);
            if let Some(known) = self.tables.get(table.no.0 as usize) {
                let same = known.summary.name == table.name
                    && known.summary.first_part == table.first_part
                    && known.summary.parts == table.parts;
                if !same {
                    return Err(misfit);
                }
                continue;
            }
            let next = table.no.0 as usize == self.tables.len();
            if !next || table.first_part.0 != self.planned || table.parts == 0 {
                return Err(misfit);
            }
            self.planned = self
                .planned
                .checked_add(table.parts)
                .filter(|parts| *parts <= limits::PARTS_MAX)
                .ok_or(Misfit::TooManyParts)?;
            self.untouched = self.untouched.saturating_add(table.bytes_estimate.0);
            self.bits.resize((self.planned as usize).div_ceil(64), 0);
            self.tables.push(TableCopy {
                summary: table.clone(),
                done: 0,
                rows: RowCount(0),
                bytes: ByteCount(0),
            });
        }
        Ok(())
    }

    /// Counts a committed part.
    ///
    /// # Errors
    /// [`Misfit::Part`] if the plan has no such part.
    pub fn note(&mut self, part: &PartDone) -> Result<Noted, Misfit> {
        let no = self.table_of(part.part).ok_or(Misfit::Part(part.part))?;
        let (word, bit) = (part.part.0 as usize / 64, part.part.0 % 64);
        if self.bits[word] >> bit & 1 == 1 {
            return Ok(Noted::Known);
        }
        self.bits[word] |= 1 << bit;
        self.flight.retain(|f| f.part != part.part);
        let table = &mut self.tables[no.0 as usize];
        match table.projected() {
            Some(before) => self.projected = self.projected.saturating_sub(before),
            None => {
                self.untouched = self
                    .untouched
                    .saturating_sub(table.summary.bytes_estimate.0);
            }
        }
        table.done += 1;
        table.rows += part.rows;
        table.bytes += part.bytes;
        self.projected = self
            .projected
            .saturating_add(table.projected().unwrap_or(0));
        self.estimated_done = self.estimated_done.saturating_add(table.part_estimate());
        self.done.parts += 1;
        self.done.rows += part.rows;
        self.done.bytes += part.bytes;
        self.wire += part.wire;
        if part.wire != ByteCount(0) {
            self.crossed += part.bytes;
        }
        if table.is_complete() {
            self.complete.add(table);
            Ok(Noted::Table(no))
        } else {
            Ok(Noted::Part(no))
        }
    }

    /// Replaces the parts in flight, which have the present plan's numbers. Parts that are done or not planned are left out, and no more are
    /// kept than there can be workers.
    pub fn set_flight(&mut self, active: &[PartProgress]) {
        self.flight.clear();
        for progress in active.iter().take(usize::from(limits::WORKERS_MAX) * 2) {
            let part = self.here(progress.part);
            if self.table_of(part).is_some() && !self.is_done(part) {
                self.flight.push(PartProgress {
                    part,
                    ..progress.clone()
                });
            }
        }
    }

    /// Whether the part has been counted.
    #[must_use]
    pub fn is_done(&self, part: PartNo) -> bool {
        let word = self.bits.get(part.0 as usize / 64).copied().unwrap_or(0);
        word >> (part.0 % 64) & 1 == 1
    }

    /// The table that the part belongs to.
    #[must_use]
    pub fn table_of(&self, part: PartNo) -> Option<TableNo> {
        if part.0 >= self.planned {
            return None;
        }
        let after = self
            .tables
            .partition_point(|t| t.summary.first_part <= part);
        let table = self.tables.get(after.checked_sub(1)?)?;
        Some(table.summary.no)
    }

    /// The table with that number.
    #[must_use]
    pub fn table(&self, no: TableNo) -> Option<&TableCopy> {
        self.tables.get(no.0 as usize)
    }

    /// The name of the table with that number.
    #[must_use]
    pub fn name(&self, no: TableNo) -> Option<&TableName> {
        self.table(no).map(|t| &t.summary.name)
    }

    /// Every table, by number.
    #[must_use]
    pub fn tables(&self) -> &[TableCopy] {
        &self.tables
    }

    /// The parts in flight.
    #[must_use]
    pub fn flight(&self) -> &[PartProgress] {
        &self.flight
    }

    /// The sums that the machine compares.
    #[must_use]
    pub fn counted(&self) -> Counted {
        Counted {
            tables: self.planned_tables(),
            planned: self.planned,
            done: self.done,
            complete: self.complete,
        }
    }

    /// Tables of the plan, listed or not.
    #[must_use]
    pub fn planned_tables(&self) -> u32 {
        let listed = u32::try_from(self.tables.len()).unwrap_or(u32::MAX);
        listed.saturating_add(self.recalled)
    }

    /// Tables whose parts are all done, and the sums over these.
    #[must_use]
    pub fn whole(&self) -> Complete {
        self.complete
    }

    /// Tables whose parts are all done.
    #[must_use]
    pub fn completed(&self) -> u32 {
        self.complete.tables
    }

    /// COPY bytes, including those in flight.
    #[must_use]
    pub fn bytes(&self) -> ByteCount {
        self.done.bytes + self.flight.iter().map(|f| f.bytes).sum()
    }

    /// COPY bytes with known wire bytes, including those in flight. Excludes parts found in the ledger,
    /// which does not record wire bytes.
    #[must_use]
    pub fn crossed(&self) -> ByteCount {
        self.crossed + self.flight.iter().map(|f| f.bytes).sum()
    }

    /// Bytes on the wire, including those in flight.
    #[must_use]
    pub fn wire(&self) -> ByteCount {
        self.wire + self.flight.iter().map(|f| f.wire).sum()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn plan(parts: &[(u32, u64)]) -> Vec<TableSummary> {
        let mut first = 0;
        let tables = parts.iter().enumerate().map(|(i, (parts, bytes))| {
            let table = TableSummary {
                no: TableNo(i as u32),
                name: TableName::new("public", format!("t{i}")).unwrap(),
                rows_estimate: RowCount(bytes / 100),
                bytes_estimate: ByteCount(*bytes),
                first_part: PartNo(first),
                parts: *parts,
            };
            first += parts;
            table
        });
        tables.collect()
    }

    pub(crate) fn done(part: u32, bytes: u64) -> PartDone {
        PartDone {
            part: PartNo(part),
            rows: RowCount(bytes / 10),
            bytes: ByteCount(bytes),
            wire: ByteCount(bytes / 2),
        }
    }

    #[test]
    fn a_part_reported_twice_counts_once() {
        let mut copied = CopyProgress::default();
        copied.add_page(&plan(&[(2, 100), (1, 50)])).unwrap();
        assert_eq!(copied.note(&done(0, 10)), Ok(Noted::Part(TableNo(0))));
        assert_eq!(copied.note(&done(0, 10)), Ok(Noted::Known));
        assert_eq!(copied.note(&done(1, 10)), Ok(Noted::Table(TableNo(0))));
        assert_eq!(copied.note(&done(2, 7)), Ok(Noted::Table(TableNo(1))));
        assert_eq!(copied.note(&done(3, 7)), Err(Misfit::Part(PartNo(3))));
        let counted = copied.counted();
        assert_eq!((counted.done.parts, counted.done.bytes), (3, ByteCount(27)));
        assert_eq!(
            (counted.tables, counted.planned, copied.completed()),
            (2, 3, 2)
        );
    }

    #[test]
    fn pages_continue_one_another_and_may_be_repeated() {
        let all = plan(&[(1, 1), (3, 1), (2, 1)]);
        let mut copied = CopyProgress::default();
        copied.add_page(&all[..2]).unwrap();
        copied.add_page(&all[..2]).unwrap();
        copied.add_page(&all[2..]).unwrap();
        assert_eq!(copied.counted().planned, 6);
        let gap = plan(&[(1, 1), (1, 1)]);
        assert_eq!(
            CopyProgress::default().add_page(&gap[1..]),
            Err(Misfit::Table(TableNo(1)))
        );
        let mut huge = plan(&[(u32::MAX, 1)]);
        assert_eq!(
            CopyProgress::default().add_page(&huge),
            Err(Misfit::TooManyParts)
        );
        huge[0].parts = 0;
        assert_eq!(
            CopyProgress::default().add_page(&huge),
            Err(Misfit::Table(TableNo(0)))
        );
    }

    #[test]
    fn the_estimate_corrects_itself_and_ends_exact() {
        let mb = 1_000_000;
        let mut copied = CopyProgress::default();
        copied
            .add_page(&plan(&[(4, 40 * mb), (1, 10 * mb), (1, 10 * mb)]))
            .unwrap();
        assert_eq!(copied.expected(), ByteCount(60 * mb));
        // The rows take half of their heap's size.
        copied.note(&done(0, 5 * mb)).unwrap();
        assert_eq!(copied.expected(), ByteCount(20 * mb + 10 * mb));
        for part in 1..4 {
            copied.note(&done(part, 5 * mb)).unwrap();
        }
        copied.note(&done(4, 1)).unwrap();
        copied.note(&done(5, 2)).unwrap();
        assert_eq!(copied.expected(), ByteCount(20 * mb + 3));
    }

    #[test]
    fn what_was_counted_is_not_estimated() {
        let mb = 1_000_000;
        let mut copied = CopyProgress::default();
        copied
            .add_page(&plan(&[(4, 40 * mb), (1, 10 * mb)]))
            .unwrap();
        copied.know_total(Some(ByteCount(50 * mb)));
        // The smallest of unequal parts scales nothing.
        copied.note(&done(0, mb)).unwrap();
        assert_eq!(copied.expected(), ByteCount(50 * mb));
        assert_eq!(copied.expected_of(&copied.tables()[0]), ByteCount(40 * mb));
        // Where only their sum was counted, tables are still estimated.
        copied.know_total(Some(ByteCount(30 * mb)));
        assert_eq!(copied.expected(), ByteCount(30 * mb));
        assert_eq!(copied.expected_of(&copied.tables()[0]), ByteCount(4 * mb));
    }

    #[test]
    fn a_hundred_thousand_parts_are_cheap() {
        let tables = plan(&vec![(10, 1_000_000); 10_000]);
        let mut copied = CopyProgress::default();
        for page in tables.chunks(limits::SUMMARY_PAGE) {
            copied.add_page(page).unwrap();
        }
        for part in 0..100_000 {
            copied.note(&done(part, 1_000)).unwrap();
            assert!(copied.expected() >= copied.bytes());
        }
        assert_eq!(copied.completed(), 10_000);
        assert_eq!(copied.expected(), ByteCount(100_000_000));
    }

    proptest! {
        #[test]
        fn sums_are_those_of_the_tables_in_any_order(
            tables in proptest::collection::vec((1u32..6, 0u64..1 << 40), 1..20),
            order in proptest::collection::vec(any::<proptest::sample::Index>(), 0..200),
        ) {
            let mut copied = CopyProgress::default();
            copied.add_page(&plan(&tables)).unwrap();
            let parts = copied.counted().planned;
            for index in order {
                let part = index.index(parts as usize) as u32;
                copied.set_flight(&[PartProgress { part: PartNo(part), bytes: ByteCount(3), wire: ByteCount(1) }]);
                let _ = copied.note(&done(part, u64::from(part) * 1000)).unwrap();
                prop_assert!(copied.flight().is_empty());
                prop_assert!(copied.expected() >= copied.bytes());
            }
            let bytes: ByteCount = copied.tables().iter().map(|t| t.bytes).sum();
            let seen = (0..parts).filter(|p| copied.is_done(PartNo(*p))).count();
            prop_assert_eq!(bytes, copied.counted().done.bytes);
            prop_assert_eq!(seen as u32, copied.counted().done.parts);
            for part in 0..parts {
                let table = copied.table(copied.table_of(PartNo(part)).unwrap()).unwrap();
                let first = table.summary.first_part.0;
                prop_assert!(first <= part && part < first + table.summary.parts);
            }
        }
    }
}
