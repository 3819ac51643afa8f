//! The coordinator's durable state.
//!
//! Owns the interface ([`Store`]) and its implementation ([`sqlite`]). Stores jobs and nodes as values
//! without interpreting them. Writes are collected during one turn of the loop and applied together, before
//! any message is sent: an agent never learns of anything that a restarted coordinator would not know.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
pub use steep_protocol::limits::SAMPLES_MAX;
use steep_protocol::message::agent::{MissingObjects, PartDone, TableSummary};
use steep_protocol::message::api::{AuditView, DetachedFrom, EndView, EventView, ProgressSample};
use steep_protocol::message::handover::{Replication, SlotName};
use steep_protocol::message::job::NewTables;
use steep_protocol::message::lineage::Lineage;
use steep_protocol::message::schema::SchemaDifference;
use steep_protocol::message::snapshot::LoadedSnapshot;
use steep_protocol::message::verify::VerifySchedule;
use steep_protocol::{
    ByteCount, JobId, NodeId, NodeState, RowCount, SnapshotId, TableName, TableNo,
};

use crate::job::Job;
use crate::job::membership::Complete;
use crate::job::progress::Mark;
use crate::snapshot::Snapshot;
use crate::switchover::Switchover;

mod error;
pub mod sqlite;

pub use self::error::StoreError;

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

/// A node as it is stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Its name.
    pub id: NodeId,
    /// Its state.
    pub state: NodeState,
    /// Where its rows come from.
    pub source: Option<NodeId>,
    /// Its last job.
    pub job: Option<JobId>,
    /// The job that changes its tables, while that runs.
    #[serde(default)]
    pub change: Option<JobId>,
    /// The id that the last job's publication and subscription are named after, if not its own.
    #[serde(default)]
    pub replication: Option<JobId>,
    /// Its slot on the source, if it is not named like the replication.
    #[serde(default)]
    pub slot: Option<SlotName>,
    /// When the last job began.
    pub init_started_at: Option<Timestamp>,
    /// When a job last succeeded.
    pub init_completed_at: Option<Timestamp>,
    /// Why the last job failed, or why the node diverged.
    pub error_message: Option<String>,
    /// Its agent's version, when it last registered.
    pub agent_version: Option<String>,
    /// Where other agents reached its agent, when it last registered.
    pub advertise: Option<String>,
    /// Its PostgreSQL's version, when last seen.
    pub postgres_version: Option<u32>,
    /// How the columns of its replicated tables may differ from the source's.
    #[serde(default)]
    pub columns: Columns,
    /// Why changes may be missing, so that it cannot follow even with a working slot and subscription. Only
    /// a new job or a cancel clears it.
    #[serde(default)]
    pub lost: Option<String>,
    /// Preflight warnings that could stop its subscription, a sentence each.
    pub risks: Vec<String>,
    /// What it lacks of its source's schema, as last reported by its agent.
    pub missing: MissingObjects,
    /// Complete tables that entered its replication later.
    #[serde(default)]
    pub complete: Vec<Complete>,
    /// Tables of its source that were created later, are not replicated and have been announced.
    #[serde(default)]
    pub appeared: Vec<TableName>,
    /// What happens to tables that are created on its source later.
    #[serde(default)]
    pub new_tables: NewTables,
    /// What was loaded into it without replication, where its last job did that.
    #[serde(default)]
    pub loaded: Option<LoadedSnapshot>,
    /// From whom it was detached, if nothing has happened to its rows since.
    #[serde(default)]
    pub detached: Option<DetachedFrom>,
    /// What it left on sources that were away when it was detached.
    #[serde(default)]
    pub left: Vec<LeftBehind>,
    /// How its rows are compared regularly.
    #[serde(default)]
    pub verify: Option<RegularVerify>,
    /// Its database's identity, its subscriptions and traces of jobs, as last reported by its agent.
    pub lineage: Option<Box<Lineage>>,
    /// Since when it cannot be observed.
    pub unseen_since: Option<Timestamp>,
}

/// Comparisons of a node's rows with its source's that the coordinator begins by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegularVerify {
    /// The source.
    pub source: NodeId,
    /// How.
    pub schedule: VerifySchedule,
    /// When the next one begins.
    pub next_at: Timestamp,
    /// Which rows differ, until a comparison finds none.
    pub differ: Option<String>,
    /// The last one.
    pub last: Option<LastVerify>,
}

/// What came of such a comparison.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastVerify {
    /// When it ended.
    pub at: Timestamp,
    /// Whether rows are equal, where that is known.
    pub equal: Option<bool>,
    /// Which tables differ, or why that is not known.
    pub message: Option<String>,
}

/// A slot with its publication that a node has left on a source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftBehind {
    /// The source.
    pub source: NodeId,
    /// What replicated from there.
    pub replication: Replication,
}

/// How the columns of a synchronized node may differ from its source's without being drift.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Columns {
    /// Not at all.
    #[default]
    Equal,
    /// As when first observed after the job, as far as its mode allows.
    AsFirstSeen,
    /// In these ways.
    Accepted(Accepted),
}

/// Accepted differences.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Accepted {
    /// The listed ones.
    pub differences: Vec<SchemaDifference>,
    /// The number of further ones.
    pub unlisted: u64,
}

impl NodeRecord {
    /// A new node.
    #[must_use]
    pub fn new(id: NodeId) -> Self {
        Self {
            id,
            state: NodeState::Uninitialized,
            source: None,
            job: None,
            change: None,
            replication: None,
            slot: None,
            init_started_at: None,
            init_completed_at: None,
            error_message: None,
            agent_version: None,
            advertise: None,
            postgres_version: None,
            columns: Columns::Equal,
            lost: None,
            risks: Vec::new(),
            missing: MissingObjects::default(),
            complete: Vec::new(),
            appeared: Vec::new(),
            new_tables: NewTables::Report,
            loaded: None,
            detached: None,
            left: Vec::new(),
            verify: None,
            lineage: None,
            unseen_since: None,
        }
    }

    /// Clears what was recorded about its replication, before another one begins.
    pub fn forget_following(&mut self) {
        self.lost = None;
        self.complete.clear();
        self.appeared.clear();
        if let Some(regular) = &mut self.verify {
            regular.differ = None;
        }
    }

    /// The job at work on it, or else its last one.
    #[must_use]
    pub fn newest_job(&self) -> Option<JobId> {
        self.change.or(self.job)
    }

    /// Notes what its last job replicates by.
    pub fn replicates_by(&mut self, replication: &Replication) {
        self.replication = (self.job != Some(replication.id)).then_some(replication.id);
        self.slot = replication.is_prepared().then(|| replication.slot.clone());
    }

    /// The id that publication and subscription of its last job are named after.
    #[must_use]
    pub fn replication(&self) -> Option<JobId> {
        self.replication.or(self.job)
    }
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
