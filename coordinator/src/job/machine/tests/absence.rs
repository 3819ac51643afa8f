//! Agents that are away: for a moment, for ever, or with their process and its snapshot.

use super::*;

#[test]
fn a_dead_agent_is_shown_within_fifteen_seconds_and_cleaned_when_it_returns() {
    for side in Side::BOTH {
        let mut world = World::new(Method::Snapshot);
        world.until(Work::Copy);
        world.kill(side);
        for _ in 0..14 {
            world.tick(1);
            let other = if side == Side::Source {
                Side::Target
            } else {
                Side::Source
            };
            world.end_one(other, 0, false);
        }
        assert_eq!(world.node, NodeState::Failed, "{side:?}");
        let [Finish::Failed(fault)] = &world.finishes[..] else {
            panic!("{:?}", world.finishes);
        };
        assert_eq!(fault.kind, FaultKind::Unreachable);
        assert!(fault.hint.contains("pending"), "{}", fault.hint);
        assert!(world.job.owes(side) && !world.is_closed());
        world.up(side);
        world.run_on();
        assert!(world.is_closed(), "{side:?}: {:?}", world.job);
        assert_eq!(
            world.node,
            NodeState::Failed,
            "the cause stays with the node"
        );
    }
}

#[test]
fn a_short_absence_changes_nothing() {
    for work in SNAPSHOT_WORK {
        for side in Side::BOTH {
            let mut world = World::new(Method::Snapshot);
            world.until(work);
            world.down(side);
            world.tick(9);
            world.up(side);
            world.run_on();
            assert_eq!(
                world.finishes,
                [Finish::Synchronized],
                "{side:?} away at {work:?}"
            );
        }
    }
}

#[test]
fn a_restarted_source_loses_the_snapshot_while_it_is_needed_and_not_after() {
    for work in SNAPSHOT_WORK {
        let mut world = World::new(Method::Snapshot);
        world.until(work);
        let needed = matches!(work, Work::OpenSource | Work::PrepareTarget | Work::Copy);
        world.kill(Side::Source);
        world.tick(1);
        world.up(Side::Source);
        assert_eq!(
            matches!(world.job.stage, Stage::Ending(_)),
            needed,
            "{work:?}"
        );
        world.run_on();
        let expected = if needed {
            NodeState::Failed
        } else {
            NodeState::Synchronized
        };
        assert_eq!(world.node, expected, "{work:?}: {:?}", world.job.stage);
    }
}

#[test]
fn a_source_that_is_stopped_under_its_snapshot_ends_the_job_at_once_and_a_target_does_not() {
    for work in SNAPSHOT_WORK {
        for side in Side::BOTH {
            let mut world = World::new(Method::Snapshot);
            world.until(work);
            let needed = matches!(work, Work::OpenSource | Work::PrepareTarget | Work::Copy);
            world.kill_politely(side);
            let Stage::Ending(ending) = &world.job.stage else {
                assert!(side == Side::Target || !needed, "{work:?} goes on");
                continue;
            };
            assert!(side == Side::Source && needed, "{work:?} ends by {side:?}");
            let Why::Failed(fault) = &ending.why else {
                panic!("{ending:?}");
            };
            assert!(fault.to_string().contains("was stopped"), "{fault}");
            // It is seen without the agent, and what is left there is removed when it is back.
            world.tick(3);
            assert_eq!(world.node, NodeState::Failed);
            world.up(side);
            world.run_on();
            assert!(matches!(world.job.stage, Stage::Closed(Closed::Failed(_))));
        }
    }
}

#[test]
fn a_snapshot_that_the_same_process_lost_stops_the_copy_at_once() {
    let mut world = World::new(Method::Snapshot);
    world.until(Work::Copy);
    world.down(Side::Source);
    world.agent(Side::Source).snapshot = false;
    world.up(Side::Source);
    let Stage::Ending(ending) = &world.job.stage else {
        panic!("{:?}", world.job.stage);
    };
    assert!(matches!(&ending.why, Why::Failed(f) if f.message.contains("snapshot")));
}
