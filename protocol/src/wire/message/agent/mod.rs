//! Messages between an agent and the coordinator, on the one session stream that the agent opens.
//!
//! The agent registers, then reports what it observes; the coordinator sends commands. A command
//! has an id and is idempotent: if it is sent again after a reconnect, the answer is its outcome so
//! far. The agent keeps a finished command's outcome until [`CoordinatorMessage::Forget`].

mod asked;
mod command;
mod membership;
mod mirror;
mod node_command;
mod observed;
mod outcome;
mod policy;
mod progress;

use serde::{Deserialize, Serialize};

pub use self::command::{
    Command, Comparison, CopyParts, EarlierEpoch, Export, IndexTiming, OpenSource, PeerAddress,
    PrepareTarget, RowsAs, RowsFrom, SequencesFrom, SharedParts, SlotOrigin, SourceCommand,
    SubscriptionStart, TargetCommand,
};
pub use self::membership::{
    AddedRows, AddedTable, CARRIED_MAX, Carried, EnumLabels, JoinedTable, LABELS_MAX, Made,
    PublicationState, PublicationStatus, Published, RowsThere, Subscribed, SubscriptionWiring,
};
pub use self::mirror::{MirrorProgress, MirrorRow};
pub use self::node_command::NodeCommand;
pub use self::observed::{
    LockConflict, LockRole, Observed, ReplicatedDigest, SlotStatus, SubscriptionStatus,
};
pub use self::outcome::{MissingObjects, Outcome, Rebuilt, SequencesRaised};
pub use self::policy::{AfterStop, AtStop, Logged, Policy};
pub use self::progress::{
    PartDone, PartProgress, ProgressReport, TableSummary, WorkProgress, WorkUnit,
};
use super::api::AuditView;
use super::handover::{PreparedSlot, Replication, SlotName};
use super::lineage::Lineage;
use super::snapshot::RecordedSnapshot;
use super::verify::TableReport;
use crate::wire::report_interval::ReportInterval;
use crate::wire::{CommandId, Fault, JobId, Lsn, NodeId, NodeState};

/// From an agent to the coordinator.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum AgentMessage {
    /// The first message of every session.
    Register(Registration),
    /// The state of the server: at once if something stands out, otherwise with the next report
    /// that [`Cadence::due`](crate::report_interval::Cadence::due) allows.
    Observed(Observed),
    /// A page of a plan; all pages precede the outcome of [`SourceCommand::Open`].
    PlanPage {
        /// The job.
        job: JobId,
        /// At most [`crate::limits::SUMMARY_PAGE`] tables, in order of their number.
        tables: Vec<TableSummary>,
    },
    /// Progress, as often as [`Cadence::due`](crate::report_interval::Cadence::due) says.
    Progress(ProgressReport),
    /// These parts are committed, rows and ledger together. May be repeated.
    PartsDone {
        /// The job.
        job: JobId,
        /// The parts.
        parts: Vec<PartDone>,
    },
    /// A command has ended.
    Finished {
        /// Its id.
        command: CommandId,
        /// Its outcome.
        outcome: Result<Outcome, Fault>,
    },
    /// The entry of [`CoordinatorMessage::Audit`] with that number is in `steep_repl.audit_log`.
    Audited {
        /// [`AuditView::seq`].
        seq: u64,
    },
    /// All prepared slots on this node and their states; sent when they change, at most every few
    /// seconds.
    Prepared(Vec<PreparedSlot>),
    /// A prepared slot was dropped because it expired.
    SlotExpired {
        /// Its name.
        slot: SlotName,
    },
    /// The node's lineage: sent in every session once PostgreSQL has been queried, and again when
    /// it changes.
    Lineage(Box<Lineage>),
    /// The newest snapshots that the node's database records, newest first; at most
    /// [`SNAPSHOTS_MAX`](super::snapshot::SNAPSHOTS_MAX). Sent in every session once they have been read, and again when
    /// they change.
    Recorded(Vec<RecordedSnapshot>),
    /// A comparison that goes on has compared a table. Sent once.
    TableCompared {
        /// The comparison.
        job: JobId,
        /// What came of the table.
        report: Box<TableReport>,
    },
}

/// From the coordinator to an agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum CoordinatorMessage {
    /// Answers [`AgentMessage::Register`].
    Welcome {
        /// The node's state in the coordinator's store.
        state: NodeState,
    },
    /// Run this once.
    Command {
        /// Its id.
        id: CommandId,
        /// The job it belongs to.
        job: JobId,
        /// Names of the job's slot, publication and subscription.
        replication: Replication,
        /// The command.
        command: Command,
    },
    /// Cancel that command; it ends with a fault of kind `Cancelled`, also where the agent has not heard of it.
    Abort {
        /// Its id.
        id: CommandId,
        /// The job it belongs to.
        job: JobId,
    },
    /// The outcome is stored; the agent can drop it.
    Forget {
        /// The command's id.
        id: CommandId,
    },
    /// The node's rows in `steep_repl.nodes` and `steep_repl.init_progress`.
    Mirror(MirrorRow),
    /// An entry for this node's `steep_repl.audit_log`. Repeated in every session until
    /// [`AgentMessage::Audited`]; written once.
    Audit(Box<AuditView>),
    /// How often to report, until the next such message or the end of the session. A session starts
    /// with [`ReportInterval::Calm`].
    ReportInterval(ReportInterval),
    /// The answer to [`AgentMessage::Register`] instead of a welcome; the session ends.
    Rejected(Fault),
}

/// An agent's description of itself. Its node name comes from its certificate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Registration {
    /// `HOST:PORT` where other agents reach it.
    pub advertise: String,
    /// The agent's version.
    pub version: String,
    /// Random at each start of the process: if it changed, open snapshots are gone.
    pub incarnation: u64,
    /// The snapshots that this process holds open.
    pub open_snapshots: Vec<HeldSnapshot>,
    /// Jobs whose target may send requests to this process.
    pub admitted: Vec<JobId>,
    /// Workers it can run at once, over all jobs.
    pub max_workers: u8,
    /// The directory for snapshots that are read before they are copied, if it has one.
    pub spool: Option<String>,
    /// Where the process listens, as a value that no two living processes share. The same seat with
    /// another incarnation means that the earlier process is gone.
    pub seat: Seat,
    /// How often its node's sequences are to be set to the source's while it follows; 0 for never.
    pub sequence_interval_seconds: u32,
}

/// A job's snapshot that its source's agent holds open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldSnapshot {
    /// The job.
    pub job: JobId,
    /// The only node that may fetch.
    pub target: NodeId,
    /// Its consistent point.
    pub lsn: Lsn,
}

/// A digest of the machine's boot, the network namespace and the port that an agent listens on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seat(pub u64);
