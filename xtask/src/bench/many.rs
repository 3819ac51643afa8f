//! Many empty tables: whether the time grows linearly with their number.

use std::time::Instant;

use anyhow::Result;
use steep_tests::paths::Binaries;
use steep_tests::sample;

use super::{builder, start_ours, stop_ours};
use crate::units;

/// Initialises a quarter, a half and all of `count` tables, each into a fresh server.
pub(super) fn run(binaries: Binaries, count: u32) -> Result<()> {
    let steps = [
        ("node_b", count / 4),
        ("node_c", count / 2),
        ("node_d", count),
    ];
    let mut builder = builder(1 + steps.len()).binaries(binaries);
    for node in ["node_a", "node_b", "node_c", "node_d"] {
        // One transaction locks every table: pg_dump's, and the restoring one's also its indexes.
        builder = builder.setting(node, "max_locks_per_transaction", "1024");
    }
    println!("Starting {} PostgreSQL servers", 1 + steps.len());
    let mut cluster = builder.start_servers()?;
    println!("{:>8}{:>12}{:>16}", "tables", "seconds", "ms a table");
    for (target, tables) in steps {
        let source = cluster.database("node_a");
        drop_tables(&source)?;
        sample::many_tables(&source, tables)?;
        start_ours(&mut cluster, ["node_a", target])?;
        let begun = Instant::now();
        cluster
            .cli(&["init", target, "--from", "node_a", "--yes", "--json"])?
            .expect(0)?;
        let took = begun.elapsed();
        stop_ours(&mut cluster, ["node_a", target])?;
        cluster.node_mut(target).server_mut().stop()?;
        super::cleanup_source(&cluster)?;
        println!(
            "{:>8}{:>12.1}{:>16.2}",
            units::count(u64::from(tables)),
            took.as_secs_f64(),
            took.as_secs_f64() * 1_000.0 / f64::from(tables.max(1))
        );
    }
    Ok(())
}

/// In steps, because one transaction may not hold that many locks.
fn drop_tables(source: &steep_tests::pg::Database) -> Result<()> {
    source
        .sql(
            "SELECT format('DROP TABLE %I.%I', schemaname, tablename) FROM pg_tables
         WHERE schemaname = 'many' \\gexec
         DROP SCHEMA IF EXISTS many;",
        )
        .map(drop)
}
