//! `verify`, `repair` and `analyze-overlap`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use steep_protocol::limits::WORKERS_MAX;
use steep_protocol::message::verify::{
    Comparing, ModifiedBy, RowValues, ScheduleSpec, VerifySchedule, VerifySpec,
};
use steep_protocol::units::parse_duration;
use steep_protocol::{ByteCount, NodeId, TableName};

use super::choices::parse_table;
use crate::settings::Settings;
use crate::units::parse_size;

/// `verify`.
#[derive(Debug, Args)]
#[command(after_help = "\
Reads every row on both nodes and changes nothing. Both may be written to meanwhile: a row that looks
different is looked at again once the replica has applied what its source wrote. Exit code 3 if
anything differs; 1 if nothing does, but a table could not be read.

With --every, the coordinator compares B, a replica of A, on its own: B is diverged while its rows
differ. `steep-repl status B` shows the last result.

Examples:
  steep-repl verify node_a node_b
  steep-repl verify node_a node_b --tables app.orders,app.items --show-values
  steep-repl verify node_a node_b --parallel 1 --max-rate 20MB --json
  steep-repl verify node_a node_b --every 1d --max-rate 20MB
  steep-repl verify node_a node_b --every off")]
pub(crate) struct VerifyArgs {
    /// The node that counts as right
    #[arg(value_name = "A")]
    pub(crate) a: NodeId,
    /// The node that is compared with it
    #[arg(value_name = "B")]
    pub(crate) b: NodeId,
    /// Have the coordinator compare again and again, so long after each comparison (1h, 1d); `off` ends it
    #[arg(long, value_name = "TIME", value_parser = parse_every, conflicts_with = "show_values")]
    pub(crate) every: Option<Every>,
    #[command(flatten)]
    pub(crate) rows: RowsArgs,
}

/// How often rows are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Every {
    /// No longer.
    Off,
    /// So long after each comparison.
    Each(Duration),
}

fn parse_every(text: &str) -> Result<Every, String> {
    match text {
        "off" => Ok(Every::Off),
        text => parse_duration(text)
            .map(Every::Each)
            .map_err(|error| format!("{error}, or off")),
    }
}

impl VerifyArgs {
    /// What the coordinator is to do regularly.
    pub(crate) fn schedule(&self, every: Every, settings: &Settings) -> ScheduleSpec {
        let spec = self.spec(settings);
        let schedule = match every {
            Every::Off => None,
            Every::Each(every) => Some(VerifySchedule {
                every_seconds: every.as_secs(),
                tables: spec.tables,
                parallel: spec.parallel,
                max_rate: spec.max_rate,
            }),
        };
        ScheduleSpec {
            node_a: spec.node_a,
            node_b: spec.node_b,
            schedule,
        }
    }

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
    pub(crate) rows: RowsArgs,
}

impl OverlapArgs {
    /// What is wanted.
    pub(crate) fn spec(&self, settings: &Settings) -> VerifySpec {
        let comparing = Comparing::Overlap;
        self.rows.spec(&self.a, &self.b, comparing, settings)
    }
}

/// `repair`.
#[derive(Debug, Args)]
#[command(after_help = "\
Makes the rows of B, a replica of A, those of A, where they differ. Both may be written to meanwhile: a row
is written only while both nodes have what the plan saw, and B has applied everything that A wrote before. Rows
are then compared again; exit code 3 if something still differs, also with --dry-run.

With --dry-run --plan FILE, the plan is written to a new FILE: a line for each row, with its key, and no other
values. Lines may be taken out. With --plan FILE alone, exactly the rows in FILE are written; if there is no
such file, it is made and nothing else, and with --yes that is an error.

Examples:
  steep-repl repair node_a node_b --dry-run --plan plan.jsonl
  steep-repl repair node_a node_b --plan plan.jsonl --yes
  steep-repl repair node_a node_b --tables app.orders --yes --json")]
pub(crate) struct RepairArgs {
    /// The node that counts as right
    #[arg(value_name = "A")]
    pub(crate) a: NodeId,
    /// Its replica, which is written to
    #[arg(value_name = "B")]
    pub(crate) b: NodeId,
    /// The plan: read if there is such a file, otherwise written
    #[arg(long, value_name = "FILE")]
    pub(crate) plan: Option<PathBuf>,
    /// Make the plan, and change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Don't ask for confirmation
    #[arg(long, short)]
    pub(crate) yes: bool,
    #[command(flatten)]
    load: LoadArgs,
}

impl RepairArgs {
    /// What is compared for a plan.
    pub(crate) fn spec(&self, settings: &Settings) -> VerifySpec {
        let comparing = Comparing::Repair;
        self.load.spec(&self.a, &self.b, comparing, settings)
    }

    /// What is compared once rows are written.
    pub(crate) fn verification(&self, tables: Vec<TableName>, settings: &Settings) -> VerifySpec {
        let comparing = Comparing::Equality;
        let spec = self.load.spec(&self.a, &self.b, comparing, settings);
        VerifySpec { tables, ..spec }
    }

    /// Whether tables are named.
    pub(crate) fn names_tables(&self) -> bool {
        !self.load.tables.is_empty()
    }

    /// Bytes of rows a second.
    pub(crate) fn max_rate(&self) -> Option<ByteCount> {
        self.load.max_rate
    }
}

/// Which rows are compared, and what is shown of them.
#[derive(Debug, Args)]
pub(crate) struct RowsArgs {
    #[command(flatten)]
    load: LoadArgs,
    /// Show the values of columns that differ
    #[arg(long)]
    pub(crate) show_values: bool,
}

/// Which rows are compared, and how fast.
#[derive(Debug, Args)]
pub(crate) struct LoadArgs {
    /// Only these tables (schema.table), separated by commas [default: those that one replicates from
    /// the other, or else all]
    #[arg(long, value_name = "T,T", value_delimiter = ',', value_parser = parse_table)]
    pub(crate) tables: Vec<TableName>,
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
        let values = self.values();
        let spec = self.load.spec(a, b, comparing, settings);
        VerifySpec { values, ..spec }
    }

    /// What is shown of rows.
    pub(crate) fn values(&self) -> RowValues {
        match self.show_values {
            true => RowValues::Shown,
            false => RowValues::Hidden,
        }
    }
}

impl LoadArgs {
    /// Values are hidden.
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
            values: RowValues::Hidden,
            parallel: self.parallel.unwrap_or(settings.parallel),
            max_rate: self.max_rate,
            modified: ModifiedBy::NotAsked,
        }
    }
}
