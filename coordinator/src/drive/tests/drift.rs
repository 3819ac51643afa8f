//! Columns that are no longer the source's, subscriptions that keep failing, and their repair.

use steep_protocol::message::agent::{AgentMessage, Command, Observed};
use steep_protocol::message::job::SchemaMode;
use steep_protocol::message::schema::{Change, SchemaDifference, SchemaReview, Subject};
use steep_protocol::{FaultKind, JobId, NodeState, TableName};

use super::super::*;
use super::world::{World, operator};
use super::{directory, slot, subscription};
use crate::testing::{node, spec};

fn synchronized(world: &mut World, mode: SchemaMode) -> JobId {
    let mut wanted = spec("a", "b");
    wanted.schema_mode = mode;
    let job = world.init(vec![wanted]).unwrap()[0].job;
    world.run_on();
    assert_eq!(world.state("b"), NodeState::Synchronized);
    job
}

fn lost_column() -> SchemaReview {
    SchemaReview {
        differences: vec![SchemaDifference {
            table: Some(TableName::new("app", "t").unwrap()),
            subject: Subject::Column,
            name: Some("c".to_owned()),
            change: Change::Missing,
            local: "integer".to_owned(),
            remote: String::new(),
        }],
        differences_total: 1,
        ..SchemaReview::default()
    }
}

#[test]
fn columns_that_drift_are_named_and_their_repair_is_noticed() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b"]);
    let job = synchronized(&mut world, SchemaMode::Strict);
    world.observe_columns(job, "same", "same");
    assert_eq!(world.state("b"), NodeState::Synchronized);

    world.review = lost_column();
    world.observe_columns(job, "new", "same");
    world.run_on();
    let view = world.node("b");
    assert_eq!(view.state, NodeState::Diverged);
    let reason = view.error_message.unwrap();
    assert!(
        reason.contains("column c of app.t is missing on b"),
        "{reason}"
    );
    let events = world.events("b");
    assert!(events.iter().any(|e| e.event == "schema.mismatch_detected"));
    // What the source was told to allow for the comparison is taken back.
    let told = |command: &Command| {
        world.agents[&node("a")]
            .history
            .iter()
            .filter(|(_, c)| std::mem::discriminant(c) == std::mem::discriminant(command))
            .count()
    };
    let admit = Command::Admit {
        target: node("b"),
        filter: TableFilter::default(),
    };
    assert_eq!((told(&admit), told(&Command::CleanupSource)), (1, 1));

    world.observe_columns(job, "new", "new");
    let view = world.node("b");
    assert_eq!(
        (view.state, view.error_message),
        (NodeState::Synchronized, None)
    );
}

#[test]
fn digests_of_different_age_are_no_drift_and_are_looked_at_again() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b"]);
    let job = synchronized(&mut world, SchemaMode::Strict);
    world.observe_columns(job, "new", "old");
    world.run_on();
    world.observe_columns(job, "new", "old");
    world.run_on();
    assert_eq!(world.state("b"), NodeState::Synchronized);
    let compared = |world: &World| {
        let told = &world.agents[&node("b")].history;
        told.iter()
            .filter(|(_, c)| matches!(c, Command::CompareSchemas { .. }))
            .count()
    };
    assert_eq!(
        compared(&world),
        1,
        "the same pair is not compared every second"
    );
    world.review = lost_column();
    world.skip(61);
    world.observe_columns(job, "new", "old");
    world.run_on();
    assert_eq!(compared(&world), 2);
    assert_eq!(world.state("b"), NodeState::Diverged);
}

#[test]
fn differences_that_were_accepted_are_no_drift_and_stay_accepted_over_a_restart() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b"]);
    let job = synchronized(&mut world, SchemaMode::Manual);
    world.review = lost_column();
    world.observe_columns(job, "one", "other");
    world.run_on();
    assert_eq!(world.state("b"), NodeState::Synchronized);
    let mut world = world.restart(directory.path());
    for name in ["a", "b"] {
        world.join(name);
    }
    world.observe_columns(job, "one", "other");
    world.run_on();
    assert_eq!(world.state("b"), NodeState::Synchronized);
    world.observe_columns(job, "one", "another");
    world.run_on();
    assert_eq!(world.state("b"), NodeState::Diverged);
}

