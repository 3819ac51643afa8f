//! A job whose snapshot was lost goes on with another one.

use super::*;
use steep_protocol::SnapshotId;
use steep_protocol::message::handover::Replication;

use crate::job::Spooling;
use crate::job::retry::RESTARTS_MAX;

/// A job in mid-copy with a complete table.
fn in_mid_copy() -> World {
    let mut world = World::new(Method::Snapshot);
    world.half = Complete {
        tables: 1,
        sum: PART,
    };
    world.until(Work::Copy);
    world
}

fn opened(world: &World) -> usize {
    world
        .ids
        .values()
        .filter(|w| **w == Work::OpenSource)
        .count()
}

fn cleaned(world: &World) -> bool {
    world.ids.values().any(|work| work.is_cleanup())
}

#[test]
fn complete_tables_stay_and_the_epochs_are_folded_before_the_proof() {
    let mut world = in_mid_copy();
    let first = world.job.replication();
    world.lose_snapshot();
    assert_eq!(world.job.kept, world.half);
    assert_ne!(world.job.replication(), first);
    assert_eq!(opened(&world), 2, "another snapshot is opened at once");
    // The target is not told to prepare while it may still copy.
    world.end_one(Side::Source, 0, false);
    assert!(!world.work_of(Side::Target).contains(&Work::PrepareTarget));
    world.until(Work::Fold);
    let earlier: Vec<JobId> = world
        .job
        .earlier
        .iter()
        .map(|epoch| epoch.replication.id)
        .collect();
    assert_eq!(earlier, [first.id]);
    world.run_on();
    assert_eq!(world.finishes, [Finish::Synchronized]);
    assert!(world.job.earlier.is_empty() && !cleaned(&world));
    let order = |work| world.sent.iter().position(|(_, sent)| *sent == work);
    assert!(order(Work::AwaitFence) < order(Work::Fold));
    assert!(order(Work::Fold) < order(Work::ProveTarget));
    // Until then rows of two snapshots need not fit together.
    let last_fence = world
        .sent
        .iter()
        .rposition(|(_, work)| *work == Work::AwaitFence);
    assert!(order(Work::Fold) < last_fence && last_fence < order(Work::Finish));
}

#[test]
fn a_lost_snapshot_that_is_reported_again_costs_nothing_until_the_next_is_open() {
    let mut world = in_mid_copy();
    world.lose_snapshot();
    let (restarts, sent) = (world.job.restarts, world.sent.len());
    for _ in 0..=RESTARTS_MAX {
        world.lose_snapshot();
    }
    assert_eq!((world.job.restarts, world.sent.len()), (restarts, sent));
    assert_eq!((world.job.epoch.0, world.job.earlier.len()), (1, 1));
    world.run_on();
    assert_eq!(world.finishes, [Finish::Synchronized]);
}

#[test]
fn a_job_with_one_epoch_has_nothing_to_fold() {
    let mut world = World::new(Method::Snapshot);
    world.run_on();
    assert_eq!(world.finishes, [Finish::Synchronized]);
    assert!(!world.ids.values().any(|work| *work == Work::Fold));
}

#[test]
fn a_snapshot_that_completed_no_table_leaves_no_epoch_behind() {
    let mut world = in_mid_copy();
    world.lose_snapshot();
    world.half = Complete::default();
    world.until(Work::Copy);
    world.lose_snapshot();
    assert_eq!((world.job.earlier.len(), world.job.epoch.0), (1, 1));
    world.run_on();
    assert_eq!(world.finishes, [Finish::Synchronized]);
    assert!(!cleaned(&world));
}

#[test]
fn a_command_that_never_reached_its_agent_is_not_waited_for_once_its_snapshot_is_lost() {
    let mut world = World::new(Method::Snapshot);
    world.half = Complete {
        tables: 1,
        sum: PART,
    };
    world.until(Work::OpenSource);
    world.down(Side::Target);
    world.end_one(Side::Source, 0, false);
    assert!(world.job.is_running(Work::PrepareTarget));
    world.kill(Side::Source);
    world.up(Side::Source);
    world.run_on();
    world.up(Side::Target);
    world.run_on();
    assert_eq!(world.finishes, [Finish::Synchronized]);
}

#[test]
fn a_table_that_changed_on_the_source_costs_no_complete_one() {
    let mut world = in_mid_copy();
    let side = Work::Copy.side();
    let at = world.work_of(side).iter().position(|w| *w == Work::Copy);
    let fault = Fault::new(FaultKind::SourceChanged, "table t was truncated");
    world.end_with(side, at.unwrap(), Some(fault));
    assert_eq!((world.job.kept.tables, world.job.epoch.0), (1, 1));
    assert_eq!(opened(&world), 2);
    world.run_on();
    assert_eq!(world.finishes, [Finish::Synchronized]);
    assert!(!cleaned(&world));
}

#[test]
fn a_snapshot_that_others_share_costs_only_what_had_begun_and_leaves_them_their_publication() {
    let spool = || Fault::new(FaultKind::StoreDamaged, "the spool is gone");
    let lost = [
        (Spooling::Spooled, JobEvent::SpoolLost { fault: spool() }),
        (Spooling::Live, JobEvent::SnapshotLost),
    ];
    for (spooling, lost) in lost {
        let mut world = in_mid_copy();
        world.job.shared = Some(SnapshotId(70));
        world.job.spooling = spooling;
        let shared = world.job.replication();
        world.apply(lost).unwrap();
        assert_eq!(world.job.kept.tables, 1);
        let first = world.job.earlier[0].replication.clone();
        assert_eq!(first.slot, shared.slot);
        assert_eq!(first.name(), Replication::of(world.job.id).name());
        assert_eq!(first.shared(), Some(shared));
        assert!(!world.job.spools() && world.job.snapshot().is_none());
        world.run_on();
        assert_eq!(world.finishes, [Finish::Synchronized]);
        assert!(!cleaned(&world));
    }
}

