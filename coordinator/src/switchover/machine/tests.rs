//! Claims about the order of a switchover, whatever fails, and about who takes writes in the end.

use std::collections::BTreeMap;

use jiff::SignedDuration;
use steep_protocol::message::agent::Outcome;
use steep_protocol::message::handover::{PreparedSlot, PreparedState};
use steep_protocol::message::switchover::{Lacking, WritesStopped};
use steep_protocol::message::verify::{TableReport, VerifyReport};
use steep_protocol::{ByteCount, JobId, Lsn, TableName};

use super::*;
use crate::job::Job;
use crate::testing::{node, spec as job_spec};

mod losses;
mod rows;

const MAX_STOP: u32 = 60;

fn spec(way_back: WayBack, rows: RowsCheck) -> SwitchoverSpec {
    SwitchoverSpec {
        from: node("a"),
        to: node("b"),
        way_back,
        rows,
        terminate_after_seconds: 30,
        max_stop_seconds: MAX_STOP,
        max_lag: ByteCount(1_000),
        lacking: Lacking::Refused,
    }
}

fn begun(way_back: WayBack, rows: RowsCheck) -> (Switchover, Vec<Effect>) {
    let now = Timestamp::UNIX_EPOCH;
    let job = Job::new(JobId(7), job_spec("a", "b"), "dba", 1, now);
    let mut one = Switchover::new(JobId(1), spec(way_back, rows), "dba", &job, 100, now);
    one.small = vec![TableName::new("app", "t").unwrap()];
    let effects = one.step(Event::Begin, now);
    (one, effects)
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::UNIX_EPOCH + SignedDuration::from_secs(seconds)
}

fn fault() -> Fault {
    Fault::new(FaultKind::Failed, "no such luck")
}

/// What a step's command comes to where it succeeds.
fn success(step: Step) -> Outcome {
    match step {
        Step::PrepareWayBack => Outcome::SlotPrepared(Box::new(PreparedSlot {
            replication: begun(WayBack::Follow, RowsCheck::Skipped).0.way_back(),
            lsn: Lsn(1),
            created_at: at(0),
            expires_at: at(1),
            wal_held: ByteCount(0),
            wal_limit: None,
            state: PreparedState::Waiting,
        })),
        Step::AdmitRows
        | Step::AdmitSequences
        | Step::AdmitSmall
        | Step::ProveOpen
        | Step::AdmitLast
        | Step::DropWayBack => Outcome::Done,
        Step::CompareRows | Step::CompareSmall => Outcome::Compared(Box::default()),
        Step::CloseNew | Step::StopWrites => Outcome::WritesStopped(WritesStopped {
            reopen: "ALTER DATABASE".to_owned(),
            ..WritesStopped::default()
        }),
        Step::Drain => Outcome::FencePassed { lsn: Lsn(2) },
        Step::Sequences | Step::LastSequences => {
            Outcome::SequencesRaised(SequencesRaised::default())
        }
        Step::Decide => Outcome::WriteState(WriteState::Final),
        Step::Open | Step::ReopenOld | Step::ReopenNew => {
            Outcome::WriteState(WriteState::Open { position: Lsn(3) })
        }
        Step::Detach | Step::Follow | Step::Completed | Step::Undone => Outcome::Done,
    }
}

fn end(one: &mut Switchover, outcome: Result<Outcome, Fault>, now: Timestamp) -> Vec<Effect> {
    let id = one.running.unwrap();
    let outcome = Box::new(outcome);
    one.step(Event::Ended { id, outcome }, now)
}

/// Goes on until that step.
fn until(one: &mut Switchover, step: Step, now: Timestamp) {
    for _ in 0..30 {
        if one.step == step {
            return;
        }
        match one.step {
            Step::Detach => drop(one.step(Event::Detached, now)),
            Step::Follow => drop(one.step(Event::Followed(Ok(())), now)),
            other => drop(end(one, Ok(success(other)), now)),
        }
    }
    panic!("{step:?} is never reached");
}

fn entered(effects: &[Effect]) -> Vec<Step> {
    let step = |effect: &Effect| match effect {
        Effect::Entered(step) => Some(*step),
        _ => None,
    };
    effects.iter().filter_map(step).collect()
}

