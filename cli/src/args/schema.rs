//! `schema` and its subcommands.

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Subcommand};
use steep_protocol::{Identifier, NodeId, TableName};

use super::choices::{parse_schema, parse_table};

/// Commands about schemas.
#[derive(Debug, Subcommand)]
pub(crate) enum SchemaCommand {
    /// List all differences between two nodes, or a node and an exported file; exit code 3 if there
    /// are any
    Compare(CompareArgs),
    /// Show one table of two nodes side by side
    Diff(DiffArgs),
    /// Store the fingerprints of a node's tables in its own steep_repl schema
    Capture(CaptureArgs),
    /// Write a node's schema, fingerprints and definitions, to a file
    Export(ExportArgs),
}

/// One side of a comparison.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Side {
    /// A node's current catalog.
    Node(NodeId),
    /// An exported file.
    File(PathBuf),
}

impl FromStr for Side {
    type Err = std::convert::Infallible;

    /// A text that is not a valid node name is a file name; a file with a valid node name is
    /// written `./file`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(NodeId::parse(text).map_or_else(|_| Self::File(text.into()), Self::Node))
    }
}

impl Side {
    /// Its name in the output.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Node(node) => node.to_string(),
            Self::File(path) => path.display().to_string(),
        }
    }
}

/// `schema compare`.
#[derive(Debug, Args)]
#[command(after_help = "\
Compares tables with their columns, keys, constraints, indexes and partitions, types, sequences,
extensions and publications. Does not compare functions, triggers, views, rules, policies and
privileges.

Examples:
  steep-repl schema compare node_a node_b
  steep-repl schema compare node_a node_b --schemas app,billing
  steep-repl schema compare node_a ./node_a.json")]
pub(crate) struct CompareArgs {
    /// The local side: a node, or a file written by export
    #[arg(value_name = "A")]
    pub(crate) local: Side,
    /// The remote side: a node or a file
    #[arg(value_name = "B")]
    pub(crate) remote: Side,
    /// Only these schemas, separated by commas
    #[arg(long, value_name = "S,S", value_delimiter = ',', value_parser = parse_schema)]
    pub(crate) schemas: Vec<Identifier>,
}

/// `schema diff`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  steep-repl schema diff node_a node_b public.orders")]
pub(crate) struct DiffArgs {
    /// The local side: a node, or a file written by export
    #[arg(value_name = "A")]
    pub(crate) local: Side,
    /// The remote side: a node or a file
    #[arg(value_name = "B")]
    pub(crate) remote: Side,
    /// The table (schema.table)
    #[arg(value_parser = parse_table)]
    pub(crate) table: TableName,
}

/// `schema capture`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  steep-repl schema capture --node node_b
  steep-repl schema capture --node node_b --peer node_a")]
pub(crate) struct CaptureArgs {
    /// The node that stores them
    #[arg(long)]
    pub(crate) node: NodeId,
    /// A node whose fingerprints it also stores, for steep_repl.compare_fingerprints
    #[arg(long)]
    pub(crate) peer: Option<NodeId>,
}

/// `schema export`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  steep-repl schema export --node node_a --output node_a.json")]
pub(crate) struct ExportArgs {
    /// The node
    #[arg(long)]
    pub(crate) node: NodeId,
    /// The file to write; an existing one is replaced
    #[arg(long, value_name = "FILE")]
    pub(crate) output: PathBuf,
    /// Only these schemas, separated by commas
    #[arg(long, value_name = "S,S", value_delimiter = ',', value_parser = parse_schema)]
    pub(crate) schemas: Vec<Identifier>,
}
