//! Comparisons that the coordinator begins by itself: when, and what they do to a node's state.

use steep_protocol::message::agent::{AgentMessage, Command, Outcome, TargetCommand};
use steep_protocol::message::api::Order;
use steep_protocol::message::verify::{
    ScheduleSpec, ScheduleView, TableReport, VerifyReport, VerifySchedule,
};
use steep_protocol::{FaultKind, NodeState, TableName};

use super::directory;
use super::world::World;
use crate::testing::{node, spec};

const EVERY: i64 = 3_600;

fn schedule(world: &mut World, every: Option<i64>) {
    let order = Order::ScheduleVerify(Box::new(ScheduleSpec {
        node_a: node("a"),
        node_b: node("b"),
        schedule: every.map(|every| VerifySchedule {
            every_seconds: every.unsigned_abs(),
            tables: Vec::new(),
            parallel: 1,
            max_rate: None,
        }),
    }));
    world.ask(order).unwrap();
}

fn is_verify(command: &Command) -> bool {
    matches!(command, Command::Target(TargetCommand::Verify(_)))
}

fn at_work(world: &mut World) -> usize {
    let at_work = world.agent("b").at_work.values();
    at_work.filter(|(_, command)| is_verify(command)).count()
}

/// Ends the comparison that is at work, with so many rows that differ.
fn end(world: &mut World, different: u64) {
    world.until("b", is_verify);
    let table = TableReport {
        different,
        ..TableReport::new(TableName::new("app", "t").unwrap())
    };
    let report = VerifyReport {
        tables: vec![table],
        ..VerifyReport::default()
    };
    let (command, _) = world.agent("b").at_work.pop_first().unwrap();
    let outcome = Ok(Outcome::Compared(Box::new(report)));
    world.say("b", AgentMessage::Finished { command, outcome });
    world.run_on();
}

fn shown(world: &mut World) -> ScheduleView {
    world.node("b").verify.unwrap()
}

#[test]
fn rows_are_compared_again_and_again_and_a_node_is_diverged_while_they_differ() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b"]);
    let job = world.init(vec![spec("a", "b")]).unwrap()[0].job;
    world.run_on();
    world.observe_columns(job, "same", "same");
    schedule(&mut world, Some(EVERY));
    world.skip(1);
    assert!(shown(&mut world).running);
    // Never two at once.
    world.skip(2);
    end(&mut world, 0);
    assert_eq!(shown(&mut world).equal, Some(true));
    assert_eq!(world.state("b"), NodeState::Synchronized);
    world.skip(EVERY / 2);
    assert_eq!(at_work(&mut world), 0, "it is not due");

    world.skip(EVERY / 2);
    end(&mut world, 2);
    assert_eq!(world.state("b"), NodeState::Diverged);
    let reason = world.node("b").error_message.unwrap();
    assert!(
        reason.contains("app.t") && reason.contains("repair a b"),
        "{reason}"
    );

    // Kept over a restart, with the reason and the next time.
    let mut world = world.restart(directory.path());
    for name in ["a", "b"] {
        world.join(name);
    }
    world.run_on();
    world.observe_columns(job, "same", "same");
    let view = shown(&mut world);
    assert_eq!((view.equal, view.running), (Some(false), false));
    assert_eq!(view.differing, [TableName::new("app", "t").unwrap()]);
    assert_eq!(world.state("b"), NodeState::Diverged);
    world.skip(EVERY + 60);
    end(&mut world, 0);
    // Nobody was heard of for an hour.
    world.observe_columns(job, "same", "same");
    world.observe_columns(job, "same", "same");
    assert_eq!(world.state("b"), NodeState::Synchronized);
    assert_eq!(shown(&mut world).differing, []);

    schedule(&mut world, None);
    assert!(world.node("b").verify.is_none());
    world.skip(2 * EVERY);
    assert_eq!(at_work(&mut world), 0, "it is over");
}

#[test]
fn only_replicas_are_compared_regularly_and_not_too_often() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b"]);
    let order = |every| {
        Order::ScheduleVerify(Box::new(ScheduleSpec {
            node_a: node("a"),
            node_b: node("b"),
            schedule: Some(VerifySchedule {
                every_seconds: every,
                tables: Vec::new(),
                parallel: 1,
                max_rate: None,
            }),
        }))
    };
    let refused = world.ask(order(3_600)).unwrap_err();
    assert_eq!(refused.kind, FaultKind::BadRequest, "{refused}");
    world.init(vec![spec("a", "b")]).unwrap();
    world.run_on();
    for every in [0, 59, 366 * 86_400 + 1, u64::MAX] {
        assert_eq!(
            world.ask(order(every)).unwrap_err().kind,
            FaultKind::BadRequest
        );
    }
}
