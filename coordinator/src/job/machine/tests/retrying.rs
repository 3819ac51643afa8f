//! Transient faults: the work is retried until the budget is used up.

use super::*;
use crate::job::retry::{RETRY_FOR, waiting};
use steep_protocol::message::api::WaitsFor;

impl World {
    /// Lets that work fail with a transient fault.
    fn trip(&mut self, work: Work) {
        let at = self.work_of(work.side()).iter().position(|w| *w == work);
        self.stumble(work.side(), at.unwrap());
    }
}

#[test]
fn every_command_is_retried_after_a_transient_fault() {
    for method in [
        Method::Snapshot,
        Method::Native,
        Method::Backup,
        Method::Load,
    ] {
        for step in Step::path(method) {
            for work in step.begins(method) {
                let mut world = World::new(method);
                if *work == Work::Fold {
                    world.half = world.counted.complete;
                    world.until(Work::Copy);
                    world.lose_snapshot();
                }
                world.until(*work);
                world.trip(*work);
                world.tick(2);
                world.until(*work);
                world.run_on();
                assert_eq!(world.finishes, [success(method)], "{work:?}");
                assert!(world.job.retrying.is_empty());
            }
        }
    }
}

#[test]
fn a_copy_that_has_committed_every_part_is_not_repeated_without_its_snapshot() {
    let mut world = World::new(Method::Snapshot);
    world.until(Work::Copy);
    world.copied = true;
    // The restarted source has no plan for a repeated Copy.
    world.kill(Side::Source);
    world.up(Side::Source);
    assert!(world.job.is_running(Work::Copy) && world.job.restarts == 0);
    world.trip(Work::Copy);
    assert!(world.job.retrying.is_empty());
    assert!(
        world.job.is_running(Work::BuildIndexes),
        "{:?}",
        world.job.stage
    );
}

#[test]
fn pauses_grow_and_the_job_gives_up_when_the_budget_is_over() {
    for work in [Work::PrepareTarget, Work::BuildIndexes, Work::Subscribe] {
        let mut world = World::new(Method::Snapshot);
        world.rules.patience.keep_failed = None;
        world.until(work);
        let began = world.now;
        let mut tries = 0;
        while world.node != NodeState::Failed {
            if world.work_of(Side::Target).contains(&work) {
                world.trip(work);
                tries += 1;
            }
            world.tick(1);
            world.end_one(Side::Source, 0, false);
            let cleanup = world.work_of(Side::Target).iter().any(|w| w.is_cleanup());
            if cleanup {
                world.end_one(Side::Target, 0, false);
            }
        }
        let seconds = (world.now.as_second() - began.as_second()).unsigned_abs();
        assert!((1_800..1_840).contains(&seconds), "{work:?}: {seconds} s");
        assert!((60..120).contains(&tries), "{work:?}: {tries} tries");
        let fault = world.failure();
        assert!(fault.message.contains("connection was closed"), "{fault}");
        assert!(fault.message.contains("times in a row"), "{fault}");
    }
}

#[test]
fn a_preflight_gives_up_within_seconds() {
    let mut world = World::new(Method::Snapshot);
    for _ in 0..14 {
        if world.work_of(Side::Source).contains(&Work::GatherSource) {
            world.trip(Work::GatherSource);
        }
        world.tick(1);
    }
    world.run_on();
    assert_eq!(world.node, NodeState::Failed);
    assert!(world.is_closed(), "nothing is kept of it");
}

#[test]
fn a_waiting_job_shows_the_next_try_and_when_it_gives_up() {
    let mut world = World::new(Method::Snapshot);
    world.until(Work::BuildIndexes);
    let waits_for = |world: &World| waiting(&world.job, &world.rules.patience, world.now);
    assert_eq!(waits_for(&world), None);
    world.trip(Work::BuildIndexes);
    let waits = waits_for(&world).unwrap();
    assert_eq!(waits.node_id, testing::node("b"));
    assert_eq!((waits.what, waits.tries), (WaitsFor::Retry, 1));
    assert_eq!(waits.next_try_seconds, Some(1));
    world.server(Side::Target, Err("connection refused".to_owned()));
    let waits = waits_for(&world).unwrap();
    assert_eq!(waits.what, WaitsFor::Postgresql);
    assert_eq!(waits.reason, "connection refused");
    assert_eq!(waits.gives_up_seconds, RETRY_FOR.as_secs());
    world.server(Side::Target, Ok(()));
    world.tick(0);
    assert_eq!(waits_for(&world), None, "it is tried at once");
    assert_eq!(world.work_of(Side::Target), [Work::BuildIndexes]);
    world.run_on();
    assert_eq!(world.finishes, [Finish::Synchronized]);
}

#[test]
fn a_silent_server_fails_the_job_if_it_is_needed_once_the_budget_is_over() {
    for (work, side, ends) in [
        (Work::Copy, Side::Source, true),
        (Work::Copy, Side::Target, true),
        (Work::AwaitFence, Side::Target, true),
        (Work::BuildConstraints, Side::Source, false),
    ] {
        let mut world = World::new(Method::Snapshot);
        world.rules.patience.keep_failed = None;
        world.until(work);
        world.server(side, Err("connection refused".to_owned()));
        world.tick(1_799);
        assert!(matches!(world.job.stage, Stage::Working(_)), "{work:?}");
        world.tick(1);
        let ended = matches!(world.job.stage, Stage::Ending(_));
        assert_eq!(ended, ends, "{work:?} without the server of {side:?}");
    }
}

#[test]
fn a_command_is_not_retried_before_its_agent_is_back() {
    let mut world = World::new(Method::Snapshot);
    world.until(Work::BuildIndexes);
    world.trip(Work::BuildIndexes);
    world.kill(Side::Target);
    world.tick(60);
    assert_eq!(world.work_of(Side::Target), []);
    world.up(Side::Target);
    world.tick(0);
    assert_eq!(world.work_of(Side::Target), [Work::BuildIndexes]);
    world.run_on();
    assert_eq!(world.finishes, [Finish::Synchronized]);
}

#[test]
fn a_command_that_another_side_may_have_failed_is_retried_as_soon_as_that_is_back() {
    let mut world = World::new(Method::Snapshot);
    world.until(Work::BuildIndexes);
    for _ in 0..4 {
        world.trip(Work::BuildIndexes);
        world.tick(10);
    }
    world.trip(Work::BuildIndexes);
    world.down(Side::Source);
    world.tick(0);
    assert_eq!(world.work_of(Side::Target), []);
    world.up(Side::Source);
    world.tick(0);
    assert_eq!(world.work_of(Side::Target), [Work::BuildIndexes]);
}
