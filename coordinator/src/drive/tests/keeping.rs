//! Claims about what a failed job keeps, and about restarts of a job.

use steep_protocol::message::agent::{AgentMessage, Command, CopyParts, TargetCommand};
use steep_protocol::{Fault, FaultKind, NodeState};

use super::world::{PARTS, World, replies};
use crate::testing::spec;

use super::*;

fn failed_copy(world: &mut World) {
    let job = world.init(vec![spec("a", "b")]).unwrap()[0].job;
    world.until("b", is_copy);
    let parts = vec![super::world::done(0)];
    world.say("b", AgentMessage::PartsDone { job, parts });
    let fault = Fault::new(FaultKind::Failed, "disk full").hint("make room");
    world.end_one("b", Some(fault));
}

#[test]
fn a_failed_copy_is_kept_over_a_restart_and_goes_on_with_the_parts_that_are_missing() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b", "c"]);
    failed_copy(&mut world);
    let view = world.node("b");
    assert_eq!(view.state, NodeState::Failed);
    assert!(view.kept_until.is_some());
    let fault = world.init(vec![spec("a", "b")]).unwrap_err();
    assert!(fault.hint.contains("--resume"), "{}", fault.hint);
    assert!(
        fault.hint.contains("init cancel --node b"),
        "{}",
        fault.hint
    );

    let mut world = world.restart(directory.path());
    world.join("a");
    world.join("b");
    let other = world.resume(vec![spec("c", "b")]).unwrap_err();
    assert!(other.message.contains("rows of a, not of c"), "{other}");
    let follow = world.resume(vec![spec("a", "b")]).unwrap().remove(0);
    assert!(follow.feed.borrow().end.is_none(), "it has not ended");
    assert_eq!(world.state("b"), NodeState::Copying);
    let copies = world.agent("b").history.iter();
    let orders: Vec<usize> = copies
        .filter_map(|(_, c)| match c {
            Command::Target(TargetCommand::Copy(CopyParts { order, .. })) => Some(order.len()),
            _ => None,
        })
        .collect();
    assert_eq!(orders.last(), Some(&(PARTS as usize - 1)));
    for name in ["a", "b"] {
        let history = &world.agent(name).history;
        assert!(!history.iter().any(|(_, c)| is_cleanup(c)), "{name}");
    }
    world.run_on();
    assert_eq!(world.state("b"), NodeState::Synchronized);
    let nothing = world.resume(vec![spec("a", "b")]).unwrap_err();
    assert!(nothing.message.contains("nothing to resume"), "{nothing}");
}

#[test]
fn a_cancel_removes_what_a_failed_job_has_kept() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b"]);
    failed_copy(&mut world);
    let mut answer = world.cancel("b");
    world.run_on();
    assert_eq!(replies(answer.try_recv().unwrap()), []);
    assert_eq!(world.state("b"), NodeState::Uninitialized);
    assert!(world.node("b").kept_until.is_none());
    world.init(vec![spec("a", "b")]).unwrap();
    world.run_on();
    assert_eq!(world.state("b"), NodeState::Synchronized);
}

#[test]
fn a_lost_snapshot_begins_the_job_again_and_counts_from_nothing() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b"]);
    let follow = world.init(vec![spec("a", "b")]).unwrap().remove(0);
    let job = follow.job;
    world.until("b", is_copy);
    let parts = vec![super::world::done(0), super::world::done(5)];
    world.say("b", AgentMessage::PartsDone { job, parts });
    assert_eq!(world.progress("b").0.rows_copied, 20);
    let lost = steep_protocol::message::agent::Observed {
        postgres: Some(Ok(180_000)),
        slots: vec![slot(job, "reserved")],
        lost_snapshots: vec![job],
        ..Default::default()
    };
    world.say("a", AgentMessage::Observed(lost));
    world.until("b", |c| {
        matches!(c, Command::Target(TargetCommand::Prepare(_)))
    });
    let (view, _) = world.progress("b");
    assert_eq!((view.rows_copied, view.detail.restarts), (0, 1));
    assert_eq!(view.state, NodeState::Copying);
    assert!(follow.feed.borrow().end.is_none(), "its followers stay");
    // A restarted coordinator knows the new plan and no part of the old one.
    let mut world = world.restart(directory.path());
    world.join("a");
    world.join("b");
    assert_eq!(world.progress("b").0.rows_copied, 0);
    world.run_on();
    assert_eq!(world.state("b"), NodeState::Synchronized);
}

#[test]
fn a_node_that_is_initialised_again_does_not_show_when_its_previous_job_completed() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b"]);
    world.init(vec![spec("a", "b")]).unwrap();
    world.run_on();
    assert!(world.node("b").init_completed_at.is_some());
    for _ in 0..4 {
        world.observe("b", None, None);
    }
    assert_eq!(world.state("b"), NodeState::Diverged);
    let _cancelled = world.cancel("b");
    world.run_on();
    world.skip(1);
    world.init(vec![spec("a", "b")]).unwrap();
    world.until("b", is_copy);
    assert_eq!(world.node("b").init_completed_at, None);
}
