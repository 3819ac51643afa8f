//! What survives the coordinator.
//!
//! Owns the seam ([`Store`]) and the default behind it ([`sqlite`]). Knows jobs and nodes as values
//! and never what they mean. Writes are collected during one turn of the loop and applied together;
//! only then do messages leave. So an agent never hears of something that a restarted coordinator
//! would not know.

use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
pub use steep_protocol::limits::SAMPLES_MAX;
use steep_protocol::message::agent::{MissingObjects, PartDone, TableSummary};
use steep_protocol::message::api::{AuditView, EndView, EventView, ProgressSample};
use steep_protocol::message::lineage::Lineage;
use steep_protocol::message::schema::SchemaDifference;
use steep_protocol::{ByteCount, JobId, NodeId, NodeState, RowCount, TableName, TableNo};

use crate::job::Job;
use crate::job::membership::Complete;
use crate::job::progress::Mark;

pub mod sqlite;

/// What is durable, and why:
///
/// - **nodes**: state, source, last job, last error. They are what operators see, and what decides
///   whether a node may be initialised at all.
/// - **jobs**, whole, after every step: which commands were given and not ended, what may have been
///   left on which server. A restarted coordinator goes on from there; without it nobody would
///   remove a slot (G5, G6).
/// - **the plan** of each node's last job, and **parts done** of those that are open: the
///   coordinator's own sums are one side of the proof (G4), and progress must not begin at zero
///   again. Parts may be written a second late: agents say them again to a restarted coordinator.
/// - **how each job ended**: the final report, which operators ask for days later.
/// - **the next command id**: an agent answers an id it has seen with what that came to, so an id
///   that was used twice would be taken for done.
/// - **samples** of each job's progress, and **when tables began and ended**, so that a restarted
///   coordinator still shows how it went and reports on all of it.
/// - **events**, and **what operators wanted** with the nodes that have not been told: the audit
///   trail.
///
/// What moves right now (rates, parts on their way, what agents observe, who is connected) is not
/// durable: agents say it again within a second.
///
/// When [`Store::apply`] returns, its writes survive the process and the machine. A list leaves out the
/// records that cannot be read, and logs that; a single one is an error, which costs the answer that
/// needs it and never the process.
pub trait Store: Send {
    /// What a starting coordinator needs.
    ///
    /// # Errors
    /// [`StoreError`] where the store cannot be read or holds what this version cannot.
    fn load(&mut self) -> Result<Loaded, StoreError>;

    /// Writes all or nothing, in this order.
    ///
    /// # Errors
    /// [`StoreError`]; nothing was written then.
    fn apply(&mut self, writes: &[Write]) -> Result<(), StoreError>;

    /// A job, open or not, and how it ended.
    ///
    /// # Errors
    /// [`StoreError`].
    fn job(&mut self, id: JobId) -> Result<Option<StoredJob>, StoreError>;

    /// A job's plan, in order, with what each table had come to when the job was sealed.
    ///
    /// # Errors
    /// [`StoreError`].
    fn plan(&mut self, id: JobId) -> Result<Vec<StoredTable>, StoreError>;

    /// The parts done of a job that is not sealed, one after another.
    ///
    /// # Errors
    /// [`StoreError`].
    fn parts(&mut self, id: JobId, each: &mut dyn FnMut(PartDone)) -> Result<(), StoreError>;

    /// A job's samples, oldest first; at most [`SAMPLES_MAX`].
    ///
    /// # Errors
    /// [`StoreError`].
    fn samples(&mut self, id: JobId) -> Result<Vec<ProgressSample>, StoreError>;

    /// A job's last sample, with what its numbers are made of.
    ///
    /// # Errors
    /// [`StoreError`].
    fn last_mark(&mut self, id: JobId) -> Result<Option<Mark>, StoreError>;

    /// What operators wanted, oldest first.
    ///
    /// # Errors
    /// [`StoreError`].
    fn audit(&mut self, query: &EventQuery) -> Result<Vec<AuditView>, StoreError>;

