//! The default store: one SQLite file, owned by one process.
//!
//! WAL mode with `synchronous = FULL`: every [`Store::apply`] is one transaction and one fsync. Applied
//! writes must survive a crash of the machine, not only of the process, because messages that let agents
//! forget are sent right after; at a few writes a second, the fsync does not matter.
//!
//! The directory is locked by `coordinator.lock` for the life of the [`SqliteStore`]; file and
//! directory are readable only by their owner, and nobody else may write to either ([`place`]).

mod place;
mod schema;
mod write;

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};
use rustix::fs::{FlockOperation, flock};
use serde::Serialize;
use serde::de::DeserializeOwned;
use steep_protocol::message::agent::{PartDone, TableSummary};
use steep_protocol::message::api::{AuditView, EndView, EventView, ProgressSample};
use steep_protocol::{ByteCount, JobId, NodeId, PartNo, RowCount, SnapshotId, TableName, TableNo};

use super::{
    AuditDue, EventQuery, Loaded, NodeRecord, SAMPLES_MAX, Store, StoreError, StoredJob,
    StoredTable, TableSum, TableTimes, Write,
};
use crate::job::progress::Mark;
use write::apply_one;

const FILE: &str = "coordinator.db";
const LOCK: &str = "coordinator.lock";

/// A store in one file.
#[derive(Debug)]
pub struct SqliteStore {
    connection: Connection,
    /// Holds the lock.
    _lock: File,
}

impl SqliteStore {
    /// Opens the store in that directory; creates both if missing.
    ///
    /// # Errors
    /// [`StoreError`] if the directory is in use, cannot be written, or has a file that is not a whole store
    /// that this build knows. Such a file is not changed.
    pub fn open(directory: &Path) -> Result<Self, StoreError> {
        let failed = |what, path: &Path| {
            let path = path.to_owned();
            move |source| StoreError::File { what, path, source }
        };
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(failed("make the directory", directory))?;
        place::check(
            directory,
            &[LOCK, FILE, "coordinator.db-wal", "coordinator.db-shm"],
        )?;
        let lock = take_lock(directory)?;
        let path = directory.join(FILE);
        // Created before SQLite would create it, so that others can never read it; SQLite gives its WAL
        // the same mode.
        let file = private_file(&path).map_err(failed("open", &path))?;
        file.set_permissions(std::fs::Permissions::from_mode(0o600))
            .map_err(failed("protect", &path))?;
        drop(file);
        Ok(Self {
            connection: schema::open(&path)?,
            _lock: lock,
        })
    }

    /// A store in memory, for tests.
    ///
    /// # Errors
    /// [`StoreError`] if it cannot be made.
    #[cfg(test)]
    pub(crate) fn in_memory() -> Result<Self, StoreError> {
        let mut connection = Connection::open_in_memory()?;
        schema::migrate(&mut connection)?;
        let path = Path::new("/dev/null");
        let lock = File::open(path).map_err(|source| StoreError::File {
            what: "open",
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            connection,
            _lock: lock,
        })
    }

    /// The next number in `events` or `audit`.
    fn next_number(&self, table: &str) -> Result<u64, StoreError> {
        let sql = format!("SELECT coalesce(max(seq), 0) + 1 FROM {table}");
        Ok(self
            .connection
            .query_row(&sql, [], |row| unsigned(row, 0))?)
    }

    /// The records that a query selects; unreadable ones are left out.
    fn records<T: DeserializeOwned>(
        &self,
        what: &str,
        sql: &str,
        values: &[&dyn rusqlite::ToSql],
    ) -> Result<Vec<T>, StoreError> {
        let mut statement = self.connection.prepare_cached(sql)?;
        let mut rows = statement.query(values)?;
        let mut records = Vec::new();
        while let Some(row) = rows.next()? {
            records.extend(readable(from_column(what, row, 0)));
        }
        Ok(records)
    }

    fn forgotten(&self) -> Result<Vec<SnapshotId>, StoreError> {
        let sql = "SELECT snapshot FROM forgotten_snapshots ORDER BY seq";
        let mut statement = self.connection.prepare(sql)?;
        let ids = statement.query_map([], |row| row.get::<_, String>(0))?;
        let parsed = ids.map(|id| Ok(id?.parse().ok()));
        parsed.filter_map(Result::transpose).collect()
    }

    fn audit_due(&self) -> Result<Vec<AuditDue>, StoreError> {
        let sql = "SELECT due.node, audit.record FROM audit_due due JOIN audit USING (seq) \
                   ORDER BY seq";
        let mut statement = self.connection.prepare(sql)?;
        let mut rows = statement.query([])?;
        let mut due = Vec::new();
        while let Some(row) = rows.next()? {
            let node: String = row.get(0)?;
            let entry = NodeId::parse(&node)
                .map_err(|e| corrupt("audit trail".to_owned(), &e))
                .and_then(|node| {
                    let view = from_column("audit trail", row, 1)?;
                    Ok(AuditDue { node, view })
                });
            due.extend(readable(entry));
        }
        Ok(due)
    }
}

