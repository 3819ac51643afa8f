//! What a job is asked to do. Chosen once, by the operator; every later message refers to it.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::wire::units::parse_duration;
use crate::wire::{ByteCount, Identifier, JobId, NodeId, TableName, limits};

/// How the rows get there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// Parallel COPY under one exported snapshot, agent to agent over QUIC.
    Snapshot,
    /// As `snapshot`, with a snapshot prepared beforehand.
    TwoPhase,
    /// PostgreSQL's own `CREATE SUBSCRIPTION … (copy_data = true)`.
    Native,
    /// They are there: restored from a backup, which replication goes on from (`init complete`).
    Backup,
}

impl Method {
    /// As `--method` and JSON have it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Snapshot => "snapshot",
            Self::TwoPhase => "two-phase",
            Self::Native => "native",
            Self::Backup => "backup",
        }
    }
}

/// What to do where both nodes have tables and they differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SchemaMode {
    /// Stop.
    Strict,
    /// Make the target match, if nothing is lost.
    Auto,
    /// Warn, and go on once confirmed.
    Manual,
}

/// What to do where the target's tables hold rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExistingRows {
    /// Stop.
    Refuse,
    /// Empty those tables first (`--force`).
    Replace,
}

/// Whether warnings that need a person's word have it (`--yes`, or the answer to the question).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Confirmation {
    /// Not asked yet.
    Needed,
    /// Given.
    Given,
}

/// What a cancelled job leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum CancelledData {
    /// Nothing: tables we made are dropped, tables we filled are emptied.
    Remove,
    /// Tables and rows as they are (`--keep-data`); indexes put aside are built again.
    Keep,
}

/// What the operator wants of compression.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Compression {
    /// Chosen by each sender from what the data and the link do.
    Auto,
    /// None.
    None,
    /// LZ4 blocks.
    Lz4,
    /// Zstandard at that level, 1 to 19.
    Zstd(u8),
}

impl Compression {
    /// Zstandard's level where none is named.
    pub const ZSTD_LEVEL_DEFAULT: u8 = 3;

    /// Reads `auto`, `none`, `lz4`, `zstd` or `zstd:LEVEL`.
    ///
    /// ```
    /// use steep_protocol::message::job::Compression;
    ///
    /// assert_eq!(Compression::parse("zstd:9"), Ok(Compression::Zstd(9)));
    /// assert!(Compression::parse("gzip").is_err());
    /// ```
    ///
    /// # Errors
    /// A sentence that says what is allowed.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "none" => Ok(Self::None),
            "lz4" => Ok(Self::Lz4),
            "zstd" => Ok(Self::Zstd(Self::ZSTD_LEVEL_DEFAULT)),
            _ => text
                .strip_prefix("zstd:")
                .and_then(|level| level.parse().ok())
                .filter(|level| (1..=19).contains(level))
                .map(Self::Zstd)
                .ok_or_else(|| "use auto, none, lz4, zstd or zstd:1 to zstd:19".to_owned()),
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::None => f.write_str("none"),
            Self::Lz4 => f.write_str("lz4"),
            Self::Zstd(level) => write!(f, "zstd:{level}"),
        }
    }
}

/// Which tables take part. Both lists empty: every table of the database but our own.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TableFilter {
    /// Only tables of these schemas, where any are named.
    pub include_schemas: Vec<Identifier>,
    /// And of those, not these tables.
    pub exclude_tables: Vec<TableName>,
}

impl TableFilter {
    /// Whether the filter lets everything through.
    #[must_use]
    pub fn is_everything(&self) -> bool {
        self.include_schemas.is_empty() && self.exclude_tables.is_empty()
    }

    /// Whether that table takes part.
    #[must_use]
    pub fn admits(&self, table: &TableName) -> bool {
        let schema =
            self.include_schemas.is_empty() || self.include_schemas.contains(&table.schema);
        schema && !self.exclude_tables.contains(table)
    }
}

/// One initialisation, as it was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobSpec {
    /// The node that has the rows.
    pub source: NodeId,
    /// The node that gets them.
    pub target: NodeId,
    /// How.
    pub method: Method,
    /// Workers, 1 to [`crate::limits::WORKERS_MAX`].
    pub parallel: u8,
    /// What to do about differences in schema.
    pub schema_mode: SchemaMode,
    /// What to do about rows that are there already.
    pub existing: ExistingRows,
    /// Whether warnings are confirmed.
    pub confirmation: Confirmation,
    /// Compression on the wire.
    pub compression: Compression,
    /// The most COPY bytes a second over all workers, before compression.
    pub max_rate: Option<ByteCount>,
    /// Which tables.
    pub filter: TableFilter,
    /// Tables larger than this are split finely enough that every worker gets several ranges;
    /// smaller ones too where that pays.
    pub large_table_threshold: ByteCount,
    /// The job fails once it has run this long.
    pub timeout_seconds: u64,
    /// How long somebody may wait for a lock that the job holds on the source.
    pub yield_to_ddl: YieldToDdl,
}

