//! A job that merges waits for the other one and for the proof, whatever restarts meanwhile.

use super::*;

/// It restarts both agents and ends whatever they do then.
fn restarted(world: &mut World) {
    for side in Side::BOTH {
        world.kill(side);
        world.up(side);
        world.run_on();
        world.tick(1);
    }
}

#[test]
fn only_the_driver_ends_the_waits_of_a_merge() {
    let mut world = World::new(Method::Merge);
    world.run_on();
    assert_eq!(world.job.stage, Stage::Working(Step::Apart));
    restarted(&mut world);
    assert_eq!(world.job.stage, Stage::Working(Step::Apart));
    assert!(!world.ids.values().any(|work| *work == Work::OpenSource));
    // What comes too early counts for nothing.
    world.apply(JobEvent::Merge(MergeNews::Proved)).unwrap();
    assert_eq!(world.job.stage, Stage::Working(Step::Apart));

    world.apply(JobEvent::Merge(MergeNews::Apart)).unwrap();
    world.run_on();
    assert_eq!(world.job.stage, Stage::Working(Step::Merge));
    assert!(!world.ids.values().any(|work| *work == Work::Finish));
    restarted(&mut world);
    assert_eq!(world.job.stage, Stage::Working(Step::Merge));
    assert_eq!(world.node, NodeState::CatchingUp);

    world.apply(JobEvent::Merge(MergeNews::Proved)).unwrap();
    world.run_on();
    assert_eq!(world.job.stage, Stage::Closed(Closed::Synchronized));
    assert_eq!(world.node, NodeState::Synchronized);
}

#[test]
fn a_merge_that_is_cancelled_anywhere_ends_with_its_cleanup() {
    for news in [None, Some(MergeNews::Apart)] {
        let mut world = World::new(Method::Merge);
        world.run_on();
        if let Some(news) = news {
            world.apply(JobEvent::Merge(news)).unwrap();
            world.run_on();
        }
        world.cancel();
        world.run_on();
        assert!(world.is_closed(), "{news:?}: {:?}", world.job.stage);
        assert_eq!(world.node, NodeState::Uninitialized, "{news:?}");
    }
}
