//! `init` and its subcommands.

use std::time::Duration;

use clap::{ArgGroup, Args, Subcommand, ValueEnum};
use steep_protocol::limits::WORKERS_MAX;
use steep_protocol::message::adjust::MaxRate;
use steep_protocol::message::handover::{CompleteSpec, PrepareSpec, SchemaCheck, SlotName};
use steep_protocol::message::job::{Compression, Confirmation, JobSpec, Method};
use steep_protocol::{Lsn, NodeId, SnapshotId};

use super::NewTablesChoice;
use super::choices::{
    LoadChoices, ReadChoices, SchemaChoice, check_targets, confirmation, existing, mode,
};
use super::merge::MergeChoices;
use crate::failure::Failure;
use crate::settings::Settings;
use crate::units::parse_duration;

/// `init`: start a job, or a subcommand.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
#[command(after_help = "\
Examples:
  steep-repl init node_b --from node_a
  steep-repl init node_b node_c --from node_a --parallel 8 --detach
  steep-repl init node_b --from node_a --dry-run
  steep-repl init node_b --from node_a --include-schema app --exclude-table app.log
  steep-repl init node_b --from node_a --resume
  steep-repl init node_a --from node_b --mode bidirectional-merge --strategy last-modified --dry-run")]
pub(crate) struct InitArgs {
    #[command(subcommand)]
    pub(crate) command: Option<InitCommand>,
    #[command(flatten)]
    pub(crate) start: StartArgs,
}

/// Subcommands of `init`.
#[derive(Debug, Subcommand)]
pub(crate) enum InitCommand {
    /// Show the progress of a node's job
    Progress(ProgressArgs),
    /// Stop a node's job, or clean up after a failed one, and remove what it made
    Cancel(CancelArgs),
    /// Before a backup, create a slot on the source that retains all later changes
    Prepare(PrepareArgs),
    /// Change the workers and the rate of a node's running job
    Adjust(AdjustArgs),
    /// Retry creating the objects that a node lacks
    Rebuild(RebuildArgs),
    /// Start replication on a node that was restored from a backup
    Complete(CompleteArgs),
}

/// `init prepare`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  steep-repl init prepare --node node_a --slot monday --expires 48h
  steep-repl init prepare --node node_a --slot monday --drop")]
pub(crate) struct PrepareArgs {
    /// The source node
    #[arg(long, value_name = "SOURCE")]
    pub(crate) node: NodeId,
    /// The slot's name: lower-case letters, digits and underscores
    #[arg(long, value_name = "NAME")]
    pub(crate) slot: SlotName,
    /// Drop the slot after this time if no backup has been completed with it: it retains WAL
    #[arg(long, default_value = "168h", value_parser = parse_duration)]
    pub(crate) expires: Duration,
    /// Drop the prepared slot of this name instead
    #[arg(long)]
    pub(crate) drop: bool,
}

/// `init complete`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  steep-repl init complete --node node_b --source node_a --source-lsn 16/B374D848
  steep-repl init complete --node node_b --source node_a --source-lsn 16/B374D848 --dry-run")]
pub(crate) struct CompleteArgs {
    /// The node on which the backup was restored
    #[arg(long, value_name = "TARGET")]
    pub(crate) node: NodeId,
    /// The node that the backup was taken from
    #[arg(long, value_name = "SOURCE")]
    pub(crate) source: NodeId,
    /// The position in the source's WAL at which the backup is consistent, such as 16/B374D848
    #[arg(long, value_name = "LSN")]
    pub(crate) source_lsn: Lsn,
    /// The prepared slot [default: the source's only prepared slot]
    #[arg(long, value_name = "NAME")]
    pub(crate) slot: Option<SlotName>,
    /// What to do if the schemas differ [default: strict] [env: STEEP_REPL_SCHEMA_SYNC]
    #[arg(long, value_name = "MODE")]
    pub(crate) schema_sync: Option<SchemaChoice>,
    /// Don't compare the schemas
    #[arg(long, conflicts_with = "schema_sync")]
    pub(crate) skip_schema_check: bool,
    /// With --schema-sync auto, also allow statements that lose data
    #[arg(long)]
    pub(crate) force: bool,
    /// The job fails after this time
    #[arg(long, default_value = "24h", value_parser = parse_duration)]
    pub(crate) timeout: Duration,
    /// Start the job, print its id and don't wait for it
    #[arg(long)]
    pub(crate) detach: bool,
    /// Answer all questions with yes
    #[arg(long, short)]
    pub(crate) yes: bool,
    /// Check whether it would work, and change nothing
    #[arg(long, conflicts_with = "detach")]
    pub(crate) dry_run: bool,
}