impl JobSpec {
    /// A job of which nothing but its ends is chosen: what the commands do where no flag is given.
    /// Nobody has confirmed anything.
    #[must_use]
    pub fn new(source: NodeId, target: NodeId) -> Self {
        Self {
            source,
            target,
            method: Method::Snapshot,
            parallel: limits::WORKERS_DEFAULT,
            schema_mode: SchemaMode::Strict,
            existing: ExistingRows::Refuse,
            confirmation: Confirmation::Needed,
            compression: Compression::Auto,
            max_rate: None,
            filter: TableFilter::default(),
            large_table_threshold: ByteCount(10_000_000_000),
            timeout_seconds: 24 * 3600,
            yield_to_ddl: YieldToDdl::default(),
        }
    }
}

/// How long another session may wait for a table on the source that the job is reading
/// (`--yield-to-ddl`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum YieldToDdl {
    /// So many seconds; the job stops reading the table then.
    After(u32),
    /// Until the table is read.
    Never,
}

impl Default for YieldToDdl {
    fn default() -> Self {
        Self::After(10)
    }
}

impl YieldToDdl {
    /// Reads `10s`, `2m` or `never`.
    ///
    /// # Errors
    /// A sentence that says what is allowed.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text == "never" {
            return Ok(Self::Never);
        }
        let seconds = parse_duration(text).map_err(|why| format!("{why}, or never"))?;
        let seconds = u32::try_from(seconds.as_secs()).map_err(|error| error.to_string())?;
        Ok(Self::After(seconds))
    }

    /// Whether a session that has waited so long is given way to.
    #[must_use]
    pub fn is_due(self, waited_seconds: f64) -> bool {
        match self {
            Self::After(limit) => waited_seconds >= f64::from(limit),
            Self::Never => false,
        }
    }
}

impl fmt::Display for YieldToDdl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::After(seconds) => write!(f, "{seconds}s"),
            Self::Never => f.write_str("never"),
        }
    }
}

/// The names of what a job makes on the servers, all from the job's id: two jobs never meet, and
/// what is left of one can be found by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplicationNames(pub JobId);

impl ReplicationNames {
    /// Every name of ours begins so.
    pub const PREFIX: &'static str = "steep_repl_";

    /// Slot on the source, publication on the source and subscription on the target: one name for
    /// all three, so that each shows where the others are. 27 bytes of `a-z 0-9 _`.
    #[must_use]
    pub fn name(self) -> String {
        format!("{}{}", Self::PREFIX, self.0)
    }

    /// The job whose name that is, if it is one of ours.
    #[must_use]
    pub fn parse(name: &str) -> Option<JobId> {
        name.strip_prefix(Self::PREFIX)?.parse().ok()
    }
}

/// The slots that PostgreSQL's own copy makes on the source, one for each table on its way. They are
/// the target server's to drop, which it cannot do where it no longer reaches the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncSlots {
    /// The subscription's oid on the target.
    pub subscription: u32,
    /// The target server's system identifier (`pg_control_system`).
    pub system: u64,
}

impl SyncSlots {
    /// Whether that is one of them: `pg_<subscription>_sync_<table's oid>_<system>`
    /// (`ReplicationSlotNameForTablesync` in PostgreSQL's tablesync.c).
    #[must_use]
    pub fn include(self, slot: &str) -> bool {
        let table = slot
            .strip_prefix(&format!("pg_{}_sync_", self.subscription))
            .and_then(|rest| rest.strip_suffix(&format!("_{}", self.system)));
        table.is_some_and(|oid| oid.parse::<u32>().is_ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slots_of_postgresqls_own_copy_are_known_by_name() {
        let ours = SyncSlots {
            subscription: 16_390,
            system: 7_332_000_000_000_000_001,
        };
        assert!(ours.include("pg_16390_sync_16385_7332000000000000001"));
        for other in [
            "pg_16391_sync_16385_7332000000000000001",
            "pg_16390_sync_16385_7332000000000000002",
            "pg_16390_sync__7332000000000000001",
            "pg_16390_sync_1_2_7332000000000000001",
            "pg_16390",
            "",
        ] {
            assert!(!ours.include(other), "{other:?} was taken for ours");
        }
    }

    #[test]
    fn how_long_others_may_wait_is_read_and_due_in_time() {
        let limit = YieldToDdl::parse("1m30s").unwrap();
        assert_eq!(limit, YieldToDdl::After(90));
        assert!(!limit.is_due(89.9) && limit.is_due(90.0));
        assert!(!YieldToDdl::parse("never").unwrap().is_due(1e9));
        for bad in ["", "10", "0s", "always"] {
            assert!(YieldToDdl::parse(bad).is_err(), "{bad:?} was taken");
        }
        for text in ["10s", "never"] {
            assert_eq!(YieldToDdl::parse(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn compression_is_read_as_the_contract_writes_it() {
        assert_eq!(Compression::parse("zstd"), Ok(Compression::Zstd(3)));
        assert_eq!(Compression::parse("zstd:19"), Ok(Compression::Zstd(19)));
        for bad in ["", "gzip", "zstd:0", "zstd:20", "zstd:", "lz4:1"] {
            assert!(Compression::parse(bad).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn a_filter_takes_whole_schemas_and_leaves_out_single_tables() {
        let name = |s: &str, t: &str| TableName::new(s, t).unwrap();
        let filter = TableFilter {
            include_schemas: vec![Identifier::parse("app").unwrap()],
            exclude_tables: vec![name("app", "log")],
        };
        assert!(filter.admits(&name("app", "orders")));
        assert!(!filter.admits(&name("app", "log")));
        assert!(!filter.admits(&name("public", "orders")));
        assert!(TableFilter::default().admits(&name("any", "thing")));
    }
}
