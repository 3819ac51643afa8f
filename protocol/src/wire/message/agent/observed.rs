//! What an agent reads on its server about every second.

use serde::{Deserialize, Serialize};

use super::super::handover::SlotName;
use super::membership::{Carried, PublicationStatus, SubscriptionWiring};
use crate::wire::{ByteCount, JobId, Lsn};

/// The state of an agent's server.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Observed {
    /// The server's version (`server_version_num`), or why it does not answer.
    pub postgres: Option<Result<u32, String>>,
    /// Our slots on this server.
    pub slots: Vec<SlotStatus>,
    /// Our subscriptions on this server.
    pub subscriptions: Vec<SubscriptionStatus>,
    /// Digests of the replicated columns; read less often.
    pub digests: Vec<ReplicatedDigest>,
    /// Jobs whose snapshot, opened here, was lost.
    pub lost_snapshots: Vec<JobId>,
    /// Sessions that wait for ours, or ours for them; at most
    /// [`LOCK_CONFLICTS_MAX`](crate::limits::LOCK_CONFLICTS_MAX).
    pub locks: Vec<LockConflict>,
    /// Our publications on this server.
    pub publications: Vec<PublicationStatus>,
    /// Contents of our replications; read as often as the digests.
    pub carried: Carried,
}

/// A lock conflict between another session and one of ours.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockConflict {
    /// The job of our session, if it has one.
    pub job: Option<JobId>,
    /// Who waits for whom.
    pub role: LockRole,
    /// The work of our session, from its `application_name`: `copy`, `schema`, `sink-build`.
    pub ours: String,
    /// The other session's process id; 0 for a prepared transaction.
    pub pid: i32,
    /// Its `application_name`.
    pub application: String,
    /// Its statement without literals, cut off at
    /// [`STATEMENT_SHOWN`](crate::limits::STATEMENT_SHOWN) characters.
    pub statement: String,
    /// The table, or another relation.
    pub table: String,
    /// How long the waiting session has waited.
    pub waited_seconds: u32,
    /// How many more wait for the same table.
    pub queued: u32,
}

/// Who waits for whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LockRole {
    /// The other session waits for ours.
    BlockedByUs,
    /// Our session waits for the other one.
    BlocksUs,
    /// The other session waited, and ours was terminated to let it run.
    GaveWay,
}

impl LockConflict {
    /// Whether it is the same conflict at a later time.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        (self.job, self.role, self.pid, &self.table, &self.ours)
            == (other.job, other.role, other.pid, &other.table, &other.ours)
    }
}

/// A digest of the columns that one of our replications carries, as this server has them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicatedDigest {
    /// Its job.
    pub job: JobId,
    /// `steep_repl.replicated_digest`: equal on both ends while their columns are equal.
    pub digest: String,
}

/// One of our replication slots.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SlotStatus {
    /// Its job.
    pub job: JobId,
    /// Its name: jobs made from one snapshot share publication and id, but not their slots.
    pub slot: SlotName,
    /// Whether a walsender uses it.
    pub active: bool,
    /// WAL between the server's end of WAL and the subscriber's confirmed position.
    pub lag: ByteCount,
    /// WAL that the slot retains.
    pub wal_held: ByteCount,
    /// `wal_status`: reserved, extended, unreserved or lost.
    pub wal_status: String,
    /// `confirmed_flush_lsn`: the subscriber's confirmed position.
    pub confirmed: Lsn,
}

/// One of our subscriptions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SubscriptionStatus {
    /// Its job.
    pub job: JobId,
    /// Whether it is enabled.
    pub enabled: bool,
    /// Whether its apply worker runs.
    pub running: bool,
    /// `pg_stat_subscription_stats.apply_error_count` (PostgreSQL 15 and newer), else 0.
    pub apply_errors: u64,
    /// Whether it is configured as it was created.
    pub wiring: SubscriptionWiring,
    /// Its mark, as a number.
    pub mark: i64,
    /// The transaction that altered it last.
    pub altered_by: u64,
    /// PostgreSQL's message for its last error, without values, if the agent may read the server's
    /// log.
    pub trouble: Option<String>,
}
