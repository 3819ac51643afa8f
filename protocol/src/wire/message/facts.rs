//! What preflight looks at, and what it finds. Agents gather facts; the coordinator judges them
//! (`coordinator/src/job/preflight.rs`, pure).

use serde::{Deserialize, Serialize};

use crate::wire::{ByteCount, NodeId, TableName};

/// Something a person should know before or after a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// How grave.
    pub severity: Severity,
    /// A stable name for scripts, such as `wal_level` or `no_replica_identity`.
    pub code: String,
    /// The node it is about.
    pub node: Option<NodeId>,
    /// What is the case and where.
    pub what: String,
    /// Why it matters.
    pub why: String,
    /// What to do.
    pub fix: String,
}

/// How grave a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Good to know.
    Info,
    /// The job goes on; the finding is shown and recorded.
    Warning,
    /// The job stops before it touches anything.
    Error,
}

/// Names, cut off at [`crate::limits::LISTED_MAX`], and how many there are in all.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Listed {
    /// The first of them.
    pub names: Vec<String>,
    /// All of them.
    pub count: u64,
}

/// What is true of a server, whichever end it is.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct ServerFacts {
    /// `server_version_num`.
    pub version: u32,
    /// `pg_control_system().system_identifier` and the database's oid: the same on both ends means
    /// that source and target are one database.
    pub database_identity: String,
    /// Database name.
    pub database: String,
    /// Role in use.
    pub role: String,
    /// Whether that role is a superuser.
    pub superuser: bool,
    /// Whether it may replicate.
    pub replication: bool,
    /// Whether it may create objects in the database.
    pub can_create: bool,
    /// Whether it may create subscriptions (superuser, or `pg_create_subscription` from 16 on).
    pub can_subscribe: bool,
    /// Whether the server is a standby.
    pub in_recovery: bool,
    /// Server encoding.
    pub encoding: String,
    /// `datcollate`, provider and, where known, the collation's version.
    pub collation: String,
    /// Settings by name, of those that preflight judges; as `current_setting` writes them.
    pub settings: Vec<(String, String)>,
    /// Slots, walsenders and connections in use, by the name of the setting that bounds them.
    pub in_use: Vec<(String, u64)>,
    /// Extensions installed here, with version.
    pub extensions: Vec<(String, String)>,
    /// Seconds the server's clock is ahead of the agent's.
    pub clock_ahead_seconds: f64,
    /// Whether consecutive connections reached different servers or a pooler's shared session.
    pub pooled: Option<String>,
}

/// What is true of a source.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct SourceFacts {
    /// The server.
    pub server: ServerFacts,
    /// Tables that will be copied (leaf partitions counted, roots not).
    pub tables: u64,
    /// Their bytes with indexes and TOAST.
    pub total_bytes: ByteCount,
    /// Tables without a replica identity.
    pub without_identity: Listed,
    /// Unlogged tables, whose changes are not replicated.
    pub unlogged: Listed,
    /// Foreign tables, which are not copied.
    pub foreign_tables: Listed,
    /// Materialised views, which are refreshed and not copied.
    pub materialized_views: Listed,
    /// Sequences, which are set once at the end.
    pub sequences: u64,
    /// Large objects, which are not copied.
    pub large_objects: u64,
    /// Roles that own or are granted something.
    pub roles: Vec<String>,
    /// Tables whose row security the role in use does not bypass.
    pub row_security: Listed,
    /// Tables the role in use may not read.
    pub unreadable: Listed,
    /// `pg_dump` beside the agent: its major version, or why there is none.
    pub pg_dump: Option<Result<u32, String>>,
}

/// What is true of a target.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct TargetFacts {
    /// The server.
    pub server: ServerFacts,
    /// User tables there; with none, the schema is created from the source.
    pub user_tables: u64,
    /// Of the tables to be copied, those that hold rows.
    pub not_empty: Listed,
    /// How its schema differs from the source's, where it has one.
    pub differences: Vec<SchemaDifference>,
    /// Extensions that could be installed here.
    pub extensions_available: Vec<String>,
    /// Roles that exist here.
    pub roles: Vec<String>,
    /// Bytes free where the data directory is, if the agent can see it.
    pub disk_free: Option<ByteCount>,
    /// Whether the agents reach each other: the round trip in microseconds, or why not.
    pub agent_link: Option<Result<u64, String>>,
    /// Whether this PostgreSQL reaches the source's, or why not.
    pub server_link: Option<Result<(), String>>,
    /// Seconds the source agent's clock is ahead of this one's.
    pub clock_ahead_seconds: f64,
}

/// One way in which two schemas differ.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SchemaDifference {
    /// The table.
    pub table: TableName,
    /// The column, unless the whole table is missing.
    pub column: Option<String>,
    /// `missing`, `extra`, `type_change`, `nullability_change`, `generation_change`,
    /// `identity_change`, seen from the target.
    pub kind: String,
    /// The source's definition.
    pub source: String,
    /// The target's definition.
    pub target: String,
}
