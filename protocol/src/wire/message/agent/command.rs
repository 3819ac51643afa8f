//! What an agent can be told to do, and what comes of it.

use serde::{Deserialize, Serialize};

use super::super::facts::{Finding, SourceFacts, TargetFacts};
use super::super::handover::{HandoverFacts, PreparedSlot, SchemaCheck, Used};
use super::super::job::{
    CancelledData, Compression, ExistingRows, SchemaMode, SyncSlots, TableFilter, YieldToDdl,
};
use super::super::lineage::ChangeOrigin;
use super::super::schema::{SchemaCursor, SchemaPage, SchemaReview};
use crate::wire::{ByteCount, Epoch, JobId, Lsn, NodeId, PartNo, RowCount};

/// Where and who a peer is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerAddress {
    /// The name its certificate must carry.
    pub node: NodeId,
    /// `HOST:PORT` of its QUIC listener.
    pub address: String,
}

/// What an agent can be told to do. Each is idempotent by job: done again, it finds its own work.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Command {
    /// Source: look, touch nothing. From here on `target` may ask for this job.
    GatherSource {
        /// Who will ask.
        target: NodeId,
        /// Which tables.
        filter: TableFilter,
    },
    /// Target: look, touch nothing, and compare with the source.
    GatherTarget {
        /// The source's agent.
        source: PeerAddress,
        /// Which tables.
        filter: TableFilter,
    },
    /// Source: publication, then slot with exported snapshot, then the plan under it. The snapshot
    /// stays open until [`Command::CloseSnapshot`] or [`Command::CleanupSource`].
    OpenSource {
        /// The one node that may fetch it.
        target: NodeId,
        /// Which tables.
        filter: TableFilter,
        /// Whether a slot and a snapshot are wanted, or only publication and plan.
        export: Export,
        /// Workers that will fetch, for the plan.
        parallel: u8,
        /// See [`super::super::job::JobSpec::large_table_threshold`].
        large_table_threshold: ByteCount,
        /// See [`super::super::job::JobSpec::yield_to_ddl`].
        yield_to_ddl: YieldToDdl,
    },
    /// Target: create the schema where there is none, else check, empty (if told to) and put
    /// indexes and constraints aside.
    PrepareTarget {
        /// The source's agent.
        source: PeerAddress,
        /// Which tables.
        filter: TableFilter,
        /// About rows that are there.
        existing: ExistingRows,
        /// About differences.
        schema_mode: SchemaMode,
        /// Whether indexes wait until after the rows.
        indexes: IndexTiming,
    },
    /// Target: fetch these parts in this order, with that many workers, each committed with its
    /// ledger row. Parts in the ledger already are reported done and not fetched.
    Copy {
        /// The source's agent.
        source: PeerAddress,
        /// The snapshot they belong to.
        epoch: Epoch,
        /// Workers.
        parallel: u8,
        /// Compression on the wire.
        compression: Compression,
        /// Bytes a second over all workers, before compression.
        max_rate: Option<ByteCount>,
        /// The parts; free workers take the next one.
        order: Vec<PartNo>,
    },
    /// Source: all rows are there; end the snapshot, keep the slot.
    CloseSnapshot,
    /// Target: build what was put aside, up to and including indexes.
    BuildIndexes {
        /// Builds at once.
        parallel: u8,
    },
    /// Target: foreign keys, triggers and the rest.
    BuildConstraints {
        /// Validations at once.
        parallel: u8,
    },
    /// Target: subscription on the job's slot, origin at that LSN, enabled.
    Subscribe {
        /// The source's agent, which knows its own connection string.
        source: PeerAddress,
        /// What to begin with.
        start: SubscriptionStart,
        /// Which of the source's changes to take.
        origin: ChangeOrigin,
    },
    /// Target, native method: until every table of the subscription is ready.
    AwaitNativeCopy,
    /// Source: take a fence LSN now and wait until the job's slot has confirmed it.
    AwaitFence,
    /// Target: sequences from the source, materialised views, `ANALYZE`.
    Finish {
        /// The source's agent.
        source: PeerAddress,
        /// Tables analysed at once.
        parallel: u8,
    },
    /// Target: what the ledger holds.
    ProveTarget,
    /// Source: what was sent. Forgets the job's plan; the slot stays, for replication.
    ProveSource,
    /// Target: the job is over and good; forget the ledger.
    ReleaseTarget,
    /// Source: remove slots, publication and snapshot.
    CleanupSource {
        /// Slots that the target's server may have left, where it copies by itself.
        sync_slots: Option<SyncSlots>,
    },
    /// Target: remove subscription, origin, ledger and, unless kept, the rows and tables we made.
    CleanupTarget {
        /// What becomes of the rows.
        data: CancelledData,
    },
    /// Either: read the schema, or give the next page of a reading.
    DescribeSchema {
        /// Of which tables; only for the first page.
        filter: TableFilter,
        /// Which page, unless the first.
        cursor: Option<SchemaCursor>,
    },
    /// Either: store every table's fingerprint as it is now.
    CaptureFingerprints,
    /// Source: from here on `target` may ask for this job. Looks at nothing.
    Admit {
        /// Who will ask.
        target: NodeId,
        /// For which tables.
        filter: TableFilter,
    },
    /// Target: compare with the source, and store the source's fingerprints. The source must have been
    /// told [`Command::Admit`] for the same job.
    CompareSchemas {
        /// The source's agent.
        source: PeerAddress,
        /// Which tables.
        filter: TableFilter,
    },
    /// Source: the job is over and good; forget it, so that its target may not ask any more. Slot and
    /// publication stay, for replication.
    ReleaseSource,
    /// Source: as [`Command::Admit`]; what it describes also says which tables the publication of that
    /// replication carries.
    AdmitReplicated {
        /// Who will ask.
        target: NodeId,
        /// For which tables.
        filter: TableFilter,
        /// The job that made the replication.
        replication: JobId,
    },
    /// Target: compare what that replication carries with the source; stores nothing. The source must
    /// have been told [`Command::AdmitReplicated`] for the same job.
    CompareReplicated {
        /// The source's agent.
        source: PeerAddress,
        /// Which tables.
        filter: TableFilter,
        /// The job that made the replication.
        replication: JobId,
    },
    /// Source: publication and slot of the command's replication, noted with that time of expiry.
    PrepareSlot {
        /// How long the slot is kept for want of a hand-over.
        expires_seconds: u64,
    },
    /// Source: drop what [`Command::PrepareSlot`] made, unless a node uses it.
    DropPrepared,
    /// Source: as [`Command::GatherSource`], and look at the prepared slot.
    GatherHandover {
        /// Who will ask.
        target: NodeId,
        /// Which tables.
        filter: TableFilter,
    },
    /// Source: note that the prepared slot is that target's from here on, so that it does not expire.
    TakeSlot {
        /// The target.
        target: NodeId,
    },
    /// Source: the target does not use the prepared slot after all. It is kept for another try until
    /// it expires.
    ReturnSlot {
        /// The target.
        target: NodeId,
        /// Whether changes may have been applied from it.
        used: Used,
    },
    /// Target: its rows are there; hold its schema against the source's, and do as the mode says.
    MatchSchema {
        /// The source's agent.
        source: PeerAddress,
        /// Which tables.
        filter: TableFilter,
        /// About statements that lose data.
        existing: ExistingRows,
        /// About differences.
        schema_mode: SchemaMode,
        /// Whether there is anything to do at all.
        check: SchemaCheck,
    },
    /// Target: try again what could not be made, whichever job it was.
    RebuildMissing,
}

