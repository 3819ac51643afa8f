//! Between an agent and the coordinator, on the one session stream the agent opens.
//!
//! The agent registers, then says what it observes; the coordinator gives commands. A command has an
//! id and is idempotent: sent again after a reconnect, it is answered with what it has come to. The
//! agent keeps a finished command's outcome until the coordinator says [`CoordinatorMessage::Forget`].

mod command;
mod membership;
mod mirror;
mod observed;
mod progress;

use serde::{Deserialize, Serialize};

pub use self::command::{
    AfterStop, AtStop, Command, Comparison, CopyParts, Export, IndexTiming, MissingObjects,
    NodeCommand, OpenSource, Outcome, PeerAddress, Policy, PrepareTarget, Rebuilt, RowsFrom,
    SlotOrigin, SourceCommand, SubscriptionStart, TargetCommand,
};
pub use self::membership::{
    AddedRows, AddedTable, CARRIED_MAX, Carried, EnumLabels, JoinedTable, LABELS_MAX, Made,
    PublicationState, PublicationStatus, Published, RowsThere, Subscribed, SubscriptionWiring,
};
pub use self::mirror::{MirrorProgress, MirrorRow};
pub use self::observed::{
    LockConflict, LockRole, Observed, ReplicatedDigest, SlotStatus, SubscriptionStatus,
};
pub use self::progress::{
    PartDone, PartProgress, ProgressReport, TableSummary, WorkProgress, WorkUnit,
};
use super::api::AuditView;
use super::handover::{PreparedSlot, Replication, SlotName};
use super::lineage::Lineage;
use crate::wire::pace::Pace;
use crate::wire::{CommandId, Fault, JobId, NodeState};

/// From an agent to the coordinator.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum AgentMessage {
    /// First on every session.
    Register(Registration),
    /// What is true beside this agent: at once where something stands out, else with the next report
    /// that [`Cadence::due`](crate::pace::Cadence::due) asks for.
    Observed(Observed),
    /// Some tables of a plan; all pages precede the outcome of [`SourceCommand::Open`].
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
    /// Which database this is, whose changes it applies and what of ours is in it: in every session
    /// once PostgreSQL could be asked, and again when it changes.
    Lineage(Box<Lineage>),
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
        /// What carries the job's changes.
        replication: Replication,
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
    /// session ends. Calm before it is said.
    Pace(Pace),
    /// Answers [`AgentMessage::Register`] instead of a welcome; the session ends with it.
    Rejected(Fault),
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
    /// Jobs for which a peer may ask this process.
    pub admitted: Vec<JobId>,
    /// Workers it will run at once, over all jobs.
    pub max_workers: u8,
    /// Where the process listens, in a form that no two processes alive at the same time share. The
    /// same seat with another incarnation means that the process before is gone.
    pub seat: Seat,
}

/// A digest of the machine's boot, the network namespace and the port that an agent listens on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seat(pub u64);
