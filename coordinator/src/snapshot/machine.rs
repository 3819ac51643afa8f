//! The next command of a snapshot. Pure.
//!
//! Opening → Storing → Sealed, or Opening → Shared, also where storing for targets that share it fails.
//! Whatever ends it leads through Removing, so that no slot is left (G5). Only a process of the agent that has
//! not restarted holds a snapshot open: another one means that it is lost. A lost one of an operator is begun
//! again; targets that shared it go on with others.

use std::time::Duration;

use jiff::Timestamp;
use steep_protocol::message::agent::Outcome;
use steep_protocol::message::snapshot::SealedSnapshot;
use steep_protocol::{CommandId, Fault, FaultKind, Retry};

use super::{Owner, Point, Running, Snapshot, Stage, Trouble, Why, Work};
use crate::job::retry::{RESTARTS_MAX, pause};
use crate::job::time::after;

/// What happens to a snapshot.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// It was accepted.
    Begin,
    /// The source's agent has a session.
    Up {
        /// Its process.
        incarnation: u64,
        /// Whether this process holds the snapshot open.
        held: bool,
    },
    /// The source's PostgreSQL answers again.
    ServerBack,
    /// A command ended.
    Ended {
        /// Its id.
        id: CommandId,
        /// Its outcome.
        outcome: Box<Result<Outcome, Fault>>,
    },
    /// The session that held it has ended.
    Lost,
    /// Its slot cannot be used any more.
    SlotGone {
        /// Why.
        why: String,
    },
    /// The source has dropped its slot because its time is over.
    Expired,
    /// What was spooled is damaged or gone.
    Damaged(Fault),
    /// An operator deletes it.
    Delete,
    /// None of its targets needs it any more.
    Unneeded,
    /// Time has passed.
    Tick,
}

/// What a step asks for.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Send a command.
    Send(Running),
    /// Cancel a command.
    Abort(CommandId),
    /// The outcome of a command is stored.
    Forget(CommandId),
    /// Its consistent point is there.
    Opened,
    /// It is complete.
    Sealed(SealedSnapshot),
    /// It is tried again after a failure.
    TriesAgain(Fault),
    /// It cannot be stored, and its targets read it while the source holds it open.
    NotStored(Fault),
    /// It is begun again from the start.
    BeginsAgain(Fault),
    /// It is lost.
    Lost(Fault),
    /// Its time is over.
    Expired,
    /// Nothing of it is left.
    Over(Why),
}

/// How long a snapshot tries again without success.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget(pub Duration);

impl Snapshot {
    /// Takes a step.
    pub fn step(&mut self, event: Event, budget: Budget, now: Timestamp) -> Vec<Effect> {
        let mut effects = Vec::new();
        let out = &mut effects;
        match event {
            Event::Begin => self.issue(Work::Open, out),
            Event::Up { incarnation, held } => self.up(incarnation, held, now, out),
            Event::ServerBack => {
                if let Some(trouble) = &mut self.trouble {
                    trouble.again = now.min(trouble.again);
                }
            }
            Event::Ended { id, outcome } => self.ended(id, *outcome, budget, now, out),
            Event::Lost => self.lost(now, out),
            Event::SlotGone { why } => self.slot_gone(why, now, out),
            Event::Expired => match self.stage {
                // Its targets have slots of their own.
                _ if self.owner == Owner::Jobs => {}
                Stage::Sealed => {
                    out.push(Effect::Expired);
                    self.remove(Why::Expired, out);
                }
                Stage::Opening | Stage::Storing => {
                    self.slot_gone("it expired".to_owned(), now, out);
                }
                Stage::Shared | Stage::Removing(_) | Stage::Over(_) => {}
            },
            Event::Damaged(fault) => match self.stage {
                // An operator can put a file back, and delete what is left.
                _ if self.owner == Owner::Operator => {}
                Stage::Storing | Stage::Shared | Stage::Sealed => {
                    self.give_up(fault.retry(Retry::Backoff), now, out);
                }
                Stage::Opening | Stage::Removing(_) | Stage::Over(_) => {}
            },
            Event::Delete => match self.stage {
                Stage::Over(_) => out.push(Effect::Over(Why::Deleted)),
                Stage::Removing(_) => self.stage = Stage::Removing(Why::Deleted),
                Stage::Opening | Stage::Storing | Stage::Shared | Stage::Sealed => {
                    self.remove(Why::Deleted, out);
                }
            },
            Event::Unneeded => match self.stage {
                Stage::Opening | Stage::Storing | Stage::Shared | Stage::Sealed => {
                    self.remove(Why::Unneeded, out);
                }
                Stage::Removing(_) | Stage::Over(_) => {}
            },
            Event::Tick => {
                if self.running.is_none() && self.trouble.is_some_and(|t| t.again <= now) {
                    self.issue_again(out);
                }
            }
        }
        effects
    }

