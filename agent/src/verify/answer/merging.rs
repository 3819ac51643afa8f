//! What a plan of a merge wants to know of rows beside their digests.

use steep_protocol::limits::VERIFY_ROWS_MAX;
use steep_protocol::message::verify::{ModifiedBy, RowAccess, RowKey, VerifyReply};
use steep_protocol::{Fault, FaultKind, Identifier};
use tokio_postgres::SimpleQueryRow;

use super::{Answerer, number};
use crate::verify::sql::{KeyColumn, Reading};

/// When a row was committed, in microseconds. A frozen row keeps its transaction's number; NULL where that is older than
/// the setting, or than what the server has kept.
const COMMITTED: &str =
    "trunc(EXTRACT(epoch FROM pg_xact_commit_timestamp(t.xmin)) OPERATOR(pg_catalog.*) 1000000)";

/// Whether more transactions than 32 bits can number have been: the number of a frozen row may have been given again.
const NUMBERS_REUSED: &str = "SELECT pg_snapshot_xmax(pg_current_snapshot())::text::numeric OPERATOR(pg_catalog.>=) 4294967296";

impl Answerer {
    /// When these rows were modified; `None` where the table has nothing that tells.
    pub(super) async fn modified(
        &self,
        keys: &[RowKey],
        by: &ModifiedBy,
    ) -> Result<VerifyReply, Fault> {
        let (table, reading) = self.by_key(keys, VERIFY_ROWS_MAX)?;
        let mut found = vec![None; keys.len()];
        let expression = match by {
            ModifiedBy::NotAsked => None,
            ModifiedBy::Column(column) => table.modified(column),
            ModifiedBy::CommitTime => {
                self.tracks_commits().await?;
                Some(COMMITTED.to_owned())
            }
        };
        if let Some(expression) = expression.filter(|_| !keys.is_empty()) {
            let sql = reading.evaluated(&table.from, keys, &expression);
            // An infinite time is no number.
            let parse = |row: &SimpleQueryRow| Some((number::<usize>(row, 0)?, number(row, 1)));
            let rows = self.read(&sql, parse).await?;
            for (place, value) in rows.ok_or_else(|| self.too_slow(table))? {
                if let Some(entry) = found.get_mut(place) {
                    *entry = value;
                }
            }
        }
        Ok(VerifyReply::Modified(found))
    }

    async fn tracks_commits(&self) -> Result<(), Fault> {
        let on = self.read("SHOW track_commit_timestamp", |row| {
            Some(row.get(0)? == "on")
        });
        if on.await?.is_none_or(|on| on != [true]) {
            let text = "track_commit_timestamp is off, so nobody knows when a row was modified";
            let fault = Fault::new(FaultKind::BadRequest, text).on(&self.node);
            return Err(fault.hint("set track_commit_timestamp = on and restart that server (rows from before stay undecided), name a column that says so with --modified-column, or use another --strategy"));
        }
        let reused = self.read(NUMBERS_REUSED, |row| Some(row.get(0)? == "t"));
        if reused.await?.is_some_and(|reused| reused == [false]) {
            return Ok(());
        }
        let text = "this server has begun its transaction numbers anew, so an old row may have the number of a new transaction";
        let fault = Fault::new(FaultKind::BadRequest, text).on(&self.node);
        Err(fault.hint("name a column that says when a row was modified with --modified-column, or use another --strategy"))
    }

    /// Some columns of rows; `None` where one of them is NULL.
    pub(super) async fn values(
        &self,
        keys: &[RowKey],
        columns: &[Identifier],
    ) -> Result<VerifyReply, Fault> {
        let (table, reading) = self.by_key(keys, VERIFY_ROWS_MAX)?;
        let columns = self.unique(columns)?;
        let sql = reading.values_of(&table.from, keys, &columns);
        let found = self.keyed(keys.len(), &sql, columns.len()).await?;
        Ok(VerifyReply::Values(found))
    }

    /// The keys of the rows that have these values in a unique index.
    pub(super) async fn holders(
        &self,
        columns: &[Identifier],
        values: &[RowKey],
    ) -> Result<VerifyReply, Fault> {
        let (table, reading) = self.current()?;
        let columns = self.unique(columns)?;
        let width = columns.len();
        if values.len() > VERIFY_ROWS_MAX || values.iter().any(|v| v.0.len() != width) {
            return Err(self.refused("values that do not fit the unique index".to_owned()));
        }
        let by_value = Reading {
            key: columns,
            ..reading.clone()
        };
        let sql = by_value.values_of(&table.from, values, &reading.key);
        let found = self.keyed(values.len(), &sql, reading.key.len()).await?;
        Ok(VerifyReply::Holders(found))
    }

    /// Columns by which rows can be looked up. Values are told to whom may have whole rows.
    fn unique(&self, columns: &[Identifier]) -> Result<Vec<KeyColumn>, Fault> {
        if self.access != RowAccess::Repair {
            return Err(self.refused("this is no merge".to_owned()));
        }
        let (table, _) = self.current()?;
        let known = table.opened.uniques.iter().any(|unique| unique == columns);
        let found: Option<Vec<KeyColumn>> = columns.iter().map(|name| table.key(name)).collect();
        found
            .filter(|found| known && !found.is_empty())
            .ok_or_else(|| {
                let text = format!("{} has no such unique index", table.name);
                self.refused(text).at(&table.name)
            })
    }

    /// The lists of `width` texts of a statement, by their places; `None` where there is none or one of them is NULL.
    async fn keyed(
        &self,
        count: usize,
        sql: &str,
        width: usize,
    ) -> Result<Vec<Option<RowKey>>, Fault> {
        let mut found = vec![None; count];
        if count == 0 {
            return Ok(found);
        }
        let parse = |row: &SimpleQueryRow| {
            let texts: Option<Vec<String>> = (1..=width)
                .map(|at| row.get(at).map(str::to_owned))
                .collect();
            Some((number::<usize>(row, 0)?, texts.map(RowKey)))
        };
        let rows = self.read(sql, parse).await?;
        let (table, _) = self.current()?;
        for (place, key) in rows.ok_or_else(|| self.too_slow(table))? {
            if let Some(entry) = found.get_mut(place) {
                *entry = key;
            }
        }
        Ok(found)
    }
}
