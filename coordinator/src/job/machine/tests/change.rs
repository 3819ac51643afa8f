//! Jobs that change which tables a node follows: whatever happens, the node goes on following.

use super::super::super::change::Joining;
use super::*;
use steep_protocol::message::tables::FollowedOutcome;

/// The work of a job that adds tables, in order.
const ADDING: [Work; 14] = [
    Work::GatherSource,
    Work::GatherTarget,
    Work::OpenSource,
    Work::PrepareTarget,
    Work::Copy,
    Work::BuildIndexes,
    Work::BuildConstraints,
    Work::Subscribe,
    Work::AwaitFence,
    Work::Regrant,
    Work::Join,
    Work::Finish,
    Work::ProveTarget,
    Work::ReleaseTarget,
];

/// It has ended, and its node follows.
fn returned(world: &World, what: impl std::fmt::Debug) {
    assert!(world.is_closed(), "{what:?}: {:?}", world.job.stage);
    assert_eq!(world.node, NodeState::Synchronized, "{what:?}");
    let all = [NodeState::Reinitializing, NodeState::Synchronized];
    assert_eq!(world.nodes, all, "{what:?}");
}

#[test]
fn tables_join_after_a_fence_and_what_they_joined_passes_another_before_the_proof() {
    let mut world = World::new(Method::Add);
    world.run_on();
    returned(&world, "success");
    assert_eq!(world.finishes, [Finish::Changed]);
    assert_eq!(world.job.stage, Stage::Closed(Closed::Changed));
    let sent: Vec<Work> = world.sent.iter().map(|(_, work)| *work).collect();
    let first = |work| sent.iter().position(|sent| *sent == work);
    let last = |work| sent.iter().rposition(|sent| *sent == work);
    for pair in ADDING.windows(2) {
        assert!(first(pair[0]) < first(pair[1]), "{pair:?} in {sent:?}");
    }
    assert!(first(Work::Join) < last(Work::AwaitFence));
    assert!(last(Work::AwaitFence) < first(Work::Finish));
    let finishes = sent.iter().filter(|work| **work == Work::Finish);
    assert_eq!(finishes.count(), 1);
    assert!(!sent.iter().any(|work| work.is_cleanup()));
}

#[test]
fn a_cancel_in_any_step_leaves_a_node_that_follows() {
    for work in ADDING {
        let mut world = World::new(Method::Add);
        world.until(work);
        world.cancel();
        let began = world.job.joining() != Joining::NotYet;
        let joins = world.ids.values().any(|sent| *sent == Work::Join);
        assert_eq!(began, joins, "{work:?}");
        world.live_on();
        returned(&world, work);
        assert!(
            matches!(world.finishes[..], [Finish::Cancelled(_)]),
            "{work:?}"
        );
        let order = |wanted: fn(&Work) -> bool| world.sent.iter().position(|(_, w)| wanted(w));
        let target = order(|work| matches!(work, Work::CleanupTarget(_)));
        if world.job.target.residue == Residue::Removed && target.is_some() {
            assert!(
                target < order(|work| *work == Work::CleanupSource),
                "{work:?}"
            );
        }
    }
}

#[test]
fn a_failure_in_any_step_leaves_a_node_that_follows_and_nothing_to_resume() {
    for work in ADDING {
        let mut world = World::new(Method::Add);
        world.until(work);
        let at = world.work_of(work.side());
        let at = at.iter().position(|running| *running == work).unwrap();
        world.end_one(work.side(), at, true);
        world.live_on();
        returned(&world, work);
        assert!(
            matches!(world.finishes[..], [Finish::Failed(_)]),
            "{work:?}"
        );
    }
}

#[test]
fn a_job_whose_agents_die_in_any_step_goes_on() {
    for work in ADDING {
        for side in Side::BOTH {
            let mut world = World::new(Method::Add);
            world.until(work);
            world.kill(side);
            world.tick(1);
            world.up(side);
            world.live_on();
            returned(&world, (work, side));
            assert_eq!(world.finishes, [Finish::Changed], "{work:?} {side:?}");
        }
    }
}

#[test]
fn what_may_have_joined_is_taken_back_before_the_source_forgets_the_job() {
    let mut world = World::new(Method::Add);
    world.until(Work::Join);
    world.kill(Side::Target);
    world.cancel();
    world.tick(120);
    // Without the target's agent nobody knows; the node is not said to follow.
    assert_eq!(world.node, NodeState::Reinitializing);
    assert!(matches!(world.finishes[..], [Finish::CancelPending(_)]));
    let source = |world: &World| world.ids.values().any(|work| *work == Work::CleanupSource);
    assert!(!source(&world));
    world.up(Side::Target);
    // The source's agent must know that the target may ask.
    let admitted = world.work_of(Side::Source);
    assert!(admitted.contains(&Work::Regrant), "{admitted:?}");
    world.live_on();
    assert!(source(&world));
    returned(&world, "cancelled");
}

#[test]
fn tables_that_leave_cannot_be_called_back_and_leave_whoever_dies() {
    for side in Side::BOTH {
        let mut world = World::new(Method::Drop);
        world.until(Work::Leave);
        let data = CancelledData::Remove;
        assert_eq!(
            world.apply(JobEvent::Cancel { data }),
            Err(Refused::Leaving)
        );
        world.kill(side);
        world.up(side);
        world.live_on();
        returned(&world, side);
        assert_eq!(world.finishes, [Finish::Changed]);
        let sent: Vec<Work> = world.sent.iter().map(|(_, work)| *work).collect();
        assert_eq!(sent[0], Work::Regrant);
        assert!(sent.contains(&Work::Leave) && !sent.contains(&Work::OpenSource));
    }
}

