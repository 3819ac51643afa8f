//! Facts for preflight, and its findings. Agents gather facts (`agent/src/facts`) in a few catalog
//! queries, whatever the number of tables; the coordinator judges them
//! (`coordinator/src/job/preflight`, pure). A fact is a server's answer, without judgement.

use serde::{Deserialize, Serialize};

use super::feature::Feature;
use super::handover::SlotFacts;
use super::identity::IdentityGroup;
use super::lineage::{Lineage, Tool};
use super::schema::SchemaReview;
use crate::wire::encryption::KeyFacts;
use crate::wire::limits::LISTED_MAX;
use crate::wire::{ByteCount, NodeId};

mod loading;

pub use loading::{
    AlteredFunction, LoadingFacts, SearchPathNeed, SettingDifference, SettingScope, Stops,
};

/// The code of findings about sequences that a detached node could not set to its source's.
pub const SEQUENCE_NOT_TAKEN_OVER: &str = "sequence_not_taken_over";

/// Something that an operator should know before or after a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Its severity.
    pub severity: Severity,
    /// A stable name for scripts, such as `wal_level` or `no_replica_identity`.
    pub code: String,
    /// The node it is about.
    pub node: Option<NodeId>,
    /// What is wrong and where.
    pub what: String,
    /// Why it matters.
    pub why: String,
    /// What to do.
    pub fix: String,
}

/// The severity of a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// For information.
    Info,
    /// The job continues; the finding is shown and recorded.
    Warning,
    /// The job stops before it touches anything.
    Error,
}

/// Names, at most [`LISTED_MAX`], and their total number.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Listed {
    /// The first of them.
    pub names: Vec<String>,
    /// Their total number.
    pub count: u64,
}

impl Listed {
    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Adds others, except those that are named already.
    pub fn add(&mut self, others: &Self) {
        let known = others.names.iter().filter(|name| self.names.contains(name));
        let known = known.count() as u64;
        let fresh: Vec<String> = others
            .names
            .iter()
            .filter(|name| !self.names.contains(name))
            .cloned()
            .collect();
        let named = fresh.len() as u64;
        self.extend(fresh);
        self.count += others.count.saturating_sub(known + named);
    }
}

impl Extend<String> for Listed {
    /// Counts all, keeps the first [`LISTED_MAX`].
    fn extend<I: IntoIterator<Item = String>>(&mut self, all: I) {
        for name in all {
            if self.names.len() < LISTED_MAX {
                self.names.push(name);
            }
            self.count += 1;
        }
    }
}

impl FromIterator<String> for Listed {
    /// Counts all, keeps the first [`LISTED_MAX`].
    fn from_iter<I: IntoIterator<Item = String>>(all: I) -> Self {
        let mut listed = Self::default();
        listed.extend(all);
        listed
    }
}

/// A resource that a server has a fixed number of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capacity {
    /// The setting that limits it (`max_wal_senders`), or `role_connection_limit` and
    /// `database_connection_limit` for the limits that `ALTER ROLE` and `ALTER DATABASE` set.
    pub bound_by: String,
    /// The maximum for the role in use; for connections, without reserved ones.
    pub limit: u64,
    /// Number in use.
    pub used: u64,
}

impl Capacity {
    /// How many are left.
    #[must_use]
    pub fn free(&self) -> u64 {
        self.limit.saturating_sub(self.used)
    }
}

/// Facts about a server, source or target.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct ServerFacts {
    /// `server_version_num`.
    pub version: u32,
    /// Its lineage.
    pub lineage: Lineage,
    /// Database name.
    pub database: String,
    /// Role in use.
    pub role: String,
    /// Whether that role is a superuser.
    pub superuser: bool,
    /// Whether it may replicate, by its own attribute or as a member of a provider's role.
    pub replication: bool,
    /// Whether it may create objects in the database.
    pub can_create: bool,
    /// Whether it may create subscriptions (superuser, or `pg_create_subscription` from 16 on).
    pub can_subscribe: bool,
    /// Whether it may set `session_replication_role`, which disables triggers while rows load.
    pub can_silence_triggers: bool,
    /// Whether it may call `pg_replication_origin_advance`.
    pub can_advance_origin: bool,
    /// Whether the server is a standby.
    pub in_recovery: bool,
    /// Database encoding, as `pg_encoding_to_char` names it.
    pub encoding: String,
    /// Provider and name of the database's collation, such as `libc en_US.UTF-8`.
    pub collation: String,
    /// The version of that collation, where the provider has versions.
    pub collation_version: Option<String>,
    /// Settings that preflight judges, by name: `pg_settings.reset_val`, in the base unit of
    /// `pg_settings.unit`, including what `ALTER ROLE` and `ALTER DATABASE` set for the role in
    /// use. Settings that this version lacks are absent.
    pub settings: Vec<(String, String)>,
    /// Slots, walsenders, workers and connections.
    pub capacity: Vec<Capacity>,
    /// Extensions installed here, with version.
    pub extensions: Vec<(String, String)>,
    /// Seconds by which the server's clock is ahead of the agent's, within half the time of one
    /// query.
    pub clock_ahead_seconds: f64,
    /// Event triggers that fire on DDL of the agent's sessions.
    pub event_triggers: Listed,
    /// Evidence that a pooler distributes one client's statements over different sessions or
    /// servers.
    pub pooled: Option<String>,
    /// Rights of the role in use beyond its own objects: `SUPERUSER`, other attributes, and
    /// PostgreSQL's predefined roles that it is a member of.
    pub powers: Vec<String>,
}