    /// How the last job of that target that is over ended.
    ///
    /// # Errors
    /// [`StoreError`].
    fn last_end(&mut self, target: &NodeId) -> Result<Option<EndView>, StoreError>;

    /// The newest events of a node, as target or source, or of all; oldest of them first.
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

/// A node, as it is kept.
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
    /// What that job's publication and subscription are named after, where it is not the job.
    #[serde(default)]
    pub replication: Option<JobId>,
    /// When that began.
    pub init_started_at: Option<Timestamp>,
    /// When a job last ended well.
    pub init_completed_at: Option<Timestamp>,
    /// Why the last job failed, or why the node diverged.
    pub error_message: Option<String>,
    /// Its agent's version, when it last registered.
    pub agent_version: Option<String>,
    /// Where other agents reached its agent then.
    pub advertise: Option<String>,
    /// Its PostgreSQL's version, when last seen.
    pub postgres_version: Option<u32>,
    /// How the columns of what it replicates may differ from the source's.
    #[serde(default)]
    pub columns: Columns,
    /// Why it cannot follow any more whatever becomes of slot and subscription: changes may be missing.
    /// Only a new job or a cancel takes it back.
    #[serde(default)]
    pub lost: Option<String>,
    /// What preflight warned of that could stop its subscription, a sentence each.
    pub risks: Vec<String>,
    /// What it lacks of its source's schema, as its agent last said.
    pub missing: MissingObjects,
    /// Tables that entered its replication later and are complete.
    #[serde(default)]
    pub complete: Vec<Complete>,
    /// Tables of its source that were made later and are not replicated, as far as they were told.
    #[serde(default)]
    pub appeared: Vec<TableName>,
    /// Which database it is, whose changes it applies and what of ours is in it, as its agent said last.
    pub lineage: Option<Box<Lineage>>,
    /// Since when nobody can look at it, where that lasts.
    pub unseen_since: Option<Timestamp>,
}

/// How the columns of a synchronized node may differ from its source's.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Columns {
    /// Not at all.
    #[default]
    Equal,
    /// As they do when they are first seen after the job, as far as its mode allows.
    AsFirstSeen,
    /// In this.
    Accepted(Accepted),
}

/// Differences that are no drift.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Accepted {
    /// Each of them.
    pub differences: Vec<SchemaDifference>,
    /// Further ones that were only counted.
    pub unlisted: u64,
}

impl NodeRecord {
    /// A node that was never heard of before.
    #[must_use]
    pub fn new(id: NodeId) -> Self {
        Self {
            id,
            state: NodeState::Uninitialized,
            source: None,
            job: None,
            replication: None,
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
            lineage: None,
            unseen_since: None,
        }
    }

    /// What was noted of its replication is of another one from here on.
    pub fn forget_following(&mut self) {
        self.lost = None;
        self.complete.clear();
        self.appeared.clear();
    }

    /// What publication and subscription of its last job are named after.
    #[must_use]
    pub fn replication(&self) -> Option<JobId> {
        self.replication.or(self.job)
    }
}

