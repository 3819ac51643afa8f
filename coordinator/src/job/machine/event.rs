//! What happens to a job, and what is to be done about it.

use jiff::Timestamp;
use steep_protocol::message::agent::{MissingObjects, Outcome};
use steep_protocol::message::facts::Finding;
use steep_protocol::message::job::{CancelledData, Compression};
use steep_protocol::{ByteCount, CommandId, Fault, Phase};

use super::super::{Side, Totals, Work};
use super::NodeEvent;

/// Something that happened to a job.
#[derive(Debug, Clone, PartialEq)]
pub enum JobEvent {
    /// It was accepted and stored.
    Begin,
    /// A command ended.
    Ended {
        /// Which.
        id: CommandId,
        /// How.
        outcome: Box<Result<Outcome, Fault>>,
    },
    /// An agent began a session.
    Up {
        /// Which.
        side: Side,
        /// Which process of it.
        incarnation: u64,
        /// Whether it holds this job's snapshot open.
        snapshot: Snapshot,
    },
    /// An agent's session ended.
    Down {
        /// Which.
        side: Side,
        /// When it was heard last.
        since: Timestamp,
        /// What became of its process.
        parting: Parting,
    },
    /// An operator wants it undone.
    Cancel {
        /// What becomes of the rows.
        data: CancelledData,
    },
    /// An operator does not wait for the removal of what cannot be reached.
    GiveUp,
    /// An agent saw whether its PostgreSQL answers.
    Server {
        /// Which agent.
        side: Side,
        /// Why it does not, where it does not.
        answers: Result<(), String>,
    },
    /// The source's agent saw that the session which held the snapshot has ended.
    SnapshotLost,
    /// What agents observe says that it cannot end well (see [`crate::job::health`]).
    Endangered {
        /// Where that was seen.
        side: Side,
        /// Why.
        fault: Fault,
    },
    /// An operator wants a failed job to go on.
    Resume {
        /// With what it goes on.
        terms: Terms,
    },
    /// Time has passed.
    Tick,
}

/// What an operator may change of a job that goes on. What is copied, and how it is prepared, stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// Workers.
    pub parallel: u8,
    /// Seconds from now until the job fails.
    pub timeout_seconds: u64,
    /// COPY bytes a second over all workers.
    pub max_rate: Option<ByteCount>,
    /// Compression on the wire.
    pub compression: Compression,
}

/// What is known of an agent whose session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parting {
    /// Nothing: the network may be broken, the process may have died.
    Lost,
    /// It said that its process ends. What it held in memory is gone for certain.
    Stopped,
}

/// Whether the source's agent holds the snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Snapshot {
    /// Yes.
    Held,
    /// No.
    NotHeld,
}

/// What the coordinator itself has counted, from plan pages and parts done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counted {
    /// Tables in the pages that came.
    pub tables: u32,
    /// Parts in the pages that came.
    pub planned: u32,
    /// Parts that are done.
    pub done: Totals,
}

/// What is to be done after a step, in this order, once the job is stored.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Give that command, if the agent is there; if not, it is given again when it comes.
    Send {
        /// Its id.
        id: CommandId,
        /// What.
        work: Work,
    },
    /// Stop it.
    Abort {
        /// Its id.
        id: CommandId,
        /// On which side it runs.
        side: Side,
    },
    /// Its outcome is stored.
    Forget {
        /// Its id.
        id: CommandId,
        /// On which side it ran.
        side: Side,
    },
    /// The target's state changes.
    Node(NodeEvent),
    /// A phase began.
    PhaseStarted(Phase),
    /// A phase ended.
    PhaseCompleted {
        /// Which.
        phase: Phase,
        /// How long it took.
        millis: u64,
    },
    /// Something a person should know was found.
    Found(Vec<Finding>),
    /// What the target lacks, now that everything was tried.
    Missing(MissingObjects),
    /// Work failed for the first time and is given again.
    TriesAgain {
        /// What.
        work: Work,
        /// How it failed.
        fault: Fault,
    },
    /// The snapshot was lost, and the job begins again once what it made is removed.
    BeginsAgain {
        /// Why.
        fault: Fault,
        /// How often that has happened now.
        restarts: u8,
    },
    /// The plan, and what was counted of it, holds no longer: another one follows.
    PlanDropped,
    /// A failed job goes on: it has not ended.
    Resumed,
    /// What a failed job kept is removed now.
    KeepEnds {
        /// Why.
        why: String,
    },
    /// What the job made on that side could not be removed.
    CleanupFailed {
        /// Which side.
        side: Side,
        /// Why not.
        why: String,
    },
    /// What the job made on that side is left there.
    GivenUp {
        /// Which side.
        side: Side,
        /// Why it cannot be removed.
        why: String,
    },
    /// The end has come; see [`Finish`].
    Finished(Finish),
    /// Nothing of the job is left to do.
    Closed,
}

/// How a job ends, as it is told to whoever follows it.
#[derive(Debug, Clone, PartialEq)]
pub enum Finish {
    /// Well.
    Synchronized,
    /// With that error. Something may be left to remove; the error says so.
    Failed(Fault),
    /// By an operator, everything removed.
    Cancelled,
    /// By an operator, and something could not be removed yet.
    CancelPending(Fault),
}

/// What a job does not do in its state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// There is nothing to cancel.
    #[error("the job is over and nothing of it is left")]
    Over,
    /// It began already.
    #[error("the job has begun already")]
    Begun,
    /// It has not failed, or has kept nothing.
    #[error("the job has kept nothing that could be resumed")]
    NothingKept,
    /// What it did when it failed has not been stopped yet.
    #[error("what the job did when it failed is still being stopped")]
    Stopping,
}
