//! The events of a job, and their effects.

use jiff::Timestamp;
use steep_protocol::message::adjust::Adjustment;
use steep_protocol::message::agent::{MissingObjects, Outcome};
use steep_protocol::message::facts::Finding;
use steep_protocol::message::job::CancelledData;
use steep_protocol::{CommandId, Fault, Phase};

use super::super::{Complete, Side, Totals, Work};
use super::{NodeEvent, Terms};

/// An event of a job.
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
        /// The process that began it.
        incarnation: u64,
        /// Whether it holds this job's snapshot open.
        snapshot: Snapshot,
    },
    /// An agent's session ended.
    Down {
        /// Which.
        side: Side,
        /// When it was last heard from.
        since: Timestamp,
        /// What is known of its process.
        parting: Parting,
    },
    /// An operator cancels it.
    Cancel {
        /// What happens to the rows.
        data: CancelledData,
    },
    /// An operator gives up on removing what cannot be removed now.
    GiveUp,
    /// An agent checked whether its PostgreSQL answers.
    Server {
        /// Which agent.
        side: Side,
        /// Why it does not, if it does not.
        answers: Result<(), String>,
    },
    /// The source's agent noticed that the session that held the snapshot has ended.
    SnapshotLost,
    /// Another snapshot takes the place of the shared one, from whose slot the job's own may have been copied.
    SnapshotReplaced,
    /// All parts of its snapshot are stored: from now on nobody has to hold it open.
    Sealed,
    /// What was stored of its snapshot is damaged or gone: it counts as lost.
    SpoolLost {
        /// What is wrong.
        fault: Fault,
    },
    /// The agents' observations show that the job cannot succeed (see [`crate::job::health`]).
    Endangered {
        /// Where that was observed.
        side: Side,
        /// Why.
        fault: Fault,
    },
    /// An operator resumes a failed job.
    Resume {
        /// The new terms.
        terms: Terms,
    },
    /// An operator changes the terms of a running job.
    Adjust(Adjustment),
    /// Of a merge.
    Merge(MergeNews),
    /// Time has passed.
    Tick,
}

/// What becomes of a merge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MergeNews {
    /// Both nodes have passed their preflight, and their sequences are set apart.
    Apart,
    /// So many rows were written to the target.
    Written(u64),
    /// The rows of both nodes are proved to be equal.
    Proved,
}

/// How an agent's session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parting {
    /// Without a word: the network may be broken, or the process may have died.
    Lost,
    /// The agent announced that its process ends. What it held in memory is certainly gone.
    Stopped,
}

/// Whether the source's agent holds the job's snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Snapshot {
    /// Yes.
    Held,
    /// No.
    NotHeld,
}

/// The coordinator's own counts, from plan pages and finished parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counted {
    /// Tables in the received pages, and those of earlier epochs.
    pub tables: u32,
    /// Their parts.
    pub planned: u32,
    /// Finished parts, those of earlier epochs included.
    pub done: Totals,
    /// Those of tables whose parts are all done.
    pub complete: Complete,
}

/// What to do after a step, in order, once the job is stored.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Send a command if the agent is online; otherwise it is sent when the agent is back.
    Send {
        /// Its id.
        id: CommandId,
        /// What.
        work: Work,
    },
    /// Stop a command.
    Abort {
        /// Its id.
        id: CommandId,
        /// On which side it runs.
        side: Side,
    },
    /// Let the agent forget a command, whose outcome is stored.
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
        /// How long it took, in milliseconds.
        millis: u64,
    },
    /// Findings to show to people.
    Found(Vec<Finding>),
    /// What the target lacks at the end of the job.
    Missing(MissingObjects),
    /// Work failed for the first time and is retried.
    TriesAgain {
        /// What failed.
        work: Work,
        /// Why.
        fault: Fault,
    },
    /// The snapshot was lost; the job starts over after its cleanup.
    BeginsAgain {
        /// Why.
        fault: Fault,
        /// How often that has happened, including now.
        restarts: u8,
    },
    /// The snapshot was lost; the tables that are complete stay, and another snapshot is taken for the others.
    EpochBegins {
        /// Why.
        fault: Fault,
    },
    /// All tables are replicated by one subscription.
    Folded,
    /// The plan and its counts are void: another plan follows.
    PlanDropped,
    /// A failed job was resumed.
    Resumed,
    /// A failed job can no longer be resumed and is cleaned up.
    KeepEnds {
        /// Why.
        why: String,
    },
    /// The cleanup of one side failed.
    CleanupFailed {
        /// Which side.
        side: Side,
        /// Why not.
        why: String,
    },
    /// The job's objects on one side are left behind.
    GivenUp {
        /// Which side.
        side: Side,
        /// Why they cannot be removed.
        why: String,
    },
    /// The job has ended; see [`Finish`].
    Finished(Finish),
    /// Nothing is left to do for the job.
    Closed,
}

/// How a job ends, as reported to its followers.
#[derive(Debug, Clone, PartialEq)]
pub enum Finish {
    /// Successfully: the node follows.
    Synchronized,
    /// Successfully: the node has its rows, and does not follow.
    Loaded,
    /// Successfully: the node's replication has more tables, or fewer.
    Changed,
    /// With an error, which names what is left to remove.
    Failed(Fault),
    /// Cancelled, and everything is removed, rows and tables only if so ordered.
    Cancelled(CancelledData),
    /// Cancelled, but something could not be removed yet.
    CancelPending(Fault),
}

/// Why a job refuses an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The job has ended.
    #[error("the job has ended, and nothing of it is left")]
    Over,
    /// It has begun.
    #[error("the job has already begun")]
    Begun,
    /// It cannot be resumed.
    #[error("the job has kept nothing to resume")]
    NothingKept,
    /// Commands of the failed job are still being stopped.
    #[error("the failed job is still being stopped")]
    Stopping,
    /// Its tables are leaving a replication.
    #[error("tables are leaving the replication, which cannot be undone; it takes moments")]
    Leaving,
    /// Its tables have left a replication, and are to join it again.
    #[error(
        "too late to cancel: the tables have left the replication to get their new rows, and can only go on; init cancel --force-cleanup gives that up and leaves them unfollowed"
    )]
    Swapping,
    /// The terms no longer count for anything that it has yet to do.
    #[error("the job is past what those terms are for")]
    TooLate,
}