    fn issue(&mut self, work: Work, out: &mut Vec<Effect>) {
        let running = Running {
            id: CommandId(self.first_command + self.commands_issued),
            work,
        };
        self.commands_issued += 1;
        self.running = Some(running);
        out.push(Effect::Send(running));
    }

    /// Issues the command of the current stage.
    fn issue_again(&mut self, out: &mut Vec<Effect>) {
        match self.stage {
            Stage::Opening => self.issue(Work::Open, out),
            Stage::Storing => self.issue(Work::Store, out),
            Stage::Removing(_) => self.issue(Work::Remove, out),
            Stage::Shared | Stage::Sealed | Stage::Over(_) => self.trouble = None,
        }
    }

    fn up(&mut self, incarnation: u64, held: bool, now: Timestamp, out: &mut Vec<Effect>) {
        let same = self.incarnation == Some(incarnation);
        self.incarnation = Some(incarnation);
        match (self.stage, self.running) {
            (Stage::Storing | Stage::Shared, _) if !same || !held && self.running.is_none() => {
                self.running = None;
                self.lost(now, out);
            }
            // Cancelled; a new process does not know it.
            (Stage::Removing(_), Some(running)) if running.work != Work::Remove => {
                if same {
                    out.push(Effect::Abort(running.id));
                } else {
                    self.issue(Work::Remove, out);
                }
            }
            // The agent answers a command that it knows with the same outcome.
            (_, Some(running)) => out.push(Effect::Send(running)),
            (_, None) => {
                if let Some(trouble) = &mut self.trouble {
                    trouble.again = now;
                }
            }
        }
    }

    fn ended(
        &mut self,
        id: CommandId,
        outcome: Result<Outcome, Fault>,
        budget: Budget,
        now: Timestamp,
        out: &mut Vec<Effect>,
    ) {
        out.push(Effect::Forget(id));
        let Some(work) = self.running.filter(|r| r.id == id).map(|r| r.work) else {
            return;
        };
        self.running = None;
        match (self.stage, work, outcome) {
            // It was cancelled, or ended just before.
            (Stage::Removing(_), Work::Open | Work::Store, _) => self.issue(Work::Remove, out),
            (Stage::Removing(why), Work::Remove, Ok(_)) => self.removed(why, out),
            (Stage::Removing(_), Work::Remove, Err(fault)) => self.again(fault, now, out),
            (Stage::Opening, Work::Open, Ok(Outcome::SourceOpened { lsn, tables, parts })) => {
                self.point = Some(Point { lsn, tables, parts });
                self.settled();
                out.push(Effect::Opened);
                if self.spec.store.is_some() {
                    self.stage = Stage::Storing;
                    self.issue(Work::Store, out);
                } else {
                    self.stage = Stage::Shared;
                }
            }
            (Stage::Storing, Work::Store, Ok(Outcome::Sealed(sealed))) => {
                self.settled();
                self.sealed = Some(sealed);
                self.stage = Stage::Sealed;
                self.ended_at = Some(now);
                out.push(Effect::Sealed(sealed));
            }
            (_, _, Err(fault)) => self.failed(fault, budget, now, out),
            (_, _, Ok(_)) => {
                self.give_up(Fault::unexpected_answer(&self.spec.source), now, out);
            }
        }
    }

