//! Between the CLI and the coordinator. One stream per request: the request, then replies until
//! [`ApiReply::End`] or [`ApiReply::Fault`]. Field names are those of the CLI's JSON.

mod detach;
mod report;
mod request;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

pub use self::detach::{DetachPlan, DetachedFrom, SequencesView};
pub use self::report::{EndView, JobView, LostSnapshot, PhaseSeconds, Report, TableTime};
pub use self::request::{
    AbsentSource, Afterwards, ApiRequest, DetachSpec, InitRequest, Order, Query,
};
use super::adjust::Adjusted;
use super::agent::{LockRole, MissingObjects, Rebuilt, WorkProgress};
use super::facts::Finding;
use super::handover::PreparedSlot;
use super::repair::RepairReport;
use super::schema::SchemaPage;
use super::snapshot::{FoundSnapshot, LoadedSnapshot, SnapshotView, VerifiedSnapshot};
use super::switchover::SwitchoverView;
use super::tables::TableList;
use super::verify::{ScheduleView, TableReport, VerifyReport};
use crate::wire::{Fault, JobId, NodeId, NodeState, Phase};

/// What the coordinator answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum ApiReply {
    /// Nodes, by name.
    Nodes(Vec<NodeView>),
    /// Something that happened.
    Event(EventView),
    /// What preflight found for one target.
    Findings {
        /// The target.
        target: NodeId,
        /// Gravest first.
        findings: Vec<Finding>,
    },
    /// The jobs are stored and will run whether or not anyone watches.
    Accepted {
        /// Each target's job.
        jobs: Vec<(NodeId, JobId)>,
    },
    /// How far a job is.
    Progress(Box<ProgressView>),
    /// A job has ended.
    Ended(Box<EndView>),
    /// Everything asked for has been said.
    End,
    /// The request failed.
    Fault(Fault),
    /// Some of what operators wanted.
    Audit(Vec<AuditView>),
    /// Some of a schema.
    Schema(Box<SchemaPage>),
    /// Fingerprints are stored.
    Captured {
        /// How many tables' of the node itself.
        tables: u64,
    },
    /// A job in full.
    Job(Box<JobView>),
    /// Slots that are prepared on a node, by name.
    Prepared(Vec<PreparedSlot>),
    /// What a node lacks.
    Missing(MissingObjects),
    /// What a rebuild came to.
    Rebuilt(Rebuilt),
    /// Of [`Query::Tables`].
    Tables(TableList),
    /// What stays on servers that could not be reached, a sentence each.
    Left(Vec<String>),
    /// Snapshots.
    Snapshots(Vec<SnapshotView>),
    /// What reading a stored snapshot again showed.
    Verified(Box<VerifiedSnapshot>),
    /// Of [`Query::FindSnapshot`].
    Found(FoundSnapshot),
    /// The terms that a job has now.
    Adjusted(Adjusted),
    /// Of [`Query::DetachPlan`].
    DetachPlan(Box<DetachPlan>),
    /// How far a comparison of rows is, in heap bytes of both nodes.
    Verifying(WorkProgress),
    /// What a comparison of rows came to.
    Compared(Box<VerifyReport>),
    /// What a switchover is at. The last one is how it ended.
    Switchover(Box<SwitchoverView>),
    /// What came of a page of a repair.
    Repaired(Box<RepairReport>),
    /// A table of a comparison that goes on is compared.
    TableCompared(Box<TableReport>),
}

/// A node, as the CLI shows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeView {
    /// Its name.
    pub node_id: NodeId,
    /// Its state.
    pub state: NodeState,
    /// Where its rows come from.
    pub source_node: Option<NodeId>,
    /// When its last job began.
    pub init_started_at: Option<Timestamp>,
    /// When its last job ended well; `None` while it runs and where it failed.
    pub init_completed_at: Option<Timestamp>,
    /// Why its last job failed.
    pub error_message: Option<String>,
    /// Whether its agent has a session.
    pub agent_online: bool,
    /// WAL the source has and this node has not confirmed; `None` where it follows nobody.
    pub lag_bytes: Option<u64>,
    /// Of the active job, 0 to 100.
    pub progress: Option<f64>,
    /// The agent's version, where one has registered.
    pub agent_version: Option<String>,
    /// `server_version_num` of its PostgreSQL, where known.
    pub postgres_version: Option<u32>,
    /// Why its PostgreSQL cannot be asked, where that is so.
    pub postgres_error: Option<String>,
    /// WAL its source keeps for it.
    pub wal_held_bytes: Option<u64>,
    /// Statements of its source's schema that could not be run on it; [`Query::Missing`] gives more.
    pub missing_objects: u64,
    /// Since when nobody can look at it.
    pub unseen_since: Option<Timestamp>,
    /// What a person should know about it beside its state, a sentence each.
    pub warnings: Vec<String>,
    /// What its job waits for, where it waits.
    pub waiting: Option<WaitingView>,
    /// Until when its failed job keeps what it has, where it does.
    pub kept_until: Option<Timestamp>,
    /// Nodes that get their rows from it, or are to.
    pub replicas: Vec<NodeId>,
    /// Its subscription, where it follows.
    pub subscription_name: Option<String>,
    /// Whether changes may be missing, so that only a new job helps.
    pub needs_init: bool,
    /// What was loaded into it without replication, where its last job did that.
    pub loaded: Option<LoadedSnapshot>,
    /// From whom it was detached, where that was the last that happened to its rows.
    pub detached: Option<DetachedFrom>,
    /// How its sequences follow, where that is known.
    pub sequences: Option<SequencesView>,
    /// The switchover that it is part of, or the last one.
    pub switchover: Option<Box<SwitchoverView>>,
    /// How its rows are compared regularly, where they are.
    pub verify: Option<ScheduleView>,
}

