//! A snapshot with a life of its own, as values: stored, then kept until it is deleted or expires; or held
//! open by the source for the targets that share it.
//!
//! Owns the snapshot itself ([`Snapshot`]), the choice of its next command ([`machine`]) and that of those
//! that newer ones supersede ([`retention`]). Everything here
//! is pure, as in [`crate::job`]. A snapshot belongs to no job; its slot is the template of theirs.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use steep_protocol::encryption::Encrypt;
use steep_protocol::message::handover::Replication;
use steep_protocol::message::job::{Compression, JobSpec};
use steep_protocol::message::snapshot::{
    RecordedSnapshot, SealedSnapshot, SnapshotOrder, SnapshotSpec, SnapshotState, StoreSpec,
};
use steep_protocol::stored::StoredCodec;
use steep_protocol::{CommandId, Fault, Lsn, SnapshotId};

pub mod machine;
pub mod retention;

/// One snapshot, from the request until it is forgotten.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Its id.
    pub id: SnapshotId,
    /// What was asked for.
    pub spec: SnapshotSpec,
    /// Who decides how long it lives.
    pub owner: Owner,
    /// The name in the certificate of the operator who asked for it.
    pub operator: String,
    /// When.
    pub asked_at: Timestamp,
    /// What is done with it.
    pub stage: Stage,
    /// Its consistent point, once there is one.
    pub point: Option<Point>,
    /// What is stored, once it is complete.
    pub sealed: Option<SealedSnapshot>,
    /// When it was complete, or could not be completed.
    pub ended_at: Option<Timestamp>,
    /// Why it is lost, or what was last in its way.
    pub fault: Option<Fault>,
    /// How often it was begun again because the source lost it.
    pub restarts: u8,
    /// The command that was issued and has not ended.
    pub running: Option<Running>,
    /// Failures without a success since.
    pub trouble: Option<Trouble>,
    /// The process of the source's agent that runs, or ran, its commands.
    pub incarnation: Option<u64>,
    /// The first command id reserved for it.
    pub first_command: u64,
    /// How many command ids are used.
    pub commands_issued: u64,
}

/// Who decides how long a snapshot lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Owner {
    /// An operator: until it expires or is deleted.
    Operator,
    /// The targets that are made from it: until none of them needs it.
    Jobs,
}

/// What is done with a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    /// Slot and plan are made.
    Opening,
    /// Rows are read and stored.
    Storing,
    /// The source holds it open, and the targets that share it read its rows.
    Shared,
    /// Everything is stored.
    Sealed,
    /// What was made of it is removed.
    Removing(Why),
    /// Nothing of it is left.
    Over(Why),
}

/// Why a snapshot is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Why {
    /// It could not be completed.
    Failed,
    /// The source lost it: it is begun again.
    Again,
    /// An operator deleted it.
    Deleted,
    /// Its time is over.
    Expired,
    /// None of the targets that share it needs it any more.
    Unneeded,
}

/// A snapshot's consistent point and plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Point {
    /// The position.
    pub lsn: Lsn,
    /// Tables.
    pub tables: u32,
    /// Parts.
    pub parts: u32,
}

/// A command to the source's agent, without its arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Work {
    /// `Open`.
    Open,
    /// `Store`.
    Store,
    /// `DeleteSnapshot`.
    Remove,
}

/// A command that was issued.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Running {
    /// Its id.
    pub id: CommandId,
    /// What it does.
    pub work: Work,
}

/// Failures of the current stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trouble {
    /// Since when.
    pub since: Timestamp,
    /// How many.
    pub tries: u32,
    /// When to try again.
    pub again: Timestamp,
}

impl Snapshot {
    /// A snapshot that has not begun.
    #[must_use]
    pub fn new(
        id: SnapshotId,
        spec: SnapshotSpec,
        operator: &str,
        first_command: u64,
        now: Timestamp,
    ) -> Self {
        Self {
            id,
            spec,
            owner: Owner::Operator,
            operator: operator.to_owned(),
            asked_at: now,
            stage: Stage::Opening,
            point: None,
            sealed: None,
            ended_at: None,
            fault: None,
            restarts: 0,
            running: None,
            trouble: None,
            incarnation: None,
            first_command,
            commands_issued: 0,
        }
    }

    /// A complete snapshot of an operator, as its source's database records it.
    #[must_use]
    pub fn recorded(recorded: RecordedSnapshot, first_command: u64) -> Self {
        let RecordedSnapshot { order, sealed, .. } = recorded;
        let number = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        let point = Point {
            lsn: recorded.lsn,
            tables: number(sealed.tables),
            parts: number(sealed.parts),
        };
        Self {
            stage: Stage::Sealed,
            point: Some(point),
            sealed: Some(sealed),
            ended_at: Some(recorded.sealed_at),
            ..Self::new(
                recorded.snapshot,
                order.spec,
                &order.operator,
                first_command,
                order.asked_at,
            )
        }
    }

