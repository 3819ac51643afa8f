//! A switchover as values: writes move from a node to the replica that follows it.
//!
//! Owns the switchover itself ([`Switchover`]), the choice of its next command ([`machine`]) and what speaks against
//! one ([`judge`]). Everything here is pure, as in [`crate::job`].
//!
//! ```text
//! way back ─▶ rows ─▶ close new ─▶ stop writes ─▶ drain ─▶ sequences ─▶ rows ─▶ proof ─▶ DECIDE ─▶ sequences ─▶ open ─▶ detach ─▶ follow ─▶ completed
//!     └─────────┴─────────┴────────────┴────────────┴──────────┴──────────┴────────┴─────────┤
//!                                                                                            └─▶ reopen old ─▶ reopen new ─▶ undone
//! ```
//! The old node decides, in its own database. Until then whatever fails is undone, and where nobody undoes it, the old
//! node's agent does when time is up. The new node takes writes only after it. So at most one of the two does, and in
//! the end exactly one.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use steep_protocol::message::facts::Listed;
use steep_protocol::message::handover::{Replication, SlotName};
use steep_protocol::message::job::TableFilter;
use steep_protocol::message::switchover::{
    SwitchoverSpec, SwitchoverStep, SwitchoverView, WayBack,
};
use steep_protocol::{CommandId, Fault, JobId, Lsn, NodeId, TableName};

use crate::job::Job;
use crate::snapshot::Trouble;

pub mod judge;
pub mod machine;

/// Command ids reserved for a switchover: for weeks of attempts, one every half a minute.
pub const COMMANDS: u64 = 1 << 16;

/// One switchover, from the order on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Switchover {
    /// Its id.
    pub id: JobId,
    /// What was asked for.
    pub spec: SwitchoverSpec,
    /// The name in the certificate of the operator who asked for it.
    pub operator: String,
    /// When.
    pub began_at: Timestamp,
    /// When it was completed or undone.
    pub ended_at: Option<Timestamp>,
    /// By what the new node follows.
    pub replication: Replication,
    /// Which tables it follows.
    pub filter: TableFilter,
    /// What it is at.
    pub step: SwitchoverStep,
    /// Since when.
    pub entered_at: Timestamp,
    /// The last step that was begun before it was undone.
    pub reached: SwitchoverStep,
    /// The command that was issued and has not ended.
    pub running: Option<CommandId>,
    /// A command that was cancelled and may not have ended.
    pub stale: Option<Stale>,
    /// Failures of the step.
    pub trouble: Option<Trouble>,
    /// What is in the way of the step.
    #[serde(default)]
    pub hindrance: Option<Fault>,
    /// Tables whose rows are compared once writes are stopped.
    #[serde(default)]
    pub small: Vec<TableName>,
    /// How many tables' rows were compared.
    #[serde(default)]
    pub tables_compared: u64,
    /// Tables whose rows were not.
    #[serde(default)]
    pub tables_not_compared: Listed,
    /// Why it is undone or, once it is completed, why there is no way back.
    pub fault: Option<Fault>,
    /// When writes were stopped.
    pub stopped_at: Option<Timestamp>,
    /// When a node took them again.
    pub resumed_at: Option<Timestamp>,
    /// The statement that lets sessions of the old node write again.
    pub reopen: Option<String>,
    /// Sessions of the old node that were ended.
    pub ended_sessions: u64,
    /// The end of the new node's WAL before it took writes.
    pub position: Option<Lsn>,
    /// The job by which the old node follows.
    pub following: Option<JobId>,
    /// What operators should know.
    pub warnings: Vec<String>,
    /// The first command id reserved for it.
    pub first_command: u64,
    /// How many command ids are used.
    pub commands_issued: u64,
}

/// A cancelled command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stale {
    /// Its id.
    pub id: CommandId,
    /// Where it was sent.
    pub side: Side,
}

/// One of the two nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Side {
    /// The one that took writes.
    Old,
    /// The replica.
    New,
}

impl Side {
    /// Where that step is done, if it is a command.
    #[must_use]
    pub fn of(step: SwitchoverStep) -> Option<Self> {
        match step {
            SwitchoverStep::AdmitRows
            | SwitchoverStep::StopWrites
            | SwitchoverStep::Drain
            | SwitchoverStep::AdmitSequences
            | SwitchoverStep::AdmitSmall
            | SwitchoverStep::AdmitLast
            | SwitchoverStep::Decide
            | SwitchoverStep::ReopenOld => Some(Self::Old),
            SwitchoverStep::PrepareWayBack
            | SwitchoverStep::CompareRows
            | SwitchoverStep::CloseNew
            | SwitchoverStep::Sequences
            | SwitchoverStep::CompareSmall
            | SwitchoverStep::ProveOpen
            | SwitchoverStep::LastSequences
            | SwitchoverStep::Open
            | SwitchoverStep::ReopenNew
            | SwitchoverStep::DropWayBack => Some(Self::New),
            SwitchoverStep::Detach
            | SwitchoverStep::Follow
            | SwitchoverStep::Completed
            | SwitchoverStep::Undone => None,
        }
    }
}