impl PrepareArgs {
    /// The request to the coordinator.
    pub(crate) fn spec(&self) -> PrepareSpec {
        PrepareSpec {
            node: self.node.clone(),
            slot: self.slot.clone(),
            expires_seconds: self.expires.as_secs(),
        }
    }
}

impl CompleteArgs {
    /// The request to the coordinator.
    ///
    /// # Errors
    /// If source and target are the same.
    pub(crate) fn spec(&self, parallel: u8) -> Result<CompleteSpec, Failure> {
        if self.node == self.source {
            let text =
                "a node cannot go on from itself: it is named both as --node and as --source";
            return Err(Failure::bad_request(text).on(&self.node));
        }
        let job = JobSpec {
            method: Method::Backup,
            parallel,
            schema_mode: mode(self.schema_sync),
            existing: existing(self.force),
            confirmation: confirmation(self.yes),
            timeout_seconds: self.timeout.as_secs(),
            ..JobSpec::new(self.source.clone(), self.node.clone())
        };
        Ok(CompleteSpec {
            job,
            slot: self.slot.clone(),
            source_lsn: self.source_lsn,
            schema: if self.skip_schema_check {
                SchemaCheck::Skipped
            } else {
                SchemaCheck::Compared
            },
        })
    }
}

/// `init progress`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  steep-repl init progress --node node_b
  steep-repl init progress --node node_b --follow")]
pub(crate) struct ProgressArgs {
    /// The target node
    #[arg(long, value_name = "TARGET")]
    pub(crate) node: NodeId,
    /// Follow until the job ends
    #[arg(long, short)]
    pub(crate) follow: bool,
}

/// `init cancel`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  steep-repl init cancel --node node_b
  steep-repl init cancel --node node_b --keep-data --yes
  steep-repl init cancel --node node_b --force-cleanup")]
pub(crate) struct CancelArgs {
    /// The target node
    #[arg(long, value_name = "TARGET")]
    pub(crate) node: NodeId,
    /// Keep tables and rows on the target
    #[arg(long)]
    pub(crate) keep_data: bool,
    /// Also remove objects that belong to no known job, and don't wait for servers that cannot be
    /// reached: list what remains there
    #[arg(long)]
    pub(crate) force_cleanup: bool,
    /// Don't ask for confirmation
    #[arg(long, short)]
    pub(crate) yes: bool,
}

/// `init adjust`.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("change").required(true).multiple(true))]
#[command(after_help = "\
Examples:
  steep-repl init adjust --node node_b --max-rate 20MB
  steep-repl init adjust --node node_b --max-rate none --parallel 8")]
pub(crate) struct AdjustArgs {
    /// The target node
    #[arg(long, value_name = "TARGET")]
    pub(crate) node: NodeId,
    /// Workers, 1 to 16: more start at once, of too many each ends after its part
    #[arg(long, value_name = "N", group = "change",
          value_parser = clap::value_parser!(u8).range(1..=i64::from(WORKERS_MAX)))]
    pub(crate) parallel: Option<u8>,
    /// Maximum bytes of rows a second, before compression, such as 50MB, or none
    #[arg(long, value_name = "SIZE|none", group = "change", value_parser = MaxRate::parse)]
    pub(crate) max_rate: Option<MaxRate>,
}

/// `init rebuild`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  steep-repl init rebuild --node node_b")]
pub(crate) struct RebuildArgs {
    /// The node that lacks objects
    #[arg(long, value_name = "TARGET")]
    pub(crate) node: NodeId,
}

