//! Claims about nodes that stop following for good, and about sequences that are kept up until then.

use steep_protocol::message::agent::{
    AgentMessage, Observed, ProgressReport, SequencesRaised, WorkProgress, WorkUnit,
};
use steep_protocol::message::api::{AbsentSource, ApiReply, DetachSpec, Order};
use steep_protocol::{Fault, FaultKind, NodeState, Phase};

use super::world::*;
use super::*;
use crate::testing::{node, spec};

fn detach(wait: Option<u64>, absent: AbsentSource) -> Order {
    Order::Detach(DetachSpec {
        node: node("b"),
        wait_seconds: wait,
        absent,
    })
}

fn catching_up(job: JobId) -> ProgressReport {
    let work = WorkProgress {
        done: 1,
        total: 2,
        unit: WorkUnit::Bytes,
        current: None,
        workers: 1,
    };
    ProgressReport {
        job,
        phase: Phase::CatchUp,
        active: Vec::new(),
        work: Some(work),
        retries: 0,
    }
}

/// The names of the commands that a node got since `from`.
fn told(world: &mut World, name: &str, from: usize) -> Vec<&'static str> {
    let history = &world.agent(name).history[from..];
    history
        .iter()
        .map(|(_, command)| command.policy().name)
        .collect()
}

#[test]
fn a_detached_node_sets_its_sequences_before_the_slot_goes_and_says_from_whom_it_is() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b"]);
    synchronized_pair(&mut world);
    let before = (
        world.agent("a").history.len(),
        world.agent("b").history.len(),
    );
    let mut first = world.ask_later(detach(Some(60), AbsentSource::Refuse));
    let mut second = world.ask_later(detach(None, AbsentSource::Refuse));
    world.run_on();
    for answer in [&mut first, &mut second] {
        assert_eq!(replies(answer.try_recv().unwrap()), []);
    }
    let source = told(&mut world, "a", before.0);
    assert_eq!(source.last(), Some(&"cleanup_source"), "{source:?}");
    assert!(
        source.contains(&"await_fence") && source.contains(&"admit"),
        "{source:?}"
    );
    assert_eq!(told(&mut world, "b", before.1), ["cleanup_target"]);
    let asks = world.agent("b").history[before.1..]
        .iter()
        .any(|(_, command)| {
            matches!(
                command,
                Command::Target(TargetCommand::Cleanup {
                    sequences: Some(_),
                    ..
                })
            )
        });
    assert!(asks);
    let view = world.node("b");
    assert_eq!(
        (view.state, view.source_node),
        (NodeState::Uninitialized, None)
    );
    assert_eq!(view.detached.unwrap().source_node, node("a"));
    assert_eq!(count(&mut world, "node.detached"), 1);
    let again = world
        .ask_later(detach(None, AbsentSource::Refuse))
        .try_recv();
    assert_eq!(replies(again.unwrap()), []);
    assert_eq!(world.init(vec![spec("a", "b")]).unwrap().len(), 1);
    assert_eq!(world.node("b").detached, None);
}

#[test]
fn a_wait_that_fails_changes_nothing() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b"]);
    let job = synchronized_pair(&mut world);
    let mut answer = world.ask_later(detach(Some(5), AbsentSource::Refuse));
    // The limit is the operator's, whatever the source's agent tells meanwhile.
    for _ in 0..3 {
        world.skip(2);
        world.say("a", AgentMessage::Progress(catching_up(job)));
    }
    let fault = answer.try_recv().unwrap().unwrap_err();
    assert_eq!(fault.kind, FaultKind::Timeout);
    assert!(fault.message.contains("77 bytes"), "{fault}");
    assert!(fault.hint.contains("nothing was changed"), "{fault}");
    assert_eq!(world.state("b"), NodeState::Synchronized);
}