/// What a job waits for that cannot go on at this moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitingView {
    /// The node that holds it up.
    pub node_id: NodeId,
    /// What of it.
    pub what: WaitsFor,
    /// For how long.
    pub for_seconds: u64,
    /// How often it was tried since.
    pub tries: u32,
    /// When it is tried again, where that is known.
    pub next_try_seconds: Option<u64>,
    /// When the job fails.
    pub gives_up_seconds: u64,
    /// Why it must wait, in one sentence.
    pub reason: String,
}

/// What of a node is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WaitsFor {
    /// Its agent.
    Agent,
    /// Its PostgreSQL.
    Postgresql,
    /// Another try of what failed there.
    Retry,
    /// Its subscription.
    Subscription,
}

/// How far a job is. Sizes in bytes, times in UTC.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProgressView {
    /// The target.
    pub node_id: NodeId,
    /// The job.
    pub job_id: Option<JobId>,
    /// Its source.
    pub source_node: Option<NodeId>,
    /// The target's state.
    pub state: NodeState,
    /// What is being done.
    pub phase: Option<Phase>,
    /// 0 to 100 over all phases.
    pub overall_percent: f64,
    /// 0 to 100 within the phase, where it can be told.
    pub phase_percent: Option<f64>,
    /// Tables in the plan.
    pub tables_total: u64,
    /// Of them, finished.
    pub tables_completed: u64,
    /// The largest table being copied, or the object at hand.
    pub current_table: Option<String>,
    /// 0 to 100.
    pub current_table_percent: Option<f64>,
    /// Rows committed.
    pub rows_copied: u64,
    /// COPY bytes, those on their way included.
    pub bytes_copied: u64,
    /// Estimated COPY bytes in all; corrects itself as tables finish.
    pub bytes_total: u64,
    /// The same bytes as they crossed the network.
    pub wire_bytes: u64,
    /// Rows a second, smoothed.
    pub throughput_rows_sec: f64,
    /// COPY bytes a second, smoothed.
    pub throughput_bytes_sec: f64,
    /// Until the phase ends, where it can be told.
    pub eta_seconds: Option<u64>,
    /// Workers busy now.
    pub parallel_workers: u8,
    /// When the job began.
    pub started_at: Option<Timestamp>,
    /// Why it failed, where it did.
    pub error_message: Option<String>,
    /// Asked once: every table. In a stream: those being copied.
    pub tables: Vec<TableView>,
    /// The same, looked at more closely.
    pub detail: ProgressDetail,
}

/// What a job's progress is made of.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct ProgressDetail {
    /// Bytes on the wire a second, smoothed.
    pub throughput_wire_bytes_sec: f64,
    /// COPY bytes for each byte on the wire, over everything that crossed it; `None` before that.
    pub compression_ratio: Option<f64>,
    /// How often a part was begun again after a fault.
    pub retries: u64,
    /// Bytes of the phase's own work that are done: COPY bytes; bytes of the tables whose indexes are
    /// built or whose foreign keys are checked; WAL bytes that the target has confirmed. `None` where
    /// the phase has no bytes or nobody knows them.
    pub phase_bytes_done: Option<u64>,
    /// Those bytes in all; may grow.
    pub phase_bytes_total: Option<u64>,
    /// How fast they are done, smoothed; `None` until that can be told.
    pub phase_bytes_sec: Option<f64>,
    /// The job's phases in the order they began, the current one last. Each at most once.
    pub phase_times: Vec<PhaseTime>,
    /// Asked once: where the job was when, oldest first, kept over restarts of the coordinator. The
    /// last hour about every ten seconds, what is older more and more thinly; at most
    /// [`crate::limits::SAMPLES_MAX`]. In a stream: empty.
    pub history: Vec<ProgressSample>,
    /// Sessions that wait for the job's, or the other way round, on either server.
    pub locks: Vec<LockView>,
    /// What the job waits for, where it waits.
    pub waiting: Option<WaitingView>,
    /// How often the job began again, or went on with another snapshot, because its snapshot was lost.
    pub restarts: u8,
    /// Tables that were complete when it was, and stay.
    pub tables_kept: u32,
    /// How much of the snapshot is in the spool, 0 to 100, until all of it is.
    pub spool_percent: Option<f64>,
    /// What is in the way of the spool, or why there is none although the tables are large.
    pub spool_note: Option<String>,
}

