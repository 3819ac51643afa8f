//! Nodes restored from a backup: a slot is prepared on the source beforehand, and replication takes
//! over once the backup is restored.
//!
//! A prepared slot retains the source's WAL from its consistent point on. A backup that is
//! consistent at a later position is completed by the slot's changes from that position on. Plain
//! data: the coordinator judges it, the agents act on it.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::facts::Listed;
use super::job::{JobSpec, ReplicationNames};
use crate::wire::{ByteCount, Identifier, JobId, Lsn, NodeId, SnapshotId};

/// The longest time that a prepared slot may be kept, in seconds: a year.
pub const EXPIRES_MAX: u64 = 366 * 24 * 3600;

/// Prepared slots that one node reports; more than any server has.
pub const PREPARED_MAX: usize = 1_000;

/// Text that is not a valid slot name.
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
    /// Parses a name.
    ///
    /// # Errors
    /// [`InvalidSlotName`] if PostgreSQL would refuse it.
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

    /// The quoted name for SQL and the replication protocol.
    #[must_use]
    pub fn quoted(&self) -> String {
        self.0.quoted()
    }

    /// Whether it has the form of jobs' own slots.
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

/// The names of a job's replication. Publication and subscription share the name derived from `id`;
/// a prepared slot has its own name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replication {
    /// Determines the name of publication and subscription ([`ReplicationNames`]): the job's id, or
    /// the id of the preparation that it completes. Decoding looks up a publication by the name it
    /// had when a change was written, so it cannot be renamed.
    pub id: JobId,
    /// The slot's name.
    pub slot: SlotName,
}

impl Replication {
    /// A job's own replication: all three share one name.
    #[must_use]
    pub fn of(job: JobId) -> Self {
        let slot = SlotName::parse(ReplicationNames(job).name());
        Self {
            id: job,
            slot: slot.expect("27 bytes of a-z, 0-9 and underscore"),
        }
    }

    /// The name of publication and subscription.
    #[must_use]
    pub fn name(&self) -> Identifier {
        let name = Identifier::parse(ReplicationNames(self.id).name());
        name.expect("27 bytes of a-z, 0-9 and underscore")
    }

    /// The same slot with a publication and subscription of the job's own. Until they are there, the slot's changes are
    /// decoded for those of its snapshot, which other targets use too ([`Self::shared`]).
    #[must_use]
    pub fn apart(self, job: JobId) -> Self {
        Self { id: job, ..self }
    }

    /// For a slot that was made from a snapshot and is used [apart](Self::apart) from the others: the replication that
    /// it was made with.
    #[must_use]
    pub fn shared(&self) -> Option<Self> {
        match SlotOwner::of(self.slot.as_str())? {
            SlotOwner::Made(snapshot, job) if job == self.id => {
                Some(Self::of_snapshot(snapshot, job))
            }
            SlotOwner::Made(..) | SlotOwner::Job(_) | SlotOwner::Template(_) => None,
        }
    }

    /// Whether the slot was prepared.
    #[must_use]
    pub fn is_prepared(&self) -> bool {
        self.slot.as_str() != ReplicationNames(self.id).name()
    }
}

/// Whose slot it is, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlotOwner {
    /// A job's own.
    Job(JobId),
    /// A job's that was made from a snapshot.
    Made(SnapshotId, JobId),
    /// A snapshot's, of which the former are copies.
    Template(SnapshotId),
}

impl SlotOwner {
    /// Reads a slot's name; `None` if it is not one of ours. Prepared slots have names of their operators.
    #[must_use]
    pub fn of(slot: &str) -> Option<Self> {
        let rest = slot.strip_prefix(ReplicationNames::PREFIX)?;
        let Some((snapshot, rest)) = rest.split_once('_') else {
            return Some(Self::Job(rest.parse().ok()?));
        };
        let snapshot = SnapshotId(snapshot.parse::<JobId>().ok()?.0);
        if rest == "template" {
            return Some(Self::Template(snapshot));
        }
        Some(Self::Made(snapshot, rest.parse().ok()?))
    }

    /// The slot with its publication.
    #[must_use]
    pub fn replication(self) -> Replication {
        match self {
            Self::Job(job) => Replication::of(job),
            Self::Made(snapshot, job) => Replication::of_snapshot(snapshot, job),
            Self::Template(snapshot) => Replication::template(snapshot),
        }
    }

