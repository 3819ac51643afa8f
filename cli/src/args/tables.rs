//! `tables`.

use clap::{Args, Subcommand, ValueEnum};
use steep_protocol::limits::WORKERS_MAX;
use steep_protocol::message::job::NewTables;
use steep_protocol::message::tables::{Adding, Change, ChangeSpec};
use steep_protocol::{ByteCount, NodeId, TableName};

use super::SchemaChoice;
use super::choices::{existing, mode, parse_table};
use crate::settings::Settings;
use crate::units::parse_size;

/// Commands about the tables of a node that follows.
#[derive(Debug, Subcommand)]
pub(crate) enum TablesCommand {
    /// Show the tables that a node follows, and those of its source that it does not
    #[command(after_help = "\
Examples:
  steep-repl tables list --node node_b
  steep-repl tables list --node node_b --json")]
    List {
        /// The node
        #[arg(long, value_name = "NODE")]
        node: NodeId,
    },
    /// Copy tables and follow them too, while all others go on
    Add(AddArgs),
    /// Follow tables no longer; their rows stay on the node
    Drop(DropArgs),
    /// Set what a node does about tables that are created on its source later
    #[command(after_help = "\
Examples:
  steep-repl tables policy --node node_b add
  steep-repl tables policy --node node_b report")]
    Policy {
        /// The node
        #[arg(long, value_name = "NODE")]
        node: NodeId,
        /// What it does
        policy: NewTablesChoice,
    },
}

/// What a node does about tables that are created on its source later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum NewTablesChoice {
    /// They are reported.
    Report,
    /// They are reported, copied and followed.
    Add,
}

impl From<NewTablesChoice> for NewTables {
    fn from(choice: NewTablesChoice) -> Self {
        match choice {
            NewTablesChoice::Report => Self::Report,
            NewTablesChoice::Add => Self::Add,
        }
    }
}

/// `tables add`.
#[derive(Debug, Args)]
#[command(after_help = "\
A table that is missing on the node is created like the source's; one that is there must be empty and match.
Ctrl-C or `init cancel` undoes it: the node then follows as before.

Examples:
  steep-repl tables add --node node_b app.invoices
  steep-repl tables add --node node_b app.invoices app.items --schema-sync auto")]
pub(crate) struct AddArgs {
    /// The node
    #[arg(long, value_name = "NODE")]
    pub(crate) node: NodeId,
    /// The tables (schema.table); a partitioned table with all its partitions
    #[arg(required = true, value_name = "TABLE", value_parser = parse_table)]
    pub(crate) tables: Vec<TableName>,
    /// What to do if a table is there and differs [default: strict] [env: STEEP_REPL_SCHEMA_SYNC]
    #[arg(long, value_name = "MODE")]
    pub(crate) schema_sync: Option<SchemaChoice>,
    /// Empty these tables on the node first, if they contain rows
    #[arg(long)]
    pub(crate) force: bool,
    /// Workers, 1 to 16 [default: those of the node's initialisation]
    #[arg(long, value_name = "N",
          value_parser = clap::value_parser!(u8).range(1..=i64::from(WORKERS_MAX)))]
    pub(crate) parallel: Option<u8>,
    /// Maximum bytes of rows a second, before compression, such as 50MB [default: that of the node's
    /// initialisation]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(crate) max_rate: Option<ByteCount>,
    /// Return once the job is stored; follow it with `init progress`
    #[arg(long)]
    pub(crate) detach: bool,
}

/// `tables drop`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  steep-repl tables drop --node node_b app.audit_trail")]
pub(crate) struct DropArgs {
    /// The node
    #[arg(long, value_name = "NODE")]
    pub(crate) node: NodeId,
    /// The tables (schema.table); a partitioned table with all its partitions
    #[arg(required = true, value_name = "TABLE", value_parser = parse_table)]
    pub(crate) tables: Vec<TableName>,
    /// Don't ask for confirmation
    #[arg(long, short)]
    pub(crate) yes: bool,
}

impl AddArgs {
    /// What is wanted.
    pub(crate) fn spec(&self, settings: &Settings) -> ChangeSpec {
        let schema_sync = self.schema_sync.unwrap_or(settings.schema_sync);
        ChangeSpec {
            node: self.node.clone(),
            tables: self.tables.clone(),
            change: Change::Add(Adding {
                schema_mode: mode(Some(schema_sync)),
                existing: existing(self.force),
                parallel: self.parallel,
                max_rate: self.max_rate,
            }),
        }
    }
}

impl DropArgs {
    /// What is wanted.
    pub(crate) fn spec(&self) -> ChangeSpec {
        ChangeSpec {
            node: self.node.clone(),
            tables: self.tables.clone(),
            change: Change::Drop,
        }
    }
}
