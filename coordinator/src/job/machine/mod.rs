//! Which command goes to which agent next.
//!
//! Owns the flow of a job: [`step`] takes a job and something that happened and gives the job after
//! it and what is to be done. Pure: it sends nothing, stores nothing and knows no clock. Its parts:
//! `working` leads from the first command to SYNCHRONIZED, `faults` decides what a fault means for the
//! job, `ending` stops and removes, `kept` holds a failed job until it is resumed.
//!
//! Invariants, all of them tested with random agents in `tests`:
//! - whatever happens, a cancel leads to a closed job once the agents answer;
//! - once faults stop, a job comes to an end without an operator;
//! - what may pass is waited for no longer than its budget;
//! - nothing is removed from a side on which a command may still be at work;
//! - what a command may leave is noted before the command is sent;
//! - SYNCHRONIZED is reached by a proof or not at all (G4).

mod ending;
mod faults;
mod kept;
mod working;

#[cfg(test)]
mod tests;

use std::time::Duration;

use jiff::Timestamp;
use steep_protocol::message::agent::{MissingObjects, Outcome};
use steep_protocol::message::facts::Finding;
use steep_protocol::message::job::{CancelledData, Compression};
use steep_protocol::{ByteCount, CommandId, Fault, Phase};

use super::health::Bounds;
use super::preflight::Case;
use super::retry::Patience;
use super::state::NodeEvent;
use super::time::after;
use super::{
    Closed, Ending, Job, Opened, Presence, Residue, Running, ServerState, Side, Stage, Step,
    Totals, Work,
};

/// How long the removal of what a job made may hold back FAILED when an agent is away.
pub const SHOW_AFTER_DEATH: Duration = Duration::from_secs(2);

/// How long it may hold back FAILED otherwise. PostgreSQL itself may be what died, and then FAILED
/// must be seen within 15 s too.
pub const SHOW_AFTER_FAULT: Duration = Duration::from_secs(10);

/// How long an operator who cancels waits before being told that something is left to do. Longer
/// than the 30 s that stopping a running COPY and emptying tables may take at worst.
pub const SHOW_AFTER_CANCEL: Duration = Duration::from_secs(60);

/// How long an aborted command may take to end before it is given up.
pub const STOP_LIMIT: Duration = Duration::from_secs(10);

/// How long the source waits for the target to be clean, once commands have been stopped. The target's
/// subscription uses the source's slot, so it had better go first; but somebody who reads a table there
/// can hold up its removal for as long as they like, and the source's disk is at stake meanwhile (G5).
pub const TARGET_FIRST: Duration = Duration::from_secs(10);

/// How often a removal that failed is tried again: PostgreSQL may be back without its agent having
/// been away.
pub const CLEANUP_AGAIN: Duration = Duration::from_secs(5);

/// Parts that one Copy can name: five bytes each on the wire, and the whole order must fit a control
/// frame ([`steep_protocol::limits::CONTROL_FRAME_MAX`]).
pub const PARTS_PER_COPY: u32 = 3_000_000;

/// How often Copy is given again because it ended with parts we had not heard of. The messages of a
/// lost session explain one; more mean that ledger and plan disagree.
pub const RECOUNTS_MAX: u8 = 3;

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
    /// What agents observe says that it cannot end well (see [`super::health`]).
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

/// Preflight's judgement; a parameter so that the machine can be tested without it.
pub type Judge = fn(&Case<'_>) -> Vec<Finding>;

/// What the coordinator holds jobs to.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// Whether one may begin; [`super::preflight::judge`].
    pub judge: Judge,
    /// What it may cost its source.
    pub bounds: Bounds,
    /// How long it tries again, and keeps what it has.
    pub patience: Patience,
}

/// The job after `event`, and what is to be done. `counted` is what its parts have come to so far.
///
/// # Errors
/// [`Refused`] where the event makes no sense; the caller keeps the job as it was.
pub fn step(
    job: Job,
    event: JobEvent,
    counted: Counted,
    now: Timestamp,
    rules: Rules,
) -> Result<(Job, Vec<Effect>), Refused> {
    let mut turn = Turn {
        job,
        effects: Vec::new(),
        counted,
        now,
        rules,
    };
    match turn.job.stage.clone() {
        Stage::Working(step) => turn.working(step, event)?,
        Stage::Ending(ending) => turn.ending(ending, event)?,
        Stage::Kept(kept) => turn.kept(kept, event)?,
        Stage::Closed(closed) => turn.closed(&closed, event)?,
    }
    Ok((turn.job, turn.effects))
}

/// One step being made.
struct Turn {
    job: Job,
    effects: Vec<Effect>,
    counted: Counted,
    now: Timestamp,
    rules: Rules,
}

impl Turn {
    /// A job that is over only answers, and can be undone where its node has diverged since (the
    /// caller checks that).
    fn closed(&mut self, closed: &Closed, event: JobEvent) -> Result<(), Refused> {
        match event {
            JobEvent::Begin => Err(Refused::Begun),
            JobEvent::Cancel { data } => match closed {
                Closed::Synchronized => {
                    self.undo(data);
                    Ok(())
                }
                Closed::Failed(_) | Closed::Cancelled => Err(Refused::Over),
            },
            JobEvent::Up {
                side, incarnation, ..
            } => {
                self.arrived(side, incarnation);
                Ok(())
            }
            JobEvent::Down { side, since, .. } => {
                self.left(side, since);
                Ok(())
            }
            JobEvent::Resume { .. } => Err(Refused::NothingKept),
            JobEvent::Ended { .. }
            | JobEvent::Server { .. }
            | JobEvent::SnapshotLost
            | JobEvent::Endangered { .. }
            | JobEvent::GiveUp
            | JobEvent::Tick => Ok(()),
        }
    }

