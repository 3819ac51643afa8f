//! Outcomes of commands.

use serde::{Deserialize, Serialize};

use super::super::facts::{Finding, SourceFacts, TargetFacts};
use super::super::handover::PreparedSlot;
use super::super::job::SyncSlots;
use super::super::merge::SequenceState;
use super::super::repair::RepairReport;
use super::super::schema::{SchemaCursor, SchemaPage, SchemaReview};
use super::super::snapshot::{FoundSnapshot, SealedSnapshot, VerifiedSnapshot};
use super::super::switchover::{SwitchoverFacts, WriteState, WritesStopped};
use super::super::tables::TableList;
use super::super::verify::VerifyReport;
use crate::wire::{ByteCount, Lsn, RowCount, TableName};

/// The outcome of a command.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Outcome {
    /// Success without a result.
    Done,
    /// Of `SourceCommand::Gather`.
    SourceFacts(Box<SourceFacts>),
    /// Of `TargetCommand::Gather`.
    TargetFacts(Box<TargetFacts>),
    /// Of `SourceCommand::Open` and `TargetCommand::Open`: totals of the pages sent before.
    SourceOpened {
        /// The consistent point; 0/0 without a slot.
        lsn: Lsn,
        /// Tables in the plan.
        tables: u32,
        /// Parts in the plan.
        parts: u32,
    },
    /// Of `TargetCommand::Prepare` and the commands that build: problems that did not stop the
    /// job, such as an owner that does not exist on the target.
    Warned(Vec<Finding>),
    /// Of `SourceCommand::AwaitFence`.
    FencePassed {
        /// The fence.
        lsn: Lsn,
    },
    /// Of `TargetCommand::Prove` and `SourceCommand::Prove`.
    Totals {
        /// Distinct parts.
        parts: u32,
        /// Rows in them.
        rows: RowCount,
        /// COPY bytes in them.
        bytes: ByteCount,
    },
    /// Of `NodeCommand::DescribeSchema`.
    SchemaPage {
        /// A page of the schema.
        page: Box<SchemaPage>,
        /// The cursor of the next page.
        next: Option<SchemaCursor>,
    },
    /// Of `NodeCommand::CaptureFingerprints`.
    Captured {
        /// Number of tables.
        tables: u64,
    },
    /// Of `TargetCommand::Compare`.
    Reviewed(Box<SchemaReview>),
    /// Of `SourceCommand::PrepareSlot`.
    SlotPrepared(Box<PreparedSlot>),
    /// Of `TargetCommand::Subscribe` if PostgreSQL copies by itself.
    Subscribed {
        /// The slots it creates for that.
        sync_slots: SyncSlots,
    },
    /// Of `TargetCommand::Finish`.
    Finished {
        /// Problems that did not stop the job.
        findings: Vec<Finding>,
        /// Objects that the target lacks.
        missing: MissingObjects,
    },
    /// Of `TargetCommand::RebuildMissing`.
    Rebuilt(Rebuilt),
    /// Of `SourceCommand::Store`.
    Sealed(SealedSnapshot),
    /// Of `SourceCommand::VerifyStored`.
    Verified(Box<VerifiedSnapshot>),
    /// Of `NodeCommand::FindStored`.
    Found(FoundSnapshot),
    /// Of `TargetCommand::Verify`.
    Compared(Box<VerifyReport>),
    /// Of `TargetCommand::RaiseSequences`.
    SequencesRaised(SequencesRaised),
    /// Of `SwitchoverCommand::Look`.
    SwitchoverFacts(Box<SwitchoverFacts>),
    /// Of `SwitchoverCommand::Close`.
    WritesStopped(WritesStopped),
    /// Of the other commands of a switchover.
    WriteState(WriteState),
    /// Of `NodeCommand::ListTables`.
    Listed(TableList),
    /// Of `TargetCommand::Repair`.
    Repaired(Box<RepairReport>),
    /// Of `NodeCommand::ReadSequences`.
    Sequences(Vec<SequenceState>),
    /// Of `NodeCommand::SetSequences`: some of those that had handed out later values meanwhile.
    /// Nothing is set then.
    SequencesPassed(Vec<TableName>),
}

/// What setting a node's sequences to its source's came to.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SequencesRaised {
    /// Sequences that both ends have.
    pub followed: u64,
    /// Of them, those that were behind.
    pub raised: u64,
    /// What could not be set, a sentence for each cause.
    pub problems: Vec<String>,
    /// A sentence about sequences with names of the source's that are somebody else's, if there are any.
    pub left_alone: Option<String>,
}

/// Objects of the source's schema that could not be created on a node.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MissingObjects {
    /// Number of missing statements.
    pub total: u64,
    /// One per object, and one per role whose ownerships and privileges are missing; at most twice
    /// [`crate::limits::LISTED_MAX`], plus one with the number of further ones.
    pub findings: Vec<Finding>,
}

/// The outcome of a rebuild.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Rebuilt {
    /// Statements that succeeded this time.
    pub made: u64,
    /// Objects still missing.
    pub missing: MissingObjects,
}
