//! Jobs that end early: cancelled, failed, timed out; and their cleanup.

use super::*;

const CLEANUP_TARGET: Work = Work::CleanupTarget(CancelledData::Remove);

/// What a cancel does with the rows while that command runs: those of a complete copy stay, since the target may have
/// let go of them.
pub(super) fn rows_after_cancel(work: Work) -> CancelledData {
    match work {
        Work::ReleaseTarget => CancelledData::Keep,
        _ => CancelledData::Remove,
    }
}

#[test]
fn a_prepared_slot_is_returned_unless_the_job_had_succeeded() {
    for work in &BACKUP_WORK[..8] {
        let mut world = World::new(Method::Backup);
        world.until(*work);
        world.cancel();
        let Stage::Ending(ending) = &world.job.stage else {
            panic!("{work:?}: {:?}", world.job.stage);
        };
        let may_have_applied = matches!(
            work,
            Work::Subscribe | Work::AwaitFence | Work::Finish | Work::ReleaseTarget
        );
        let used = if may_have_applied {
            Used::Perhaps
        } else {
            Used::No
        };
        assert_eq!(ending.slot.returned(), Some(used), "{work:?}");
        world.run_on();
        assert_eq!(
            world.finishes,
            [Finish::Cancelled(rows_after_cancel(*work))],
            "{work:?}"
        );
        assert_eq!(world.node, NodeState::Uninitialized);
    }
    let mut world = World::new(Method::Backup);
    world.run_on();
    world.node = NodeState::Diverged;
    world.cancel();
    let Stage::Ending(ending) = &world.job.stage else {
        panic!("{:?}", world.job.stage);
    };
    assert_eq!(ending.slot.returned(), None);
    world.run_on();
    assert!(world.is_closed());
}

#[test]
fn a_cancel_at_every_command_removes_everything_target_first() {
    for work in SNAPSHOT_WORK {
        let mut world = World::new(Method::Snapshot);
        world.until(work);
        world.cancel();
        let cleanup = |w: &Work| w.is_cleanup();
        assert!(
            !world.work_of(work.side()).iter().any(cleanup),
            "{work:?} runs still"
        );
        world.run_on();
        assert_eq!(
            world.finishes,
            [Finish::Cancelled(rows_after_cancel(work))],
            "cancelled at {work:?}"
        );
        assert_eq!(world.node, NodeState::Uninitialized);
        let touched = |w: Work| world.ids.iter().find(|(_, x)| **x == w).map(|(id, _)| *id);
        let cleanup_target = Work::CleanupTarget(rows_after_cancel(work));
        let (target, source) = (touched(cleanup_target), touched(Work::CleanupSource));
        assert!(source.is_some(), "the grant at least is taken back");
        if touched(Work::PrepareTarget).is_some() {
            assert!(target < source, "the source was cleaned before the target");
        }
    }
}

#[test]
fn a_permanent_fault_at_every_command_ends_in_failed_with_its_cause() {
    for work in SNAPSHOT_WORK {
        let mut world = World::new(Method::Snapshot);
        // `keeping` tests what is kept.
        world.rules.patience.keep_failed = None;
        world.until(work);
        let at = world
            .work_of(work.side())
            .iter()
            .position(|w| *w == work)
            .unwrap();
        world.end_one(work.side(), at, true);
        world.run_on();
        assert_eq!(world.node, NodeState::Failed);
        let fault = world.failure();
        assert_eq!(fault.message, "disk full");
        assert_eq!(fault.node.as_ref(), Some(work.side().node(&world.job.spec)));
        assert!(world.is_closed());
    }
}

#[test]
fn a_job_fails_at_its_time_limit() {
    let mut world = World::new(Method::Snapshot);
    world.job.spec.timeout_seconds = 60;
    world.until(Work::BuildIndexes);
    world.tick(59);
    assert!(matches!(world.job.stage, Stage::Working(_)));
    world.tick(1);
    world.run_on();
    assert!(matches!(&world.finishes[..], [Finish::Failed(f)] if f.kind == FaultKind::Timeout));
}

#[test]
fn an_observed_danger_ends_a_running_job_with_that_cause_and_no_finished_one() {
    for work in SNAPSHOT_WORK {
        let mut world = World::new(Method::Snapshot);
        world.until(work);
        world.endanger();
        // The first cause counts.
        world.endanger();
        world.run_on();
        assert!(
            matches!(&world.finishes[..], [Finish::Failed(f)] if f.message == "the slot is lost"),
            "{work:?}: {:?}",
            world.finishes
        );
        assert!(world.is_closed());
        assert!(Side::BOTH.into_iter().all(|side| !world.job.owes(side)));
    }
    let mut world = World::new(Method::Snapshot);
    world.run_on();
    world.endanger();
    assert_eq!(world.node, NodeState::Synchronized);
}

