//! How far a comparison is, in heap bytes of both sides.

use std::fmt;
use std::sync::Mutex;

use steep_protocol::TableName;
use steep_protocol::message::agent::{WorkProgress, WorkUnit};
use steep_protocol::message::verify::TableReport;

use super::catalog::PAGE;
use crate::mutex::lock;

/// What is told of a comparison before its end.
#[derive(Debug)]
pub(super) enum News {
    /// How far it is.
    Work(WorkProgress),
    /// What came of a table.
    Table(TableReport),
}

/// Counts what is read, and reports it.
pub(super) struct Progress {
    report: Box<dyn Fn(News) + Send + Sync>,
    work: Mutex<WorkProgress>,
    tables: usize,
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Progress")
            .field("work", &self.work)
            .finish_non_exhaustive()
    }
}

impl Progress {
    /// Before so many bytes of so many tables are read.
    pub(super) fn new(
        (total, tables, workers): (u64, usize, u8),
        report: impl Fn(News) + Send + Sync + 'static,
    ) -> Self {
        let work = WorkProgress {
            done: 0,
            total,
            unit: WorkUnit::Bytes,
            current: None,
            workers,
        };
        let progress = Self {
            report: Box::new(report),
            work: Mutex::new(work),
            tables,
        };
        progress.alive();
        progress
    }

    /// Begins a table, one of all.
    pub(super) fn table(&self, at: usize, name: &TableName) {
        let all = self.tables;
        self.change(|work| work.current = Some(format!("{name} ({} of {all})", at + 1)));
    }

    /// So many pages were read.
    pub(super) fn read(&self, pages: u64) {
        self.change(|work| work.done = work.done.saturating_add(pages.saturating_mul(PAGE)));
    }

    /// So many pages are to be read that were not foreseen.
    pub(super) fn more(&self, pages: u64) {
        self.change(|work| work.total = work.total.saturating_add(pages.saturating_mul(PAGE)));
    }

    /// Nothing is read, but something is waited for.
    pub(super) fn alive(&self) {
        self.change(|_| {});
    }

    fn change(&self, change: impl FnOnce(&mut WorkProgress)) {
        let work = {
            let mut work = lock(&self.work);
            change(&mut work);
            // Tables grow while they are read.
            work.total = work.total.max(work.done);
            work.clone()
        };
        (self.report)(News::Work(work));
    }

    /// A table is compared.
    pub(super) fn compared(&self, table: TableReport) {
        (self.report)(News::Table(table));
    }
}