    fn failed(&mut self, fault: Fault, budget: Budget, now: Timestamp, out: &mut Vec<Effect>) {
        let since = self.trouble.map_or(now, |trouble| trouble.since);
        let over = fault.retry == Retry::Never || after(since, budget.0) <= now;
        if over && self.stage == Stage::Storing && self.owner == Owner::Jobs {
            // Its targets read it while it lives.
            self.settled();
            self.stage = Stage::Shared;
            out.push(Effect::NotStored(fault));
            return;
        }
        if fault.retry == Retry::Never || after(since, budget.0) <= now {
            return self.give_up(fault, now, out);
        }
        self.again(fault, now, out);
    }

    fn again(&mut self, fault: Fault, now: Timestamp, out: &mut Vec<Effect>) {
        let (since, tries) = self.trouble.map_or((now, 0), |t| (t.since, t.tries));
        let tries = tries.saturating_add(1);
        let again = after(now, pause(tries, self.id.0));
        self.trouble = Some(Trouble {
            since,
            tries,
            again,
        });
        // Why it is lost stays known while its removal fails.
        if !matches!(self.stage, Stage::Removing(_)) || self.fault.is_none() {
            self.fault = Some(fault.clone());
        }
        out.push(Effect::TriesAgain(fault));
    }

    /// What was in its way is gone.
    fn settled(&mut self) {
        self.trouble = None;
        self.fault = None;
    }

    fn give_up(&mut self, fault: Fault, now: Timestamp, out: &mut Vec<Effect>) {
        self.fault = Some(fault.clone());
        self.ended_at = Some(now);
        out.push(Effect::Lost(fault));
        self.remove(Why::Failed, out);
    }

    fn lost(&mut self, now: Timestamp, out: &mut Vec<Effect>) {
        if !matches!(self.stage, Stage::Storing | Stage::Shared) {
            return;
        }
        let fault = Fault::new(
            FaultKind::Failed,
            "the source lost the snapshot before everything was read: its agent or its PostgreSQL was \
             restarted, or the session that held it was ended",
        )
        .on(&self.spec.source);
        if self.owner == Owner::Jobs {
            return self.give_up(fault.retry(Retry::Backoff), now, out);
        }
        let hint = "see the source's log, then run steep-repl snapshot generate again";
        let fault = fault.hint(hint);
        if self.restarts >= RESTARTS_MAX {
            return self.give_up(fault, now, out);
        }
        self.restarts += 1;
        out.push(Effect::BeginsAgain(fault));
        self.remove(Why::Again, out);
    }

    fn slot_gone(&mut self, why: String, now: Timestamp, out: &mut Vec<Effect>) {
        let text = format!(
            "its slot {} cannot be used any more: {why}",
            self.replication().slot
        );
        let fault = Fault::new(FaultKind::Failed, text)
            .on(&self.spec.source)
            .hint(match self.stage {
                Stage::Sealed => {
                    "generate another snapshot: changes since this one are lost. What it has can still be loaded \
                     without replication: steep-repl snapshot apply --no-subscribe"
                }
                _ => "generate another snapshot: changes since this one are lost",
            });
        match self.stage {
            Stage::Sealed if self.fault.is_none() => {
                self.fault = Some(fault.clone());
                out.push(Effect::Lost(fault));
            }
            Stage::Opening | Stage::Storing => self.give_up(fault, now, out),
            Stage::Shared | Stage::Sealed | Stage::Removing(_) | Stage::Over(_) => {}
        }
    }

    fn remove(&mut self, why: Why, out: &mut Vec<Effect>) {
        self.stage = Stage::Removing(why);
        self.trouble = None;
        match self.running {
            Some(running) => out.push(Effect::Abort(running.id)),
            None => self.issue(Work::Remove, out),
        }
    }

    fn removed(&mut self, why: Why, out: &mut Vec<Effect>) {
        self.trouble = None;
        if why == Why::Again {
            self.fault = None;
            self.point = None;
            self.stage = Stage::Opening;
            return self.issue(Work::Open, out);
        }
        self.stage = Stage::Over(why);
        out.push(Effect::Over(why));
    }
}

#[cfg(test)]
mod tests;
