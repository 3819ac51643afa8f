//! The coordinator's durable state.
//!
//! Owns the interface ([`Store`]) and its implementation ([`sqlite`]). Stores jobs and nodes as values
//! without interpreting them. Writes are collected during one turn of the loop and applied together, before
//! any message is sent: an agent never learns of anything that a restarted coordinator would not know.

use jiff::Timestamp;
pub use steep_protocol::limits::SAMPLES_MAX;
use steep_protocol::message::agent::{PartDone, TableSummary};
use steep_protocol::message::api::{AuditView, EndView, EventView, ProgressSample};
use steep_protocol::{ByteCount, JobId, NodeId, RowCount, SnapshotId, TableNo};

use crate::job::Job;
use crate::job::progress::Mark;
use crate::snapshot::Snapshot;
use crate::switchover::Switchover;

mod error;
mod node;
pub mod sqlite;

pub use self::error::StoreError;
pub use self::node::{Accepted, Columns, LastVerify, LeftBehind, NodeRecord, RegularVerify};

/// The durable state, and why it is durable:
///
/// - **nodes**: state, source, last job, last error. Operators see them, and they decide whether a node
///   may be initialised.
/// - **jobs**, complete, after every step: running commands, and what may be left on which server. A
///   restarted coordinator continues from there; otherwise nobody would drop a slot (G5, G6).
/// - **the plan** of each node's last job, and the **finished parts** of open jobs: the coordinator's own
///   sums are one side of the proof (G4), and progress must not restart at zero. Parts may be written a
///   second late: agents report them again to a restarted coordinator.
/// - **how each job ended**: the final report, which operators ask for days later.
/// - **the next command id**: an agent answers a known id with the old outcome, so a reused id would
///   count as done.
/// - **switchovers**, after every step: who decides what, and which node takes writes.
/// - **samples** of each job's progress, and **when the copy of each table began and ended**, so that a
///   restarted coordinator shows and reports on the whole job.
/// - **events**, and the **audit entries** of operators' orders, with the nodes that do not have them yet.
///
/// Momentary values (rates, parts in flight, observations, connections) are not durable: agents report
/// them again within a second.
///
/// When [`Store::apply`] returns, its writes survive a crash of the process and of the machine. A list
/// leaves out unreadable records and logs them; a single unreadable record is an error for the request
/// that needs it, and never ends the process.
pub trait Store: Send {
    /// Loads what a starting coordinator needs.
    ///
    /// # Errors
    /// [`StoreError`] if the store cannot be read.
    fn load(&mut self) -> Result<Loaded, StoreError>;

    /// Applies all writes in order, or none.
    ///
    /// # Errors
    /// [`StoreError`]; then nothing was written.
    fn apply(&mut self, writes: &[Write]) -> Result<(), StoreError>;

    /// A job, open or not, and how it ended.
    ///
    /// # Errors
    /// [`StoreError`].
    fn job(&mut self, id: JobId) -> Result<Option<StoredJob>, StoreError>;

    /// A job's plan, in order, with the sums of each table when the job was sealed.
    ///
    /// # Errors
    /// [`StoreError`].
    fn plan(&mut self, id: JobId) -> Result<Vec<StoredTable>, StoreError>;

    /// Calls `each` with the finished parts of a job that is not sealed.
    ///
    /// # Errors
    /// [`StoreError`].
    fn parts(&mut self, id: JobId, each: &mut dyn FnMut(PartDone)) -> Result<(), StoreError>;

    /// A job's samples, oldest first; at most [`SAMPLES_MAX`].
    ///
    /// # Errors
    /// [`StoreError`].
    fn samples(&mut self, id: JobId) -> Result<Vec<ProgressSample>, StoreError>;

    /// The last sample of a job, from which a restarted coordinator continues.
    ///
    /// # Errors
    /// [`StoreError`].
    fn last_mark(&mut self, id: JobId) -> Result<Option<Mark>, StoreError>;

    /// Audit entries, oldest first.
    ///
    /// # Errors
    /// [`StoreError`].
    fn audit(&mut self, query: &EventQuery) -> Result<Vec<AuditView>, StoreError>;

    /// How the last finished job of that target ended.
    ///
    /// # Errors
    /// [`StoreError`].
    fn last_end(&mut self, target: &NodeId) -> Result<Option<EndView>, StoreError>;

    /// The newest events of a node, as target or source, or of all nodes; oldest first.
    ///
    /// # Errors
    /// [`StoreError`].
    fn recent_events(
        &mut self,
        node: Option<&NodeId>,
        limit: u32,
    ) -> Result<Vec<EventView>, StoreError>;

    /// Events, oldest first.
    ///
    /// # Errors
    /// [`StoreError`].
    fn events(&mut self, query: &EventQuery) -> Result<Vec<EventView>, StoreError>;
}

