//! Other terms for a running job.

use steep_protocol::message::adjust::{Adjustment, MaxRate};

use super::*;

const LIMITED: MaxRate = MaxRate::Limited(ByteCount(5));

fn parallel(n: u8) -> Adjustment {
    Adjustment {
        parallel: Some(n),
        max_rate: None,
    }
}

fn rate(max_rate: MaxRate) -> Adjustment {
    Adjustment {
        parallel: None,
        max_rate: Some(max_rate),
    }
}

impl World {
    fn adjust(&mut self, change: Adjustment) -> Result<(), Refused> {
        self.apply(JobEvent::Adjust(change))
    }

    /// How often the target was sent Copy.
    fn copies_sent(&self) -> usize {
        let copies = self.sent.iter().filter(|(_, work)| *work == Work::Copy);
        copies.count()
    }
}

#[test]
fn a_running_copy_is_sent_again_under_its_id_and_with_the_new_terms() {
    let mut world = World::new(Method::Snapshot);
    world.until(Work::Copy);
    let before = world.job.clone();
    world.adjust(parallel(9)).unwrap();
    world.adjust(rate(LIMITED)).unwrap();
    let spec = &world.job.spec;
    assert_eq!((spec.parallel, spec.max_rate), (9, Some(ByteCount(5))));
    assert_eq!(spec.timeout_seconds, before.spec.timeout_seconds);
    assert_eq!(world.job.running, before.running);
    assert_eq!(world.copies_sent(), 3);
    world.adjust(rate(MaxRate::Unlimited)).unwrap();
    assert_eq!(world.job.spec.max_rate, None);
    world.run_on();
    assert_eq!(world.finishes, [Finish::Synchronized]);
}

#[test]
fn an_absent_agent_hears_of_new_terms_when_it_is_back() {
    let mut world = World::new(Method::Stored);
    world.until(Work::Copy);
    world.down(Side::Target);
    world.adjust(parallel(9)).unwrap();
    assert_eq!(world.copies_sent(), 1);
    world.up(Side::Target);
    assert_eq!(world.copies_sent(), 2);
}

#[test]
fn before_the_copy_new_terms_wait_for_it() {
    for work in [Work::GatherSource, Work::GatherTarget, Work::OpenSource] {
        let mut world = World::new(Method::Snapshot);
        world.until(work);
        assert_eq!(world.job.rate_counts_from(), Some(Phase::Copy), "{work:?}");
        world.adjust(parallel(9)).unwrap();
        world.adjust(rate(LIMITED)).unwrap();
        assert_eq!(world.copies_sent(), 0);
        world.until(Work::Copy);
        assert_eq!((world.job.spec.parallel, world.copies_sent()), (9, 1));
    }
}

#[test]
fn after_the_copy_only_workers_count_and_only_for_what_has_not_begun() {
    let from = [
        (Work::Copy, Some(Phase::Copy)),
        (Work::BuildIndexes, Some(Phase::Constraints)),
        (Work::BuildConstraints, Some(Phase::CatchUp)),
        (Work::Subscribe, Some(Phase::CatchUp)),
        (Work::Finish, None),
        (Work::ProveTarget, None),
        (Work::ReleaseTarget, None),
    ];
    for (work, phase) in from {
        let mut world = World::new(Method::Snapshot);
        world.until(work);
        assert_eq!(world.job.workers_count_from(), phase, "{work:?}");
        let (before, sent) = (world.job.clone(), world.sent.len());
        if work != Work::Copy {
            assert_eq!(
                world.adjust(rate(LIMITED)),
                Err(Refused::TooLate),
                "{work:?}"
            );
            let both = Adjustment {
                parallel: Some(9),
                max_rate: Some(LIMITED),
            };
            assert_eq!(world.adjust(both), Err(Refused::TooLate));
            assert_eq!(world.job, before, "all or nothing");
            assert_eq!(
                world.adjust(parallel(9)).is_ok(),
                phase.is_some(),
                "{work:?}"
            );
            assert_eq!(world.sent.len(), sent, "what runs goes on as it began");
        }
    }
}

#[test]
fn a_job_that_no_worker_of_ours_copies_or_that_has_ended_takes_no_terms() {
    for method in [Method::Native, Method::Backup] {
        let mut world = World::new(method);
        assert_eq!(
            world.adjust(parallel(9)),
            Err(Refused::TooLate),
            "{method:?}"
        );
    }
    let mut failed = World::new(Method::Snapshot);
    failed.until(Work::Copy);
    failed.end_one(Side::Target, 0, true);
    assert!(failed.job.kept_until().is_some());
    assert_eq!(failed.adjust(parallel(9)), Err(Refused::TooLate));
    failed.cancel();
    assert_eq!(failed.adjust(parallel(9)), Err(Refused::TooLate));
    failed.run_on();
    assert!(failed.is_closed());
    assert_eq!(failed.adjust(parallel(9)), Err(Refused::TooLate));
}

#[test]
fn a_job_that_starts_over_takes_terms_for_its_next_copy() {
    let mut world = World::new(Method::Snapshot);
    world.until(Work::Copy);
    world.lose_snapshot();
    assert!(matches!(world.job.stage, Stage::Ending(_)));
    let sent = world.copies_sent();
    world.adjust(parallel(9)).unwrap();
    assert_eq!(world.copies_sent(), sent, "the aborted copy is left alone");
    world.run_on();
    assert_eq!(world.finishes, [Finish::Synchronized]);
    assert_eq!(world.job.spec.parallel, 9);
}
