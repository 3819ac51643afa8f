//! One initialisation of one target, as values.
//!
//! Owns what a job is ([`Job`]), where it goes on from a backup ([`handover`]), who follows whom
//! ([`lineage`]), which state of a node
//! follows which ([`state`]), which command comes next ([`machine`]), whether it may begin at all
//! ([`preflight`]) and can still end well ([`health`], [`apply_health`], [`standing`]),
//! what has been copied ([`copy_progress`]), how far that is ([`progress`]) and what is said at the end
//! ([`report`]). Everything here is pure: time comes in as a value, messages go out as values, and
//! nothing knows SQLite, QUIC or tokio.
//!
//! Invariants:
//! - the events that change a job are its own; two jobs never share anything but agents;
//! - a command's id belongs to one [`Work`] of one job for ever, so that it can be sent again;
//! - what may have been made on a server is remembered ([`Residue`]) before the command that makes it
//!   is sent, and until its removal is confirmed.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use steep_protocol::message::api::PhaseSeconds;
use steep_protocol::message::facts::{Finding, SourceFacts};
use steep_protocol::message::handover::Replication;
use steep_protocol::message::job::{CancelledData, JobSpec, SyncSlots};
use steep_protocol::message::lineage::ChangeOrigin;
use steep_protocol::{ByteCount, CommandId, Fault, JobId, Lsn, Phase, RowCount};

pub mod apply_health;
pub mod copy_progress;
pub mod handover;
pub mod health;
pub mod lineage;
pub mod locks;
pub mod machine;
pub mod membership;
pub mod preflight;
pub mod progress;
pub mod report;
pub mod retry;
pub mod standing;
pub mod state;
pub(crate) mod time;

mod work;

use handover::{Handover, SlotFate};
use lineage::Around;
use retry::Retrying;

pub use work::{Side, Step, Work};

/// Command ids that one job may use. Far more than any job's life needs, and 2^31 jobs still fit
/// SQLite's 63 bits.
pub const COMMANDS_PER_JOB: u64 = 1 << 32;

/// Findings kept with a job; a schema with thousands of missing owners is cut off here (G8).
pub const WARNINGS_MAX: usize = 500;

/// One initialisation, from the request to the day when nothing of it is left to do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// Its id.
    pub id: JobId,
    /// What was asked for.
    pub spec: JobSpec,
    /// What it goes on from, where its rows come from a backup: with that method and no other.
    pub handover: Option<Handover>,
    /// The name in the certificate of who asked.
    pub operator: String,
    /// When.
    pub accepted_at: Timestamp,
    /// The name in the certificate of who wanted it cancelled, where somebody did.
    pub cancelled_by: Option<String>,
    /// Where it is.
    pub stage: Stage,
    /// Commands that were given and have not ended.
    pub running: Vec<Running>,
    /// Work that failed in a way that may pass, until it has ended well.
    pub retrying: Vec<Retrying>,
    /// How often it began again because its snapshot was lost.
    pub restarts: u8,
    /// Whether its node has been told that rows move.
    pub opened: Opened,
    /// When its time began to run: when it was accepted, or taken up again.
    pub began_at: Timestamp,
    /// The first of the ids reserved for it.
    pub first_command: u64,
    /// How many of them are used.
    pub commands_issued: u64,
    /// The source's agent, and what may be on its server.
    pub source: End,
    /// The target's agent, and what may be on its server.
    pub target: End,
    /// What its preflight has gathered.
    pub preflight: Gathered,
    /// Which of the source's changes its subscription takes.
    pub origin: ChangeOrigin,
    /// What is known of its copy under the present snapshot.
    pub attempt: Attempt,
    /// What was found and did not stop the job; at most [`WARNINGS_MAX`].
    pub warnings: Vec<Finding>,
    /// Time by phase.
    pub clock: PhaseClock,
    /// When it ended, whichever way.
    pub ended_at: Option<Timestamp>,
}

/// What a preflight gathers and [`machine`] judges. Empty before and after.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Gathered {
    /// What the source's agent saw.
    pub source: Option<Box<SourceFacts>>,
    /// What is known of all other nodes.
    pub around: Box<Around>,
}

