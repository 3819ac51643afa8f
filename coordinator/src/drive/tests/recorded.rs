//! Claims about stored snapshots that only their source's database records.

use steep_protocol::SnapshotId;
use steep_protocol::message::agent::AgentMessage;
use steep_protocol::message::api::Order;
use steep_protocol::message::handover::{PreparedSlot, PreparedState};
use steep_protocol::message::snapshot::{
    RecordedFate, RecordedSnapshot, SNAPSHOTS_MAX, SnapshotState, SnapshotView,
};

use super::stored::{events, generate, list, stored_in, template};
use super::world::World;
use super::*;
use crate::testing::node;

/// What the agent of a snapshot's source records of it.
fn record(world: &World, id: SnapshotId) -> RecordedSnapshot {
    let snapshot = &world.driver.snapshots[&id].snapshot;
    RecordedSnapshot {
        snapshot: id,
        order: snapshot.order(),
        lsn: snapshot.point.unwrap().lsn,
        sealed: snapshot.sealed.unwrap(),
        sealed_at: snapshot.ended_at.unwrap(),
        fate: RecordedFate::Kept,
    }
}

/// A world whose coordinator has lost its store, with the record of a snapshot of `a`, and how that was shown.
fn lost(directory: &tempfile::TempDir) -> (World, RecordedSnapshot, SnapshotView) {
    let first = super::directory();
    let mut world = World::open(first.path(), &["a", "b"]);
    let id = generate(&mut world, stored_in("/backup/a"));
    let (recorded, shown) = (record(&world, id), list(&mut world).remove(0));
    let mut world = world.restart(directory.path());
    world.join("a");
    world.join("b");
    assert_eq!(list(&mut world), []);
    (world, recorded, shown)
}

fn say(world: &mut World, name: &str, recorded: &RecordedSnapshot) {
    world.say(name, AgentMessage::Recorded(vec![recorded.clone()]));
}

fn delete(world: &mut World, id: SnapshotId, force: bool) {
    let order = Order::DeleteSnapshot {
        snapshot: id,
        force,
    };
    drop(world.ask_later(order));
}

fn deletions(world: &mut World) -> usize {
    let deletes = |(_, command): &&(_, Command)| {
        matches!(
            command,
            Command::Source(SourceCommand::DeleteSnapshot { location: Some(_) })
        )
    };
    world.agent("a").history.iter().filter(deletes).count()
}

#[test]
fn a_snapshot_that_the_store_has_lost_is_as_it_was_and_stays_so() {
    let directory = directory();
    let (mut world, recorded, shown) = lost(&directory);
    for _ in 0..2 {
        say(&mut world, "a", &recorded);
        assert_eq!(list(&mut world), std::slice::from_ref(&shown));
    }
    assert_eq!(events(&mut world, "snapshot.adopted"), 1);
    // It is stored.
    let mut world = world.restart(directory.path());
    world.join("a");
    say(&mut world, "a", &recorded);
    assert_eq!(list(&mut world), std::slice::from_ref(&shown));
    assert_eq!(events(&mut world, "snapshot.adopted"), 1);
    delete(&mut world, shown.snapshot_id, false);
    world.run_on();
    assert_eq!((list(&mut world), deletions(&mut world)), (Vec::new(), 1));
}

#[test]
fn a_deleted_snapshot_does_not_return_whatever_its_agent_still_reports() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a"]);
    let [first, second] = ["/backup/1", "/backup/2"].map(|place| {
        let id = generate(&mut world, stored_in(place));
        record(&world, id)
    });
    // Its removal is under way, and the report was read before it.
    delete(&mut world, first.snapshot, false);
    say(&mut world, "a", &first);
    world.run_on();
    say(&mut world, "a", &first);
    // Its agent is away during the removal, and nobody waits for it.
    delete(&mut world, second.snapshot, false);
    world.leave("a");
    delete(&mut world, second.snapshot, true);
    assert_eq!(list(&mut world), []);
    let mut world = world.restart(directory.path());
    world.join("a");
    for recorded in [&first, &second] {
        say(&mut world, "a", recorded);
    }
    assert_eq!(list(&mut world), []);
    assert_eq!(events(&mut world, "snapshot.adopted"), 0);
}

