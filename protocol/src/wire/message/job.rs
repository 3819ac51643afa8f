//! The specification of a job. The operator chooses it once; later messages refer to it.

use std::fmt;

use serde::{Deserialize, Serialize};

pub use super::filter::TableFilter;
use crate::wire::units::parse_duration;
use crate::wire::{ByteCount, JobId, NodeId, limits};

/// How rows are copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// Parallel COPY under one exported snapshot, agent to agent over QUIC; through a spool where a table is large.
    Snapshot,
    /// Everything is read into a spool beside the source, and copied from there meanwhile. The source's transaction
    /// ends with the reading.
    TwoPhase,
    /// PostgreSQL's own `CREATE SUBSCRIPTION … (copy_data = true)`.
    Native,
    /// Not at all: the target was restored from a backup (`init complete`).
    Backup,
    /// From a stored snapshot (`snapshot apply`).
    Stored,
    /// The same without replication (`snapshot apply --no-subscribe`): the target has the snapshot's rows and
    /// follows nobody.
    Load,
    /// Like a snapshot, of tables that join the replication of a node that follows (`tables add`).
    Add,
    /// Not at all: tables leave the replication of a node that follows (`tables drop`).
    Drop,
    /// Like a snapshot, of tables that a node follows already: they get new rows, all at once (`reinit`).
    Reinit,
    /// Not at all: both nodes have rows of their own, which are merged (`--mode bidirectional-merge`). Each of the two has
    /// such a job, with the other as its source.
    Merge,
}

impl Method {
    /// The name in `--method` and JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Snapshot => "snapshot",
            Self::TwoPhase => "two-phase",
            Self::Native => "native",
            Self::Backup => "backup",
            Self::Stored => "stored",
            Self::Load => "load",
            Self::Add => "add",
            Self::Drop => "drop",
            Self::Reinit => "reinit",
            Self::Merge => "bidirectional-merge",
        }
    }

    /// Whether the rows come from a stored snapshot.
    #[must_use]
    pub fn is_from_store(self) -> bool {
        match self {
            Self::Stored | Self::Load => true,
            Self::Snapshot
            | Self::TwoPhase
            | Self::Native
            | Self::Backup
            | Self::Add
            | Self::Drop
            | Self::Reinit
            | Self::Merge => false,
        }
    }

    /// Whether it works on some tables of a node that follows, while the replication of all others goes on.
    #[must_use]
    pub fn changes_tables(self) -> bool {
        match self {
            Self::Add | Self::Drop | Self::Reinit => true,
            Self::Snapshot
            | Self::TwoPhase
            | Self::Native
            | Self::Backup
            | Self::Stored
            | Self::Load
            | Self::Merge => false,
        }
    }

    /// Whether the target follows its source once the rows are there.
    #[must_use]
    pub fn follows(self) -> bool {
        match self {
            Self::Snapshot
            | Self::TwoPhase
            | Self::Native
            | Self::Backup
            | Self::Stored
            | Self::Add
            | Self::Drop
            | Self::Reinit
            | Self::Merge => true,
            Self::Load => false,
        }
    }
}

/// What to do about existing tables that differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SchemaMode {
    /// Stop.
    Strict,
    /// Make the target match, if nothing is lost.
    Auto,
    /// Warn, and continue once confirmed.
    Manual,
}

/// What to do about rows in the target's tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExistingRows {
    /// Stop.
    Refuse,
    /// Empty those tables first (`--force`).
    Replace,
}

/// Whether the operator has confirmed warnings that require it (`--yes`, or the answer to the
/// prompt).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Confirmation {
    /// Not asked yet.
    Needed,
    /// Given.
    Given,
}

/// What a cancelled job leaves behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum CancelledData {
    /// Nothing: created tables are dropped, filled tables are emptied.
    Remove,
    /// Tables and rows (`--keep-data`); dropped indexes are rebuilt.
    Keep,
    /// Tables and rows, of a replica that stops following for good: they are its own from now on, and its
    /// sequences are set to the source's.
    Detach,
}

/// The requested compression.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Compression {
    /// Each sender chooses by data and link.
    Auto,
    /// None.
    None,
    /// LZ4 frames.
    Lz4,
    /// Zstandard at that level, 1 to 19.
    Zstd(u8),
}

