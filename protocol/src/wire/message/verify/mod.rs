//! Comparing the rows of two nodes: what an operator wants compared, the conversation of the two agents, and
//! the result.
//!
//! The target's agent opens a stream with [`PeerRequest::Verify`](super::peer::PeerRequest::Verify) and then
//! sends one [`VerifyAsk`] after another; the source's agent answers each with a [`VerifyReply`]. The target's
//! agent puts the same questions to its own PostgreSQL, so both sides are read by the same code. A
//! conversation has one session on the server, and one table at a time: the one of its last
//! [`VerifyAsk::Open`].

mod report;
mod schedule;
#[cfg(test)]
mod tests;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use self::report::{
    ColumnDifference, DifferenceKind, Relation, RowDifference, TableProblem, TableReport,
    VerifyReport,
};
pub use self::schedule::{ScheduleSpec, ScheduleView, VerifySchedule};
use super::agent::PeerAddress;
use super::peer::CtidRange;
use super::repair::{DatabaseId, FetchedRow, Horizon, SeenRow};
use crate::wire::limits::VERIFY_BITS_MAX;
use crate::wire::{ByteCount, Identifier, Lsn, NodeId, TableName};

/// What another agent may learn of this node's rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RowAccess {
    /// It compares them; what it may see is for the operator.
    Compare(RowValues),
    /// It writes them to its own database, so it gets whole rows; the operator sees keys.
    Repair,
}

/// Whether the values of rows are shown, beside their keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RowValues {
    /// The names of the columns that differ.
    Hidden,
    /// Their values too.
    Shown,
}

/// What is wanted of the rows of two nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Comparing {
    /// Whether the second node has the rows of the first.
    Equality,
    /// What becomes of them if they are merged: rows are told apart by keys alone, and columns that differ are counted.
    Overlap,
    /// What has to be written to the second node, a replica of the first, to make it equal: the report has a plan in
    /// place of examples.
    Repair,
    /// What has to be written to either node to make both equal, where both have rows of their own: the report has a plan in
    /// place of examples. Rows are told apart by keys alone.
    Merge,
}

/// How to tell which of two rows with the same key was modified last.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum ModifiedBy {
    /// Nobody wants to know.
    #[default]
    NotAsked,
    /// By this column: a time, a date or a whole number.
    Column(Identifier),
    /// By the time at which the transaction that wrote the row was committed (`track_commit_timestamp`).
    CommitTime,
}

/// What an operator wants compared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifySpec {
    /// The node that counts as right.
    pub node_a: NodeId,
    /// The node that is compared with it.
    pub node_b: NodeId,
    /// What for.
    pub comparing: Comparing,
    /// Which tables; where empty, those that are replicated between the two, or else all.
    pub tables: Vec<TableName>,
    /// What is shown of rows that differ.
    pub values: RowValues,
    /// Sessions on each server.
    pub parallel: u8,
    /// Heap bytes read in a second, on each server.
    pub max_rate: Option<ByteCount>,
    /// Of [`Comparing::Merge`].
    pub modified: ModifiedBy,
}

/// Arguments of the command to the target's agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyTables {
    /// The other node's agent.
    pub source: PeerAddress,
    /// See [`VerifySpec::comparing`].
    pub comparing: Comparing,
    /// See [`VerifySpec::tables`].
    pub tables: Vec<TableName>,
    /// See [`VerifySpec::values`].
    pub values: RowValues,
    /// See [`VerifySpec::parallel`].
    pub parallel: u8,
    /// See [`VerifySpec::max_rate`].
    pub max_rate: Option<ByteCount>,
    /// See [`VerifySpec::modified`].
    pub modified: ModifiedBy,
}