impl Command {
    /// Its name, for logs.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::GatherSource { .. } => "gather_source",
            Self::GatherTarget { .. } => "gather_target",
            Self::OpenSource { .. } => "open_source",
            Self::PrepareTarget { .. } => "prepare_target",
            Self::Copy { .. } => "copy",
            Self::CloseSnapshot => "close_snapshot",
            Self::BuildIndexes { .. } => "build_indexes",
            Self::BuildConstraints { .. } => "build_constraints",
            Self::Subscribe { .. } => "subscribe",
            Self::AwaitNativeCopy => "await_native_copy",
            Self::AwaitFence => "await_fence",
            Self::Finish { .. } => "finish",
            Self::ProveTarget => "prove_target",
            Self::ProveSource => "prove_source",
            Self::ReleaseTarget => "release_target",
            Self::CleanupSource { .. } => "cleanup_source",
            Self::CleanupTarget { .. } => "cleanup_target",
            Self::DescribeSchema { .. } => "describe_schema",
            Self::CaptureFingerprints => "capture_fingerprints",
            Self::Admit { .. } => "admit",
            Self::CompareSchemas { .. } => "compare_schemas",
            Self::ReleaseSource => "release_source",
            Self::AdmitReplicated { .. } => "admit_replicated",
            Self::CompareReplicated { .. } => "compare_replicated",
            Self::PrepareSlot { .. } => "prepare_slot",
            Self::DropPrepared => "drop_prepared",
            Self::GatherHandover { .. } => "gather_handover",
            Self::TakeSlot { .. } => "take_slot",
            Self::ReturnSlot { .. } => "return_slot",
            Self::MatchSchema { .. } => "match_schema",
            Self::RebuildMissing => "rebuild_missing",
        }
    }
}

