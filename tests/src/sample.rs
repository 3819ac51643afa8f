//! The sample database: pgbench's tables, and a small shop with commonly used types.

use std::ops::RangeInclusive;

use anyhow::Result;

use crate::command;
use crate::pg::Database;

const SHOP: &str = include_str!("sql/shop.sql");

/// Fills a database: pgbench with that scale (one is 100,000 accounts, about 15 MB) and a shop of
/// about a tenth of its rows.
///
/// # Errors
/// The server's error.
pub fn create(database: &Database, scale: u32) -> Result<()> {
    pgbench(database, scale)?;
    database.sql_with(SHOP, &[("customers", (scale * 500).max(1_000).to_string())])?;
    Ok(())
}

/// A table of rows without columns.
pub const WITHOUT_COLUMNS: &str =
    "CREATE TABLE nothing (); INSERT INTO nothing SELECT FROM generate_series(1, 1000)";

/// pgbench's tables alone.
///
/// # Errors
/// The error of pgbench.
pub fn pgbench(database: &Database, scale: u32) -> Result<()> {
    let mut init = database.client("pgbench");
    // "G" generates rows in the server, which takes half the time.
    init.args(["--initialize", "--quiet", "--init-steps", "dtGvp"])
        .args(["--scale", &scale.to_string()]);
    command::output(&mut init).map(drop)
}

/// The `cluster_name` of a server on which [`slowly`] is slow.
pub const SLOW: &str = "slow";

/// Creates a function `public.slowly(integer)` that returns its argument, after half a second if
/// the server is [`SLOW`]: building an index over it there takes as long as a large one.
///
/// # Errors
/// The server's error.
pub fn slowly(database: &Database) -> Result<()> {
    let sql = format!(
        "CREATE FUNCTION public.slowly(n integer) RETURNS integer IMMUTABLE LANGUAGE plpgsql AS $$
         BEGIN
             IF current_setting('cluster_name') = '{SLOW}' THEN PERFORM pg_sleep(0.5); END IF;
             RETURN n;
         END $$"
    );
    database.sql(&sql).map(drop)
}

/// Creates that many empty tables with a primary key each, in schema `many`.
///
/// # Errors
/// The server's error.
pub fn many_tables(database: &Database, count: u32) -> Result<()> {
    // In steps, because one transaction would need a lock for each.
    let sql = format!(
        "CREATE SCHEMA many;
         SELECT format('CREATE TABLE many.t%s (id bigint PRIMARY KEY, body text)', n)
         FROM generate_series(1, {count}) AS n
         \\gexec"
    );
    database.sql(&sql).map(drop)
}

/// Tables of one transaction of [`small_tables`]: each takes some twelve locks, and the default lock
/// table has 6,400 places.
const SMALL_TABLES_STEP: u32 = 100;

/// Tables of those numbers in schema `many`, five rows in each, with a primary key from a sequence of its
/// own and a secondary index.
///
/// # Errors
/// What the server said.
pub fn small_tables(database: &Database, numbers: RangeInclusive<u32>) -> Result<()> {
    let (first, last) = numbers.into_inner();
    let sql = format!(
        "CREATE SCHEMA IF NOT EXISTS many;
         DO $$ BEGIN
             FOR n IN {first}..{last} LOOP
                 EXECUTE format('CREATE TABLE many.t%s (id bigserial PRIMARY KEY, customer bigint NOT NULL,
                     body text, made timestamptz DEFAULT now())', n);
                 EXECUTE format('CREATE INDEX ON many.t%s (customer)', n);
                 EXECUTE format('INSERT INTO many.t%s (customer, body)
                     SELECT row, repeat(''x'', 20) FROM generate_series(1, 5) AS row', n);
                 IF n % {SMALL_TABLES_STEP} = 0 THEN COMMIT; END IF;
             END LOOP;
         END $$"
    );
    database.sql(&sql).map(drop)
}
