//! The command line as defined by the contract. Parsing produces validated types.

mod choices;
mod events;
mod init;
mod merge;
mod reinit;
mod schema;
mod snapshot;
mod switchover;
mod tables;
mod verify;

#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use steep_protocol::NodeId;
use steep_protocol::units::parse_duration;

pub(crate) use choices::SchemaChoice;
pub(crate) use events::{EventsArgs, Level};
pub(crate) use init::{
    AdjustArgs, CancelArgs, CompleteArgs, InitArgs, InitCommand, JobChoices, PrepareArgs,
    ProgressArgs, RebuildArgs, StartArgs,
};
pub(crate) use merge::{MergeArgs, Strategy};
pub(crate) use reinit::ReinitArgs;
pub(crate) use schema::{CaptureArgs, CompareArgs, DiffArgs, ExportArgs, SchemaCommand, Side};
pub(crate) use snapshot::{ApplyArgs, GenerateArgs, SnapshotCommand, Stored};
pub(crate) use switchover::SwitchoverArgs;
pub(crate) use tables::{AddArgs, DropArgs, NewTablesChoice, TablesCommand};
pub(crate) use verify::{Every, OverlapArgs, RepairArgs, VerifyArgs};

/// Brings up a live logical replica of a PostgreSQL node: fast, observable, cancellable.
#[derive(Debug, Parser)]
#[command(
    name = "steep-repl",
    version,
    max_term_width = 100,
    after_help = "\
Examples:
  steep-repl nodes
  steep-repl doctor node_b --from node_a
  steep-repl init node_b --from node_a
  steep-repl watch

`steep-repl COMMAND --help` has examples of each command.

Exit codes: 0 success, 1 error, 2 bad arguments, 3 schemas or rows differ, 4 cancelled, 5 timeout,
6 cannot connect or not authorised."
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

/// Options of every command.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// The coordinator's address [env: STEEP_REPL_COORDINATOR]
    #[arg(long, global = true, value_name = "HOST:PORT")]
    pub(crate) coordinator: Option<String>,
    /// The cluster's CA certificate [env: STEEP_REPL_CERTS=DIR, its ca.pem]
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,
    /// Your operator certificate [env: STEEP_REPL_CERTS=DIR, its operator.pem]
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) cert: Option<PathBuf>,
    /// Its private key [env: STEEP_REPL_CERTS=DIR, its operator.key]
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) key: Option<PathBuf>,
    /// Configuration file, TOML [env: STEEP_REPL_CONFIG; default: ~/.config/steep-repl/config.toml]
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Format of the log on stderr [default: text on a terminal, json otherwise]
    #[arg(long, global = true, value_name = "FORMAT")]
    pub(crate) log_format: Option<LogFormat>,
    /// Machine-readable output: one object, or one object a line for streams
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Show the effective settings from flags, environment and file, and exit
    #[arg(long, global = true)]
    pub(crate) print_config: bool,
}

/// Format of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum LogFormat {
    /// One JSON object a line.
    Json,
    /// Text for people.
    Text,
}

/// Commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create and inspect the cluster's certificates
    #[command(subcommand)]
    Certs(CertsCommand),
    /// Every node: role, state, progress, lag, agent health
    Nodes(NodesArgs),
    /// One node in full, with its running job; without NODE, all nodes
    #[command(after_help = "\
Examples:
  steep-repl status node_b
  steep-repl status node_b --last-report
  steep-repl status --json")]
    Status {
        /// The node
        node: Option<NodeId>,
        /// Show the final report of the node's last finished job
        #[arg(long, requires = "node")]
        last_report: bool,
    },
    /// Show events, oldest first
    Events(EventsArgs),
    /// The cluster on one screen: nodes, jobs, events, with keys to inspect and act
    Watch(WatchArgs),
    /// Check whether an init would work, and change nothing
    Doctor(DoctorArgs),
    /// Make nodes live replicas of another node
    Init(Box<InitArgs>),
    /// List, add and drop the tables that a node follows, while it goes on following
    #[command(subcommand)]
    Tables(TablesCommand),
    /// Copy tables of a node again, while it goes on following and its readers see the old rows
    Reinit(ReinitArgs),
    /// End a node's replication for good; tables and rows stay on it
    Detach(DetachArgs),
    /// Move writes from a node to its replica, the end of a migration
    Switchover(SwitchoverArgs),
    /// Read a node once into a store; list, verify and delete what is stored
    #[command(subcommand)]
    Snapshot(SnapshotCommand),
    /// Compare the rows of two nodes exactly, while both are written to
    Verify(VerifyArgs),
    /// Make the rows of a replica those of its source, where they differ
    Repair(RepairArgs),
    /// Count the rows that two nodes have in common, and those that conflict
    AnalyzeOverlap(OverlapArgs),
    /// Compare nodes' schemas, and export or capture them
    #[command(subcommand)]
    Schema(SchemaCommand),
    /// Write a shell completion script to stdout
    #[command(after_help = "\
