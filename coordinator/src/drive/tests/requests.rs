//! Claims about operators' requests.

use steep_protocol::message::agent::{Command, CopyParts, SourceCommand, TargetCommand};
use steep_protocol::message::api::{ApiReply, InitRequest, Query};
use steep_protocol::message::job::Method;
use steep_protocol::{FaultKind, NodeState};

use tokio::sync::oneshot::error::TryRecvError;

use super::super::{Interest, Question};
use super::world::{World, replies};
use crate::store::NodeRecord;
use crate::testing::{node, spec};

use super::*;

#[test]
fn of_two_inits_of_one_node_exactly_one_wins() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b", "c"]);
    assert!(world.init(vec![spec("a", "b")]).is_ok());
    let fault = world.init(vec![spec("c", "b")]).unwrap_err();
    assert!(
        fault.message.contains("already being initialised"),
        "{fault}"
    );
    assert!(
        fault.hint.contains("init cancel --node b"),
        "{}",
        fault.hint
    );
    assert_eq!(world.driver.jobs.len(), 1);
    world.run_on();
    let fault = world.init(vec![spec("a", "b")]).unwrap_err();
    assert!(fault.message.contains("already synchronized") && fault.hint.contains("start over"));
}

#[test]
fn what_cannot_be_initialised_is_refused_and_nothing_changes() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b", "c", "off"]);
    world.leave("off");
    let kind = |world: &mut World, specs| world.init(specs).unwrap_err().kind;
    assert_eq!(kind(&mut world, vec![]), FaultKind::BadRequest);
    assert_eq!(
        kind(&mut world, vec![spec("a", "a")]),
        FaultKind::BadRequest
    );
    assert_eq!(
        kind(&mut world, vec![spec("a", "off")]),
        FaultKind::Unreachable
    );
    assert_eq!(
        kind(&mut world, vec![spec("off", "b")]),
        FaultKind::Unreachable
    );
    let fault = world.init(vec![spec("a", "nowhere")]).unwrap_err();
    assert_eq!(fault.kind, FaultKind::BadRequest);
    assert!(fault.hint.contains("a, b, c, off"), "{}", fault.hint);
    let mut stored = spec("a", "b");
    stored.method = Method::Stored;
    let fault = world.init(vec![stored]).unwrap_err();
    assert!(fault.message.contains("snapshot apply"), "{fault}");
    for parallel in [0, 17] {
        let mut many = spec("a", "b");
        many.parallel = parallel;
        assert_eq!(kind(&mut world, vec![many]), FaultKind::BadRequest);
    }
    // All or none: the second target is offline.
    assert_eq!(
        kind(&mut world, vec![spec("a", "b"), spec("a", "off")]),
        FaultKind::Unreachable
    );
    assert_eq!(
        kind(&mut world, vec![spec("a", "b"), spec("c", "b")]),
        FaultKind::BadRequest
    );
    assert!(world.driver.jobs.is_empty());
    assert_eq!(world.state("b"), NodeState::Uninitialized);
}

#[test]
fn several_targets_begin_together_and_share_the_sources_workers() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b", "c"]);
    let mut specs = vec![spec("a", "b"), spec("a", "c")];
    specs[0].parallel = 14;
    assert_eq!(world.init(specs).unwrap().len(), 2);
    world.until("b", is_copy);
    // b's copy runs until c's copy starts.
    while !world.agent("c").at_work.values().any(|(_, c)| is_copy(c)) {
        world.end_one("a", None);
        world.end_one("c", None);
    }
    let workers = |world: &mut World, name: &str| {
        let mut copies = world
            .agent(name)
            .history
            .iter()
            .rev()
            .filter_map(|(_, c)| match c {
                Command::Target(TargetCommand::Copy(CopyParts { parallel, .. })) => Some(*parallel),
                _ => None,
            });
        copies.next().unwrap()
    };
    let given = u16::from(workers(&mut world, "b")) + u16::from(workers(&mut world, "c"));
    assert!(given <= 16, "{given} workers on one agent of 16");
    world.run_on();
    assert_eq!(world.state("b"), NodeState::Synchronized);
    assert_eq!(world.state("c"), NodeState::Synchronized);
}

#[test]
fn a_node_at_work_is_no_source_and_a_source_at_work_is_no_target() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b", "c"]);
    world.init(vec![spec("a", "b")]).unwrap();
    let fault = world.init(vec![spec("b", "c")]).unwrap_err();
    assert!(fault.message.contains("cannot be a source"), "{fault}");
    let fault = world.init(vec![spec("c", "a")]).unwrap_err();
    assert!(fault.message.contains("is the source of job"), "{fault}");
    world.run_on();
    // Emptying a would empty b, which follows it, and leave nothing to copy.
    let fault = world.init(vec![spec("b", "a")]).unwrap_err();
    assert!(fault.message.contains("follows"), "{fault}");
    // A chain is fine.
    world.init(vec![spec("b", "c")]).unwrap();
    world.run_on();
    assert_eq!(world.state("c"), NodeState::Synchronized);
}