impl Compression {
    /// Zstandard's default level.
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
    /// A sentence that names the allowed values.
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

/// The specification of one initialisation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobSpec {
    /// The source node.
    pub source: NodeId,
    /// The target node.
    pub target: NodeId,
    /// The method.
    pub method: Method,
    /// Workers, 1 to [`crate::limits::WORKERS_MAX`].
    pub parallel: u8,
    /// What to do about schema differences.
    pub schema_mode: SchemaMode,
    /// What to do about tables that a target with other tables lacks.
    #[serde(default)]
    pub absent: AbsentTables,
    /// What to do about existing rows.
    pub existing: ExistingRows,
    /// Whether warnings are confirmed.
    pub confirmation: Confirmation,
    /// Compression on the wire.
    pub compression: Compression,
    /// Maximum COPY bytes a second over all workers, before compression.
    pub max_rate: Option<ByteCount>,
    /// The tables.
    pub filter: TableFilter,
    /// With a table of at least this size, a database is copied through a spool beside its source, if there is
    /// room. Larger tables are also split finely enough for every worker to get several ranges; smaller ones
    /// are split where it pays.
    pub large_table_threshold: ByteCount,
    /// The job fails after this many seconds.
    pub timeout_seconds: u64,
    /// How long others may wait for a lock that the job holds on the source.
    pub yield_to_ddl: YieldToDdl,
    /// What the node does about tables that are created on the source later.
    #[serde(default)]
    pub new_tables: NewTables,
}

impl JobSpec {
    /// A job with default options. Nothing is confirmed.
    #[must_use]
    pub fn new(source: NodeId, target: NodeId) -> Self {
        Self {
            source,
            target,
            method: Method::Snapshot,
            parallel: limits::WORKERS_DEFAULT,
            schema_mode: SchemaMode::Strict,
            absent: AbsentTables::Differ,
            existing: ExistingRows::Refuse,
            confirmation: Confirmation::Needed,
            compression: Compression::Auto,
            max_rate: None,
            filter: TableFilter::default(),
            large_table_threshold: ByteCount(10_000_000_000),
            timeout_seconds: 24 * 3600,
            yield_to_ddl: YieldToDdl::default(),
            new_tables: NewTables::default(),
        }
    }
}

/// What a node that follows does about tables that are created on its source later (`--new-tables`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NewTables {
    /// They are reported.
    #[default]
    Report,
    /// They are reported, copied and followed.
    Add,
}

impl NewTables {
    /// The name on the command line and in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Report => "report",
            Self::Add => "add",
        }
    }
}

/// What a table is that a target lacks although it has others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum AbsentTables {
    /// A difference of the schemas.
    #[default]
    Differ,
    /// Created like the source's, with what it needs, if nothing else differs.
    Created,
}

/// How long another session may wait for a table that the job is reading on the source
/// (`--yield-to-ddl`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum YieldToDdl {
    /// That many seconds; then the job stops reading the table.
    After(u32),
    /// Until the table has been read.
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
    /// A sentence that names the allowed values.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text == "never" {
            return Ok(Self::Never);
        }
        let seconds = parse_duration(text).map_err(|why| format!("{why}, or never"))?;
        let seconds = u32::try_from(seconds.as_secs()).map_err(|error| error.to_string())?;
        Ok(Self::After(seconds))
    }

    /// Whether a session that has waited so long must be let through.
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

/// The names of a job's objects on the servers. They derive from the job's id, so jobs never
/// collide and leftovers can be found by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplicationNames(pub JobId);

impl ReplicationNames {
    /// The prefix of all our names.
    pub const PREFIX: &'static str = "steep_repl_";

    /// The one name of the slot and publication on the source and the subscription on the target,
    /// so that each leads to the others. 27 bytes of `a-z 0-9 _`.
    #[must_use]
    pub fn name(self) -> String {
        format!("{}{}", Self::PREFIX, self.0)
    }

    /// The job with that name, if it is one of ours.
    #[must_use]
    pub fn parse(name: &str) -> Option<JobId> {
        name.strip_prefix(Self::PREFIX)?.parse().ok()
    }
}

/// The slots that PostgreSQL's own copy creates on the source, one per table being copied. The
/// target server drops them, unless it can no longer reach the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncSlots {
    /// The subscription's oid on the target.
    pub subscription: u32,
    /// The target server's system identifier (`pg_control_system`).
    pub system: u64,
}

impl SyncSlots {
    /// Whether that slot is one of them: `pg_<subscription>_sync_<table's oid>_<system>`
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
}
