//! Claims about agents and coordinators that die, lie or lose something.

use steep_protocol::message::agent::{
    AgentMessage, Command, Outcome, SourceCommand, TargetCommand,
};
use steep_protocol::message::api::WaitsFor;
use steep_protocol::{Fault, FaultKind, NodeState};

use super::super::Wake;
use super::world::{PARTS, World, replies};
use crate::testing::{node, spec};

use super::*;

#[test]
fn a_restarted_coordinator_goes_on_with_the_same_commands() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b"]);
    world.init(vec![spec("a", "b")]).unwrap();
    world.until("b", is_copy);
    let before = world.agent("b").history.last().unwrap().0;
    let job = *world.driver.jobs.keys().next().unwrap();
    world.say(
        "b",
        AgentMessage::PartsDone {
            job,
            parts: vec![super::world::done(0), super::world::done(5)],
        },
    );
    let mut world = world.restart(directory.path());
    assert_eq!(world.state("b"), NodeState::Copying);
    assert_eq!(
        world.progress("b").0.rows_copied,
        20,
        "the counts are stored"
    );
    world.skip(20);
    assert_eq!(
        world.state("b"),
        NodeState::Copying,
        "agents have time to reconnect"
    );
    world.join("a");
    world.join("b");
    assert_eq!(
        world.agent("b").history.last().unwrap().0,
        before,
        "sent again with its id"
    );
    world.run_on();
    assert_eq!(world.state("b"), NodeState::Synchronized);
}

#[test]
fn a_command_that_ended_while_the_coordinator_was_down_is_not_done_twice() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b"]);
    world.init(vec![spec("a", "b")]).unwrap();
    world.until("b", |c| {
        matches!(c, Command::Target(TargetCommand::BuildIndexes { .. }))
    });
    let (id, _) = world.agent("b").at_work.pop_first().unwrap();
    world
        .agent("b")
        .kept
        .insert(id, Ok(Outcome::Warned(Vec::new())));
    let mut world = world.restart(directory.path());
    world.join("a");
    world.join("b");
    world.run_on();
    assert_eq!(world.state("b"), NodeState::Synchronized);
    let builds = world.agent("b").history.iter();
    assert_eq!(
        builds
            .filter(|(_, c)| matches!(c, Command::Target(TargetCommand::BuildIndexes { .. })))
            .count(),
        1
    );
    assert!(world.agent("b").kept.is_empty());
}

#[test]
fn ids_of_commands_are_never_used_again_after_a_restart() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b"]);
    world.init(vec![spec("a", "b")]).unwrap();
    world.run_on();
    let before: Vec<_> = world.agent("b").history.iter().map(|(id, _)| *id).collect();
    let mut world = world.restart(directory.path());
    world.join("a");
    world.join("b");
    world.join("c");
    world.init(vec![spec("a", "c")]).unwrap();
    world.run_on();
    assert_eq!(world.state("c"), NodeState::Synchronized);
    assert!(
        world
            .agent("c")
            .history
            .iter()
            .all(|(id, _)| !before.contains(id))
    );
}

#[test]
fn a_dead_agent_is_waited_for_and_cleaned_when_it_returns_too_late() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b"]);
    world.init(vec![spec("a", "b")]).unwrap();
    world.until("b", is_copy);
    world.kill("b");
    world.skip(10);
    let view = world.node("b");
    assert_eq!(view.state, NodeState::Copying);
    let waiting = view.waiting.unwrap();
    assert_eq!(
        (waiting.what, waiting.node_id),
        (WaitsFor::Agent, node("b"))
    );
    assert_eq!(
        world.progress("b").0.detail.waiting.unwrap().what,
        WaitsFor::Agent
    );
    world.kill("a");
    world.skip(1_789);
    assert_eq!(world.state("b"), NodeState::Copying);
    world.skip(1);
    world.join("a");
    world.run_on();
    let view = world.node("b");
    assert_eq!(view.state, NodeState::Failed);
    assert!(view.error_message.unwrap().contains("away"));
    let done = world.agent("a").history.last().unwrap().1.clone();
    assert_eq!(
        done,
        Command::Source(SourceCommand::Cleanup {
            sync_slots: None,
            earlier: Vec::new(),
        }),
        "the source is not left with a slot"
    );
    let fault = world.init(vec![spec("a", "b")]).unwrap_err();
    assert!(
        fault.hint.contains("start the agent of b"),
        "{}",
        fault.hint
    );

    // The store remembers that b must be cleaned up.
    let mut world = world.restart(directory.path());
    world.join("a");
    world.join("b");
    world.run_on();
    assert!(world.agent("b").history.iter().any(|(_, c)| is_cleanup(c)));
    assert_eq!(world.state("b"), NodeState::Failed);
    world.init(vec![spec("a", "b")]).unwrap();
    world.run_on();
    assert_eq!(world.state("b"), NodeState::Synchronized);
}

