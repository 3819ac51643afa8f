//! The store's tables: made and migrated, once it is clear that the file is a whole store of ours.
//!
//! Until then nothing is written: the file may be another program's, of a newer version, or all that is left
//! of a damaged store.

use std::io::Read as _;
use std::path::Path;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode};

use super::StoreError;

/// Marks the file as ours: SQLite's `application_id`, the letters `stRP`. Stores before version 6 have none.
const APPLICATION: i64 = 0x7374_5250;

/// The first bytes of each SQLite database (SQLite's manual, "Database File Format").
const MAGIC: &[u8; 16] = b"SQLite format 3\0";

/// Each entry migrates from the version of its index to the next. Never change one; add one.
pub(super) const MIGRATIONS: &[&str] = &[
    "
    CREATE TABLE meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
    INSERT INTO meta VALUES ('next_command', 1);
    CREATE TABLE nodes (node TEXT PRIMARY KEY, record TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE jobs (
        job TEXT PRIMARY KEY, target TEXT NOT NULL, open INTEGER NOT NULL,
        record TEXT NOT NULL, ending TEXT
    ) WITHOUT ROWID;
    CREATE INDEX jobs_open ON jobs (job) WHERE open;
    CREATE INDEX jobs_target ON jobs (target);
    CREATE TABLE tables (
        job TEXT NOT NULL, no INTEGER NOT NULL, schema TEXT NOT NULL, name TEXT NOT NULL,
        rows_estimate INTEGER NOT NULL, bytes_estimate INTEGER NOT NULL,
        first_part INTEGER NOT NULL, parts INTEGER NOT NULL,
        done INTEGER NOT NULL DEFAULT 0, rows INTEGER NOT NULL DEFAULT 0,
        bytes INTEGER NOT NULL DEFAULT 0,
        PRIMARY KEY (job, no)
    ) WITHOUT ROWID;
    CREATE TABLE parts (
        job TEXT NOT NULL, part INTEGER NOT NULL, rows INTEGER NOT NULL, bytes INTEGER NOT NULL,
        wire INTEGER NOT NULL,
        PRIMARY KEY (job, part)
    ) WITHOUT ROWID;
    CREATE TABLE events (
        seq INTEGER PRIMARY KEY, node TEXT, source TEXT, record TEXT NOT NULL
    );
",
    "
    CREATE TABLE samples (
        job TEXT NOT NULL, at INTEGER NOT NULL, record TEXT NOT NULL,
        PRIMARY KEY (job, at)
    ) WITHOUT ROWID;
    CREATE TABLE audit (
        seq INTEGER PRIMARY KEY, node TEXT NOT NULL, source TEXT, record TEXT NOT NULL
    );
    CREATE TABLE audit_due (
        node TEXT NOT NULL, seq INTEGER NOT NULL, PRIMARY KEY (node, seq)
    ) WITHOUT ROWID;
",
    "
    ALTER TABLE jobs ADD COLUMN ended INTEGER;
    UPDATE jobs SET ended = coalesce(unixepoch(json_extract(record, '$.ended_at')), 0) * 1000
        WHERE ending IS NOT NULL;
    CREATE INDEX jobs_ended ON jobs (target, ended) WHERE ended IS NOT NULL;
",
    "
    ALTER TABLE tables ADD COLUMN began INTEGER;
    ALTER TABLE tables ADD COLUMN ended INTEGER;
",
    "
    CREATE TABLE snapshots (snapshot TEXT PRIMARY KEY, record TEXT NOT NULL) WITHOUT ROWID;
",
    // `APPLICATION`.
    "PRAGMA application_id = 1937003088",
    // A store that was made anew must not count from one again: agents may still hold answers to the lost
    // one's commands. Seconds since September 2020 leave room for nine tenths of the jobs.
    "
    UPDATE meta SET value = max(value, (unixepoch() - 1600000000) * 4294967296)
    WHERE key = 'next_command';
",
    // Agents may still report what was forgotten. The number says which came first.
    "
    CREATE TABLE forgotten_snapshots (
        seq INTEGER PRIMARY KEY AUTOINCREMENT, snapshot TEXT NOT NULL UNIQUE
    );
",
    "CREATE TABLE switchovers (switchover TEXT PRIMARY KEY, record TEXT NOT NULL)",
];

/// Opens the store in that file, which exists and may be empty.
///
/// # Errors
/// [`StoreError`] if the file is not a whole store that this build knows. Then nothing in it was changed.
pub(super) fn open(path: &Path) -> Result<Connection, StoreError> {
    check_beginning(path)?;
    let failed = |error| of_file(path, error);
    let mut connection = Connection::open(path).map_err(failed)?;
    // Closing a refused database must not move its WAL into it.
    let no_checkpoint = DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE;
    connection
        .set_db_config(no_checkpoint, true)
        .map_err(failed)?;
    check(&connection, path)?;
    connection
        .set_db_config(no_checkpoint, false)
        .map_err(failed)?;
    let pragma = |name, value: &dyn rusqlite::ToSql| connection.pragma_update(None, name, value);
    pragma("journal_mode", &"wal").map_err(failed)?;
    pragma("synchronous", &"full").map_err(failed)?;
    // A few MiB of cache whatever the file's size (G8).
    pragma("cache_size", &-4_096).map_err(failed)?;
    migrate(&mut connection).map_err(failed)?;
    Ok(connection)
}

/// Looks before SQLite does, which would take any other file for a damaged database.
fn check_beginning(path: &Path) -> Result<(), StoreError> {
    let mut beginning = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(MAGIC.len() as u64).read_to_end(&mut beginning))
        .map_err(|source| StoreError::File {
            what: "read",
            path: path.to_owned(),
            source,
        })?;
    // Empty: made and not written to yet.
    if beginning.is_empty() || beginning == MAGIC {
        return Ok(());
    }
    Err(unusable(
        path,
        "it is no SQLite database, or its beginning is damaged",
    ))
}

