//! The side that asks PostgreSQL: one session, one question at a time.

mod merging;

use std::time::Duration;

use steep_protocol::limits::{
    LISTED_MAX, REPAIR_ROW_MAX, REPAIR_ROWS_AT_ONCE, VERIFY_ROWS_MAX, VERIFY_TABLES_MAX,
};
use steep_protocol::message::verify::{
    ColumnText, HeapRange, ListedTables, RowAccess, RowKey, RowShape, RowValues, Sieve, Summed,
    VerifyAsk, VerifyReply,
};
use steep_protocol::{Fault, FaultKind, Identifier, Lsn, NodeId, TableName};
use tokio_postgres::error::SqlState;
use tokio_postgres::{SimpleQueryMessage, SimpleQueryRow};
use tokio_util::sync::CancellationToken;

use super::Ask;
use super::catalog::{self, Table};
use super::choice;
use super::examples::rows_at_once;
use super::following;
use super::parse::{digest, fetched, horizon, number, row, seen, sum};
use super::sql::{Encoding, Reading};
use crate::facts;
use crate::pg::owner_code::{self, Access};
use crate::pg::{PgError, Session};
use crate::task::Task;

/// No statement holds `xmin` for longer.
pub(super) const STATEMENT_LIMIT: Duration = Duration::from_secs(60);

/// Nor does one that reads several pages hold up who wants to alter the table: less is read then.
const PAGES_LIMIT: Duration = Duration::from_secs(3);

/// Levels of a sieve.
const LEVELS_MAX: usize = 4;

/// Settings beside those of every session: reads only, gives up on locks and long statements, digests the same
/// text on any server, and takes no more of the server than one process and some memory for the buckets.
const SETTINGS: &str = "SET default_transaction_read_only = on; SET statement_timeout = '60s'; \
    SET lock_timeout = '5s'; SET timezone = 'UTC'; SET xmlbinary = 'base64'; \
    SET max_parallel_workers_per_gather = 0; SET work_mem = '16MB'";

/// After a statement with a limit of its own. An error undoes that limit too.
const LIMIT_AS_EVER: &str = "SET statement_timeout = '60s'";

/// Rows are read by page and by key, whatever the planner knows of a table.
const BY_INDEX: &str =
    "SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off";

/// The transactions of the server.
const HORIZON: &str =
    "SELECT pg_snapshot_xmin(pg_current_snapshot()), pg_snapshot_xmax(pg_current_snapshot())";

/// The catalog is read as ever.
const BY_PLAN: &str = "RESET enable_seqscan; RESET enable_hashjoin; RESET enable_mergejoin";

/// A conversation with this node's PostgreSQL.
#[derive(Debug)]
pub(crate) struct Answerer {
    session: Session,
    node: NodeId,
    cancel: CancellationToken,
    encoding: Encoding,
    /// See [`OpenedTable::hashing`](steep_protocol::message::verify::OpenedTable::hashing).
    hashing: String,
    /// What may be told of rows.
    access: RowAccess,
    /// Whether our role may do more than the owners of tables.
    powerful: bool,
    table: Option<(Table, Option<Reading>)>,
}

impl Answerer {
    /// Connects.
    ///
    /// # Errors
    /// The fault of a server that cannot be reached or refuses.
    pub(crate) async fn connect(task: &Task, access: RowAccess) -> Result<Self, Fault> {
        let session = task.connect(&format!("verify {}", task.job)).await?;
        let set = session.run(&task.cancel, session.batch_execute(SETTINGS));
        set.await.map_err(|error| task.fault(error))?;
        let hashing = session.run(&task.cancel, catalog::hashing(&session));
        let hashing = hashing.await.map_err(|error| task.fault(error))?;
        let powers = facts::powers(task, &session).await;
        Ok(Self {
            hashing,
            powerful: !powers.map_err(|error| task.fault(error))?.is_empty(),
            encoding: Encoding::of(session.server_encoding()),
            session,
            node: task.node.clone(),
            cancel: task.cancel.clone(),
            access,
            table: None,
        })
    }

    /// Disconnects properly.
    pub(crate) async fn close(self) {
        self.session.close().await;
    }

