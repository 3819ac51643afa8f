//! What an agent can be told to do, and what comes of it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::super::facts::{Finding, SourceFacts, TargetFacts};
use super::super::handover::{PreparedSlot, Replication, SchemaCheck, Used};
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

/// What an agent can be told to do: as the source of a job, as its target, or about its own node. Each
/// command is idempotent by job: done again, it finds its own work.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Command {
    /// As a source.
    Source(SourceCommand),
    /// As a target.
    Target(TargetCommand),
    /// As either.
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

/// What the source's agent can be told to do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum SourceCommand {
    /// Look, touch nothing. From here on `target` may ask for this job.
    Gather {
        /// Who will ask.
        target: NodeId,
        /// Which tables.
        filter: TableFilter,
        /// Which slot the job uses.
        slot: SlotOrigin,
    },
    /// From here on `target` may ask for this job. Looks at nothing.
    Admit {
        /// Who will ask.
        target: NodeId,
        /// For which tables.
        filter: TableFilter,
        /// The job that made a replication: then the description of the source also says which tables
        /// the publication of that replication carries.
        replicated: Option<JobId>,
    },
    /// Publication, then slot with exported snapshot, then the plan under it. The snapshot stays open
    /// until [`SourceCommand::CloseSnapshot`] or [`SourceCommand::Cleanup`].
    Open(OpenSource),
    /// All rows are there; end the snapshot, keep the slot.
    CloseSnapshot,
    /// Take a fence LSN now and wait until the job's slot has confirmed it.
    AwaitFence,
    /// Sum up what was sent. Forgets the job's plan; the slot stays, for replication.
    Prove,
    /// The job is over and good; forget it, so that its target may not ask any more. Slot and
    /// publication stay, for replication.
    Release,
    /// End the snapshot and remove slots and publication.
    Cleanup {
        /// Slots that the target's server may have left, where it copies by itself.
        sync_slots: Option<SyncSlots>,
    },
    /// Make publication and slot of the command's replication, noted with that time of expiry.
    PrepareSlot {
        /// How long the slot is kept for want of a hand-over.
        expires_seconds: u64,
    },
    /// Drop what [`SourceCommand::PrepareSlot`] made, unless a node uses it.
    DropPrepared,
    /// Note that the prepared slot is that target's from here on, so that it does not expire.
    TakeSlot {
        /// The target.
        target: NodeId,
    },
    /// The target does not use the prepared slot after all. It is kept for another try until it expires.
    ReturnSlot {
        /// The target.
        target: NodeId,
        /// Whether changes may have been applied from it.
        used: Used,
    },
}

/// What the target's agent can be told to do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum TargetCommand {
    /// Look, touch nothing, and compare with the source.
    Gather {
        /// The source's agent.
        source: PeerAddress,
        /// Which tables.
        filter: TableFilter,
    },
    /// Make the schema ready for the rows, or hold it against the source's where they are there.
    Prepare(PrepareTarget),
    /// Fetch parts, each committed with its ledger row. Parts in the ledger already are reported done
    /// and not fetched.
    Copy(CopyParts),
    /// Build what was deferred, up to and including indexes.
    BuildIndexes {
        /// Builds at once.
        parallel: u8,
    },
    /// Build foreign keys, triggers and the rest.
    BuildConstraints {
        /// Validations at once.
        parallel: u8,
    },
    /// Make the subscription on the job's slot, move its origin to that LSN, enable it.
    Subscribe {
        /// The source's agent, which knows its own connection string.
        source: PeerAddress,
        /// What to begin with.
        start: SubscriptionStart,
        /// Which of the source's changes to take.
        origin: ChangeOrigin,
    },
    /// Native method: wait until every table of the subscription is ready.
    AwaitNativeCopy,
    /// Sequences from the source, materialised views, `ANALYZE`.
    Finish {
        /// The source's agent.
        source: PeerAddress,
        /// Tables analysed at once.
        parallel: u8,
    },
    /// Sum up the ledger.
    Prove,
    /// The job is over and good; forget the ledger.
    Release,
    /// Remove subscription, origin, ledger and, unless kept, the rows and tables we made.
    Cleanup {
        /// What becomes of the rows.
        data: CancelledData,
    },
    /// Compare with the source, which must have been told [`SourceCommand::Admit`] for the same job.
    Compare {
        /// The source's agent.
        source: PeerAddress,
        /// Which tables.
        filter: TableFilter,
        /// What of them.
        what: Comparison,
    },
    /// Try again what could not be made, whichever job it was.
    RebuildMissing,
}

