//! One initialisation of one target, as values.
//!
//! Owns the job itself ([`Job`]), its start from a backup ([`handover`]), the graph of who follows whom
//! ([`lineage`]), the states of a node ([`state`]), the choice of the next command ([`machine`]), the
//! checks before it starts ([`preflight`]) and while it runs ([`health`], [`apply_health`],
//! [`standing`]), the copied parts ([`copy_progress`]), progress for people ([`progress`]) and the final
//! report ([`report`]). Everything here is pure: time comes in as a value, messages go out as values,
//! and nothing knows SQLite, QUIC or tokio.
//!
//! Invariants:
//! - only its own events change a job; two jobs share nothing but agents;
//! - a command's id belongs to one [`Work`] of one job for ever, so that it can be sent again;
//! - what a command may leave on a server is recorded ([`Residue`]) before the command is sent, and
//!   stays recorded until its removal is confirmed.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use steep_protocol::message::agent::EarlierEpoch;
use steep_protocol::message::api::LostSnapshot;
use steep_protocol::message::facts::{Finding, SourceFacts};
use steep_protocol::message::handover::Replication;
use steep_protocol::message::job::{JobSpec, Method, SyncSlots};
use steep_protocol::message::lineage::ChangeOrigin;
use steep_protocol::message::tables::FollowedOutcome;
use steep_protocol::{CommandId, Epoch, JobId, SnapshotId, TableName};

pub mod apply_health;
pub mod change;
pub mod copy_progress;
pub mod handover;
pub mod health;
pub mod lineage;
pub mod locks;
pub mod machine;
pub mod membership;
pub mod merge;
pub mod note;
pub mod preflight;
pub mod progress;
pub mod report;
pub mod retry;
pub mod standing;
pub mod state;
pub(crate) mod time;

mod clock;
mod needs;
mod path;
mod stage;
mod totals;
mod work;

use change::{Changing, Joining};
use handover::{Handover, Reader, StoredRows};
use lineage::Around;
use merge::Merging;
use retry::Retrying;

pub use clock::PhaseClock;
pub use stage::{Awaited, Closed, Ending, Kept, Shown, Stage, Unreachable, Why};
pub use totals::{Complete, Plan, Totals, Witness};
pub use work::{Side, Step, Work};

/// Command ids reserved for one job: far more than it can need, and 2^31 jobs still fit SQLite's
/// 63 bits.
pub const COMMANDS_PER_JOB: u64 = 1 << 32;

/// Most findings kept with a job: a schema with thousands of missing owners must not grow it (G8).
pub const WARNINGS_MAX: usize = 500;

/// One initialisation, from the request until nothing is left to do or remove.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// Its id.
    pub id: JobId,
    /// What was asked for.
    pub spec: JobSpec,
    /// The prepared slot it starts from; set exactly with [`Method::Backup`].
    pub handover: Option<Handover>,
    /// The stored snapshot it is made from; set exactly with a method that [is from a
    /// store](steep_protocol::message::job::Method::is_from_store).
    pub stored: Option<StoredRows>,
    /// What it changes of a node that follows; set exactly with a method that [changes
    /// tables](steep_protocol::message::job::Method::changes_tables).
    #[serde(default)]
    pub change: Option<Changing>,
    /// What it merges; set exactly with [`Method::Merge`].
    #[serde(default)]
    pub merge: Option<Merging>,
    /// The snapshot that it shares with the other targets of its request, or joined.
    pub shared: Option<SnapshotId>,
    /// Which of its snapshots it copies from.
    #[serde(default)]
    pub epoch: Epoch,
    /// The epochs before, until they are folded into the present one.
    #[serde(default)]
    pub earlier: Vec<EarlierEpoch>,
    /// What was copied under them: whole tables.
    #[serde(default)]
    pub kept: Complete,
    /// Snapshots that were lost; at most the last [`steep_protocol::limits::EPOCHS_MAX`].
    #[serde(default)]
    pub lost_snapshots: Vec<LostSnapshot>,
    /// Tables that the present epoch has to copy, after the first.
    #[serde(default)]
    pub unfinished: Vec<TableName>,
    /// Whether its rows go through a spool beside the source.
    #[serde(default)]
    pub spooling: Spooling,
    /// The name in the certificate of the operator who started it.
    pub operator: String,
    /// When.
    pub accepted_at: Timestamp,
    /// The name in the certificate of the operator who cancelled it, if any.
    pub cancelled_by: Option<String>,
    /// What it is doing.
    pub stage: Stage,
    /// Commands that were issued and have not ended.
    pub running: Vec<Running>,
    /// Work that failed with a transient fault and has not succeeded since.
    pub retrying: Vec<Retrying>,
    /// How often it started over because its snapshot was lost.
    pub restarts: u8,
    /// The plan of a job that another coordinator had begun. Until it starts over, it has no other snapshot.
    #[serde(default)]
    pub adopted: Option<Plan>,
    /// What it had copied when another coordinator lost it, without its tables.
    #[serde(default)]
    pub recalled: Option<Complete>,
    /// Whether its node has entered COPYING.
    pub opened: Opened,
    /// When its time limit began to run: when it was accepted or resumed.
    pub began_at: Timestamp,
    /// The first command id reserved for it.
    pub first_command: u64,
    /// How many command ids are used.
    pub commands_issued: u64,
    /// The source's agent and server.
    pub source: End,
    /// The target's agent and server.
    pub target: End,
    /// Facts gathered by the preflight.
    pub preflight: Gathered,
    /// Which of the source's changes its subscription receives.
    pub origin: ChangeOrigin,
    /// The copy under the current snapshot.
    pub attempt: Attempt,
    /// Findings that did not stop the job; at most [`WARNINGS_MAX`].
    pub warnings: Vec<Finding>,
    /// Time by phase.
    pub clock: PhaseClock,
    /// When it ended, successfully or not.
    pub ended_at: Option<Timestamp>,
}

