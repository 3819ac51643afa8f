//! Claims about switchovers: their steps reach the right agents, survive restarts, and keep others away.

use steep_protocol::message::agent::{AgentMessage, NodeCommand};
use steep_protocol::message::api::{AbsentSource, ApiReply, DetachSpec, Order, Query};
use steep_protocol::message::lineage::{Lineage, WritesMoved};
use steep_protocol::message::switchover::{
    Lacking, RowsCheck, SwitchoverCommand, SwitchoverSpec, SwitchoverStep, SwitchoverView, WayBack,
    WriteState,
};
use steep_protocol::{Fault, FaultKind, NodeState};
use tokio::sync::watch;

use super::world::*;
use super::*;
use crate::drive::Answer;
use crate::testing::{node, spec};

fn wanted(way_back: WayBack) -> SwitchoverSpec {
    SwitchoverSpec {
        from: node("a"),
        to: node("b"),
        way_back,
        rows: RowsCheck::Skipped,
        terminate_after_seconds: 30,
        max_stop_seconds: 60,
        max_lag: ByteCount(1_000),
        lacking: Lacking::Refused,
    }
}

/// Begins one, and runs the agents until it has been accepted.
fn begin(world: &mut World, spec: SwitchoverSpec) -> watch::Receiver<SwitchoverView> {
    let way_back = spec.way_back;
    let mut answer = world.ask_later(Order::Switchover(Box::new(spec)));
    if way_back == WayBack::Follow {
        // Whether the old node can follow is looked at first.
        for (name, look) in [("b", "gather_source"), ("a", "gather_target")] {
            world.until(name, |command| command.policy().name == look);
            world.end_one(name, None);
        }
    }
    world.until("a", |command| {
        command.policy().name == "look_before_switchover"
    });
    world.end_one("a", None);
    world.until("b", |command| {
        command.policy().name == "look_before_switchover"
    });
    world.end_one("b", None);
    match answer.try_recv().unwrap() {
        Ok(Answer::Switching(feed)) => feed,
        other => panic!("{other:?}"),
    }
}

fn told(world: &mut World, name: &str, from: usize) -> Vec<&'static str> {
    let history = &world.agent(name).history[from..];
    let names = history.iter().map(|(_, command)| command.policy().name);
    names.filter(|name| *name != "release_source").collect()
}

fn is(command: &Command, wanted: &SwitchoverCommand) -> bool {
    matches!(command, Command::Node(NodeCommand::Switchover(command)) if command == wanted)
}

/// Runs agents and clock until it has ended.
fn finish(world: &mut World, feed: &watch::Receiver<SwitchoverView>) -> SwitchoverView {
    for _ in 0..30 {
        world.run_on();
        world.skip(1);
        if feed.borrow().step.is_over() {
            return feed.borrow().clone();
        }
    }
    panic!("{:?}", feed.borrow());
}

#[test]
fn writes_move_and_the_new_node_is_detached() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b"]);
    synchronized_pair(&mut world);
    let before = (
        world.agent("a").history.len(),
        world.agent("b").history.len(),
    );
    let feed = begin(&mut world, wanted(WayBack::None));
    let view = finish(&mut world, &feed);
    assert_eq!(view.step, SwitchoverStep::Completed);
    assert_eq!(view.writable, Some(node("b")));
    assert_eq!(
        told(&mut world, "a", before.0),
        [
            "look_before_switchover",
            "stop_writes",
            "await_fence",
            "admit_replicated",
            "decide_switchover",
            "admit_replicated",
            "admit",
            "cleanup_source"
        ]
    );
    assert_eq!(
        told(&mut world, "b", before.1),
        [
            "look_before_switchover",
            "close_database",
            "raise_sequences",
            "prove_open",
            "raise_sequences",
            "open_database",
            "cleanup_target"
        ]
    );
    let node_b = world.node("b");
    assert_eq!(node_b.detached.unwrap().source_node, node("a"));
    assert_eq!(node_b.switchover.unwrap().step, SwitchoverStep::Completed);
    assert_eq!(count(&mut world, "switchover.completed"), 1);

    // Given again, it has happened.
    let again = world
        .ask_later(Order::Switchover(Box::new(wanted(WayBack::None))))
        .try_recv();
    assert!(matches!(again, Ok(Ok(Answer::Switching(_)))), "{again:?}");
    // Known after a restart.
    let mut world = world.restart(directory.path());
    assert_eq!(
        world.node("a").switchover.unwrap().step,
        SwitchoverStep::Completed
    );
}

