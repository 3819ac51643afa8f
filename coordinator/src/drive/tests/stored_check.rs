//! Claims about the look at a stored snapshot before a job that loads it is resumed, or would be begun.

use steep_protocol::message::agent::{AgentMessage, CopyParts, Export, NodeCommand, OpenSource};
use steep_protocol::message::api::{ApiReply, InitRequest, Order, Query};
use steep_protocol::message::facts::Finding;
use steep_protocol::message::snapshot::{ApplySpec, CarriedTo, StoredPlace};
use steep_protocol::{Fault, FaultKind, NodeState, SnapshotId};

use super::super::{Answer, Question};
use super::stored::{generate, stored_in};
use super::world::{World, replies};
use super::*;
use crate::job::handover::Replaced;
use crate::testing::{node, spec};

fn apply(snapshot: SnapshotId) -> InitRequest {
    InitRequest::Apply(Box::new(ApplySpec {
        jobs: vec![spec("a", "b")],
        snapshot,
        carried: Some(CarriedTo {
            location: "/mnt/disk".to_owned(),
            nodes: vec![node("b")],
        }),
        verify: true,
    }))
}

fn resume() -> InitRequest {
    InitRequest::Resume(vec![spec("a", "b")])
}

fn damaged(what: &str) -> Fault {
    let fault = Fault::new(FaultKind::StoreDamaged, format!("{what} is missing"));
    fault.on(&node("b")).hint("put it back")
}

/// Performs what is under way until an agent looks at a place, and ends that look.
fn look(world: &mut World, name: &str, fault: Option<Fault>) -> StoredPlace {
    let looks =
        |command: &Command| matches!(command, Command::Node(NodeCommand::CheckStored { .. }));
    world.until(name, looks);
    match world.end_one(name, fault) {
        Some(Command::Node(NodeCommand::CheckStored { place })) => place,
        other => panic!("{other:?}"),
    }
}

/// A job from a carried snapshot that failed when it had copied a part.
fn failed(world: &mut World) -> SnapshotId {
    let id = generate(world, stored_in("/backup/1"));
    let Ok(Answer::Accepted { jobs, .. }) = world.ask(Order::Init(apply(id))) else {
        panic!("not accepted");
    };
    world.until("b", is_copy);
    let (job, parts) = (jobs[0].job, vec![super::world::done(0)]);
    world.say("b", AgentMessage::PartsDone { job, parts });
    world.end_one("b", Some(damaged("part 1")));
    assert_eq!(world.state("b"), NodeState::Failed);
    id
}

fn findings(answer: Result<Answer, Fault>) -> Vec<Finding> {
    match replies(answer).remove(0) {
        ApiReply::Findings { findings, .. } => findings,
        other => panic!("{other:?}"),
    }
}

fn codes(findings: &[Finding]) -> Vec<&str> {
    findings.iter().map(|found| found.code.as_str()).collect()
}

#[test]
fn a_job_is_resumed_once_its_reader_has_found_all_files() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b"]);
    failed(&mut world);
    let mut resumed = world.ask_later(Order::Init(resume()));
    assert!(resumed.try_recv().is_err(), "it is looked at first");
    assert_eq!(world.state("b"), NodeState::Failed);
    let place = look(&mut world, "b", None);
    assert_eq!((place.location.as_str(), place.verify), ("/mnt/disk", true));
    let accepted = resumed.try_recv().unwrap().unwrap();
    assert!(matches!(accepted, Answer::Accepted { jobs, .. } if jobs.len() == 1));
    world.run_on();
    assert_eq!(world.state("b"), NodeState::Synchronized);
}

#[test]
fn a_snapshot_that_nobody_can_read_resumes_nothing_and_is_an_error_of_the_preflight() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b"]);
    failed(&mut world);
    for request in [
        Query::Doctor(resume()).into(),
        Question::from(Order::Init(resume())),
    ] {
        let shown = matches!(request, Question::Query(_));
        let mut answer = world.ask_later(request);
        look(&mut world, "b", Some(damaged("part 1")));
        let place = look(&mut world, "a", Some(damaged("part 2")));
        assert_eq!(place.location, "/backup/1");
        let answer = answer.try_recv().unwrap();
        if shown {
            let found = findings(answer);
            assert_eq!(codes(&found), ["snapshot_files", "resumed"]);
            assert_eq!(found[0].node, Some(node("b")));
        } else {
            // The target's own is what the operator named.
            assert_eq!(answer.unwrap_err(), damaged("part 1"));
        }
        assert_eq!(world.state("b"), NodeState::Failed);
        assert!(world.node("b").kept_until.is_some());
    }
}