Examples:
  steep-repl completions bash > /etc/bash_completion.d/steep-repl")]
    Completions {
        /// The shell
        shell: Shell,
    },
}

/// `detach`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  steep-repl detach --node node_b --dry-run
  steep-repl detach --node node_b --wait --yes")]
pub(crate) struct DetachArgs {
    /// The node
    #[arg(long, value_name = "NODE")]
    pub(crate) node: NodeId,
    /// First wait until it has applied everything written before this command
    #[arg(long)]
    pub(crate) wait: bool,
    /// How long to wait at most; nothing is changed if that does not suffice
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = parse_duration)]
    pub(crate) timeout: Duration,
    /// Also without its source: what it leaves there is removed when that is back
    #[arg(long, conflicts_with = "wait")]
    pub(crate) force: bool,
    /// Show what would be dropped and what is not applied yet, and change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Don't ask for confirmation
    #[arg(long, short)]
    pub(crate) yes: bool,
}

/// `nodes`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  steep-repl nodes
  steep-repl nodes --json
  steep-repl nodes --snapshots
  steep-repl nodes remove node_c")]
pub(crate) struct NodesArgs {
    #[command(subcommand)]
    pub(crate) command: Option<NodesCommand>,
    /// Show the stored snapshots as well
    #[arg(long)]
    pub(crate) snapshots: bool,
}

/// Actions on nodes.
#[derive(Debug, Subcommand)]
pub(crate) enum NodesCommand {
    /// Forget a node that is gone; remove what can be reached of its replication, and list the rest
    #[command(after_help = "\
Examples:
  steep-repl nodes remove node_c --yes")]
    Remove {
        /// The node; its agent must be stopped
        node: NodeId,
        /// Don't ask for confirmation
        #[arg(long, short)]
        yes: bool,
    },
}

/// Certificates.
#[derive(Debug, Subcommand)]
pub(crate) enum CertsCommand {
    /// Create a cluster CA: ca.pem and ca.key
    #[command(after_help = "\
Examples:
  steep-repl certs init --dir certs")]
    Init {
        /// The directory to write to; created if missing
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
    },
    /// Issue a certificate signed by the CA: NAME.pem and NAME.key
    Issue(IssueArgs),
    /// Show a certificate: role, name, SANs, validity
    #[command(after_help = "\
Examples:
  steep-repl certs show certs/node_a.pem")]
    Show {
        /// A certificate in PEM format
        file: PathBuf,
    },
}

/// `certs issue`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  steep-repl certs issue --dir certs --role coordinator --name main --san coordinator.example.net
  steep-repl certs issue --dir certs --role agent --name node_a
  steep-repl certs issue --dir certs --role operator --name operator --days 90")]
pub(crate) struct IssueArgs {
    /// The directory with ca.pem and ca.key
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: PathBuf,
    /// The holder's role: agent, coordinator or operator
    #[arg(long)]
    pub(crate) role: steep_certs::Role,
    /// The holder's name; for an agent, the node's name
    #[arg(long)]
    pub(crate) name: String,
    /// A host name or IP address to add; may be repeated
    #[arg(long = "san", value_name = "HOST_OR_IP")]
    pub(crate) sans: Vec<String>,
    /// The directory to write to, with a copy of ca.pem [default: DIR]
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// Validity in days
    #[arg(long, default_value_t = 825, value_parser = clap::value_parser!(u16).range(1..=3650))]
    pub(crate) days: u16,
}

/// `watch`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  steep-repl watch
  steep-repl watch --json        lines for programs")]
pub(crate) struct WatchArgs {
    /// Enable clicks and the wheel; selecting text then needs Shift
    #[arg(long)]
    pub(crate) mouse: bool,
}

/// `doctor`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  steep-repl doctor node_b --from node_a
  steep-repl doctor node_b node_c --from node_a --include-schema app
  steep-repl doctor node_b --from node_a --schema-sync auto --json")]
pub(crate) struct DoctorArgs {
    /// The target nodes
    #[arg(required = true, value_name = "TARGET")]
    pub(crate) targets: Vec<NodeId>,
    /// The source node
    #[arg(long, value_name = "SOURCE")]
    pub(crate) from: NodeId,
    #[command(flatten)]
    pub(crate) choices: JobChoices,
}