#[test]
fn writes_move_in_one_order_with_and_without_a_way_back_and_rows() {
    use Step::*;
    let tail = [
        CloseNew,
        StopWrites,
        Drain,
        AdmitSequences,
        Sequences,
        AdmitSmall,
        CompareSmall,
        ProveOpen,
        Decide,
        AdmitLast,
        LastSequences,
        Open,
        Detach,
    ];
    for (way_back, rows, head, end) in [
        (WayBack::None, RowsCheck::Skipped, vec![], vec![Completed]),
        (
            WayBack::None,
            RowsCheck::Compared,
            vec![AdmitRows, CompareRows],
            vec![Completed],
        ),
        (
            WayBack::Follow,
            RowsCheck::Skipped,
            vec![PrepareWayBack],
            vec![Follow, Completed],
        ),
        (
            WayBack::Follow,
            RowsCheck::Compared,
            vec![PrepareWayBack, AdmitRows, CompareRows],
            vec![Follow, Completed],
        ),
    ] {
        let (mut one, first) = begun(way_back, rows);
        let mut order = entered(&first);
        while one.step != Completed {
            let effects = match one.step {
                Detach => one.step(Event::Detached, at(2)),
                Follow => one.step(Event::Followed(Ok(())), at(2)),
                step => super::tests::end(&mut one, Ok(success(step)), at(2)),
            };
            order.extend(entered(&effects));
        }
        assert_eq!(order, [head, tail.to_vec(), end].concat());
        let seconds = one.stopped_seconds(at(9)).unwrap();
        assert!((0.0..=2.0).contains(&seconds), "{seconds}");
        assert_eq!(one.writable(), Some(&node("b")));
        assert_eq!(one.position, Some(Lsn(3)));
    }
}

#[test]
fn what_fails_before_the_decision_is_undone_and_after_it_tried_again() {
    for step in Step::ALL {
        let (mut one, _) = begun(WayBack::Follow, RowsCheck::Compared);
        if step > Step::Completed || Side::of(step).is_none() {
            continue;
        }
        until(&mut one, step, at(0));
        let effects = end(&mut one, Err(fault()), at(1));
        if matches!(step, Step::AdmitSmall | Step::CompareSmall) {
            assert_eq!(one.step, Step::ProveOpen);
            assert_eq!(one.tables_not_compared.names, ["app.t"]);
            until(&mut one, Step::Completed, at(2));
            continue;
        }
        if matches!(step, Step::AdmitLast | Step::LastSequences) {
            assert_eq!((one.step, one.warnings.len()), (Step::Open, 1));
            until(&mut one, Step::Completed, at(2));
            continue;
        }
        if step > Step::Decide {
            assert_eq!(one.step, step);
            assert!(
                matches!(effects[..], [Effect::TriesAgain(_)]),
                "{effects:?}"
            );
            assert_eq!(one.step(Event::Tick, at(1)), []);
            let again = one.step(Event::Tick, at(3));
            assert!(matches!(again[..], [Effect::Send(_)]), "{again:?}");
            continue;
        }
        let first = match step {
            Step::PrepareWayBack | Step::AdmitRows | Step::CompareRows => Step::DropWayBack,
            Step::CloseNew => Step::ReopenNew,
            _ => Step::ReopenOld,
        };
        assert_eq!(one.step, first, "{step:?}");
        until(&mut one, Step::Undone, at(2));
        assert_eq!(one.fault, Some(fault()));
        assert_eq!(one.writable(), Some(&node("a")));
    }
}

#[test]
fn an_undo_that_comes_after_the_decision_goes_on() {
    let (mut one, _) = begun(WayBack::None, RowsCheck::Skipped);
    until(&mut one, Step::Decide, at(0));
    let decide = one.running.unwrap();
    let effects = one.step(Event::Undo(fault()), at(1));
    assert!(effects.contains(&Effect::Abort(decide, Side::Old)));
    // The old node is asked only once nothing can decide any more.
    assert_eq!((one.step, one.running), (Step::ReopenOld, None));
    let cancelled = Err(Fault::new(FaultKind::Cancelled, "cancelled"));
    let outcome = Box::new(cancelled);
    let effects = one.step(
        Event::Ended {
            id: decide,
            outcome,
        },
        at(1),
    );
    assert!(matches!(effects[..], [Effect::Send(_)]), "{effects:?}");
    end(&mut one, Ok(Outcome::WriteState(WriteState::Final)), at(1));
    assert_eq!(one.step, Step::AdmitLast);
    until(&mut one, Step::Completed, at(2));
    assert_eq!(one.fault, None);
}

