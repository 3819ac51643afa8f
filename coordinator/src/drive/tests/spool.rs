//! Claims about snapshots that are read into a spool while their targets load them.

use steep_protocol::message::agent::{Command, Export, SourceCommand, WorkProgress, WorkUnit};
use steep_protocol::message::api::{ApiReply, InitRequest, Order, Query};
use steep_protocol::message::job::{JobSpec, Method};
use steep_protocol::message::snapshot::{ApplySpec, SnapshotState, SnapshotView};
use steep_protocol::{ByteCount, Fault, FaultKind, JobId, NodeState, Retry};

use super::shared::{copies, opened};
use super::world::{World, replies};
use super::*;
use crate::testing::{node, spec};

fn two_phase(target: &str) -> JobSpec {
    JobSpec {
        method: Method::TwoPhase,
        ..spec("a", target)
    }
}

fn is_store(command: &Command) -> bool {
    matches!(command, Command::Source(SourceCommand::Store(_)))
}

fn fail_store(world: &mut World, fault: Fault) {
    world.until("a", is_store);
    let next = |world: &mut World| world.agent("a").at_work.values().next().cloned();
    while next(world).is_some_and(|(_, command)| !is_store(&command)) {
        world.end_one("a", None);
    }
    world.end_one("a", Some(fault));
}

fn run_for(world: &mut World, seconds: u32) {
    for _ in 0..seconds {
        world.run_on();
        world.skip(1);
    }
}

#[test]
fn two_phases_overlap_and_leave_no_spool() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b", "c"]);
    world.init(vec![two_phase("b"), two_phase("c")]).unwrap();
    while copies(&mut world, "b").is_empty() || copies(&mut world, "c").is_empty() {
        for name in ["a", "b", "c"] {
            let next = world.agent(name).at_work.values().next();
            let waits = next.is_some_and(|(_, c)| is_store(c) || is_copy(c));
            if !waits {
                world.end_one(name, None);
            }
        }
    }
    let exports = opened(&mut world, "a");
    let [
        Export::SlotAndSnapshot,
        Export::Shared { .. },
        Export::Shared { .. },
    ] = exports.as_slice()
    else {
        panic!("{exports:?}")
    };
    run_for(&mut world, 3);
    for name in ["b", "c"] {
        assert_eq!(world.state(name), NodeState::Synchronized);
    }
    let history = world.agent("a").history.iter();
    let removed = history.filter(|(_, command)| {
        matches!(
            command,
            Command::Source(SourceCommand::DeleteSnapshot { location: Some(_) })
        )
    });
    assert_eq!(removed.count(), 1);
    assert!(world.driver.snapshots.is_empty());
}

#[test]
fn a_source_that_is_lost_in_the_first_phase_lets_its_targets_start_over_together() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b", "c"]);
    world.init(vec![two_phase("b"), two_phase("c")]).unwrap();
    world.until("a", is_store);
    world.kill("a");
    world.join("a");
    run_for(&mut world, 5);
    for name in ["b", "c"] {
        assert_eq!(world.state(name), NodeState::Synchronized);
    }
    let exports = opened(&mut world, "a");
    let made = exports.iter().filter(|e| **e == Export::SlotAndSnapshot);
    assert_eq!(made.count(), 2, "{exports:?}");
    assert!(world.driver.snapshots.is_empty());
}

#[test]
fn a_spool_that_is_full_keeps_no_target_waiting() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b"]);
    world.init(vec![two_phase("b")]).unwrap();
    let full = Fault::new(FaultKind::Failed, "no space is left");
    fail_store(&mut world, full.clone().retry(Retry::Backoff));
    world.skip(5);
    fail_store(&mut world, full);
    run_for(&mut world, 3);
    let view = world.node("b");
    assert_eq!(view.state, NodeState::Synchronized, "{view:?}");
    let log = world.events("a");
    let told = log.iter().filter(|e| e.event == "snapshot.not_spooled");
    assert_eq!(told.count(), 1, "{log:?}");
    assert!(world.driver.snapshots.is_empty());
}

#[test]
fn a_target_that_is_cancelled_while_it_waits_for_the_spool_is_free_at_once() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b"]);
    world.init(vec![two_phase("b")]).unwrap();
    world.until("a", is_store);
    world.cancel("b");
    while world.end_one("b", None).is_some() || world.end_one("a", None).is_some() {}
    assert_eq!(world.state("b"), NodeState::Uninitialized);
    world.skip(1);
    world.run_on();
    world.skip(1);
    assert!(world.driver.snapshots.is_empty());
}

#[test]
fn a_restart_of_the_source_in_the_second_phase_costs_nothing() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b"]);
    world.init(vec![two_phase("b")]).unwrap();
    world.until("b", is_copy);
    while world.end_one("a", None).is_some() {}
    world.kill("a");
    world.join("a");
    world.run_on();
    assert_eq!(world.state("b"), NodeState::Synchronized);
    assert_eq!(copies(&mut world, "b").len(), 1);
    let exports = opened(&mut world, "a");
    assert!(
        matches!(exports.last(), Some(Export::Stored(place)) if place.location.starts_with("/var/spool/"))
    );
}