fn private_file(path: &Path) -> std::io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
}

fn take_lock(directory: &Path) -> Result<File, StoreError> {
    let path = directory.join(LOCK);
    let fail = |what, path: PathBuf, source| StoreError::File { what, path, source };
    let lock = private_file(&path).map_err(|e| fail("open", path.clone(), e))?;
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(lock),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(StoreError::InUse {
            path: directory.to_owned(),
        }),
        Err(errno) => Err(fail("lock", path, errno.into())),
    }
}

impl Store for SqliteStore {
    fn load(&mut self) -> Result<Loaded, StoreError> {
        let mut nodes = Vec::new();
        let mut query = self
            .connection
            .prepare("SELECT node, record FROM nodes ORDER BY node")?;
        let mut rows = query.query([])?;
        while let Some(row) = rows.next()? {
            let name: String = row.get(0)?;
            let record = from_column(&format!("node {name}"), row, 1);
            // Its agent reports what it can again.
            let fresh = || NodeId::parse(&name).ok().map(NodeRecord::new);
            nodes.extend(readable(record).or_else(fresh));
        }
        let mut open_jobs = Vec::new();
        let mut query = self
            .connection
            .prepare("SELECT job, record FROM jobs WHERE open")?;
        let mut rows = query.query([])?;
        while let Some(row) = rows.next()? {
            let id: String = row.get(0)?;
            let record = from_column(&format!("job {id}"), row, 1);
            open_jobs.extend(readable(record));
        }
        let next = "SELECT value FROM meta WHERE key = 'next_command'";
        let next_command = self
            .connection
            .query_row(next, [], |row| unsigned(row, 0))?;
        Ok(Loaded {
            nodes,
            open_jobs,
            snapshots: self.records(
                "snapshots",
                "SELECT record FROM snapshots ORDER BY snapshot",
                &[],
            )?,
            forgotten: self.forgotten()?,
            switchovers: self.records(
                "switchovers",
                "SELECT record FROM switchovers ORDER BY switchover",
                &[],
            )?,
            next_command,
            next_event: self.next_number("events")?,
            next_audit: self.next_number("audit")?,
            audit_due: self.audit_due()?,
        })
    }

    fn apply(&mut self, writes: &[Write]) -> Result<(), StoreError> {
        if writes.is_empty() {
            return Ok(());
        }
        let transaction = self.connection.transaction()?;
        for write in writes {
            apply_one(&transaction, write)?;
        }
        Ok(transaction.commit()?)
    }

    fn job(&mut self, id: JobId) -> Result<Option<StoredJob>, StoreError> {
        let mut query = self
            .connection
            .prepare_cached("SELECT record, ending FROM jobs WHERE job = ?1")?;
        let found = query
            .query_row([id.to_string()], |row| {
                Ok((row.get::<_, String>(0)?, row.get::<_, Option<String>>(1)?))
            })
            .optional()?;
        let Some((record, ending)) = found else {
            return Ok(None);
        };
        let what = format!("job {id}");
        let end = ending
            .map(|text| from_json::<EndView>(&what, &text))
            .transpose()?;
        Ok(Some(StoredJob {
            job: from_json(&what, &record)?,
            end,
        }))
    }

    fn plan(&mut self, id: JobId) -> Result<Vec<StoredTable>, StoreError> {
        let mut query = self.connection.prepare_cached(
            "SELECT no, schema, name, rows_estimate, bytes_estimate, first_part, parts, done, rows, \
             bytes, began, ended FROM tables WHERE job = ?1 ORDER BY no",
        )?;
        let mut rows = query.query([id.to_string()])?;
        let mut tables = Vec::new();
        while let Some(row) = rows.next()? {
            let name = TableName::new(row.get::<_, String>(1)?, row.get::<_, String>(2)?)
                .map_err(|e| corrupt(format!("plan of job {id}"), &e))?;
            let no = TableNo(row.get(0)?);
            tables.push(StoredTable {
                summary: TableSummary {
                    no,
                    name,
                    rows_estimate: RowCount(unsigned(row, 3)?),
                    bytes_estimate: ByteCount(unsigned(row, 4)?),
                    first_part: PartNo(row.get(5)?),
                    parts: row.get(6)?,
                },
                sum: TableSum {
                    no,
                    done: row.get(7)?,
                    rows: RowCount(unsigned(row, 8)?),
                    bytes: ByteCount(unsigned(row, 9)?),
                },
                times: timestamp(row.get(10)?).map(|began| TableTimes {
                    no,
                    began,
                    ended: row.get(11).ok().and_then(timestamp),
                }),
            });
        }
        Ok(tables)
    }

