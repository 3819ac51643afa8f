//! Commands to agents.

use serde::{Deserialize, Serialize};

use super::super::handover::{Replication, SchemaCheck, Used};
use super::super::job::{
    AbsentTables, CancelledData, Compression, ExistingRows, SchemaMode, SyncSlots, TableFilter,
    YieldToDdl,
};
use super::super::lineage::ChangeOrigin;
use super::super::repair::RepairRows;
use super::super::snapshot::{StoreSnapshot, StoredPlace};
use super::super::tables::{ChangedTables, Followed};
use super::super::verify::{RowAccess, VerifyTables};
use super::node_command::NodeCommand;
use crate::wire::{ByteCount, Epoch, JobId, Lsn, NodeId, PartNo, SnapshotId, TableName};

/// The name and address of a peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerAddress {
    /// The name its certificate must carry.
    pub node: NodeId,
    /// `HOST:PORT` of its QUIC listener.
    pub address: String,
}

/// A command to an agent: as the source of a job, as its target, or about its own node. Each is
/// idempotent by job: repeated, it finds its own work.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Command {
    /// To a source.
    Source(SourceCommand),
    /// To a target.
    Target(TargetCommand),
    /// To either.
    Node(NodeCommand),
}

impl From<SourceCommand> for Command {
    fn from(command: SourceCommand) -> Self {
        Self::Source(command)
    }
}

impl From<TargetCommand> for Command {
    fn from(command: TargetCommand) -> Self {
        Self::Target(command)
    }
}

impl From<NodeCommand> for Command {
    fn from(command: NodeCommand) -> Self {
        Self::Node(command)
    }
}

/// Commands to the source's agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum SourceCommand {
    /// Gather facts and change nothing. From here on `target` may send requests for this job.
    Gather {
        /// The node that will send them.
        target: NodeId,
        /// The tables.
        filter: TableFilter,
        /// Whether the job uses a prepared slot.
        slot: SlotOrigin,
    },
    /// From here on `target` may send requests for this job. Reads nothing.
    Admit {
        /// The node that will send them.
        target: NodeId,
        /// For which tables.
        filter: TableFilter,
        /// The job of an existing replication: the description of the source then includes which
        /// tables its publication carries.
        replicated: Option<JobId>,
    },
    /// Create the publication, the slot with an exported snapshot, and the plan; or the slot alone, at
    /// the position of a snapshot that exists. A snapshot stays open until [`SourceCommand::CloseSnapshot`] or [`SourceCommand::Cleanup`].
    Open(OpenSource),
    /// All rows are copied: close the snapshot, keep the slot.
    CloseSnapshot,
    /// Take a fence LSN and wait until the job's slots have confirmed it.
    AwaitFence {
        /// Epochs before the present one, which have slots of their own.
        earlier: Vec<EarlierEpoch>,
    },
    /// Return totals of what was sent and forget the plan; the slot stays for replication.
    Prove,
    /// The job has succeeded: forget it and stop admitting its target. Slot and publication stay
    /// for replication.
    Release,
    /// Close the snapshot and drop slots and publication.
    Cleanup {
        /// Slots that PostgreSQL's own copy may have left.
        sync_slots: Option<SyncSlots>,
        /// Epochs before the present one, whose slots and publications are dropped too.
        earlier: Vec<EarlierEpoch>,
    },
    /// Create the publication and slot of the command's replication and record their expiry.
    PrepareSlot {
        /// How long the slot is kept without a hand-over.
        expires_seconds: u64,
    },
    /// Drop what [`SourceCommand::PrepareSlot`] created, unless a node uses it.
    DropPrepared,
    /// Record that the target uses the prepared slot, so that it does not expire.
    TakeSlot {
        /// The target.
        target: NodeId,
    },
    /// Read everything under the open snapshot into a store, then close the snapshot. Parts that are
    /// there and whole are kept.
    Store(StoreSnapshot),
    /// Read a stored snapshot again and check everything.
    VerifyStored {
        /// Where it is.
        location: String,
    },
    /// Remove a snapshot's slot, publication and files.
    DeleteSnapshot {
        /// Where its files are, if it was stored.
        location: Option<String>,
    },
    /// The target no longer uses the prepared slot. It is kept for another attempt until it
    /// expires.
    ReturnSlot {
        /// The target.
        target: NodeId,
        /// Whether changes from it may have been applied.
        used: Used,
    },
    /// From here on `target` may compare rows with this node's, or repair its own by them. Reads nothing.
    AdmitVerify {
        /// The node that will.
        target: NodeId,
        /// What it may read.
        access: RowAccess,
    },
    /// From here on `target` may send requests for this job, and have tables join or leave the publication that it
    /// follows. Reads nothing.
    AdmitChange {
        /// The node that will send them.
        target: NodeId,
        /// The tables that join or leave.
        filter: TableFilter,
        /// What the target follows by.
        followed: Box<Followed>,
    },
    /// As [`SourceCommand::Open`], for tables that the target follows already. They stay in the publication that it
    /// follows.
    OpenFollowed(OpenSource),
    /// As [`SourceCommand::AwaitFence`], once every transaction has ended that may have written to the job's tables before
    /// they left the publication that the target follows.
    AwaitFenceAfterWriters {
        /// See [`SourceCommand::AwaitFence`].
        earlier: Vec<EarlierEpoch>,
    },
}