/// One change.
#[derive(Debug, Clone, PartialEq)]
pub enum Write {
    /// A node, in place of what was known of it.
    Node(Box<NodeRecord>),
    /// A node is forgotten.
    Forget(NodeId),
    /// A job, in place of what was known of it. A new one of the same target drops the plans of
    /// those before it.
    Job(Box<Job>),
    /// The id that the next job's commands begin with.
    NextCommand(u64),
    /// Tables of a job's plan.
    Plan {
        /// The job.
        job: JobId,
        /// The tables.
        tables: Vec<TableSummary>,
    },
    /// Parts that are done.
    Parts {
        /// The job.
        job: JobId,
        /// The parts.
        parts: Vec<PartDone>,
    },
    /// The job is over: each table's sum takes the place of its parts.
    Seal {
        /// How it ended.
        end: Box<EndView>,
        /// The sums.
        tables: Vec<TableSum>,
    },
    /// The job has failed and may go on: how it ended, and its parts stay.
    Pause {
        /// How it ended.
        end: Box<EndView>,
    },
    /// A job that had failed goes on.
    Reopen {
        /// The job.
        job: JobId,
    },
    /// A job's plan, and the parts that were done of it, hold no longer.
    PlanDropped {
        /// The job.
        job: JobId,
    },
    /// Where a job's progress is now. Of more than [`SAMPLES_MAX`] of one job, every second one of
    /// the older half is dropped.
    Sample {
        /// The job.
        job: JobId,
        /// Where it is.
        mark: Mark,
    },
    /// When tables of a job began and ended. May be written a second late, as parts are.
    Times {
        /// The job.
        job: JobId,
        /// The tables.
        tables: Vec<TableTimes>,
    },
    /// What an operator wanted. Those older than [`AUDIT_KEPT`] are dropped now and then.
    Audit {
        /// The entry.
        view: Box<AuditView>,
        /// The nodes whose audit log it belongs into.
        due: Vec<NodeId>,
    },
    /// An entry is in that node's audit log.
    Audited {
        /// The node.
        node: NodeId,
        /// The entry's number.
        seq: u64,
    },
    /// Something that happened. Events older than [`EVENTS_KEPT`] are dropped now and then.
    Event(EventView),
}

/// Events kept: months of ordinary use, some tens of megabytes at most.
pub const EVENTS_KEPT: u64 = 100_000;

/// Jobs of one target that are kept once they are over, with their reports.
pub const JOBS_KEPT: u32 = 50;

/// Audit entries kept: more than any cluster's operators have in years.
pub const AUDIT_KEPT: u64 = 100_000;

/// An entry that a node's audit log does not have yet.
#[derive(Debug, Clone, PartialEq)]
pub struct AuditDue {
    /// The node.
    pub node: NodeId,
    /// The entry.
    pub view: AuditView,
}

/// What a table had come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TableSum {
    /// Which.
    pub no: TableNo,
    /// Parts done.
    pub done: u32,
    /// Rows in them.
    pub rows: RowCount,
    /// COPY bytes in them.
    pub bytes: ByteCount,
}

/// When a table's copy began and ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TableTimes {
    /// Which.
    pub no: TableNo,
    /// When its first part was heard of.
    pub began: Timestamp,
    /// When its last part was committed.
    pub ended: Option<Timestamp>,
}

/// A table of a stored plan.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredTable {
    /// As it was planned.
    pub summary: TableSummary,
    /// What it had come to when its job was sealed; zeros before.
    pub sum: TableSum,
    /// When it began, where it has, and ended.
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
    /// The first command id that was never used.
    pub next_command: u64,
    /// The number of the next event.
    pub next_event: u64,
    /// The number of the next audit entry.
    pub next_audit: u64,
    /// Audit entries that nodes have not confirmed, oldest first.
    pub audit_due: Vec<AuditDue>,
}

/// Which events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventQuery {
    /// Those of this node, as target or source; of all where `None`.
    pub node: Option<NodeId>,
    /// Those after this number.
    pub after: u64,
    /// At most so many.
    pub limit: u32,
}

/// Why the store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The directory or file cannot be made, opened or locked.
    #[error("cannot {what} {}: {source}", path.display())]
    File {
        /// What was tried.
        what: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// Somebody else could write to the directory or a file of it.
    #[error("{} is no place for the store: {why}", path.display())]
    Place {
        /// Which.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        why: String,
    },
    /// Another coordinator uses the directory.
    #[error(
        "another coordinator is using {}: stop it, or give this one its own --data-dir",
        path.display()
    )]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// Written by a newer version.
    #[error("the store has schema version {found}, this build knows up to {known}: upgrade it")]
    TooNew {
        /// What is there.
        found: i64,
        /// What this build knows.
        known: i64,
    },
    /// Something in it does not read back.
    #[error("the store's {what} cannot be read: {reason}")]
    Corrupt {
        /// What.
        what: String,
        /// Why.
        reason: String,
    },
    /// SQLite says no: a full disk, most often.
    #[error("the store failed: {0}")]
    Database(#[from] rusqlite::Error),
}
