//! Decides which command goes to which agent next.
//!
//! Owns the flow of a job: [`step`] takes a job and an event and returns the new job and the effects to
//! carry out. Pure: it sends nothing, stores nothing and knows no clock. `working` leads from the first
//! command to SYNCHRONIZED, `faults` decides what a fault means for the job, `ending` stops it and cleans
//! up, `epochs` goes on with another snapshot, `returns` with agents that are back, `change` lets tables join or leave a replication that goes on, `merge` has two nodes wait for each other, `kept` holds a failed job until it is resumed, `terms` are what an operator may change.
//!
//! Invariants, all of them tested with random agents in `tests`:
//! - a cancel always leads to a closed job once the agents answer;
//! - once faults stop, a job ends without an operator;
//! - no transient fault is waited for longer than its budget;
//! - nothing is removed from a side where another command may still run;
//! - what a command may leave is recorded before the command is sent;
//! - only a proof leads to SYNCHRONIZED (G4).

mod change;
mod ending;
mod epochs;
mod event;
mod faults;
mod kept;
mod limits;
mod merge;
mod returns;
mod terms;
mod working;

#[cfg(test)]
mod tests;

use std::time::Duration;

use jiff::Timestamp;
use steep_protocol::message::facts::Finding;
use steep_protocol::{CommandId, Fault, Phase};

pub use event::{Counted, Effect, Finish, JobEvent, MergeNews, Parting, Refused, Snapshot};
pub use terms::Terms;

use super::health::Bounds;
use super::preflight::Case;
use super::retry::Patience;
use super::state::NodeEvent;
use super::time::after;
use super::{
    Closed, Ending, Job, Opened, Presence, Residue, Running, ServerState, Side, Stage, Step,
    Totals, Work,
};

/// How long cleanup may delay showing FAILED while an agent is offline.
pub const SHOW_AFTER_DEATH: Duration = Duration::from_secs(2);

/// How long it may delay showing FAILED otherwise. PostgreSQL itself may have died, and then too FAILED must
/// be shown within 15 s.
pub const SHOW_AFTER_FAULT: Duration = Duration::from_secs(10);

/// How long an operator who cancels waits before being told that cleanup is pending. Longer than the 30 s
/// that stopping a running COPY and emptying tables may take at worst.
pub const SHOW_AFTER_CANCEL: Duration = Duration::from_secs(60);

/// How long an aborted command may take to end before the job stops waiting for it.
pub const STOP_LIMIT: Duration = Duration::from_secs(10);

/// How long the source's cleanup waits for the target's, once commands have stopped. The target's
/// subscription uses the source's slot, so it should go first. But any reader of a table there can delay
/// its cleanup without limit, while the slot fills the source's disk (G5).
pub const TARGET_FIRST: Duration = Duration::from_secs(10);

/// How often a failed cleanup is retried: PostgreSQL may be back although its agent never left.
pub const CLEANUP_AGAIN: Duration = Duration::from_secs(5);

/// Most parts that one Copy can name: five bytes each on the wire, and the command must fit a control
/// frame ([`steep_protocol::limits::CONTROL_FRAME_MAX`]).
pub const PARTS_PER_COPY: u32 = 3_000_000;

/// How often Copy is issued again because it ended before all its parts were reported. Messages lost with a
/// session explain one time; more mean that ledger and plan disagree.
pub const RECOUNTS_MAX: u8 = 3;

/// Preflight's judgement; a parameter, so that the machine can be tested without it.
pub type Judge = fn(&Case<'_>) -> Vec<Finding>;

/// The rules for all jobs.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// Judges whether a job may begin; [`super::preflight::judge`].
    pub judge: Judge,
    /// What a job may cost its source.
    pub bounds: Bounds,
    /// How long a job tries again, and can be resumed.
    pub patience: Patience,
}

/// The job after `event`, and the effects to carry out. `counted` are the sums of its parts so far.
///
/// # Errors
/// [`Refused`] if the event does not apply; the caller keeps the job as it was.
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

/// One step in progress.
struct Turn {
    job: Job,
    effects: Vec<Effect>,
    counted: Counted,
    now: Timestamp,
    rules: Rules,
}

/// Adds a sentence to a hint. Only the first sentence of a hint begins with a small letter.
fn add_hint(fault: &mut Fault, sentence: &str) {
    if fault.hint.is_empty() {
        sentence.clone_into(&mut fault.hint);
        return;
    }
    let mut letters = sentence.chars();
    if let Some(first) = letters.next() {
        fault.hint.push_str(". ");
        fault.hint.extend(first.to_uppercase());
        fault.hint.push_str(letters.as_str());
    }
}