#[test]
fn a_snapshot_belongs_to_the_node_that_it_was_read_from_and_to_no_other() {
    let directory = directory();
    let (mut world, recorded, shown) = lost(&directory);
    let refused = |world: &mut World| {
        let events = world.events("b").into_iter();
        events
            .filter(|event| event.event == "snapshot.not_adopted")
            .count()
    };
    // A record of another node.
    say(&mut world, "b", &recorded);
    assert_eq!((list(&mut world), refused(&mut world)), (Vec::new(), 1));
    // Its own, with an id that another node has.
    say(&mut world, "a", &recorded);
    let mut same = recorded.clone();
    same.order.spec.source = node("b");
    for _ in 0..2 {
        say(&mut world, "b", &same);
    }
    assert_eq!(list(&mut world), [shown]);
    assert_eq!(refused(&mut world), 1, "it is told of once");
}

#[test]
fn what_was_to_go_when_the_store_was_lost_goes_with_its_files() {
    for fate in [RecordedFate::Expired, RecordedFate::Removed] {
        let directory = directory();
        let (mut world, mut recorded, _) = lost(&directory);
        recorded.fate = fate;
        say(&mut world, "a", &recorded);
        assert_eq!(events(&mut world, "snapshot.adopted"), 1, "{fate:?}");
        world.run_on();
        assert_eq!(deletions(&mut world), 1, "{fate:?}");
        let left = list(&mut world);
        let over = left.iter().all(|s| s.state == SnapshotState::Expired);
        assert!(over, "{left:?}");
        world.skip(1);
        say(&mut world, "a", &recorded);
        world.run_on();
        assert_eq!(deletions(&mut world), 1, "{fate:?}");
    }
}

#[test]
fn an_adopted_snapshot_without_its_slot_is_lost_and_one_with_much_wal_is_warned_of() {
    let told = |slot: fn(SnapshotId) -> PreparedSlot| {
        let directory = directory();
        let (mut world, recorded, _) = lost(&directory);
        let slots = vec![slot(recorded.snapshot)];
        world.say("a", AgentMessage::Prepared(slots));
        say(&mut world, "a", &recorded);
        list(&mut world).remove(0)
    };
    let shown = told(|id| PreparedSlot {
        state: PreparedState::Lost("somebody dropped it".to_owned()),
        ..template(id, 0, None)
    });
    assert_eq!(shown.state, SnapshotState::Lost);
    assert!(!shown.holders.is_empty(), "its files can be loaded");
    let shown = told(|id| template(id, 900_000_000, Some(1_000_000_000)));
    assert_eq!(shown.state, SnapshotState::Sealed);
    let warnings = shown.warnings.join("; ");
    assert!(warnings.contains("max_slot_wal_keep_size"), "{warnings}");
}

#[test]
fn an_agent_cannot_fill_the_memory_of_the_coordinator_with_records() {
    let directory = directory();
    let (mut world, recorded, _) = lost(&directory);
    let many = (0..=SNAPSHOTS_MAX as u64).map(|n| RecordedSnapshot {
        snapshot: SnapshotId(n),
        ..recorded.clone()
    });
    let many: Vec<_> = many.collect();
    world.say("a", AgentMessage::Recorded(many.clone()));
    assert_eq!(list(&mut world), [], "more than an agent may report");
    for half in many.chunks(SNAPSHOTS_MAX) {
        world.say("a", AgentMessage::Recorded(half.to_vec()));
    }
    assert_eq!(list(&mut world).len(), SNAPSHOTS_MAX);
    assert_eq!(
        world.driver.not_adopted.len(),
        1,
        "the one too many is told of"
    );
}