/// What [`Command::OpenSource`] makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Export {
    /// A slot and a snapshot, at one consistent point.
    SlotAndSnapshot,
    /// A slot alone: in the native method PostgreSQL takes a snapshot for each table by itself.
    Slot,
}

/// When indexes are built.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum IndexTiming {
    /// After the rows.
    Deferred,
    /// With the tables, before any row: what the native method needs.
    Upfront,
}

/// How a subscription begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SubscriptionStart {
    /// On the job's own slot, from that LSN.
    AtSlot(Lsn),
    /// PostgreSQL makes a slot and copies by itself.
    NativeCopy,
    /// On a prepared slot, from that LSN, which is later than the slot's own: without an origin at it
    /// changes would be applied that the rows have already.
    AtOrigin(Lsn),
}

/// What a command came to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Outcome {
    /// Nothing to tell.
    Done,
    /// Of [`Command::GatherSource`].
    SourceFacts(Box<SourceFacts>),
    /// Of [`Command::GatherTarget`].
    TargetFacts(Box<TargetFacts>),
    /// Of [`Command::OpenSource`]. Totals of the pages sent before.
    SourceOpened {
        /// The consistent point; 0/0 without a slot.
        lsn: Lsn,
        /// Tables in the plan.
        tables: u32,
        /// Parts in the plan.
        parts: u32,
    },
    /// Of [`Command::PrepareTarget`] and the commands that build: what was not as it should be and
    /// did not stop the job, such as an owner that does not exist on the target.
    Warned(Vec<Finding>),
    /// Of [`Command::AwaitFence`].
    FencePassed {
        /// The fence.
        lsn: Lsn,
    },
    /// Of [`Command::ProveTarget`] and [`Command::ProveSource`].
    Totals {
        /// Distinct parts.
        parts: u32,
        /// Rows in them.
        rows: RowCount,
        /// COPY bytes in them.
        bytes: ByteCount,
    },
    /// Of [`Command::DescribeSchema`].
    SchemaPage {
        /// Some of it.
        page: Box<SchemaPage>,
        /// Where it goes on.
        next: Option<SchemaCursor>,
    },
    /// Of [`Command::CaptureFingerprints`].
    Captured {
        /// How many tables.
        tables: u64,
    },
    /// Of [`Command::CompareSchemas`] and [`Command::CompareReplicated`].
    Reviewed(Box<SchemaReview>),
    /// Of [`Command::PrepareSlot`].
    SlotPrepared(Box<PreparedSlot>),
    /// Of [`Command::GatherHandover`].
    HandoverFacts(Box<HandoverFacts>),
    /// Of [`Command::Subscribe`] where PostgreSQL copies by itself.
    Subscribed {
        /// The slots it makes for that.
        sync_slots: SyncSlots,
    },
    /// Of [`Command::Finish`].
    Finished {
        /// What was not as it should be.
        findings: Vec<Finding>,
        /// What the target lacks.
        missing: MissingObjects,
    },
    /// Of [`Command::RebuildMissing`].
    Rebuilt(Rebuilt),
}

/// What a node lacks of its source's schema, because it could not be made there.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MissingObjects {
    /// How many statements that is.
    pub total: u64,
    /// One for each object, and one for each role whose owners and privileges are missing; at most
    /// twice [`crate::limits::LISTED_MAX`] and one that says how many there are more.
    pub findings: Vec<Finding>,
}

/// What a rebuild came to.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Rebuilt {
    /// Statements that worked this time.
    pub made: u64,
    /// What is still missing.
    pub missing: MissingObjects,
}