#[test]
fn a_fault_gives_writes_back_and_so_does_an_operator_who_leaves() {
    for left in [false, true] {
        let directory = directory();
        let mut world = World::open(directory.path(), &["a", "b"]);
        synchronized_pair(&mut world);
        let feed = begin(&mut world, wanted(WayBack::None));
        world.until("a", |command| command.policy().name == "await_fence");
        let observer = feed.clone();
        if left {
            drop(feed);
            drop(observer);
            world.skip(1);
        } else {
            world.end_one("a", Some(Fault::new(FaultKind::Failed, "no such luck")));
        }
        for _ in 0..10 {
            world.run_on();
            world.skip(1);
        }
        let view = world.node("a").switchover.unwrap();
        assert_eq!(view.step, SwitchoverStep::Undone);
        let why = view.fault.unwrap().message;
        let said = if left { "nobody waits" } else { "no such luck" };
        assert!(why.contains(said), "{why}");
        for name in ["a", "b"] {
            let stop = world.agent(name).write_stop.unwrap().1;
            assert!(matches!(stop, WriteState::Open { .. }), "{stop:?}");
        }
        assert_eq!(world.state("b"), NodeState::Synchronized);
        assert_eq!(count(&mut world, "switchover.undone"), 1);
    }
}

#[test]
fn a_restarted_coordinator_undoes_what_is_not_decided_and_ends_what_is() {
    for decided in [false, true] {
        let directory = directory();
        let mut world = World::open(directory.path(), &["a", "b"]);
        synchronized_pair(&mut world);
        let _feed = begin(&mut world, wanted(WayBack::None));
        world.until("a", |command| is(command, &SwitchoverCommand::Decide));
        // Its outcome does not arrive any more.
        if decided {
            let job = world.node("a").switchover.unwrap().switchover_id;
            world.agent("a").write_stop = Some((job, WriteState::Final));
        }
        let mut world = world.restart(directory.path());
        world.agent("a").at_work.clear();
        world.join("a");
        world.join("b");
        for _ in 0..20 {
            world.run_on();
            world.skip(1);
        }
        let view = world.node("b").switchover.unwrap();
        let stop = world.agent("b").write_stop.unwrap().1;
        assert!(matches!(stop, WriteState::Open { .. }), "{stop:?}");
        match decided {
            false => {
                assert_eq!(view.step, SwitchoverStep::Undone);
                assert_eq!(world.state("b"), NodeState::Synchronized);
            }
            true => {
                assert_eq!(view.step, SwitchoverStep::Completed);
                assert_eq!(world.state("b"), NodeState::Uninitialized);
            }
        }
    }
}

#[test]
fn meanwhile_other_orders_about_its_nodes_are_refused_and_the_same_one_joins() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b", "c"]);
    synchronized_pair(&mut world);
    let feed = begin(&mut world, wanted(WayBack::None));
    let detach = Order::Detach(DetachSpec {
        node: node("b"),
        wait_seconds: None,
        absent: AbsentSource::Refuse,
    });
    for refused in [
        detach,
        Order::Init(steep_protocol::message::api::InitRequest::Copy(vec![spec(
            "a", "c",
        )])),
    ] {
        let answer = world.ask_later(refused).try_recv();
        let fault = answer.unwrap().unwrap_err();
        assert!(fault.message.contains("is under way"), "{fault}");
    }
    let other = SwitchoverSpec {
        to: node("c"),
        ..wanted(WayBack::None)
    };
    let fault = world
        .ask_later(Order::Switchover(Box::new(other)))
        .try_recv();
    assert!(fault.unwrap().unwrap_err().message.contains("is under way"));
    let joined = world
        .ask_later(Order::Switchover(Box::new(wanted(WayBack::None))))
        .try_recv();
    let Ok(Ok(Answer::Switching(joined))) = joined else {
        panic!("{joined:?}")
    };
    // One of two operators may leave.
    drop(feed);
    assert_eq!(finish(&mut world, &joined).step, SwitchoverStep::Completed);
    assert_eq!(count(&mut world, "switchover.started"), 1);
}

#[test]
fn what_cannot_take_over_is_refused_by_name() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b", "c"]);
    let order = |from: &str, to: &str| {
        let (from, to) = (node(from), node(to));
        Order::Switchover(Box::new(SwitchoverSpec {
            from,
            to,
            ..wanted(WayBack::None)
        }))
    };
    let refused = |world: &mut World, order: Order| {
        world
            .ask_later(order)
            .try_recv()
            .unwrap()
            .unwrap_err()
            .to_string()
    };
    assert!(refused(&mut world, order("a", "b")).contains("does not follow a"));
    synchronized_pair(&mut world);
    assert!(refused(&mut world, order("a", "a")).contains("two nodes"));
    assert!(refused(&mut world, order("a", "x")).contains("no node is called x"));
    assert!(refused(&mut world, order("c", "b")).contains("it follows a, not c"));
    assert!(refused(&mut world, order("b", "a")).contains("does not follow b"));
    let spec = SwitchoverSpec {
        max_stop_seconds: 30,
        ..wanted(WayBack::None)
    };
    let short = refused(&mut world, Order::Switchover(Box::new(spec)));
    assert!(short.contains("less time"), "{short}");
    let spec = SwitchoverSpec {
        max_lag: ByteCount(76),
        ..wanted(WayBack::None)
    };
    let mut plan = world.ask_later(Query::SwitchoverPlan(Box::new(spec.clone())));
    let mut late = world.ask_later(Order::Switchover(Box::new(spec)));
    world.run_on();
    let plan = replies(plan.try_recv().unwrap());
    let [ApiReply::Findings { findings, .. }] = &plan[..] else {
        panic!("{plan:?}")
    };
    assert_eq!(findings[0].code, "lag");
    let fault = late.try_recv().unwrap().unwrap_err();
    assert!(fault.message.contains("77 bytes of WAL"), "{fault}");
    assert_eq!(world.agent("a").write_stop, None);
    world.leave("a");
    let away = refused(&mut world, order("a", "b"));
    assert!(away.contains("offline"), "{away}");
}

