//! Claims about targets that share one snapshot.

use steep_protocol::message::agent::{
    AgentMessage, Command, CopyParts, Export, Observed, OpenSource, SourceCommand, TargetCommand,
};
use steep_protocol::message::api::{InitRequest, Order};
use steep_protocol::message::snapshot::ApplySpec;
use steep_protocol::{Fault, FaultKind, NodeState, Retry};

use super::world::World;
use super::*;
use crate::testing::spec;

/// What the agent was told to open, in order.
pub(super) fn opened(world: &mut World, name: &str) -> Vec<Export> {
    let history = world.agent(name).history.iter();
    let opens = history.filter_map(|(_, command)| match command {
        Command::Source(SourceCommand::Open(OpenSource { export, .. })) => Some(export.clone()),
        _ => None,
    });
    opens.collect()
}

pub(super) fn copies(world: &mut World, name: &str) -> Vec<CopyParts> {
    let history = world.agent(name).history.iter();
    let copies = history.filter_map(|(_, command)| match command {
        Command::Target(TargetCommand::Copy(copy)) => Some(copy.clone()),
        _ => None,
    });
    copies.collect()
}

fn removed(world: &mut World, name: &str) -> usize {
    let history = world.agent(name).history.iter();
    let is = |command: &Command| {
        let gone = SourceCommand::DeleteSnapshot { location: None };
        *command == Command::Source(gone)
    };
    history.filter(|(_, command)| is(command)).count()
}

/// Two targets that are both copying.
fn both_copy(directory: &std::path::Path) -> World {
    let mut world = World::open(directory, &["a", "b", "c"]);
    world.init(vec![spec("a", "b"), spec("a", "c")]).unwrap();
    world.until("b", is_copy);
    while copies(&mut world, "c").is_empty() {
        world.end_one("a", None);
        world.end_one("c", None);
    }
    world
}

#[test]
fn targets_of_one_request_share_a_snapshot_until_all_have_their_rows() {
    let directory = directory();
    let mut world = both_copy(directory.path());
    let exports = opened(&mut world, "a");
    let shared = |export: &Export| match export {
        Export::Shared { snapshot } => Some(*snapshot),
        _ => None,
    };
    let snapshots: Vec<_> = exports.iter().filter_map(shared).collect();
    assert_eq!(exports[0], Export::SlotAndSnapshot, "{exports:?}");
    assert_eq!(exports.len(), 3);
    assert_eq!(snapshots[0], snapshots[1]);
    let (b, c) = (
        copies(&mut world, "b").remove(0),
        copies(&mut world, "c").remove(0),
    );
    let peer = |copy: &CopyParts| {
        let shared = copy.shared.clone().unwrap();
        assert_eq!(shared.snapshot, snapshots[0]);
        let peers: Vec<String> = shared.peers.iter().map(|p| p.node.to_string()).collect();
        peers.join(" ")
    };
    assert_eq!((peer(&b), peer(&c)), ("c".to_owned(), "b".to_owned()));
    assert_ne!(b.order[0], c.order[0]);

    while world.end_one("b", None).is_some() {}
    world.skip(120);
    assert_eq!(removed(&mut world, "a"), 0, "c has not copied yet");
    world.run_on();
    world.skip(1);
    world.run_on();
    world.skip(1);
    assert_eq!(removed(&mut world, "a"), 1);
    for name in ["b", "c"] {
        assert_eq!(world.state(name), NodeState::Synchronized);
    }
    assert!(world.driver.snapshots.is_empty());
}

#[test]
fn jobs_whose_snapshot_cannot_be_opened_say_so_and_go_on_as_soon_as_its_server_is_back() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b", "c"]);
    world.init(vec![spec("a", "b"), spec("a", "c")]).unwrap();
    let is_open = |command: &Command| matches!(command, Command::Source(SourceCommand::Open(_)));
    let down = || Fault::new(FaultKind::Unreachable, "connection refused").retry(Retry::Backoff);
    let silent = || {
        AgentMessage::Observed(Observed {
            postgres: Some(Err("connection refused".to_owned())),
            ..Observed::default()
        })
    };
    world.say("a", silent());
    for _ in 0..6 {
        world.until("a", is_open);
        world.end_one("a", Some(down()));
        world.skip(35);
    }
    world.until("a", is_open);
    world.end_one("a", Some(down()));
    world.observe("a", None, None);
    world.skip(1);
    world.until("a", is_open);
    world.end_one("a", Some(down()));
    // The jobs have tried again, and wait for the snapshot alone.
    world.skip(20);
    let (view, _) = world.progress("b");
    let waiting = view.detail.waiting.expect("it waits");
    assert_eq!(waiting.reason, "connection refused");
    world.skip(35);
    world.run_on();
    assert_eq!(world.state("b"), NodeState::Synchronized);
}