#[test]
fn a_table_that_changed_on_the_source_costs_none_of_those_that_share_its_snapshot() {
    let mut world = in_mid_copy();
    world.job.shared = Some(SnapshotId(70));
    let at = world
        .work_of(Side::Target)
        .iter()
        .position(|w| *w == Work::Copy);
    let fault = Fault::new(FaultKind::SourceChanged, "table t was truncated");
    world.end_with(Side::Target, at.unwrap(), Some(fault));
    assert_eq!((world.job.kept.tables, world.job.epoch.0), (1, 1));
    world.run_on();
    assert_eq!(world.finishes, [Finish::Synchronized]);
    assert!(!cleaned(&world));
}

#[test]
fn a_target_that_was_away_is_told_to_stop_the_old_copy() {
    let mut world = in_mid_copy();
    world.down(Side::Target);
    world.lose_snapshot();
    let copies = |world: &World| world.sent.iter().filter(|(_, w)| *w == Work::Copy).count();
    let before = copies(&world);
    world.up(Side::Target);
    assert_eq!(
        copies(&world),
        before,
        "the copy of the lost snapshot was sent again"
    );
    assert!(!world.agent(Side::Target).aborted.is_empty());
    world.run_on();
    assert_eq!(world.finishes, [Finish::Synchronized]);
}

#[test]
fn an_agent_that_restarts_knows_nothing_of_the_old_copy() {
    let mut world = in_mid_copy();
    world.lose_snapshot();
    let mut opened_first = world.clone();
    opened_first.end_one(Side::Source, 0, false);
    for mut world in [world, opened_first] {
        world.kill(Side::Target);
        world.up(Side::Target);
        world.run_on();
        assert_eq!(world.finishes, [Finish::Synchronized]);
    }
}

#[test]
fn after_too_many_lost_snapshots_the_tables_wait_for_a_resume() {
    let mut world = in_mid_copy();
    world.lose_snapshot();
    for _ in 0..RESTARTS_MAX {
        world.until(Work::PrepareTarget);
        world.until(Work::Copy);
        world.lose_snapshot();
    }
    assert_eq!(world.node, NodeState::Failed);
    let fault = world.failure();
    assert!(
        fault.message.contains("another snapshot 5 times"),
        "{fault}"
    );
    assert!(fault.hint.contains("--resume"), "{}", fault.hint);
    world.tick(60);
    assert!(!cleaned(&world));
    world.run_on();
    world.resume();
    world.run_on();
    assert_eq!(world.finishes, [Finish::Synchronized]);
    assert!(!cleaned(&world));
}

#[test]
fn a_failed_job_keeps_its_tables_when_its_snapshot_is_lost() {
    let mut world = in_mid_copy();
    world.end_one(Side::Target, 0, true);
    assert_eq!(world.node, NodeState::Failed);
    world.kill(Side::Source);
    world.up(Side::Source);
    world.tick(60);
    assert!(!cleaned(&world));
    assert_eq!(world.job.kept, world.half);
    world.resume();
    world.run_on();
    assert_eq!(world.finishes, [Finish::Synchronized]);
}

#[test]
fn a_failed_job_lets_its_snapshot_go_and_keeps_its_tables() {
    let mut world = in_mid_copy();
    world.end_one(Side::Target, 0, true);
    let until = world.job.kept_until().unwrap();
    world.tick((until.as_second() - world.now.as_second()) + 1);
    assert!(world.work_of(Side::Source).contains(&Work::CloseSnapshot));
    assert!(world.job.kept_until().unwrap() > until);
    world.run_on();
    world.tick(60);
    assert!(!cleaned(&world));
    world.resume();
    world.run_on();
    assert_eq!(world.finishes, [Finish::Synchronized]);
    assert_eq!(opened(&world), 2);
}

#[test]
fn a_job_whose_source_stays_away_keeps_its_tables() {
    let mut world = in_mid_copy();
    world.down(Side::Source);
    for _ in 0..200 {
        world.tick(15);
    }
    assert_eq!(world.node, NodeState::Failed);
    assert!(world.failure().hint.contains("--resume"));
    world.kill(Side::Source);
    world.up(Side::Source);
    world.resume();
    world.run_on();
    assert_eq!(world.finishes, [Finish::Synchronized]);
}

#[test]
fn a_later_snapshot_that_cannot_be_used_is_closed_and_another_is_taken_by_a_resume() {
    let mut world = in_mid_copy();
    world.lose_snapshot();
    world.until(Work::PrepareTarget);
    let at = world
        .work_of(Side::Target)
        .iter()
        .position(|w| *w == Work::PrepareTarget);
    let fault = Fault::new(FaultKind::SchemaMismatch, "table t was altered");
    world.end_with(Side::Target, at.unwrap(), Some(fault));
    assert!(world.job.kept_until().is_some());
    world.run_on();
    assert!(!world.agent(Side::Source).snapshot, "it is still held open");
    world.apply(JobEvent::Resume { terms: TERMS }).unwrap();
    assert_eq!(opened(&world), 3);
    world.run_on();
    assert_eq!(world.finishes, [Finish::Synchronized]);
}
