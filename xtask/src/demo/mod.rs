//! `cargo xtask demo`: shows the product from nothing to a verified replica, and leaves nothing
//! behind.

mod kept;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use serde_json::Value;
use steep_tests::cluster::{Cluster, DATABASE};
use steep_tests::load::{Done, Intensity, Load};
use steep_tests::pg::{Durability, Grouping, Installation};
use steep_tests::{compare, sample, wait};

use crate::{cargo, units};

/// Transactions a second of the write load, suitable for a machine with two cores that runs both
/// servers, both agents and the load itself.
const LOAD: Intensity = Intensity {
    clients: 4,
    rate: Some(1_000),
};

/// The load continues after the replica is synchronized, to show replication.
const TRANSACTIONS_AFTER: u64 = 2_000;

/// Options of the demonstration.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Size of the sample database: 100,000 pgbench accounts and about 16 MB each
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    scale: u32,
    /// Leave everything running, and print how to talk to it
    #[arg(long)]
    keep: bool,
    /// Stop what --keep has left running
    #[arg(long, conflicts_with_all = ["scale", "keep"])]
    stop: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    if arguments.stop {
        return kept::stop();
    }
    println!("Building");
    let binaries = cargo::release_binaries()?;
    let installation = Installation::preferred()?;

    println!(
        "\nStarting two PostgreSQL {} servers, a coordinator and two agents",
        installation.version()
    );
    let mut builder = Cluster::builder()
        .binaries(binaries)
        .durability(Durability::Full)
        .grouping(Grouping::Own);
    if arguments.keep {
        builder = builder.dir(kept::directory()?);
    }
    for node in ["node_a", "node_b"] {
        builder = builder.setting(node, "shared_buffers", "256MB");
    }
    let mut cluster = builder.start()?;
    if let Err(error) = show(&cluster, arguments.scale) {
        // An interrupted run needs no logs.
        if wait::interrupted() {
            bail!("interrupted; everything is stopped and removed");
        }
        show_logs(&cluster);
        return Err(error);
    }
    if arguments.keep {
        kept::leave(&mut cluster)
    } else {
        Ok(())
    }
}

fn show(cluster: &Cluster, scale: u32) -> Result<()> {
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    println!("Loading the sample database into node_a (scale {scale})");
    sample::create(&source, scale)?;
    let size: u64 = source.value("SELECT pg_database_size(current_database())")?;
    println!("Starting a write load on node_a");
    let load = Load::start(&source, LOAD, Grouping::Own)?;
    check_interrupted()?;

    let arguments = ["init", "node_b", "--from", "node_a", "--yes"];
    println!("\n$ steep-repl {}", arguments.join(" "));
    let begun = Instant::now();
    let status = cluster
        .cli_command(&arguments)
        .status()
        .context("cannot run steep-repl")?;
    let took = begun.elapsed();
    if !status.success() {
        bail!("steep-repl init ended with {status}");
    }
    // Ctrl-C was for the CLI.
    wait::resume();
    let state = cluster.state("node_b")?;
    if state != "synchronized" {
        bail!("node_b is {state}; nothing to compare");
    }

    println!("\nWriting on, with node_b following");
    load.wait_for(TRANSACTIONS_AFTER, Duration::from_secs(60))?;
    let done = load.stop()?;
    println!("Load stopped; waiting for the last changes to arrive");
    let begun = Instant::now();
    cluster.wait_drained("node_a")?;
    let drained = begun.elapsed();
    println!("Comparing every row of every table");
    compare::rows(&source, &target)?
        .none()
        .context("the two sides differ")?;
    report(
        cluster,
        &Measured {
            size,
            took,
            drained,
            done,
        },
    )
}

/// Measurements from outside the product.
struct Measured {
    size: u64,
    took: Duration,
    drained: Duration,
    done: Done,
}

fn report(cluster: &Cluster, measured: &Measured) -> Result<()> {
    let progress = cluster.cli(&["init", "progress", "--node", "node_b", "--json"])?;
    let progress = progress.expect(0)?.last_object()?;
    let number = |key: &str| {
        progress
            .get(key)
            .and_then(Value::as_u64)
            .unwrap_or_default()
    };
    let tables = compare::contents(&cluster.database("node_b"))?;
    let rows: u64 = tables.values().map(|table| table.rows).sum();
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "shown with three digits"
    )]
    let rate = |amount: u64| (amount as f64 / measured.took.as_secs_f64()) as u64;

    println!(
        "\nBoth sides hold the same rows: {} in {} tables.\n",
        units::count(rows),
        tables.len()
    );
    let line = |name: &str, text: String| println!("  {name:<22}{text}");
    line("database", units::bytes(measured.size));
    line("synchronized after", units::duration(measured.took));
    line(
        "rows copied",
        format!(
            "{} ({} a second)",
            units::count(number("rows_copied")),
            units::count(rate(number("rows_copied")))
        ),
    );
    line(
        "bytes copied",
        format!(
            "{} ({} a second)",
            units::bytes(number("bytes_copied")),
            units::bytes(rate(number("bytes_copied")))
        ),
    );
    line("bytes on the wire", units::bytes(number("wire_bytes")));
    line(
        "written meanwhile",
        format!(
            "{} transactions, {:.0} a second",
            units::count(measured.done.transactions),
            measured.done.per_second()
        ),
    );
    line(
        "last change applied",
        format!("{} after the load", units::duration(measured.drained)),
    );
    println!();
    Ok(())
}

fn show_logs(cluster: &Cluster) {
    let mut logs: Vec<PathBuf> = vec![cluster.dir().join("coordinator.log")];
    for node in cluster.nodes() {
        logs.push(cluster.dir().join(format!("agent-{}.log", node.name())));
        logs.push(node.server().log());
    }
    for log in logs {
        eprintln!("--- end of {}", log.display());
        eprintln!("{}", steep_tests::process::tail(&log, 10));
    }
}

fn check_interrupted() -> Result<()> {
    if wait::interrupted() {
        bail!("interrupted")
    } else {
        Ok(())
    }
}

/// A shell command that opens a node's database.
fn psql(cluster: &Cluster, node: &str) -> String {
    let server = cluster.node(node).server();
    format!(
        "{} -h {} -p {} -U postgres {DATABASE}",
        server.installation().program("psql").display(),
        server.dir().display(),
        server.port()
    )
}