fn listed(world: &mut World) -> Vec<SnapshotView> {
    let query = Query::Snapshots {
        snapshot: None,
        source: None,
    };
    match replies(world.ask(query)).remove(0) {
        ApiReply::Snapshots(views) => views,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_source_with_a_large_table_is_spooled_and_one_without_is_not() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b", "c"]);
    let border = spec("a", "b").large_table_threshold;
    world.facts.spool_room = Some(border);
    world.facts.table_bytes = border;
    world.facts.largest_table = ByteCount(border.0 - 1);
    world.init(vec![spec("a", "b")]).unwrap();
    world.run_on();
    assert_eq!(opened(&mut world, "a"), [Export::SlotAndSnapshot]);
    world.facts.largest_table = border;
    world.init(vec![spec("a", "c")]).unwrap();
    world.until("a", is_store);
    run_for(&mut world, 3);
    assert_eq!(world.state("c"), NodeState::Synchronized);
    let exports = opened(&mut world, "a");
    assert!(
        matches!(exports[2], Export::Shared { .. } | Export::Stored(_)),
        "{exports:?}"
    );
    assert!(world.driver.snapshots.is_empty());
}

#[test]
fn a_large_table_that_the_spool_has_no_room_for_is_read_live_and_that_is_said() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b"]);
    world.facts.largest_table = spec("a", "b").large_table_threshold;
    world.facts.table_bytes = world.facts.largest_table;
    world.facts.spool_room = Some(ByteCount(1));
    world.init(vec![spec("a", "b")]).unwrap();
    world.until("b", is_copy);
    let note = world.progress("b").0.detail.spool_note.unwrap();
    assert!(note.contains("no room"), "{note}");
    world.run_on();
    assert_eq!(opened(&mut world, "a"), [Export::SlotAndSnapshot]);
}

#[test]
fn a_damaged_spool_is_read_anew_for_all_who_load_from_it() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b", "c"]);
    world.init(vec![two_phase("b"), two_phase("c")]).unwrap();
    world.until("b", is_copy);
    while world.end_one("a", None).is_some() {}
    let first = listed(&mut world)[0].snapshot_id;
    let damaged = Fault::new(FaultKind::StoreDamaged, "part-3 is missing");
    let on_a = damaged.on(&node("a"));
    world.end_one("b", Some(on_a));
    let sealed =
        |view: &SnapshotView| view.snapshot_id == first && view.state == SnapshotState::Sealed;
    assert!(!listed(&mut world).iter().any(sealed));
    run_for(&mut world, 10);
    for name in ["b", "c"] {
        let view = world.node(name);
        assert_eq!(view.state, NodeState::Synchronized, "{view:?}");
    }
    let exports = opened(&mut world, "a");
    let made = exports.iter().filter(|e| **e == Export::SlotAndSnapshot);
    assert_eq!(made.count(), 2, "{exports:?}");
    assert!(world.driver.snapshots.is_empty());
}

#[test]
fn a_spool_that_is_damaged_every_time_fails_the_job_at_last() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b"]);
    world.init(vec![two_phase("b")]).unwrap();
    for _ in 0..6 {
        world.until("b", is_copy);
        while world.end_one("a", None).is_some() {}
        let damaged = Fault::new(FaultKind::StoreDamaged, "part-3 is missing");
        world.end_one("b", Some(damaged.on(&node("a"))));
    }
    run_for(&mut world, 3);
    let view = world.node("b");
    assert_eq!(view.state, NodeState::Failed);
    let why = view.error_message.unwrap();
    assert!(why.contains("5 times"), "{why}");
}

#[test]
fn the_percentage_of_a_spool_never_goes_back() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b"]);
    world.init(vec![two_phase("b")]).unwrap();
    let full = Fault::new(FaultKind::Failed, "no space is left");
    world.until("a", is_store);
    let stored = listed(&mut world)[0].snapshot_id;
    for done in [60, 10] {
        let work = WorkProgress {
            done,
            total: 100,
            unit: WorkUnit::Bytes,
            current: None,
            workers: 1,
        };
        let (from, id) = (node("a"), JobId(stored.0));
        world.driver.on_snapshot_progress(&from, id, Some(work));
    }
    assert_eq!(world.progress("b").0.detail.spool_percent, Some(60.0));
    fail_store(&mut world, full.retry(Retry::Backoff));
    let note = world.progress("b").0.detail.spool_note.unwrap();
    assert!(note.contains("no space is left"), "{note}");
}

#[test]
fn a_node_made_from_a_snapshot_waits_for_agents_that_a_restarted_coordinator_has_not_met() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b", "c"]);
    world.init(vec![two_phase("b")]).unwrap();
    world.until("b", is_copy);
    let snapshot = listed(&mut world)[0].snapshot_id;
    let mut world = world.restart(directory.path());
    let apply = || ApplySpec {
        jobs: vec![spec("a", "c")],
        snapshot,
        carried: None,
        verify: true,
    };
    let order = Order::Init(InitRequest::Apply(Box::new(apply())));
    let mut answer = world.ask_later(order);
    assert!(answer.try_recv().is_err(), "it waits");
    for name in ["a", "b", "c"] {
        world.join(name);
    }
    world.skip(1);
    assert!(answer.try_recv().unwrap().is_ok());
}
