//! Which tables a replication carries, and since when.
//!
//! A slot's position says how far changes were decoded, not whether they were published. So each
//! publication and subscription of ours carries a mark: the snapshot at which it was complete.
//! Comparing with the mark shows what was added later.

use serde::{Deserialize, Serialize};

use crate::wire::{JobId, TableName};

/// Tables listed per replication; more are only counted.
pub const CARRIED_MAX: usize = 1_000;

/// Bytes of enum labels listed per replication.
pub const LABELS_MAX: usize = 256 * 1024;

/// One of our publications.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublicationStatus {
    /// Its job.
    pub job: JobId,
    /// Whether it is unchanged.
    pub state: PublicationState,
    /// Number of tables in it.
    pub members: u64,
    /// The highest oid among their `pg_publication_rel` rows: it changes when a table is added.
    pub newest: u32,
    /// Its mark, as a number; it differs for a different mark.
    pub mark: i64,
}

/// Whether a publication is unchanged since its slot was created.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PublicationState {
    /// Unchanged, with the same options.
    Sound,
    /// `ALTER PUBLICATION` was run on it after its slot was created.
    Altered,
    /// Without our mark: incomplete, or recreated by somebody else.
    Unmarked,
}

/// Whether a subscription is configured as it was created.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SubscriptionWiring {
    /// It has its original slot and publications.
    Sound,
    /// It has another slot or other publications.
    Changed,
    /// `ALTER SUBSCRIPTION ... SKIP` makes it skip a transaction.
    Skipping,
    /// Without our mark.
    Unmarked,
}

/// The contents of one server's replications, as read at one time.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Carried {
    /// The number of this reading within the process, from 1; 0 before the first.
    pub look: u64,
    /// Publications on this server.
    pub published: Vec<Published>,
    /// Subscriptions on this server.
    pub subscribed: Vec<Subscribed>,
}

/// The contents of one of our publications.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Published {
    /// Its job.
    pub job: JobId,
    /// Its mark at that reading, as in [`PublicationStatus::mark`].
    pub mark: i64,
    /// Tables that were added after its mark; at most [`CARRIED_MAX`].
    pub joined: Vec<JoinedTable>,
    /// Their total number.
    pub joined_total: u64,
    /// Tables created after the mark that it does not publish; at most
    /// [`crate::limits::LISTED_MAX`].
    pub appeared: Vec<TableName>,
    /// The enum types of published columns; at most [`LABELS_MAX`] bytes.
    pub enums: Vec<EnumLabels>,
}

/// A table that was added to a publication after its mark: created, attached or put in since.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinedTable {
    /// Its name.
    pub table: TableName,
    /// Whether the table itself is newer than the mark.
    pub made: Made,
    /// Whether it holds rows now.
    pub rows: RowsThere,
    /// The transaction that added or attached it; a different one if it was removed in between.
    pub by: u64,
}

/// When a table was created.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Made {
    /// Before the mark: it may have been published, removed and added again.
    Before,
    /// After it.
    Since,
}

/// Whether a table contains rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RowsThere {
    /// None.
    None,
    /// Some, or the table could not be read.
    Some,
}

/// The contents of one of our subscriptions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subscribed {
    /// Its job.
    pub job: JobId,
    /// Its mark at that reading, as in
    /// [`SubscriptionStatus::mark`](super::SubscriptionStatus::mark).
    pub mark: i64,
    /// Tables that were added after its mark; at most [`CARRIED_MAX`].
    pub added: Vec<AddedTable>,
    /// Their total number.
    pub added_total: u64,
    /// The enum types of subscribed tables' columns; at most [`LABELS_MAX`] bytes.
    pub enums: Vec<EnumLabels>,
}

/// A table that `REFRESH PUBLICATION` added to a subscription.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddedTable {
    /// Its name.
    pub table: TableName,
    /// The transaction that added it; a different one if it was removed in between.
    pub by: u64,
    /// What happened to the rows it had before.
    pub rows: AddedRows,
}

/// What PostgreSQL does with the existing rows of an added table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum AddedRows {
    /// They have been copied.
    Copied,
    /// They are being copied.
    Copying,
    /// They are not copied (`copy_data = false`).
    NotCopied,
}

/// The labels of an enum type, in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnumLabels {
    /// The type's schema and name.
    pub name: TableName,
    /// Its labels.
    pub labels: Vec<String>,
}