#[test]
fn the_time_of_a_stop_is_limited_and_a_lost_agent_is_sent_its_command_again() {
    let (mut one, _) = begun(WayBack::None, RowsCheck::Skipped);
    assert_eq!(one.step(Event::Tick, at(10_000)), []);
    until(&mut one, Step::Drain, at(0));
    let running = one.running.unwrap();
    assert_eq!(
        one.step(Event::Up(node("a")), at(1)),
        [Effect::Send(running)]
    );
    assert_eq!(one.step(Event::Up(node("b")), at(1)), []);
    assert_eq!(one.step(Event::Up(node("c")), at(1)), []);
    assert_eq!(one.step(Event::Tick, at(i64::from(MAX_STOP) - 1)), []);
    one.step(Event::Tick, at(i64::from(MAX_STOP)));
    assert_eq!(one.step, Step::ReopenOld);
    // The old node's agent comes back as another process: what was cancelled has to end first.
    assert_eq!(
        one.step(Event::Up(node("a")), at(70)),
        [Effect::Abort(running, Side::Old)]
    );
    assert_eq!(one.fault.as_ref().unwrap().kind, FaultKind::Timeout);
}

#[test]
fn writes_do_not_wait_long_for_the_last_look_at_sequences() {
    for (step, side) in [
        (Step::AdmitLast, Side::Old),
        (Step::LastSequences, Side::New),
    ] {
        let (mut one, _) = begun(WayBack::None, RowsCheck::Skipped);
        until(&mut one, step, at(10));
        let running = one.running.unwrap();
        assert_eq!(one.step(Event::Tick, at(14)), []);
        let effects = one.step(Event::Tick, at(15));
        assert!(
            effects.contains(&Effect::Abort(running, side)),
            "{effects:?}"
        );
        assert_eq!((one.step, one.warnings.len()), (Step::Open, 1));
        // The new node is told to open only once it is not at work on that any more.
        assert_eq!(one.running.is_some(), side == Side::Old);
    }
}

#[test]
fn rows_that_differ_and_sequences_that_are_not_set_end_it() {
    let (mut one, _) = begun(WayBack::None, RowsCheck::Compared);
    until(&mut one, Step::CompareRows, at(0));
    let report = VerifyReport {
        tables: vec![TableReport {
            missing: 1,
            ..TableReport::new(TableName::new("app", "t").unwrap())
        }],
        ..VerifyReport::default()
    };
    assert!(!report.is_equal());
    end(&mut one, Ok(Outcome::Compared(Box::new(report))), at(1));
    assert_eq!(one.step, Step::Undone);
    assert_eq!(one.fault.as_ref().unwrap().kind, FaultKind::SchemaMismatch);

    let (mut one, _) = begun(WayBack::None, RowsCheck::Skipped);
    until(&mut one, Step::Sequences, at(0));
    let raised = SequencesRaised {
        problems: vec!["may not read app.numbers".to_owned()],
        ..SequencesRaised::default()
    };
    end(&mut one, Ok(Outcome::SequencesRaised(raised)), at(1));
    assert_eq!(one.step, Step::ReopenOld);
    assert!(one.fault.as_ref().unwrap().message.contains("app.numbers"));

    // Others' sequences are accepted where the operator says so.
    for (lacking, next) in [
        (Lacking::Refused, Step::ReopenOld),
        (Lacking::Accepted, Step::AdmitSmall),
    ] {
        let (mut one, _) = begun(WayBack::None, RowsCheck::Skipped);
        one.spec.lacking = lacking;
        until(&mut one, Step::Sequences, at(0));
        let raised = SequencesRaised {
            left_alone: Some("app.theirs".to_owned()),
            ..SequencesRaised::default()
        };
        end(&mut one, Ok(Outcome::SequencesRaised(raised)), at(1));
        assert_eq!(one.step, next);
        let said = [one.fault.map(|fault| fault.message), one.warnings.pop()];
        assert!(
            said.iter()
                .flatten()
                .any(|text| text.contains("app.theirs")),
            "{said:?}"
        );
    }
}

