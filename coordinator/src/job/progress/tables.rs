//! Which tables are shown, and the progress of each.

use std::cmp::Reverse;

use steep_protocol::message::agent::PartProgress;
use steep_protocol::message::api::{TableState, TableView};
use steep_protocol::{ByteCount, TableNo, limits};

use super::{ALMOST, Detail, percent};
use crate::job::copy_progress::{CopyProgress, TableCopy};

/// The largest table in flight, and its percentage.
pub(super) fn leading_table(copied: &CopyProgress) -> Option<(TableNo, f64)> {
    let tables = copied
        .flight()
        .iter()
        .filter_map(|f| copied.table(copied.table_of(f.part)?));
    let largest = tables.max_by_key(|t| t.summary.bytes_estimate)?;
    let moving = in_flight(copied, largest);
    Some((largest.summary.no, table_percent(copied, largest, moving)))
}

/// Bytes of that table in flight.
fn in_flight(copied: &CopyProgress, table: &TableCopy) -> ByteCount {
    let own = |f: &&PartProgress| copied.table_of(f.part) == Some(table.summary.no);
    copied.flight().iter().filter(own).map(|f| f.bytes).sum()
}

fn table_percent(copied: &CopyProgress, table: &TableCopy, moving: ByteCount) -> f64 {
    if table.is_complete() {
        return 100.0;
    }
    percent((table.bytes + moving).0, copied.expected_of(table).0).min(ALMOST)
}

pub(super) fn table_views(copied: &CopyProgress, detail: Detail) -> Vec<TableView> {
    let active = active_tables(copied);
    let view = |table: &TableCopy| {
        let moving = in_flight(copied, table);
        let begun = table.done > 0 || active.binary_search(&table.summary.no).is_ok();
        TableView {
            schema: table.summary.name.schema.to_string(),
            table: table.summary.name.table.to_string(),
            rows: table.rows.0,
            bytes: (table.bytes + moving).0,
            state: match (table.is_complete(), begun) {
                (true, _) => TableState::Completed,
                (false, true) => TableState::Copying,
                (false, false) => TableState::Pending,
            },
            percent: table_percent(copied, table, moving),
        }
    };
    match detail {
        Detail::All => copied.tables().iter().map(view).collect(),
        Detail::Shown => shown(copied, &active).into_iter().map(view).collect(),
        Detail::Active => {
            let tables = active.iter().filter_map(|no| copied.table(*no));
            tables.map(view).collect()
        }
    }
}

/// The tables in flight, sorted by number.
fn active_tables(copied: &CopyProgress) -> Vec<TableNo> {
    let parts = copied.flight().iter();
    let mut tables: Vec<_> = parts.filter_map(|f| copied.table_of(f.part)).collect();
    tables.sort_unstable();
    tables.dedup();
    tables
}

/// The tables of [`Detail::Shown`].
fn shown<'a>(copied: &'a CopyProgress, active: &[TableNo]) -> Vec<&'a TableCopy> {
    let rank = |table: &&TableCopy| {
        let is_active = active.binary_search(&table.summary.no).is_ok();
        let class = match (is_active, table.is_complete()) {
            (true, _) => 0,
            (false, false) if table.done > 0 => 1,
            (false, false) => 2,
            (false, true) => 3,
        };
        (class, Reverse(copied.expected_of(table)), table.summary.no)
    };
    let mut tables: Vec<_> = copied.tables().iter().collect();
    if tables.len() > limits::TABLES_SHOWN {
        tables.select_nth_unstable_by_key(limits::TABLES_SHOWN, rank);
        tables.truncate(limits::TABLES_SHOWN);
    }
    tables.sort_unstable_by_key(rank);
    tables
}
