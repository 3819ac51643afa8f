//! The ways to store a database and to make a replica of what was stored.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result};
use steep_tests::cluster::{Cluster, DRAIN_LIMIT};
use steep_tests::pg::Database;
use steep_tests::{command, wait};

use crate::bench::ways;

/// Workers of ours, and of `pg_dump` and `pg_restore`.
pub(super) const WORKERS: &str = "4";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// `snapshot generate`, then `snapshot apply`.
    Stored(Codec),
    /// The same with `--encrypt`.
    Encrypted(Codec),
    /// `pg_dump -Fd -j`, then `pg_restore -j`, then a subscription on the slot that was made before.
    Dumped(Codec),
    /// `init`, which stores nothing.
    Live,
    /// `init --method two-phase`, which stores beside the source first.
    TwoPhase,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Codec {
    Zstd,
    Lz4,
    None,
    Gzip,
}

/// What one way took.
#[derive(Debug, Clone, Copy)]
pub(super) struct Measured {
    /// If it stores first.
    pub(super) stored: Option<Stored>,
    /// Seconds until the keys were built.
    pub(super) keys: f64,
    /// Seconds until changes were followed.
    pub(super) ready: f64,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Stored {
    pub(super) seconds: f64,
    /// Bytes of all files.
    pub(super) files: u64,
}

impl Measured {
    /// Seconds from the first command to a replica.
    pub(super) fn total(&self) -> f64 {
        self.stored.map_or(0.0, |stored| stored.seconds) + self.ready
    }
}

impl Codec {
    const ALL: [Self; 4] = [Self::Zstd, Self::Lz4, Self::None, Self::Gzip];

    /// As `snapshot generate --compress` names it.
    fn ours(self) -> &'static str {
        match self {
            Self::Zstd => "zstd:1",
            Self::Lz4 => "lz4",
            Self::None => "none",
            Self::Gzip => "gzip",
        }
    }

    /// As `pg_dump -Z` names it, in old versions too where they have it: a number is a level of gzip, and
    /// ours is six.
    fn theirs(self) -> &'static str {
        match self {
            Self::None => "0",
            Self::Gzip => "6",
            Self::Zstd | Self::Lz4 => self.ours(),
        }
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stored(codec) => write!(f, "snapshot generate, apply: {}", codec.ours()),
            Self::Encrypted(codec) => write!(f, "the same, --encrypt: {}", codec.ours()),
            Self::Dumped(codec) => write!(f, "pg_dump, pg_restore: {}", codec.ours()),
            Self::Live => f.write_str("init"),
            Self::TwoPhase => f.write_str("init --method two-phase"),
        }
    }
}

impl Way {
    /// Every way; those that are compared follow each other.
    pub(super) fn all() -> Vec<Self> {
        let pairs = Codec::ALL.map(|codec| [Self::Stored(codec), Self::Dumped(codec)]);
        let encrypted = [Codec::Zstd, Codec::None].map(Self::Encrypted);
        [
            pairs.concat(),
            encrypted.to_vec(),
            vec![Self::Live, Self::TwoPhase],
        ]
        .concat()
    }

    pub(super) fn is_ours(self) -> bool {
        !matches!(self, Self::Dumped(_))
    }

