//! The rows that are stored and loaded.

use std::fmt;

use anyhow::Result;
use steep_tests::pg::Database;
use steep_tests::sample;

/// What a database is filled with, about the same amount for the same scale.
#[derive(Debug, Clone, Copy)]
pub(super) enum Rows {
    /// pgbench's tables: nearly all rows are in one table, which `pg_dump` reads in one process, and pack
    /// to a tenth.
    Pgbench,
    /// Four equal tables of random text, six bits in each byte: it hardly packs.
    Random,
}

/// Tables of [`Rows::Random`].
const TABLES: u32 = 4;

/// Rows of each for one of scale: some 1,024 bytes each, which stay in the table itself.
const ROWS: u32 = 2_500;

impl fmt::Display for Rows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pgbench => "pgbench",
            Self::Random => "random text",
        })
    }
}

impl Rows {
    /// Both.
    pub(super) const ALL: [Self; 2] = [Self::Pgbench, Self::Random];

    /// Fills an empty database.
    pub(super) fn create(self, database: &Database, scale: u32) -> Result<()> {
        match self {
            Self::Pgbench => sample::pgbench(database, scale),
            Self::Random => random(database, scale * ROWS),
        }
    }
}

/// Bytes of all rows as COPY text.
pub(super) fn copy_text(database: &Database) -> Result<u64> {
    let tables = database.sql("SELECT relid::regclass FROM pg_stat_user_tables")?;
    let mut sum = 0;
    for table in tables.lines() {
        sum += database.value::<u64>(&format!(
            "COPY {table} TO PROGRAM 'wc -c > copy_text'; \
             SELECT pg_read_file('copy_text')::bigint"
        ))?;
    }
    Ok(sum)
}

/// SHA-384 has as many bytes as fill base64 without padding, and no line of it is broken.
fn random(database: &Database, rows: u32) -> Result<()> {
    for table in 1..=TABLES {
        database.sql(&format!(
            "CREATE TABLE random_{table} (id bigint PRIMARY KEY, body text NOT NULL);
             INSERT INTO random_{table}
                 SELECT id, (SELECT string_agg(encode(sha384(convert_to(
                                 format('%s %s %s', {table}, id, piece), 'UTF8')), 'base64'), '')
                             FROM generate_series(1, 16) AS piece)
                 FROM generate_series(1, {rows}) AS id;
             VACUUM ANALYZE random_{table};"
        ))?;
    }
    Ok(())
}
