//! The ways to copy a database to another server, each as its documentation recommends.

use std::fmt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use steep_tests::cluster::{Cluster, DATABASE};
use steep_tests::pg::Database;
use steep_tests::{command, scratch::Scratch, wait};

use super::measure::{Ours, Times};

/// Enough for the largest database and the slowest way.
pub(super) const LIMIT: Duration = Duration::from_secs(3_600);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// The product, with that many workers.
    Ours { parallel: u8 },
    /// `CREATE SUBSCRIPTION … (copy_data = true)`.
    Subscription { binary: bool },
    /// `psql COPY TO STDOUT | psql COPY FROM STDIN`, one table after the other; no replication.
    Psql,
    /// `pg_dump -Fd -j 2 -Z 0`, then `pg_restore -j 2`; no replication.
    DumpRestore,
    /// `pgcopydb clone`, with binary COPY if it has that, large tables whole or split; no
    /// replication.
    Pgcopydb { split: bool },
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ours { parallel } => write!(f, "steep-repl --parallel {parallel}"),
            Self::Subscription { binary: false } => f.write_str("subscription, text"),
            Self::Subscription { binary: true } => f.write_str("subscription, binary"),
            Self::Psql => f.write_str("psql COPY | psql COPY, binary"),
            Self::DumpRestore => f.write_str("pg_dump -j2 | pg_restore -j2"),
            Self::Pgcopydb { split: false } => f.write_str("pgcopydb, 2 jobs"),
            Self::Pgcopydb { split: true } => f.write_str("pgcopydb, 2 jobs, split"),
        }
    }
}

impl Way {
    /// Every way. The product comes first, because the others are compared with it.
    pub(super) fn all() -> Vec<Self> {
        vec![
            Self::Ours { parallel: 2 },
            Self::Ours { parallel: 4 },
            Self::Ours { parallel: 16 },
            Self::Subscription { binary: false },
            Self::Subscription { binary: true },
            Self::Psql,
            Self::DumpRestore,
            Self::Pgcopydb { split: false },
            Self::Pgcopydb { split: true },
        ]
    }

    pub(super) fn is_ours(self) -> bool {
        matches!(self, Self::Ours { .. })
    }

    /// Whether the machine has the programs it needs.
    pub(super) fn is_installed(self) -> bool {
        !matches!(self, Self::Pgcopydb { .. })
            || Command::new("pgcopydb")
                .arg("--version")
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status()
                .is_ok()
    }

    /// Copies node_a's database to `target`, whose database is empty.
    pub(super) fn run(self, cluster: &Cluster, target: &str) -> Result<Times> {
        let (from, to) = (cluster.database("node_a"), cluster.database(target));
        match self {
            Self::Ours { parallel } => ours(cluster, target, parallel),
            Self::Subscription { binary } => subscription(cluster, &from, &to, binary),
            Self::Psql => psql(&from, &to),
            Self::DumpRestore => dump_and_restore(&from, &to),
            Self::Pgcopydb { split } => pgcopydb(cluster, target, &to, split),
        }
    }
}

/// As named in the last line of `init --json`.
const PHASES: [&str; 4] = ["preparing", "copying", "indexing", "catching_up"];

fn ours(cluster: &Cluster, target: &str, parallel: u8) -> Result<Times> {
    let parallel = parallel.to_string();
    let arguments = ["init", target, "--from", "node_a", "--parallel", &parallel];
    initialise(cluster, &arguments)
}

/// Runs a command that makes one node a replica, to its end.
pub(super) fn initialise(cluster: &Cluster, arguments: &[&str]) -> Result<Times> {
    let arguments = [arguments, &["--yes", "--json"]].concat();
    let begun = Instant::now();
    let output = cluster.cli_spawn(&arguments)?.finish(LIMIT)?.expect(0)?;
    let ready = begun.elapsed().as_secs_f64();
    let end = output.last_object()?;
    let phase = |name: &str| end["phases"][name].as_f64().unwrap_or_default();
    Ok(Times {
        copied: phase("preparing") + phase("copying"),
        ready,
        ours: end["bytes_copied"].as_u64().map(|bytes| Ours {
            bytes,
            phases: PHASES.map(|name| (name, phase(name))),
        }),
    })
}

fn subscription(cluster: &Cluster, from: &Database, to: &Database, binary: bool) -> Result<Times> {
    let begun = Instant::now();
    // PostgreSQL's own copy needs all indexes before the rows.
    schema(from, to, &["--schema-only"])?;
    publish(from)?;
    subscribe(cluster, to, &format!("binary = {binary}"))?;
    let state = "SELECT count(*) FILTER (WHERE srsubstate NOT IN ('s', 'r')),
                        count(*) FILTER (WHERE srsubstate <> 'r') FROM pg_subscription_rel";
    let mut copied = None;
    wait::until_true("the subscription", LIMIT, || {
        let counts = to.sql(state)?;
        let (copying, not_ready) = counts.split_once('|').context("two counts")?;
        if copying == "0" {
            copied.get_or_insert_with(|| begun.elapsed().as_secs_f64());
        }
        Ok(not_ready == "0")
    })?;
    let ready = begun.elapsed().as_secs_f64();
    Ok(Times {
        copied: copied.unwrap_or(ready),
        ready,
        ours: None,
    })
}

/// Publishes every table of that database.
pub(super) fn publish(from: &Database) -> Result<()> {
    from.sql("CREATE PUBLICATION bench FOR ALL TABLES")
        .map(drop)
}

