//! Claims about who is a node's agent, unreachable nodes, and replicas that the coordinator does not
//! remember.

use steep_protocol::NodeState;
use steep_protocol::message::agent::{AgentMessage, Observed, Seat};
use steep_protocol::message::api::{Afterwards, ApiReply, Order};
use steep_protocol::message::job::{CancelledData, ReplicationNames};
use steep_protocol::message::lineage::{
    ChangeOrigin, Identity, Lineage, MirroredNode, SubscriptionSeen, Tool,
};

use super::world::*;
use super::*;

fn lineage(system: u64) -> Lineage {
    Lineage {
        identity: Some(Identity {
            system,
            database: 5,
            timeline: 1,
            started: 100,
        }),
        ..Lineage::default()
    }
}

fn tell(world: &mut World, name: &str, lineage: Lineage) {
    world.say(name, AgentMessage::Lineage(Box::new(lineage)));
}

/// A replica of `a` made by that job, as its agent reports it.
fn replica(job: JobId, state: NodeState) -> Lineage {
    let name = ReplicationNames(job).name();
    Lineage {
        subscriptions: vec![SubscriptionSeen {
            name: name.clone(),
            tool: Tool::PostgreSql,
            slot: Some(name),
            origin: ChangeOrigin::Any,
        }],
        mirrored: Some(MirroredNode {
            state,
            source: None,
            job: Some(job),
            error: None,
        }),
        ..lineage(2)
    }
}

#[test]
fn a_second_process_is_rejected_unless_the_first_is_silent_or_had_the_same_seat() {
    let directory = super::directory();
    let mut world = World::open(directory.path(), &["a"]);
    let refused = world.knock("a", 77, Seat(9)).unwrap();
    assert!(refused.message.contains("a:7401"), "{refused}");
    // A second attempt is not logged.
    assert!(world.knock("a", 77, Seat(9)).is_some());
    let events = world.events("a");
    let rejected = events.iter().filter(|e| e.event == "agent.rejected");
    assert_eq!(rejected.count(), 1);
    assert!(!events.iter().any(|e| e.event == "agent.lost"));
    // A process in the same seat shows that the previous one is gone.
    assert_eq!(world.knock("a", 78, Seat(0)), None);
    assert!(world.knock("a", 79, Seat(9)).is_some());
    world.skip(6);
    assert_eq!(world.knock("a", 79, Seat(9)), None);
}

#[test]
fn a_forgotten_replica_is_adopted_once_its_source_is_known() {
    let directory = super::directory();
    let mut world = World::open(directory.path(), &["a", "b"]);
    let job = JobId(0xabc);
    tell(&mut world, "b", replica(job, NodeState::Synchronized));
    assert_eq!(world.node("b").state, NodeState::Uninitialized);
    assert!(world.agent("b").mirrored.is_empty() || world.node("b").source_node.is_none());
    let slots = vec![ReplicationNames(job).name()];
    tell(
        &mut world,
        "a",
        Lineage {
            slots,
            ..lineage(1)
        },
    );
    let view = world.node("b");
    assert_eq!(view.state, NodeState::Diverged);
    assert_eq!(view.source_node, Some(crate::testing::node("a")));
    assert!(
        view.error_message
            .unwrap()
            .contains("not checked the replica yet")
    );
}

#[test]
fn a_forgotten_job_is_reported_and_not_touched() {
    let directory = super::directory();
    let mut world = World::open(directory.path(), &["a", "b"]);
    let half = Lineage {
        jobs: vec![JobId(0xabc)],
        ..lineage(2)
    };
    tell(&mut world, "b", half);
    let view = world.node("b");
    assert_eq!(view.state, NodeState::Failed);
    assert!(view.error_message.unwrap().contains("--force-cleanup"));
    assert!(world.agent("b").at_work.is_empty());
}

#[test]
fn a_clean_up_says_that_the_other_end_was_not_seen() {
    let directory = super::directory();
    let mut world = World::open(directory.path(), &["b"]);
    let job = JobId(0xabc);
    let half = Lineage {
        jobs: vec![job],
        ..lineage(2)
    };
    tell(&mut world, "b", half);
    let mut clean_up = world.ask_later(Order::GiveUp {
        node: crate::testing::node("b"),
        data: CancelledData::Remove,
        afterwards: Afterwards::Keep,
    });
    world.run_on();
    let replies = replies(clean_up.try_recv().unwrap());
    let [ApiReply::Left(left)] = &replies[..] else {
        panic!("{replies:?}")
    };
    assert!(left[0].contains(&job.to_string()), "{left:?}");
    assert!(
        left[0].contains("--node SOURCE --force-cleanup"),
        "{left:?}"
    );
}

#[test]
fn a_node_whose_jobs_record_cannot_be_read_is_failed_and_says_how_to_clean_up() {
    let directory = super::directory();
    let mut world = World::open(directory.path(), &["a", "b"]);
    let jobs = world.init(vec![crate::testing::spec("a", "b")]).unwrap();
    world.until("b", |command| command.policy().name == "copy");
    assert_eq!(world.state("b"), NodeState::Copying);
    let mut world = world.restart_after(directory.path(), || {
        let store = rusqlite::Connection::open(directory.path().join("coordinator.db")).unwrap();
        let damage = "UPDATE jobs SET record = '{'";
        assert_eq!(store.execute(damage, []).unwrap(), 1);
    });
    let view = world.node("b");
    assert_eq!(view.state, NodeState::Failed);
    let reason = view.error_message.unwrap();
    assert!(reason.contains(&jobs[0].job.to_string()), "{reason}");
    assert!(reason.contains("--force-cleanup"), "{reason}");
}

#[test]
fn two_names_of_one_database_are_logged_once_and_shown() {
    let directory = super::directory();
    let mut world = World::open(directory.path(), &["a", "b"]);
    tell(&mut world, "a", lineage(1));
    tell(&mut world, "b", lineage(1));
    tell(&mut world, "a", lineage(1));
    assert!(world.node("a").warnings[0].contains("are the same database"));
    let told = world.events("b");
    let told = told.iter().filter(|e| e.event == "node.same_database");
    assert_eq!(told.count(), 1);
}

#[test]
fn a_node_shows_since_when_it_is_unreachable() {
    let directory = super::directory();
    let mut world = World::open(directory.path(), &["a"]);
    let seen = || Observed {
        postgres: Some(Ok(180_000)),
        ..Observed::default()
    };
    world.say("a", AgentMessage::Observed(seen()));
    world.skip(30);
    assert_eq!(world.node("a").unseen_since, None);
    world.leave("a");
    world.skip(1);
    world.skip(10);
    assert!(world.node("a").unseen_since.is_some());
    world.join("a");
    world.say("a", AgentMessage::Observed(seen()));
    world.skip(1);
    assert_eq!(world.node("a").unseen_since, None);
}
