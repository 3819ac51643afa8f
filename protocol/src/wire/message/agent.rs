//! Between an agent and the coordinator, on the one session stream the agent opens.
//!
//! The agent registers, then says what it observes; the coordinator gives commands. A command has an
//! id and is idempotent: sent again after a reconnect, it is answered with what it has come to. The
//! agent keeps a finished command's outcome until the coordinator says [`CoordinatorMessage::Forget`].

use serde::{Deserialize, Serialize};

use super::api::AuditView;
use super::facts::{Finding, SourceFacts, TargetFacts};
use super::handover::{HandoverFacts, PreparedSlot, Replication, SchemaCheck, SlotName, Used};
use super::job::{Compression, ExistingRows, SchemaMode, SyncSlots, TableFilter};
use super::schema::{SchemaCursor, SchemaPage, SchemaReview};
use crate::wire::pace::Pace;
use crate::wire::{
    ByteCount, CommandId, Epoch, Fault, JobId, Lsn, NodeId, NodeState, PartNo, Phase, RowCount,
    TableName, TableNo,
};

/// From an agent to the coordinator.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum AgentMessage {
    /// First on every session.
    Register(Registration),
    /// What is true beside this agent: at once where something stands out, else with the next report
    /// that [`Cadence::due`](crate::pace::Cadence::due) asks for.
    Observed(Observed),
    /// Some tables of a plan; all pages precede the outcome of [`Command::OpenSource`].
    PlanPage {
        /// The job.
        job: JobId,
        /// At most [`crate::limits::SUMMARY_PAGE`] tables, in order of their number.
        tables: Vec<TableSummary>,
    },
    /// While something moves, as often as [`Cadence::due`](crate::pace::Cadence::due) says.
    Progress(ProgressReport),
    /// These parts are committed, rows and ledger together. May be said again.
    PartsDone {
        /// The job.
        job: JobId,
        /// The parts.
        parts: Vec<PartDone>,
    },
    /// A command has ended.
    Finished {
        /// Which.
        command: CommandId,
        /// How.
        outcome: Result<Outcome, Fault>,
    },
    /// [`CoordinatorMessage::Audit`] of that number is in `steep_repl.audit_log`.
    Audited {
        /// [`AuditView::seq`].
        seq: u64,
    },
    /// Every slot that is prepared here and how it stands; said when that changes, at most every few
    /// seconds.
    Prepared(Vec<PreparedSlot>),
    /// A prepared slot was dropped because its time was over.
    SlotExpired {
        /// Which.
        slot: SlotName,
    },
}

/// From the coordinator to an agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum CoordinatorMessage {
    /// Answers [`AgentMessage::Register`].
    Welcome {
        /// The node's state as the coordinator holds it.
        state: NodeState,
    },
    /// Do this, once.
    Command {
        /// Its id.
        id: CommandId,
        /// For which job.
        job: JobId,
        /// What.
        command: Command,
    },
    /// Stop that command; it ends with a fault of kind `Cancelled`. Unknown ids are ignored.
    Abort {
        /// Which.
        id: CommandId,
    },
    /// The outcome has been stored; the agent need not keep it.
    Forget {
        /// Which.
        id: CommandId,
    },
    /// What `steep_repl.nodes` and `steep_repl.init_progress` on this node should say.
    Mirror(MirrorRow),
    /// What belongs into this node's `steep_repl.audit_log`. Said again in every session until it is
    /// [`AgentMessage::Audited`]; written once.
    Audit(Box<AuditView>),
    /// How closely somebody looks: speak as often as that asks for, until told otherwise or the
    /// session ends. Calm before it is said. Since protocol 2.
    Pace(Pace),
    /// [`CoordinatorMessage::Command`] for a job whose replication is not named after itself. Since
    /// protocol 2.
    CommandOn {
        /// Its id.
        id: CommandId,
        /// For which job.
        job: JobId,
        /// What carries the job's changes.
        replication: Replication,
        /// What.
        command: Command,
    },
}