/// Only reads.
fn check(connection: &Connection, path: &Path) -> Result<(), StoreError> {
    let failed = |error| of_file(path, error);
    let pragma = |name: &str| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let application = pragma("application_id").map_err(failed)?;
    let found = pragma("user_version").map_err(failed)?;
    let count = |sql: &str| connection.query_row(sql, [], |row| row.get::<_, i64>(0));
    let all = count("SELECT count(*) FROM sqlite_schema").map_err(failed)?;
    let ours = count(
        "SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name IN ('meta', 'nodes', 'jobs', 'events')",
    );
    let ours = ours.map_err(failed)? == 4;
    if (application, found, all) == (0, 0, 0) {
        return Ok(());
    }
    let known = MIGRATIONS.len() as i64;
    if application != APPLICATION && (application, ours) != (0, true) {
        return Err(unusable(path, "it is another program's SQLite database"));
    }
    if found > known {
        let path = path.to_owned();
        return Err(StoreError::TooNew { path, found, known });
    }
    let flaw: String = connection
        .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
        .map_err(failed)?;
    if flaw == "ok" && ours && found > 0 {
        return Ok(());
    }
    let flaw = if ours {
        flaw.as_str()
    } else {
        "tables are missing"
    };
    Err(unusable(path, &format!("it is damaged ({flaw})")))
}

/// SQLite's error as one of this file.
fn of_file(path: &Path, error: rusqlite::Error) -> StoreError {
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
            unusable(path, &format!("it is damaged ({error})"))
        }
        _ => StoreError::Unopened {
            path: path.to_owned(),
            source: error,
        },
    }
}

fn unusable(path: &Path, why: &str) -> StoreError {
    StoreError::Unusable {
        path: path.to_owned(),
        why: why.to_owned(),
    }
}

/// Each version in a transaction of its own.
pub(super) fn migrate(connection: &mut Connection) -> rusqlite::Result<()> {
    let found: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    for (version, sql) in (1i64..)
        .zip(MIGRATIONS)
        .skip(usize::try_from(found).unwrap_or(0))
    {
        let transaction = connection.transaction()?;
        transaction.execute_batch(sql)?;
        transaction.pragma_update(None, "user_version", version)?;
        transaction.commit()?;
    }
    Ok(())
}
