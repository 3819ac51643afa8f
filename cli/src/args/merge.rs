//! `init A --from B --mode bidirectional-merge`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use steep_protocol::message::merge::SequenceRanges;
use steep_protocol::message::verify::{Comparing, ModifiedBy, RowValues, VerifySpec};
use steep_protocol::{Identifier, NodeId};

use super::init::{MethodChoice, StartArgs};
use crate::failure::Failure;
use crate::settings::Settings;

/// Options of a merge.
#[derive(Debug, Args)]
#[command(next_help_heading = "Merging two nodes that both have rows")]
pub(crate) struct MergeChoices {
    /// Merge the rows of the two nodes; in the end both are equal and follow each other
    #[arg(long, value_name = "MODE", requires = "strategy")]
    pub(crate) mode: Option<Mode>,
    /// Which row counts where both nodes have one with the same key: that of the target (node-a), that of --from
    /// (node-b), the one that was modified last, or what you decide in the plan
    #[arg(long, requires = "mode")]
    pub(crate) strategy: Option<Strategy>,
    /// The column that says when a row was modified [default: the time of its commit, with
    /// track_commit_timestamp]
    #[arg(long, value_name = "COLUMN", requires = "mode", value_parser = parse_column)]
    pub(crate) modified_column: Option<Identifier>,
    /// The plan: read if there is such a file, otherwise written
    #[arg(long, value_name = "FILE", requires = "mode")]
    pub(crate) plan: Option<PathBuf>,
    /// How sequences are set apart: interleaved, how many values the target gets before --from's begin, or keep
    #[arg(long, value_name = "HOW", default_value = "interleaved", value_parser = SequenceRanges::parse)]
    pub(crate) sequence_ranges: SequenceRanges,
}

/// `--mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mode {
    /// Rows of both nodes are kept.
    BidirectionalMerge,
}

/// `--strategy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Strategy {
    /// The target's row.
    PreferNodeA,
    /// The row of --from.
    PreferNodeB,
    /// The row that was modified last.
    LastModified,
    /// Decided in the plan, row by row.
    Manual,
}

impl Strategy {
    /// The name on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::PreferNodeA => "prefer-node-a",
            Self::PreferNodeB => "prefer-node-b",
            Self::LastModified => "last-modified",
            Self::Manual => "manual",
        }
    }
}

fn parse_column(text: &str) -> Result<Identifier, String> {
    Identifier::parse(text).map_err(|error| error.to_string())
}

/// What is to be merged.
#[derive(Debug)]
pub(crate) struct MergeArgs {
    pub(crate) a: NodeId,
    pub(crate) b: NodeId,
    pub(crate) strategy: Strategy,
    pub(crate) plan: Option<PathBuf>,
    pub(crate) sequences: SequenceRanges,
    pub(crate) dry_run: bool,
    pub(crate) yes: bool,
    spec: VerifySpec,
}

impl MergeArgs {
    /// Checks that the options go together.
    ///
    /// # Errors
    /// Those that do not.
    pub(crate) fn of(args: &StartArgs, settings: &Settings) -> Result<Self, Failure> {
        let bad = |text: &str| Failure::bad_request(text);
        let [a] = args.targets.as_slice() else {
            return Err(bad(
                "a merge is of two nodes: name one target, and the other with --from",
            ));
        };
        let Some(b) = &args.from else {
            return Err(bad("no second node is given").hint("name it with --from"));
        };
        if a == b {
            return Err(bad("a node cannot be merged with itself").on(a));
        }
        let merge = &args.merge;
        let Some(strategy) = merge.strategy else {
            return Err(bad("a merge needs a --strategy"));
        };
        if merge.modified_column.is_some() && strategy != Strategy::LastModified {
            return Err(bad("--modified-column goes with --strategy last-modified"));
        }
        let others = [
            ("--resume", args.resume),
            ("--detach", args.detach),
            ("--force", args.choices.load.force),
            ("--method", args.choices.method != MethodChoice::Snapshot),
            (
                "--include-schema and --exclude-table",
                !args.choices.read.filter().is_everything(),
            ),
        ];
        if let Some((flag, _)) = others.iter().find(|(_, given)| *given) {
            return Err(bad(&format!("{flag} does not go with a merge")));
        }
        if strategy == Strategy::Manual && merge.plan.is_none() {
            let hint =
                "name it with --plan FILE: it is written first, then read with your decisions";
            return Err(bad("--strategy manual needs a file for the plan").hint(hint));
        }
        let modified = match (strategy, &merge.modified_column) {
            (Strategy::LastModified, Some(column)) => ModifiedBy::Column(column.clone()),
            (Strategy::LastModified, None) => ModifiedBy::CommitTime,
            _ => ModifiedBy::NotAsked,
        };
        Ok(Self {
            a: a.clone(),
            b: b.clone(),
            strategy,
            plan: merge.plan.clone(),
            sequences: merge.sequence_ranges,
            dry_run: args.dry_run,
            yes: args.yes,
            spec: VerifySpec {
                node_a: a.clone(),
                node_b: b.clone(),
                comparing: Comparing::Merge,
                tables: Vec::new(),
                values: RowValues::Hidden,
                parallel: args.choices.load.parallel.unwrap_or(settings.parallel),
                max_rate: args.choices.load.max_rate,
                modified,
            },
        })
    }

    /// What is compared for a plan, and for the proof.
    pub(crate) fn spec(&self) -> VerifySpec {
        self.spec.clone()
    }
}