/// Commands to the target's agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum TargetCommand {
    /// Gather facts, compare with the source and change nothing.
    Gather {
        /// The source's agent.
        source: PeerAddress,
        /// The tables.
        filter: TableFilter,
    },
    /// Open a stored snapshot that this agent reads itself.
    Open {
        /// Where it is. Without one, the command fails.
        carried: Option<StoredPlace>,
    },
    /// Create the schema for the rows, or compare an existing one with the source's.
    Prepare(PrepareTarget),
    /// Fetch parts and commit each with its ledger row. Parts already in the ledger are reported as
    /// done.
    Copy(CopyParts),
    /// All rows are committed: build what was deferred, up to and including indexes.
    BuildIndexes {
        /// Concurrent builds.
        parallel: u8,
        /// In the place of [`PrepareTarget::note`].
        note: Option<String>,
    },
    /// Build foreign keys, triggers and the rest.
    BuildConstraints {
        /// Concurrent validations.
        parallel: u8,
    },
    /// Create the subscription on the job's slot, advance its origin and enable it.
    Subscribe {
        /// The source's agent, which supplies the connection string.
        source: PeerAddress,
        /// Where replication starts.
        start: SubscriptionStart,
        /// Which of the source's changes to request.
        origin: ChangeOrigin,
        /// Epochs before the present one: each gets a subscription of its own.
        earlier: Vec<EarlierEpoch>,
    },
    /// Let the subscription of the present epoch carry the tables of the earlier ones too, and drop theirs. All of
    /// them have caught up.
    Fold {
        /// The source's agent, which moves the tables from publication to publication.
        source: PeerAddress,
        /// See `Subscribe`.
        origin: ChangeOrigin,
        /// The earlier epochs.
        earlier: Vec<EarlierEpoch>,
        /// In the place of the one before.
        note: Option<String>,
    },
    /// Native method: wait until every table of the subscription is ready.
    AwaitNativeCopy,
    /// Set sequences, refresh materialised views, `ANALYZE`.
    Finish {
        /// The source's agent.
        source: PeerAddress,
        /// Tables analysed concurrently.
        parallel: u8,
        /// Where sequences are taken from.
        sequences: SequencesFrom,
    },
    /// Return totals of the ledger.
    Prove,
    /// The job has succeeded: drop the ledger.
    Release,
    /// Drop subscription, origin, ledger and, unless kept, the job's rows and tables.
    Cleanup {
        /// Whether rows are kept.
        data: CancelledData,
        /// Epochs before the present one, whose subscriptions are dropped too.
        earlier: Vec<EarlierEpoch>,
        /// The source's agent, if the sequences are to be set to the source's once the subscription is gone.
        sequences: Option<PeerAddress>,
        /// Tables that may have joined the replication that goes on without them.
        joined: Option<Box<ChangedTables>>,
    },
    /// Compare with the source, which must have received [`SourceCommand::Admit`] for the same job.
    Compare {
        /// The source's agent.
        source: PeerAddress,
        /// The tables.
        filter: TableFilter,
        /// What to compare.
        what: Comparison,
    },
    /// Retry objects that could not be created, of whichever job.
    RebuildMissing,
    /// Raise sequences that are behind the source's. It must have received [`SourceCommand::Admit`] for the same job.
    RaiseSequences {
        /// The source's agent.
        source: PeerAddress,
    },
    /// Compare rows with the source's, which must have received [`SourceCommand::AdmitVerify`] for the same job.
    Verify(Box<VerifyTables>),
    /// Let the subscription that the node follows by carry the tables of the job's own, which is then dropped. Both have
    /// caught up.
    Join(Box<ChangedTables>),
    /// Take tables out of the replication that the node follows by. Their rows stay.
    Leave(Box<ChangedTables>),
    /// Write what a page of a plan says, by the rows of the source, which must have received
    /// [`SourceCommand::AdmitVerify`] for the same job.
    Repair(Box<RepairRows>),
    /// The same as [`TargetCommand::Verify`] without these tables, which an earlier one has compared.
    VerifyRest(Box<VerifyTables>, Vec<TableName>),
    /// Make a shadow table for each table of the plan, which the node follows already. The next [`Self::Copy`] fills them.
    PrepareShadows {
        /// The plan and its source.
        prepare: PrepareTarget,
        /// The replication that goes on.
        changed: Box<ChangedTables>,
    },
    /// The shadow tables are complete: take their tables out of the replication that the node follows by, and give them
    /// the new rows, all in one transaction.
    Swap(Box<ChangedTables>),
}