#[test]
fn a_source_that_is_away_is_refused_or_cleaned_up_when_it_is_back() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b"]);
    let job = synchronized_pair(&mut world);
    world.leave("a");
    let refused = world
        .ask_later(detach(None, AbsentSource::Refuse))
        .try_recv();
    let refused = refused.unwrap().unwrap_err();
    assert!(refused.hint.contains("--force"), "{refused}");
    assert_eq!(world.state("b"), NodeState::Synchronized);

    let mut alone = world.ask_later(detach(None, AbsentSource::LeaveBehind));
    world.run_on();
    world.skip(1);
    let replies = replies(alone.try_recv().unwrap());
    let [ApiReply::Left(left)] = &replies[..] else {
        panic!("{replies:?}")
    };
    assert!(left[0].contains("and publication"), "{left:?}");
    assert!(left[1].contains("as soon as its agent is back"), "{left:?}");
    assert_eq!(world.state("b"), NodeState::Uninitialized);

    // Known after a restart, and nobody's concern meanwhile.
    let mut world = world.restart(directory.path());
    world.join("a");
    world.join("b");
    let before = world.agent("a").history.len();
    world.observe("a", Some(slot(job, "reserved")), None);
    world.skip(1);
    world.run_on();
    assert!(told(&mut world, "a", before).contains(&"cleanup_source"));
    assert_eq!(count(&mut world, "node.left_removed"), 1);
    world.skip(40);
    world.run_on();
    assert_eq!(count(&mut world, "node.left_removed"), 1);
}

#[test]
fn a_detach_goes_on_after_a_restart_and_a_death() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b"]);
    synchronized_pair(&mut world);
    drop(world.ask_later(detach(None, AbsentSource::Refuse)));
    world.kill("b");
    let mut world = world.restart(directory.path());
    world.join("a");
    world.run_on();
    world.skip(60);
    world.run_on();
    assert_eq!(world.state("b"), NodeState::Failed);
    let mut joined = world.ask_later(detach(None, AbsentSource::Refuse));
    assert!(
        joined
            .try_recv()
            .unwrap()
            .unwrap_err()
            .hint
            .contains("start the agent of b")
    );
    world.join("b");
    world.run_on();
    assert_eq!(world.state("b"), NodeState::Uninitialized);
    assert!(world.node("b").detached.is_some());
}

#[test]
fn sequences_are_raised_every_so_often_and_a_failure_is_told_once() {
    let directory = directory();
    let mut world = World::open(directory.path(), &["a", "b"]);
    world.sequence_interval_seconds = 60;
    world.leave("b");
    world.join("b");
    synchronized_pair(&mut world);
    world.skip(1);
    let before = (
        world.agent("a").history.len(),
        world.agent("b").history.len(),
    );
    world.skip(61);
    world.run_on();
    assert_eq!(
        told(&mut world, "a", before.0),
        ["admit_replicated", "release_source"]
    );
    assert_eq!(told(&mut world, "b", before.1), ["raise_sequences"]);
    let known = world.node("b").sequences.unwrap();
    assert!(
        known.set_at.is_some() && known.warning.is_none(),
        "{known:?}"
    );
    for _ in 0..2 {
        world.skip(61);
        world.until("b", |command| command.policy().name == "raise_sequences");
        world.end_one("b", Some(Fault::new(FaultKind::Failed, "no such luck")));
        world.run_on();
        let warnings = world.node("b").warnings;
        assert!(warnings[0].contains("no such luck"), "{warnings:?}");
    }
    assert_eq!(count(&mut world, "sequences.not_set"), 1);
    world.skip(61);
    world.run_on();
    assert_eq!(count(&mut world, "sequences.set"), 1);
    // Without its source nobody is asked.
    world.say("a", AgentMessage::Observed(Observed::default()));
    let before = world.agent("b").history.len();
    world.skip(61);
    world.run_on();
    assert_eq!(told(&mut world, "b", before), Vec::<&str>::new());
}

/// What the fake agents answer.
pub(super) fn raised() -> SequencesRaised {
    SequencesRaised {
        followed: 3,
        raised: 1,
        problems: Vec::new(),
        left_alone: None,
    }
}
