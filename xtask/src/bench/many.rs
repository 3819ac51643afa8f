//! Many small tables: whether the time grows with their number or faster, phase by phase, and what
//! PostgreSQL's own programs take for the same tables.

use std::time::Instant;

use anyhow::Result;
use serde_json::Value;
use steep_tests::cluster::Cluster;
use steep_tests::paths::Binaries;
use steep_tests::{sample, usage};

use super::{builder, start_ours, stop_ours, ways};
use crate::units;

/// The database beside the product's that PostgreSQL's own programs fill.
const PEER: &str = "peer";

/// One number of tables.
struct Run {
    tables: u32,
    ours: f64,
    /// As the end of `init --json` has them.
    phases: Vec<(String, f64)>,
    /// Processor seconds of both servers meanwhile.
    postgres: f64,
    peer: Peer,
}

/// What PostgreSQL's own programs take.
struct Peer {
    /// `pg_dump | psql`, rows included.
    dump: f64,
    /// `CREATE PUBLICATION` and `CREATE SUBSCRIPTION`, without copying.
    subscribe: f64,
}

/// Initialises a quarter, a half and all of `count` tables, each into a fresh server.
pub(super) fn run(binaries: Binaries, count: u32) -> Result<()> {
    let steps = [
        ("node_b", count / 4),
        ("node_c", count / 2),
        ("node_d", count),
    ];
    let mut builder = builder(1 + steps.len()).binaries(binaries);
    for node in ["node_a", "node_b", "node_c", "node_d"] {
        // One transaction locks every table: pg_dump's, and CREATE PUBLICATION's.
        builder = builder.setting(node, "max_locks_per_transaction", "1024");
    }
    println!("Starting {} PostgreSQL servers", 1 + steps.len());
    let mut cluster = builder.start_servers()?;
    let mut runs = Vec::new();
    let mut there = 0;
    for (target, tables) in steps {
        let source = cluster.database("node_a");
        // Added, and none dropped: a file system is slow to make files where many were just removed.
        sample::small_tables(&source, there + 1..=tables)?;
        there = tables;
        println!("{} tables", units::count(u64::from(tables)));
        runs.push(step(&mut cluster, target, tables)?);
    }
    print(&runs);
    Ok(())
}

fn step(cluster: &mut Cluster, target: &str, tables: u32) -> Result<Run> {
    start_ours(cluster, &["node_a", target])?;
    let before = servers_cpu(cluster, target)?;
    let begun = Instant::now();
    let output = cluster
        .cli(&["init", target, "--from", "node_a", "--yes", "--json"])?
        .expect(0)?;
    let ours = begun.elapsed().as_secs_f64();
    let postgres = servers_cpu(cluster, target)? - before;
    let phases = phases(&output.last_object()?);
    println!("  steep-repl: {ours:.1} s");
    stop_ours(cluster, &["node_a", target])?;
    // Its subscription would go on beside the peer.
    cluster.database(target).sql(
        "SELECT format('ALTER SUBSCRIPTION %I DISABLE', subname) FROM pg_subscription \\gexec",
    )?;
    super::cleanup_source(cluster)?;
    let peer = peer(cluster, target)?;
    cluster.node_mut(target).server_mut().stop()?;
    super::cleanup_source(cluster)?;
    Ok(Run {
        tables,
        ours,
        phases,
        postgres,
        peer,
    })
}

fn phases(end: &Value) -> Vec<(String, f64)> {
    let times = end["phase_times"].as_array().into_iter().flatten();
    let phase = |time: &Value| {
        let name = time["phase"].as_str()?.to_owned();
        Some((name, time["seconds"].as_f64()?))
    };
    times.filter_map(phase).collect()
}

fn servers_cpu(cluster: &Cluster, target: &str) -> Result<f64> {
    let mut sum = 0.0;
    for node in ["node_a", target] {
        if let Some(pid) = cluster.node(node).server().pid() {
            sum += usage::tree_cpu_seconds(pid)?;
        }
    }
    Ok(sum)
}

/// `pg_dump | psql` without a wait for the disk at each statement, then a subscription that copies nothing.
fn peer(cluster: &Cluster, target: &str) -> Result<Peer> {
    let from = cluster.database("node_a");
    let to = cluster.node(target).server().create_database(PEER)?;
    let begun = Instant::now();
    ways::dump_to_psql(&from, &to)?;
    let dump = begun.elapsed().as_secs_f64();
    let begun = Instant::now();
    ways::publish(&from)?;
    ways::subscribe(cluster, &to, "copy_data = false")?;
    let subscribe = begun.elapsed().as_secs_f64();
    Ok(Peer { dump, subscribe })
}

fn print(runs: &[Run]) {
    let line = |name: &str, value: &dyn Fn(&Run) -> f64| {
        let values: String = runs
            .iter()
            .map(|run| format!("{:>12.1}", value(run)))
            .collect();
        println!("{name:<44}{values}");
    };
    let tables: String = runs
        .iter()
        .map(|run| format!("{:>12}", units::count(u64::from(run.tables))))
        .collect();
    println!("\n{:<44}{tables}", "seconds of tables");
    line("steep-repl, following its source", &|run| run.ours);
    let names = runs.last().map_or(&[][..], |run| &run.phases);
    for (name, _) in names {
        let seconds = |run: &Run| {
            let phase = run.phases.iter().find(|(phase, _)| phase == name);
            phase.map_or(0.0, |(_, seconds)| *seconds)
        };
        line(&format!("  {name}"), &seconds);
    }
    line("processor seconds of both servers meanwhile", &|run| {
        run.postgres
    });
    line("pg_dump | psql, not following", &|run| run.peer.dump);
    line("CREATE PUBLICATION, CREATE SUBSCRIPTION", &|run| {
        run.peer.subscribe
    });
    line("ms a table, steep-repl", &|run| {
        run.ours * 1_000.0 / f64::from(run.tables)
    });
}