#[test]
fn with_a_way_back_the_old_node_follows_from_the_position_before_the_new_one_took_writes() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b"]);
    synchronized_pair(&mut world);
    let feed = begin(&mut world, wanted(WayBack::Follow));
    let view = finish(&mut world, &feed);
    assert_eq!(
        (view.step, view.warnings),
        (SwitchoverStep::Completed, Vec::new())
    );
    assert_eq!(world.state("a"), NodeState::Synchronized);
    assert_eq!(world.node("a").source_node, Some(node("b")));
    let history = world.agent("a").history.clone();
    let start = history.iter().find_map(|(_, command)| match command {
        Command::Target(TargetCommand::Subscribe { start, .. }) => Some(*start),
        _ => None,
    });
    let origin = steep_protocol::message::agent::SubscriptionStart::AtOrigin(Lsn(11));
    assert_eq!(start, Some(origin));
}

#[test]
fn a_way_back_that_fails_is_told_and_what_is_left_of_it_goes_with_the_cancel() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b"]);
    synchronized_pair(&mut world);
    let feed = begin(&mut world, wanted(WayBack::Follow));
    // It begins once the agent has seen that the subscription is gone.
    for _ in 0..30 {
        let mut told = world.agent("b").at_work.values();
        if told.any(|(_, command)| command.policy().name == "gather_handover") {
            break;
        }
        if world.end_one("a", None).is_none() && world.end_one("b", None).is_none() {
            world.skip(1);
        }
    }
    world.end_one("b", Some(Fault::new(FaultKind::Failed, "no such luck")));
    let view = finish(&mut world, &feed);
    assert_eq!(view.step, SwitchoverStep::Completed);
    let fault = view.fault.unwrap();
    assert!(fault.message.contains("no way back: "), "{fault}");
    let slot = format!("steep_switchover_{}", view.switchover_id);
    for said in [
        "init complete --node a --source b",
        "--source-lsn 0/B",
        slot.as_str(),
    ] {
        assert!(fault.hint.contains(said), "{}", fault.hint);
    }
    assert_eq!(world.state("a"), NodeState::Failed);
    let before = world.agent("b").history.len();
    let cancel = Order::Cancel {
        node: node("a"),
        data: steep_protocol::message::job::CancelledData::Remove,
    };
    assert!(matches!(world.ask(cancel), Ok(Answer::Replies(_))));
    world.skip(1);
    world.run_on();
    assert!(told(&mut world, "b", before).contains(&"cleanup_source"));
    assert_eq!(count(&mut world, "node.left_removed"), 1);
    assert_eq!(world.state("a"), NodeState::Uninitialized);
}

/// The lineage of the node that writes have moved away from.
fn moved(switchover: JobId, read_only: bool) -> AgentMessage {
    AgentMessage::Lineage(Box::new(Lineage {
        moved: Some(WritesMoved {
            switchover,
            read_only,
            database: "app".to_owned(),
        }),
        ..Lineage::default()
    }))
}

#[test]
fn a_setting_of_the_old_node_that_somebody_lifts_is_told_once_and_warned_of_until_it_is_back() {
    for way_back in [WayBack::None, WayBack::Follow] {
        let directory = directory();
        let mut world = World::open(directory.path(), &["a", "b"]);
        synchronized_pair(&mut world);
        let feed = begin(&mut world, wanted(way_back));
        let id = finish(&mut world, &feed).switchover_id;
        let events = |world: &mut World| {
            let names = ["read_only_lifted", "read_only_restored"];
            names.map(|name| count(world, &format!("switchover.{name}")))
        };
        let lifted = |world: &mut World| {
            let node = world.node("a");
            let said = node
                .warnings
                .iter()
                .any(|w| w.contains("no longer read-only"));
            assert_eq!(said, node.switchover.unwrap().lifted);
            said
        };
        world.say("a", moved(id, true));
        assert!(!lifted(&mut world));
        for _ in 0..2 {
            world.say("a", moved(id, false));
            assert!(lifted(&mut world));
        }
        assert_eq!(events(&mut world), [1, 0]);
        // Known after a restart, and no news then.
        let mut world = world.restart(directory.path());
        assert!(lifted(&mut world));
        world.join("a");
        world.join("b");
        world.say("a", moved(id, false));
        assert_eq!(events(&mut world), [1, 0]);
        world.say("a", moved(id, true));
        assert!(!lifted(&mut world));
        world.say("a", moved(id, false));
        assert_eq!(events(&mut world), [2, 1]);
        // Another switchover's is no business of this one.
        world.say("a", moved(JobId(id.0 + 1), false));
        assert!(!lifted(&mut world));
    }
}