/// `init TARGET... --from SOURCE`.
#[derive(Debug, Args)]
pub(crate) struct StartArgs {
    /// The target nodes
    #[arg(required = true, value_name = "TARGET")]
    pub(crate) targets: Vec<NodeId>,
    /// The source node
    // Required, yet an option: it is absent with a subcommand.
    #[arg(long, value_name = "SOURCE", required_unless_present = "snapshot")]
    pub(crate) from: Option<NodeId>,
    /// Make them from this snapshot: a stored one, or one that others are being made from now
    #[arg(long, value_name = "ID", conflicts_with_all = ["from", "resume", "method", "include_schemas", "exclude_tables"])]
    pub(crate) snapshot: Option<SnapshotId>,
    #[command(flatten)]
    pub(crate) choices: JobChoices,
    #[command(flatten)]
    pub(crate) merge: MergeChoices,
    /// Continue the target's failed job with the rows it has kept, or follow it if it is running
    #[arg(long)]
    pub(crate) resume: bool,
    /// Start the job, print its id and don't wait for it
    #[arg(long)]
    pub(crate) detach: bool,
    /// Answer all questions with yes
    #[arg(long, short)]
    pub(crate) yes: bool,
    /// Show what would be copied (with --resume: what is kept and what is read again), how the schemas differ, and what preflight finds; change nothing
    #[arg(long, conflicts_with = "detach")]
    pub(crate) dry_run: bool,
}

/// Options of a job, for `init` and `doctor`.
#[derive(Debug, Args)]
pub(crate) struct JobChoices {
    /// How to copy the rows
    #[arg(long, default_value = "snapshot")]
    pub(crate) method: MethodChoice,
    #[command(flatten)]
    pub(crate) load: LoadChoices,
    /// Compression between the agents: auto, none, lz4, zstd or zstd:LEVEL
    #[arg(long, value_name = "HOW", default_value = "auto", value_parser = Compression::parse)]
    pub(crate) compress: Compression,
    #[command(flatten)]
    pub(crate) read: ReadChoices,
    /// What the node does about tables that are created on the source later
    #[arg(long, value_name = "POLICY", default_value = "report")]
    pub(crate) new_tables: NewTablesChoice,
}

/// `--method`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum MethodChoice {
    /// Parallel COPY of one consistent snapshot, agent to agent over QUIC.
    Snapshot,
    /// Everything is read into a spool beside the source, and copied from there meanwhile.
    TwoPhase,
    /// PostgreSQL's own initial copy of a subscription.
    Native,
}

impl StartArgs {
    /// One spec per target.
    ///
    /// # Errors
    /// As [`JobChoices::specs`].
    pub(crate) fn specs(&self) -> Result<Vec<JobSpec>, Failure> {
        let Some(source) = &self.from else {
            return Err(Failure::bad_request("no source is given").hint("name it with --from"));
        };
        self.specs_from(source)
    }

    /// One spec per target, from that source.
    ///
    /// # Errors
    /// As [`JobChoices::specs`].
    pub(crate) fn specs_from(&self, source: &NodeId) -> Result<Vec<JobSpec>, Failure> {
        self.choices
            .specs(&self.targets, source, confirmation(self.yes))
    }
}

impl JobChoices {
    /// Fills in missing options from the settings.
    pub(crate) fn fill(&mut self, settings: &Settings) {
        self.load.fill(settings);
        self.read.yield_to_ddl.get_or_insert(settings.yield_to_ddl);
    }

    /// One spec per target.
    ///
    /// # Errors
    /// If the options contradict each other.
    pub(crate) fn specs(
        &self,
        targets: &[NodeId],
        source: &NodeId,
        confirmation: Confirmation,
    ) -> Result<Vec<JobSpec>, Failure> {
        let method = match self.method {
            MethodChoice::Snapshot => Method::Snapshot,
            MethodChoice::Native => Method::Native,
            MethodChoice::TwoPhase => Method::TwoPhase,
        };
        check_targets(targets, source)?;
        let spec = |target: &NodeId| JobSpec {
            method,
            new_tables: self.new_tables.into(),
            compression: self.compress,
            filter: self.read.filter(),
            large_table_threshold: self.read.large_table_threshold,
            yield_to_ddl: self.read.yield_to_ddl.unwrap_or_default(),
            ..self.load.spec(source, target, confirmation)
        };
        Ok(targets.iter().map(spec).collect())
    }
}
