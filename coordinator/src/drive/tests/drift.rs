//! Claims about columns that differ from the source's, failing subscriptions, and their repair.

use steep_protocol::message::agent::{
    AgentMessage, Command, Observed, SourceCommand, TargetCommand,
};
use steep_protocol::message::api::{ApiReply, Order};
use steep_protocol::message::job::{SchemaMode, TableFilter};
use steep_protocol::message::schema::{Change, SchemaDifference, SchemaReview, Subject};
use steep_protocol::{FaultKind, JobId, NodeState, TableName};

use super::super::*;
use super::world::{World, replies};
use super::{carried, directory, slot, subscription};
use crate::store::EventQuery;
use crate::testing::{node, spec};

fn synchronized(world: &mut World, mode: SchemaMode) -> JobId {
    let mut wanted = spec("a", "b");
    wanted.schema_mode = mode;
    let job = world.init(vec![wanted]).unwrap()[0].job;
    world.run_on();
    assert_eq!(world.state("b"), NodeState::Synchronized);
    job
}

pub(super) fn lost_column() -> SchemaReview {
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

fn changed_column(name: &str) -> SchemaDifference {
    SchemaDifference {
        table: Some(TableName::new("app", "t").unwrap()),
        subject: Subject::Column,
        name: Some(name.to_owned()),
        change: Change::Type,
        local: "bigint".to_owned(),
        remote: "integer".to_owned(),
    }
}

fn review(differences: Vec<SchemaDifference>) -> SchemaReview {
    SchemaReview {
        differences_total: differences.len() as u64,
        differences,
        ..SchemaReview::default()
    }
}

/// Observes digests and runs the comparison if one is due; then again after the grace time.
pub(super) fn observe_for_long(world: &mut World, job: JobId, source: &str, target: &str) {
    world.observe_columns(job, source, target);
    world.run_on();
    world.skip(61);
    world.observe_columns(job, source, target);
    world.run_on();
}

fn compared(world: &World) -> usize {
    let told = &world.agents[&node("b")].history;
    told.iter()
        .filter(|(_, c)| c.policy().name == "compare_replicated")
        .count()
}

fn reason(world: &mut World) -> String {
    world.node("b").error_message.unwrap_or_default()
}

#[test]
fn columns_that_drift_are_named_and_their_repair_is_noticed() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b"]);
    let job = synchronized(&mut world, SchemaMode::Strict);
    world.observe_columns(job, "same", "same");
    assert_eq!(world.state("b"), NodeState::Synchronized);

    world.review = lost_column();
    observe_for_long(&mut world, job, "new", "same");
    let view = world.node("b");
    assert_eq!(view.state, NodeState::Diverged);
    let reason = view.error_message.unwrap();
    assert!(
        reason.contains("column c of app.t is missing on b"),
        "{reason}"
    );
    let events = world.events("b");
    let named = events.iter();
    let named = named.filter(|e| e.event == "schema.mismatch_detected");
    assert_eq!(named.count(), 1);
    // The source's permissions for the comparisons are revoked.
    let told = |command: &Command| {
        world.agents[&node("a")]
            .history
            .iter()
            .filter(|(_, c)| c.policy() == command.policy())
            .count()
    };
    let admit = Command::Source(SourceCommand::Admit {
        target: node("b"),
        filter: TableFilter::default(),
        replicated: Some(job),
    });
    assert_eq!(
        (told(&admit), told(&Command::Source(SourceCommand::Release))),
        (2, 3),
        "the job's own, and one for each comparison"
    );

    world.observe_columns(job, "new", "new");
    let view = world.node("b");
    assert_eq!(
        (view.state, view.error_message),
        (NodeState::Synchronized, None)
    );
}

#[test]
fn what_has_been_judged_is_not_compared_again_until_a_digest_changes() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b"]);
    let job = synchronized(&mut world, SchemaMode::Strict);
    world.review = lost_column();
    observe_for_long(&mut world, job, "new", "old");
    assert_eq!(
        (world.state("b"), compared(&world)),
        (NodeState::Diverged, 2)
    );
    for _ in 0..100 {
        world.skip(60);
        world.observe_columns(job, "new", "old");
        world.run_on();
    }
    assert_eq!(compared(&world), 2);
    world.observe_columns(job, "newer", "old");
    world.run_on();
    assert_eq!(compared(&world), 3);
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
    assert_eq!(
        compared(&world),
        1,
        "the same pair is not compared every second"
    );
    world.review = lost_column();
    world.skip(61);
    observe_for_long(&mut world, job, "new", "old");
    assert_eq!(world.state("b"), NodeState::Diverged);
}

