//! `cargo xtask bench`: compares the product with other ways to copy a database, in one run, with
//! the same source, each into a fresh server, alone on the machine. Programs beside a server
//! connect by its socket, as in production; a subscription connects by TCP.

mod compared;
mod fingerprints;
mod many;
mod measure;
mod snapshots;
mod table;
mod targets;
mod updates;
mod ways;

use anyhow::{Context as _, Result};
use clap::Args;
use steep_tests::cluster::{Cluster, Dials};
use steep_tests::paths::Binaries;
use steep_tests::pg::{Durability, Grouping};
use steep_tests::{sample, wait};

use crate::{cargo, units};
use measure::Measured;
use ways::Way;

/// Options of the benchmark.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Size of the database: 100,000 pgbench accounts and about 16 MB each
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    scale: u32,
    /// Only these ways (words of their names); may be repeated
    #[arg(long, value_name = "WORD")]
    only: Vec<String>,
    /// Number of runs of each way; the median counts
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=9))]
    runs: u8,
    /// Instead, initialise that many small tables, and a quarter and a half of them
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(4..=100_000))]
    tables: Option<u32>,
    /// Instead, store snapshots and make nodes from them, compared with pg_dump and pg_restore
    #[arg(long)]
    snapshots: bool,
    /// Instead, initialise that many targets at once, compared with one
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(2..=8))]
    targets: Option<u8>,
    /// Instead, compare a replica's rows with its source's, beside pgcopydb and plain SQL
    #[arg(long)]
    verify: bool,
    /// Instead, measure the fingerprints of 1,000 and of 10,000 tables
    #[arg(long)]
    fingerprints: bool,
    /// Instead, measure the delay of progress and watchers
    #[arg(long)]
    updates: bool,
    /// Take the binaries of the debug build: to try a benchmark, not for its figures
    #[arg(long)]
    debug: bool,
}

impl Arguments {
    /// Whether `--only` includes that way.
    fn wants(&self, way: &impl std::fmt::Display) -> bool {
        let name = way.to_string();
        self.only.is_empty() || self.only.iter().any(|word| name.contains(word))
    }
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    if arguments.fingerprints {
        // Only SQL: no process of ours runs.
        return fingerprints::run();
    }
    let binaries = if arguments.debug {
        Binaries::beside_me()?
    } else {
        println!("Building");
        cargo::release_binaries()?
    };
    if let Some(count) = arguments.tables {
        return many::run(binaries, count);
    }
    if arguments.updates {
        return updates::run(binaries);
    }
    if arguments.snapshots {
        return snapshots::run(&binaries, arguments);
    }
    if let Some(count) = arguments.targets {
        return targets::run(binaries, usize::from(count), arguments.scale);
    }
    if arguments.verify {
        return compared::run(binaries, arguments.scale);
    }
    compare(arguments, binaries)
}

/// Every way, side by side.
fn compare(arguments: &Arguments, binaries: Binaries) -> Result<()> {
    let chosen: Vec<Way> = Way::all()
        .into_iter()
        .filter(|way| arguments.wants(way))
        .collect();
    let ways: Vec<&Way> = chosen.iter().filter(|way| way.is_installed()).collect();
    anyhow::ensure!(!ways.is_empty(), "--only leaves nothing to run");
    let runs = ways.len() * usize::from(arguments.runs);

    println!("Starting {} PostgreSQL servers", 1 + runs);
    let mut cluster = builder(1 + runs).binaries(binaries).start_servers()?;
    println!("Building the database (scale {})", arguments.scale);
    let source = cluster.database("node_a");
    sample::pgbench(&source, arguments.scale)?;
    let size: u64 = source.value("SELECT pg_database_size(current_database())")?;

    let targets: Vec<String> = cluster
        .nodes()
        .iter()
        .skip(1)
        .map(|node| node.name().to_owned())
        .collect();
    let mut results: Vec<(&Way, Vec<Measured>)> =
        ways.iter().map(|way| (*way, Vec::new())).collect();
    // In rounds, so that changes on the machine affect all ways alike.
    for (at, target) in targets.iter().enumerate() {
        let (way, measured) = &mut results[at % ways.len()];
        anyhow::ensure!(!wait::interrupted(), "interrupted");
        print!("{way} … ");
        std::io::Write::flush(&mut std::io::stdout())?;
        let result = run_way(&mut cluster, way, target).with_context(|| format!("{way}"))?;
        println!("{:.1} s", result.times.ready);
        measured.push(result);
    }
    let processors = std::thread::available_parallelism()?.get();
    println!(
        "\n{} of pgbench, scale {}, PostgreSQL {}, fsync on, {processors} processors, {} run(s) each\n",
        units::bytes(size),
        arguments.scale,
        cluster.node("node_a").server().installation().version(),
        arguments.runs
    );
    let missing = chosen.iter().filter(|way| !way.is_installed());
    table::print(&results, missing, processors);
    Ok(())
}

