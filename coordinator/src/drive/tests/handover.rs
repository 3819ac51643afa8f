//! Claims about nodes made from a backup: which slot, which commands, the slot's fate.

use steep_protocol::message::agent::AgentMessage;
use steep_protocol::message::api::{ApiReply, InitRequest, Order, Query};
use steep_protocol::message::handover::{
    CompleteSpec, PrepareSpec, PreparedSlot, PreparedState, SchemaCheck, SlotName,
};
use steep_protocol::message::job::Method;
use steep_protocol::{JobId, Lsn, NodeState};

use super::super::*;
use super::directory;
use super::drift::{lost_column, observe_for_long};
use super::world::{World, prepared, replies};
use crate::testing::{node, spec};

pub(super) const REPLICATION: JobId = JobId(0x77);

fn backup(slot: Option<&str>) -> CompleteSpec {
    let mut job = spec("a", "b");
    job.method = Method::Backup;
    CompleteSpec {
        job,
        slot: slot.map(|name| SlotName::parse(name).unwrap()),
        source_lsn: Lsn(8),
        schema: SchemaCheck::Compared,
    }
}

fn complete(spec: CompleteSpec) -> Order {
    Order::Init(InitRequest::Complete(Box::new(spec)))
}

fn begun(world: &mut World) -> JobId {
    match world.ask(complete(backup(None))).unwrap() {
        Answer::Accepted { jobs, .. } => jobs[0].job,
        other => panic!("{other:?}"),
    }
}

fn told(world: &World, name: &str) -> Vec<&'static str> {
    let history = world.agents[&node(name)].history.iter();
    history.map(|(_, command)| command.policy().name).collect()
}

#[test]
fn a_hand_over_goes_on_from_the_only_prepared_slot_and_follows_by_its_name() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b"]);
    let mut silent = world.ask_later(complete(backup(None)));
    world.skip(4);
    assert!(silent.try_recv().is_err(), "it waits for the agent");
    world.skip(2);
    let unknown = silent.try_recv().unwrap().unwrap_err();
    assert!(unknown.message.contains("not reported yet"), "{unknown:?}");
    let mut early = world.ask_later(complete(backup(Some("tuesday"))));
    world.say("a", AgentMessage::Prepared(vec![prepared(REPLICATION)]));
    world.skip(1);
    let missing = early.try_recv().unwrap().unwrap_err();
    assert!(missing.message.contains("no slot tuesday"), "{missing:?}");
    world.say("a", AgentMessage::Prepared(vec![prepared(REPLICATION)]));
    let missing = world.ask(complete(backup(Some("tuesday")))).unwrap_err();
    assert!(missing.message.contains("no slot tuesday"), "{missing:?}");
    assert!(missing.hint.contains("monday"), "{missing:?}");

    let specs = vec![spec("a", "b")];
    let mut doctor = world.ask_later(Query::Doctor(InitRequest::Copy(specs)));
    world.run_on();
    match &replies(doctor.try_recv().unwrap())[..] {
        [ApiReply::Findings { findings, .. }] => assert_eq!(findings[0].code, "prepared_slot"),
        other => panic!("{other:?}"),
    }
    let looked = world.agents[&node("a")].history.len();

    let job = begun(&mut world);
    assert_ne!(job, REPLICATION);
    world.run_on();
    assert_eq!(world.state("b"), NodeState::Synchronized);
    let source = [
        "gather_handover",
        "take_slot",
        "await_fence",
        "release_source",
    ];
    assert_eq!(told(&world, "a")[looked..], source);
    let target = [
        "gather_target",
        "match_schema",
        "subscribe",
        "finish",
        "release_target",
    ];
    assert_eq!(told(&world, "b")[1..], target);

    // Slot, subscription and digests have the preparation's id.
    world.observe_columns(REPLICATION, "same", "same");
    assert_eq!(world.state("b"), NodeState::Synchronized);
    assert_eq!(world.node("b").wal_held_bytes, Some(99));
    for _ in 0..4 {
        world.observe("a", None, None);
    }
    assert_eq!(world.state("b"), NodeState::Diverged);
    let mut cancel = world.cancel("b");
    world.run_on();
    assert!(cancel.try_recv().unwrap().is_ok());
    assert_eq!(told(&world, "a").last(), Some(&"cleanup_source"));
}