    async fn answer(&mut self, ask: VerifyAsk) -> Result<VerifyReply, Fault> {
        match ask {
            VerifyAsk::List(which) => {
                if let ListedTables::Named(tables) = &which {
                    let sound = |name| choice::no_system_table(&self.node, name);
                    tables.iter().try_for_each(sound)?;
                }
                let tables = self.stopping(catalog::list(&self.session, &which)).await?;
                if tables.len() > VERIFY_TABLES_MAX {
                    let text =
                        format!("more than {VERIFY_TABLES_MAX} tables cannot be compared at once");
                    return Err(self.refused(text).hint("name some of them with --tables"));
                }
                Ok(VerifyReply::Tables(tables))
            }
            VerifyAsk::Open(name) => self.open(&name).await,
            VerifyAsk::Read(shape, summed) => {
                let reading = self.reading(&shape, summed)?;
                if let Some((_, current)) = &mut self.table {
                    *current = Some(reading);
                }
                self.set(BY_INDEX).await?;
                Ok(VerifyReply::Done)
            }
            VerifyAsk::Sums { range, sieve, bits } => {
                self.check(&sieve, bits)?;
                let (leaf, reading) = self.leaf(range)?;
                let sql = within(range, &reading.sums(leaf, range.pages, &sieve, bits));
                self.read_of(leaf, &format!("ONLY {}", leaf.quoted()), &sql, sum)
                    .await
                    .map(|sums| sums.map_or(VerifyReply::TooMuch, VerifyReply::Sums))
            }
            VerifyAsk::Rows { range, sieve } => {
                self.check(&sieve, 0)?;
                let (leaf, reading) = self.leaf(range)?;
                let sql = within(range, &reading.rows(leaf, range.pages, &sieve));
                let from = format!("ONLY {}", leaf.quoted());
                let rows = self.read_of(leaf, &from, &sql, row).await?;
                let fits = rows.filter(|rows| rows.len() <= VERIFY_ROWS_MAX);
                Ok(fits.map_or(VerifyReply::TooMuch, VerifyReply::Rows))
            }
            VerifyAsk::LookUp(keys) => self.look_up(&keys).await,
            VerifyAsk::Columns { keys, values } => self.columns(&keys, values).await,
            VerifyAsk::TakeFence => self.take_fence().await.map(VerifyReply::Fence),
            VerifyAsk::Slots(names) => {
                let names = &names[..names.len().min(LISTED_MAX)];
                let slots = self
                    .stopping(following::slots(&self.session, names))
                    .await?;
                Ok(VerifyReply::Slots(slots))
            }
            VerifyAsk::Subscriptions => {
                let found = self
                    .stopping(following::subscriptions(&self.session))
                    .await?;
                Ok(VerifyReply::Subscriptions(found))
            }
            VerifyAsk::Identity => {
                let found = self.stopping(following::identity(&self.session)).await?;
                Ok(VerifyReply::Identity(found))
            }
            VerifyAsk::References(tables) => {
                let tables = &tables[..tables.len().min(VERIFY_TABLES_MAX)];
                let found = catalog::references(&self.session, tables);
                self.stopping(found).await.map(VerifyReply::References)
            }
            VerifyAsk::Modified { keys, by } => self.modified(&keys, &by).await,
            VerifyAsk::Values { keys, columns } => self.values(&keys, &columns).await,
            VerifyAsk::Holders { columns, values } => self.holders(&columns, &values).await,
            VerifyAsk::Versions(keys) => self.versions(&keys).await,
            VerifyAsk::Fetch { keys, longest } => self.fetch(&keys, longest).await,
        }
    }

    async fn open(&mut self, name: &TableName) -> Result<VerifyReply, Fault> {
        self.table = None;
        self.set(BY_PLAN).await?;
        let cancelled = || PgError::Cancelled.to_fault(&self.node);
        let opened = tokio::select! {
            opened = catalog::open(&self.session, &self.node, (name, &self.hashing)) => opened?,
            () = self.cancel.cancelled() => return Err(cancelled()),
        };
        let reply = opened.as_ref().map(|table| Box::new(table.opened.clone()));
        self.table = opened.map(|table| (table, None));
        Ok(VerifyReply::Opened(reply))
    }