#[test]
fn a_failed_command_fails_the_job_with_its_cause_and_leaves_nothing_where_nothing_is_kept() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b"]);
    let follow = world.init(vec![spec("a", "b")]).unwrap().remove(0);
    world.until("b", |c| {
        matches!(c, Command::Target(TargetCommand::Prepare(_)))
    });
    world.end_one(
        "b",
        Some(Fault::new(FaultKind::Failed, "disk full").hint("make room")),
    );
    world.run_on();
    assert_eq!(world.state("b"), NodeState::Failed);
    let fault = follow
        .feed
        .borrow()
        .end
        .as_ref()
        .unwrap()
        .fault
        .clone()
        .unwrap();
    assert_eq!(
        (fault.message.as_str(), fault.hint.as_str()),
        ("disk full", "make room")
    );
    for name in ["a", "b"] {
        assert!(
            world.agent(name).history.iter().any(|(_, c)| is_cleanup(c)),
            "{name}"
        );
    }
    // Cancelling a cleaned-up job only changes the state.
    let mut answer = world.cancel("b");
    assert_eq!(replies(answer.try_recv().unwrap()), []);
    assert_eq!(world.state("b"), NodeState::Uninitialized);
}

#[test]
fn a_lost_slot_or_a_disabled_subscription_is_divergence_and_can_be_cancelled() {
    for lost in [true, false] {
        let directory = directory();
        let mut world = World::open(directory.path(), &["a", "b"]);
        let job = world.init(vec![spec("a", "b")]).unwrap()[0].job;
        world.run_on();
        world.observe("a", Some(slot(job, "reserved")), None);
        world.observe("b", None, Some(subscription(job, true)));
        let view = world.node("b");
        assert_eq!(
            (view.state, view.lag_bytes),
            (NodeState::Synchronized, Some(77))
        );
        assert_eq!(
            (view.wal_held_bytes, view.postgres_version),
            (Some(99), Some(180_000))
        );
        if lost {
            world.observe("a", Some(slot(job, "lost")), None);
        } else {
            world.observe("b", None, Some(subscription(job, false)));
            assert_eq!(
                world.state("b"),
                NodeState::Synchronized,
                "one observation may be temporary"
            );
            world.observe("b", None, Some(subscription(job, false)));
            world.observe("b", None, Some(subscription(job, false)));
        }
        let view = world.node("b");
        assert_eq!(view.state, NodeState::Diverged);
        assert!(view.error_message.is_some());
        assert!(world.init(vec![spec("a", "b")]).is_err());
        let mut answer = world.cancel("b");
        world.run_on();
        assert_eq!(replies(answer.try_recv().unwrap()), []);
        assert_eq!(world.state("b"), NodeState::Uninitialized);
    }
}

#[test]
fn a_slot_that_is_lost_during_the_copy_fails_the_job_at_once_and_leaves_nothing() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b"]);
    let job = world.init(vec![spec("a", "b")]).unwrap()[0].job;
    world.until("b", is_copy);
    world.observe("a", Some(slot(job, "extended")), None);
    assert_eq!(world.state("b"), NodeState::Copying);
    world.observe("a", Some(slot(job, "lost")), None);
    world.run_on();
    let view = world.node("b");
    assert_eq!(view.state, NodeState::Failed);
    assert!(view.error_message.unwrap().contains("wal_status is lost"));
    for name in ["a", "b"] {
        let last = world.agent(name).history.last().unwrap().1.clone();
        assert!(is_cleanup(&last), "{name}: {last:?}");
    }
}

#[test]
fn a_subscription_that_keeps_failing_fails_the_catch_up_with_where_to_look() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b"]);
    let job = world.init(vec![spec("a", "b")]).unwrap()[0].job;
    world.until("a", |c| {
        matches!(c, Command::Source(SourceCommand::AwaitFence { .. }))
    });
    for apply_errors in 0..=3 {
        let failing = SubscriptionStatus {
            apply_errors,
            ..subscription(job, true)
        };
        assert_eq!(world.state("b"), NodeState::CatchingUp);
        world.observe("b", None, Some(failing));
    }
    world.run_on();
    let view = world.node("b");
    assert_eq!(view.state, NodeState::Failed);
    assert!(view.error_message.unwrap().contains("see the target's log"));
    assert!(view.kept_until.is_some(), "it can be resumed");
}

