//! Offline agents: for a moment, for ever, or restarted without their snapshot.

use super::*;
use crate::job::retry::{RESTARTS_MAX, waiting};

#[test]
fn an_agent_that_stays_offline_is_shown_and_fails_the_job_once_the_budget_is_over() {
    for side in Side::BOTH {
        let mut world = World::new(Method::Snapshot);
        world.rules.patience.keep_failed = None;
        world.until(Work::Copy);
        world.kill(side);
        world.tick(12);
        assert_eq!(world.node, NodeState::Copying, "{side:?}");
        let waits = waiting(&world.job, &world.rules.patience, world.now).unwrap();
        assert_eq!(waits.node_id, *side.node(&world.job.spec));
        assert_eq!((waits.for_seconds, waits.gives_up_seconds), (12, 1_788));
        world.tick(1_788);
        world.run_on();
        world.tick(3);
        assert_eq!(world.node, NodeState::Failed, "{side:?}");
        let fault = world.failure();
        assert_eq!(fault.kind, FaultKind::Unreachable);
        assert!(
            fault.hint.to_lowercase().contains("start the agent"),
            "{}",
            fault.hint
        );
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
fn an_absence_of_many_minutes_changes_nothing_once_the_preflight_is_over() {
    for work in SNAPSHOT_WORK {
        for side in Side::BOTH {
            let mut world = World::new(Method::Snapshot);
            world.until(work);
            world.down(side);
            let preflight = matches!(work, Work::GatherSource | Work::GatherTarget);
            world.tick(if preflight { 9 } else { 1_700 });
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

/// Whether that work needs the snapshot.
fn reads(work: Work) -> bool {
    matches!(work, Work::PrepareTarget | Work::Copy)
}

#[test]
fn a_job_starts_over_only_if_the_source_restarts_while_the_snapshot_is_needed() {
    for work in SNAPSHOT_WORK {
        let mut world = World::new(Method::Snapshot);
        world.until(work);
        world.kill(Side::Source);
        world.tick(1);
        world.up(Side::Source);
        assert_eq!(
            matches!(world.job.stage, Stage::Ending(_)),
            reads(work),
            "{work:?}"
        );
        world.run_on();
        assert_eq!(world.finishes, [Finish::Synchronized], "{work:?}");
        assert_eq!(world.job.restarts, u8::from(reads(work)), "{work:?}");
        let opened = world.nodes.iter().filter(|s| **s == NodeState::Copying);
        assert_eq!(opened.count(), 1, "{work:?}: {:?}", world.nodes);
    }
}

#[test]
fn a_stopped_agent_is_waited_for() {
    for work in SNAPSHOT_WORK {
        for side in Side::BOTH {
            let mut world = World::new(Method::Snapshot);
            world.until(work);
            world.kill_politely(side);
            let ends = matches!(world.job.stage, Stage::Ending(_));
            assert_eq!(ends, side == Side::Source && reads(work), "{work:?}");
            world.run_on();
            world.tick(8);
            assert_ne!(world.node, NodeState::Failed, "{work:?} by {side:?}");
            world.up(side);
            world.run_on();
            assert_eq!(
                world.finishes,
                [Finish::Synchronized],
                "{work:?} by {side:?}"
            );
        }
    }
}

#[test]
fn a_lost_snapshot_matters_only_while_parts_are_left_to_read() {
    let mut world = World::new(Method::Snapshot);
    world.until(Work::Copy);
    world.copied = true;
    world.lose_snapshot();
    assert_eq!(world.job.restarts, 0, "every part is committed");
    world.run_on();
    assert_eq!(world.finishes, [Finish::Synchronized]);

    let mut world = World::new(Method::Snapshot);
    world.until(Work::Copy);
    world.lose_snapshot();
    assert_eq!(world.job.restarts, 1);
    assert!(!world.job.owes(Side::Source) || matches!(world.job.stage, Stage::Ending(_)));
    world.run_on();
    assert_eq!(world.finishes, [Finish::Synchronized]);
    let given = |w: Work| world.ids.values().filter(|x| **x == w).count();
    let clean = CancelledData::Remove;
    let twice = [Work::OpenSource, Work::PrepareTarget].map(given);
    assert_eq!(twice, [2, 2]);
    let once = [
        Work::CleanupTarget(clean),
        Work::CleanupSource,
        Work::GatherTarget,
    ]
    .map(given);
    assert_eq!(once, [1, 1, 1]);
}

#[test]
fn a_job_starts_over_five_times_and_then_fails() {
    let mut world = World::new(Method::Snapshot);
    for round in 1..=RESTARTS_MAX {
        // The previous copy must be stopped first.
        world.until(Work::OpenSource);
        world.until(Work::Copy);
        world.lose_snapshot();
        assert_eq!(world.job.restarts, round);
    }
    world.until(Work::OpenSource);
    world.until(Work::Copy);
    world.lose_snapshot();
    world.run_on();
    let fault = world.failure();
    assert!(fault.message.contains("5 times"), "{fault}");
    assert!(world.is_closed());
}

#[test]
fn a_job_that_starts_over_can_be_cancelled_and_fails_if_it_cannot_clean_up() {
    for cancelled in [true, false] {
        let mut world = World::new(Method::Snapshot);
        world.until(Work::Copy);
        world.kill(Side::Source);
        world.up(Side::Source);
        world.down(Side::Source);
        world.run_on();
        assert_eq!(world.node, NodeState::Copying);
        if cancelled {
            world.cancel();
        } else {
            world.tick(1_801);
        }
        assert_eq!(world.node, NodeState::Failed);
        world.up(Side::Source);
        world.run_on();
        assert!(world.is_closed());
        let end = if cancelled {
            NodeState::Uninitialized
        } else {
            NodeState::Failed
        };
        assert_eq!(world.node, end);
    }
}

#[test]
fn a_source_that_restarts_while_opening_makes_a_new_plan() {
    let mut world = World::new(Method::Snapshot);
    world.until(Work::OpenSource);
    world.kill(Side::Source);
    world.up(Side::Source);
    let opens = world.ids.values().filter(|w| **w == Work::OpenSource);
    assert_eq!(opens.count(), 2, "pages of the first plan may have come");
    world.run_on();
    assert_eq!(world.finishes, [Finish::Synchronized]);
}
