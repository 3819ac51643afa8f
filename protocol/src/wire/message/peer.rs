//! Messages between two agents. The target's agent dials the source's and opens one stream per
//! request.
//!
//! A request names its job; the source answers only the node that the coordinator named for that
//! job (G7). Bulk answers are frames ([`crate::frame`]), so a schema is sent like a part.
//!
//! Targets of one shared snapshot also ask one another, with [`PeerRequest::FetchKept`], for parts that
//! they have received. The source says whom to ask, and what has to arrive ([`PartSum`]).

use std::fmt;

use serde::{Deserialize, Serialize};

use super::facts::SettingScope;
use super::handover::Replication;
use super::job::Compression;
use super::schema::SchemaPage;
use crate::wire::{
    ByteCount, Epoch, Fault, Identifier, JobId, Lsn, NodeId, PartNo, RowCount, SnapshotId, Sum,
    TableName, TableNo,
};

/// A request of a target to a source.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum PeerRequest {
    /// Answered with [`PeerReply::Pong`]: checks UDP, TLS and the version.
    Ping {
        /// The job.
        job: JobId,
    },
    /// Answered with [`PeerReply::Plan`] pages until `last`.
    FetchPlan {
        /// The job.
        job: JobId,
    },
    /// Answered with [`PeerReply::Schema`] pages until `last`: everything the job's filter admits,
    /// for the comparison of schemas before a plan exists.
    DescribeSchema {
        /// The job.
        job: JobId,
    },
    /// Answered with [`PeerReply::FramesFollow`], then SQL text as chunks, then the end frame.
    FetchSchema {
        /// The job.
        job: JobId,
        /// The section of the dump.
        section: SchemaSection,
    },
    /// Answered with [`PeerReply::FramesFollow`], then COPY data as chunks, then the end frame.
    FetchPart {
        /// The job.
        job: JobId,
        /// The part's snapshot.
        epoch: Epoch,
        /// Its number.
        part: PartNo,
        /// The format of COPY, chosen by the target, which knows both ends' types.
        format: CopyFormat,
        /// Compression for this stream.
        compression: Compression,
    },
    /// Answered with [`PeerReply::Sequences`].
    FetchSequences {
        /// The job.
        job: JobId,
    },
    /// Answered with [`PeerReply::Conninfo`]: how another PostgreSQL connects to this one.
    FetchConninfo {
        /// The job.
        job: JobId,
    },
    /// Answered with [`PeerReply::Settings`]: settings that affect values.
    FetchSettings {
        /// The job.
        job: JobId,
    },
    /// Of a shared snapshot. Answered with [`PeerReply::Part`] and that part's frames,
    /// [`PeerReply::AskPeer`] or [`PeerReply::Later`].
    NextPart(NextPart),
    /// What became of parts of a shared snapshot that the target received. Answered with
    /// [`PeerReply::Noted`].
    PartsReceived {
        /// The job.
        job: JobId,
        /// Those that others may fetch here.
        kept: Vec<PartAs>,
        /// Those that are only in the target's database; with `kept`, at most
        /// [`crate::limits::RECEIVED_MAX`].
        dropped: Vec<PartAs>,
    },
    /// To another target of a shared snapshot. Answered like [`PeerRequest::FetchPart`].
    FetchKept(FetchKept),
    /// Those that were stored with the job's snapshot. Answered with [`PeerReply::Sequences`].
    FetchStoredSequences {
        /// The job.
        job: JobId,
    },
    /// Move the tables of an earlier epoch's publication to the present one's, as far as nobody is writing to them.
    /// Answered with [`PeerReply::Moved`] once the earlier epoch's slot has confirmed all changes from before.
    MoveTables {
        /// The job.
        job: JobId,
        /// The earlier epoch's.
        from: Replication,
        /// The present one.
        into: JobId,
    },
    /// Drop publication and slot of an earlier epoch that has no tables any more. Answered with
    /// [`PeerReply::Noted`].
    DropEpoch {
        /// The job.
        job: JobId,
        /// The epoch's.
        epoch: Replication,
    },
    /// Wait until an earlier epoch's slot has confirmed a fence. Answered with [`PeerReply::Passed`].
    PassFence {
        /// The job.
        job: JobId,
        /// The epoch's.
        epoch: Replication,
    },
    /// Compare rows. Answered with [`PeerReply::Noted`]; then the stream is the conversation of
    /// [`super::verify`].
    Verify {
        /// The job.
        job: JobId,
    },
    /// How far sequences are used: all that the filter admits, or, if the target was admitted for a replication,
    /// of those that tables own only the published tables'. Answered with [`PeerReply::SequencesUsed`].
    FetchSequencesUsed {
        /// The job.
        job: JobId,
    },
    /// Take the job's tables, with everything attached to them, out of the publication that the target follows.
    /// Answered with [`PeerReply::Noted`].
    LeaveTables {
        /// The job.
        job: JobId,
    },
}