/// One change.
#[derive(Debug, Clone, PartialEq)]
pub enum Write {
    /// Inserts or replaces a node.
    Node(Box<NodeRecord>),
    /// Removes a node.
    Forget(NodeId),
    /// Inserts or replaces a snapshot.
    Snapshot(Box<Snapshot>),
    /// Removes a snapshot, and keeps its id. Beyond [`FORGOTTEN_KEPT`], the oldest ids are dropped.
    SnapshotForgotten(SnapshotId),
    /// Inserts or replaces a switchover.
    Switchover(Box<Switchover>),
    /// Removes a switchover.
    SwitchoverForgotten(JobId),
    /// Inserts or replaces a job. A new job drops the plans of earlier jobs of its target.
    Job(Box<Job>),
    /// The first command id of the next job.
    NextCommand(u64),
    /// Tables of a job's plan.
    Plan {
        /// The job.
        job: JobId,
        /// The tables.
        tables: Vec<TableSummary>,
    },
    /// Finished parts.
    Parts {
        /// The job.
        job: JobId,
        /// The parts.
        parts: Vec<PartDone>,
    },
    /// The job has ended: each table's sums replace its parts.
    Seal {
        /// How it ended.
        end: Box<EndView>,
        /// The sums by table.
        tables: Vec<TableSum>,
    },
    /// The job has failed and can be resumed: its parts stay.
    Pause {
        /// How it ended.
        end: Box<EndView>,
    },
    /// A failed job was resumed.
    Reopen {
        /// The job.
        job: JobId,
    },
    /// A job's plan and its finished parts are void.
    PlanDropped {
        /// The job.
        job: JobId,
        /// The tables that earlier epochs have copied, which take their place.
        kept: Vec<(TableSummary, TableSum)>,
    },
    /// A job's progress now. Beyond [`SAMPLES_MAX`] samples of a job, every second one of the older half is
    /// dropped.
    Sample {
        /// The job.
        job: JobId,
        /// Its progress.
        mark: Mark,
    },
    /// When the copy of tables began and ended. May be written a second late, like parts.
    Times {
        /// The job.
        job: JobId,
        /// The tables.
        tables: Vec<TableTimes>,
    },
    /// An audit entry. Beyond [`AUDIT_KEPT`], the oldest are dropped from time to time.
    Audit {
        /// The entry.
        view: Box<AuditView>,
        /// The nodes whose audit log must get it.
        due: Vec<NodeId>,
    },
    /// A node's audit log has the entry.
    Audited {
        /// The node.
        node: NodeId,
        /// The entry's number.
        seq: u64,
    },
    /// An event. Beyond [`EVENTS_KEPT`], the oldest are dropped from time to time.
    Event(EventView),
}

/// Most events kept: months of ordinary use, some tens of megabytes at most.
pub const EVENTS_KEPT: u64 = 100_000;

/// Most finished jobs kept per target, with their reports.
pub const JOBS_KEPT: u32 = 50;

/// Most audit entries kept: more than operators produce in years.
pub const AUDIT_KEPT: u64 = 100_000;

/// Most ids of forgotten snapshots kept: of a snapshot an hour, for longer than any is kept.
pub const FORGOTTEN_KEPT: usize = 10_000;

/// An audit entry that a node's audit log does not have yet.
#[derive(Debug, Clone, PartialEq)]
pub struct AuditDue {
    /// The node.
    pub node: NodeId,
    /// The entry.
    pub view: AuditView,
}

/// The sums of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TableSum {
    /// The table.
    pub no: TableNo,
    /// Parts done.
    pub done: u32,
    /// Rows in them.
    pub rows: RowCount,
    /// COPY bytes in them.
    pub bytes: ByteCount,
}

/// When the copy of a table began and ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TableTimes {
    /// The table.
    pub no: TableNo,
    /// When its first part was reported.
    pub began: Timestamp,
    /// When its last part was committed.
    pub ended: Option<Timestamp>,
}

/// A table of a stored plan.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredTable {
    /// The planned table.
    pub summary: TableSummary,
    /// Its sums when the job was sealed; zeros before.
    pub sum: TableSum,
    /// When its copy began and ended, if it has begun.
    pub times: Option<TableTimes>,
}

/// A job and how it ended.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredJob {
    /// The job.
    pub job: Job,
    /// How it ended, once it has.
    pub end: Option<EndView>,
}

/// What a starting coordinator needs.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    /// Every node.
    pub nodes: Vec<NodeRecord>,
    /// Jobs that are not closed.
    pub open_jobs: Vec<Job>,
    /// Snapshots.
    pub snapshots: Vec<Snapshot>,
    /// Snapshots that were forgotten, oldest first.
    pub forgotten: Vec<SnapshotId>,
    /// Switchovers: those that have not ended, and the last one of each node.
    pub switchovers: Vec<Switchover>,
    /// The first unused command id.
    pub next_command: u64,
    /// The number of the next event.
    pub next_event: u64,
    /// The number of the next audit entry.
    pub next_audit: u64,
    /// Audit entries that nodes have not confirmed, oldest first.
    pub audit_due: Vec<AuditDue>,
}

/// Selects events or audit entries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventQuery {
    /// Those of this node, as target or source; of all nodes if `None`.
    pub node: Option<NodeId>,
    /// Those after this number.
    pub after: u64,
    /// At most this many.
    pub limit: u32,
}