/// What any agent can be told to do about its own node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum NodeCommand {
    /// Read the schema, or give the next page of a reading.
    DescribeSchema {
        /// Of which tables; only for the first page.
        filter: TableFilter,
        /// Which page, unless the first.
        cursor: Option<SchemaCursor>,
    },
    /// Store every table's fingerprint as it is now.
    CaptureFingerprints,
}

/// Of [`SourceCommand::Open`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OpenSource {
    /// The one node that may fetch it.
    pub target: NodeId,
    /// Which tables.
    pub filter: TableFilter,
    /// Whether a slot and a snapshot are wanted, or only publication and plan.
    pub export: Export,
    /// Workers that will fetch, for the plan.
    pub parallel: u8,
    /// See [`super::super::job::JobSpec::large_table_threshold`].
    pub large_table_threshold: ByteCount,
    /// See [`super::super::job::JobSpec::yield_to_ddl`].
    pub yield_to_ddl: YieldToDdl,
}

/// Of [`TargetCommand::Prepare`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PrepareTarget {
    /// The source's agent.
    pub source: PeerAddress,
    /// Which tables.
    pub filter: TableFilter,
    /// About rows that are there.
    pub existing: ExistingRows,
    /// About differences.
    pub schema_mode: SchemaMode,
    /// Where its rows come from.
    pub rows: RowsFrom,
}

/// Where a target's rows come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RowsFrom {
    /// The source: the schema is created where there is none, else checked and emptied (if told to), and
    /// indexes and constraints are deferred until then.
    Copy(IndexTiming),
    /// A backup, which was restored before the job: the schema is held against the source's.
    Backup(SchemaCheck),
}

/// Of [`TargetCommand::Copy`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CopyParts {
    /// The source's agent.
    pub source: PeerAddress,
    /// The snapshot they belong to.
    pub epoch: Epoch,
    /// Workers.
    pub parallel: u8,
    /// Compression on the wire.
    pub compression: Compression,
    /// Bytes a second over all workers, before compression.
    pub max_rate: Option<ByteCount>,
    /// The parts; free workers take the next one.
    pub order: Vec<PartNo>,
}

/// Whose slot a job uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SlotOrigin {
    /// One that it makes.
    Made,
    /// One that was prepared: [`SourceFacts::slot`] tells of it.
    Prepared,
}

impl SlotOrigin {
    /// Where a job's slot, once it is there, comes from.
    #[must_use]
    pub fn of(replication: &Replication) -> Self {
        if replication.is_prepared() {
            Self::Prepared
        } else {
            Self::Made
        }
    }
}

/// What of two nodes is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Comparison {
    /// Their schemas. The target stores the source's fingerprints.
    Schemas,
    /// What the replication of that job carries. Nothing is stored.
    Replicated(JobId),
}

/// How a command is treated, beside being done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Its name in logs and traces.
    pub name: &'static str,
    /// What becomes of it when its agent is told to stop.
    pub at_stop: AtStop,
    /// What its agent does where it comes after that.
    pub after_stop: AfterStop,
    /// How long the coordinator waits for its outcome where it belongs to no job. A job has its own time.
    pub limit: Duration,
}

/// What becomes of a command at work when its agent is told to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AtStop {
    /// It has until the deadline; of a copy, the parts under way.
    Finish,
    /// It is cancelled at once, and given again to the next process.
    Cancel,
}

/// What an agent that was told to stop does about a command that comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AfterStop {
    /// It does it: the command ends or removes something.
    Do,
    /// It does not answer: the command is a job's, and is given again to the next process.
    Ignore,
    /// It refuses: somebody waits for an answer, and can ask again.
    Refuse,
}