/// Arguments of [`PeerRequest::FetchKept`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FetchKept {
    /// The job that asks.
    pub job: JobId,
    /// Its attempt.
    pub epoch: Epoch,
    /// The snapshot.
    pub snapshot: SnapshotId,
    /// The snapshot's position: the same id may have been opened anew.
    pub lsn: Lsn,
    /// Which part.
    pub part: PartAs,
}

/// Arguments of [`PeerRequest::NextPart`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NextPart {
    /// The job.
    pub job: JobId,
    /// Its attempt.
    pub epoch: Epoch,
    /// Parts to choose one of, the most wanted first; at most [`crate::limits::WANTED_MAX`].
    pub wanted: Vec<PartAs>,
    /// Targets that may be named in the answer; at most [`crate::limits::ASKED_MAX`].
    pub peers: Vec<NodeId>,
    /// Could not deliver the first of these parts.
    pub failed: Option<NodeId>,
    /// What happens to the part once it is loaded.
    pub keeping: Keeping,
    /// What to do while all these parts are on their way to other targets.
    pub patience: Patience,
    /// Compression for this stream.
    pub compression: Compression,
}

/// A part in the format of COPY that a target reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PartAs {
    /// Its number.
    pub part: PartNo,
    /// The format.
    pub format: CopyFormat,
}

/// What the source sent of a part, so that no target can pass on anything else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartSum {
    /// BLAKE3 of its frames' heads in order, which hold the digests of its chunks.
    pub heads: Sum,
    /// Its rows.
    pub rows: RowCount,
    /// Its COPY bytes.
    pub bytes: ByteCount,
}

/// Whether a target keeps a part for others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Keeping {
    /// It will, if it can.
    Intended,
    /// It has no room for any.
    No,
}

/// What a target does where no part can be had at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Patience {
    /// It has other parts to ask for.
    None,
    /// It waits for some seconds, then has the part read again.
    Some,
}

impl PeerRequest {
    /// The job of the request.
    #[must_use]
    pub fn job(&self) -> JobId {
        match self {
            Self::Ping { job }
            | Self::FetchPlan { job }
            | Self::DescribeSchema { job }
            | Self::FetchSchema { job, .. }
            | Self::FetchPart { job, .. }
            | Self::FetchSequences { job }
            | Self::FetchStoredSequences { job }
            | Self::FetchSequencesUsed { job }
            | Self::FetchConninfo { job }
            | Self::FetchSettings { job }
            | Self::MoveTables { job, .. }
            | Self::DropEpoch { job, .. }
            | Self::PassFence { job, .. }
            | Self::LeaveTables { job }
            | Self::Verify { job }
            | Self::PartsReceived { job, .. }
            | Self::FetchKept(FetchKept { job, .. })
            | Self::NextPart(NextPart { job, .. }) => *job,
        }
    }
}