    /// Whether this machine's `pg_dump` packs like that: before version 16 it had gzip only, and a build
    /// may lack a library.
    pub(super) fn is_installed(self, from: &Database) -> Result<bool> {
        let Self::Dumped(codec) = self else {
            return Ok(true);
        };
        let mut probe = from.client("pg_dump");
        probe.args(["-Fc", "--schema-only", "--no-sync", "-f", "/dev/null", "-Z"]);
        match command::output(probe.arg(codec.theirs())) {
            Ok(_) => Ok(true),
            Err(error) if error.to_string().contains("compression") => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Makes `target`, whose database is empty, a replica of node_a.
    pub(super) fn run(self, cluster: &Cluster, target: &str) -> Result<Measured> {
        match self {
            Self::Stored(codec) => stored(cluster, target, codec, &[]),
            Self::Encrypted(codec) => stored(cluster, target, codec, &["--encrypt"]),
            Self::Dumped(codec) => dumped(cluster, target, codec),
            Self::Live => live(cluster, target, "snapshot"),
            Self::TwoPhase => live(cluster, target, "two-phase"),
        }
    }
}

fn live(cluster: &Cluster, target: &str, method: &str) -> Result<Measured> {
    let init = ["init", target, "--from", "node_a", "--method", method];
    initialise(cluster, &init, None)
}

fn initialise(cluster: &Cluster, command: &[&str], stored: Option<Stored>) -> Result<Measured> {
    let times = ways::initialise(cluster, &[command, &["--parallel", WORKERS]].concat())?;
    let ours = times.ours.context("a job that ends says what it copied")?;
    Ok(Measured {
        stored,
        keys: times.copied + ours.phase("indexing"),
        ready: times.ready,
    })
}

fn stored(cluster: &Cluster, target: &str, codec: Codec, further: &[&str]) -> Result<Measured> {
    let place = Place::new(cluster, "stored");
    let path = place.0.to_str().context("a path in UTF-8")?;
    let generate = [
        ["snapshot", "generate", "--source", "node_a", "--json"].as_slice(),
        &["--output", path, "--compress", codec.ours()],
        &["--parallel", WORKERS],
        further,
    ];
    let begun = Instant::now();
    let output = cluster.cli_spawn(&generate.concat())?.finish(ways::LIMIT)?;
    let seconds = begun.elapsed().as_secs_f64();
    let made = output.expect(0)?.last_object()?;
    let id = made["snapshot_id"].as_str().context("an id")?;
    let stored = Stored {
        seconds,
        files: place.size()?,
    };
    let apply = ["snapshot", "apply", "--target", target, "--input", id];
    let measured = initialise(cluster, &apply, Some(stored))?;
    cluster
        .cli(&["snapshot", "delete", id, "--yes"])?
        .expect(0)?;
    Ok(measured)
}

/// A slot comes first, so that no later change is lost. Nobody writes here; otherwise the dump would read
/// the slot's own snapshot, which takes no longer.
fn dumped(cluster: &Cluster, target: &str, codec: Codec) -> Result<Measured> {
    let (from, to) = (cluster.database("node_a"), cluster.database(target));
    let place = Place::new(cluster, "dumped");
    // What our agent left is not the database's.
    from.sql("DROP SCHEMA IF EXISTS steep_repl CASCADE")?;
    let begun = Instant::now();
    ways::publish(&from)?;
    from.sql("SELECT pg_create_logical_replication_slot('bench', 'pgoutput')")?;
    let mut dump = from.client("pg_dump");
    dump.args(["-Fd", "-j", WORKERS, "-Z", codec.theirs()])
        .args(["--no-publications", "-f"]);
    command::output(dump.arg(&place.0))?;
    let stored = Stored {
        seconds: begun.elapsed().as_secs_f64(),
        files: place.size()?,
    };
    let begun = Instant::now();
    let mut restore = to.client("pg_restore");
    restore.args(["-j", WORKERS, "-d", to.name()]);
    command::output(restore.arg(&place.0))?;
    let keys = begun.elapsed().as_secs_f64();
    ways::subscribe(
        cluster,
        &to,
        "create_slot = false, slot_name = bench, copy_data = false",
    )?;
    follows(&from)?;
    Ok(Measured {
        stored: Some(stored),
        keys,
        ready: begun.elapsed().as_secs_f64(),
    })
}

/// Waits until the subscriber has confirmed what is written now.
fn follows(from: &Database) -> Result<()> {
    let fence = from.sql(
        "SELECT pg_logical_emit_message(true, 'bench', 'fence');
         SELECT pg_current_wal_flush_lsn();",
    )?;
    let fence = fence.lines().last().context("no position")?;
    let passed = format!(
        "SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'bench' AND confirmed_flush_lsn >= '{fence}'"
    );
    wait::until_true("the subscription to follow", DRAIN_LIMIT, || {
        Ok(from.value::<u32>(&passed)? == 1)
    })
}

/// Where files are stored, on the disk of the servers. They are removed when dropped: the next way needs
/// the space.
struct Place(PathBuf);

impl Place {
    fn new(cluster: &Cluster, name: &str) -> Self {
        Self(cluster.dir().join(name))
    }

    fn size(&self) -> Result<u64> {
        size(&self.0)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

fn size(dir: &Path) -> Result<u64> {
    let mut sum = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let meta = entry.metadata()?;
        sum += if meta.is_dir() {
            size(&entry.path())?
        } else {
            meta.len()
        };
    }
    Ok(sum)
}