#[test]
fn a_held_snapshot_that_is_too_old_ends_its_job() {
    let old = |method, work| {
        let mut world = World::new(method);
        world.rules.bounds.snapshot_age = Some(Duration::from_secs(60));
        // Time before the snapshot does not count.
        world.until(Work::GatherTarget);
        world.tick(100);
        world.until(work);
        world.tick(59);
        assert!(matches!(world.job.stage, Stage::Working(_)), "{work:?}");
        world.tick(1);
        world.run_on();
        world.finishes
    };
    for work in [Work::OpenSource, Work::PrepareTarget, Work::Copy] {
        let finishes = old(Method::Snapshot, work);
        let [Finish::Failed(fault)] = &finishes[..] else {
            panic!("{work:?}: {finishes:?}");
        };
        assert!(fault.message.contains("60 s old"), "{}", fault.message);
        assert!(fault.hint.contains("--max-snapshot-age"), "{}", fault.hint);
    }
    for (method, work) in [
        (Method::Snapshot, Work::BuildIndexes),
        (Method::Snapshot, Work::AwaitFence),
        (Method::Native, Work::PrepareTarget),
        (Method::Native, Work::AwaitNativeCopy),
    ] {
        assert_eq!(old(method, work), [Finish::Synchronized], "{work:?}");
    }
}

#[test]
fn a_cancel_with_an_offline_agent_says_what_is_pending_and_completes_later() {
    let mut world = World::new(Method::Snapshot);
    world.until(Work::Copy);
    world.kill(Side::Target);
    world.cancel();
    world.run_on();
    let [Finish::CancelPending(fault)] = &world.finishes[..] else {
        panic!("{:?}", world.finishes);
    };
    assert!(fault.message.contains("its agent is offline"), "{fault}");
    assert!(
        fault.hint.starts_with("start the agent of"),
        "{}",
        fault.hint
    );
    assert!(fault.hint.contains("--force-cleanup"), "{}", fault.hint);
    assert_eq!(world.node, NodeState::Failed);
    assert!(
        !world.job.owes(Side::Source),
        "the source does not wait for the target"
    );
    world.cancel();
    assert_eq!(
        world.finishes.len(),
        2,
        "a repeated cancel is answered again"
    );
    world.up(Side::Target);
    world.run_on();
    assert_eq!(
        world.finishes.last(),
        Some(&Finish::Cancelled(CancelledData::Remove))
    );
    assert_eq!(world.node, NodeState::Uninitialized);
}

#[test]
fn a_target_with_a_slow_cleanup_delays_the_source_only_briefly() {
    let mut world = World::new(Method::Snapshot);
    world.until(Work::Copy);
    world.cancel();
    world.end_one(Side::Target, 0, false);
    assert_eq!(world.work_of(Side::Target), [CLEANUP_TARGET]);
    world.tick(19);
    assert_eq!(world.work_of(Side::Source), []);
    world.tick(1);
    assert_eq!(world.work_of(Side::Source), [Work::CleanupSource]);
    world.run_on();
    assert_eq!(world.finishes, [Finish::Cancelled(CancelledData::Remove)]);
}

#[test]
fn a_failed_cleanup_is_retried() {
    let mut world = World::new(Method::Snapshot);
    world.rules.patience.keep_failed = None;
    world.until(Work::Copy);
    world.end_one(Side::Target, 0, true);
    world.end_one(Side::Target, 0, true);
    assert!(matches!(world.job.target.residue, Residue::Stuck { .. }));
    world.end_one(Side::Source, 0, false);
    assert_eq!(world.node, NodeState::Failed);
    world.tick(15);
    world.run_on();
    assert!(world.is_closed());
}

#[test]
fn a_synchronized_job_can_be_undone_for_a_node_that_diverged() {
    let mut world = World::new(Method::Snapshot);
    world.run_on();
    world.node = NodeState::Diverged;
    world
        .apply(JobEvent::Cancel {
            data: CancelledData::Keep,
        })
        .unwrap();
    assert!(matches!(&world.job.stage, Stage::Ending(e) if e.shown == Shown::Failed));
    world.run_on();
    assert_eq!(world.node, NodeState::Uninitialized);
    assert!(world.job.source.residue == Residue::Removed);
}
