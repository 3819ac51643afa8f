//! Tests of the machine.

use proptest::prelude::*;
use steep_protocol::message::job::{TableFilter, YieldToDdl};
use steep_protocol::message::snapshot::{SnapshotSpec, SnapshotState, StoreSpec};
use steep_protocol::stored::StoredCodec;
use steep_protocol::{ByteCount, Lsn, NodeId, SnapshotId, Sum};

use super::*;

const BUDGET: Budget = Budget(Duration::from_secs(60));

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn snapshot() -> Snapshot {
    let spec = SnapshotSpec {
        source: NodeId::parse("node_a").unwrap(),
        store: Some(StoreSpec {
            location: "/backup/a".to_owned(),
            codec: StoredCodec::Zstd(3),
            max_rate: None,
            encrypt: steep_protocol::encryption::Encrypt::No,
        }),
        filter: TableFilter::default(),
        parallel: 4,
        large_table_threshold: ByteCount(1),
        yield_to_ddl: YieldToDdl::default(),
        expires_seconds: 60,
        keep: None,
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
        manifest: Sum([1; 32]),
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

#[test]
fn a_shared_one_is_held_until_nobody_needs_it_and_not_begun_again() {
    let mut shared = snapshot();
    shared.owner = Owner::Jobs;
    shared.spec.store = None;
    shared.step(Event::Begin, BUDGET, at(0));
    end(&mut shared, Ok(opened()), 1);
    assert_eq!((shared.state(), work(&shared)), (SnapshotState::Live, None));
    let mut lost = shared.clone();
    shared.step(Event::Expired, BUDGET, at(2));
    assert_eq!(shared.stage, Stage::Shared);
    shared.step(Event::Unneeded, BUDGET, at(3));
    let effects = end(&mut shared, Ok(Outcome::Done), 4);
    assert!(effects.contains(&Effect::Over(Why::Unneeded)));

    let effects = lost.step(Event::Lost, BUDGET, at(2));
    assert!(matches!(&effects[0], Effect::Lost(fault) if fault.retry == Retry::Backoff));
    end(&mut lost, Ok(Outcome::Done), 3);
    assert_eq!(lost.state(), SnapshotState::Lost);
    assert!(lost.is_over());
}

#[test]
fn one_that_cannot_be_stored_is_held_for_the_targets_that_share_it() {
    let mut shared = snapshot();
    shared.owner = Owner::Jobs;
    shared.step(Event::Begin, BUDGET, at(0));
    end(&mut shared, Ok(opened()), 1);
    assert_eq!((shared.stage, shared.is_ready()), (Stage::Storing, true));
    end(&mut shared, Err(fault(Retry::Backoff)), 2);
    assert_eq!((shared.stage, shared.is_ready()), (Stage::Storing, true));
    shared.step(Event::Tick, BUDGET, at(100));
    assert_eq!(work(&shared), Some(Work::Store));
    let effects = end(&mut shared, Err(fault(Retry::Never)), 101);
    assert!(
        effects.iter().any(|e| matches!(e, Effect::NotStored(_))),
        "{effects:?}"
    );
    assert_eq!((shared.stage, shared.is_ready()), (Stage::Shared, true));
    shared.step(Event::Unneeded, BUDGET, at(102));
    assert_eq!(work(&shared), Some(Work::Remove));
}

#[test]
fn a_damaged_spool_is_lost_and_removed_and_an_operators_files_stay() {
    for owner in [Owner::Jobs, Owner::Operator] {
        let mut snapshot = storing();
        snapshot.owner = owner;
        end(&mut snapshot, Ok(sealed()), 2);
        let damaged = Event::Damaged(fault(Retry::Never));
        let effects = snapshot.step(damaged, BUDGET, at(3));
        let told = effects.iter().any(|e| matches!(e, Effect::Lost(_)));
        let removes = work(&snapshot) == Some(Work::Remove);
        let lost = snapshot.state() == SnapshotState::Lost;
        assert_eq!([told, removes, lost], [owner == Owner::Jobs; 3]);
    }
}

fn any_event() -> impl Strategy<Value = u8> {
    0u8..11
}

proptest! {
    /// Whatever happens, once the agent answers and an operator deletes it, nothing is left.
    #[test]
    fn no_history_leaves_it_stuck(
        history in proptest::collection::vec(any_event(), 0..40),
        shared: bool,
        stored: bool,
    ) {
        let mut snapshot = snapshot();
        if shared {
            snapshot.owner = Owner::Jobs;
        }
        if !stored {
            snapshot.spec.store = None;
        }
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
                9 => Event::Unneeded,
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