#[test]
fn differences_of_an_unchecked_schema_are_no_drift_and_later_ones_are() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b"]);
    world.say("a", AgentMessage::Prepared(vec![prepared(REPLICATION)]));
    let mut spec = backup(None);
    spec.schema = SchemaCheck::Skipped;
    world.ask(complete(spec)).unwrap();
    world.run_on();
    world.review = lost_column();
    observe_for_long(&mut world, REPLICATION, "with", "without");
    assert_eq!(world.state("b"), NodeState::Synchronized);
    // Later differences are drift and are named.
    world.review.differences[0].name = Some("d".to_owned());
    observe_for_long(&mut world, REPLICATION, "other", "without");
    let view = world.node("b");
    assert_eq!(view.state, NodeState::Diverged);
    assert!(view.error_message.unwrap().contains("column d"));
}

#[test]
fn a_slot_serves_one_job_and_is_given_back_by_one_that_is_cancelled() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b", "c"]);
    world.say("a", AgentMessage::Prepared(vec![prepared(REPLICATION)]));
    let job = begun(&mut world);
    let mut spec = backup(None);
    spec.job.target = node("c");
    let busy = world.ask(complete(spec)).unwrap_err();
    assert!(busy.message.contains(&job.to_string()), "{busy:?}");

    world.until("b", |command| command.policy().name == "match_schema");
    let mut taken = prepared(REPLICATION);
    taken.state = PreparedState::Taken(node("b"));
    world.say("a", AgentMessage::Prepared(vec![taken]));
    let mut cancel = world.cancel("b");
    world.run_on();
    assert!(cancel.try_recv().unwrap().is_ok());
    assert_eq!(world.state("b"), NodeState::Uninitialized);
    assert_eq!(told(&world, "a").last(), Some(&"return_slot"));
    // Before the source's agent has reported its slots again.
    begun(&mut world);
}

#[test]
fn init_refuses_the_method_backup_and_complete_any_other() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b"]);
    let refused = world.init(vec![backup(None).job]).unwrap_err();
    assert!(refused.message.contains("init complete"), "{refused:?}");
    world.say("a", AgentMessage::Prepared(Vec::new()));
    let mut spec = backup(None);
    spec.job.method = Method::Snapshot;
    let refused = world.ask(complete(spec));
    assert!(refused.unwrap_err().message.contains("backup"));
}

#[test]
fn a_slot_is_prepared_where_the_source_allows_it_and_known_at_once() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b"]);
    let prepare = |slot: &str, seconds| {
        Order::Prepare(PrepareSpec {
            node: node("a"),
            slot: SlotName::parse(slot).unwrap(),
            expires_seconds: seconds,
        })
    };
    assert!(world.ask(prepare("steep_repl_x", 60)).is_err());
    assert!(world.ask(prepare("monday", 0)).is_err());
    // The default facts are those of a server that is too old.
    let mut refused = world.ask_later(prepare("monday", 60));
    world.run_on();
    let fault = refused.try_recv().unwrap().unwrap_err();
    assert!(fault.message.contains("cannot be prepared"), "{fault:?}");
    assert_eq!(told(&world, "a"), ["gather_source", "release_source"]);
    world.say(
        "a",
        AgentMessage::SlotExpired {
            slot: SlotName::parse("monday").unwrap(),
        },
    );
    let events = world.events("a");
    let expired = events.iter().find(|e| e.event == "init.slot_expired");
    assert_eq!(expired.unwrap().level, "warn");
    let lost = PreparedSlot {
        state: PreparedState::Lost("somebody dropped it".to_owned()),
        ..prepared(REPLICATION)
    };
    world.say("a", AgentMessage::Prepared(vec![lost]));
    let none = world.ask(complete(backup(None))).unwrap_err();
    assert!(none.hint.contains("lost: somebody dropped it"), "{none:?}");
}

#[test]
fn an_agent_cannot_fill_the_history_with_slots_that_have_expired() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b"]);
    for name in ["a", "b"] {
        for number in 0..100 {
            let slot = SlotName::parse(format!("slot_{number}")).unwrap();
            world.say(name, AgentMessage::SlotExpired { slot });
        }
    }
    for name in ["a", "b"] {
        let events = world.events(name);
        let expired = events.iter().filter(|e| e.event == "init.slot_expired");
        let count = expired.count();
        assert!((1..50).contains(&count), "{count} events");
    }
}