impl Turn {
    /// A closed job reacts only to a cancel of a synchronized job, whose node has diverged since (the caller
    /// checks that).
    fn closed(&mut self, closed: &Closed, event: JobEvent) -> Result<(), Refused> {
        match event {
            JobEvent::Begin => Err(Refused::Begun),
            JobEvent::Cancel { data } => match closed {
                Closed::Synchronized => {
                    self.undo(data);
                    Ok(())
                }
                Closed::Loaded | Closed::Changed | Closed::Failed(_) | Closed::Cancelled => {
                    Err(Refused::Over)
                }
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
            JobEvent::Adjust(_) => Err(Refused::TooLate),
            JobEvent::Ended { .. }
            | JobEvent::Server { .. }
            | JobEvent::SnapshotLost
            | JobEvent::SnapshotReplaced
            | JobEvent::Sealed
            | JobEvent::SpoolLost { .. }
            | JobEvent::Endangered { .. }
            | JobEvent::GiveUp
            | JobEvent::Merge(_)
            | JobEvent::Tick => Ok(()),
        }
    }

    /// Issues a command, after recording what it may leave.
    fn issue(&mut self, work: Work) {
        let id = CommandId(self.job.first_command + self.job.commands_issued);
        self.job.commands_issued += 1;
        let residue = match work {
            Work::GatherSource | Work::Regrant => Some(Residue::Grant),
            // It makes neither slot nor publication.
            Work::OpenSource if !self.job.follows() => Some(Residue::Grant),
            Work::OpenSource | Work::TakeSlot | Work::PrepareTarget => Some(Residue::Objects),
            Work::GatherTarget
            | Work::OpenCarried
            | Work::Copy
            | Work::CloseSnapshot
            | Work::BuildIndexes
            | Work::BuildConstraints
            | Work::Subscribe
            | Work::AwaitNativeCopy
            | Work::AwaitFence
            | Work::Finish
            | Work::Fold
            | Work::Join
            | Work::Leave
            | Work::Swap
            | Work::ProveTarget
            | Work::ProveSource
            | Work::ReleaseTarget
            | Work::ReleaseSource
            | Work::CleanupTarget(_)
            | Work::CleanupSource => None,
        };
        let end = self.end_mut(work.side());
        match (residue, &end.residue) {
            // A grant must not hide objects that may be there.
            (Some(Residue::Grant), Residue::Nothing | Residue::Removed) => {
                end.residue = Residue::Grant;
            }
            (Some(Residue::Objects), _) => end.residue = Residue::Objects,
            _ => {}
        }
        if work == self.job.planner() {
            // That of an adopted job is open already.
            if self.job.adopted.is_none() {
                self.job.attempt.snapshot_at = Some(self.now);
            }
            self.effects.push(Effect::PlanDropped);
        }
        self.job.running.push(Running { id, work });
        self.send(id, work);
    }

    /// Sends an issued command if its agent is online.
    fn send(&mut self, id: CommandId, work: Work) {
        if self.online(work.side()) {
            self.effects.push(Effect::Send { id, work });
        }
    }

    /// Removes the command from the running ones, if it is one, and lets the agent forget it.
    fn take(&mut self, id: CommandId) -> Option<Work> {
        let at = self.job.running.iter().position(|r| r.id == id)?;
        let work = self.job.running.remove(at).work;
        self.effects.push(Effect::Forget {
            id,
            side: work.side(),
        });
        Some(work)
    }

    /// Records an agent's session; returns whether its process restarted.
    fn arrived(&mut self, side: Side, incarnation: u64) -> Process {
        let end = self.end_mut(side);
        end.presence = Presence::Online;
        match end.incarnation.replace(incarnation) {
            Some(before) if before != incarnation => Process::Restarted,
            Some(_) | None => Process::Same,
        }
    }

    /// Records the end of an agent's session.
    fn left(&mut self, side: Side, since: Timestamp) {
        let end = self.end_mut(side);
        end.presence = Presence::Away { since };
        // Without its agent the server's state is unknown.
        end.server = ServerState::Answers;
    }

    /// Records whether a side's PostgreSQL answers; returns whether it just came back.
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

    /// Changes the node's state. Idempotent for `Opened`.
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
        // At most renewing or revoking a grant is left, whose results nobody needs.
        self.job.running.clear();
        self.job.ended_at.get_or_insert(self.now);
        self.job.stage = Stage::Closed(closed);
        self.effects.push(Effect::Closed);
    }
}

/// Whether a server that did not answer answers again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Return {
    Now,
    No,
}

/// Whether an agent's process is the one of its last session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Process {
    Same,
    Restarted,
}