    /// The job, unless it is a snapshot's.
    #[must_use]
    pub fn job(self) -> Option<JobId> {
        match self {
            Self::Job(job) | Self::Made(_, job) => Some(job),
            Self::Template(_) => None,
        }
    }
}

/// `init prepare`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrepareSpec {
    /// The source.
    pub node: NodeId,
    /// The slot's name.
    pub slot: SlotName,
    /// How long it is kept without a hand-over; at most [`EXPIRES_MAX`].
    pub expires_seconds: u64,
}

/// Whether the schemas of a restored target and its source are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SchemaCheck {
    /// As the job's schema mode says.
    Compared,
    /// Not at all (`--skip-schema-check`).
    Skipped,
}

/// `init complete`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CompleteSpec {
    /// The job; its method is [`super::job::Method::Backup`].
    pub job: JobSpec,
    /// The prepared slot; by default the source's only one.
    pub slot: Option<SlotName>,
    /// The position at which the restored rows are consistent.
    pub source_lsn: Lsn,
    /// Whether to compare schemas.
    pub schema: SchemaCheck,
}

/// A prepared slot, as its agent sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PreparedSlot {
    /// Its replication.
    pub replication: Replication,
    /// The earliest position at which a backup can be completed with it.
    pub lsn: Lsn,
    /// When it was created.
    pub created_at: Timestamp,
    /// When it is dropped without a hand-over.
    pub expires_at: Timestamp,
    /// WAL that it retains.
    pub wal_held: ByteCount,
    /// Most WAL that a slot of its server may retain (`max_slot_wal_keep_size`), if that is limited.
    pub wal_limit: Option<ByteCount>,
    /// Its state.
    pub state: PreparedState,
}

/// The state of a prepared slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PreparedState {
    /// It waits for a hand-over.
    Waiting,
    /// It is, or is about to be, used by that node.
    Taken(NodeId),
    /// It has expired and is about to be dropped.
    Expired,
    /// It can no longer be used: dropped or invalidated. The text says which.
    Lost(String),
}

/// Facts about a prepared slot before it is used.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct SlotFacts {
    /// The source's record of it.
    pub noted: Option<NotedSlot>,
    /// The slot itself.
    pub slot: Option<ServerSlot>,
    /// The source's current end of WAL.
    pub wal_end: Lsn,
    /// Whether its publication exists.
    pub published: bool,
    /// Tables of the source that its publication lacks.
    pub unpublished: Listed,
}

/// A preparation as recorded on its node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotedSlot {
    /// The earliest position at which a backup can be completed with it.
    pub lsn: Lsn,
    /// When it expires.
    pub expires_at: Timestamp,
    /// Whether it has expired by the source's clock.
    pub expired: bool,
    /// The node that uses it, if any.
    pub target: Option<NodeId>,
}

/// A row of `pg_replication_slots`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerSlot {
    /// The output plugin; none for a physical slot.
    pub plugin: Option<String>,
    /// Whether it is of the agent's own database.
    pub own_database: bool,
    /// Whether it belongs to the agent's database.
    pub active: bool,
    /// `wal_status`: reserved, extended, unreserved or lost.
    pub wal_status: String,
    /// `invalidation_reason`, if the server has one (PostgreSQL 17 and newer).
    pub invalidated: Option<String>,
    /// The oldest WAL it needs.
    pub restart: Option<Lsn>,
    /// The confirmed position: nothing before it is sent again.
    pub confirmed: Option<Lsn>,
}

/// Whether an unfinished job may have applied changes from its prepared slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Used {
    /// No: the same backup can be used again.
    No,
    /// Possibly: only a newer backup can be used, or changes would be applied twice.
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

    #[test]
    fn only_what_is_used_apart_has_a_publication_that_it_was_made_with() {
        let (snapshot, job) = (SnapshotId(9), JobId(7));
        let made = Replication::of_snapshot(snapshot, job);
        let apart = made.clone().apart(job);
        assert_eq!(apart.slot, made.slot);
        assert_eq!(apart.name(), Replication::of(job).name());
        assert_eq!(apart.shared(), Some(made.clone()));
        for other in [
            made,
            Replication::of(job),
            Replication::template(snapshot),
            apart.apart(JobId(8)),
        ] {
            assert_eq!(other.shared(), None, "{other:?}");
        }
    }
}