#[test]
fn a_change_made_on_both_ends_within_a_minute_moves_nothing() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b"]);
    let job = synchronized(&mut world, SchemaMode::Strict);
    world.observe_columns(job, "old", "old");
    world.review = lost_column();
    world.observe_columns(job, "new", "old");
    world.run_on();
    world.skip(59);
    world.review = SchemaReview::default();
    world.observe_columns(job, "new", "new");
    let events = world.events("b");
    let mut changes = events.iter().filter(|e| e.event == "init.state_change");
    let last = changes.next_back().unwrap();
    assert!(
        last.fields
            .contains(&("to".to_owned(), "synchronized".to_owned()))
    );
    assert!(!events.iter().any(|e| e.event == "schema.mismatch_detected"));
}

#[test]
fn the_first_drift_after_auto_or_manual_is_drift() {
    for mode in [SchemaMode::Auto, SchemaMode::Manual] {
        let directory = directory();
        let mut world = World::open(directory.path(), &["a", "b"]);
        let job = synchronized(&mut world, mode);
        world.observe_columns(job, "same", "same");
        world.review = lost_column();
        observe_for_long(&mut world, job, "new", "same");
        assert_eq!(world.state("b"), NodeState::Diverged, "{mode:?}");
    }
    // Auto accepts another order of columns.
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b"]);
    let job = synchronized(&mut world, SchemaMode::Auto);
    let mut order = changed_column("moved");
    order.change = Change::Order;
    world.review = review(vec![order.clone()]);
    observe_for_long(&mut world, job, "one", "other");
    assert_eq!(world.state("b"), NodeState::Synchronized);
    world.review = review(vec![order, changed_column("c")]);
    observe_for_long(&mut world, job, "one", "another");
    assert_eq!(world.state("b"), NodeState::Diverged);
    assert!(reason(&mut world).contains("column c"));
}

#[test]
fn differences_that_were_accepted_stay_accepted_over_restarts_and_later_changes() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b"]);
    let job = synchronized(&mut world, SchemaMode::Manual);
    world.review = review(vec![changed_column("c")]);
    observe_for_long(&mut world, job, "one", "other");
    assert_eq!(world.state("b"), NodeState::Synchronized);
    let mut world = world.restart(directory.path());
    for name in ["a", "b"] {
        world.join(name);
    }
    observe_for_long(&mut world, job, "one", "other");
    assert_eq!(world.state("b"), NodeState::Synchronized);
    // A column is added on both ends: other digests, the same difference.
    observe_for_long(&mut world, job, "one more", "other more");
    observe_for_long(&mut world, job, "one more", "other more");
    assert_eq!(world.state("b"), NodeState::Synchronized);
    let until_now = compared(&world);
    observe_for_long(&mut world, job, "one more", "other more");
    assert_eq!(compared(&world), until_now);
    // A node that was diverged for another cause recovers with the accepted difference.
    for _ in 0..3 {
        world.observe("b", None, Some(subscription(job, false)));
    }
    assert_eq!(world.state("b"), NodeState::Diverged);
    world.observe_columns(job, "one more", "other more");
    assert_eq!(world.state("b"), NodeState::Synchronized);

    world.review = review(vec![changed_column("c"), changed_column("d")]);
    observe_for_long(&mut world, job, "one", "another");
    assert_eq!(world.state("b"), NodeState::Diverged);
    let reason = reason(&mut world);
    assert!(
        reason.contains("column d") && !reason.contains("column c"),
        "{reason}"
    );
}