    /// Gives a command, noting first what it may leave.
    fn give(&mut self, work: Work) {
        let id = CommandId(self.job.first_command + self.job.commands_issued);
        self.job.commands_issued += 1;
        let residue = match work {
            Work::GatherSource | Work::Regrant => Some(Residue::Grant),
            Work::OpenSource | Work::TakeSlot | Work::PrepareTarget => Some(Residue::Objects),
            Work::GatherTarget
            | Work::Copy
            | Work::CloseSnapshot
            | Work::BuildIndexes
            | Work::BuildConstraints
            | Work::Subscribe
            | Work::AwaitNativeCopy
            | Work::AwaitFence
            | Work::Finish
            | Work::ProveTarget
            | Work::ProveSource
            | Work::ReleaseTarget
            | Work::ReleaseSource
            | Work::CleanupTarget(_)
            | Work::CleanupSource => None,
        };
        let end = self.end_mut(work.side());
        match (residue, &end.residue) {
            // A grant is the least a side can hold; it never hides objects that may be there.
            (Some(Residue::Grant), Residue::Nothing | Residue::Removed) => {
                end.residue = Residue::Grant;
            }
            (Some(Residue::Objects), _) => end.residue = Residue::Objects,
            _ => {}
        }
        if work == Work::OpenSource {
            self.job.attempt.snapshot_at = Some(self.now);
            self.effects.push(Effect::PlanDropped);
        }
        self.job.running.push(Running { id, work });
        self.send(id, work);
    }

    /// Sends a command that has been given, where there is someone to send it to.
    fn send(&mut self, id: CommandId, work: Work) {
        if self.online(work.side()) {
            self.effects.push(Effect::Send { id, work });
        }
    }

    /// Takes the command out of those running, if it is one, and lets the agent forget it.
    fn take(&mut self, id: CommandId) -> Option<Work> {
        let at = self.job.running.iter().position(|r| r.id == id)?;
        let work = self.job.running.remove(at).work;
        self.effects.push(Effect::Forget {
            id,
            side: work.side(),
        });
        Some(work)
    }

    /// Notes an agent's session; says whether its process is another than before.
    fn arrived(&mut self, side: Side, incarnation: u64) -> Process {
        let end = self.end_mut(side);
        end.presence = Presence::Online;
        match end.incarnation.replace(incarnation) {
            Some(before) if before != incarnation => Process::Restarted,
            Some(_) | None => Process::Same,
        }
    }

    /// Notes the end of an agent's session.
    fn left(&mut self, side: Side, since: Timestamp) {
        let end = self.end_mut(side);
        end.presence = Presence::Away { since };
        // Nobody sees the server now.
        end.server = ServerState::Answers;
    }

    /// Notes whether a side's PostgreSQL answers; says whether it answers again.
    fn saw_server(&mut self, side: Side, answers: Result<(), String>) -> Return {
        let now = self.now;
        let end = self.end_mut(side);
        match (answers, &end.server) {
            (Ok(()), ServerState::Silent { .. }) => {
                end.server = ServerState::Answers;
                Return::Now
            }
            (Err(why), ServerState::Answers) => {
                end.server = ServerState::Silent { since: now, why };
                Return::No
            }
            (Ok(()), ServerState::Answers) | (Err(_), ServerState::Silent { .. }) => Return::No,
        }
    }

    /// Changes the node's state, as far as it has not been told before.
    fn bring(&mut self, event: NodeEvent) {
        if event == NodeEvent::Opened {
            if self.job.opened == Opened::Yes {
                return;
            }
            self.job.opened = Opened::Yes;
        }
        self.effects.push(Effect::Node(event));
    }

    fn end_mut(&mut self, side: Side) -> &mut super::End {
        match side {
            Side::Source => &mut self.job.source,
            Side::Target => &mut self.job.target,
        }
    }

    fn online(&self, side: Side) -> bool {
        self.job.end(side).presence == Presence::Online
    }

    /// Ends the current phase and begins another.
    fn phase(&mut self, phase: Phase) {
        if self.job.clock.current.is_some_and(|(p, _)| p == phase) {
            return;
        }
        self.stop_phase();
        self.job.clock.start(phase, self.now);
        self.effects.push(Effect::PhaseStarted(phase));
    }

    fn stop_phase(&mut self) {
        if let Some((phase, millis)) = self.job.clock.stop(self.now) {
            self.effects.push(Effect::PhaseCompleted { phase, millis });
        }
    }

    fn close(&mut self, closed: Closed) {
        self.stop_phase();
        // At most a grant that was given again or is taken back; nobody needs their answers any more.
        self.job.running.clear();
        self.job.ended_at.get_or_insert(self.now);
        self.job.stage = Stage::Closed(closed);
        self.effects.push(Effect::Closed);
    }
}

/// Whether a server that was away is back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Return {
    Now,
    No,
}

/// Whether an agent that came back is the process that left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Process {
    Same,
    Restarted,
}
