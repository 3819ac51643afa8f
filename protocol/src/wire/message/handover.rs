//! A node made from a backup: the slot that is prepared on the source beforehand, and the hand-over to
//! replication once the backup is restored.
//!
//! A prepared slot holds the source's WAL from its consistent point on. A backup that is consistent at
//! some later position is then completed by what the slot yields from that position on. Plain data;
//! what is judged of it is the coordinator's, what is done about it the agents'.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::facts::Listed;
use super::job::{JobSpec, ReplicationNames};
use crate::wire::{ByteCount, Identifier, JobId, Lsn, NodeId};

/// The longest time that a prepared slot may be kept, in seconds: a year.
pub const EXPIRES_MAX: u64 = 366 * 24 * 3600;

/// Prepared slots that one node tells of; more than any server has slots.
pub const PREPARED_MAX: usize = 1_000;

/// Text that cannot be the name of a replication slot.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} cannot be the name of a replication slot: use 1 to 63 lower-case letters, digits and underscores"
)]
pub struct InvalidSlotName(String);

/// The name of a replication slot, as PostgreSQL allows it (manual, "Replication Slots").
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SlotName(Identifier);

impl SlotName {
    /// Takes a name.
    ///
    /// # Errors
    /// [`InvalidSlotName`] where PostgreSQL would refuse it.
    pub fn parse(text: impl Into<String>) -> Result<Self, InvalidSlotName> {
        let text = text.into();
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
        match Identifier::parse(text.as_str()) {
            Ok(name) if text.bytes().all(allowed) => Ok(Self(name)),
            Ok(_) | Err(_) => Err(InvalidSlotName(text.chars().take(160).collect())),
        }
    }

    /// The bare name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    /// As SQL and the replication protocol take it.
    #[must_use]
    pub fn quoted(&self) -> String {
        self.0.quoted()
    }

    /// Whether it is one of those that jobs give their own slots.
    #[must_use]
    pub fn is_reserved(&self) -> bool {
        self.as_str().starts_with(ReplicationNames::PREFIX)
    }
}

impl TryFrom<String> for SlotName {
    type Error = InvalidSlotName;
    fn try_from(text: String) -> Result<Self, InvalidSlotName> {
        Self::parse(text)
    }
}

impl FromStr for SlotName {
    type Err = InvalidSlotName;
    fn from_str(text: &str) -> Result<Self, InvalidSlotName> {
        Self::parse(text)
    }
}

impl From<SlotName> for String {
    fn from(name: SlotName) -> Self {
        name.0.into()
    }
}

impl fmt::Display for SlotName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What carries a job's changes: publication and subscription share the name that `id` makes, the
/// slot has a name of its own where it was prepared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replication {
    /// Names publication and subscription ([`ReplicationNames`]): a job's own id, or that of the
    /// preparation which it completes. Decoding knows a publication by the name it had when a change
    /// was written, so it cannot be renamed afterwards.
    pub id: JobId,
    /// The slot.
    pub slot: SlotName,
}

impl Replication {
    /// A job's own: all three share one name.
    #[must_use]
    pub fn of(job: JobId) -> Self {
        let slot = SlotName::parse(ReplicationNames(job).name());
        Self {
            id: job,
            slot: slot.expect("27 bytes of a-z, 0-9 and underscore"),
        }
    }

    /// Name of publication and subscription.
    #[must_use]
    pub fn name(&self) -> Identifier {
        let name = Identifier::parse(ReplicationNames(self.id).name());
        name.expect("27 bytes of a-z, 0-9 and underscore")
    }

    /// Whether the slot was made by a preparation.
    #[must_use]
    pub fn is_prepared(&self) -> bool {
        self.slot.as_str() != ReplicationNames(self.id).name()
    }
}

/// `init prepare`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrepareSpec {
    /// The source.
    pub node: NodeId,
    /// The slot's name.
    pub slot: SlotName,
    /// How long it is kept for want of a hand-over; at most [`EXPIRES_MAX`].
    pub expires_seconds: u64,
}