impl Policy {
    /// A step of a job that takes seconds, or can be broken off between two parts.
    const STEP: Self = Self {
        name: "",
        at_stop: AtStop::Finish,
        after_stop: AfterStop::Ignore,
        // Longer than any catalog query or dial of an agent takes.
        limit: Duration::from_secs(60),
    };
    /// A step of a job that is one statement, or one wait, and can take hours.
    const LONG_STEP: Self = Self {
        at_stop: AtStop::Cancel,
        ..Self::STEP
    };
    /// Ends or removes something. Old transactions and locks can hold it up.
    const REMOVAL: Self = Self {
        after_stop: AfterStop::Do,
        limit: Duration::from_secs(600),
        ..Self::STEP
    };
    /// Answers somebody who waits. Reading the largest catalog takes less than its limit.
    const QUESTION: Self = Self {
        after_stop: AfterStop::Refuse,
        limit: Duration::from_secs(120),
        ..Self::STEP
    };

    const fn named(self, name: &'static str) -> Self {
        Self { name, ..self }
    }

    const fn within(self, limit: Duration) -> Self {
        Self { limit, ..self }
    }
}

impl Command {
    /// How it is treated.
    #[must_use]
    pub fn policy(&self) -> Policy {
        match self {
            Self::Source(command) => command.policy(),
            Self::Target(command) => command.policy(),
            Self::Node(command) => command.policy(),
        }
    }

    /// The source's agent, where the command says to whom the target must turn.
    #[must_use]
    pub fn peer(&self) -> Option<&PeerAddress> {
        let Self::Target(command) = self else {
            return None;
        };
        match command {
            TargetCommand::Gather { source, .. }
            | TargetCommand::Prepare(PrepareTarget { source, .. })
            | TargetCommand::Copy(CopyParts { source, .. })
            | TargetCommand::Subscribe { source, .. }
            | TargetCommand::Finish { source, .. }
            | TargetCommand::Compare { source, .. } => Some(source),
            TargetCommand::BuildIndexes { .. }
            | TargetCommand::BuildConstraints { .. }
            | TargetCommand::AwaitNativeCopy
            | TargetCommand::Prove
            | TargetCommand::Release
            | TargetCommand::Cleanup { .. }
            | TargetCommand::RebuildMissing => None,
        }
    }
}

impl SourceCommand {
    fn policy(&self) -> Policy {
        match self {
            Self::Gather { slot, .. } => Policy::STEP.named(match slot {
                SlotOrigin::Made => "gather_source",
                SlotOrigin::Prepared => "gather_handover",
            }),
            Self::Admit { replicated, .. } => Policy::QUESTION.named(match replicated {
                None => "admit",
                Some(_) => "admit_replicated",
            }),
            Self::Open(_) => Policy::LONG_STEP.named("open_source"),
            Self::CloseSnapshot => Policy::REMOVAL.named("close_snapshot"),
            Self::AwaitFence => Policy::LONG_STEP.named("await_fence"),
            Self::Prove => Policy::STEP.named("prove_source"),
            Self::Release => Policy::REMOVAL.named("release_source"),
            Self::Cleanup { .. } => Policy::REMOVAL.named("cleanup_source"),
            // A new slot waits for transactions that were running before it.
            Self::PrepareSlot { .. } => Policy::QUESTION
                .named("prepare_slot")
                .within(Policy::REMOVAL.limit),
            Self::DropPrepared => Policy::REMOVAL.named("drop_prepared"),
            Self::TakeSlot { .. } => Policy::STEP.named("take_slot"),
            Self::ReturnSlot { .. } => Policy::REMOVAL.named("return_slot"),
        }
    }
}