#[test]
fn a_target_whose_server_dies_in_the_catch_up_is_waited_for_as_long_as_the_budget_lasts() {
    let down = steep_protocol::message::agent::Observed {
        postgres: Some(Err("connection refused".to_owned())),
        ..Default::default()
    };
    for back in [true, false] {
        let directory = directory();
        let mut world = World::open(directory.path(), &["a", "b"]);
        let job = world.init(vec![spec("a", "b")]).unwrap()[0].job;
        world.until("a", |c| {
            matches!(c, Command::Source(SourceCommand::AwaitFence { .. }))
        });
        let finish = |c: &Command| matches!(c, Command::Target(TargetCommand::Finish { .. }));
        world.until("b", finish);
        world.end_one("b", None);
        world.say("b", AgentMessage::Observed(down.clone()));
        world.skip(1_500);
        assert_eq!(world.node("b").waiting.unwrap().what, WaitsFor::Postgresql);
        if back {
            world.observe("b", None, Some(subscription(job, true)));
            assert_eq!(world.node("b").waiting, None);
        }
        world.skip(1_500);
        world.say("b", AgentMessage::Observed(down.clone()));
        world.run_on();
        let expected = if back {
            NodeState::Synchronized
        } else {
            NodeState::Failed
        };
        assert_eq!(world.state("b"), expected);
    }
}

#[test]
fn a_source_is_released_once_the_job_has_succeeded_even_if_it_was_away_then() {
    let released = |world: &mut World| {
        let told = world.agent("a").history.iter();
        told.filter(|(_, c)| *c == Command::Source(SourceCommand::Release))
            .count()
    };
    for away in [false, true] {
        let directory = directory();
        let mut world = World::open(directory.path(), &["a", "b"]);
        world.init(vec![spec("a", "b")]).unwrap();
        world.until("b", |c| {
            matches!(c, Command::Target(TargetCommand::Release))
        });
        assert_eq!(released(&mut world), 0, "the job may still fail");
        if away {
            world.leave("a");
        }
        world.run_on();
        assert_eq!(world.state("b"), NodeState::Synchronized);
        if away {
            assert_eq!(released(&mut world), 0);
            world.join("a");
            world.run_on();
        }
        assert_eq!(released(&mut world), 1);
        assert!(world.agent("a").kept.is_empty());
    }
}

#[test]
fn a_server_that_cannot_be_asked_is_no_divergence() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b"]);
    world.init(vec![spec("a", "b")]).unwrap();
    world.run_on();
    let down = steep_protocol::message::agent::Observed {
        postgres: Some(Err("connection refused".to_owned())),
        ..Default::default()
    };
    for _ in 0..10 {
        world.say("a", AgentMessage::Observed(down.clone()));
        world.say("b", AgentMessage::Observed(down.clone()));
    }
    let view = world.node("b");
    assert_eq!(view.state, NodeState::Synchronized);
    assert_eq!(view.postgres_error.as_deref(), Some("connection refused"));
}

#[test]
fn an_agent_speaks_for_its_own_commands_and_its_newest_session_only() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b", "evil"]);
    world.init(vec![spec("a", "b")]).unwrap();
    world.until("b", is_copy);
    let job = *world.driver.jobs.keys().next().unwrap();
    let (command, _) = *world
        .agent("b")
        .at_work
        .first_key_value()
        .map(|(id, _)| (*id, ()))
        .as_ref()
        .unwrap();
    world.say(
        "evil",
        AgentMessage::Finished {
            command,
            outcome: Ok(Outcome::Done),
        },
    );
    let parts = (0..PARTS).map(super::world::done).collect();
    world.say("evil", AgentMessage::PartsDone { job, parts });
    assert_eq!(world.progress("b").0.rows_copied, 0);
    assert_eq!(world.state("b"), NodeState::Copying);
    // A second session of b replaces the first, whose messages no longer count.
    let old = world.agent("b").session;
    world.join("b");
    let stale = super::super::AgentInput::Said {
        node: node("b"),
        session: old,
        messages: vec![AgentMessage::Finished {
            command,
            outcome: Err(Fault::new(FaultKind::Failed, "x")),
        }],
    };
    world.driver.turn(&mut vec![stale], Wake::Agents).unwrap();
    world.run_on();
    assert_eq!(world.state("b"), NodeState::Synchronized);
}