/// Whether the schemas of a restored target and its source are held against each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SchemaCheck {
    /// As the job's mode says.
    Compared,
    /// Not at all (`--skip-schema-check`).
    Skipped,
}

/// `init complete`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CompleteSpec {
    /// The job; its method is [`super::job::Method::Backup`].
    pub job: JobSpec,
    /// The prepared slot; the only one of the source where none is named.
    pub slot: Option<SlotName>,
    /// The position at which the restored rows are consistent.
    pub source_lsn: Lsn,
    /// About schemas.
    pub schema: SchemaCheck,
}

/// A slot that is prepared on a node, as its agent sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PreparedSlot {
    /// What it belongs to.
    pub replication: Replication,
    /// The earliest position from which a backup can be completed with it.
    pub lsn: Lsn,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it is dropped for want of a hand-over.
    pub expires_at: Timestamp,
    /// WAL that it keeps the server from removing.
    pub wal_held: ByteCount,
    /// What has become of it.
    pub state: PreparedState,
}

/// What has become of a prepared slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PreparedState {
    /// It waits for a hand-over.
    Waiting,
    /// It is, or is about to be, the slot of that node's replication.
    Taken(NodeId),
    /// Its time is over; it is about to be dropped.
    Expired,
    /// It cannot be used any more: dropped by somebody, or invalidated.
    Lost(String),
}

/// What is true of a prepared slot when it is to be used.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct SlotFacts {
    /// What the source has noted of it.
    pub noted: Option<NotedSlot>,
    /// The slot itself.
    pub slot: Option<ServerSlot>,
    /// Where the source's WAL ends now.
    pub wal_end: Lsn,
    /// Whether the publication that was made with it is there.
    pub published: bool,
    /// Tables of the source which that publication does not carry.
    pub unpublished: Listed,
}

/// A preparation, as it is noted on its node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotedSlot {
    /// The earliest position from which a backup can be completed with it.
    pub lsn: Lsn,
    /// When it ends.
    pub expires_at: Timestamp,
    /// Whether that time has come, by the source's clock.
    pub expired: bool,
    /// The node that uses it, where one does.
    pub target: Option<NodeId>,
}

/// A replication slot as `pg_replication_slots` tells of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerSlot {
    /// The output plugin; none for a physical slot.
    pub plugin: Option<String>,
    /// Whether it is of the agent's own database.
    pub own_database: bool,
    /// Whether a walsender uses it.
    pub active: bool,
    /// `wal_status`: reserved, extended, unreserved or lost.
    pub wal_status: String,
    /// `invalidation_reason`, where the server knows one (PostgreSQL 17 and newer).
    pub invalidated: Option<String>,
    /// The oldest WAL it needs.
    pub restart: Option<Lsn>,
    /// What has been confirmed: nothing before it is sent again.
    pub confirmed: Option<Lsn>,
}

/// Whether a job that ends before its time may have had changes applied from its prepared slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Used {
    /// No: the same backup can be tried again.
    No,
    /// It may: only a newer backup can be completed with the slot, or changes would be applied twice.
    Perhaps,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slot_names_are_what_postgresql_takes() {
        for good in ["a", "backup_2026_11_25", &"x".repeat(63)] {
            assert_eq!(SlotName::parse(good).unwrap().as_str(), good);
        }
        for bad in ["", "A", "a-b", "a b", "é", "a\"b", &"x".repeat(64)] {
            assert!(SlotName::parse(bad).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn only_a_prepared_replication_has_a_slot_of_another_name() {
        let own = Replication::of(JobId(7));
        assert_eq!(own.name().as_str(), own.slot.as_str());
        assert!(own.slot.is_reserved() && !own.is_prepared());
        let prepared = Replication {
            id: JobId(7),
            slot: SlotName::parse("backup").unwrap(),
        };
        assert!(prepared.is_prepared() && !prepared.slot.is_reserved());
        assert_eq!(prepared.name(), own.name());
    }
}
