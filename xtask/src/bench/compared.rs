//! How long it takes to compare a replica with its source, beside `pgcopydb compare data` and what one statement for each
//! table costs the two servers: while nobody writes, since only `verify` can compare while somebody does.

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use steep_tests::cluster::Cluster;
use steep_tests::paths::Binaries;
use steep_tests::pg::Database;
use steep_tests::scratch::Scratch;
use steep_tests::{command, sample};

use super::measure::Costs;
use super::{builder, start_ours, ways};
use crate::units;

/// The other node.
const TARGET: &str = "node_b";

/// Between two looks at how long transactions last.
const LOOK: Duration = Duration::from_millis(50);

/// A way to compare two databases.
#[derive(Debug, Clone, Copy)]
enum Way {
    Ours {
        parallel: u8,
    },
    Pgcopydb,
    /// A count and a sum of hashes for each table, one table after the other, on both servers at once.
    Statements,
}

impl std::fmt::Display for Way {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ours { parallel } => write!(f, "steep-repl verify --parallel {parallel}"),
            Self::Pgcopydb => f.write_str("pgcopydb compare data"),
            Self::Statements => f.write_str("count and sum of hashtext in SQL"),
        }
    }
}

/// Compares two equal databases in every way.
pub(super) fn run(binaries: Binaries, scale: u32) -> Result<()> {
    println!("Starting 2 PostgreSQL servers");
    let mut cluster = builder(2).binaries(binaries).start_servers()?;
    println!("Building the database (scale {scale}), and its replica");
    sample::pgbench(&cluster.database("node_a"), scale)?;
    start_ours(&mut cluster, &["node_a", TARGET])?;
    let init = ["init", TARGET, "--from", "node_a"];
    ways::initialise(&cluster, &init)?;
    cluster.wait_drained("node_a")?;
    for node in ["node_a", TARGET] {
        cluster.database(node).sql("VACUUM ANALYZE; CHECKPOINT")?;
    }
    let size: u64 = cluster
        .database("node_a")
        .value("SELECT pg_database_size(current_database())")?;
    println!(
        "\n{} of pgbench, scale {scale}, PostgreSQL {}, {} processors for both servers and everything else\n",
        units::bytes(size),
        cluster.node("node_a").server().installation().version(),
        std::thread::available_parallelism()?.get()
    );
    println!(
        "{:<36}{:>9}{:>12}{:>16}{:>24}",
        "way", "seconds", "our CPU s", "postgres CPU s", "longest transaction s"
    );
    for way in [
        Way::Ours { parallel: 1 },
        Way::Ours { parallel: 4 },
        Way::Pgcopydb,
        Way::Statements,
    ] {
        if matches!(way, Way::Pgcopydb) && !can_compare() {
            println!("{:<36} not installed on this machine", way.to_string());
            continue;
        }
        measure(&cluster, way)?;
    }
    Ok(())
}

fn measure(cluster: &Cluster, way: Way) -> Result<()> {
    let before = Costs::of(cluster, TARGET)?;
    let over = AtomicBool::new(false);
    let (took, longest) = std::thread::scope(|scope| {
        let looking = scope.spawn(|| longest_transaction(cluster, &over));
        let begun = Instant::now();
        let compared = compare(cluster, way);
        let took = begun.elapsed().as_secs_f64();
        over.store(true, Ordering::Relaxed);
        let longest = looking.join();
        (compared.map(|()| took), longest)
    });
    let took = took.with_context(|| way.to_string())?;
    let longest = longest.map_err(|_| anyhow::anyhow!("the look at transactions broke"))??;
    let costs = Costs::of(cluster, TARGET)?.since(&before);
    let ours = costs
        .ours
        .map_or(0.0, |ours| ours.iter().map(|one| one.cpu).sum());
    let ours = match way {
        Way::Ours { .. } => format!("{ours:.1}"),
        Way::Pgcopydb | Way::Statements => "-".to_owned(),
    };
    println!(
        "{:<36}{took:>9.1}{ours:>12}{:>16.1}{longest:>24.1}",
        way.to_string(),
        costs.postgres
    );
    Ok(())
}

fn compare(cluster: &Cluster, way: Way) -> Result<()> {
    match way {
        Way::Ours { parallel } => {
            let parallel = parallel.to_string();
            let verify = [
                "verify",
                "node_a",
                TARGET,
                "--parallel",
                &parallel,
                "--json",
            ];
            let end = cluster.cli_spawn(&verify)?.finish(ways::LIMIT)?.expect(0)?;
            ensure!(end.last_object()?["equal"] == true, "{end}");
            Ok(())
        }
        Way::Pgcopydb => pgcopydb(cluster),
        Way::Statements => std::thread::scope(|scope| {
            let both = ["node_a", TARGET].map(|node| {
                let database = cluster.database(node);
                scope.spawn(move || sums(&database))
            });
            let sums = both.map(|one| one.join().map_err(|_| anyhow::anyhow!("a statement broke")));
            let [one, other] = sums;
            ensure!(one?? == other??, "the databases differ");
            Ok(())
        }),
    }
}

fn sums(database: &Database) -> Result<Vec<Vec<String>>> {
    database.rows(
        "SELECT format('SELECT %L, count(*), sum(hashtext(t::text)::bigint) FROM %I.%I t', tablename, schemaname, tablename)
         FROM pg_tables WHERE schemaname = 'public' ORDER BY 1 \\gexec",
    )
}

/// Older versions only clone.
fn can_compare() -> bool {
    let help = Command::new("pgcopydb")
        .args(["compare", "data", "--help"])
        .output();
    help.is_ok_and(|help| help.status.success())
}

fn pgcopydb(cluster: &Cluster) -> Result<()> {
    let scratch = Scratch::new()?;
    let mut compare = Command::new("pgcopydb");
    compare
        .args(["compare", "data", "--dir"])
        .arg(scratch.path().join("work"))
        .env("PGCOPYDB_SOURCE_PGURI", ways::uri(cluster, "node_a"))
        .env("PGCOPYDB_TARGET_PGURI", ways::uri(cluster, TARGET));
    command::output(&mut compare)?;
    Ok(())
}

/// Seconds that the longest transaction lasted on either server: so long, it kept vacuum from its work.
fn longest_transaction(cluster: &Cluster, over: &AtomicBool) -> Result<f64> {
    let sql = "SELECT coalesce(max(extract(epoch FROM clock_timestamp() - xact_start)), 0)::float8
               FROM pg_stat_activity WHERE backend_xmin IS NOT NULL AND pid <> pg_backend_pid()
               AND backend_type = 'client backend'";
    let mut longest: f64 = 0.0;
    while !over.load(Ordering::Relaxed) {
        for node in ["node_a", TARGET] {
            longest = longest.max(cluster.database(node).value(sql)?);
        }
        std::thread::sleep(LOOK);
    }
    Ok(longest)
}
