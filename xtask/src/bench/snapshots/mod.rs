//! What a stored snapshot costs. Per compression, `snapshot generate` beside `pg_dump -Fd -j` into files,
//! and `snapshot apply` beside what makes a replica of a dump: `pg_restore -j`, then a subscription without
//! a copy on a slot that was made before the dump. Beside them `init`, which stores nothing, and
//! `init --method two-phase`, which stores beside the source. Same source, same workers, a fresh server for
//! each, and everything on one disk.
//!
//! Both kinds of rows matter: `pg_dump` cannot split a large table, and what hardly packs shows what the
//! disk and the compressor cost.

mod rows;
mod ways;

use std::fs;

use anyhow::{Context as _, Result};
use steep_tests::cluster::Cluster;
use steep_tests::paths::Binaries;
use steep_tests::wait;

use super::{Arguments, builder, cleanup_source, start_ours, stop_ours};
use crate::units;
use rows::Rows;
use ways::{Measured, Way};

/// Measures every way of `arguments` with both kinds of rows.
pub(super) fn run(binaries: &Binaries, arguments: &Arguments) -> Result<()> {
    let mut ways = Way::all();
    ways.retain(|way| arguments.wants(way));
    anyhow::ensure!(!ways.is_empty(), "--only leaves nothing to run");
    for rows in Rows::ALL {
        measure(binaries, rows, arguments.scale, &ways)?;
    }
    Ok(())
}

fn measure(binaries: &Binaries, rows: Rows, scale: u32, all: &[Way]) -> Result<()> {
    println!("Starting {} PostgreSQL servers", 1 + all.len());
    let mut cluster = builder(1 + all.len())
        .binaries(binaries.clone())
        .start_servers()?;
    println!("Building the database ({rows}, scale {scale})");
    let source = cluster.database("node_a");
    rows.create(&source, scale)?;
    let text = rows::copy_text(&source)?;
    let (mut there, mut missing) = (Vec::new(), Vec::new());
    for way in all {
        let installed = way.is_installed(&source)?;
        (if installed { &mut there } else { &mut missing }).push(*way);
    }
    let targets: Vec<String> = cluster
        .nodes()
        .iter()
        .skip(1)
        .map(|node| node.name().to_owned())
        .collect();
    let mut results = Vec::new();
    for (way, target) in there.into_iter().zip(&targets) {
        anyhow::ensure!(!wait::interrupted(), "interrupted");
        print!("{way} … ");
        std::io::Write::flush(&mut std::io::stdout())?;
        let measured = run_way(&mut cluster, way, target).with_context(|| format!("{way}"))?;
        println!("{:.1} s", measured.total());
        results.push((way, measured));
    }
    let processors = std::thread::available_parallelism()?.get();
    let version = cluster.node("node_a").server().installation().version();
    println!(
        "\n{rows}, scale {scale}, PostgreSQL {version}, fsync on, {} workers, {processors} processors",
        ways::WORKERS
    );
    print(text, &results, &missing);
    Ok(())
}

fn run_way(cluster: &mut Cluster, way: Way, target: &str) -> Result<Measured> {
    let ends = ["node_a", target];
    for node in ends {
        cluster.database(node).sql("CHECKPOINT")?;
    }
    if let Way::Encrypted(_) = way {
        give_keys(cluster, &ends)?;
    }
    if way.is_ours() {
        start_ours(cluster, &ends)?;
    }
    let measured = way.run(cluster, target)?;
    if way.is_ours() {
        stop_ours(cluster, &ends)?;
    }
    discard(cluster, target)?;
    cleanup_source(cluster)?;
    Ok(measured)
}

/// Makes a key for the nodes' agents, which are not running.
fn give_keys(cluster: &mut Cluster, nodes: &[&str]) -> Result<()> {
    let key = cluster.dir().join("snapshot.key");
    let key = key.to_str().context("a path in UTF-8")?;
    if !std::path::Path::new(key).exists() {
        let keygen = ["snapshot", "keygen", "--output", key];
        cluster.cli(&keygen)?.expect(0)?;
    }
    for node in nodes {
        let variable = "STEEP_AGENT_SNAPSHOT_KEY";
        cluster.node_mut(node).set_agent_variable(variable, key);
    }
    Ok(())
}

/// Ends a server that is not needed any more, and frees its space: ten copies of a large database with
/// their WAL may not fit onto the disk.
pub(super) fn discard(cluster: &mut Cluster, node: &str) -> Result<()> {
    let server = cluster.node_mut(node).server_mut();
    server.stop()?;
    Ok(fs::remove_dir_all(server.dir().join("data"))?)
}

fn print(text: u64, results: &[(Way, Measured)], missing: &[Way]) {
    #[expect(clippy::cast_precision_loss, reason = "shown with three digits")]
    let (megabytes, ratio) = (text as f64 / 1e6, |files: u64| text as f64 / files as f64);
    println!("{} of rows as COPY text\n", units::bytes(text));
    println!(
        "{:<34}{:>9}{:>8}{:>11}{:>8}{:>11}{:>9}{:>8}{:>11}",
        "way", "stored s", "MB/s", "size", "ratio", "keys s", "ready s", "MB/s", "in all s"
    );
    for (way, measured) in results {
        let stored = measured.stored.map_or_else(
            || format!("{:>9}{:>8}{:>11}{:>8}", "-", "-", "-", "-"),
            |stored| {
                format!(
                    "{:>9.1}{:>8.0}{:>11}{:>8.2}",
                    stored.seconds,
                    megabytes / stored.seconds,
                    units::bytes(stored.files),
                    ratio(stored.files)
                )
            },
        );
        println!(
            "{:<34}{stored}{:>11.1}{:>9.1}{:>8.0}{:>11.1}",
            way.to_string(),
            measured.keys,
            measured.ready,
            megabytes / measured.ready,
            measured.total()
        );
    }
    for way in missing {
        println!(
            "{:<34} this pg_dump lacks that compression",
            way.to_string()
        );
    }
    println!(
        "\nStored: all files written and synced. Keys, ready: since the load began, keys built and changes \
         followed.\nMB/s: of the rows as COPY text. Ratio: that text to the files."
    );
}
