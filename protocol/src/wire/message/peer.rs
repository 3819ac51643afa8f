//! Between two agents. The target's agent dials the source's and opens one stream per request.
//!
//! A request names its job; the source answers only the node that the coordinator named for that
//! job (G7). Bulk answers are frames ([`crate::frame`]), so a schema travels as a part does.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::facts::SettingScope;
use super::job::Compression;
use super::schema::SchemaPage;
use crate::wire::{Epoch, Fault, Identifier, JobId, Lsn, PartNo, TableName, TableNo};

/// What a target asks of a source.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum PeerRequest {
    /// Answered with [`PeerReply::Pong`]: UDP, TLS and the version work between the two.
    Ping {
        /// The job.
        job: JobId,
    },
    /// [`PeerReply::Plan`] pages until `last`.
    FetchPlan {
        /// The job.
        job: JobId,
    },
    /// [`PeerReply::Schema`] pages until `last`: everything the job's filter admits, before any plan
    /// exists, for the comparison of schemas.
    DescribeSchema {
        /// The job.
        job: JobId,
    },
    /// [`PeerReply::FramesFollow`], then SQL text as chunks, then the end frame.
    FetchSchema {
        /// The job.
        job: JobId,
        /// Which section of the dump.
        section: SchemaSection,
    },
    /// [`PeerReply::FramesFollow`], then COPY data as chunks, then the end frame.
    FetchPart {
        /// The job.
        job: JobId,
        /// The snapshot it belongs to.
        epoch: Epoch,
        /// Which.
        part: PartNo,
        /// COPY's format, chosen by the target, which knows both ends' types.
        format: CopyFormat,
        /// Compression for this stream.
        compression: Compression,
    },
    /// [`PeerReply::Sequences`].
    FetchSequences {
        /// The job.
        job: JobId,
    },
    /// [`PeerReply::Conninfo`]: how this node's PostgreSQL is reached by another PostgreSQL.
    FetchConninfo {
        /// The job.
        job: JobId,
    },
    /// [`PeerReply::Settings`]: what decides values there.
    FetchSettings {
        /// The job.
        job: JobId,
    },
}

impl PeerRequest {
    /// The job it is for.
    #[must_use]
    pub fn job(&self) -> JobId {
        match self {
            Self::Ping { job }
            | Self::FetchPlan { job }
            | Self::DescribeSchema { job }
            | Self::FetchSchema { job, .. }
            | Self::FetchPart { job, .. }
            | Self::FetchSequences { job }
            | Self::FetchConninfo { job }
            | Self::FetchSettings { job } => *job,
        }
    }
}

/// What the source answers, one per request unless said otherwise.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum PeerReply {
    /// To a ping.
    Pong {
        /// The source's clock, as microseconds since 1970 UTC.
        unix_micros: i64,
    },
    /// Some tables of the plan.
    Plan {
        /// The consistent point.
        lsn: Lsn,
        /// The source database's encoding, which both sides use as `client_encoding`.
        encoding: String,
        /// At most [`crate::limits::PLAN_PAGE`].
        tables: Vec<TablePlan>,
        /// Nothing follows.
        last: bool,
    },
    /// Some of the schema.
    Schema {
        /// About [`crate::limits::SCHEMA_PAGE_BYTES`].
        page: SchemaPage,
        /// Nothing follows.
        last: bool,
    },
    /// Frames follow on this stream.
    FramesFollow,
    /// Every sequence the filter admits.
    Sequences(Vec<SequenceValue>),
    /// The connection string.
    Conninfo(Secret),
    /// The request failed.
    Fault(Fault),
    /// At most [`crate::limits::LISTED_MAX`] settings.
    Settings(Vec<DatabaseSetting>),
}

/// Sections of a schema dump, as `pg_dump --section` names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SchemaSection {
    /// Types, functions, tables, views, defaults: what rows need.
    PreData,
    /// Indexes, constraints, triggers, rules, policies.
    PostData,
    /// Rows that users have put into tables of extensions.
    ExtensionRows,
}

/// A setting that sessions of a database begin with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatabaseSetting {
    /// Its name.
    pub name: String,
    /// Its value. Applications keep keys in settings of their own.
    pub value: Secret,
    /// Where it is made.
    pub scope: SettingScope,
}

/// COPY's format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum CopyFormat {
    /// Where both ends have the same types with send and receive functions.
    Binary,
    /// Everywhere else.
    Text,
}

/// One table of a plan, as the target needs it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TablePlan {
    /// Its number.
    pub no: TableNo,
    /// Its name.
    pub name: TableName,
    /// The columns to copy, in order; generated ones are left out.
    pub columns: Vec<ColumnPlan>,
    /// Its first part.
    pub first_part: PartNo,
    /// One per part. A table that is not split has one open range.
    pub ranges: Vec<CtidRange>,
}

/// A column to copy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ColumnPlan {
    /// Its name.
    pub name: Identifier,
    /// Its type as `format_type(oid, typmod)` writes it with an empty `search_path`.
    pub type_name: String,
    /// Whether the type's binary form means the same on another server of any supported version.
    pub binary: bool,
}

/// Heap pages from `from` up to, not including, `to`; open where `None`. The first range of a table
/// is open below and the last is open above, so that no page is outside of all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CtidRange {
    /// The first page.
    pub from: Option<u32>,
    /// The page after the last.
    pub to: Option<u32>,
}

impl CtidRange {
    /// The whole table.
    pub const ALL: Self = Self {
        from: None,
        to: None,
    };
}

/// A sequence's position.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SequenceValue {
    /// Its name.
    pub name: TableName,
    /// `last_value`.
    pub last_value: i64,
    /// Whether that value has been given out.
    pub is_called: bool,
}

/// Text that never reaches a log, an error or a terminal.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret(String);

impl Secret {
    /// Wraps it.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself, for the one place that needs it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}
