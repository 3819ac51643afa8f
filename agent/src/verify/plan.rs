//! The plan of a repair: rows that differ, collected while they are found, and in which order tables are written.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use steep_protocol::limits::{REPAIR_BYTES_MAX, REPAIR_KEY_MAX, REPAIR_ROWS_MAX, VERIFY_COLUMNS};
use steep_protocol::message::repair::{PlannedRow, PlannedTable, RepairPlan, RowChange};
use steep_protocol::message::verify::{RowKey, VerifyAsk, VerifyReply};
use steep_protocol::{Fault, TableName};

use super::Dial;
use super::pool::Subject;
use super::table::Comparison;
use crate::mutex::lock;

/// What else fits the plan, over all tables.
#[derive(Debug)]
pub(super) struct Room(Mutex<(usize, usize)>);

impl Default for Room {
    fn default() -> Self {
        Self(Mutex::new((REPAIR_ROWS_MAX, REPAIR_BYTES_MAX)))
    }
}

impl Room {
    /// Whether the row fits; from then on it takes its place.
    fn take(&self, row: &PlannedRow) -> bool {
        self.takes(1, row.size())
    }

    /// Whether the table's names fit, beside its rows.
    pub(super) fn take_names(&self, table: &PlannedTable) -> bool {
        self.takes(0, table.overhead())
    }

    fn takes(&self, rows_more: usize, bytes_more: usize) -> bool {
        let mut room = lock(&self.0);
        let (rows, bytes) = *room;
        match (rows.checked_sub(rows_more), bytes.checked_sub(bytes_more)) {
            (Some(rows), Some(bytes)) => {
                *room = (rows, bytes);
                true
            }
            _ => false,
        }
    }

    fn is_full(&self) -> bool {
        lock(&self.0).0 == 0
    }
}

impl<A: Dial, B: Dial> Comparison<A, B> {
    /// What is to be done about rows that differ, as far as there is room.
    pub(super) async fn plan(
        &self,
        of: &Subject,
        rows: Vec<(RowKey, RowChange)>,
    ) -> Result<Vec<PlannedRow>, Fault> {
        if self.room.is_full() {
            return Ok(Vec::new());
        }
        let replaced = |change: &RowChange| matches!(change, RowChange::Replace { .. });
        let keys = rows.iter().filter(|(_, change)| replaced(change));
        let keys: Vec<RowKey> = keys.map(|(key, _)| key.clone()).collect();
        let columns = self.differing_columns(of, &keys).await?;
        let mut both = columns.into_iter().zip(self.newer(of, &keys).await?);
        let rows = rows.into_iter().map(|(key, change)| {
            let mut row = PlannedRow::new(key, change);
            if replaced(&change) {
                (row.columns, row.newer) = both.next().unwrap_or_default();
                row.columns.truncate(VERIFY_COLUMNS);
            }
            row
        });
        let short = |row: &PlannedRow| row.key.0.iter().map(String::len).sum::<usize>();
        let rows = rows.filter(|row| short(row) <= REPAIR_KEY_MAX && self.room.take(row));
        Ok(rows.collect())
    }

    /// The whole plan.
    pub(super) async fn whole_plan(
        &self,
        mut tables: Vec<PlannedTable>,
    ) -> Result<RepairPlan, Fault> {
        let (source, target) = tokio::try_join!(self.a.identity(), self.b.identity())?;
        let names: Vec<TableName> = tables.iter().map(|table| table.name.clone()).collect();
        let VerifyReply::References(references) =
            self.b.ask(VerifyAsk::References(names.clone())).await?
        else {
            return Err(self.b.unexpected());
        };
        let places = parents_first(&names, &references);
        tables.sort_by_key(|table| places.get(&table.name).copied());
        for table in &mut tables {
            table.rows.sort();
        }
        Ok(RepairPlan {
            source,
            target,
            tables,
        })
    }
}

/// The tables' places in an order in which tables come after those that they refer to. Where they refer to one
/// another in a circle, by name.
fn parents_first(
    names: &[TableName],
    references: &[(TableName, TableName)],
) -> BTreeMap<TableName, usize> {
    let mut waits: BTreeMap<&TableName, BTreeSet<&TableName>> =
        names.iter().map(|name| (name, BTreeSet::new())).collect();
    let mut children: BTreeMap<&TableName, Vec<&TableName>> = BTreeMap::new();
    for (child, parent) in references.iter().filter(|(child, parent)| child != parent) {
        if waits.contains_key(parent)
            && let Some(parents) = waits.get_mut(child)
        {
            parents.insert(parent);
            children.entry(parent).or_default().push(child);
        }
    }
    let free = waits.iter().filter(|(_, parents)| parents.is_empty());
    let mut ready: BTreeSet<&TableName> = free.map(|(name, _)| *name).collect();
    let mut places = BTreeMap::new();
    while let Some(next) = ready.pop_first().or_else(|| waits.keys().next().copied()) {
        waits.remove(next);
        places.insert(next.clone(), places.len());
        for child in children.remove(next).unwrap_or_default() {
            if let Some(parents) = waits.get_mut(child) {
                parents.remove(next);
                if parents.is_empty() {
                    ready.insert(child);
                }
            }
        }
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> TableName {
        TableName::new("app", text).unwrap()
    }

    fn ordered(names: &[&str], references: &[(&str, &str)]) -> Vec<String> {
        let references: Vec<_> = references.iter().map(|(c, p)| (name(c), name(p))).collect();
        let names: Vec<TableName> = names.iter().map(|n| name(n)).collect();
        let places = parents_first(&names, &references);
        let mut names: Vec<_> = places.into_iter().collect();
        names.sort_by_key(|(_, place)| *place);
        names
            .into_iter()
            .map(|(n, _)| n.table.as_str().to_owned())
            .collect()
    }

    #[test]
    fn tables_come_after_those_that_they_refer_to() {
        assert_eq!(ordered(&["a", "b", "c"], &[]), ["a", "b", "c"]);
        let chain = [("a", "b"), ("b", "c"), ("a", "a"), ("b", "elsewhere")];
        assert_eq!(ordered(&["a", "b", "c"], &chain), ["c", "b", "a"]);
        let circle = [("a", "b"), ("b", "a"), ("c", "b")];
        assert_eq!(ordered(&["a", "b", "c"], &circle), ["a", "b", "c"]);
    }

    #[test]
    fn a_plan_has_no_more_rows_than_fit() {
        let change = RowChange::Delete {
            target: steep_protocol::message::verify::RowDigest(1),
        };
        let row = |length: usize| PlannedRow::new(RowKey(vec!["x".repeat(length)]), change);
        let room = Room::default();
        assert!(!room.take(&row(REPAIR_BYTES_MAX)));
        let taken = (0..REPAIR_ROWS_MAX + 5)
            .filter(|_| room.take(&row(1)))
            .count();
        assert_eq!(taken, REPAIR_ROWS_MAX);
        assert!(room.is_full());
    }
}
