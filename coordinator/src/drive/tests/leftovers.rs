//! Claims about what is left after a cancel or a removal, and what is said about it.

use steep_protocol::message::agent::{
    AgentMessage, Command, CopyParts, SourceCommand, TargetCommand,
};
use steep_protocol::message::api::{Afterwards, ApiReply, Order};
use steep_protocol::message::handover::SlotOwner;
use steep_protocol::message::job::CancelledData;
use steep_protocol::message::lineage::{
    ChangeOrigin, Lineage, MirroredNode, SubscriptionSeen, Tool,
};
use steep_protocol::{NodeState, SnapshotId};

use super::world::*;
use super::*;
use crate::testing::{node, spec};

fn is_copy(command: &Command) -> bool {
    matches!(
        command,
        Command::Target(TargetCommand::Copy(CopyParts { .. }))
    )
}

/// A job of `b` during its copy.
fn copying(world: &mut World) -> JobId {
    let follow = world.init(vec![spec("a", "b")]).unwrap().remove(0);
    world.until("b", is_copy);
    follow.job
}

/// What an agent reports that has read its tables during that job.
fn during(job: JobId) -> AgentMessage {
    AgentMessage::Lineage(Box::new(Lineage {
        jobs: vec![job],
        ..Lineage::default()
    }))
}

/// What an agent reports whose server has these slots.
fn slots(owners: &[SlotOwner]) -> AgentMessage {
    let name = |owner: &SlotOwner| owner.replication().slot.to_string();
    AgentMessage::Lineage(Box::new(Lineage {
        slots: owners.iter().map(name).collect(),
        ..Lineage::default()
    }))
}

fn give_up(afterwards: Afterwards, data: CancelledData) -> Order {
    Order::GiveUp {
        node: node("b"),
        data,
        afterwards,
    }
}

fn cancelled(world: &mut World) -> String {
    let mut events = world.events("a").into_iter();
    let found = events.rfind(|event| event.event == "init.cancelled");
    found.unwrap().message
}

#[test]
fn what_one_target_of_a_snapshot_left_is_removed_while_another_follows_by_the_same_name() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b", "c"]);
    let (b, c) = [JobId(7), JobId(8)]
        .map(|job| SlotOwner::Made(SnapshotId(5), job))
        .into();
    world.say("a", slots(&[b, c]));
    let follows = |owner: SlotOwner, jobs: Vec<JobId>, state| {
        let replication = owner.replication();
        AgentMessage::Lineage(Box::new(Lineage {
            subscriptions: vec![SubscriptionSeen {
                name: replication.name().to_string(),
                tool: Tool::PostgreSql,
                slot: Some(replication.slot.to_string()),
                origin: ChangeOrigin::Any,
            }],
            jobs,
            mirrored: Some(MirroredNode {
                state,
                source: Some(node("a")),
                job: owner.job(),
                error: None,
            }),
            ..Lineage::default()
        }))
    };
    world.say("c", follows(c, Vec::new(), NodeState::Synchronized));
    world.say("b", follows(b, vec![JobId(7)], NodeState::CatchingUp));
    world.driver.nodes.get_mut(&node("c")).unwrap().state = NodeState::Synchronized;
    assert_eq!(world.state("b"), NodeState::Failed);
    let order = give_up(Afterwards::Keep, CancelledData::Keep);
    let _waiting = world.ask_later(order);
    world.run_on();
    let told = &world.agent("b").history;
    let removed = told.iter().filter(|(_, command)| is_cleanup(command));
    assert_eq!(
        removed.count(),
        2,
        "the subscription, and the job's own records: {told:?}"
    );
    assert_eq!(world.state("c"), NodeState::Synchronized);
    assert!(
        world
            .agent("c")
            .history
            .iter()
            .all(|(_, command)| !is_cleanup(command))
    );
}

