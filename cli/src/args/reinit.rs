//! `reinit`.

use clap::Args;
use steep_protocol::limits::WORKERS_MAX;
use steep_protocol::message::tables::{Change, ChangeSpec, Reinit};
use steep_protocol::{ByteCount, Identifier, NodeId, TableName};

use super::choices::{parse_schema, parse_table};
use crate::units::parse_size;

/// `reinit`.
#[derive(Debug, Args)]
#[command(after_help = "\
Readers of the node see the old rows until the new ones are complete, then the new ones at once. Replication of
all other tables goes on. Until the new rows take their place, Ctrl-C or `init cancel` leaves the old ones.

Examples:
  steep-repl reinit --node node_b --tables app.orders,app.items
  steep-repl reinit --node node_b --schema app --yes
  steep-repl reinit --node node_b --full --parallel 8")]
pub(crate) struct ReinitArgs {
    /// The node
    #[arg(long, value_name = "NODE")]
    pub(crate) node: NodeId,
    #[command(flatten)]
    pub(crate) which: Which,
    /// The node to copy from, which must be the one that the node follows [default: that one]
    #[arg(long, value_name = "NODE")]
    pub(crate) source: Option<NodeId>,
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
    /// Don't ask for confirmation
    #[arg(long, short)]
    pub(crate) yes: bool,
}

/// Which tables.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct Which {
    /// These tables (schema.table), separated by commas; a partitioned table with all its partitions
    #[arg(long, value_name = "T,T", value_delimiter = ',', value_parser = parse_table)]
    pub(crate) tables: Vec<TableName>,
    /// All tables of that schema that the node follows
    #[arg(long, value_name = "SCHEMA", value_parser = parse_schema)]
    pub(crate) schema: Option<Identifier>,
    /// All tables that the node follows. One whose replication has lost changes follows anew from then on; one whose
    /// init failed begins that again
    #[arg(long)]
    pub(crate) full: bool,
}

impl ReinitArgs {
    /// What is wanted, of these tables.
    pub(crate) fn spec(&self, tables: Vec<TableName>) -> ChangeSpec {
        ChangeSpec {
            node: self.node.clone(),
            tables,
            change: Change::Reinit(Reinit {
                source: self.source.clone(),
                parallel: self.parallel,
                max_rate: self.max_rate,
            }),
        }
    }
}