    /// Names that the table does not have are refused, so that no other text becomes SQL.
    fn reading(&self, shape: &RowShape, summed: Summed) -> Result<Reading, Fault> {
        let Some((table, _)) = &self.table else {
            return Err(self.refused("no table is open".to_owned()));
        };
        let unknown = |name: &Identifier| {
            let text = format!("{} has no column {name} that can be compared", table.name);
            self.refused(text).at(&table.name)
        };
        let columns = shape
            .columns
            .iter()
            .map(|name| table.read(name).ok_or_else(|| unknown(name)));
        let key = shape
            .key
            .iter()
            .map(|name| table.key(name).ok_or_else(|| unknown(name)));
        Ok(Reading {
            columns: columns.collect::<Result<_, _>>()?,
            key: key.collect::<Result<_, _>>()?,
            encoding: self.encoding,
            summed,
        })
    }

    fn current(&self) -> Result<(&Table, &Reading), Fault> {
        match &self.table {
            Some((table, Some(reading))) => Ok((table, reading)),
            Some((_, None)) | None => Err(self.refused("no table is being read".to_owned())),
        }
    }

    fn leaf(&self, range: HeapRange) -> Result<(&TableName, &Reading), Fault> {
        let (table, reading) = self.current()?;
        let leaf = table.leaves.get(range.leaf as usize).ok_or_else(|| {
            let text = format!(
                "{} has fewer partitions than when it was opened",
                table.name
            );
            self.refused(text)
                .hint("run the command again")
                .at(&table.name)
        })?;
        Ok((leaf, reading))
    }

    fn check(&self, sieve: &Sieve, bits: u8) -> Result<(), Fault> {
        match sieve.fits(LEVELS_MAX, bits) {
            true => Ok(()),
            false => Err(self.refused("the buckets do not fit the hash".to_owned())),
        }
    }

    async fn look_up(&self, keys: &[RowKey]) -> Result<VerifyReply, Fault> {
        let (table, reading) = self.by_key(keys, VERIFY_ROWS_MAX)?;
        let mut found = vec![None; keys.len()];
        if keys.is_empty() {
            return Ok(VerifyReply::Found(found));
        }
        let sql = reading.look_up(&table.from, keys);
        let place = |row: &SimpleQueryRow| Some((number::<usize>(row, 0)?, digest(row, 1)?));
        let rows = self.read_of(&table.name, &table.from, &sql, place).await?;
        let rows = rows.ok_or_else(|| self.too_slow(table))?;
        for (place, digest) in rows {
            if let Some(entry) = found.get_mut(place) {
                *entry = Some(digest);
            }
        }
        Ok(VerifyReply::Found(found))
    }

    async fn columns(&self, keys: &[RowKey], values: RowValues) -> Result<VerifyReply, Fault> {
        let (_, reading) = self.current()?;
        let (table, reading) = self.by_key(keys, rows_at_once(reading.columns.len()))?;
        if values == RowValues::Shown && self.access != RowAccess::Compare(RowValues::Shown) {
            return Err(self.refused("values were not asked for by the operator".to_owned()));
        }
        let mut found = vec![None; keys.len()];
        if keys.is_empty() {
            return Ok(VerifyReply::Columns(found));
        }
        let sql = reading.columns(&table.from, keys, values);
        let cell = |row: &SimpleQueryRow| {
            let digest = row.get(2).map(|text| u64::from_str_radix(text, 16));
            let text = row.get(3).map(str::to_owned);
            let digest = digest.transpose().ok()?;
            let (place, column): (usize, usize) = (number(row, 0)?, number(row, 1)?);
            Some((place, column, ColumnText { digest, text }))
        };
        let cells = self.read_of(&table.name, &table.from, &sql, cell).await?;
        let mut cells = cells.ok_or_else(|| self.too_slow(table))?;
        cells.sort_by_key(|(row, column, _)| (*row, *column));
        for (row, _, cell) in cells {
            if let Some(entry) = found.get_mut(row) {
                entry.get_or_insert_with(Vec::new).push(cell);
            }
        }
        Ok(VerifyReply::Columns(found))
    }