#[test]
fn a_lineage_read_before_a_cancel_leaves_nothing_to_cancel() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b"]);
    let job = copying(&mut world);
    world.say("b", during(job));
    let mut first = world.cancel("b");
    world.run_on();
    assert_eq!(replies(first.try_recv().unwrap()), []);
    // The agent's look began before the cleanup.
    world.say("b", during(job));
    let second = world.cancel("b").try_recv().unwrap().unwrap_err();
    assert!(second.message.contains("nothing to cancel"), "{second}");
    assert_eq!(world.state("b"), NodeState::Uninitialized);
    // What is still there later is real.
    world.skip(30);
    let later = world.cancel("b").try_recv().unwrap().unwrap_err();
    assert!(later.hint.contains("--force-cleanup"), "{later}");
}

#[test]
fn a_cancel_says_that_rows_are_kept() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b"]);
    copying(&mut world);
    let order = Order::Cancel {
        node: node("b"),
        data: CancelledData::Keep,
    };
    drop(world.ask_later(order));
    world.run_on();
    let said = cancelled(&mut world);
    assert!(said.ends_with("tables and rows are kept"), "{said}");
}

#[test]
fn a_node_removed_during_its_copy_leaves_tables_and_comes_back_with_the_command_that_helps() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b"]);
    let job = copying(&mut world);
    world.leave("b");
    let mut removal = world.ask_later(give_up(Afterwards::Forget, CancelledData::Keep));
    world.run_on();
    world.skip(60);
    world.run_on();
    let said = cancelled(&mut world);
    assert!(!said.contains("everything"), "{said}");
    let replies = replies(removal.try_recv().unwrap());
    let [ApiReply::Left(left)] = &replies[..] else {
        panic!("{replies:?}")
    };
    assert!(left[0].contains("tables and rows of job"), "{left:?}");
    assert!(left[0].contains("--force-cleanup"), "{left:?}");

    world.join("b");
    world.say("b", during(job));
    let view = world.node("b");
    assert_eq!(view.state, NodeState::Failed);
    let error = view.error_message.unwrap();
    assert!(
        error.contains("init cancel --node b --force-cleanup"),
        "{error}"
    );
}

#[test]
fn slots_that_nobody_knows_are_named_once_and_removed_with_one_command() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b"]);
    let snapshot = SnapshotId(7);
    let (made, template) = (
        SlotOwner::Made(snapshot, JobId(8)),
        SlotOwner::Template(snapshot),
    );
    world.say("a", slots(&[SlotOwner::Job(JobId(9)), made, template]));
    world.skip(1);
    assert_eq!(world.node("a").warnings, Vec::<String>::new());
    // The agent of a replica may come later.
    world.skip(20);
    world.say("b", during(JobId(9)));
    for _ in 0..3 {
        world.skip(10);
    }
    let warnings = world.node("a").warnings;
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    for owner in [made, template] {
        let slot = owner.replication().slot.to_string();
        let told = warnings.iter().find(|warning| warning.contains(&slot));
        let told = told.unwrap();
        assert!(told.contains("cancel --node a --force-cleanup"), "{told}");
        assert!(told.contains(&format!("('{slot}')")), "{told}");
    }
    let told = world.events("a").into_iter();
    assert_eq!(
        told.filter(|event| event.event == "slot.unknown").count(),
        2
    );

    let removal = world.ask_later(Order::GiveUp {
        node: node("a"),
        data: CancelledData::Keep,
        afterwards: Afterwards::Keep,
    });
    world.run_on();
    drop(removal);
    let history = &world.agent("a").history;
    let [
        (_, Command::Source(SourceCommand::Cleanup { .. })),
        (_, Command::Source(SourceCommand::DeleteSnapshot { .. })),
    ] = &history[..]
    else {
        panic!("{history:?}")
    };
    world.skip(1);
    assert_eq!(world.node("a").warnings, Vec::<String>::new());
}

#[test]
fn slots_of_jobs_and_snapshots_that_are_known_are_nobodys_concern() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b"]);
    let job = copying(&mut world);
    world.say(
        "a",
        slots(&[SlotOwner::Job(job), SlotOwner::Made(SnapshotId(3), job)]),
    );
    for _ in 0..5 {
        world.skip(10);
    }
    assert_eq!(world.node("a").warnings, Vec::<String>::new());
}