#[test]
fn a_snapshot_that_is_lost_is_taken_again_while_the_node_goes_on() {
    let mut world = World::new(Method::Add);
    world.until(Work::Copy);
    world.lose_snapshot();
    world.live_on();
    returned(&world, "lost");
    assert_eq!(world.finishes, [Finish::Changed]);
    let opened = world.ids.values().filter(|work| **work == Work::OpenSource);
    assert_eq!(opened.count(), 2);
}

/// The work of a job that gives tables new rows, in order.
const REINIT: [Work; 12] = [
    Work::GatherSource,
    Work::GatherTarget,
    Work::OpenSource,
    Work::PrepareTarget,
    Work::Copy,
    Work::ProveTarget,
    Work::Swap,
    Work::Subscribe,
    Work::AwaitFence,
    Work::Join,
    Work::Finish,
    Work::ReleaseTarget,
];

#[test]
fn new_rows_are_proved_before_they_take_their_place_and_join_after_a_fence() {
    let mut world = World::new(Method::Reinit);
    world.run_on();
    returned(&world, "success");
    assert_eq!(world.finishes, [Finish::Changed]);
    let sent: Vec<Work> = world.sent.iter().map(|(_, work)| *work).collect();
    let first = |work| sent.iter().position(|sent| *sent == work);
    for pair in REINIT.windows(2) {
        assert!(first(pair[0]) < first(pair[1]), "{pair:?} in {sent:?}");
    }
    // The source must know that the target may take tables out, and closes its snapshot meanwhile.
    assert!(first(Work::Regrant) < first(Work::Swap));
    assert!(first(Work::CloseSnapshot) < first(Work::Swap));
    let closed = sent.iter().filter(|work| **work == Work::CloseSnapshot);
    assert_eq!(closed.count(), 1);
    assert!(!sent.contains(&Work::BuildIndexes) && !sent.iter().any(|work| work.is_cleanup()));
}

#[test]
fn new_rows_can_be_cancelled_until_their_tables_leave_the_replication() {
    for work in REINIT {
        let mut world = World::new(Method::Reinit);
        world.until(work);
        let data = CancelledData::Remove;
        let cancelled = world.apply(JobEvent::Cancel { data });
        if world.job.joining() != Joining::NotYet {
            assert_eq!(cancelled, Err(Refused::Swapping), "{work:?}");
            // An operator can give it up all the same.
            assert_eq!(world.apply(JobEvent::GiveUp), Ok(()), "{work:?}");
        }
        world.live_on();
        returned(&world, work);
        let ends = matches!(world.finishes[..], [Finish::Cancelled(_)]);
        assert!(ends, "{work:?}: {:?}", world.finishes);
    }
}

#[test]
fn what_fails_once_the_tables_have_left_is_tried_until_it_succeeds() {
    for work in [Work::Swap, Work::Subscribe, Work::Join] {
        let mut world = World::new(Method::Reinit);
        world.until(work);
        for _ in 0..40 {
            let at = world.work_of(Side::Target);
            if let Some(at) = at.iter().position(|running| *running == work) {
                world.end_one(Side::Target, at, true);
            }
            world.tick(60);
        }
        assert!(world.finishes.is_empty(), "{work:?}: {:?}", world.finishes);
        world.live_on();
        returned(&world, work);
        assert_eq!(world.finishes, [Finish::Changed], "{work:?}");
    }
}

#[test]
fn a_job_with_new_rows_goes_on_whoever_dies_in_any_step() {
    for work in REINIT {
        for side in Side::BOTH {
            let mut world = World::new(Method::Reinit);
            world.until(work);
            world.kill(side);
            world.tick(1);
            world.up(side);
            world.live_on();
            returned(&world, (work, side));
            assert_eq!(world.finishes, [Finish::Changed], "{work:?} {side:?}");
        }
    }
}

#[test]
fn a_job_whose_replication_takes_the_place_of_a_lost_one_is_the_nodes_job_in_the_end() {
    let replacing = || {
        let mut world = World::new(Method::Reinit);
        let change = world.job.change.as_mut().unwrap();
        change.followed.outcome = FollowedOutcome::Replaced;
        world
    };
    let mut world = replacing();
    world.run_on();
    assert_eq!(world.node, NodeState::Synchronized);
    assert_eq!(world.finishes, [Finish::Changed]);
    assert_eq!(world.job.change, None);
    assert_eq!(world.job.stage, Stage::Closed(Closed::Synchronized));
    let sent: Vec<Work> = world.sent.iter().map(|(_, work)| *work).collect();
    assert!(
        !sent.contains(&Work::Join) && sent.contains(&Work::Finish),
        "{sent:?}"
    );
    for work in REINIT.into_iter().filter(|work| *work != Work::Join) {
        for side in Side::BOTH {
            let mut world = replacing();
            world.until(work);
            world.kill(side);
            world.tick(1);
            world.up(side);
            world.live_on();
            assert_eq!(world.finishes, [Finish::Changed], "{work:?} {side:?}");
        }
    }
}