impl ServerFacts {
    /// A setting, if this version has it.
    #[must_use]
    pub fn setting(&self, name: &str) -> Option<&str> {
        let found = self.settings.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }

    /// A numeric setting, in its base unit.
    #[must_use]
    pub fn number(&self, name: &str) -> Option<i64> {
        self.setting(name)?.parse().ok()
    }

    /// The resource that a setting limits, if this version has it.
    #[must_use]
    pub fn capacity(&self, bound_by: &str) -> Option<&Capacity> {
        self.capacity.iter().find(|c| c.bound_by == bound_by)
    }
}

/// Facts about a source.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct SourceFacts {
    /// The server.
    pub server: ServerFacts,
    /// Tables that will be copied (leaf partitions counted; roots and unlogged ones not).
    pub tables: u64,
    /// Their bytes with indexes and TOAST, plus those of materialised views.
    pub total_bytes: ByteCount,
    /// The bytes of those tables without their indexes.
    #[serde(default)]
    pub table_bytes: ByteCount,
    /// The largest of them, without its indexes. A partition counts by itself.
    #[serde(default)]
    pub largest_table: ByteCount,
    /// Room for a spool beside the source: what is free there less a reserve. `None` if the agent has no directory
    /// for one, or cannot look.
    #[serde(default)]
    pub spool_room: Option<ByteCount>,
    /// Tables whose replica identity is not simply a key of ordinary columns, grouped.
    pub identities: Vec<IdentityGroup>,
    /// Unlogged tables, which are neither copied nor replicated.
    pub unlogged: Listed,
    /// Foreign tables, which are not copied.
    pub foreign_tables: Listed,
    /// Materialised views, which are refreshed instead of copied.
    pub materialized_views: Listed,
    /// Features of the schema that another server may lack.
    pub features: Vec<FeatureUse>,
    /// Effects of the filter on everything that is not a table.
    pub filter: FilterFacts,
    /// Names in the filter that match nothing.
    pub unmatched: Vec<UnmatchedFilter>,
    /// Tables with a column of type `xml`, which a server may be built without.
    pub xml: Listed,
    /// Sequences, which replication does not carry.
    pub sequences: u64,
    /// Large objects, which are not copied.
    pub large_objects: u64,
    /// Roles that own something in the database, have privileges on it, or are named in its
    /// policies.
    pub roles: Vec<String>,
    /// Functions of ordinary roles that run while rows are loaded, each with its owner and what
    /// calls it.
    pub owner_code: Listed,
    /// As `owner_code`, those that indexes call, if they are there while rows are loaded.
    pub index_code: Listed,
    /// Tables whose row security applies to the role in use.
    pub row_security: Listed,
    /// Tables with `FORCE ROW LEVEL SECURITY`, by owner.
    pub forced_security: Vec<OwnedTables>,
    /// Tables whose owner lacks a right that applying changes needs.
    pub owner_denied: Listed,
    /// Tables with triggers that also fire for replicated rows.
    pub firing_triggers: Listed,
    /// Tables and sequences that the role in use may not read.
    pub unreadable: Listed,
    /// Tables that the role in use may not publish, because it lacks their owner's rights.
    pub not_owned: Vec<OwnedTables>,
    /// Whether the server accepts a replication connection from the agent, or why not.
    pub replication_link: Option<Result<(), String>>,
    /// Major version of the agent's `pg_dump`, or why there is none.
    pub pg_dump: Option<Result<u32, String>>,
    /// Requirements of its rows.
    pub loading: LoadingFacts,
    /// The prepared slot, if the job uses one.
    pub slot: Option<SlotFacts>,
    /// The agent's key for stored snapshots, if it has one.
    #[serde(default)]
    pub snapshot_key: Option<KeyFacts>,
}

/// Tables of one owner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnedTables {
    /// The role.
    pub owner: String,
    /// The tables.
    pub tables: Listed,
}