#[test]
fn every_cause_is_told_and_the_reason_follows_them() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b"]);
    let job = synchronized(&mut world, SchemaMode::Strict);
    world.observe_columns(job, "same", "same");
    world.review = lost_column();
    observe_for_long(&mut world, job, "new", "same");
    assert!(reason(&mut world).contains("column c"));
    let disable = |world: &mut World| {
        let digests = world
            .driver
            .registry
            .get(&node("b"))
            .unwrap()
            .observed
            .digests
            .clone();
        for _ in 0..3 {
            let observed = Observed {
                postgres: Some(Ok(180_000)),
                subscriptions: vec![subscription(job, false)],
                digests: digests.clone(),
                ..Observed::default()
            };
            world.say("b", AgentMessage::Observed(observed));
        }
    };
    disable(&mut world);
    let both = reason(&mut world);
    assert!(
        both.contains("column c") && both.contains("disabled"),
        "{both}"
    );
    world.observe_columns(job, "new", "same");
    let one = reason(&mut world);
    assert!(
        one.contains("column c") && !one.contains("disabled"),
        "{one}"
    );
    disable(&mut world);
    for _ in 0..3 {
        world.observe("b", None, Some(subscription(job, false)));
    }
    let events = world.events("b");
    let count = |name: &str| events.iter().filter(|e| e.event == name).count();
    assert_eq!(count("init.reason_changed"), 3);
    assert_eq!(count("schema.mismatch_detected"), 1);
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
            carried: carried(job),
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
        world.skip(1);
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
fn differences_that_only_the_preparing_target_finds_are_told_as_well() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b"]);
    world.init(vec![spec("a", "b")]).unwrap();
    world.until("b", |c| {
        matches!(c, Command::Target(TargetCommand::Prepare(_)))
    });
    let fault = Fault::new(FaultKind::SchemaMismatch, "the schema differs");
    world.end_one("b", Some(fault));
    world.run_on();
    let events = world.events("b");
    let told = events.iter();
    let told = told.filter(|e| e.event == "schema.mismatch_detected");
    assert_eq!(told.count(), 1);
}

#[test]
fn a_slot_or_subscription_that_was_gone_stays_gone_when_it_is_made_again() {
    for gone in ["slot", "subscription"] {
        let directory = directory();
        let mut world = World::open(directory.path(), &["a", "b"]);
        let job = synchronized(&mut world, SchemaMode::Strict);
        world.observe_columns(job, "same", "same");
        for _ in 0..3 {
            match gone {
                "slot" => world.observe("a", None, None),
                _ => world.observe("b", None, None),
            }
        }
        assert_eq!(world.state("b"), NodeState::Diverged, "{gone}");
        for _ in 0..40 {
            world.observe_columns(job, "same", "same");
        }
        assert_eq!(world.state("b"), NodeState::Diverged, "{gone}");
        let mut world = world.restart(directory.path());
        for name in ["a", "b"] {
            world.join(name);
        }
        for _ in 0..40 {
            world.observe_columns(job, "same", "same");
        }
        let view = world.node("b");
        assert_eq!(view.state, NodeState::Diverged, "{gone}");
        assert!(view.error_message.unwrap().contains(gone));
        // Only a cancel or another job ends that.
        let mut answer = world.cancel("b");
        world.run_on();
        assert_eq!(replies(answer.try_recv().unwrap()), []);
        let job = synchronized(&mut world, SchemaMode::Strict);
        world.observe_columns(job, "same", "same");
        assert_eq!(world.state("b"), NodeState::Synchronized);
    }
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
        let question = Order::Capture {
            node: node("b"),
            peer: peer.map(node),
        };
        let mut answer = world.ask_later(question);
        world.run_on();
        answer.try_recv().unwrap()
    };
    for peer in [None, Some("a")] {
        let stored = replies(capture(&mut world, peer));
        assert_eq!(stored, [ApiReply::Captured { tables: 3 }]);
    }
    for peer in ["b", "nobody"] {
        let refused = capture(&mut world, Some(peer)).unwrap_err();
        assert_eq!(refused.kind, FaultKind::BadRequest);
    }
    // It writes on the node, so it is audited, even if refused.
    let query = EventQuery {
        node: Some(node("b")),
        after: 0,
        limit: 100,
    };
    let trail = world.driver.store.audit(&query).unwrap();
    let captures = trail
        .iter()
        .filter(|entry| entry.action == "schema.capture");
    let captures: Vec<_> = captures
        .map(|entry| {
            (
                entry.operator.as_str(),
                entry.arguments.len(),
                entry.refused.is_some(),
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
    // The operator is answered when the agent disconnects.
    let question = Order::Capture {
        node: node("b"),
        peer: None,
    };
    let mut answer = world.ask_later(question);
    world.leave("b");
    assert_eq!(
        answer.try_recv().unwrap().unwrap_err().kind,
        FaultKind::Unreachable
    );
}