/// Whether a job's rows go through a spool beside the source. The preflight decides, by the size of its tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Spooling {
    /// No, unless it is ordered (`two-phase`).
    #[default]
    Live,
    /// Yes: a table is large, or it is ordered, and there is room.
    Spooled,
    /// They should, but the spool has no room for them.
    NoRoom,
    /// As those of the snapshot that it has joined.
    Joined,
}

/// Facts that [`machine`] has the preflight judge. Empty before and after the preflight.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Gathered {
    /// Facts about the source.
    pub source: Option<Box<SourceFacts>>,
    /// Facts about all other nodes.
    pub around: Box<Around>,
}

/// One copy under one snapshot. A job that starts over starts with an empty one.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Attempt {
    /// When the snapshot was asked for.
    pub snapshot_at: Option<Timestamp>,
    /// The consistent point and the size of the plan, once there is one.
    pub plan: Option<Plan>,
    /// Slots that PostgreSQL's own copy may leave on the source, once it has begun.
    pub sync_slots: Option<SyncSlots>,
    /// How often Copy ended before all its parts were reported.
    pub recounts: u8,
    /// The totals of the target's ledger, once read.
    pub proved_target: Option<Totals>,
    /// The totals of what the source sent, once read.
    pub proved_source: Option<Totals>,
    /// Whether the source's agent still has its counts of what it sent.
    pub witness: Witness,
    /// Whether all parts of its snapshot are stored.
    #[serde(default)]
    pub sealed: bool,
    /// The shared snapshot that it was asked to open: its slot may have been copied from that one's.
    #[serde(default)]
    pub asked_of: Option<SnapshotId>,
    /// Whether the target may have let go of its rows: once the copy is proved, it is told to forget which are the job's.
    #[serde(default)]
    pub released: bool,
}

/// Whether a job's node has entered COPYING. A job that starts over does not enter it again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Opened {
    /// Not yet.
    #[default]
    No,
    /// Yes.
    Yes,
}

/// A command that was issued and has not ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Running {
    /// Its id.
    pub id: CommandId,
    /// What it does.
    pub work: Work,
}

/// One end of a job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct End {
    /// Whether its agent has a session.
    pub presence: Presence,
    /// Whether its PostgreSQL answered the agent last time.
    pub server: ServerState,
    /// The agent process that had the last session.
    pub incarnation: Option<u64>,
    /// What this job may have left on its server.
    pub residue: Residue,
}

/// Whether an agent has a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Presence {
    /// Yes.
    Online,
    /// No.
    Away {
        /// Since when.
        since: Timestamp,
    },
}

/// Whether a side's PostgreSQL answers its agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ServerState {
    /// Yes, or not checked yet.
    Answers,
    /// No.
    Silent {
        /// Since when.
        since: Timestamp,
        /// The first error.
        why: String,
    },
}

/// What a job may have left on one side.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Residue {
    /// Nothing: no command that leaves anything was sent.
    Nothing,
    /// Only the permission, in the agent's memory, for the target to ask; nothing on the server.
    Grant,
    /// Objects on the server.
    Objects,
    /// Objects on the server that could not be removed.
    Stuck {
        /// Why not.
        why: String,
        /// When to try again.
        again: Timestamp,
    },
    /// Nothing: everything was removed.
    Removed,
}