/// One copy under one snapshot. A job that begins again begins with an empty one.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Attempt {
    /// When the snapshot was asked for.
    pub snapshot_at: Option<Timestamp>,
    /// The consistent point and the size of the plan, once there is one.
    pub plan: Option<Plan>,
    /// What PostgreSQL's own copy may leave on the source, once it has begun.
    pub sync_slots: Option<SyncSlots>,
    /// How often Copy ended with parts that we had not heard of.
    pub recounts: u8,
    /// What the ledger holds, once asked.
    pub proved_target: Option<Totals>,
    /// What the source sent, once asked.
    pub proved_source: Option<Totals>,
    /// Whether the source's agent still knows what it sent.
    pub witness: Witness,
}

/// Where a job is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Stage {
    /// At work.
    Working(Step),
    /// Its commands are being stopped and what they made is being removed.
    Ending(Ending),
    /// Failed; what it made is kept, so that it can go on once the cause is mended.
    Kept(Kept),
    /// Over: nothing runs and nothing is owed.
    Closed(Closed),
}

/// A failed job that keeps what it has.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Kept {
    /// Why it failed.
    pub fault: Fault,
    /// The step it goes on with.
    pub step: Step,
    /// When what it has is removed.
    pub until: Timestamp,
    /// When commands that do not end are given up.
    pub stop_by: Timestamp,
}

/// Whether a job's node has been told that rows move. A job that begins again has told it before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Opened {
    /// Not yet.
    #[default]
    No,
    /// Yes.
    Yes,
}

/// How a job that is over ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Closed {
    /// Well. Slot, publication and subscription are at work.
    Synchronized,
    /// With that error; everything it made is gone.
    Failed(Fault),
    /// By an operator; everything it made is gone.
    Cancelled,
}

/// A job on its way out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ending {
    /// Why.
    pub why: Why,
    /// When commands that do not end are given up.
    pub stop_by: Timestamp,
    /// When the node is shown as FAILED, whatever is still being removed.
    pub show_by: Timestamp,
    /// Whether that has happened.
    pub shown: Shown,
    /// Whether an operator waits for the removal.
    pub awaited: Awaited,
    /// What becomes of its prepared slot, where it has one.
    pub slot: SlotFate,
    /// What becomes of what cannot be reached.
    pub unreachable: Unreachable,
}

/// What becomes of what a job made where its server cannot be reached, or does not let it be removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Unreachable {
    /// It is removed as soon as that can be done.
    Awaited,
    /// It is left.
    GivenUp,
}

/// Why a job ends before its time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Why {
    /// This went wrong.
    Failed(Fault),
    /// The snapshot was lost: what was made under it is removed, and the job begins again.
    Again(Fault),
    /// An operator cancelled.
    Cancelled(CancelledData),
}

/// Whether an ending job's node says FAILED already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Shown {
    /// Not yet: the node is still in its active state.
    NotYet,
    /// Yes.
    Failed,
}

/// Whether someone is to be told how a removal went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Awaited {
    /// Nobody.
    Nobody,
    /// An operator who asked for it.
    Operator,
}

/// A command that was given and has not ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Running {
    /// Its id.
    pub id: CommandId,
    /// What.
    pub work: Work,
}

/// One end of a job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct End {
    /// Whether its agent is there.
    pub presence: Presence,
    /// Whether its PostgreSQL answers, as its agent saw it last.
    pub server: ServerState,
    /// Which process of the agent was last there.
    pub incarnation: Option<u64>,
    /// What may be on its server because of this job.
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
    /// Yes, or nobody has looked yet.
    Answers,
    /// No.
    Silent {
        /// Since when.
        since: Timestamp,
        /// Why, as it was first seen.
        why: String,
    },
}

/// What a job may have left on a side.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Residue {
    /// Nothing was sent that leaves anything.
    Nothing,
    /// Only the agent's permission for the target to ask; nothing on the server.
    Grant,
    /// Objects on the server.
    Objects,
    /// Objects on the server which could not be removed.
    Stuck {
        /// Why not.
        why: String,
        /// When it is tried again.
        again: Timestamp,
    },
    /// Nothing any more.
    Removed,
}

/// The plan's size and place in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The consistent point; 0/0 without a slot.
    pub lsn: Lsn,
    /// Tables.
    pub tables: u32,
    /// Parts.
    pub parts: u32,
}