/// Subscribes `to` to what node_a publishes.
pub(super) fn subscribe(cluster: &Cluster, to: &Database, options: &str) -> Result<()> {
    let server = cluster.node("node_a").server();
    // Quoted for libpq inside, as a literal of SQL outside.
    let conninfo = format!(
        "{} password='{}'",
        server.conninfo(DATABASE),
        server.password()
    );
    let conninfo = conninfo.replace('\'', "''");
    to.sql(&format!(
        "CREATE SUBSCRIPTION bench CONNECTION '{conninfo}' PUBLICATION bench WITH ({options})"
    ))
    .map(drop)
}

/// `pg_dump | psql` of everything, rows included, without a wait for the disk at each statement.
pub(super) fn dump_to_psql(from: &Database, to: &Database) -> Result<()> {
    let mut dump = from.client("pg_dump");
    dump.args(["--no-publications", "--no-subscriptions"]);
    let mut restore = to.client("psql");
    restore
        .args(["-X", "-q", "-v", "ON_ERROR_STOP=1"])
        .env("PGOPTIONS", "-c synchronous_commit=off");
    pipe(dump, restore)
}

fn psql(from: &Database, to: &Database) -> Result<Times> {
    let begun = Instant::now();
    schema(from, to, &["--section", "pre-data"])?;
    let tables = from.sql(
        "SELECT format('%I.%I', schemaname, relname) FROM pg_stat_user_tables ORDER BY relid",
    )?;
    for table in tables.lines() {
        let mut read = from.client("psql");
        read.args([
            "-X",
            "-c",
            &format!("COPY {table} TO STDOUT (FORMAT binary)"),
        ]);
        let mut write = to.client("psql");
        write.args([
            "-X",
            "-q",
            "-c",
            &format!("COPY {table} FROM STDIN (FORMAT binary)"),
        ]);
        pipe(read, write)?;
    }
    let copied = begun.elapsed().as_secs_f64();
    schema(from, to, &["--section", "post-data"])?;
    Ok(Times {
        copied,
        ready: begun.elapsed().as_secs_f64(),
        ours: None,
    })
}

fn dump_and_restore(from: &Database, to: &Database) -> Result<Times> {
    let scratch = Scratch::new()?;
    let dir = scratch.path().join("dump");
    let begun = Instant::now();
    let mut dump = from.client("pg_dump");
    command::output(dump.args(["-Fd", "-j2", "-Z0", "-f"]).arg(&dir))?;
    let restore = |sections: &[&str]| {
        let mut restore = to.client("pg_restore");
        restore.args(["-j2", "-d", to.name()]);
        for section in sections {
            restore.args(["--section", section]);
        }
        command::output(restore.arg(&dir))
    };
    restore(&["pre-data", "data"])?;
    let copied = begun.elapsed().as_secs_f64();
    restore(&["post-data"])?;
    Ok(Times {
        copied,
        ready: begun.elapsed().as_secs_f64(),
        ours: None,
    })
}

/// A node's database, as programs of PostgreSQL take it.
pub(super) fn uri(cluster: &Cluster, node: &str) -> String {
    let server = cluster.node(node).server();
    let dir = server.dir().display();
    let port = server.port();
    format!("postgres://postgres@/{DATABASE}?host={dir}&port={port}")
}

fn pgcopydb(cluster: &Cluster, target: &str, to: &Database, split: bool) -> Result<Times> {
    let scratch = Scratch::new()?;
    let help = Command::new("pgcopydb")
        .args(["clone", "--help"])
        .output()?;
    let help = [help.stdout, help.stderr].concat();
    let binary = String::from_utf8_lossy(&help).contains("--use-copy-binary");
    // It runs the pg_dump and pg_restore of its `PATH`.
    let bin = to.installation().bin().to_path_buf();
    let usual = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths(std::iter::once(bin).chain(std::env::split_paths(&usual)))?;
    let mut clone = Command::new("pgcopydb");
    clone
        .args(["clone", "--table-jobs", "2", "--index-jobs", "2"])
        .args(
            split
                .then_some(["--split-tables-larger-than", "200MB"])
                .iter()
                .flatten(),
        )
        .args(binary.then_some("--use-copy-binary"))
        .arg("--dir")
        .arg(scratch.path().join("work"))
        .env("PGCOPYDB_SOURCE_PGURI", uri(cluster, "node_a"))
        .env("PGCOPYDB_TARGET_PGURI", uri(cluster, target))
        .env("PATH", path);
    let begun = Instant::now();
    command::output(&mut clone)?;
    let ready = begun.elapsed().as_secs_f64();
    // It builds indexes as soon as each table is copied, so there is no time in between.
    Ok(Times {
        copied: ready,
        ready,
        ours: None,
    })
}

/// `pg_dump … | psql`.
fn schema(from: &Database, to: &Database, what: &[&str]) -> Result<()> {
    let mut dump = from.client("pg_dump");
    dump.args(["--no-publications", "--no-subscriptions"])
        .args(what);
    let mut restore = to.client("psql");
    restore.args(["-X", "-q", "-v", "ON_ERROR_STOP=1"]);
    pipe(dump, restore)
}

fn pipe(mut from: Command, mut to: Command) -> Result<()> {
    let mut reader = from.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let stream = reader.stdout.take().context("its output is a pipe")?;
    let written = to.stdin(stream).stdout(Stdio::null()).status()?;
    let read = reader.wait()?;
    anyhow::ensure!(
        read.success() && written.success(),
        "one end of a pipe failed"
    );
    Ok(())
}