    fn parts(&mut self, id: JobId, each: &mut dyn FnMut(PartDone)) -> Result<(), StoreError> {
        let mut query = self
            .connection
            .prepare_cached("SELECT part, rows, bytes, wire FROM parts WHERE job = ?1")?;
        let mut rows = query.query([id.to_string()])?;
        while let Some(row) = rows.next()? {
            each(PartDone {
                part: PartNo(row.get(0)?),
                rows: RowCount(unsigned(row, 1)?),
                bytes: ByteCount(unsigned(row, 2)?),
                wire: ByteCount(unsigned(row, 3)?),
            });
        }
        Ok(())
    }

    fn samples(&mut self, id: JobId) -> Result<Vec<ProgressSample>, StoreError> {
        let sql = "SELECT record FROM samples WHERE job = ?1 ORDER BY at LIMIT ?2";
        self.records("progress", sql, params![id.to_string(), SAMPLES_MAX])
    }

    fn last_mark(&mut self, id: JobId) -> Result<Option<Mark>, StoreError> {
        let sql = "SELECT record FROM samples WHERE job = ?1 ORDER BY at DESC LIMIT 1";
        let mut statement = self.connection.prepare_cached(sql)?;
        let last: Option<String> = statement
            .query_row([id.to_string()], |row| row.get(0))
            .optional()?;
        last.map(|text| from_json("progress", &text)).transpose()
    }

    fn audit(&mut self, query: &EventQuery) -> Result<Vec<AuditView>, StoreError> {
        let sql = "SELECT record FROM audit WHERE seq > ?1 \
                   AND (?2 IS NULL OR node = ?2 OR source = ?2) ORDER BY seq LIMIT ?3";
        let node = query.node.as_ref().map(NodeId::as_str);
        let values = params![signed(query.after), node, query.limit];
        self.records("audit trail", sql, values)
    }

    fn last_end(&mut self, target: &NodeId) -> Result<Option<EndView>, StoreError> {
        let mut query = self.connection.prepare_cached(
            "SELECT ending FROM jobs WHERE target = ?1 AND ended IS NOT NULL \
             ORDER BY ended DESC LIMIT 1",
        )?;
        let ending: Option<String> = query
            .query_row([target.as_str()], |row| row.get(0))
            .optional()?;
        ending
            .map(|text| from_json(&format!("report on {target}"), &text))
            .transpose()
    }

    fn recent_events(
        &mut self,
        node: Option<&NodeId>,
        limit: u32,
    ) -> Result<Vec<EventView>, StoreError> {
        let sql = "SELECT record FROM events WHERE ?1 IS NULL OR node = ?1 OR source = ?1 \
                   ORDER BY seq DESC LIMIT ?2";
        let values = params![node.map(NodeId::as_str), limit];
        let mut events: Vec<EventView> = self.records("event log", sql, values)?;
        events.reverse();
        Ok(events)
    }

    fn events(&mut self, query: &EventQuery) -> Result<Vec<EventView>, StoreError> {
        let sql = "SELECT record FROM events WHERE seq > ?1 \
                   AND (?2 IS NULL OR node = ?2 OR source = ?2) ORDER BY seq LIMIT ?3";
        let node = query.node.as_ref().map(NodeId::as_str);
        let values = params![signed(query.after), node, query.limit];
        self.records("event log", sql, values)
    }
}

fn execute(
    transaction: &Transaction<'_>,
    sql: &str,
    values: &[&dyn rusqlite::ToSql],
) -> Result<(), StoreError> {
    transaction.prepare_cached(sql)?.execute(values)?;
    Ok(())
}

fn to_json<T: Serialize>(value: &T) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|e| corrupt("new record".to_owned(), &e))
}

fn from_json<T: DeserializeOwned>(what: &str, text: &str) -> Result<T, StoreError> {
    serde_json::from_str(text).map_err(|e| corrupt(what.to_owned(), &e))
}

/// A record in that column, which may hold anything but text once it is damaged.
fn from_column<T: DeserializeOwned>(what: &str, row: &Row<'_>, at: usize) -> Result<T, StoreError> {
    let text: String = row.get(at).map_err(|e| corrupt(what.to_owned(), &e))?;
    from_json(what, &text)
}

/// One of many records: unreadable ones are logged and left out.
fn readable<T>(record: Result<T, StoreError>) -> Option<T> {
    record
        .inspect_err(|error| {
            tracing::error!(event = "store.unreadable", error = %error, "a record of the store is left out");
        })
        .ok()
}

fn corrupt(what: String, error: &dyn std::error::Error) -> StoreError {
    StoreError::Corrupt {
        what,
        reason: error.to_string(),
    }
}

fn timestamp(millis: Option<i64>) -> Option<Timestamp> {
    Timestamp::from_millisecond(millis?).ok()
}

/// SQLite's integers are signed; no real count is larger.
fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn unsigned(row: &Row<'_>, at: usize) -> rusqlite::Result<u64> {
    let value: i64 = row.get(at)?;
    u64::try_from(value)
        .map_err(|e| rusqlite::Error::FromSqlConversionFailure(at, Type::Integer, Box::new(e)))
}

#[cfg(test)]
mod damage;
#[cfg(test)]
mod tests;