impl TargetCommand {
    fn policy(&self) -> Policy {
        match self {
            Self::Gather { .. } => Policy::STEP.named("gather_target"),
            Self::Prepare(request) => Policy::STEP.named(match request.rows {
                RowsFrom::Copy(_) => "prepare_target",
                RowsFrom::Backup(_) => "match_schema",
            }),
            Self::Copy(_) => Policy::STEP.named("copy"),
            Self::BuildIndexes { .. } => Policy::LONG_STEP.named("build_indexes"),
            Self::BuildConstraints { .. } => Policy::LONG_STEP.named("build_constraints"),
            Self::Subscribe { .. } => Policy::STEP.named("subscribe"),
            Self::AwaitNativeCopy => Policy::LONG_STEP.named("await_native_copy"),
            Self::Finish { .. } => Policy::LONG_STEP.named("finish"),
            Self::Prove => Policy::STEP.named("prove_target"),
            Self::Release => Policy::REMOVAL.named("release_target"),
            Self::Cleanup { .. } => Policy::REMOVAL.named("cleanup_target"),
            Self::Compare { what, .. } => Policy::QUESTION.named(match what {
                Comparison::Schemas => "compare_schemas",
                Comparison::Replicated(_) => "compare_replicated",
            }),
            // Indexes of large tables are among what is missing.
            Self::RebuildMissing => Policy {
                at_stop: AtStop::Cancel,
                ..Policy::QUESTION.named("rebuild_missing")
            }
            .within(Duration::from_secs(24 * 3600)),
        }
    }
}

impl NodeCommand {
    fn policy(&self) -> Policy {
        match self {
            Self::DescribeSchema { .. } => Policy::QUESTION.named("describe_schema"),
            Self::CaptureFingerprints => Policy::QUESTION.named("capture_fingerprints"),
        }
    }
}

/// What [`SourceCommand::Open`] makes.
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
    /// Of [`SourceCommand::Gather`].
    SourceFacts(Box<SourceFacts>),
    /// Of [`TargetCommand::Gather`].
    TargetFacts(Box<TargetFacts>),
    /// Of [`SourceCommand::Open`]. Totals of the pages sent before.
    SourceOpened {
        /// The consistent point; 0/0 without a slot.
        lsn: Lsn,
        /// Tables in the plan.
        tables: u32,
        /// Parts in the plan.
        parts: u32,
    },
    /// Of [`TargetCommand::Prepare`] and the commands that build: what was not as it should be and
    /// did not stop the job, such as an owner that does not exist on the target.
    Warned(Vec<Finding>),
    /// Of [`SourceCommand::AwaitFence`].
    FencePassed {
        /// The fence.
        lsn: Lsn,
    },
    /// Of [`TargetCommand::Prove`] and [`SourceCommand::Prove`].
    Totals {
        /// Distinct parts.
        parts: u32,
        /// Rows in them.
        rows: RowCount,
        /// COPY bytes in them.
        bytes: ByteCount,
    },
    /// Of [`NodeCommand::DescribeSchema`].
    SchemaPage {
        /// Some of it.
        page: Box<SchemaPage>,
        /// Where it goes on.
        next: Option<SchemaCursor>,
    },
    /// Of [`NodeCommand::CaptureFingerprints`].
    Captured {
        /// How many tables.
        tables: u64,
    },
    /// Of [`TargetCommand::Compare`].
    Reviewed(Box<SchemaReview>),
    /// Of [`SourceCommand::PrepareSlot`].
    SlotPrepared(Box<PreparedSlot>),
    /// Of [`TargetCommand::Subscribe`] where PostgreSQL copies by itself.
    Subscribed {
        /// The slots it makes for that.
        sync_slots: SyncSlots,
    },
    /// Of [`TargetCommand::Finish`].
    Finished {
        /// What was not as it should be.
        findings: Vec<Finding>,
        /// What the target lacks.
        missing: MissingObjects,
    },
    /// Of [`TargetCommand::RebuildMissing`].
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ends_a_job_is_done_and_has_time_and_what_may_last_hours_has_none() {
        let cleanup = Command::from(SourceCommand::Cleanup { sync_slots: None }).policy();
        assert_eq!(cleanup.after_stop, AfterStop::Do);
        assert_eq!(cleanup.at_stop, AtStop::Finish);
        let index = Command::from(TargetCommand::BuildIndexes { parallel: 1 }).policy();
        assert_eq!(index.after_stop, AfterStop::Ignore);
        assert_eq!(index.at_stop, AtStop::Cancel);
        let capture = Command::from(NodeCommand::CaptureFingerprints).policy();
        assert_eq!(capture.after_stop, AfterStop::Refuse);
    }
}
