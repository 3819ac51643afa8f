//! `switchover`: writes move from a node to the replica that follows it.
//!
//! The node that takes writes decides, in one row of its database: until its agent has noted there that the stop is
//! final, that agent gives writes back when time is up.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::facts::Listed;
use crate::wire::{ByteCount, Fault, JobId, Lsn, NodeId, TableName};

/// The longest time that writes may be stopped, in seconds.
pub const STOP_MAX: u32 = 24 * 3600;

/// Most names of roles, of extensions and of sequences that are compared.
pub const COMPARED_MAX: usize = 1_000;

/// Most tables whose rows are compared while writes are stopped.
pub const SMALL_MAX: usize = 20;

/// What a switchover is to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwitchoverSpec {
    /// The node that takes writes now.
    pub from: NodeId,
    /// The replica that takes them afterwards.
    pub to: NodeId,
    /// What becomes of `from`.
    pub way_back: WayBack,
    /// Whether rows are compared before writes are stopped.
    pub rows: RowsCheck,
    /// How long transactions may go on before their sessions are ended, in seconds.
    pub terminate_after_seconds: u32,
    /// How long writes may be stopped before `from` gets them back, in seconds; at most [`STOP_MAX`].
    pub max_stop_seconds: u32,
    /// Most WAL that `to` may not have confirmed when the switchover begins.
    pub max_lag: ByteCount,
    /// What to do if `to` lacks something that applications of `from` use.
    pub lacking: Lacking,
}

/// What becomes of the node that took writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum WayBack {
    /// It stays as it is, read-only.
    None,
    /// It follows the other node, still read-only to applications.
    Follow,
}

/// Whether rows are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RowsCheck {
    /// No: the fence proves that every change was applied.
    Skipped,
    /// All of them, before writes are stopped.
    Compared,
}

/// What to do if the new node lacks tables or roles.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Lacking {
    /// Refuse.
    Refused,
    /// Go on.
    Accepted,
}

/// Commands to the agents of a switchover. Its id stands in the place of a job's, and the replication is the one
/// by which the new node follows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum SwitchoverCommand {
    /// Gather facts and change nothing.
    Look {
        /// Whose roles, extensions and sequences the node is compared with.
        needed: Needed,
    },
    /// Make new sessions read-only, and on the old node end those that may still write.
    Close(Closing),
    /// See whether [`SwitchoverCommand::Open`] would succeed, in a transaction that is rolled back.
    ProveOpen,
    /// Lock out the last writers, wait until the replica has applied everything, and note that the stop is final.
    Decide,
    /// Let new sessions write: the other node has decided.
    Open,
    /// Undo [`SwitchoverCommand::Close`], unless the stop is final.
    Reopen,
}

/// Roles, extensions and sequences of the old node, at most [`COMPARED_MAX`] each.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Needed {
    /// Roles that can log in and own something or are granted something.
    pub roles: Vec<String>,
    /// Names of extensions.
    pub extensions: Vec<String>,
    /// Names of sequences that belong to no table.
    pub sequences: Vec<String>,
}

/// Which node is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Closing {
    /// The one that takes writes.
    Old {
        /// See [`SwitchoverSpec::max_stop_seconds`].
        max_stop_seconds: u32,
        /// See [`SwitchoverSpec::terminate_after_seconds`].
        terminate_after_seconds: u32,
    },
    /// The replica, so that nobody writes to it too early.
    New,
}

/// What a node's agent sees before a switchover.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SwitchoverFacts {
    /// The database.
    pub database: String,
    /// The agent's role.
    pub role: String,
    /// The owner of the database.
    pub owner: String,
    /// Whether the role is a superuser.
    pub superuser: bool,
    /// Whether it may change settings of the database.
    pub may_set_database: bool,
    /// Whether it sees the states of others' sessions.
    pub may_see_sessions: bool,
    /// Whether it may end others' sessions.
    pub may_end_sessions: bool,
    /// Whether it may create subscriptions.
    pub may_subscribe: bool,
    /// Whether it may advance replication origins.
    pub may_advance_origin: bool,
    /// Sessions of superusers, which only a superuser may end.
    pub superuser_sessions: u64,
    /// Whether the server is a standby.
    pub standby: bool,
    /// Sessions of applications.
    pub sessions: u64,
    /// Prepared transactions of this database.
    pub prepared: Listed,
    /// Roles whose own setting lets them write whatever is set for the database.
    pub writable_roles: Listed,
    /// Enabled subscriptions, except the command's.
    pub subscriptions: Listed,
    /// Other logical slots of this database: what reads from them.
    pub slots: Listed,
    /// Tables with rows of their own that the command's publication does not carry; of the old node.
    pub not_replicated: Listed,
    /// Tables that the publication carries; of the old node.
    pub tables: u64,
    /// Of them, some whose rows can be compared in a moment; at most [`SMALL_MAX`].
    pub small: Vec<TableName>,
    /// The others.
    pub large: Listed,
    /// Locks that the server has room for.
    pub lock_room: u64,
    /// Triggers that fire for applied changes too, on any table.
    pub replica_triggers: Listed,
    /// Roles, extensions and sequences that the other node needs to have.
    pub needed: Needed,
    /// Of the command's roles, those that do not exist here or cannot log in.
    pub lacking_roles: Listed,
    /// Of the command's extensions, those that are not installed here.
    pub lacking_extensions: Listed,
    /// Of the command's sequences, those that are not here.
    pub lacking_sequences: Listed,
    /// The state of its last write stop, if there was one.
    pub write_state: Option<WriteState>,
    /// Whether sessions are read-only by the database's own setting.
    pub read_only: bool,
}

