//! Measures the fingerprint functions of the schema `steep_repl` for many tables, in one session.

use anyhow::{Context as _, Result};
use steep_tests::pg::Database;
use steep_tests::schema;

use super::builder;
use crate::units;

/// Runs a statement several times in its own session and returns the milliseconds of each.
const TOOK: &str =
    "CREATE FUNCTION pg_temp.took(work text) RETURNS SETOF float8 LANGUAGE plpgsql AS $$
    DECLARE began timestamptz;
    BEGIN
        FOR run IN 1..5 LOOP
            began := clock_timestamp();
            EXECUTE work;
            RETURN NEXT extract(epoch FROM clock_timestamp() - began) * 1000;
        END LOOP;
    END $$;";

/// The statements to measure.
const WORK: [(&str, &str); 4] = [
    (
        "compute every fingerprint",
        "SELECT count(*) FROM steep_repl.fingerprints(ARRAY(SELECT relation FROM steep_repl.user_tables()))",
    ),
    (
        "capture_all_fingerprints",
        "SELECT steep_repl.capture_all_fingerprints()",
    ),
    (
        "compare_fingerprints",
        "SELECT count(*) FROM steep_repl.compare_fingerprints('peer')",
    ),
    (
        "replicated_digest",
        "SELECT steep_repl.replicated_digest('steep_repl_bench')",
    ),
];

/// Measures 1,000 and 10,000 tables of ten columns, three of them with defaults.
pub(super) fn run() -> Result<()> {
    println!("Starting a PostgreSQL server");
    let cluster = builder(1)
        .setting("node_a", "max_locks_per_transaction", "1024")
        .start_servers()?;
    let database = cluster.database("node_a");
    database.sql("CREATE SCHEMA steep_repl; CREATE SCHEMA many")?;
    for script in ["steep_repl--1.0.sql", "steep_repl--1.0--1.1.sql"] {
        database.sql(&schema::extension_script(script)?)?;
    }
    let version = cluster.node("node_a").server().installation().version();
    println!(
        "\nPostgreSQL {version}, milliseconds: the first of a session, and the best of five\n"
    );
    println!("{:<28}{:>8}{:>10}{:>10}", "", "tables", "first", "best");
    let mut made = 0;
    for tables in [1_000, 10_000] {
        make(&database, made + 1, tables)?;
        made = tables;
        for (name, work) in WORK {
            let sql = format!("{TOOK}\nSELECT * FROM pg_temp.took($work${work}$work$)");
            let said = database.sql(&sql)?;
            let times: Vec<f64> = said.lines().filter_map(|line| line.parse().ok()).collect();
            let first = times.first().context("no time was measured")?;
            let best = times.iter().copied().fold(f64::INFINITY, f64::min);
            let tables = units::count(tables);
            println!("{name:<28}{tables:>8}{first:>10.0}{best:>10.0}");
        }
    }
    Ok(())
}

fn make(database: &Database, from: u64, to: u64) -> Result<()> {
    database.sql(&format!(
        "SELECT format('CREATE TABLE many.t%s (id bigint PRIMARY KEY, a text NOT NULL DEFAULT ''x'',
             b numeric(10,2), c timestamptz DEFAULT now(), d varchar(20), e integer[], f jsonb,
             g boolean DEFAULT false, h uuid, i date)', n)
         FROM generate_series({from}, {to}) AS n
         \\gexec
         DROP PUBLICATION IF EXISTS steep_repl_bench;
         CREATE PUBLICATION steep_repl_bench FOR ALL TABLES;
         ANALYZE"
    ))?;
    Ok(())
}
