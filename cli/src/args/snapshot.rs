//! `snapshot` and its subcommands.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use steep_archive::Location;
use steep_protocol::encryption::Encrypt;
use steep_protocol::limits::WORKERS_MAX;
use steep_protocol::message::job::{JobSpec, Method};
use steep_protocol::message::snapshot::{SNAPSHOTS_MAX, SnapshotSpec, StoreSpec};
use steep_protocol::stored::StoredCodec;
use steep_protocol::{ByteCount, NodeId, SnapshotId};

use super::choices::{LoadChoices, ReadChoices, check_targets, confirmation};
use crate::failure::Failure;
use crate::settings::Settings;
use crate::units::{parse_duration, parse_size};

/// Subcommands of `snapshot`.
#[derive(Debug, Subcommand)]
pub(crate) enum SnapshotCommand {
    /// Read a node once, into a directory or an object store
    Generate(Box<GenerateArgs>),
    /// Make nodes live replicas of the source of a stored snapshot, or only load its rows
    Apply(Box<ApplyArgs>),
    /// Every snapshot: where it is, how long it is kept, how much WAL its slot holds
    #[command(after_help = "\
Examples:
  steep-repl snapshot list
  steep-repl snapshot list --source node_a --json")]
    List {
        /// Only those of this node
        #[arg(long, value_name = "NODE")]
        source: Option<NodeId>,
    },
    /// One snapshot in full
    #[command(after_help = "\
Examples:
  steep-repl snapshot show 51358f153ac8daae")]
    Show {
        /// The snapshot
        id: SnapshotId,
    },
    /// Read a stored snapshot again and check every checksum and row count
    #[command(after_help = "\
Examples:
  steep-repl snapshot verify 51358f153ac8daae      by the agent that stored it
  steep-repl snapshot verify /backup/app           by this command, here; needs no coordinator
  steep-repl snapshot verify s3://backups/app
  steep-repl snapshot verify /backup/app --snapshot-key snapshot.key")]
    Verify {
        /// A snapshot, or the place where one is stored
        #[arg(value_name = "ID_OR_PATH", value_parser = Stored::parse)]
        stored: Stored,
        /// With a path: the key file of an encrypted snapshot. Without one, its files are checked as they are stored, and
        /// no rows counted [env: STEEP_REPL_SNAPSHOT_KEY]
        #[arg(long, value_name = "FILE")]
        snapshot_key: Option<PathBuf>,
    },
    /// Make a key file for encrypted snapshots, and print its recipient
    #[command(after_help = "\
The file is a secret, of the form that age uses: age -d -i FILE decrypts what is encrypted to it.

Examples:
  steep-repl snapshot keygen --output /etc/steep-repl/snapshot.key
  steep-agent run ... --snapshot-key /etc/steep-repl/snapshot.key
  steep-repl snapshot generate --source node_a --output /backup/app --encrypt")]
    Keygen {
        /// A file that does not exist
        #[arg(long, value_name = "FILE")]
        output: PathBuf,
    },
    /// Remove a snapshot: its files, its slot and its publication
    #[command(after_help = "\
Examples:
  steep-repl snapshot delete 51358f153ac8daae --yes")]
    Delete {
        /// The snapshot
        id: SnapshotId,
        /// Forget it even if its removal has failed: its store may be gone
        #[arg(long)]
        force: bool,
        /// Don't ask for confirmation
        #[arg(long, short)]
        yes: bool,
    },
}

/// `snapshot generate`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  steep-repl snapshot generate --source node_a --output /backup/app
  steep-repl snapshot generate --source node_a --output s3://backups/app --compress zstd:9
  steep-repl snapshot generate --source node_a --output /backup/app --include-schema app --expires 48h
  steep-repl snapshot generate --source node_a --output /backup/app/2026-11-29 --keep 7
  steep-repl snapshot generate --source node_a --output s3://backups/app --encrypt")]