/// What an agent is, at the beginning of a session. Its node name comes from its certificate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Registration {
    /// `HOST:PORT` where other agents reach it.
    pub advertise: String,
    /// The agent's version.
    pub version: String,
    /// Random at each start of the process: another value means that open snapshots are gone.
    pub incarnation: u64,
    /// Jobs whose snapshot this process holds open.
    pub open_snapshots: Vec<JobId>,
    /// Workers it will run at once, over all jobs.
    pub max_workers: u8,
}

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
}

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
        /// See [`super::job::JobSpec::large_table_threshold`].
        large_table_threshold: ByteCount,
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

/// What a cancelled job leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum CancelledData {
    /// Nothing: tables we made are dropped, tables we filled are emptied.
    Remove,
    /// Tables and rows as they are (`--keep-data`); indexes put aside are built again.
    Keep,
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
}

/// One table of a plan, as the coordinator needs it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TableSummary {
    /// Its number.
    pub no: TableNo,
    /// Its name.
    pub name: TableName,
    /// Estimated rows (`reltuples`); 0 where PostgreSQL does not know.
    pub rows_estimate: RowCount,
    /// Estimated heap bytes (`relpages` or the file's size), as a weight for the order.
    pub bytes_estimate: ByteCount,
    /// Its first part.
    pub first_part: PartNo,
    /// How many parts.
    pub parts: u32,
}

/// A part that is committed on the target.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PartDone {
    /// Which.
    pub part: PartNo,
    /// Rows, counted alike by both servers.
    pub rows: RowCount,
    /// COPY bytes.
    pub bytes: ByteCount,
    /// Bytes on the wire; 0 where it was found in the ledger.
    pub wire: ByteCount,
}

/// What moves, as the agent at work sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProgressReport {
    /// The job.
    pub job: JobId,
    /// What it is doing.
    pub phase: Phase,
    /// Parts being copied now.
    pub active: Vec<PartProgress>,
    /// For phases that are not counted in parts.
    pub work: Option<WorkProgress>,
    /// How often this process began a part of the job again after a fault.
    pub retries: u64,
}

/// A part on its way.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PartProgress {
    /// Which.
    pub part: PartNo,
    /// COPY bytes so far.
    pub bytes: ByteCount,
    /// Bytes on the wire so far.
    pub wire: ByteCount,
}

/// Work that is not rows: indexes built, WAL to catch up on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkProgress {
    /// Done so far, in `unit`.
    pub done: u64,
    /// In all, in `unit`; may grow.
    pub total: u64,
    /// Of what.
    pub unit: WorkUnit,
    /// The table or object at hand, for display.
    pub current: Option<String>,
    /// How many are at work.
    pub workers: u8,
}

/// What work is counted in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkUnit {
    /// Bytes.
    Bytes,
    /// Statements, indexes, tables: things.
    Items,
}

/// One node's row in its own `steep_repl` tables.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MirrorRow {
    /// Its state.
    pub state: NodeState,
    /// Where it replicates from, or is being initialised from.
    pub source: Option<NodeId>,
    /// The job, where one is or was at work.
    pub job: Option<JobId>,
    /// The phase, while a job is active.
    pub phase: Option<Phase>,
    /// 0 to 100.
    pub overall_percent: f64,
    /// Tables finished and in all.
    pub tables: (u32, u32),
    /// Rows so far.
    pub rows: RowCount,
    /// COPY bytes so far.
    pub bytes: ByteCount,
    /// Why it failed, where it did.
    pub error: Option<String>,
    /// What else `steep_repl.init_progress` says.
    pub progress: MirrorProgress,
}

/// What moves, for SQL users.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct MirrorProgress {
    /// COPY bytes in all, as far as can be told.
    pub bytes_total: ByteCount,
    /// Bytes on the wire so far.
    pub wire_bytes: ByteCount,
    /// Rows a second, smoothed.
    pub rows_sec: f64,
    /// COPY bytes a second, smoothed.
    pub bytes_sec: f64,
    /// Seconds until the phase ends, where that can be told.
    pub eta_seconds: Option<u64>,
    /// Workers busy now.
    pub workers: u8,
    /// Parts that were begun again.
    pub retries: u64,
}
