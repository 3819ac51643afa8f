//! What was copied before: tables of earlier epochs, which come first while the present plan's own numbers begin at zero,
//! and those of a job that has ended.

use steep_protocol::message::agent::TableSummary;
use steep_protocol::{ByteCount, PartNo, RowCount, TableName, TableNo};

use super::{Complete, CopyProgress, TableCopy};

impl CopyProgress {
    /// The number here of a part of the present plan.
    #[must_use]
    pub fn here(&self, part: PartNo) -> PartNo {
        PartNo(part.0.saturating_add(self.kept.1))
    }

    /// The number in the present plan of a part here.
    #[must_use]
    pub fn planned(&self, part: PartNo) -> PartNo {
        PartNo(part.0.saturating_sub(self.kept.1))
    }

    /// A page of the present plan, with the numbers here.
    #[must_use]
    pub fn page_here(&self, mut page: Vec<TableSummary>) -> Vec<TableSummary> {
        for table in &mut page {
            table.no = TableNo(table.no.0.saturating_add(self.kept.0));
            table.first_part = self.here(table.first_part);
        }
        page
    }

    /// Keeps the tables that are complete, as those of earlier epochs; the others are returned.
    pub fn keep_complete(&mut self) -> Vec<TableName> {
        let all = std::mem::take(&mut self.tables).into_iter();
        let (complete, rest): (Vec<_>, Vec<_>) = all.partition(TableCopy::is_complete);
        self.keep(complete);
        rest.into_iter().map(|table| table.summary.name).collect()
    }

    /// Drops the present plan. What earlier epochs have copied stays.
    pub fn drop_plan(&mut self) {
        let mut kept = std::mem::take(&mut self.tables);
        kept.truncate(self.kept.0 as usize);
        self.keep(kept);
    }

    /// Starts with these tables, which are complete.
    pub fn keep(&mut self, tables: Vec<TableCopy>) {
        let (wire, crossed) = (self.wire, self.crossed);
        *self = Self {
            wire,
            crossed,
            ..Self::default()
        };
        for mut table in tables {
            table.summary.no = TableNo(u32::try_from(self.tables.len()).unwrap_or(u32::MAX));
            table.summary.first_part = PartNo(self.planned);
            table.done = table.summary.parts;
            self.planned = self.planned.saturating_add(table.summary.parts);
            self.done = self.done + table.sum();
            self.complete.add(&table);
            self.projected = self.projected.saturating_add(table.bytes.0);
            let estimate = table.summary.bytes_estimate.0;
            self.estimated_done = self.estimated_done.saturating_add(estimate);
            self.tables.push(table);
        }
        self.bits = vec![u64::MAX; (self.planned as usize) / 64];
        if !self.planned.is_multiple_of(64) {
            self.bits.push((1 << (self.planned % 64)) - 1);
        }
        let tables = u32::try_from(self.tables.len()).unwrap_or(u32::MAX);
        self.kept = (tables, self.planned);
    }

    /// Begins with what was copied before a coordinator lost its store: sums, without the tables.
    #[must_use]
    pub fn recalled(copied: Complete) -> Self {
        Self {
            recalled: copied.tables,
            planned: copied.sum.parts,
            done: copied.sum,
            complete: copied,
            ..Self::default()
        }
    }

    /// Restores a table of a finished job without its single parts. For display only; do not call
    /// [`CopyProgress::note`] afterwards.
    pub fn restore_table(&mut self, no: TableNo, done: u32, rows: RowCount, bytes: ByteCount) {
        let Some(table) = self.tables.get_mut(no.0 as usize).filter(|_| done > 0) else {
            return;
        };
        table.done = done.min(table.summary.parts);
        table.rows = rows;
        table.bytes = bytes;
        if table.is_complete() {
            self.complete.add(table);
        }
        self.untouched = self
            .untouched
            .saturating_sub(table.summary.bytes_estimate.0);
        self.projected = self
            .projected
            .saturating_add(table.projected().unwrap_or(0));
        self.done.parts += table.done;
        self.done.rows += rows;
        self.done.bytes += bytes;
    }

    /// Restores the sum of bytes on the wire.
    pub fn restore_wire(&mut self, wire: ByteCount) {
        self.wire = wire;
        self.crossed = self.done.bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{done, plan};
    use super::*;

    #[test]
    fn complete_tables_come_first_and_the_next_plan_counts_from_zero() {
        let mut copied = CopyProgress::default();
        copied
            .add_page(&plan(&[(2, 100), (70, 700), (1, 50)]))
            .unwrap();
        for part in (2..72).chain([0]) {
            copied.note(&done(part, 10)).unwrap();
        }
        let left: Vec<String> = (copied.keep_complete().iter())
            .map(|name| name.table.to_string())
            .collect();
        assert_eq!(left, ["t0", "t2"]);
        let kept = copied.counted();
        assert_eq!((kept.tables, kept.planned, kept.done.parts), (1, 70, 70));
        assert_eq!(kept.done, kept.complete.sum);
        assert!(copied.is_done(PartNo(69)) && !copied.is_done(PartNo(70)));

        let page = copied.page_here(plan(&[(3, 100), (1, 50)]));
        copied.add_page(&page).unwrap();
        assert_eq!(copied.counted().planned, 74);
        assert_eq!(copied.here(PartNo(1)), PartNo(71));
        assert_eq!(copied.planned(PartNo(71)), PartNo(1));
        copied.note(&done(71, 10)).unwrap();
        assert_eq!(copied.counted().done.parts, 71);
        assert_eq!(copied.table_of(PartNo(73)), Some(TableNo(2)));

        copied.drop_plan();
        assert_eq!(copied.counted(), kept);
    }
}
