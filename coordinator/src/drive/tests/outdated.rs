//! Claims about a copy of the coordinator's store that is put back after its jobs have gone on.

use std::path::Path;

use steep_protocol::NodeState;
use steep_protocol::message::agent::AgentMessage;
use steep_protocol::message::lineage::{
    ChangeOrigin, Lineage, MirroredNode, SubscriptionSeen, Tool,
};

use super::world::*;
use super::*;
use crate::testing::{node, spec};

fn copy(from: &Path, to: &Path) {
    for file in std::fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), to.join(file.file_name())).unwrap();
    }
}

/// A job of `b`, synchronized since `old` was taken from the store, whose coordinator now has `old` again.
fn put_back(directory: &Path, old: &Path) -> (World, JobId) {
    let mut world = World::open(directory, &["a", "b"]);
    let job = world.init(vec![spec("a", "b")]).unwrap()[0].job;
    world.until("b", is_copy);
    copy(directory, old);
    world.run_on();
    assert_eq!(world.node("b").state, NodeState::Synchronized);
    world.agent("a").history.clear();
    world.agent("b").history.clear();
    world.silent = true;
    let mut world = world.restart_after(directory, || copy(old, directory));
    world.join("a");
    world.join("b");
    (world, job)
}

fn replica(job: JobId) -> Lineage {
    let name = format!("steep_repl_{job}");
    Lineage {
        subscriptions: vec![SubscriptionSeen {
            name: name.clone(),
            tool: Tool::PostgreSql,
            slot: Some(name),
            origin: ChangeOrigin::Any,
        }],
        mirrored: Some(MirroredNode {
            state: NodeState::Synchronized,
            source: Some(node("a")),
            job: Some(job),
            error: None,
        }),
        ..Lineage::default()
    }
}

fn tell(world: &mut World, name: &str, lineage: Lineage) {
    world.say(name, AgentMessage::Lineage(Box::new(lineage)));
}

#[test]
fn a_replica_is_kept_whose_job_is_unfinished_in_an_old_copy_of_the_store() {
    let (directory, old) = (super::directory(), super::directory());
    let (mut world, job) = put_back(directory.path(), old.path());
    world.skip(5);
    for name in ["a", "b"] {
        assert_eq!(world.agent(name).history, [], "{name} before b's lineage");
    }
    tell(&mut world, "b", replica(job));
    let view = world.node("b");
    assert_eq!(
        (view.state, view.source_node),
        (NodeState::Diverged, Some(node("a")))
    );
    assert!(!world.driver.jobs.contains_key(&job));
    world.skip(60);
    for name in ["a", "b"] {
        let agent = world.agent(name);
        let cleaned = agent.history.iter().any(|(_, command)| is_cleanup(command));
        assert!(
            !cleaned && agent.at_work.is_empty(),
            "{name}: {:?}",
            agent.history
        );
    }
    let events = world.events("b");
    assert!(events.iter().any(|event| event.event == "init.outdated"));
    // It is stored.
    let mut world = world.restart(directory.path());
    assert_eq!(world.node("b").state, NodeState::Diverged);
}

#[test]
fn a_job_goes_on_once_its_target_is_seen_not_to_follow() {
    let (directory, old) = (super::directory(), super::directory());
    let (mut world, job) = put_back(directory.path(), old.path());
    let mut others = replica(JobId(job.0 ^ 1));
    others.mirrored = None;
    tell(&mut world, "b", others);
    assert!(!world.agent("b").history.is_empty());
    assert_eq!(world.node("b").state, NodeState::Copying);
}

#[test]
fn a_job_whose_target_cannot_be_asked_is_cancelled_on_its_source() {
    let (directory, old) = (super::directory(), super::directory());
    let (mut world, _) = put_back(directory.path(), old.path());
    world.leave("b");
    let _cancelled = world.cancel("b");
    let told = &world.agent("a").history;
    assert!(told.iter().any(|(_, command)| is_cleanup(command)));
}

#[test]
fn a_job_that_endangers_its_source_does_not_wait_for_its_target() {
    let (directory, old) = (super::directory(), super::directory());
    let (mut world, job) = put_back(directory.path(), old.path());
    world.leave("b");
    assert!(world.driver.held_back.contains(&job));
    world.observe("a", Some(slot(job, "lost")), None);
    world.skip(1);
    let told = &world.agent("a").history;
    assert!(told.iter().any(|(_, command)| is_cleanup(command)));
}