/// Arguments of [`SourceCommand::Open`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OpenSource {
    /// The only node that may fetch.
    pub target: NodeId,
    /// The tables.
    pub filter: TableFilter,
    /// Which of the job's snapshots this is.
    pub epoch: Epoch,
    /// How often the job has taken another snapshot: one that is open from before is closed.
    pub restarts: u8,
    /// After the first epoch, the tables that are still to be copied; they leave the earlier epochs' publications.
    pub unfinished: Vec<TableName>,
    /// The earlier epochs.
    pub earlier: Vec<EarlierEpoch>,
    /// Whether to create a slot and a snapshot.
    pub export: Export,
    /// Number of workers, for the plan.
    pub parallel: u8,
    /// See [`super::super::job::JobSpec::large_table_threshold`].
    pub large_table_threshold: ByteCount,
    /// See [`super::super::job::JobSpec::yield_to_ddl`].
    pub yield_to_ddl: YieldToDdl,
    /// How rows are read.
    pub rows_as: RowsAs,
    /// A stored snapshot's slot is kept that many seconds, even if nobody comes back for it.
    pub kept_seconds: Option<u64>,
    /// Only the snapshot that is open at this position will do: without it the command fails with
    /// [`FaultKind::SourceChanged`](crate::FaultKind::SourceChanged) and opens nothing.
    pub only_at: Option<Lsn>,
    /// The replication that the tables join later.
    pub followed: Option<Box<Followed>>,
}

/// How a snapshot's rows are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RowsAs {
    /// Binary where the types mean the same on both ends.
    TypesAllow,
    /// As text, which is what is stored.
    Text,
}

/// A snapshot of a job that was lost before all was copied: the tables that were complete follow the source by a slot
/// at its position, until they are folded into the present epoch's replication.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EarlierEpoch {
    /// Its publication, slot and subscription.
    pub replication: Replication,
    /// Its consistent point.
    pub lsn: Lsn,
}

/// Arguments of [`TargetCommand::Prepare`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PrepareTarget {
    /// The source's agent.
    pub source: PeerAddress,
    /// The snapshot of the plan. After the first, the schema is there, and the plan's tables are emptied.
    pub epoch: Epoch,
    /// After the first epoch, the tables that were to be copied.
    pub unfinished: Vec<TableName>,
    /// The tables.
    pub filter: TableFilter,
    /// What to do about existing rows.
    pub existing: ExistingRows,
    /// What to do about differences.
    pub schema_mode: SchemaMode,
    /// What to do about absent tables.
    pub absent: AbsentTables,
    /// Where the rows come from.
    pub rows: RowsFrom,
    /// The stored snapshot that this agent reads itself: schema, plan and rows are those in it.
    pub carried: Option<StoredPlace>,
    /// Kept beside the job's record and reported with the node's lineage, so that a coordinator that has lost its
    /// store can go on with the job. Opaque to agents; at most [`crate::limits::JOB_NOTE_MAX`] bytes.
    pub note: Option<String>,
}

