//! What preflight looks at, and what it finds. Agents gather facts (`agent/src/facts`), in a few
//! catalog queries whatever the number of tables; the coordinator judges them
//! (`coordinator/src/job/preflight`, pure). A fact is what a server said, never an opinion.

use serde::{Deserialize, Serialize};

use super::feature::Feature;
use super::handover::SlotFacts;
use super::identity::IdentityGroup;
use super::lineage::{Lineage, Tool};
use super::schema::SchemaReview;
use crate::wire::limits::LISTED_MAX;
use crate::wire::{ByteCount, NodeId};

mod loading;

pub use loading::{
    AlteredFunction, LoadingFacts, SearchPathNeed, SettingDifference, SettingScope, Stops,
};

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
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Good to know.
    Info,
    /// The job goes on; the finding is shown and recorded.
    Warning,
    /// The job stops before it touches anything.
    Error,
}

/// Names, cut off at [`LISTED_MAX`], and how many there are in all.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Listed {
    /// The first of them.
    pub names: Vec<String>,
    /// All of them.
    pub count: u64,
}

impl Listed {
    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
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

/// Something a server has a fixed number of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capacity {
    /// The setting that bounds it (`max_wal_senders`), or `role_connection_limit` and
    /// `database_connection_limit` for the bounds that `ALTER ROLE` and `ALTER DATABASE` set.
    pub bound_by: String,
    /// How many there can be for the role in use: of connections, without those that are reserved
    /// for others.
    pub limit: u64,
    /// How many are taken now.
    pub used: u64,
}

impl Capacity {
    /// How many are left.
    #[must_use]
    pub fn free(&self) -> u64 {
        self.limit.saturating_sub(self.used)
    }
}

/// What is true of a server, whichever end it is.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct ServerFacts {
    /// `server_version_num`.
    pub version: u32,
    /// Which database it is, whose changes it applies, and what of ours is there.
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
    /// Whether it may set `session_replication_role`, which keeps triggers quiet while rows load.
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
    /// Settings that preflight judges, by name: `pg_settings.reset_val`, so in the base unit that
    /// `pg_settings.unit` names, and with what `ALTER ROLE` and `ALTER DATABASE` set for the role in
    /// use. Settings this version does not have are absent.
    pub settings: Vec<(String, String)>,
    /// Slots, walsenders, workers and connections.
    pub capacity: Vec<Capacity>,
    /// Extensions installed here, with version.
    pub extensions: Vec<(String, String)>,
    /// Seconds the server's clock is ahead of the agent's; within half the time of one query.
    pub clock_ahead_seconds: f64,
    /// Event triggers that fire on what a session of the agent makes or drops.
    pub event_triggers: Listed,
    /// How it was seen that something between the agent and the server hands one client's statements
    /// to different sessions or servers.
    pub pooled: Option<String>,
    /// What the role in use may do beyond its own objects: `SUPERUSER`, other attributes, and
    /// PostgreSQL's own roles that it has.
    pub powers: Vec<String>,
}

impl ServerFacts {
    /// A setting, where this version has it.
    #[must_use]
    pub fn setting(&self, name: &str) -> Option<&str> {
        let found = self.settings.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }

    /// A setting that is a number, in its base unit.
    #[must_use]
    pub fn number(&self, name: &str) -> Option<i64> {
        self.setting(name)?.parse().ok()
    }

    /// What that setting bounds, where this version has it.
    #[must_use]
    pub fn capacity(&self, bound_by: &str) -> Option<&Capacity> {
        self.capacity.iter().find(|c| c.bound_by == bound_by)
    }
}

/// What is true of a source.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct SourceFacts {
    /// The server.
    pub server: ServerFacts,
    /// Tables that will be copied (leaf partitions counted; roots and unlogged ones not).
    pub tables: u64,
    /// Their bytes with indexes and TOAST, and those of materialised views.
    pub total_bytes: ByteCount,
    /// Tables whose replica identity is not simply a key of ordinary columns, grouped.
    pub identities: Vec<IdentityGroup>,
    /// Unlogged tables, which are neither copied nor replicated.
    pub unlogged: Listed,
    /// Foreign tables, which are not copied.
    pub foreign_tables: Listed,
    /// Materialised views, which are refreshed and not copied.
    pub materialized_views: Listed,
    /// What the schema uses that another server may lack.
    pub features: Vec<FeatureUse>,
    /// What the filter makes of everything that is not a table.
    pub filter: FilterFacts,
    /// Names in the filter that name nothing here.
    pub unmatched: Vec<UnmatchedFilter>,
    /// Tables with a column of type `xml`, which a server may have been built without.
    pub xml: Listed,
    /// Sequences, which are set once at the end.
    pub sequences: u64,
    /// Large objects, which are not copied.
    pub large_objects: u64,
    /// Roles that own, are granted, or are named in a policy on something in the database.
    pub roles: Vec<String>,
    /// Functions of ordinary roles that rows of the admitted tables call while they are loaded, each with
    /// its owner and what calls it.
    pub owner_code: Listed,
    /// Tables whose row security the role in use does not bypass.
    pub row_security: Listed,
    /// Tables with `FORCE ROW LEVEL SECURITY`, by owner.
    pub forced_security: Vec<OwnedTables>,
    /// Tables whose owner lacks a right that applying changes takes.
    pub owner_denied: Listed,
    /// Tables with triggers that are enabled for replicated rows as well.
    pub firing_triggers: Listed,
    /// Tables and sequences the role in use may not read.
    pub unreadable: Listed,
    /// Tables whose owner's rights the role in use does not have, and so may not publish.
    pub not_owned: Listed,
    /// Whether the server takes a replication connection from the agent, or why not.
    pub replication_link: Option<Result<(), String>>,
    /// `pg_dump` beside the agent: its major version, or why there is none.
    pub pg_dump: Option<Result<u32, String>>,
    /// What its rows need.
    pub loading: LoadingFacts,
    /// The prepared slot, where the job goes on from one.
    pub slot: Option<SlotFacts>,
}

