//! Claims about objects of the source's schema that a node lacks.

use steep_protocol::message::agent::{Command, MissingObjects, Rebuilt, TargetCommand};
use steep_protocol::message::api::{ApiReply, Order, Query};
use steep_protocol::message::facts::{Finding, Severity};
use steep_protocol::{Fault, FaultKind};

use super::super::Answer;
use super::world::{World, replies};
use crate::store::{EventQuery, Store as _};
use crate::testing::{node, spec};

use super::*;

fn lacks(total: u64) -> MissingObjects {
    let finding = Finding {
        severity: Severity::Warning,
        code: "object_missing".to_owned(),
        node: Some(node("b")),
        what: "index i on public.t could not be made".to_owned(),
        why: String::new(),
        fix: "run it".to_owned(),
    };
    MissingObjects {
        total,
        findings: vec![finding; usize::try_from(total).unwrap()],
    }
}

fn rebuild(world: &mut World, name: &str) -> Result<Answer, Fault> {
    let question = Order::Rebuild { node: node(name) };
    let mut answer = world.ask_later(question);
    world.run_on();
    answer.try_recv().unwrap()
}

#[test]
fn a_node_shows_missing_objects_until_a_rebuild_has_created_them() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b"]);
    world.missing = lacks(2);
    world.init(vec![spec("a", "b")]).unwrap();
    world.run_on();
    assert_eq!(world.node("b").missing_objects, 2);
    let mut world = world.restart(directory.path());
    for name in ["a", "b"] {
        world.join(name);
    }
    assert_eq!(world.node("b").missing_objects, 2);
    let question = Query::Missing { node: node("b") };
    assert_eq!(replies(world.ask(question)), [ApiReply::Missing(lacks(2))]);

    world.missing = lacks(1);
    let partly = replies(rebuild(&mut world, "b"));
    let wanted = Rebuilt {
        made: 1,
        missing: lacks(1),
    };
    assert_eq!(partly, [ApiReply::Rebuilt(wanted)]);
    assert_eq!(world.node("b").missing_objects, 1);
    world.missing = lacks(0);
    rebuild(&mut world, "b").unwrap();
    assert_eq!(world.node("b").missing_objects, 0);

    assert_eq!(
        rebuild(&mut world, "nobody").unwrap_err().kind,
        FaultKind::BadRequest
    );
    let query = EventQuery {
        node: Some(node("b")),
        after: 0,
        limit: 100,
    };
    let trail = world.driver.store.audit(&query).unwrap();
    let rebuilds = trail.iter().filter(|entry| entry.action == "init.rebuild");
    assert_eq!(rebuilds.count(), 2);
}

#[test]
fn jobs_and_rebuilds_of_a_node_exclude_each_other() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b"]);
    world.init(vec![spec("a", "b")]).unwrap();
    world.until("b", is_copy);
    let question = || Order::Rebuild { node: node("b") };
    let refused = world.ask_later(question()).try_recv().unwrap().unwrap_err();
    assert!(refused.message.contains("a job is running"), "{refused}");

    let directory = super::directory();
    let mut world = World::open(directory.path(), &["a", "b"]);
    let waiting = world.ask_later(question());
    let refused = world.ask_later(question()).try_recv().unwrap().unwrap_err();
    assert!(refused.message.contains("are being built"), "{refused}");
    let refused = world.init(vec![spec("a", "b")]).unwrap_err();
    assert!(refused.message.contains("are being built"), "{refused}");
    drop(waiting);
    world.until("b", |command| {
        matches!(command, Command::Target(TargetCommand::RebuildMissing))
    });
}