    /// What an operator has asked for.
    #[must_use]
    pub fn order(&self) -> SnapshotOrder {
        SnapshotOrder {
            spec: self.spec.clone(),
            operator: self.operator.clone(),
            asked_at: self.asked_at,
        }
    }

    /// A snapshot that the targets of such jobs share: stored there, or held open.
    #[must_use]
    pub fn shared(
        id: SnapshotId,
        (job, location): (JobSpec, Option<String>),
        operator: &str,
        first_command: u64,
        now: Timestamp,
    ) -> Self {
        let store = |location| StoreSpec {
            location,
            codec: match job.compression {
                Compression::None => StoredCodec::None,
                Compression::Auto | Compression::Lz4 => StoredCodec::Lz4,
                Compression::Zstd(level) => StoredCodec::Zstd(level),
            },
            // The rate is that of the copy: the source is read as fast as it can be.
            max_rate: None,
            encrypt: Encrypt::No,
        };
        let spec = SnapshotSpec {
            source: job.source,
            store: location.map(store),
            filter: job.filter,
            parallel: job.parallel,
            large_table_threshold: job.large_table_threshold,
            yield_to_ddl: job.yield_to_ddl,
            expires_seconds: job.timeout_seconds,
            keep: None,
        };
        Self {
            owner: Owner::Jobs,
            ..Self::new(id, spec, operator, first_command, now)
        }
    }

    /// Whether a target can copy from it now.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        match self.stage {
            Stage::Shared | Stage::Sealed => self.fault.is_none(),
            // While it is stored, or cannot be, it is served all the same.
            Stage::Storing => self.owner == Owner::Jobs,
            Stage::Opening | Stage::Removing(_) | Stage::Over(_) => false,
        }
    }

    /// Whether a target can join: copy from it now, or wait for it.
    #[must_use]
    pub fn is_joinable(&self) -> bool {
        match self.stage {
            Stage::Opening | Stage::Storing => true,
            Stage::Shared | Stage::Sealed => self.is_ready(),
            Stage::Removing(_) | Stage::Over(_) => false,
        }
    }

    /// Its publication and template slot.
    #[must_use]
    pub fn replication(&self) -> Replication {
        Replication::template(self.id)
    }

    /// Its state, as operators see it.
    #[must_use]
    pub fn state(&self) -> SnapshotState {
        match self.stage {
            Stage::Opening | Stage::Removing(Why::Again) | Stage::Over(Why::Again) => {
                SnapshotState::Opening
            }
            Stage::Storing | Stage::Shared => SnapshotState::Live,
            Stage::Sealed if self.fault.is_none() => SnapshotState::Sealed,
            Stage::Removing(Why::Expired | Why::Unneeded)
            | Stage::Over(Why::Expired | Why::Unneeded) => SnapshotState::Expired,
            Stage::Removing(Why::Deleted) | Stage::Over(Why::Deleted) if self.sealed.is_some() => {
                SnapshotState::Expired
            }
            Stage::Sealed | Stage::Removing(_) | Stage::Over(_) => SnapshotState::Lost,
        }
    }

    /// Whether it is not being removed for good.
    #[must_use]
    pub fn lasts(&self) -> bool {
        match self.stage {
            Stage::Opening | Stage::Storing | Stage::Shared | Stage::Sealed => true,
            Stage::Removing(why) => why == Why::Again,
            Stage::Over(_) => false,
        }
    }

    /// Whether everything of it is stored, and stays until an operator or its time ends that. Its rows can be loaded,
    /// also where its slot is gone.
    #[must_use]
    pub fn has_files(&self) -> bool {
        self.owner == Owner::Operator && self.stage == Stage::Sealed
    }

    /// Where it is stored, if it is.
    #[must_use]
    pub fn location(&self) -> Option<&str> {
        let store = self.spec.store.as_ref();
        store.map(|store| store.location.as_str())
    }

    /// Whether nothing of it is left on the source.
    #[must_use]
    pub fn is_over(&self) -> bool {
        matches!(self.stage, Stage::Over(_))
    }

    /// Seconds until it was complete or lost, or so far.
    #[must_use]
    pub fn seconds(&self, now: Timestamp) -> f64 {
        let end = self.ended_at.unwrap_or(now).as_millisecond();
        (end - self.asked_at.as_millisecond()).max(0) as f64 / 1e3
    }
}