/// Somebody who waits for a job, or whom it waits for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockView {
    /// On which node.
    pub node_id: NodeId,
    /// Who waits.
    pub role: LockRole,
    /// What the job does there: `copy`, `schema`, `sink-build`.
    pub ours: String,
    /// The other session's process; 0 for a prepared transaction.
    pub pid: i32,
    /// Its `application_name`.
    pub application: String,
    /// Its statement, shortened and without literals.
    pub statement: String,
    /// The table.
    pub table: String,
    /// How long whoever waits has waited.
    pub waited_seconds: u32,
    /// How many more wait for the same table.
    pub queued: u32,
}

impl LockView {
    /// The other session: `process 123 (psql: ALTER TABLE …)`.
    #[must_use]
    pub fn who(&self) -> String {
        let who = match self.pid {
            0 => "a prepared transaction".to_owned(),
            pid => format!("process {pid}"),
        };
        match (self.application.as_str(), self.statement.as_str()) {
            ("", "") => who,
            (application, "") => format!("{who} ({application})"),
            ("", statement) => format!("{who} ({statement})"),
            (application, statement) => format!("{who} ({application}: {statement})"),
        }
    }
}

/// Where a job was at some time.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ProgressSample {
    /// When.
    pub at: Timestamp,
    /// 0 to 100 over all phases.
    pub overall_percent: f64,
    /// Rows committed.
    pub rows_copied: u64,
    /// COPY bytes, those on their way included.
    pub bytes_copied: u64,
    /// The same bytes as they crossed the network.
    pub wire_bytes: u64,
    /// Parts begun again.
    pub retries: u64,
}

/// How long a phase took, or has taken so far.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct PhaseTime {
    /// Which.
    pub phase: Phase,
    /// Seconds.
    pub seconds: f64,
}

/// One table's progress.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TableView {
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub table: String,
    /// Rows committed.
    pub rows: u64,
    /// COPY bytes so far.
    pub bytes: u64,
    /// Where it is.
    pub state: TableState,
    /// 0 to 100.
    pub percent: f64,
}

/// Where a table is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TableState {
    /// No part begun.
    Pending,
    /// Some part begun.
    Copying,
    /// All parts committed.
    Completed,
}

/// Something that happened, from the coordinator's audit log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EventView {
    /// Its place in the log; grows.
    pub seq: u64,
    /// When.
    pub timestamp: Timestamp,
    /// `info`, `warn` or `error`.
    pub level: String,
    /// Its kind, such as `init.state_change`.
    pub event: String,
    /// The node it is about.
    pub node_id: Option<NodeId>,
    /// The other node, where there is one.
    pub source_node: Option<NodeId>,
    /// The job.
    pub job_id: Option<JobId>,
    /// One sentence for people.
    pub message: String,
    /// What else belongs to it, such as `("from", "copying")`.
    pub fields: Vec<(String, String)>,
}

/// What an operator asked for, and what came of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AuditView {
    /// Its place in the trail; grows.
    pub seq: u64,
    /// When.
    pub timestamp: Timestamp,
    /// The name in the operator's certificate.
    pub operator: String,
    /// The serial number of that certificate, as `certs show` prints it: of two certificates for one
    /// name, the one that was used.
    pub certificate: String,
    /// From which address, without its port.
    pub address: String,
    /// What: `init`, `cancel`, `schema.capture`.
    pub action: String,
    /// The node it is about.
    pub node_id: NodeId,
    /// The other node, where there is one.
    pub source_node: Option<NodeId>,
    /// The job, where it came to one.
    pub job_id: Option<JobId>,
    /// With which arguments, by name. None of them is secret.
    pub arguments: Vec<(String, String)>,
    /// Why it was refused; `None` where it was accepted.
    pub refused: Option<String>,
}
