//! Failed jobs that can be resumed: for how long, and how they go on.

use super::*;
use crate::job::retry::{KEEP_FAILED, KEEP_SNAPSHOT};

/// Every command whose failure leaves something worth keeping.
const KEPT: [Work; 7] = [
    Work::Copy,
    Work::BuildIndexes,
    Work::BuildConstraints,
    Work::Subscribe,
    Work::Finish,
    Work::ProveTarget,
    Work::ReleaseTarget,
];

/// A job that failed at that command.
fn failed(work: Work) -> World {
    let mut world = World::new(Method::Snapshot);
    world.until(work);
    let at = world.work_of(work.side()).iter().position(|w| *w == work);
    world.end_one(work.side(), at.unwrap(), true);
    world
}

fn kept_for(world: &World) -> Option<Duration> {
    let until = world.job.kept_until()?;
    let millis = until.as_millisecond() - world.now.as_millisecond();
    Some(Duration::from_millis(u64::try_from(millis).unwrap()))
}

#[test]
fn a_job_that_fails_after_its_copy_is_resumed_where_it_failed() {
    for work in KEPT {
        let mut world = failed(work);
        assert_eq!(world.node, NodeState::Failed, "{work:?}");
        let keep = match work {
            Work::Copy => KEEP_SNAPSHOT,
            _ => KEEP_FAILED,
        };
        assert_eq!(kept_for(&world), Some(keep), "{work:?}");
        let fault = world.failure();
        assert_eq!(fault.message, "disk full");
        assert!(fault.hint.contains("--resume"), "{}", fault.hint);
        world.run_on();
        world.tick(60);
        let cleanup = |w: &Work| w.is_cleanup();
        assert!(!world.ids.values().any(cleanup), "{work:?} was cleaned up");
        world.resume();
        assert!(world.node.is_active());
        world.run_on();
        assert_eq!(world.finishes, [Finish::Synchronized], "{work:?}");
        assert!(!world.ids.values().any(cleanup));
        assert_eq!(world.job.spec.parallel, TERMS.parallel);
    }
}

#[test]
fn a_job_whose_subscription_may_be_to_blame_subscribes_again() {
    let mut world = failed(Work::Finish);
    world.run_on();
    world.resume();
    assert!(world.ids.values().any(|work| *work == Work::Subscribe));
    assert_eq!(world.job.stage, Stage::Working(Step::Subscribe));
}

#[test]
fn a_job_that_fails_before_its_copy_or_at_the_fence_is_cleaned_up() {
    for work in [
        Work::GatherSource,
        Work::GatherTarget,
        Work::OpenSource,
        Work::PrepareTarget,
        Work::AwaitFence,
    ] {
        let mut world = failed(work);
        assert_eq!(world.job.kept_until(), None, "{work:?}");
        world.run_on();
        assert!(world.is_closed());
        let resumed = world.apply(JobEvent::Resume { terms: TERMS });
        assert_eq!(resumed, Err(Refused::NothingKept));
    }
}

#[test]
fn a_table_that_changed_during_the_copy_leaves_nothing_worth_keeping() {
    let mut world = World::new(Method::Snapshot);
    world.until(Work::Copy);
    let side = Work::Copy.side();
    let at = world.work_of(side).iter().position(|w| *w == Work::Copy);
    let fault = Fault::new(FaultKind::SourceChanged, "table t was truncated");
    world.end_with(side, at.unwrap(), Some(fault));
    assert_eq!(world.job.kept_until(), None);
    world.run_on();
    assert!(world.is_closed());
    assert!(matches!(&world.finishes[..], [Finish::Failed(_)]));
}

#[test]
fn a_target_that_others_could_write_to_leaves_nothing_worth_keeping() {
    for work in [Work::BuildIndexes, Work::Subscribe] {
        let mut world = World::new(Method::Snapshot);
        world.until(work);
        let at = world.work_of(work.side()).iter().position(|w| *w == work);
        let fault = Fault::new(FaultKind::TargetChanged, "a trigger was dropped");
        world.end_with(work.side(), at.unwrap(), Some(fault));
        assert_eq!(world.job.kept_until(), None, "{work:?}");
        world.run_on();
        assert!(world.is_closed());
        assert!(matches!(&world.finishes[..], [Finish::Failed(_)]));
    }
}

