//! What several targets of one source cost it: one target, then several in one request, then as many
//! whose agents keep nothing for one another. Each is a fresh server. Everything runs on one machine, so
//! the time says little: what counts is what the source reads, sends and computes.

use std::time::Instant;

use anyhow::{Context as _, Result};
use steep_tests::cluster::Cluster;
use steep_tests::paths::Binaries;
use steep_tests::{sample, scrape, usage};

use super::snapshots::discard;
use super::{builder, cleanup_source, start_ours, stop_ours, ways};
use crate::units;

/// The source sends at most that many times the bytes of one target.
const GOAL: f64 = 1.3;

/// Targets of one request.
struct Group {
    name: String,
    targets: Vec<String>,
    measured: Option<Measured>,
}

struct Measured {
    /// From the command until all are ready.
    seconds: f64,
    /// UDP payload that the source's agent sent.
    sent: f64,
    /// Bytes of rows that targets sent one another.
    exchanged: f64,
    /// How often the source's PostgreSQL read a row, on average.
    reads: f64,
    cpu: Cpu,
}

/// CPU seconds.
#[derive(Clone, Copy)]
struct Cpu {
    /// The source's PostgreSQL.
    postgres: f64,
    source: f64,
    /// The agents of all targets.
    targets: f64,
}

/// Measures `count` targets beside one.
pub(super) fn run(binaries: Binaries, count: usize, scale: u32) -> Result<()> {
    let nodes = 1 + 1 + 2 * count;
    let names: Vec<String> = (b'b'..=b'z')
        .take(nodes - 1)
        .map(|letter| format!("node_{}", char::from(letter)))
        .collect();
    let (one, several) = names.split_at(1);
    let (sharing, alone) = several.split_at(count);
    let mut builder = builder(nodes).binaries(binaries);
    for node in alone {
        builder = builder.agent_argument(node, "--store-size=0");
    }
    let group = |name: String, targets: &[String]| Group {
        name,
        targets: targets.to_vec(),
        measured: None,
    };
    let mut groups = [
        group("one target".to_owned(), one),
        group(format!("{count} targets"), sharing),
        group("--store-size 0".to_owned(), alone),
    ];
    println!("Starting {nodes} PostgreSQL servers");
    let mut cluster = builder.start_servers()?;
    println!("Building the database (scale {scale})");
    sample::pgbench(&cluster.database("node_a"), scale)?;
    for group in &mut groups {
        let measured = measure(&mut cluster, &group.targets).context(group.name.clone())?;
        println!("{}: {:.1} s", group.name, measured.seconds);
        group.measured = Some(measured);
    }
    let size: u64 = cluster
        .database("node_a")
        .value("SELECT pg_database_size(current_database())")?;
    println!(
        "\n{} of pgbench, scale {scale}, PostgreSQL {}, fsync on, --compress lz4, {} processors for everything\n",
        units::bytes(size),
        cluster.node("node_a").server().installation().version(),
        std::thread::available_parallelism()?.get()
    );
    print(&groups);
    Ok(())
}

