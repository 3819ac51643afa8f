//! `verify` and `analyze-overlap`.

use clap::Args;
use steep_protocol::limits::WORKERS_MAX;
use steep_protocol::message::verify::{Comparing, RowValues, VerifySpec};
use steep_protocol::{ByteCount, NodeId, TableName};

use super::choices::parse_table;
use crate::settings::Settings;
use crate::units::parse_size;

/// `verify`.
#[derive(Debug, Args)]
#[command(after_help = "\
Reads every row on both nodes and changes nothing. Both may be written to meanwhile: a row that looks
different is looked at again once the replica has applied what its source wrote. Exit code 3 if
anything differs.

Examples:
  steep-repl verify node_a node_b
  steep-repl verify node_a node_b --tables app.orders,app.items --show-values
  steep-repl verify node_a node_b --parallel 1 --max-rate 20MB --json")]
pub(crate) struct VerifyArgs {
    /// The node that counts as right
    #[arg(value_name = "A")]
    pub(crate) a: NodeId,
    /// The node that is compared with it
    #[arg(value_name = "B")]
    pub(crate) b: NodeId,
    #[command(flatten)]
    rows: RowsArgs,
}

impl VerifyArgs {
    /// What is wanted.
    pub(crate) fn spec(&self, settings: &Settings) -> VerifySpec {
        let comparing = Comparing::Equality;
        self.rows.spec(&self.a, &self.b, comparing, settings)
    }
}

/// `analyze-overlap`.
#[derive(Debug, Args)]
#[command(after_help = "\
Counts, for each table, the rows that both nodes have, that only one has, and that both have with other
columns: what would become of them if the two were merged. Reads every row on both nodes and changes
nothing. Both may be written to meanwhile. Tables without a key that is unique on both nodes are refused,
and the exit code is then 1.

Examples:
  steep-repl analyze-overlap node_a node_b
  steep-repl analyze-overlap node_a node_b --tables app.orders,app.items --json")]
pub(crate) struct OverlapArgs {
    /// One node
    #[arg(value_name = "A")]
    pub(crate) a: NodeId,
    /// The other one
    #[arg(value_name = "B")]
    pub(crate) b: NodeId,
    #[command(flatten)]
    rows: RowsArgs,
}

impl OverlapArgs {
    /// What is wanted.
    pub(crate) fn spec(&self, settings: &Settings) -> VerifySpec {
        let comparing = Comparing::Overlap;
        self.rows.spec(&self.a, &self.b, comparing, settings)
    }
}

/// Which rows are compared, and how.
#[derive(Debug, Args)]
pub(crate) struct RowsArgs {
    /// Only these tables (schema.table), separated by commas [default: those that one replicates from
    /// the other, or else all]
    #[arg(long, value_name = "T,T", value_delimiter = ',', value_parser = parse_table)]
    pub(crate) tables: Vec<TableName>,
    /// Show the values of columns that differ
    #[arg(long)]
    pub(crate) show_values: bool,
    /// Sessions on each server, 1 to 16 [default: 4] [env: STEEP_REPL_PARALLEL]
    #[arg(long, value_name = "N",
          value_parser = clap::value_parser!(u8).range(1..=i64::from(WORKERS_MAX)))]
    pub(crate) parallel: Option<u8>,
    /// Maximum bytes of tables read in a second on each server, such as 50MB
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(crate) max_rate: Option<ByteCount>,
}

impl RowsArgs {
    fn spec(
        &self,
        a: &NodeId,
        b: &NodeId,
        comparing: Comparing,
        settings: &Settings,
    ) -> VerifySpec {
        VerifySpec {
            node_a: a.clone(),
            node_b: b.clone(),
            comparing,
            tables: self.tables.clone(),
            values: if self.show_values {
                RowValues::Shown
            } else {
                RowValues::Hidden
            },
            parallel: self.parallel.unwrap_or(settings.parallel),
            max_rate: self.max_rate,
        }
    }
}
