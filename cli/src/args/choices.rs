//! Options that several commands share: how rows are loaded, and what is read of a source.

use std::time::Duration;

use clap::{Args, ValueEnum};
use steep_protocol::limits::{WORKERS_DEFAULT, WORKERS_MAX};
use steep_protocol::message::job::{
    Confirmation, ExistingRows, JobSpec, SchemaMode, TableFilter, YieldToDdl,
};
use steep_protocol::{ByteCount, Identifier, NodeId, TableName};

use crate::failure::Failure;
use crate::settings::Settings;
use crate::units::{parse_duration, parse_size};

/// How rows are loaded, from a source or from a stored snapshot.
#[derive(Debug, Args)]
pub(crate) struct LoadChoices {
    /// Workers, 1 to 16 [default: 4] [env: STEEP_REPL_PARALLEL]
    #[arg(long, value_name = "N",
          value_parser = clap::value_parser!(u8).range(1..=i64::from(WORKERS_MAX)))]
    pub(crate) parallel: Option<u8>,
    /// What to do if existing tables differ [default: strict] [env: STEEP_REPL_SCHEMA_SYNC]
    #[arg(long, value_name = "MODE")]
    pub(crate) schema_sync: Option<SchemaChoice>,
    /// Empty the target's tables if they contain rows; with --schema-sync auto, also allow
    /// statements that lose data
    #[arg(long)]
    pub(crate) force: bool,
    /// The job fails after this time
    #[arg(long, default_value = "24h", value_parser = parse_duration)]
    pub(crate) timeout: Duration,
    /// Maximum bytes of rows a second, before compression, such as 50MB
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(crate) max_rate: Option<ByteCount>,
}

/// What is read of a source, and how.
#[derive(Debug, Args)]
pub(crate) struct ReadChoices {
    /// Only tables of this schema; may be repeated
    #[arg(long = "include-schema", value_name = "SCHEMA", value_parser = parse_schema)]
    pub(crate) include_schemas: Vec<Identifier>,
    /// Without this table (schema.table); may be repeated
    #[arg(long = "exclude-table", value_name = "TABLE", value_parser = parse_table)]
    pub(crate) exclude_tables: Vec<TableName>,
    /// A database with a table of at least this size is copied through a spool beside the source, if there is
    /// room; such a table is also split finely
    #[arg(long, value_name = "SIZE", default_value = "10GB", value_parser = parse_size)]
    pub(crate) large_table_threshold: ByteCount,
    /// How long a statement on the source may wait for a table being read, such as 10s, or never;
    /// then the table is left to it and read again later [default: 10s] [env:
    /// STEEP_REPL_YIELD_TO_DDL]
    #[arg(long, value_name = "WHEN", value_parser = YieldToDdl::parse)]
    pub(crate) yield_to_ddl: Option<YieldToDdl>,
}

/// `--schema-sync`.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub(crate) enum SchemaChoice {
    /// Any difference stops the job before anything is changed.
    #[default]
    Strict,
    /// Make the target match, if no data is lost.
    Auto,
    /// Show the differences and ask.
    Manual,
}

impl LoadChoices {
    /// Fills in missing options from the settings.
    pub(crate) fn fill(&mut self, settings: &Settings) {
        self.parallel.get_or_insert(settings.parallel);
        self.schema_sync.get_or_insert(settings.schema_sync);
    }

    /// A job with these choices.
    pub(super) fn spec(
        &self,
        source: &NodeId,
        target: &NodeId,
        confirmation: Confirmation,
    ) -> JobSpec {
        JobSpec {
            parallel: self.parallel.unwrap_or(WORKERS_DEFAULT),
            schema_mode: mode(self.schema_sync),
            existing: existing(self.force),
            confirmation,
            max_rate: self.max_rate,
            timeout_seconds: self.timeout.as_secs(),
            ..JobSpec::new(source.clone(), target.clone())
        }
    }
}

impl ReadChoices {
    /// The tables.
    pub(super) fn filter(&self) -> TableFilter {
        TableFilter {
            include_schemas: self.include_schemas.clone(),
            exclude_tables: self.exclude_tables.clone(),
            ..TableFilter::default()
        }
    }
}

pub(super) fn mode(choice: Option<SchemaChoice>) -> SchemaMode {
    match choice {
        Some(SchemaChoice::Strict) | None => SchemaMode::Strict,
        Some(SchemaChoice::Auto) => SchemaMode::Auto,
        Some(SchemaChoice::Manual) => SchemaMode::Manual,
    }
}

pub(super) fn existing(force: bool) -> ExistingRows {
    if force {
        ExistingRows::Replace
    } else {
        ExistingRows::Refuse
    }
}

pub(super) fn confirmation(yes: bool) -> Confirmation {
    if yes {
        Confirmation::Given
    } else {
        Confirmation::Needed
    }
}

/// Refuses a target that is the source or is named twice.
pub(super) fn check_targets(targets: &[NodeId], source: &NodeId) -> Result<(), Failure> {
    for (at, target) in targets.iter().enumerate() {
        if target == source {
            return Err(Failure::bad_request(
                "a node cannot be initialised from itself: it is named both as target and as source",
            )
            .on(target)
            .hint("name another node; `steep-repl nodes` lists them"));
        }
        if targets[..at].contains(target) {
            return Err(Failure::bad_request("the node is named twice").on(target));
        }
    }
    Ok(())
}

/// A schema's name as in the catalog, or in double quotes as in SQL.
pub(super) fn parse_schema(text: &str) -> Result<Identifier, String> {
    let bare = text
        .strip_prefix('"')
        .and_then(|rest| rest.strip_suffix('"'))
        .map_or_else(|| text.to_owned(), |inner| inner.replace("\"\"", "\""));
    Identifier::parse(bare).map_err(|error| error.to_string())
}

pub(super) fn parse_table(text: &str) -> Result<TableName, String> {
    TableName::parse_typed(text).map_err(|error| error.to_string())
}
