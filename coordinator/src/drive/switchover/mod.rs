//! Switchovers: their commands to both agents, and what is told of them.
//!
//! [`crate::switchover::machine`] decides; this carries it out. Commands have the switchover's id in the place of a
//! job's. [`orders`] checks and begins one, [`ending`] does what follows the decision and is the loop's own: the new
//! node is detached, and the old one begins to follow by a job. [`lifted`] notices if that one takes writes all the same.

mod ending;
mod lifted;
mod orders;

use jiff::Timestamp;
use steep_protocol::message::agent::{
    Command, CoordinatorMessage, NodeCommand, Outcome, SourceCommand, TargetCommand,
};
use steep_protocol::message::handover::Replication;
use steep_protocol::message::switchover::{
    Closing, SwitchoverCommand, SwitchoverStep as Step, SwitchoverView,
};
use steep_protocol::message::verify::{Comparing, ModifiedBy, RowAccess, RowValues, VerifyTables};
use steep_protocol::{CommandId, Fault, FaultKind, JobId, NodeId, limits};
use tokio::sync::watch;

use super::Driver;
use super::log::{Level, Note};
use crate::store::{Store, Write};
use crate::switchover::machine::{Effect, Event};
use crate::switchover::{Side, Switchover};

pub(super) use self::orders::Looking;

/// How long the slot of the way back is kept until the old node follows: until somebody has repaired what is in its way.
const WAY_BACK_KEPT_SECONDS: u64 = 7 * 24 * 3600;

/// A switchover in memory.
pub(super) struct Switching {
    switchover: Switchover,
    /// For those who wait for it.
    feed: watch::Sender<SwitchoverView>,
}

impl Switching {
    fn of(switchover: Switchover, now: Timestamp) -> Self {
        let (feed, _) = watch::channel(switchover.view(now));
        Self { switchover, feed }
    }
}

impl<S: Store> Driver<S> {
    /// Those that were under way go on, or are undone: nobody waits for them any more.
    pub(super) fn restore_switchovers(&mut self, stored: Vec<Switchover>) {
        let now = self.clock.now();
        let all = stored.into_iter();
        self.switchovers = all.map(|one| (one.id, Switching::of(one, now))).collect();
    }

    /// The switchover that has not ended and that the node is part of.
    fn switching(&self, node: &NodeId) -> Option<&Switchover> {
        let mut all = self.switchovers.values().map(|one| &one.switchover);
        all.find(|one| !one.step.is_over() && one.side_of(node).is_some())
    }

    /// The last switchover of a node, for its view.
    pub(super) fn switchover_view(
        &self,
        node: &NodeId,
        now: Timestamp,
    ) -> Option<Box<SwitchoverView>> {
        let all = self.switchovers.values().map(|one| &one.switchover);
        let last = all
            .filter(|one| one.side_of(node).is_some())
            .max_by_key(|one| one.began_at)?;
        Some(Box::new(SwitchoverView {
            lifted: self
                .lifted(&last.spec.from)
                .is_some_and(|one| one.id == last.id),
            ..last.view(now)
        }))
    }

    /// Whether messages with that id in the place of a job's are about a switchover.
    pub(super) fn is_switching(&self, job: JobId) -> bool {
        let own = self.switchovers.get(&job);
        own.is_some_and(|one| !one.switchover.step.is_over())
    }

    /// The switchover whose command that is, on that node.
    pub(super) fn switchover_running(&self, node: &NodeId, command: CommandId) -> Option<JobId> {
        let runs = |one: &&Switchover| {
            let stale = one
                .stale
                .is_some_and(|stale| stale.id == command && one.node(stale.side) == node);
            let side = Side::of(one.step).map(|side| one.node(side));
            stale || one.running == Some(command) && side == Some(node)
        };
        let mut all = self.switchovers.values().map(|one| &one.switchover);
        all.find(runs).map(|one| one.id)
    }