/// Servers configured for a load of this size, the same for every way.
pub(super) fn builder(nodes: usize) -> steep_tests::cluster::Builder {
    let mut builder = Cluster::builder()
        .nodes(nodes)
        .durability(Durability::Full)
        .grouping(Grouping::Own);
    for letter in (b'a'..=b'z').take(nodes) {
        let node = format!("node_{}", char::from(letter));
        for (name, value) in [
            ("shared_buffers", "512MB"),
            ("maintenance_work_mem", "256MB"),
            ("max_wal_size", "16GB"),
            ("checkpoint_timeout", "1h"),
            ("autovacuum", "off"),
        ] {
            builder = builder.setting(&node, name, value);
        }
    }
    builder
}

fn run_way(cluster: &mut Cluster, way: &Way, target: &str) -> Result<Measured> {
    let ends = ["node_a", target];
    for node in ends {
        cluster.database(node).sql("CHECKPOINT")?;
    }
    if way.is_ours() {
        // New processes, so that peaks of memory belong to this run.
        start_ours(cluster, &ends)?;
    }
    let before = measure::Costs::of(cluster, target)?;
    let times = way.run(cluster, target)?;
    let costs = measure::Costs::of(cluster, target)?.since(&before);
    if way.is_ours() {
        stop_ours(cluster, &ends)?;
    }
    // Otherwise the target's server would keep writing during the next run, and connect to the
    // source.
    cluster.node_mut(target).server_mut().stop()?;
    cleanup_source(cluster)?;
    Ok(Measured { times, costs })
}

/// Starts coordinator and agents with empty state.
pub(super) fn start_ours(cluster: &mut Cluster, nodes: &[&str]) -> Result<()> {
    let memory = cluster.dir().join("coordinator");
    if memory.exists() {
        std::fs::remove_dir_all(memory)?;
    }
    cluster.start_coordinator()?;
    for node in nodes {
        cluster.node_mut(node).set_dials(Dials::Socket);
        cluster.start_agent(node)?;
    }
    cluster.wait_online(nodes)
}

pub(super) fn stop_ours(cluster: &mut Cluster, nodes: &[&str]) -> Result<()> {
    for node in nodes {
        cluster.kill_agent(node)?;
    }
    cluster.kill_coordinator()
}

/// Restores the source.
pub(super) fn cleanup_source(cluster: &Cluster) -> Result<()> {
    cluster.database("node_a").sql(
        "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active;
         SELECT format('DROP PUBLICATION %I', pubname) FROM pg_publication \\gexec",
    )?;
    wait::until_true(
        "the slots of the source to be dropped",
        std::time::Duration::from_secs(20),
        || {
            let dropped = cluster.database("node_a").sql(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE NOT active",
        );
            let left: u32 = cluster
                .database("node_a")
                .value("SELECT count(*) FROM pg_replication_slots")?;
            Ok(dropped.is_ok() && left == 0)
        },
    )
}