pub(crate) struct GenerateArgs {
    /// The node to read
    #[arg(long, value_name = "NODE")]
    pub(crate) source: NodeId,
    /// Where to store it: a directory on that node's host, by its absolute path, or s3://, gs://, az:// or
    /// file:/// (credentials come from its agent's environment)
    #[arg(long, value_name = "PATH_OR_URL", value_parser = Location::parse)]
    pub(crate) output: Location,
    /// Workers, 1 to 16 [default: 4] [env: STEEP_REPL_PARALLEL]
    #[arg(long, value_name = "N",
          value_parser = clap::value_parser!(u8).range(1..=i64::from(WORKERS_MAX)))]
    pub(crate) parallel: Option<u8>,
    /// Compression of the files: none, gzip, lz4, zstd or zstd:LEVEL
    #[arg(long, value_name = "HOW", default_value = "zstd")]
    pub(crate) compress: StoredCodec,
    /// Encrypt the files to the key of that node's agent (its --snapshot-key): whoever reads them needs that key
    #[arg(long)]
    pub(crate) encrypt: bool,
    /// How long it is kept: until then its slot retains the source's WAL
    #[arg(long, default_value = "168h", value_parser = parse_duration)]
    pub(crate) expires: Duration,
    /// Once it is complete, remove the oldest of its series beyond so many: those of the same source and tables
    /// in the same directory
    #[arg(long, value_name = "N",
          value_parser = clap::value_parser!(u16).range(1..=SNAPSHOTS_MAX as i64))]
    pub(crate) keep: Option<u16>,
    /// Maximum bytes of rows a second, before compression, such as 50MB
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(crate) max_rate: Option<ByteCount>,
    #[command(flatten)]
    pub(crate) read: ReadChoices,
    /// Start, print the snapshot's id and don't wait for it
    #[arg(long)]
    pub(crate) detach: bool,
}

impl GenerateArgs {
    /// The request to the coordinator.
    pub(crate) fn spec(&self, settings: &Settings) -> SnapshotSpec {
        SnapshotSpec {
            source: self.source.clone(),
            store: Some(StoreSpec {
                location: self.output.to_string(),
                codec: self.compress,
                max_rate: self.max_rate,
                encrypt: match self.encrypt {
                    true => Encrypt::ToAgentsKey,
                    false => Encrypt::No,
                },
            }),
            filter: self.read.filter(),
            parallel: self.parallel.unwrap_or(settings.parallel),
            large_table_threshold: self.read.large_table_threshold,
            yield_to_ddl: self.read.yield_to_ddl.unwrap_or(settings.yield_to_ddl),
            expires_seconds: self.expires.as_secs(),
            keep: self.keep,
        }
    }
}

/// `snapshot apply`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  steep-repl snapshot apply --target node_b --input /backup/app
  steep-repl snapshot apply --target node_b --input /mnt/disk/app      carried there
  steep-repl snapshot apply --target node_t --input /backup/app --no-subscribe
  steep-repl snapshot apply --target node_b node_c --input 51358f153ac8daae --parallel 8")]
pub(crate) struct ApplyArgs {
    /// The target nodes
    #[arg(long = "target", required = true, value_name = "NODE", num_args = 1..)]
    pub(crate) targets: Vec<NodeId>,
    /// The snapshot: its id; or a path or URL where it was stored, or where the targets' agents find it after it was
    /// carried to them
    #[arg(long, value_name = "PATH_OR_URL", value_parser = Stored::parse)]
    pub(crate) input: Stored,
    /// Look at all files before anything is changed; each is checked while it is loaded in any case
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set,
          num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub(crate) verify: bool,
    /// Load rows, indexes, constraints and sequences as they were, without replication: the targets don't follow, and
    /// the snapshot's slot is not needed
    #[arg(long)]
    pub(crate) no_subscribe: bool,
    #[command(flatten)]
    pub(crate) load: LoadChoices,
    /// Start the jobs, print their ids and don't wait for them
    #[arg(long)]
    pub(crate) detach: bool,
    /// Answer all questions with yes
    #[arg(long, short)]
    pub(crate) yes: bool,
    /// Check whether it would work, and change nothing
    #[arg(long, conflicts_with = "detach")]
    pub(crate) dry_run: bool,
}

impl ApplyArgs {
    /// One spec per target.
    ///
    /// # Errors
    /// A target is named twice, or is the source.
    pub(crate) fn specs(&self, source: &NodeId) -> Result<Vec<JobSpec>, Failure> {
        check_targets(&self.targets, source)?;
        let spec = |target: &NodeId| JobSpec {
            method: match self.no_subscribe {
                true => Method::Load,
                false => Method::Stored,
            },
            ..self.load.spec(source, target, confirmation(self.yes))
        };
        Ok(self.targets.iter().map(spec).collect())
    }
}

/// A snapshot that the coordinator knows, or any place.
#[derive(Debug, Clone)]
pub(crate) enum Stored {
    /// By its id.
    Known(SnapshotId),
    /// By its place, as this process sees it.
    At(Location),
}

impl Stored {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        if let Ok(id) = text.parse() {
            return Ok(Self::Known(id));
        }
        Location::parse(text)
            .map(Self::At)
            .map_err(|error| format!("it is no snapshot id (16 hexadecimal digits), and {error}"))
    }
}
