//! The command line, as the contract names it. Parsing ends in types that need no second look.

mod events;
mod init;
mod schema;

#[cfg(test)]
mod tests;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use steep_protocol::NodeId;

pub(crate) use events::{EventsArgs, Level};
pub(crate) use init::{
    CancelArgs, CompleteArgs, InitArgs, InitCommand, JobChoices, PrepareArgs, ProgressArgs,
    RebuildArgs, SchemaChoice, StartArgs,
};
pub(crate) use schema::{CaptureArgs, CompareArgs, DiffArgs, ExportArgs, SchemaCommand, Side};

/// Brings up a live logical replica of a PostgreSQL node: fast, watched, cancellable.
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

Exit codes: 0 success, 1 error, 2 bad arguments, 3 schemas differ, 4 cancelled, 5 timeout,
6 cannot connect or not authorised."
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

/// What every command takes.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// Where the coordinator listens [env: STEEP_REPL_COORDINATOR]
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
    /// Form of the log on stderr [default: text on a terminal, json otherwise]
    #[arg(long, global = true, value_name = "FORMAT")]
    pub(crate) log_format: Option<LogFormat>,
    /// Machine output: one object for a question, one object a line for a stream
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Show the settings that result from flags, environment and file, and stop
    #[arg(long, global = true)]
    pub(crate) print_config: bool,
}

/// Form of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make and look at the cluster's certificates
    #[command(subcommand)]
    Certs(CertsCommand),
    /// Every node: role, state, progress, lag, agent health
    Nodes(NodesArgs),
    /// One node in full, with its job where one is at work; without NODE, all of them
    #[command(after_help = "\
Examples:
  steep-repl status node_b
  steep-repl status node_b --last-report
  steep-repl status --json")]
    Status {
        /// Which node
        node: Option<NodeId>,
        /// How the node's last job that is over ended, in full
        #[arg(long, requires = "node")]
        last_report: bool,
    },
    /// What happened, oldest first
    Events(EventsArgs),
    /// The cluster on a screen: nodes, jobs, events, with keys to look closer and to act
    Watch(WatchArgs),
    /// Look whether an init would work, and change nothing
    Doctor(DoctorArgs),
    /// Make nodes live replicas of another node
    Init(Box<InitArgs>),
    /// Compare nodes' schemas, and keep what they are
    #[command(subcommand)]
    Schema(SchemaCommand),
    /// Write a completion script for that shell to stdout
    #[command(after_help = "\
Examples:
  steep-repl completions bash > /etc/bash_completion.d/steep-repl")]
    Completions {
        /// Which shell
        shell: Shell,
    },
}

/// `nodes`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  steep-repl nodes
  steep-repl nodes --json
  steep-repl nodes remove node_c")]
pub(crate) struct NodesArgs {
    #[command(subcommand)]
    pub(crate) command: Option<NodesCommand>,
}

/// What can be done to nodes.
#[derive(Debug, Subcommand)]
pub(crate) enum NodesCommand {
    /// Forget a node that is gone; remove what can be reached of its replication, and name the rest
    #[command(after_help = "\
Examples:
  steep-repl nodes remove node_c --yes")]
    Remove {
        /// Which node; its agent must be stopped
        node: NodeId,
        /// Don't ask
        #[arg(long, short)]
        yes: bool,
    },
}

/// Certificates.
#[derive(Debug, Subcommand)]
pub(crate) enum CertsCommand {
    /// Make a cluster CA: ca.pem and ca.key
    #[command(after_help = "\
Examples:
  steep-repl certs init --dir certs")]
    Init {
        /// Where to; made where it is missing
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
    },
    /// Issue a certificate of the CA: NAME.pem and NAME.key
    Issue(IssueArgs),
    /// What a certificate says: role, name, SANs, validity
    #[command(after_help = "\
Examples:
  steep-repl certs show certs/node_a.pem")]
    Show {
        /// A certificate in PEM form
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
    /// What the holder is: agent, coordinator or operator
    #[arg(long)]
    pub(crate) role: steep_certs::Role,
    /// Who the holder is; for an agent, the node's name
    #[arg(long)]
    pub(crate) name: String,
    /// A host name or IP address to add; may be given several times
    #[arg(long = "san", value_name = "HOST_OR_IP")]
    pub(crate) sans: Vec<String>,
    /// Where to write, with a copy of ca.pem [default: DIR]
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// How long it holds, in days
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
    /// Take clicks and the wheel; selecting text then needs Shift
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
    /// The nodes that would get the rows
    #[arg(required = true, value_name = "TARGET")]
    pub(crate) targets: Vec<NodeId>,
    /// The node that has the rows
    #[arg(long, value_name = "SOURCE")]
    pub(crate) from: NodeId,
    #[command(flatten)]
    pub(crate) choices: JobChoices,
}
