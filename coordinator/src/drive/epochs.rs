//! A job goes on with another snapshot: what it has copied is kept, and the rest is planned anew.

use jiff::Timestamp;
use steep_protocol::message::agent::TableSummary;
use steep_protocol::{Fault, JobId};

use super::Driver;
use super::log::Note;
use crate::job::copy_progress::TableCopy;
use crate::store::{Store, TableSum, Write};

impl<S: Store> Driver<S> {
    /// The tables that are complete stay; the job learns which are left.
    pub(super) fn epoch_begins(&mut self, id: JobId, fault: &Fault, now: Timestamp) {
        let Some(live) = self.jobs.get_mut(&id) else {
            return;
        };
        live.job.unfinished = live.copied.keep_complete();
        live.began.clear();
        live.meter.observe(&live.job, &live.copied, now);
        let (kept, left) = (live.job.kept, live.job.unfinished.len());
        let text = format!(
            "{} tables with {} rows are kept, and {left} are copied under another snapshot: {fault}",
            kept.tables, kept.sum.rows.0
        );
        let note = Note::warn("epoch.started", text)
            .job(&live.job)
            .field("epoch", live.job.epoch.0)
            .field("tables_kept", kept.tables)
            .field("tables_left", left);
        self.out.writes.push(Write::Job(Box::new(live.job.clone())));
        self.parts_due.remove(&id);
        self.times_due.remove(&id);
        let kept = self.kept_tables(id);
        self.out.writes.push(Write::PlanDropped { job: id, kept });
        self.log(note, now);
        self.touch(id);
    }

    /// All tables of the job are replicated by one subscription.
    pub(super) fn epochs_folded(&mut self, id: JobId, now: Timestamp) {
        let Some(live) = self.jobs.get(&id) else {
            return;
        };
        let text = format!(
            "all tables of {} are replicated by the subscription {}",
            live.job.spec.target,
            live.job.replication().name()
        );
        let note = Note::info("epoch.folded", text)
            .job(&live.job)
            .field("epoch", live.job.epoch.0);
        self.log(note, now);
    }

    /// The tables of earlier epochs, with their sums.
    pub(super) fn kept_tables(&self, id: JobId) -> Vec<(TableSummary, TableSum)> {
        let Some(live) = self.jobs.get(&id) else {
            return Vec::new();
        };
        let kept = live.copied.tables().iter();
        let kept = kept.take(live.job.kept.tables as usize);
        kept.map(|table| (table.summary.clone(), table_sum(table)))
            .collect()
    }
}

/// What is done of a table, for the store.
pub(super) fn table_sum(table: &TableCopy) -> TableSum {
    TableSum {
        no: table.summary.no,
        done: table.done,
        rows: table.rows,
        bytes: table.bytes,
    }
}