#[test]
fn a_subscription_that_keeps_failing_is_divergence_until_it_is_calm() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b"]);
    let job = synchronized(&mut world, SchemaMode::Strict);
    world.observe_columns(job, "same", "same");
    let fails = |world: &mut World, apply_errors: u64| {
        let mut failing = subscription(job, true);
        failing.apply_errors = apply_errors;
        let digests = world
            .driver
            .registry
            .get(&node("b"))
            .unwrap()
            .observed
            .digests
            .clone();
        let observed = Observed {
            postgres: Some(Ok(180_000)),
            subscriptions: vec![failing],
            digests,
            ..Observed::default()
        };
        world.say("b", AgentMessage::Observed(observed));
    };
    for errors in 1..=3 {
        assert_eq!(world.state("b"), NodeState::Synchronized);
        fails(&mut world, errors);
    }
    let view = world.node("b");
    assert_eq!(view.state, NodeState::Diverged);
    assert!(view.error_message.unwrap().contains("keeps failing"));
    for _ in 0..20 {
        fails(&mut world, 3);
    }
    assert_eq!(world.state("b"), NodeState::Synchronized);
}

#[test]
fn a_slot_that_is_lost_does_not_come_back_with_the_columns() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b"]);
    let job = synchronized(&mut world, SchemaMode::Strict);
    world.observe_columns(job, "same", "same");
    let lost = Observed {
        postgres: Some(Ok(180_000)),
        slots: vec![slot(job, "lost")],
        ..Observed::default()
    };
    world.say("a", AgentMessage::Observed(lost.clone()));
    world.say("a", AgentMessage::Observed(lost));
    let healthy = Observed {
        postgres: Some(Ok(180_000)),
        subscriptions: vec![subscription(job, true)],
        ..Observed::default()
    };
    world.say("b", AgentMessage::Observed(healthy));
    assert_eq!(world.state("b"), NodeState::Diverged);
}

#[test]
fn a_schema_is_read_page_by_page_and_fingerprints_are_stored_with_a_peers() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b"]);
    let page = |world: &mut World, cursor| {
        let question = Question::Schema {
            node: node("a"),
            filter: TableFilter::default(),
            cursor,
        };
        let mut answer = world.ask_later(question);
        world.run_on();
        match answer.try_recv().unwrap().unwrap() {
            Answer::Schema { next, .. } => next,
            other => panic!("{other:?}"),
        }
    };
    let next = page(&mut world, None);
    assert!(next.is_some());
    assert_eq!(page(&mut world, next), None);

    let capture = |world: &mut World, peer: Option<&str>| {
        let question = Question::Capture {
            node: node("b"),
            peer: peer.map(node),
            operator: operator(),
        };
        let mut answer = world.ask_later(question);
        world.run_on();
        answer.try_recv().unwrap()
    };
    for peer in [None, Some("a")] {
        let stored = capture(&mut world, peer);
        assert!(
            matches!(stored, Ok(Answer::Captured { tables: 3 })),
            "{stored:?}"
        );
    }
    for peer in ["b", "nobody"] {
        let refused = capture(&mut world, Some(peer)).unwrap_err();
        assert_eq!(refused.kind, FaultKind::BadRequest);
    }
    // It writes on the node, so it is in the trail, refused or not.
    let query = EventQuery {
        node: Some(node("b")),
        after: 0,
        limit: 100,
    };
    let trail = world.driver.store.audit(&query).unwrap();
    let captures = trail.iter().filter(|wish| wish.action == "schema.capture");
    let captures: Vec<_> = captures
        .map(|wish| {
            (
                wish.operator.as_str(),
                wish.arguments.len(),
                wish.refused.is_some(),
            )
        })
        .collect();
    let wanted = [
        ("dba", 0, false),
        ("dba", 1, false),
        ("dba", 1, true),
        ("dba", 1, true),
    ];
    assert_eq!(captures, wanted);
    // An agent that goes away leaves nobody waiting.
    let question = Question::Capture {
        node: node("b"),
        peer: None,
        operator: operator(),
    };
    let mut answer = world.ask_later(question);
    world.leave("b");
    assert_eq!(
        answer.try_recv().unwrap().unwrap_err().kind,
        FaultKind::Unreachable
    );
}