/// A question of the conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum VerifyAsk {
    /// Answered with [`VerifyReply::Tables`].
    List(ListedTables),
    /// From here on, questions are about that table. Answered with [`VerifyReply::Opened`].
    Open(TableName),
    /// How the open table's rows are read, and what its sums are made of. Answered with [`VerifyReply::Done`].
    Read(RowShape, Summed),
    /// Counts and sums of row digests by bucket. Answered with [`VerifyReply::Sums`].
    Sums {
        /// Which rows.
        range: HeapRange,
        /// The buckets that the rows must be in.
        sieve: Sieve,
        /// 2 to the power of that many buckets.
        bits: u8,
    },
    /// Keys and digests of rows. Answered with [`VerifyReply::Rows`].
    Rows {
        /// Which rows.
        range: HeapRange,
        /// The buckets that the rows must be in.
        sieve: Sieve,
    },
    /// The digests of rows by key. Answered with [`VerifyReply::Found`].
    LookUp(Vec<RowKey>),
    /// The columns of rows by key. Answered with [`VerifyReply::Columns`].
    Columns {
        /// The rows: one, or as many as have [`crate::limits::VERIFY_CELLS`] columns.
        keys: Vec<RowKey>,
        /// Whether to include values.
        values: RowValues,
    },
    /// Answered with [`VerifyReply::Fence`].
    TakeFence,
    /// Answered with [`VerifyReply::Slots`]: those of these slots that exist in the database.
    Slots(Vec<Identifier>),
    /// The subscriptions of the database. Answered with [`VerifyReply::Subscriptions`].
    Subscriptions,
    /// Which database it is. Answered with [`VerifyReply::Identity`].
    Identity,
    /// The foreign keys between these tables. Answered with [`VerifyReply::References`].
    References(Vec<TableName>),
    /// The versions of rows by key. Answered with [`VerifyReply::Versions`].
    Versions(Vec<RowKey>),
    /// The values of rows by key, of an agent that was admitted to repair. Answered with [`VerifyReply::Fetched`].
    Fetch {
        /// The rows, at most [`crate::limits::REPAIR_ROWS_AT_ONCE`].
        keys: Vec<RowKey>,
        /// The longest row whose values are wanted, in bytes of text; for all keys at most
        /// [`crate::limits::REPAIR_ROW_MAX`].
        longest: u32,
    },
    /// When rows were modified, by key. Answered with [`VerifyReply::Modified`].
    Modified {
        /// The rows.
        keys: Vec<RowKey>,
        /// By what.
        by: ModifiedBy,
    },
    /// Some columns of rows by key, of an agent that was admitted to repair. Answered with [`VerifyReply::Values`].
    Values {
        /// The rows.
        keys: Vec<RowKey>,
        /// The columns of a unique index.
        columns: Vec<Identifier>,
    },
    /// The keys of rows by the columns of a unique index. Answered with [`VerifyReply::Holders`].
    Holders {
        /// The columns.
        columns: Vec<Identifier>,
        /// Their values.
        values: Vec<RowKey>,
    },
}

/// Which tables are listed. A partitioned table is listed in place of its partitions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ListedTables {
    /// Every permanent table of users.
    All,
    /// These, as far as they exist.
    Named(Vec<TableName>),
    /// Those that the publications carry.
    Published(Vec<Identifier>),
    /// Those that the subscriptions carry.
    Subscribed(Vec<Identifier>),
    /// Those of which the publications carry only some rows or columns.
    Filtered(Vec<Identifier>),
}

/// An answer of the conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum VerifyReply {
    /// By name; at most [`crate::limits::VERIFY_TABLES_MAX`].
    Tables(Vec<TableSize>),
    /// The table; `None` if there is none of that name.
    Opened(Option<Box<OpenedTable>>),
    /// Nothing to say.
    Done,
    /// Buckets that are not empty.
    Sums(Vec<BucketSum>),
    /// Rows, at most [`crate::limits::VERIFY_ROWS_MAX`].
    Rows(Vec<KeyedRow>),
    /// The range has more rows than fit an answer, or reading it took too long: ask for a smaller one.
    TooMuch,
    /// One entry for each key; `None` where there is no such row.
    Found(Vec<Option<RowDigest>>),
    /// One entry for each key.
    Columns(Vec<Option<Vec<ColumnText>>>),
    /// The position of the WAL.
    Fence(Lsn),
    /// Slots.
    Slots(Vec<SlotPosition>),
    /// Enabled subscriptions, at most [`crate::limits::LISTED_MAX`].
    Subscriptions(Vec<SubscriptionFacts>),
    /// The question failed.
    Fault(crate::wire::Fault),
    /// The database.
    Identity(DatabaseId),
    /// Each with the table that it refers to.
    References(Vec<(TableName, TableName)>),
    /// One entry for each key; `None` where there is no such row.
    Versions {
        /// The server's transactions just before.
        horizon: Horizon,
        /// The rows.
        rows: Vec<Option<SeenRow>>,
    },
    /// The same with values.
    Fetched(Vec<Option<FetchedRow>>),
    /// One entry for each key: larger numbers are later; `None` where there is no such row or it does not say.
    Modified(Vec<Option<i128>>),
    /// One entry for each key; `None` where there is no such row, or one of its columns is NULL.
    Values(Vec<Option<RowKey>>),
    /// One entry for each list of values: the key of the row that has them.
    Holders(Vec<Option<RowKey>>),
}