fn measure(cluster: &mut Cluster, targets: &[String]) -> Result<Measured> {
    let targets: Vec<&str> = targets.iter().map(String::as_str).collect();
    let nodes = [&["node_a"], targets.as_slice()].concat();
    for node in &nodes {
        cluster.database(node).sql("CHECKPOINT")?;
    }
    start_ours(cluster, &nodes)?;
    cluster.database("node_a").sql("SELECT pg_stat_reset()")?;
    let before = Cpu::of(cluster, &targets)?;
    let sent = sum(cluster, &["node_a"], "steep_agent_quic_sent_bytes_total")?;
    // A fixed compression: `auto` depends on the round trip, and busy processors lengthen it.
    let arguments = [
        &["init"],
        targets.as_slice(),
        &["--from", "node_a", "--compress", "lz4", "--yes", "--json"],
    ];
    let begun = Instant::now();
    let init = cluster.cli_spawn(&arguments.concat())?;
    init.finish(ways::LIMIT)?.expect(0)?;
    let seconds = begun.elapsed().as_secs_f64();
    let cpu = Cpu::of(cluster, &targets)?.since(before);
    let sent = sum(cluster, &["node_a"], "steep_agent_quic_sent_bytes_total")? - sent;
    // Counted by the sender and by the receiver.
    let exchanged = sum(cluster, &targets, "steep_agent_exchanged_wire_bytes_total")? / 2.0;
    stop_ours(cluster, &nodes)?;
    // The sessions of the agents have ended, and with that have reported what they read.
    let reads = cluster.database("node_a").value(
        "SELECT sum(seq_tup_read)::float8 / nullif(sum(greatest(reltuples, 0)), 0)
         FROM pg_stat_user_tables JOIN pg_class ON pg_class.oid = relid
         WHERE schemaname = 'public'",
    )?;
    for target in targets {
        discard(cluster, target)?;
    }
    cleanup_source(cluster)?;
    Ok(Measured {
        seconds,
        sent,
        exchanged,
        reads,
        cpu,
    })
}

/// The sum of that metric over these nodes' agents and its labels.
fn sum(cluster: &Cluster, nodes: &[&str], name: &str) -> Result<f64> {
    let mut sum = 0.0;
    for node in nodes {
        let scrape = scrape::scrape(&cluster.node(node).agent_address())?;
        let samples = scrape.samples.iter().filter(|sample| sample.name == name);
        sum += samples.map(|sample| sample.value).sum::<f64>();
    }
    Ok(sum)
}

impl Cpu {
    fn of(cluster: &Cluster, targets: &[&str]) -> Result<Self> {
        let agent = |node: &str| {
            let agent = cluster.node(node).agent();
            usage::cpu_seconds(agent.context("the agent does not run")?.pid())
        };
        let server = cluster.node("node_a").server().pid();
        Ok(Self {
            postgres: usage::tree_cpu_seconds(server.context("the server does not run")?)?,
            source: agent("node_a")?,
            targets: targets
                .iter()
                .map(|node| agent(node))
                .sum::<Result<f64>>()?,
        })
    }

    fn since(self, before: Self) -> Self {
        Self {
            postgres: self.postgres - before.postgres,
            source: self.source - before.source,
            targets: self.targets - before.targets,
        }
    }
}

fn print(groups: &[Group]) {
    let all: Vec<&Measured> = groups
        .iter()
        .filter_map(|group| group.measured.as_ref())
        .collect();
    let line = |name: &str, value: &dyn Fn(&Measured) -> String| {
        let values: String = all
            .iter()
            .map(|measured| format!("{:>16}", value(measured)))
            .collect();
        println!("{name:<42}{values}");
    };
    let names: String = groups
        .iter()
        .map(|group| format!("{:>16}", group.name))
        .collect();
    println!("{:<42}{names}", "");
    let megabytes = |bytes: f64| format!("{:.1}", bytes / 1e6);
    let seconds = |seconds: f64| format!("{seconds:.1}");
    let Some(one) = all.first() else { return };
    let times = |measured: &Measured| measured.sent / one.sent;
    line("seconds until all are ready", &|m| seconds(m.seconds));
    line("MB sent by the source's agent", &|m| megabytes(m.sent));
    line("  to that of one target", &|m| format!("{:.2}", times(m)));
    line("MB of rows that targets sent one another", &|m| {
        megabytes(m.exchanged)
    });
    line("times that the source read a row", &|m| {
        format!("{:.2}", m.reads)
    });
    line("CPU s of the source's PostgreSQL", &|m| {
        seconds(m.cpu.postgres)
    });
    line("CPU s of the source's agent", &|m| seconds(m.cpu.source));
    line("CPU s of the targets' agents", &|m| seconds(m.cpu.targets));
    if let Some(sharing) = all.get(1) {
        let met = if times(sharing) <= GOAL {
            "met"
        } else {
            "missed"
        };
        println!("\nThe goal of at most {GOAL} times the bytes of one target is {met}.");
    }
}