    async fn versions(&self, keys: &[RowKey]) -> Result<VerifyReply, Fault> {
        let (table, reading) = self.by_key(keys, VERIFY_ROWS_MAX)?;
        let mut rows = vec![None; keys.len()];
        // Read first: it must not be newer than the rows.
        let horizon = self.read(HORIZON, horizon).await?;
        let mut horizon = horizon.unwrap_or_default().into_iter();
        let horizon = horizon.next().ok_or_else(|| self.too_slow(table))?;
        if !keys.is_empty() {
            let sql = reading.versions(&table.from, keys);
            let found = self.read_of(&table.name, &table.from, &sql, seen);
            for (place, row) in found.await?.ok_or_else(|| self.too_slow(table))? {
                if let Some(entry) = rows.get_mut(place) {
                    *entry = Some(row);
                }
            }
        }
        Ok(VerifyReply::Versions { horizon, rows })
    }

    async fn fetch(&self, keys: &[RowKey], longest: u32) -> Result<VerifyReply, Fault> {
        if self.access != RowAccess::Repair {
            return Err(self.refused("this is no repair".to_owned()));
        }
        if (longest as usize).saturating_mul(keys.len()) > REPAIR_ROW_MAX {
            return Err(self.refused("more values than fit an answer".to_owned()));
        }
        let (table, reading) = self.by_key(keys, REPAIR_ROWS_AT_ONCE)?;
        let mut found = vec![None; keys.len()];
        if !keys.is_empty() {
            let sql = reading.fetch(&table.from, keys, longest);
            let rows = self
                .read_of(&table.name, &table.from, &sql, fetched)
                .await?;
            for (place, row) in rows.ok_or_else(|| self.too_slow(table))? {
                if let Some(entry) = found.get_mut(place) {
                    *entry = Some(row);
                }
            }
        }
        Ok(VerifyReply::Fetched(found))
    }

    /// The open table, if its rows can be looked up by these keys.
    fn by_key(&self, keys: &[RowKey], most: usize) -> Result<(&Table, &Reading), Fault> {
        let (table, reading) = self.current()?;
        let width = reading.key.len();
        if width == 0 || keys.len() > most || keys.iter().any(|key| key.0.len() != width) {
            return Err(self.refused("keys that do not fit the table's".to_owned()));
        }
        Ok((table, reading))
    }

    /// A position after everything that was committed. Its own commit makes sure that the WAL up to there is on
    /// the disk, from where it is sent; a role that may not write the message waits for other commits.
    async fn take_fence(&self) -> Result<Lsn, Fault> {
        const FLUSH: &str = "BEGIN READ WRITE; SET LOCAL synchronous_commit = 'local'; \
            SELECT pg_logical_emit_message(true, 'steep_repl', 'verify'); COMMIT";
        const POSITION: &str = "SELECT pg_current_wal_insert_lsn()";
        match self.simple(FLUSH).await {
            Err(PgError::Server(_)) => {
                self.set("ROLLBACK").await?;
            }
            other => {
                other.map_err(|error| error.to_fault(&self.node))?;
            }
        }
        let rows = self
            .simple(POSITION)
            .await
            .map_err(|error| error.to_fault(&self.node))?;
        let position = rows.iter().find_map(|row| row.get(0)?.parse().ok());
        position.ok_or_else(|| following::not_an_lsn().to_fault(&self.node))
    }

    /// The rows of a statement that reads a table, in a transaction in which the table is locked and no code of others would
    /// run; `None` where it took too long.
    async fn read_of<T>(
        &self,
        name: &TableName,
        from: &str,
        sql: &str,
        parse: impl Fn(&SimpleQueryRow) -> Option<T>,
    ) -> Result<Option<Vec<T>>, Fault> {
        if !self.powerful {
            return self.read(sql, parse).await;
        }
        let lock = format!("BEGIN; LOCK TABLE {from} IN ACCESS SHARE MODE");
        let code = match self.unless_slow(self.simple(&lock).await)? {
            Some(_) => {
                let code = owner_code::of_table(&self.session, name, Access::Read);
                self.unless_slow(self.session.run(&self.cancel, code).await)?
            }
            None => None,
        };
        let read = match code {
            Some(code) if code.is_empty() => self.read(&format!("{sql}; COMMIT"), parse).await,
            Some(code) => {
                let name = self.table.as_ref().map_or(name, |(table, _)| &table.name);
                Err(owner_code::refused(&self.node, name, Access::Read, &code))
            }
            None => Ok(None),
        };
        // Whoever gets an error closes the session.
        if let Ok(None) = read {
            self.set("ROLLBACK").await?;
        }
        read
    }