    pub(super) fn switchover_finished(
        &mut self,
        id: JobId,
        node: &NodeId,
        command: CommandId,
        outcome: Result<Outcome, Fault>,
        now: Timestamp,
    ) {
        if let Ok(Outcome::SlotPrepared(slot)) = &outcome {
            self.slot_prepared(node, slot, now);
        }
        let event = Event::Ended {
            id: command,
            outcome: Box::new(outcome),
        };
        self.step_switchover(id, event, now);
    }

    /// An agent has a session.
    pub(super) fn switchovers_up(&mut self, node: &NodeId, now: Timestamp) {
        for id in self.unfinished() {
            self.step_switchover(id, Event::Up(node.clone()), now);
        }
    }

    pub(super) fn tick_switchovers(&mut self, now: Timestamp) {
        for id in self.unfinished() {
            let one = &self.switchovers[&id];
            if one.switchover.is_undecided() && one.feed.is_closed() {
                let text = "nobody waits for the switchover any more";
                let fault = Fault::new(FaultKind::Cancelled, text);
                self.step_switchover(id, Event::Undo(fault), now);
            }
            self.tick_ending(id, now);
            self.step_switchover(id, Event::Tick, now);
        }
    }

    fn unfinished(&self) -> Vec<JobId> {
        let all = self.switchovers.values().map(|one| &one.switchover);
        let unfinished = all.filter(|one| !one.step.is_over());
        unfinished.map(|one| one.id).collect()
    }

    fn step_switchover(&mut self, id: JobId, event: Event, now: Timestamp) {
        let Some(one) = self.switchovers.get_mut(&id) else {
            return;
        };
        let before = one.switchover.clone();
        let effects = one.switchover.step(event, now);
        if one.switchover != before {
            let write = Write::Switchover(Box::new(one.switchover.clone()));
            self.out.writes.push(write);
            one.feed.send_replace(one.switchover.view(now));
            // Watchers look again.
            self.out.observed = true;
        }
        for effect in effects {
            self.perform_switchover(id, effect, now);
        }
    }

    fn perform_switchover(&mut self, id: JobId, effect: Effect, now: Timestamp) {
        let Some(one) = self.switchovers.get(&id).map(|one| &one.switchover) else {
            return;
        };
        match effect {
            Effect::Send(command) => self.send_step(id, command),
            Effect::Abort(command, side) => {
                let node = one.node(side).clone();
                let message = CoordinatorMessage::Abort {
                    id: command,
                    job: id,
                };
                self.send(&node, message);
            }
            told => self.tell_switchover(id, told, now),
        }
    }

    fn send_step(&mut self, id: JobId, command_id: CommandId) {
        let Some(one) = self.switchovers.get(&id).map(|one| &one.switchover) else {
            return;
        };
        let (Some(side), Some((command, replication))) =
            (Side::of(one.step), self.compose_step(one))
        else {
            return;
        };
        let node = one.node(side).clone();
        let message = CoordinatorMessage::Command {
            id: command_id,
            job: id,
            replication,
            command,
        };
        self.send(&node, message);
    }