#[test]
fn a_failed_job_is_cleaned_up_on_time_and_keeps_its_error() {
    for work in KEPT {
        let mut world = failed(work);
        world.run_on();
        let keep = kept_for(&world).unwrap();
        world.tick(i64::try_from(keep.as_secs()).unwrap() - 1);
        assert!(world.job.kept_until().is_some());
        world.tick(1);
        world.run_on();
        assert!(world.is_closed(), "{work:?}");
        assert_eq!(world.node, NodeState::Failed);
        assert_eq!(world.finishes.len(), 1, "an end is reported once");
        assert!(!world.job.owes(Side::Source) && !world.job.owes(Side::Target));
    }
}

#[test]
fn a_snapshot_is_kept_within_its_age_limit_and_not_once_it_is_lost() {
    let mut world = World::new(Method::Snapshot);
    world.rules.bounds.snapshot_age = Some(Duration::from_secs(600));
    world.until(Work::Copy);
    world.tick(500);
    world.end_one(Side::Target, 0, true);
    assert_eq!(kept_for(&world), Some(Duration::from_secs(100)));

    for loss in 0..2 {
        let mut world = failed(Work::Copy);
        if loss == 0 {
            world.lose_snapshot();
        } else {
            world.kill(Side::Source);
            world.up(Side::Source);
        }
        world.run_on();
        assert!(world.is_closed(), "{loss}");
        let mut world = failed(Work::BuildIndexes);
        world.lose_snapshot();
        assert!(
            world.job.kept_until().is_some(),
            "it is not needed any more"
        );
    }
    let mut world = World::new(Method::Snapshot);
    world.until(Work::Copy);
    world.down(Side::Source);
    world.end_one(Side::Target, 0, true);
    assert_eq!(
        world.job.kept_until(),
        None,
        "nobody knows whether it is held"
    );
}

#[test]
fn a_failed_job_is_cleaned_up_at_once_by_a_cancel_or_when_it_harms_the_source() {
    for cancelled in [true, false] {
        let mut world = failed(Work::BuildIndexes);
        if cancelled {
            world.cancel();
        } else {
            world.endanger();
        }
        world.run_on();
        assert!(world.is_closed());
        let end = if cancelled {
            NodeState::Uninitialized
        } else {
            NodeState::Failed
        };
        assert_eq!(world.node, end);
        assert!(!world.job.owes(Side::Source));
    }
}

#[test]
fn a_job_can_be_resumed_after_a_broken_subscription_and_after_a_timeout() {
    let mut world = World::new(Method::Snapshot);
    world.until(Work::AwaitFence);
    let fault = Fault::new(FaultKind::Failed, "the subscription keeps failing");
    let side = Side::Target;
    world.apply(JobEvent::Endangered { side, fault }).unwrap();
    assert!(world.job.kept_until().is_some());

    let mut world = World::new(Method::Snapshot);
    world.job.spec.timeout_seconds = 60;
    world.until(Work::BuildIndexes);
    world.tick(60);
    assert!(matches!(&world.finishes[..], [Finish::Failed(f)] if f.kind == FaultKind::Timeout));
    world.run_on();
    world.resume();
    world.tick(61);
    world.run_on();
    assert_eq!(
        world.finishes,
        [Finish::Synchronized],
        "its time limit starts over"
    );
}

#[test]
fn a_resume_is_refused_until_the_failed_job_has_stopped() {
    let mut world = World::new(Method::Snapshot);
    world.until(Work::AwaitFence);
    world.until(Work::Finish);
    let at = world.work_of(Side::Target);
    let at = at.iter().position(|w| *w == Work::Finish).unwrap();
    world.end_one(Side::Target, at, true);
    let resumed = world.apply(JobEvent::Resume { terms: TERMS });
    assert_eq!(
        resumed,
        Err(Refused::Stopping),
        "the fence is still awaited"
    );
    world.run_on();
    world.resume();
    world.run_on();
    assert_eq!(world.finishes, [Finish::Synchronized]);
}

#[test]
fn a_job_can_be_resumed_after_its_agents_restarted() {
    for work in &KEPT[1..] {
        for side in Side::BOTH {
            let mut world = failed(*work);
            world.run_on();
            world.kill(side);
            world.tick(60);
            world.up(side);
            world.resume();
            world.run_on();
            assert_eq!(world.finishes, [Finish::Synchronized], "{work:?}, {side:?}");
        }
    }
}