/// Facts about a target.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct TargetFacts {
    /// The server.
    pub server: ServerFacts,
    /// Tables to be filled that a subscription writes to, by subscription.
    pub subscribed: Vec<SubscribedTables>,
    /// User tables; if there are none, the schema is created from the source.
    pub user_tables: u64,
    /// Tables to be copied that contain rows.
    pub not_empty: Listed,
    /// Existing tables to be copied whose owner's rights the role in use lacks.
    pub not_owned: Vec<OwnedTables>,
    /// Tables admitted by the filter that the source lacks. They are left alone.
    pub extra_tables: Listed,
    /// Tables in which the target cannot find the row of an UPDATE or DELETE, because its key
    /// differs from the source's.
    pub unfindable: Listed,
    /// Differences between its schema and the source's, and what would be done about them.
    pub review: SchemaReview,
    /// Tables to be copied with triggers that fire on replicated rows, and so on every loaded row.
    pub firing_triggers: Listed,
    /// As [`SourceFacts::forced_security`], for existing tables to be copied.
    pub forced_security: Vec<OwnedTables>,
    /// Roles that bypass row security.
    pub bypassing: Vec<String>,
    /// As [`SourceFacts::owner_code`], for existing tables, including indexes that would stay.
    pub owner_code: Listed,
    /// As `owner_code`, those of indexes that a copy of ours drops and builds again.
    pub index_code: Listed,
    /// Whether the server supports `xml`; `None` if that was not checked, because the source has no such column
    /// or the server did not answer.
    pub xml: Option<bool>,
    /// Whether it supports LZ4 compression of columns; `None` if that could not be checked, also
    /// below.
    pub lz4: Option<bool>,
    /// Whether it was built with ICU.
    pub icu: Option<bool>,
    /// Locales of its operating system, as `pg_collation.collcollate` spells them.
    pub locales: Vec<String>,
    /// Extensions whose files are installed.
    pub extensions_available: Vec<AvailableExtension>,
    /// Roles that exist here.
    pub roles: Vec<String>,
    /// Free bytes of the data directory's file system, if the agent can see it.
    pub disk_free: Option<ByteCount>,
    /// Whether the agents reach each other: the round trip in microseconds, or the error.
    pub agent_link: Option<Result<u64, String>>,
    /// Whether this PostgreSQL reaches the source's, or the error.
    pub server_link: Option<Result<(), String>>,
    /// The database that the source's connection string leads to from here; `None` if the agent does not
    /// reach it.
    pub server_reached: Option<ReachedDatabase>,
    /// Seconds by which the source agent's clock is ahead of this one's.
    pub clock_ahead_seconds: f64,
    /// Requirements of rows there.
    pub loading: LoadingFacts,
    /// Functions of its extensions that are not immutable, spelled like
    /// [`AlteredFunction::function`].
    pub mutable_members: Vec<String>,
    /// Settings that differ from the source's, at most [`LISTED_MAX`].
    pub settings: Vec<SettingDifference>,
    /// Whether the role in use may alter the database.
    pub owns_database: bool,
    /// The agent's key for stored snapshots, if it has one.
    #[serde(default)]
    pub snapshot_key: Option<KeyFacts>,
}

/// A database at the end of a connection string.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReachedDatabase {
    /// The system identifier of its server, as in [`Identity::system`](super::lineage::Identity).
    pub system: u64,
    /// Its oid.
    pub oid: u32,
    /// Its name.
    pub name: String,
}

/// Objects that use a feature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FeatureUse {
    /// The feature.
    pub feature: Feature,
    /// The locale, if the feature is a collation of the operating system; otherwise empty.
    pub locale: String,
    /// The relations that use it, each with the column, index or constraint.
    pub objects: Listed,
}

/// The effects of a filter on a schema.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct FilterFacts {
    /// Objects left out because they depend on excluded tables.
    pub left_out: Listed,
    /// Objects outside the included schemas that included tables need.
    pub along: Listed,
    /// Admitted tables that cannot exist without excluded ones.
    pub split: Listed,
}

/// A name in a filter that matches nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnmatchedFilter {
    /// The option it was given with, such as `--exclude-table`.
    pub option: String,
    /// The name.
    pub name: String,
    /// Similar names that exist.
    pub near: Vec<String>,
}

/// Tables that a subscription writes to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubscribedTables {
    /// The subscription's name.
    pub subscription: String,
    /// What made it.
    pub tool: Tool,
    /// The tables.
    pub tables: Listed,
}

/// An extension that a server can install.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AvailableExtension {
    /// Its name.
    pub name: String,
    /// Whether the role in use may install it: superusers may install any, others only trusted ones
    /// and those that need no superuser.
    pub may_create: bool,
}