    /// The command of a step, and the replication that it is about.
    fn compose_step(&self, one: &Switchover) -> Option<(Command, Replication)> {
        let spec = &one.spec;
        let switchover = |command| Command::from(NodeCommand::Switchover(command));
        let command = match one.step {
            Step::PrepareWayBack => {
                let expires_seconds = WAY_BACK_KEPT_SECONDS;
                let command = SourceCommand::PrepareSlot { expires_seconds };
                return Some((command.into(), one.way_back()));
            }
            Step::DropWayBack => return Some((SourceCommand::DropPrepared.into(), one.way_back())),
            Step::AdmitRows | Step::AdmitSmall => Command::from(SourceCommand::AdmitVerify {
                target: spec.to.clone(),
                access: RowAccess::Compare(RowValues::Hidden),
            }),
            Step::CompareRows | Step::CompareSmall => {
                Command::from(TargetCommand::Verify(Box::new(VerifyTables {
                    source: self.peer(&spec.from),
                    comparing: Comparing::Equality,
                    tables: match one.step {
                        Step::CompareSmall => one.small.clone(),
                        _ => Vec::new(),
                    },
                    values: RowValues::Hidden,
                    parallel: limits::WORKERS_DEFAULT,
                    max_rate: None,
                    modified: ModifiedBy::NotAsked,
                })))
            }
            Step::CloseNew => switchover(SwitchoverCommand::Close(Closing::New)),
            Step::StopWrites => switchover(SwitchoverCommand::Close(Closing::Old {
                max_stop_seconds: spec.max_stop_seconds,
                terminate_after_seconds: spec.terminate_after_seconds,
            })),
            Step::Drain => Command::from(SourceCommand::AwaitFence {
                earlier: Vec::new(),
            }),
            Step::AdmitSequences | Step::AdmitLast => Command::from(SourceCommand::Admit {
                target: spec.to.clone(),
                filter: one.filter.clone(),
                replicated: Some(one.replication.id),
            }),
            Step::Sequences | Step::LastSequences => Command::from(TargetCommand::RaiseSequences {
                source: self.peer(&spec.from),
            }),
            Step::ProveOpen => switchover(SwitchoverCommand::ProveOpen),
            Step::Decide => switchover(SwitchoverCommand::Decide),
            Step::Open => switchover(SwitchoverCommand::Open),
            Step::ReopenOld | Step::ReopenNew => switchover(SwitchoverCommand::Reopen),
            Step::Detach | Step::Follow | Step::Completed | Step::Undone => return None,
        };
        Some((command, one.replication.clone()))
    }

    fn tell_switchover(&mut self, id: JobId, effect: Effect, now: Timestamp) {
        let Some(one) = self.switchovers.get(&id).map(|one| &one.switchover) else {
            return;
        };
        let (from, to) = (one.spec.from.clone(), one.spec.to.clone());
        let millis = |seconds: Option<f64>| (seconds.unwrap_or_default() * 1e3).round();
        let stopped = one.stopped_seconds(now);
        let fault = one.fault.clone();
        let begun = now.as_millisecond() - one.began_at.as_millisecond();
        let note = match effect {
            Effect::Send(_) | Effect::Abort(..) => return,
            Effect::Entered(Step::Completed) => {
                self.over(id);
                let seconds = stopped.unwrap_or_default();
                let text = format!(
                    "{to} takes writes in place of {from}, which were stopped for {seconds:.1} s"
                );
                let note = match fault {
                    None => Note::info("switchover.completed", text),
                    Some(fault) => {
                        let text = format!("{text}; {fault}");
                        Note::warn("switchover.completed", text).field("hint", &fault.hint)
                    }
                };
                note.field("duration_ms", begun.max(0))
                    .field("stopped_ms", millis(stopped))
            }
            Effect::Entered(Step::Undone) => {
                self.over(id);
                let why = fault.map_or_else(String::new, |fault| format!(": {fault}"));
                let text =
                    format!("{from} takes writes as before, the switchover to {to} is undone{why}");
                Note::warn("switchover.undone", text).field("stopped_ms", millis(stopped))
            }
            Effect::Entered(step) => {
                let text = format!("{from} to {to}: {}", step.as_str().replace('_', " "));
                Note::info("switchover.step", text).field("step", step.as_str())
            }
            Effect::Undoing(fault) => {
                let text = format!("the switchover from {from} to {to} is being undone: {fault}");
                Note::new(Level::Warn, "switchover.undoing", text).field("hint", &fault.hint)
            }
            Effect::TriesAgain(fault) => {
                let text = format!("the switchover from {from} to {to} tries again: {fault}");
                Note::new(Level::Warn, "switchover.retried", text).field("hint", &fault.hint)
            }
        };
        let note = note.node(&to).of(Some(&from), None);
        self.log(note.field("switchover_id", id), now);
    }

    /// The new node may not ask the old one any more (G7).
    fn over(&mut self, id: JobId) {
        let from = self.switchovers[&id].switchover.spec.from.clone();
        let command = self.take_commands(1);
        self.release_permission(id, command, &from);
    }
}