    /// The rows of a statement; `None` where it took too long.
    async fn read<T>(
        &self,
        sql: &str,
        parse: impl Fn(&SimpleQueryRow) -> Option<T>,
    ) -> Result<Option<Vec<T>>, Fault> {
        let Some(rows) = self.unless_slow(self.simple(sql).await)? else {
            return Ok(None);
        };
        let parsed: Option<Vec<T>> = rows.iter().map(parse).collect();
        let bad = || PgError::Protocol("a row that was not asked for".to_owned());
        parsed
            .map(Some)
            .ok_or_else(|| self.named(bad().to_fault(&self.node)))
    }

    /// `None` where a statement took too long.
    fn unless_slow<T>(&self, outcome: Result<T, PgError>) -> Result<Option<T>, Fault> {
        match outcome {
            Ok(done) => Ok(Some(done)),
            Err(error) if error.is(&SqlState::QUERY_CANCELED) => Ok(None),
            Err(error) if error.is_locked() => {
                let fault = error.to_fault(&self.node);
                let hint = "somebody alters the table: run the command again when that is over";
                Err(self.named(fault.hint(hint)))
            }
            Err(error) => Err(self.named(error.to_fault(&self.node))),
        }
    }

    /// The fault of the open table.
    fn named(&self, fault: Fault) -> Fault {
        match &self.table {
            Some((table, _)) => fault.at(&table.name),
            None => fault,
        }
    }

    async fn simple(&self, sql: &str) -> Result<Vec<SimpleQueryRow>, PgError> {
        let messages = self
            .session
            .run(&self.cancel, self.session.simple_query(sql))
            .await?;
        let rows = messages.into_iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        });
        Ok(rows.collect())
    }

    async fn set(&self, sql: &str) -> Result<(), Fault> {
        let set = self
            .session
            .run(&self.cancel, self.session.batch_execute(sql));
        set.await.map_err(|error| error.to_fault(&self.node))
    }

    /// Reads the catalog, until the comparison is cancelled.
    async fn stopping<T>(
        &self,
        work: impl Future<Output = Result<T, PgError>>,
    ) -> Result<T, Fault> {
        tokio::select! {
            done = work => done.map_err(|error| error.to_fault(&self.node)),
            () = self.cancel.cancelled() => Err(PgError::Cancelled.to_fault(&self.node)),
        }
    }

    fn refused(&self, text: String) -> Fault {
        Fault::new(FaultKind::BadRequest, text).on(&self.node)
    }

    fn too_slow(&self, table: &Table) -> Fault {
        let limit = STATEMENT_LIMIT.as_secs();
        let name = &table.name;
        let text = format!("rows of {name} could not be looked up by key within {limit} s");
        let hint =
            "the server is too busy: run steep-repl verify at another time, or with --parallel 1";
        let fault = Fault::new(FaultKind::Timeout, text).on(&self.node);
        fault.at(name).hint(hint)
    }
}

/// The statement that reads these pages, with its time limit. A single page must be read, however long it takes.
fn within(range: HeapRange, sql: &str) -> String {
    let single = range.pages.to == Some(range.pages.from.unwrap_or(0).saturating_add(1));
    let limit = if single { STATEMENT_LIMIT } else { PAGES_LIMIT };
    format!(
        "SET statement_timeout = '{}s'; {sql}; {LIMIT_AS_EVER}",
        limit.as_secs()
    )
}

impl Ask for Answerer {
    async fn ask(&mut self, ask: VerifyAsk) -> Result<VerifyReply, Fault> {
        self.answer(ask).await
    }
}