#[test]
fn no_event_in_any_step_is_a_dead_end() {
    let outcomes = |step| {
        [
            Ok(success(step)),
            Ok(Outcome::Captured { tables: 1 }),
            Err(fault()),
        ]
    };
    for step in Step::ALL {
        for which in 0..12 {
            let (mut one, _) = begun(WayBack::Follow, RowsCheck::Compared);
            if step <= Step::Completed {
                until(&mut one, step, at(0));
            } else {
                until(&mut one, Step::Decide, at(0));
                end(&mut one, Err(fault()), at(0));
                until(&mut one, step, at(0));
            }
            let id = one.running.unwrap_or(CommandId(1));
            let event = match which {
                0..=2 => Event::Ended {
                    id,
                    outcome: Box::new(outcomes(step)[which].clone()),
                },
                3..=5 => Event::Ended {
                    id: CommandId(1),
                    outcome: Box::new(outcomes(step)[which - 3].clone()),
                },
                6 => Event::Up(node("a")),
                7 => Event::Up(node("b")),
                8 => Event::Undo(fault()),
                9 => Event::Detached,
                10 => Event::Followed(Err(fault())),
                _ => Event::Hindered(fault()),
            };
            let before = one.writable().cloned();
            one.step(event.clone(), at(1));
            // Nothing takes writes back from the new node.
            assert!(before != Some(node("b")) || one.writable() == Some(&node("b")));
            for _ in 0..20 {
                one.step(Event::Tick, at(2));
                if let Some(stale) = one.stale {
                    let outcome = Box::new(Err(fault()));
                    one.step(
                        Event::Ended {
                            id: stale.id,
                            outcome,
                        },
                        at(2),
                    );
                }
                match one.step {
                    Step::Completed | Step::Undone => break,
                    Step::Detach => drop(one.step(Event::Detached, at(2))),
                    Step::Follow => drop(one.step(Event::Followed(Ok(())), at(2))),
                    _ if one.running.is_none() => drop(one.step(Event::Tick, at(100))),
                    other => drop(end(&mut one, Ok(success(other)), at(2))),
                }
            }
            assert!(
                one.step.is_over(),
                "{step:?} after {event:?}: {:?}",
                one.step
            );
        }
    }
}

/// Two nodes as the agents treat them, in no more detail than who may write.
#[derive(Debug, Default)]
struct Model {
    /// What was issued and has not been carried out, by id.
    waiting: BTreeMap<CommandId, Step>,
    old: Old,
    new_closed: bool,
    new_taken: bool,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Old {
    #[default]
    Open,
    Closed,
    Final,
}

impl Model {
    /// As `agent/switchover` does it.
    fn perform(&mut self, step: Step) -> Result<Outcome, Fault> {
        match step {
            Step::CloseNew => self.new_closed = true,
            Step::StopWrites if self.old == Old::Open => self.old = Old::Closed,
            Step::Decide if self.old == Old::Open => return Err(fault()),
            Step::Decide => self.old = Old::Final,
            Step::Open => (self.new_closed, self.new_taken) = (false, true),
            Step::ReopenNew => self.new_closed = false,
            Step::ReopenOld if self.old == Old::Final => {
                return Ok(Outcome::WriteState(WriteState::Final));
            }
            Step::ReopenOld => self.old = Old::Open,
            _ => {}
        }
        Ok(success(step))
    }

    fn check(&self, one: &Switchover) {
        assert!(
            !self.new_taken || self.old == Old::Final,
            "both take writes"
        );
        match one.step {
            Step::Completed => assert!(self.new_taken, "nobody takes writes"),
            Step::Undone => assert!(self.old == Old::Open && !self.new_closed, "{self:?}"),
            _ => {}
        }
        match one.writable() {
            Some(node) if *node == one.spec.to => assert!(self.new_taken),
            Some(_) => assert_ne!(self.old, Old::Final),
            None => {}
        }
    }
}

/// Numbers from a seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}