#[test]
fn a_single_target_has_a_snapshot_of_its_own() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b"]);
    world.init(vec![spec("a", "b")]).unwrap();
    world.run_on();
    assert_eq!(opened(&mut world, "a"), [Export::SlotAndSnapshot]);
    assert_eq!(copies(&mut world, "b")[0].shared, None);
}

#[test]
fn what_a_cancelled_target_shared_stays_for_the_others() {
    let directory = directory();
    let mut world = both_copy(directory.path());
    world.cancel("b");
    world.skip(120);
    assert_eq!(removed(&mut world, "a"), 0);
    world.run_on();
    assert_eq!(world.state("b"), NodeState::Uninitialized);
    assert_eq!(world.state("c"), NodeState::Synchronized);
    world.skip(1);
    world.run_on();
    assert_eq!(removed(&mut world, "a"), 1);
}

#[test]
fn targets_of_a_lost_snapshot_start_over_together_with_another() {
    let directory = directory();
    let mut world = both_copy(directory.path());
    world.kill("a");
    world.join("a");
    world.run_on();
    world.skip(5);
    world.run_on();
    let exports = opened(&mut world, "a");
    let made = exports.iter().filter(|e| **e == Export::SlotAndSnapshot);
    assert_eq!(made.count(), 2, "{exports:?}");
    for name in ["b", "c"] {
        assert_eq!(world.state(name), NodeState::Synchronized);
    }
    let first = copies(&mut world, "b").remove(0).shared.unwrap().snapshot;
    let (b, c) = (
        copies(&mut world, "b").pop().unwrap(),
        copies(&mut world, "c").pop().unwrap(),
    );
    let (b, c) = (b.shared.unwrap().snapshot, c.shared.unwrap().snapshot);
    assert!(b == c && b != first, "{first} {b} {c}");
    world.skip(120);
    world.run_on();
    world.skip(1);
    assert!(world.driver.snapshots.is_empty());
}

#[test]
fn the_slot_of_a_snapshot_that_was_lost_before_the_answer_is_removed() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b", "c"]);
    world.init(vec![spec("a", "b"), spec("a", "c")]).unwrap();
    let is_open = |command: &Command| {
        let open = |open: &OpenSource| matches!(open.export, Export::Shared { .. });
        matches!(command, Command::Source(SourceCommand::Open(request)) if open(request))
    };
    world.until("a", is_open);
    let asked = |world: &mut World| -> Vec<_> {
        let history = world.agent("a").history.iter();
        let opens = history.filter(|(_, command)| is_open(command));
        opens.map(|(_, command)| command.clone()).collect()
    };
    assert_eq!(asked(&mut world).len(), 2);
    // The agent dies with the copied slots made and nothing said.
    world.kill("a");
    world.join("a");
    world.run_on();
    world.skip(5);
    world.run_on();
    for name in ["b", "c"] {
        assert_eq!(world.state(name), NodeState::Synchronized);
    }
    let history = world.agent("a").history.clone();
    let cleaned = history
        .iter()
        .filter(|(_, command)| is_cleanup(command))
        .count();
    assert_eq!(cleaned, 2, "{history:?}");
    let shared = |command: &Command| match command {
        Command::Source(SourceCommand::Open(open)) => open.export.clone(),
        other => panic!("{other:?}"),
    };
    let all = asked(&mut world);
    assert_ne!(shared(&all[0]), shared(all.last().unwrap()));
}

#[test]
fn one_that_joins_later_is_named_to_those_that_copy() {
    let directory = directory();
    let mut world = both_copy(directory.path());
    world.join("d");
    let snapshot = copies(&mut world, "b").remove(0).shared.unwrap().snapshot;
    let apply = ApplySpec {
        jobs: vec![spec("a", "d")],
        snapshot,
        carried: None,
        verify: true,
    };
    let order = Order::Init(InitRequest::Apply(Box::new(apply)));
    world.ask(order).unwrap();
    while copies(&mut world, "d").is_empty() {
        world.end_one("a", None);
        world.end_one("d", None);
    }
    for name in ["b", "c"] {
        let told = world.agent(name).told.last().cloned().unwrap();
        let shared = told.shared.unwrap();
        let named = shared.peers.iter().any(|peer| peer.node.as_str() == "d");
        assert!(shared.snapshot == snapshot && named, "{name}");
    }
    world.run_on();
    assert_eq!(world.state("d"), NodeState::Synchronized);
}

#[test]
fn a_coordinator_that_restarts_goes_on_with_the_shared_snapshot() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b", "c"]);
    world.init(vec![spec("a", "b"), spec("a", "c")]).unwrap();
    world.until("b", is_copy);
    let mut world = world.restart(directory.path());
    for name in ["a", "b", "c"] {
        world.join(name);
    }
    world.run_on();
    let exports = opened(&mut world, "a");
    let made = exports.iter().filter(|e| **e == Export::SlotAndSnapshot);
    assert_eq!(made.count(), 1, "{exports:?}");
    for name in ["b", "c"] {
        assert_eq!(world.state(name), NodeState::Synchronized);
    }
}
