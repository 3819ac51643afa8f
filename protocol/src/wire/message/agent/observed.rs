//! What an agent sees on its server about every second.

use serde::{Deserialize, Serialize};

use super::membership::{Carried, PublicationStatus, SubscriptionWiring};
use crate::wire::{ByteCount, JobId, Lsn};

/// What is true beside an agent.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Observed {
    /// The server's version number (`server_version_num`), or why it cannot be asked.
    pub postgres: Option<Result<u32, String>>,
    /// Our slots on this server.
    pub slots: Vec<SlotStatus>,
    /// Our subscriptions on this server.
    pub subscriptions: Vec<SubscriptionStatus>,
    /// The columns of what our replications carry, each as one digest; looked at less often.
    pub digests: Vec<ReplicatedDigest>,
    /// Jobs whose snapshot, opened here, is gone although nobody closed it.
    pub lost_snapshots: Vec<JobId>,
    /// Sessions of others that wait for ours, or ours for them; at most
    /// [`LOCK_CONFLICTS_MAX`](crate::limits::LOCK_CONFLICTS_MAX).
    pub locks: Vec<LockConflict>,
    /// Our publications on this server.
    pub publications: Vec<PublicationStatus>,
    /// What our replications carry; looked at as often as the digests.
    pub carried: Carried,
}

/// Another session and one of ours that want the same table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockConflict {
    /// The job that our session works for, where it works for one.
    pub job: Option<JobId>,
    /// Who waits.
    pub role: LockRole,
    /// What our session does, as its `application_name` says: `copy`, `schema`, `sink-build`.
    pub ours: String,
    /// The other session's process; 0 for a prepared transaction.
    pub pid: i32,
    /// Its `application_name`.
    pub application: String,
    /// Its statement without literals, cut off at
    /// [`STATEMENT_SHOWN`](crate::limits::STATEMENT_SHOWN) characters.
    pub statement: String,
    /// The table, or another relation.
    pub table: String,
    /// How long whoever waits has waited.
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
    /// The other session waited for ours, which was ended for it.
    GaveWay,
}

impl LockConflict {
    /// Whether it is the same conflict, a while later.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        (self.job, self.role, self.pid, &self.table, &self.ours)
            == (other.job, other.role, other.pid, &other.table, &other.ours)
    }
}

/// The columns of every table that a replication of ours carries, as this server has them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicatedDigest {
    /// Its job.
    pub job: JobId,
    /// `steep_repl.replicated_digest`: the same on both ends while their columns are the same.
    pub digest: String,
}

/// One of our replication slots.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SlotStatus {
    /// Its job.
    pub job: JobId,
    /// Whether a walsender uses it.
    pub active: bool,
    /// WAL between the server's end and what the subscriber has confirmed.
    pub lag: ByteCount,
    /// WAL the slot keeps the server from removing.
    pub wal_held: ByteCount,
    /// `wal_status`: reserved, extended, unreserved or lost.
    pub wal_status: String,
    /// `confirmed_flush_lsn`: what the subscriber says it has.
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
    /// Whether it still takes what it was made to take.
    pub wiring: SubscriptionWiring,
    /// Its mark, as a number.
    pub mark: i64,
    /// The transaction that altered it last.
    pub altered_by: u64,
    /// PostgreSQL's own words for its last error, where the agent may read the server's log. No values.
    pub trouble: Option<String>,
}