impl Switchover {
    /// A switchover that nothing was done of; the new node follows by `job`.
    #[must_use]
    pub fn new(
        id: JobId,
        spec: SwitchoverSpec,
        operator: &str,
        job: &Job,
        first_command: u64,
        now: Timestamp,
    ) -> Self {
        let step = machine::first(&spec);
        Self {
            id,
            spec,
            operator: operator.to_owned(),
            began_at: now,
            ended_at: None,
            replication: job.replication(),
            filter: job.spec.filter.clone(),
            step,
            entered_at: now,
            reached: step,
            running: None,
            stale: None,
            trouble: None,
            hindrance: None,
            small: Vec::new(),
            tables_compared: 0,
            tables_not_compared: Listed::default(),
            fault: None,
            stopped_at: None,
            resumed_at: None,
            reopen: None,
            ended_sessions: 0,
            position: None,
            following: None,
            warnings: Vec::new(),
            first_command,
            commands_issued: 0,
        }
    }

    /// The node on that side.
    #[must_use]
    pub fn node(&self, side: Side) -> &NodeId {
        match side {
            Side::Old => &self.spec.from,
            Side::New => &self.spec.to,
        }
    }

    /// The side that the node is on.
    #[must_use]
    pub fn side_of(&self, node: &NodeId) -> Option<Side> {
        match node {
            node if *node == self.spec.from => Some(Side::Old),
            node if *node == self.spec.to => Some(Side::New),
            _ => None,
        }
    }

    /// By what the old node follows afterwards.
    #[must_use]
    pub fn way_back(&self) -> Replication {
        let slot = SlotName::parse(format!("steep_switchover_{}", self.id));
        Replication {
            id: self.id,
            slot: slot.expect("at most 63 bytes of a-z, 0-9 and underscore"),
        }
    }

    /// Whether it can still be undone.
    #[must_use]
    pub fn is_undecided(&self) -> bool {
        self.step <= SwitchoverStep::Decide
    }

    /// For how long writes have been stopped, in seconds.
    #[must_use]
    pub fn stopped_seconds(&self, now: Timestamp) -> Option<f64> {
        let stopped = self.stopped_at?;
        let until = self.resumed_at.unwrap_or(now);
        let millis = until.as_millisecond() - stopped.as_millisecond();
        Some(millis.max(0) as f64 / 1e3)
    }

    /// As operators see it.
    #[must_use]
    pub fn view(&self, now: Timestamp) -> SwitchoverView {
        let stopped = self.stopped_at.filter(|_| self.is_undecided());
        SwitchoverView {
            switchover_id: self.id,
            from: self.spec.from.clone(),
            to: self.spec.to.clone(),
            operator: self.operator.clone(),
            began_at: self.began_at,
            ended_at: self.ended_at,
            step: self.step,
            writable: self.writable().cloned(),
            stopped_seconds: self.stopped_seconds(now),
            deadline: stopped.map(|at| machine::deadline(at, &self.spec)),
            way_back: self.spec.way_back,
            reopen: self.reopen.clone(),
            lifted: false,
            ended_sessions: self.ended_sessions,
            tables_compared: self.tables_compared,
            tables_not_compared: self.tables_not_compared.clone(),
            fault: self.fault.clone(),
            hindrance: self.hindrance.clone(),
            warnings: self.warnings.clone(),
        }
    }

    /// The node that takes writes, where one does.
    #[must_use]
    pub fn writable(&self) -> Option<&NodeId> {
        match self.step {
            SwitchoverStep::PrepareWayBack
            | SwitchoverStep::AdmitRows
            | SwitchoverStep::CompareRows
            | SwitchoverStep::CloseNew
            | SwitchoverStep::ReopenNew
            | SwitchoverStep::DropWayBack
            | SwitchoverStep::Undone => Some(&self.spec.from),
            SwitchoverStep::StopWrites
            | SwitchoverStep::Drain
            | SwitchoverStep::AdmitSequences
            | SwitchoverStep::Sequences
            | SwitchoverStep::AdmitSmall
            | SwitchoverStep::CompareSmall
            | SwitchoverStep::ProveOpen
            | SwitchoverStep::Decide
            | SwitchoverStep::AdmitLast
            | SwitchoverStep::LastSequences
            | SwitchoverStep::Open
            | SwitchoverStep::ReopenOld => None,
            SwitchoverStep::Detach | SwitchoverStep::Follow | SwitchoverStep::Completed => {
                Some(&self.spec.to)
            }
        }
    }

    /// Whether the old node follows afterwards.
    #[must_use]
    pub fn has_way_back(&self) -> bool {
        self.spec.way_back == WayBack::Follow
    }
}