/// A sum over distinct parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Totals {
    /// Parts.
    pub parts: u32,
    /// Rows in them.
    pub rows: RowCount,
    /// COPY bytes in them.
    pub bytes: ByteCount,
}

/// Whether the source's agent can testify to what it sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Witness {
    /// Its process is the one that sent it.
    #[default]
    Present,
    /// It restarted after the last row was sent. Each part was compared with what the source said
    /// when it was committed, so the ledger and our sums still prove the copy.
    Restarted,
}

/// Time by phase. Only one phase is current.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct PhaseClock {
    /// The current phase and when it began.
    pub current: Option<(Phase, Timestamp)>,
    /// Milliseconds of those that are over.
    pub spent: Vec<(Phase, u64)>,
}

impl PhaseClock {
    /// Ends the current phase, if there is one, and says which and how long it took.
    pub fn stop(&mut self, now: Timestamp) -> Option<(Phase, u64)> {
        let (phase, began) = self.current.take()?;
        let millis = u64::try_from(now.as_millisecond() - began.as_millisecond()).unwrap_or(0);
        self.spent.push((phase, millis));
        Some((phase, millis))
    }

    /// Begins a phase.
    pub fn start(&mut self, phase: Phase, now: Timestamp) {
        self.current = Some((phase, now));
    }

    /// The sums that an end is reported with.
    #[must_use]
    pub fn seconds(&self) -> PhaseSeconds {
        let mut sums = PhaseSeconds::default();
        for (phase, millis) in &self.spent {
            // Milliseconds of any job are far below 2^52, where f64 is exact.
            let seconds = *millis as f64 / 1e3;
            match phase {
                Phase::Preflight | Phase::Snapshot | Phase::Schema => sums.preparing += seconds,
                Phase::Copy => sums.copying += seconds,
                Phase::Indexes | Phase::Constraints => sums.indexing += seconds,
                Phase::Subscribe | Phase::CatchUp | Phase::Prove => sums.catching_up += seconds,
                Phase::Cleanup => {}
            }
        }
        sums
    }
}

impl Job {
    /// A job that has not begun. Its agents are taken to be there; the first `Down` says otherwise.
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
            operator: operator.to_owned(),
            accepted_at: now,
            cancelled_by: None,
            stage: Stage::Working(Step::GatherSource),
            running: Vec::new(),
            retrying: Vec::new(),
            restarts: 0,
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

    /// What carries its changes.
    #[must_use]
    pub fn replication(&self) -> Replication {
        let prepared = self.handover.as_ref().map(|h| h.replication.clone());
        prepared.unwrap_or_else(|| Replication::of(self.id))
    }

    /// One end.
    #[must_use]
    pub fn end(&self, side: Side) -> &End {
        match side {
            Side::Source => &self.source,
            Side::Target => &self.target,
        }
    }

    /// Whether a command of that kind has been given and has not ended.
    #[must_use]
    pub fn is_running(&self, work: Work) -> bool {
        self.running.iter().any(|r| r.work == work)
    }

    /// Whether any command on that side has not ended.
    #[must_use]
    pub fn is_busy(&self, side: Side) -> bool {
        self.running.iter().any(|r| r.work.side() == side)
    }

    /// Whether the job in that step cannot go on without that side.
    #[must_use]
    pub fn needs(&self, side: Side, step: Step) -> bool {
        let own = |r: &Retrying| r.work.side() == side;
        self.is_busy(side)
            || self.retrying.iter().any(own)
            || match side {
                Side::Source => step.needs_source(),
                Side::Target => step.needs_subscription(),
            }
    }

    /// Until when it keeps what it has, where it has failed and does.
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

    /// Which side a node is on, if on any.
    #[must_use]
    pub fn side_of(&self, node: &steep_protocol::NodeId) -> Option<Side> {
        Side::BOTH
            .into_iter()
            .find(|side| side.node(&self.spec) == node)
    }

    /// Whether something of the job may still be on that side's server.
    #[must_use]
    pub fn owes(&self, side: Side) -> bool {
        match self.end(side).residue {
            Residue::Nothing | Residue::Removed => false,
            Residue::Grant | Residue::Objects | Residue::Stuck { .. } => true,
        }
    }
}