#[test]
fn a_cancel_answers_when_everything_is_removed() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b"]);
    let follow = world.init(vec![spec("a", "b")]).unwrap().remove(0);
    world.until("b", is_copy);
    let mut answer = world.cancel("b");
    assert!(
        answer.try_recv().is_err(),
        "answered before anything was removed"
    );
    let first: Vec<_> = world
        .agent("b")
        .at_work
        .values()
        .map(|(_, c)| c.clone())
        .collect();
    assert!(
        matches!(first[..], [Command::Target(TargetCommand::Cleanup { .. })]),
        "{first:?}"
    );
    assert!(
        world.agent("a").at_work.is_empty(),
        "the source waits for the target"
    );
    world.run_on();
    assert_eq!(replies(answer.try_recv().unwrap()), []);
    assert_eq!(world.state("b"), NodeState::Uninitialized);
    let end = follow.feed.borrow().end.clone().unwrap();
    assert_eq!(end.fault.as_ref().unwrap().kind, FaultKind::Cancelled);
    let events = world.events("b");
    let cancelled = events.iter().find(|e| e.event == "init.cancelled").unwrap();
    assert!(
        cancelled
            .fields
            .contains(&("operator".to_owned(), "dba".to_owned()))
    );
    // The node can be initialised again.
    world.init(vec![spec("a", "b")]).unwrap();
    world.run_on();
    assert_eq!(world.state("b"), NodeState::Synchronized);
}

#[test]
fn there_is_nothing_to_cancel_on_a_node_without_a_job() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b"]);
    let fault = world.cancel("b").try_recv().unwrap().unwrap_err();
    assert!(
        fault.message.contains("the node is uninitialized"),
        "{fault}"
    );
    world.init(vec![spec("a", "b")]).unwrap();
    world.run_on();
    let fault = world.cancel("b").try_recv().unwrap().unwrap_err();
    assert!(
        fault.message.contains("the node is synchronized"),
        "{fault}"
    );
    assert_eq!(world.state("b"), NodeState::Synchronized);
}

#[test]
fn the_preflight_alone_changes_nothing_and_revokes_its_permission() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b", "c"]);
    let specs = vec![spec("a", "b"), spec("a", "c")];
    let mut answer = world.ask_later(Query::Doctor(InitRequest::Copy(specs)));
    world.run_on();
    let replies = replies(answer.try_recv().unwrap());
    let targets: Vec<_> = replies
        .iter()
        .map(|reply| match reply {
            ApiReply::Findings { target, .. } => target.clone(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(targets, [node("b"), node("c")]);
    assert_eq!(world.state("b"), NodeState::Uninitialized);
    let last = &world.agent("a").history.last().unwrap().1;
    assert_eq!(*last, Command::Source(SourceCommand::Release));
    assert!(world.agents.values().all(|agent| agent.kept.is_empty()));

    let specs = vec![spec("a", "b")];
    let mut answer = world.ask_later(Query::Doctor(InitRequest::Copy(specs)));
    world.leave("a");
    let fault = answer.try_recv().unwrap().unwrap_err();
    assert_eq!(fault.kind, FaultKind::Unreachable);
    assert!(world.driver.doctors.is_empty());
}

#[test]
fn a_permission_that_could_not_be_revoked_is_revoked_when_the_agent_is_back() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b"]);
    let specs = vec![spec("a", "b")];
    let _answer = world.ask_later(Query::Doctor(InitRequest::Copy(specs)));
    world.end_one("a", None);
    assert_eq!(world.agents[&node("a")].admitted.len(), 1);
    world.leave("a");
    world.leave("b");
    assert!(world.driver.doctors.is_empty());
    // Even if the coordinator does not remember the permission: it waits for those who may know it.
    let mut world = world.restart(directory.path());
    world.join("a");
    world.skip(29);
    assert_eq!(world.agents[&node("a")].admitted.len(), 1);
    world.skip(2);
    world.run_on();
    let agent = &world.agents[&node("a")];
    assert_eq!(
        agent.history.last().unwrap().1,
        Command::Source(SourceCommand::Release)
    );
    assert!(agent.admitted.is_empty());
    assert!(agent.kept.is_empty(), "its outcome is not kept for ever");
}

#[test]
fn nodes_that_nobody_initialised_are_listed_too() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["b", "a"]);
    let replies = replies(world.ask(Query::Nodes { node: None }));
    let [ApiReply::Nodes(nodes)] = &replies[..] else {
        panic!("{replies:?}");
    };
    let names: Vec<_> = nodes.iter().map(|n| n.node_id.as_str()).collect();
    assert_eq!(names, ["a", "b"]);
    assert!(nodes.iter().all(|n| n.agent_online && n.progress.is_none()));
    let (view, end) = world.progress("a");
    assert_eq!((view.state, end), (NodeState::Uninitialized, None));
    world.leave("a");
    assert!(!world.node("a").agent_online);
    let record = NodeRecord::new(node("a"));
    assert_ne!(
        world.driver.nodes[&node("a")],
        record,
        "its registration is stored"
    );
    let unknown = Question::Progress {
        node: node("x"),
        interest: Interest::Once,
    };
    assert!(world.ask(unknown).is_err());
}

#[test]
fn a_question_that_nobody_will_answer_leaves_no_operator_waiting() {
    let (reply, mut answer) = tokio::sync::oneshot::channel();
    let ticket = super::super::Ticket::new(reply);
    let held = ticket.clone();
    drop(ticket);
    assert_eq!(answer.try_recv().unwrap_err(), TryRecvError::Empty);
    drop(held);
    assert_eq!(answer.try_recv().unwrap_err(), TryRecvError::Closed);
}