/// What stopping writes came to.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct WritesStopped {
    /// The statement that lets new sessions write again.
    pub reopen: String,
    /// Idle sessions that were ended.
    pub ended_idle: u64,
    /// Sessions that were ended within a transaction.
    pub ended_running: u64,
}

/// Whether a node's new sessions may write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum WriteState {
    /// No, until the switchover is decided.
    Closed,
    /// No: writes have moved to another node.
    Final,
    /// Yes.
    Open {
        /// The end of WAL before they could.
        position: Lsn,
    },
}

/// What a switchover is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SwitchoverStep {
    /// A slot for the way back is made on the new node.
    PrepareWayBack,
    /// The new node is allowed to compare rows.
    AdmitRows,
    /// Rows are compared.
    CompareRows,
    /// The new node is made read-only to applications.
    CloseNew,
    /// Writes to the old node are stopped.
    StopWrites,
    /// The new node applies what was written.
    Drain,
    /// The new node is allowed to read sequences.
    AdmitSequences,
    /// The new node's sequences are set.
    Sequences,
    /// The new node is allowed to compare the rows of small tables.
    AdmitSmall,
    /// The rows of small tables are compared.
    CompareSmall,
    /// The new node proves that nobody keeps it from taking writes.
    ProveOpen,
    /// The old node locks out the last writers and decides.
    Decide,
    /// The new node is allowed to read sequences once more.
    AdmitLast,
    /// The new node's sequences are set to what the last writers have used.
    LastSequences,
    /// The new node takes writes.
    Open,
    /// The new node's subscription, slot and publication are removed.
    Detach,
    /// The old node begins to follow.
    Follow,
    /// Everything is done.
    Completed,
    /// The old node gets its writes back.
    ReopenOld,
    /// The new node is as before.
    ReopenNew,
    /// The slot for the way back is dropped.
    DropWayBack,
    /// The old node has its writes, and nothing is left of the switchover.
    Undone,
}

impl SwitchoverStep {
    /// All steps, in order.
    pub const ALL: [Self; 22] = [
        Self::PrepareWayBack,
        Self::AdmitRows,
        Self::CompareRows,
        Self::CloseNew,
        Self::StopWrites,
        Self::Drain,
        Self::AdmitSequences,
        Self::Sequences,
        Self::AdmitSmall,
        Self::CompareSmall,
        Self::ProveOpen,
        Self::Decide,
        Self::AdmitLast,
        Self::LastSequences,
        Self::Open,
        Self::Detach,
        Self::Follow,
        Self::Completed,
        Self::ReopenOld,
        Self::ReopenNew,
        Self::DropWayBack,
        Self::Undone,
    ];

    /// Its name in JSON and events: snake case.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::PrepareWayBack => "prepare_way_back",
            Self::AdmitRows => "admit_rows",
            Self::CompareRows => "compare_rows",
            Self::CloseNew => "close_new",
            Self::StopWrites => "stop_writes",
            Self::Drain => "drain",
            Self::AdmitSequences => "admit_sequences",
            Self::Sequences => "sequences",
            Self::AdmitSmall => "admit_small",
            Self::CompareSmall => "compare_small",
            Self::ProveOpen => "prove_open",
            Self::Decide => "decide",
            Self::AdmitLast => "admit_last",
            Self::LastSequences => "last_sequences",
            Self::Open => "open",
            Self::Detach => "detach",
            Self::Follow => "follow",
            Self::Completed => "completed",
            Self::ReopenOld => "reopen_old",
            Self::ReopenNew => "reopen_new",
            Self::DropWayBack => "drop_way_back",
            Self::Undone => "undone",
        }
    }

    /// Whether nothing follows it.
    #[must_use]
    pub fn is_over(self) -> bool {
        matches!(self, Self::Completed | Self::Undone)
    }
}

/// A switchover, as the CLI shows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SwitchoverView {
    /// Its id.
    pub switchover_id: JobId,
    /// The node that took writes before it.
    pub from: NodeId,
    /// The node that takes them after it.
    pub to: NodeId,
    /// Who asked for it.
    pub operator: String,
    /// When it began.
    pub began_at: Timestamp,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// What it is at.
    pub step: SwitchoverStep,
    /// The node that applications can write to; `None` while it is neither, or not known.
    pub writable: Option<NodeId>,
    /// For how long writes have been stopped, in seconds, where they were.
    pub stopped_seconds: Option<f64>,
    /// When `from` gets its writes back by itself, while they are stopped.
    pub deadline: Option<Timestamp>,
    /// Whether `from` follows `to` afterwards.
    pub way_back: WayBack,
    /// The statement that lets sessions of `from` write again, once they may not.
    pub reopen: Option<String>,
    /// Whether somebody has changed that setting of `from` after it had given its writes away.
    pub lifted: bool,
    /// Sessions on `from` that were ended.
    pub ended_sessions: u64,
    /// Tables whose rows were compared, after the last of them was applied or, with
    /// [`RowsCheck::Compared`], before writes were stopped.
    pub tables_compared: u64,
    /// Tables whose rows were not.
    pub tables_not_compared: Listed,
    /// Why it was undone or, once it is completed, why there is no way back.
    pub fault: Option<Fault>,
    /// What is in the way of the step, until it succeeds.
    pub hindrance: Option<Fault>,
    /// What a person should know, a sentence each.
    pub warnings: Vec<String>,
}

impl SwitchoverView {
    /// Whether the old node has its writes back, and nothing more happens for now.
    #[must_use]
    pub fn is_undone(&self) -> bool {
        match self.step {
            SwitchoverStep::Undone => true,
            SwitchoverStep::ReopenNew | SwitchoverStep::DropWayBack => self.hindrance.is_some(),
            _ => false,
        }
    }
}