/// A table's size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableSize {
    /// Its name.
    pub name: TableName,
    /// Heap bytes, its partitions included.
    pub bytes: ByteCount,
}

/// A table as it is on one server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenedTable {
    /// Its columns, in order.
    pub columns: Vec<VerifyColumn>,
    /// Columns of its unique keys without NULLs, the primary key first.
    pub keys: Vec<Vec<Identifier>>,
    /// Columns of all its unique indexes that can be looked up.
    pub uniques: Vec<Vec<Identifier>>,
    /// Heap pages of its leaf partitions, or of itself.
    pub pages: Vec<u32>,
    /// Rows, as the planner estimates.
    pub rows_estimate: u64,
    /// The encoding of the database's text, and what the server's hash makes of a fixed one: where two servers say the
    /// same, they hash text alike.
    pub hashing: String,
}

/// A column as it is on one server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyColumn {
    /// Its name.
    pub name: Identifier,
    /// Whether the server computes it.
    pub generated: bool,
    /// Whether it may be NULL.
    pub nullable: bool,
}

/// How rows are read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowShape {
    /// The columns that are compared, in the order in which they are digested.
    pub columns: Vec<Identifier>,
    /// The columns of the key. Without any, rows are told apart by their content.
    pub key: Vec<Identifier>,
}

/// What the sums of a bucket are made of: two 64-bit hashes of each row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Summed {
    /// Of its text, which takes a server half the time. Both have to hash it alike.
    Text(Seeds),
    /// Of its SHA-256.
    Digest(Seeds),
}

/// The seeds of the two hashes, drawn at random for each table of a comparison: who could know them could choose rows
/// whose sums are equal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Seeds(pub [i64; 2]);

/// Heap pages of one leaf.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeapRange {
    /// Its place in [`OpenedTable::pages`].
    pub leaf: u32,
    /// The pages.
    pub pages: CtidRange,
}

/// Restricts rows to some buckets. A row's bucket is taken from the hash of its key: each level from bits of
/// its own, the first from the lowest.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Sieve(pub Vec<SieveLevel>);

impl Sieve {
    /// Whether its levels, at most `levels`, are well-formed and leave `bits` bits of a 64-bit hash.
    #[must_use]
    pub fn fits(&self, levels: usize, bits: u8) -> bool {
        let sound = |level: &SieveLevel| {
            level.bits <= VERIFY_BITS_MAX
                && level.wanted.len() == (1_usize << level.bits).div_ceil(8)
        };
        let used: u32 = self.0.iter().map(|level| u32::from(level.bits)).sum();
        self.0.len() <= levels
            && self.0.iter().all(sound)
            && bits <= VERIFY_BITS_MAX
            && used + u32::from(bits) <= u64::BITS
    }
}

/// One level of a sieve.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SieveLevel {
    /// It has 2 to the power of that many buckets.
    pub bits: u8,
    /// One bit for each bucket, the lowest of the first byte first.
    pub wanted: Vec<u8>,
}

/// The count and the sums of the digests of the rows of one bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BucketSum {
    /// The bucket.
    pub bucket: u32,
    /// Its rows.
    pub rows: u64,
    /// The sum of the digests' halves, which does not overflow.
    pub sums: [i128; 2],
}

/// The first 128 bits of a row's SHA-256.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RowDigest(pub u128);

/// A row's key, as text by column; a table without a key has the place of the row on its server instead.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RowKey(pub Vec<String>);

impl fmt::Debug for RowKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RowKey(…)")
    }
}

/// A row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyedRow {
    /// Its key.
    pub key: RowKey,
    /// Its digest.
    pub digest: RowDigest,
}

/// A column of one row.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ColumnText {
    /// The digest of its value; `None` for NULL.
    pub digest: Option<u64>,
    /// The beginning of its value, where it may be shown and is not NULL.
    pub text: Option<String>,
}

impl fmt::Debug for ColumnText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ColumnText(…)")
    }
}

/// A logical slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotPosition {
    /// Its name.
    pub name: Identifier,
    /// What its subscription has confirmed.
    pub confirmed: Lsn,
    /// Whether its subscription is connected.
    pub active: bool,
}

/// A subscription.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubscriptionFacts {
    /// Its name.
    pub name: Identifier,
    /// Its slot on the publisher.
    pub slot: Identifier,
    /// Its publications there.
    pub publications: Vec<Identifier>,
}