/// Tables of one owner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnedTables {
    /// The role.
    pub owner: String,
    /// The tables.
    pub tables: Listed,
}

/// What is true of a target.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct TargetFacts {
    /// The server.
    pub server: ServerFacts,
    /// Tables to be filled that a subscription writes to, by subscription.
    pub subscribed: Vec<SubscribedTables>,
    /// User tables there; with none, the schema is created from the source.
    pub user_tables: u64,
    /// Of the tables to be copied, those that hold rows.
    pub not_empty: Listed,
    /// Of the tables to be copied, those that exist and whose owner's rights the role in use does
    /// not have.
    pub not_owned: Listed,
    /// Tables that the filter admits and the source does not have. They are left alone.
    pub extra_tables: Listed,
    /// Tables of both in which this end finds no row that an UPDATE or DELETE is about, since its key is
    /// another than the source's.
    pub unfindable: Listed,
    /// How its schema differs from the source's, where it has one, and what would be done about it.
    pub review: SchemaReview,
    /// Tables to be copied that have triggers which fire on replicated rows, and so on every row
    /// that is loaded.
    pub firing_triggers: Listed,
    /// As [`SourceFacts::forced_security`], of the tables to be copied that are there.
    pub forced_security: Vec<OwnedTables>,
    /// Roles that bypass row security.
    pub bypassing: Vec<String>,
    /// As [`SourceFacts::owner_code`], of the tables that are there.
    pub owner_code: Listed,
    /// Whether the server knows `xml`; `None` where it could not be asked.
    pub xml: Option<bool>,
    /// Whether columns can be compressed by LZ4; `None` where it could not be asked, as of the next.
    pub lz4: Option<bool>,
    /// Whether it was built with ICU.
    pub icu: Option<bool>,
    /// Locales of the operating system that it knows, as `pg_collation.collcollate` spells them.
    pub locales: Vec<String>,
    /// Extensions whose files are here.
    pub extensions_available: Vec<AvailableExtension>,
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
    /// What rows need there.
    pub loading: LoadingFacts,
    /// Functions of extensions there that are not immutable, as [`AlteredFunction::function`] spells them.
    pub mutable_members: Vec<String>,
    /// Settings that the source has otherwise, at most [`LISTED_MAX`].
    pub settings: Vec<SettingDifference>,
    /// Whether the role in use may alter the database.
    pub owns_database: bool,
}

/// Objects that use a feature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FeatureUse {
    /// The feature.
    pub feature: Feature,
    /// The locale, where the feature is a collation of the operating system; else empty.
    pub locale: String,
    /// What uses it: relations, with the column, index or constraint that does.
    pub objects: Listed,
}

/// What a filter makes of a schema.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct FilterFacts {
    /// Objects that depend on tables that are left out, and so are left out with them.
    pub left_out: Listed,
    /// Objects outside the included schemas that the tables in them need, and so come along.
    pub along: Listed,
    /// Tables that the filter admits and that cannot be made without those it leaves out.
    pub split: Listed,
}

/// A name in a filter that names nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnmatchedFilter {
    /// The option it was given with, such as `--exclude-table`.
    pub option: String,
    /// The name.
    pub name: String,
    /// Names that are there and close to it.
    pub near: Vec<String>,
}

/// Tables that a subscription writes to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubscribedTables {
    /// The subscription's name.
    pub subscription: String,
    /// What made it.
    pub tool: Tool,
    /// Which.
    pub tables: Listed,
}

/// An extension that a server could install.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AvailableExtension {
    /// Its name.
    pub name: String,
    /// Whether the role in use may install it: a superuser any, others what is trusted or needs no
    /// superuser.
    pub may_create: bool,
}
