//! Which tables a replication carries, and since when.
//!
//! A slot's position says how far changes were decoded, not whether they were published. So each
//! publication and subscription of ours carries a mark: the snapshot at which it was complete. Whatever
//! entered a publication or a subscription after that, the mark tells.

use serde::{Deserialize, Serialize};

use crate::wire::{JobId, TableName};

/// Tables told one by one of each replication; of more only the number.
pub const CARRIED_MAX: usize = 1_000;

/// Bytes of enum labels told of each replication.
pub const LABELS_MAX: usize = 256 * 1024;

/// One of our publications.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublicationStatus {
    /// Its job.
    pub job: JobId,
    /// Whether it is what it was.
    pub state: PublicationState,
    /// Tables that it names.
    pub members: u64,
    /// The highest oid among their `pg_publication_rel` rows: changes when a table is put in.
    pub newest: u32,
    /// Its mark, as a number: another one is another mark.
    pub mark: i64,
}

/// Whether a publication is the one that was made with its slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PublicationState {
    /// The same, with the same options, all the time.
    Sound,
    /// `ALTER PUBLICATION` was run on it after its slot was made.
    Altered,
    /// Without a mark of ours: not complete yet, or made again by somebody else.
    Unmarked,
}

/// Whether a subscription takes what it was made to take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SubscriptionWiring {
    /// Its slot and publications are those that it was made with.
    Sound,
    /// It has another slot or other publications.
    Changed,
    /// `ALTER SUBSCRIPTION ... SKIP` makes it leave out a transaction.
    Skipping,
    /// Without a mark of ours.
    Unmarked,
}

/// What the replications of one server carry, at one look.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Carried {
    /// Which look of this process it was, from 1; 0 before the first.
    pub look: u64,
    /// What is published here.
    pub published: Vec<Published>,
    /// What is subscribed to here.
    pub subscribed: Vec<Subscribed>,
}

/// What a publication of ours publishes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Published {
    /// Its job.
    pub job: JobId,
    /// The mark at that look, as in [`PublicationStatus::mark`].
    pub mark: i64,
    /// Tables that entered it after its mark; at most [`CARRIED_MAX`].
    pub joined: Vec<JoinedTable>,
    /// All of them.
    pub joined_total: u64,
    /// Tables made after the mark that it does not publish; at most [`crate::limits::LISTED_MAX`].
    pub appeared: Vec<TableName>,
    /// The enum types of published columns; at most [`LABELS_MAX`] bytes.
    pub enums: Vec<EnumLabels>,
}

/// A table that entered a publication after its mark: made, attached or put in since.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinedTable {
    /// Its name.
    pub table: TableName,
    /// Whether the table itself is younger than the mark.
    pub made: Made,
    /// Whether it holds rows now.
    pub rows: RowsThere,
    /// The transaction that put it in or attached it: another one where it was out in between.
    pub by: u64,
}

/// When a table was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Made {
    /// Before the mark: it may have been published before, and not in between.
    Before,
    /// After it.
    Since,
}

/// Whether a table holds rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RowsThere {
    /// None at all.
    None,
    /// Some, or it could not be looked at.
    Some,
}

/// What a subscription of ours takes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subscribed {
    /// Its job.
    pub job: JobId,
    /// The mark at that look, as in
    /// [`SubscriptionStatus::mark`](super::SubscriptionStatus::mark).
    pub mark: i64,
    /// Tables that were added to it after its mark; at most [`CARRIED_MAX`].
    pub added: Vec<AddedTable>,
    /// All of them.
    pub added_total: u64,
    /// The enum types of subscribed tables' columns; at most [`LABELS_MAX`] bytes.
    pub enums: Vec<EnumLabels>,
}

/// A table that `REFRESH PUBLICATION` added to a subscription.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddedTable {
    /// Its name.
    pub table: TableName,
    /// The transaction that added it: another one where it was taken out and added again.
    pub by: u64,
    /// Where its earlier rows are.
    pub rows: AddedRows,
}

/// What PostgreSQL does about the rows of a table that it adds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum AddedRows {
    /// It has copied them.
    Copied,
    /// It copies them.
    Copying,
    /// Nothing (`copy_data = false`).
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