#[test]
fn where_the_targets_agent_cannot_read_it_the_sources_does_to_the_end() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b"]);
    let id = failed(&mut world);
    let mut shown = world.ask_later(Query::Doctor(resume()));
    look(&mut world, "b", Some(damaged("part 1")));
    look(&mut world, "a", None);
    let found = findings(shown.try_recv().unwrap());
    assert_eq!(codes(&found), ["snapshot_reader", "resumed"]);

    let mut resumed = world.ask_later(Order::Init(resume()));
    look(&mut world, "b", Some(damaged("part 1")));
    look(&mut world, "a", None);
    resumed.try_recv().unwrap().unwrap();
    let reads = |command: &Command| match command {
        Command::Source(SourceCommand::Open(OpenSource {
            export: Export::Stored(place),
            ..
        })) => place.location == "/backup/1" && place.snapshot == id,
        _ => false,
    };
    let asked = &world.agent("a").history;
    assert!(asked.iter().any(|(_, command)| reads(command)), "{asked:?}");
    let copy = world.agent("b").told.last().cloned();
    assert!(
        matches!(copy, Some(CopyParts { carried: None, .. })),
        "{copy:?}"
    );
    let events = world.events("b");
    let told = |name: &str| events.iter().any(|event| event.event == name);
    assert!(told("snapshot.reader_changed"));
    // It stays like that after a restart of everything.
    let mut world = world.restart(directory.path());
    world.join("a");
    world.join("b");
    world.run_on();
    assert_eq!(world.state("b"), NodeState::Synchronized);
}

#[test]
fn a_dry_run_shows_files_that_are_missing() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b"]);
    let id = generate(&mut world, stored_in("/backup/1"));
    for (fault, expected) in [
        (None, &[][..]),
        (Some(damaged("part 1")), &["snapshot_files"][..]),
    ] {
        let mut shown = world.ask_later(Query::Doctor(apply(id)));
        let place = look(&mut world, "b", fault);
        assert_eq!(place.location, "/mnt/disk");
        let found = findings(shown.try_recv().unwrap());
        let found = codes(&found);
        let errors: Vec<&str> = found
            .into_iter()
            .filter(|c| c.starts_with("snap"))
            .collect();
        assert_eq!(errors, expected);
    }
}

/// Which snapshot the job's preflight would warn of, if any.
fn instead_of(world: &mut World, id: SnapshotId) -> Option<SnapshotId> {
    let Answer::Accepted { jobs, .. } = world.ask(Order::Init(apply(id))).unwrap() else {
        panic!("not accepted");
    };
    let stored = world.driver.jobs[&jobs[0].job].job.stored.clone().unwrap();
    world.run_on();
    stored.instead_of.map(|replaced| match replaced {
        Replaced::Stored { snapshot, made } => {
            assert!(stored.made.unwrap() > made);
            snapshot
        }
        Replaced::Applied { snapshot, made } => {
            assert!(made.is_some());
            snapshot
        }
    })
}

#[test]
fn a_place_with_another_snapshot_than_was_recorded_or_applied_is_noticed() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b"]);
    let first = generate(&mut world, stored_in("/mnt/disk"));
    world.skip(5);
    let second = generate(&mut world, stored_in("/backup/2"));
    assert_eq!(instead_of(&mut world, first), None);
    let again = |world: &mut World| {
        let mut gone = world.driver.nodes.get(&node("b")).cloned().unwrap();
        gone.state = NodeState::Uninitialized;
        world.driver.nodes.insert(node("b"), gone);
    };
    again(&mut world);
    assert_eq!(instead_of(&mut world, second), Some(first));
    again(&mut world);
    // The first one is deleted, and the node has the second from there.
    let delete = Order::DeleteSnapshot {
        snapshot: first,
        force: false,
    };
    drop(world.ask_later(delete));
    world.run_on();
    world.skip(5);
    let third = generate(&mut world, stored_in("/backup/3"));
    assert_eq!(instead_of(&mut world, third), Some(second));
    again(&mut world);
    assert_eq!(instead_of(&mut world, third), None);
}
