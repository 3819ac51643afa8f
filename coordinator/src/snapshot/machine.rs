//! The next command of a stored snapshot. Pure.
//!
//! Opening → Storing → Sealed; whatever ends it leads through Removing, so that no slot is left (G5). Only a
//! process of the agent that has not restarted holds a snapshot open: another one means that it is lost.

use std::time::Duration;

use jiff::Timestamp;
use steep_protocol::message::agent::Outcome;
use steep_protocol::message::snapshot::SealedSnapshot;
use steep_protocol::{CommandId, Fault, FaultKind, Retry};

use super::{Point, Running, Snapshot, Stage, Trouble, Why, Work};
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
    /// An operator deletes it.
    Delete,
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
            Event::Ended { id, outcome } => self.ended(id, *outcome, budget, now, out),
            Event::Lost => self.lost(now, out),
            Event::SlotGone { why } => self.slot_gone(why, now, out),
            Event::Expired => match self.stage {
                Stage::Sealed => {
                    out.push(Effect::Expired);
                    self.remove(Why::Expired, out);
                }
                Stage::Opening | Stage::Storing => {
                    self.slot_gone("it expired".to_owned(), now, out)
                }
                Stage::Removing(_) | Stage::Over(_) => {}
            },
            Event::Delete => match self.stage {
                Stage::Over(_) => out.push(Effect::Over(Why::Deleted)),
                Stage::Removing(_) => self.stage = Stage::Removing(Why::Deleted),
                Stage::Opening | Stage::Storing | Stage::Sealed => self.remove(Why::Deleted, out),
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
            Stage::Sealed | Stage::Over(_) => self.trouble = None,
        }
    }

    fn up(&mut self, incarnation: u64, held: bool, now: Timestamp, out: &mut Vec<Effect>) {
        let same = self.incarnation == Some(incarnation);
        self.incarnation = Some(incarnation);
        match (self.stage, self.running) {
            (Stage::Storing, _) if !same || !held && self.running.is_none() => {
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
                self.stage = Stage::Storing;
                out.push(Effect::Opened);
                self.issue(Work::Store, out);
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
                let text = "the agent's answer does not match the command";
                let fault = Fault::new(FaultKind::Failed, text)
                    .on(&self.spec.source)
                    .hint("run the same version on the coordinator and on all agents");
                self.give_up(fault, now, out);
            }
        }
    }

    fn failed(&mut self, fault: Fault, budget: Budget, now: Timestamp, out: &mut Vec<Effect>) {
        let since = self.trouble.map_or(now, |trouble| trouble.since);
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
        self.fault = Some(fault.clone());
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
        if self.stage != Stage::Storing {
            return;
        }
        let fault = Fault::new(
            FaultKind::Failed,
            "the source lost the snapshot before everything was read: its agent or its PostgreSQL was \
             restarted, or the session that held it was ended",
        )
        .on(&self.spec.source)
        .hint("see the source's log, then run steep-repl snapshot generate again");
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
            .hint("generate another snapshot: changes since this one are lost");
        match self.stage {
            Stage::Sealed if self.fault.is_none() => {
                self.fault = Some(fault.clone());
                out.push(Effect::Lost(fault));
            }
            Stage::Opening | Stage::Storing => self.give_up(fault, now, out),
            Stage::Sealed | Stage::Removing(_) | Stage::Over(_) => {}
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
mod tests {
    use proptest::prelude::*;
    use steep_protocol::message::job::{TableFilter, YieldToDdl};
    use steep_protocol::message::snapshot::{SnapshotSpec, SnapshotState};
    use steep_protocol::stored::StoredCodec;
    use steep_protocol::{ByteCount, Lsn, NodeId, SnapshotId};

    use super::*;

    const BUDGET: Budget = Budget(Duration::from_secs(60));

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn snapshot() -> Snapshot {
        let spec = SnapshotSpec {
            source: NodeId::parse("node_a").unwrap(),
            location: "/backup/a".to_owned(),
            filter: TableFilter::default(),
            parallel: 4,
            codec: StoredCodec::Zstd(3),
            max_rate: None,
            large_table_threshold: ByteCount(1),
            yield_to_ddl: YieldToDdl::default(),
            expires_seconds: 60,
        };
        let mut snapshot = Snapshot::new(SnapshotId(7), spec, "operator", 100, at(0));
        snapshot.incarnation = Some(1);
        snapshot
    }

    fn opened() -> Outcome {
        Outcome::SourceOpened {
            lsn: Lsn(5),
            tables: 1,
            parts: 2,
        }
    }

    fn sealed() -> Outcome {
        Outcome::Sealed(SealedSnapshot {
            tables: 1,
            parts: 2,
            rows: 3,
            bytes: 4,
            stored_bytes: 2,
            expires_at: at(1000),
        })
    }

    fn end(snapshot: &mut Snapshot, outcome: Result<Outcome, Fault>, second: i64) -> Vec<Effect> {
        let id = snapshot.running.expect("a command is running").id;
        let outcome = Box::new(outcome);
        snapshot.step(Event::Ended { id, outcome }, BUDGET, at(second))
    }

    fn storing() -> Snapshot {
        let mut snapshot = snapshot();
        snapshot.step(Event::Begin, BUDGET, at(0));
        end(&mut snapshot, Ok(opened()), 1);
        snapshot
    }

    fn fault(retry: Retry) -> Fault {
        Fault::new(FaultKind::Failed, "no").retry(retry)
    }

    fn work(snapshot: &Snapshot) -> Option<Work> {
        snapshot.running.map(|r| r.work)
    }

    #[test]
    fn it_is_opened_stored_sealed_and_expires() {
        let mut snapshot = storing();
        assert_eq!(snapshot.state(), SnapshotState::Live);
        end(&mut snapshot, Ok(sealed()), 2);
        assert_eq!(snapshot.state(), SnapshotState::Sealed);
        assert_eq!(snapshot.running, None);
        let effects = snapshot.step(Event::Expired, BUDGET, at(1001));
        assert_eq!(effects[0], Effect::Expired);
        let effects = end(&mut snapshot, Ok(Outcome::Done), 1002);
        assert!(effects.contains(&Effect::Over(Why::Expired)));
        assert_eq!(snapshot.state(), SnapshotState::Expired);
    }

    #[test]
    fn a_passing_failure_is_tried_again_until_the_budget_is_spent() {
        let mut snapshot = storing();
        end(&mut snapshot, Err(fault(Retry::Backoff)), 2);
        assert_eq!(snapshot.state(), SnapshotState::Live);
        assert_eq!(work(&snapshot), None);
        snapshot.step(Event::Tick, BUDGET, at(4));
        assert_eq!(work(&snapshot), Some(Work::Store));
        end(&mut snapshot, Err(fault(Retry::Backoff)), 63);
        assert_eq!(snapshot.stage, Stage::Removing(Why::Failed));
        end(&mut snapshot, Ok(Outcome::Done), 64);
        assert_eq!(snapshot.state(), SnapshotState::Lost);
        assert!(snapshot.fault.is_some());
    }

    #[test]
    fn a_restarted_agent_has_lost_it_and_it_is_begun_again() {
        let mut snapshot = storing();
        let up = |incarnation, held| Event::Up { incarnation, held };
        // The session was lost only.
        let effects = snapshot.step(up(1, true), BUDGET, at(2));
        assert_eq!(effects, [Effect::Send(snapshot.running.unwrap())]);
        let effects = snapshot.step(up(2, false), BUDGET, at(3));
        assert!(matches!(effects[0], Effect::BeginsAgain(_)));
        assert_eq!(work(&snapshot), Some(Work::Remove));
        end(&mut snapshot, Ok(Outcome::Done), 4);
        assert_eq!(work(&snapshot), Some(Work::Open));
        assert_eq!(snapshot.state(), SnapshotState::Opening);
        assert_eq!(snapshot.point, None);
    }

    #[test]
    fn a_source_that_always_loses_it_ends_it() {
        let mut snapshot = storing();
        for _ in 0..RESTARTS_MAX {
            snapshot.step(Event::Lost, BUDGET, at(5));
            end(&mut snapshot, Err(fault(Retry::Backoff)), 5);
            end(&mut snapshot, Ok(Outcome::Done), 6);
            end(&mut snapshot, Ok(opened()), 7);
            assert_eq!(snapshot.stage, Stage::Storing);
        }
        snapshot.step(Event::Lost, BUDGET, at(8));
        assert_eq!(snapshot.stage, Stage::Removing(Why::Failed));
    }

    #[test]
    fn deleting_cancels_what_runs_and_removes_until_that_succeeds() {
        let mut snapshot = storing();
        let running = snapshot.running.unwrap().id;
        let effects = snapshot.step(Event::Delete, BUDGET, at(2));
        assert_eq!(effects, [Effect::Abort(running)]);
        end(&mut snapshot, Err(fault(Retry::Never)), 3);
        assert_eq!(work(&snapshot), Some(Work::Remove));
        for second in [10, 1_000, 100_000] {
            end(&mut snapshot, Err(fault(Retry::Never)), second);
            snapshot.step(Event::Tick, BUDGET, at(second + 31));
            assert_eq!(work(&snapshot), Some(Work::Remove));
        }
        let effects = end(&mut snapshot, Ok(Outcome::Done), 200_000);
        assert!(effects.contains(&Effect::Over(Why::Deleted)));
    }

    #[test]
    fn without_its_slot_a_sealed_one_is_lost_and_can_be_deleted() {
        let mut snapshot = storing();
        end(&mut snapshot, Ok(sealed()), 2);
        let gone = || Event::SlotGone {
            why: "it was dropped".to_owned(),
        };
        assert_eq!(snapshot.step(gone(), BUDGET, at(3)).len(), 1);
        assert_eq!(snapshot.step(gone(), BUDGET, at(4)), []);
        assert_eq!(snapshot.state(), SnapshotState::Lost);
        snapshot.step(Event::Delete, BUDGET, at(5));
        assert_eq!(work(&snapshot), Some(Work::Remove));
    }

    fn any_event() -> impl Strategy<Value = u8> {
        0u8..10
    }

    proptest! {
        /// Whatever happens, once the agent answers and an operator deletes it, nothing is left.
        #[test]
        fn no_history_leaves_it_stuck(history in proptest::collection::vec(any_event(), 0..40)) {
            let mut snapshot = snapshot();
            snapshot.step(Event::Begin, BUDGET, at(0));
            let mut now = 0;
            for event in history {
                now += 7;
                let id = snapshot.running.map_or(CommandId(1), |r| r.id);
                let ended = |outcome| Event::Ended { id, outcome: Box::new(outcome) };
                let event = match event {
                    0 => Event::Up { incarnation: 1, held: true },
                    1 => Event::Up { incarnation: now as u64, held: false },
                    2 => ended(Ok(opened())),
                    3 => ended(Ok(sealed())),
                    4 => ended(Err(fault(Retry::Backoff))),
                    5 => ended(Err(fault(Retry::Never))),
                    6 => Event::Lost,
                    7 => Event::SlotGone { why: String::new() },
                    8 => Event::Expired,
                    _ => Event::Tick,
                };
                snapshot.step(event, BUDGET, at(now));
            }
            snapshot.step(Event::Delete, BUDGET, at(now));
            for _ in 0..6 {
                now += 60;
                snapshot.step(Event::Up { incarnation: 1 << 40, held: false }, BUDGET, at(now));
                snapshot.step(Event::Tick, BUDGET, at(now));
                if snapshot.running.is_some() {
                    end(&mut snapshot, Ok(Outcome::Done), now);
                }
            }
            prop_assert!(snapshot.is_over(), "{:?}", snapshot.stage);
        }
    }
}