impl Job {
    /// A job that has not begun. Its agents count as online until the first `Down`.
    #[must_use]
    pub fn new(
        id: JobId,
        spec: JobSpec,
        operator: &str,
        first_command: u64,
        now: Timestamp,
    ) -> Self {
        let end = End {
            presence: Presence::Online,
            server: ServerState::Answers,
            incarnation: None,
            residue: Residue::Nothing,
        };
        Self {
            id,
            spec,
            handover: None,
            stored: None,
            change: None,
            merge: None,
            shared: None,
            epoch: Epoch(0),
            earlier: Vec::new(),
            lost_snapshots: Vec::new(),
            kept: Complete::default(),
            unfinished: Vec::new(),
            spooling: Spooling::default(),
            operator: operator.to_owned(),
            accepted_at: now,
            cancelled_by: None,
            stage: Stage::Working(Step::GatherSource),
            running: Vec::new(),
            retrying: Vec::new(),
            restarts: 0,
            adopted: None,
            recalled: None,
            opened: Opened::No,
            began_at: now,
            first_command,
            commands_issued: 0,
            source: end.clone(),
            target: end,
            preflight: Gathered::default(),
            origin: ChangeOrigin::Any,
            attempt: Attempt::default(),
            warnings: Vec::new(),
            clock: PhaseClock::default(),
            ended_at: None,
        }
    }

    /// Parts of its plan and of the tables that earlier epochs have copied, once there is a plan.
    #[must_use]
    pub fn parts(&self) -> Option<u32> {
        let plan = self.attempt.plan?;
        Some(plan.parts.saturating_add(self.kept.sum.parts))
    }

    /// How far its tables have joined the replication of a node that follows.
    #[must_use]
    pub fn joining(&self) -> Joining {
        let change = self.change.as_ref();
        change.map_or(Joining::NotYet, |change| change.joining)
    }

    /// Whether its own replication takes the place of one that has lost changes.
    #[must_use]
    pub fn replaces(&self) -> bool {
        let change = self.change.as_ref();
        change.is_some_and(|change| change.followed.outcome == FollowedOutcome::Replaced)
    }

    /// What its node follows by: the replication that its tables join or leave, or else its own.
    #[must_use]
    pub fn followed(&self) -> Replication {
        let change = self.change.as_ref();
        change.map_or_else(
            || self.replication(),
            |change| change.followed.replication.clone(),
        )
    }

    /// What its publications, slots and subscriptions are named after.
    pub fn named(&self) -> impl Iterator<Item = JobId> {
        let earlier = self.earlier.iter().map(|epoch| epoch.replication.id);
        earlier.chain([self.id, self.replication().id])
    }

    /// The snapshot that it does not own, if it copies from one.
    #[must_use]
    pub fn snapshot(&self) -> Option<SnapshotId> {
        let stored = self.stored.as_ref().map(|stored| stored.snapshot);
        stored.or(self.shared)
    }

    /// Whether the target's agent reads the rows itself, from a stored snapshot that was carried to it; then
    /// what they add up to.
    #[must_use]
    pub fn carried(&self) -> Option<Totals> {
        match self.stored.as_ref()?.reader {
            Reader::Target(totals) => Some(totals),
            Reader::Source => None,
        }
    }

    /// Whether a snapshot that it opens is read into a spool.
    #[must_use]
    pub fn spools(&self) -> bool {
        match self.spooling {
            // What is left after a snapshot was lost is read live.
            _ if self.epoch != Epoch(0) => false,
            Spooling::Spooled => true,
            Spooling::NoRoom => false,
            Spooling::Live | Spooling::Joined => self.spec.method == Method::TwoPhase,
        }
    }

    /// The command whose answer is the plan.
    #[must_use]
    pub fn planner(&self) -> Work {
        self.carried()
            .map_or(Work::OpenSource, |_| Work::OpenCarried)
    }

    /// Its end on that side.
    #[must_use]
    pub fn end(&self, side: Side) -> &End {
        match side {
            Side::Source => &self.source,
            Side::Target => &self.target,
        }
    }

    /// Whether a command of that kind is running.
    #[must_use]
    pub fn is_running(&self, work: Work) -> bool {
        self.running.iter().any(|r| r.work == work)
    }

    /// Whether any command is running on that side.
    #[must_use]
    pub fn is_busy(&self, side: Side) -> bool {
        self.running.iter().any(|r| r.work.side() == side)
    }

    /// Until when a failed job can be resumed.
    #[must_use]
    pub fn kept_until(&self) -> Option<Timestamp> {
        match &self.stage {
            Stage::Kept(kept) => Some(kept.until),
            Stage::Working(_) | Stage::Ending(_) | Stage::Closed(_) => None,
        }
    }

    /// Seconds from the request to the end, or to now.
    #[must_use]
    pub fn elapsed_seconds(&self, now: Timestamp) -> f64 {
        let end = self.ended_at.unwrap_or(now);
        (end.as_millisecond() - self.accepted_at.as_millisecond()).max(0) as f64 / 1e3
    }

    /// The side that the node is on, if any.
    #[must_use]
    pub fn side_of(&self, node: &steep_protocol::NodeId) -> Option<Side> {
        Side::BOTH
            .into_iter()
            .find(|side| side.node(&self.spec) == node)
    }

    /// Whether something of the job may still have to be removed from that side.
    #[must_use]
    pub fn owes(&self, side: Side) -> bool {
        match self.end(side).residue {
            Residue::Nothing | Residue::Removed => false,
            Residue::Grant | Residue::Objects | Residue::Stuck { .. } => true,
        }
    }
}