/// How far a source's sequences are used. One that never gave out a value is not among them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SequencesUsed {
    /// Those that can be read.
    pub values: Vec<UsedSequence>,
    /// Some of those that the agent's role may not read; at most [`crate::limits::SEQUENCES_NAMED`].
    pub unreadable: Vec<TableName>,
    /// Some of those that somebody has locked, each with who; at most [`crate::limits::SEQUENCES_NAMED`].
    pub locked: Vec<String>,
}

/// How far a sequence is used, and whose it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsedSequence {
    /// Its name.
    pub name: TableName,
    /// The last value that it gave out.
    pub value: i64,
    /// The name of the role that owns it.
    pub owner: String,
    /// The column that it belongs to, if any: schema, table and column as a JSON array.
    pub column: Option<String>,
}

/// The source's answer, one per request unless noted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum PeerReply {
    /// The answer to a ping.
    Pong {
        /// The source's clock in microseconds since 1970 UTC.
        unix_micros: i64,
    },
    /// A page of the plan.
    Plan {
        /// The consistent point.
        lsn: Lsn,
        /// The source database's encoding, which both sides use as `client_encoding`.
        encoding: String,
        /// At most [`crate::limits::PLAN_PAGE`].
        tables: Vec<TablePlan>,
        /// Whether this is the last page.
        last: bool,
    },
    /// A page of the schema.
    Schema {
        /// About [`crate::limits::SCHEMA_PAGE_BYTES`].
        page: SchemaPage,
        /// Whether this is the last page.
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
    /// Frames of that part follow on this stream.
    Part(PartNo),
    /// Another target has that part.
    AskPeer {
        /// Which part.
        part: PartNo,
        /// Who has it.
        peer: NodeId,
        /// What has to arrive from there.
        sent: PartSum,
    },
    /// All these parts are on their way to other targets.
    Later,
    /// Taken note of.
    Noted,
    /// Tables were moved; these could not be, because somebody writes to them all the time: at most
    /// [`crate::limits::LISTED_MAX`].
    Moved {
        /// Those that are left.
        left: Vec<TableName>,
    },
    /// How far sequences are used.
    SequencesUsed(SequencesUsed),
    /// The slot has confirmed everything up to there.
    Passed {
        /// The fence.
        lsn: Lsn,
    },
}

/// Sections of a schema dump, as `pg_dump --section` names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SchemaSection {
    /// Types, functions, tables, views, defaults: needed before rows.
    PreData,
    /// Indexes, constraints, triggers, rules, policies.
    PostData,
    /// Users' rows in tables of extensions.
    ExtensionRows,
}

/// A setting that applies to new sessions of a database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatabaseSetting {
    /// Its name.
    pub name: String,
    /// Its value, secret because applications store keys in custom settings.
    pub value: Secret,
    /// Where it is set.
    pub scope: SettingScope,
}

/// The format of COPY.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum CopyFormat {
    /// Used if both ends have the same types with send and receive functions.
    Binary,
    /// Used otherwise.
    Text,
}

/// One table of a plan, as the target needs it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TablePlan {
    /// Its number.
    pub no: TableNo,
    /// Its name.
    pub name: TableName,
    /// The columns to copy, in order, without generated ones.
    pub columns: Vec<ColumnPlan>,
    /// Its first part.
    pub first_part: PartNo,
    /// One range per part. A table that is not split has one unbounded range.
    pub ranges: Vec<CtidRange>,
}

/// A column to copy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ColumnPlan {
    /// Its name.
    pub name: Identifier,
    /// Its type as `format_type(oid, typmod)` writes it with an empty `search_path`.
    pub type_name: String,
    /// Whether the type's binary form is the same on every supported version and server.
    pub binary: bool,
}

/// Heap pages from `from` up to, not including, `to`; unbounded where `None`. A table's first range
/// has no lower bound and its last no upper bound, so that every page is in a range.
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
    /// Whether that value has been used.
    pub is_called: bool,
}

/// Text that is never logged, put into an error or printed.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret(String);

impl Secret {
    /// Wraps a text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text, for the one place that needs it.
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