/// Where a target's rows come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RowsFrom {
    /// From the source. The schema is created if there is none, otherwise checked, and emptied if
    /// allowed. Indexes and constraints are deferred.
    Copy(IndexTiming),
    /// From a backup restored before the job: the schema is compared with the source's.
    Backup(SchemaCheck),
}

/// Where a target's sequences get their positions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum SequencesFrom {
    /// From the source as it is now, since the target follows it.
    Source,
    /// From the stored snapshot that its rows are from, which the source's agent reads.
    Stored,
    /// The same, which this agent reads itself.
    Carried(StoredPlace),
}

/// Arguments of [`TargetCommand::Copy`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CopyParts {
    /// The source's agent.
    pub source: PeerAddress,
    /// The parts' snapshot.
    pub epoch: Epoch,
    /// Workers.
    pub parallel: u8,
    /// Compression on the wire.
    pub compression: Compression,
    /// Maximum bytes a second over all workers, before compression.
    pub max_rate: Option<ByteCount>,
    /// The parts in order; free workers take the next one.
    pub order: Vec<PartNo>,
    /// Set where several targets share the snapshot.
    pub shared: Option<SharedParts>,
    /// The stored snapshot that this agent reads itself.
    pub carried: Option<StoredPlace>,
}

/// Targets of one snapshot exchange the parts that they have received.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharedParts {
    /// The snapshot.
    pub snapshot: SnapshotId,
    /// The other targets, which may fetch what this one has, and have what it may fetch; at most
    /// [`crate::limits::PEERS_MAX`].
    pub peers: Vec<PeerAddress>,
}

/// The origin of a job's slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SlotOrigin {
    /// The job creates it.
    Made,
    /// It was prepared: [`SourceFacts::slot`](super::super::facts::SourceFacts::slot) describes it.
    Prepared,
}

impl SlotOrigin {
    /// The origin of an existing replication's slot.
    #[must_use]
    pub fn of(replication: &Replication) -> Self {
        if replication.is_prepared() {
            Self::Prepared
        } else {
            Self::Made
        }
    }
}

/// What to compare between two nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Comparison {
    /// Their schemas. The target stores the source's fingerprints.
    Schemas,
    /// What that job's replication carries. Nothing is stored.
    Replicated(JobId),
}

/// What [`SourceCommand::Open`] creates.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Export {
    /// A slot and a snapshot at its consistent point.
    SlotAndSnapshot,
    /// Only a slot: in the native method PostgreSQL takes a snapshot per table.
    Slot,
    /// A slot at the position of a snapshot that is open, a copy of its template. Its parts are read
    /// once for all targets.
    Shared {
        /// Which.
        snapshot: SnapshotId,
    },
    /// A slot at the position of a stored snapshot, a copy of its template. This agent reads its parts.
    Stored(StoredPlace),
    /// The same slot alone: the target reads the stored snapshot itself.
    Template {
        /// Which.
        snapshot: SnapshotId,
    },
    /// Nothing: this agent reads a stored snapshot's parts, and the target will not follow.
    Files(StoredPlace),
}

/// When indexes are built.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum IndexTiming {
    /// After the rows.
    Deferred,
    /// With the tables, before any row, as the native method requires.
    Upfront,
}

/// Where a subscription starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SubscriptionStart {
    /// On the job's own slot, at that LSN.
    AtSlot(Lsn),
    /// PostgreSQL creates a slot and copies by itself.
    NativeCopy,
    /// On a prepared slot, at that LSN, which is later than the slot's own: the origin must be
    /// there, or changes would be applied twice.
    AtOrigin(Lsn),
}
