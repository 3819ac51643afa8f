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
mod event;
mod faults;
mod kept;
mod working;

#[cfg(test)]
mod tests;

use std::time::Duration;

use jiff::Timestamp;
use steep_protocol::message::facts::Finding;
use steep_protocol::{CommandId, Phase};

pub use event::{Counted, Effect, Finish, JobEvent, Parting, Refused, Snapshot, Terms};

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
