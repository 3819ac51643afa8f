//! The path to SYNCHRONIZED, and what must hold on it.

use super::ending::rows_after_cancel;
use super::*;

/// The commands of a job that loads a stored snapshot without replication.
const LOAD_WORK: [Work; 12] = [
    Work::GatherSource,
    Work::GatherTarget,
    Work::OpenSource,
    Work::PrepareTarget,
    Work::Copy,
    Work::BuildIndexes,
    Work::BuildConstraints,
    Work::Finish,
    Work::ProveTarget,
    Work::ProveSource,
    Work::ReleaseTarget,
    Work::ReleaseSource,
];

impl World {
    /// Every kind of work that was given, in the order of the commands' ids.
    fn given(&self) -> Vec<Work> {
        let mut given: Vec<(CommandId, Work)> = self.ids.iter().map(|(id, w)| (*id, *w)).collect();
        given.sort_by_key(|(id, _)| *id);
        given.into_iter().map(|(_, work)| work).collect()
    }
}

#[test]
fn every_method_leads_to_synchronized() {
    for method in [Method::Snapshot, Method::Native, Method::Backup] {
        let mut world = World::new(method);
        world.run_on();
        assert_eq!(world.finishes, [Finish::Synchronized], "{method:?}");
        assert_eq!(world.node, NodeState::Synchronized);
        assert!(world.is_closed());
    }
}

#[test]
fn a_job_from_a_backup_copies_nothing_and_goes_through_the_same_states() {
    let mut world = World::new(Method::Backup);
    world.run_on();
    assert_eq!(world.given(), BACKUP_WORK);
    assert_eq!(
        world.nodes,
        [
            NodeState::Preparing,
            NodeState::Copying,
            NodeState::CatchingUp,
            NodeState::Synchronized
        ]
    );
}

#[test]
fn a_job_that_loads_a_snapshot_neither_subscribes_nor_is_synchronized() {
    let mut world = World::new(Method::Load);
    world.run_on();
    assert_eq!(world.given(), LOAD_WORK);
    assert_eq!(world.finishes, [Finish::Loaded]);
    assert_eq!(
        world.nodes,
        [
            NodeState::Preparing,
            NodeState::Copying,
            NodeState::Uninitialized
        ]
    );
    assert!(world.is_closed());
    let data = CancelledData::Remove;
    let cancelled = world.apply(JobEvent::Cancel { data });
    assert_eq!(cancelled, Err(Refused::Over));
}

#[test]
fn a_job_that_loads_a_snapshot_leaves_nothing_on_a_source_that_is_away() {
    for work in LOAD_WORK.into_iter().take(11) {
        let mut world = World::new(Method::Load);
        world.until(work);
        world.kill(Side::Source);
        world.cancel();
        world.run_on();
        // The source's server has nothing of it.
        assert_eq!(
            world.finishes,
            [Finish::Cancelled(rows_after_cancel(work))],
            "{work:?}"
        );
        assert_eq!(world.node, NodeState::Uninitialized);
        assert!(world.is_closed());
    }
}

#[test]
fn a_job_that_loads_a_snapshot_survives_the_death_of_either_agent_and_a_failure() {
    for work in LOAD_WORK.into_iter().take(11) {
        for side in Side::BOTH {
            let mut world = World::new(Method::Load);
            world.until(work);
            world.kill(side);
            world.up(side);
            world.live_on();
            assert_eq!(world.finishes, [Finish::Loaded], "{work:?}, {side:?}");
        }
    }
    for work in [Work::Copy, Work::BuildIndexes, Work::Finish] {
        let mut world = World::new(Method::Load);
        world.until(work);
        world.end_one(Side::Target, 0, true);
        let fault = world.failure();
        assert!(fault.hint.contains("--resume"), "{work:?}: {fault:?}");
        assert!(!fault.hint.contains("slot"), "{work:?}: {fault:?}");
        world.resume();
        world.run_on();
        assert_eq!(world.finishes, [Finish::Loaded], "{work:?}");
        assert_eq!(world.node, NodeState::Uninitialized);
    }
}

#[test]
fn a_source_without_facts_about_the_slot_fails_a_job_from_a_backup() {
    let mut world = World::new(Method::Backup);
    let (id, _) = world.agent(Side::Source).at_work[0];
    let outcome = Box::new(Ok(Outcome::SourceFacts(Box::default())));
    let event = JobEvent::Ended { id, outcome };
    world.apply(event).unwrap();
    world.run_on();
    let fault = world.failure();
    assert!(fault.hint.contains("same version"), "{fault:?}");
}

#[test]
fn parts_whose_messages_were_lost_are_asked_for_again_a_limited_number_of_times() {
    let mut world = World::new(Method::Snapshot);
    world.counted.done.parts = 2;
    world.until(Work::Copy);
    world.end_one(Side::Target, 0, false);
    assert_eq!(world.work_of(Side::Target), [Work::Copy]);
    world.counted.done = DONE;
    world.run_on();
    assert_eq!(world.node, NodeState::Synchronized);

    let mut world = World::new(Method::Snapshot);
    world.counted.done.parts = 2;
    world.run_on();
    assert_eq!(world.node, NodeState::Failed);
    assert!(matches!(&world.finishes[..], [Finish::Failed(f)] if f.message.contains("2 of 3")));
}

#[test]
fn differing_sums_fail_the_job() {
    for lie in [
        Totals { parts: 2, ..DONE },
        Totals {
            rows: RowCount(31),
            ..DONE
        },
        Totals {
            bytes: ByteCount(299),
            ..DONE
        },
    ] {
        for work in [Work::ProveTarget, Work::ProveSource] {
            let mut world = World::new(Method::Snapshot);
            world.until(work);
            let Totals { parts, rows, bytes } = lie;
            let agent = world.agent(work.side());
            let at = agent.at_work.iter().position(|(_, w)| *w == work).unwrap();
            let (id, _) = agent.at_work.remove(at);
            let outcome = Box::new(Ok(Outcome::Totals { parts, rows, bytes }));
            world.apply(JobEvent::Ended { id, outcome }).unwrap();
            world.run_on();
            assert_eq!(world.node, NodeState::Failed, "{work:?} with {lie:?}");
        }
    }
}

#[test]
fn a_schema_that_differs_stops_the_job_before_it_changes_anything() {
    let mut world = World::new(Method::Snapshot);
    world.rules.judge = schema_differs;
    world.run_on();
    let fault = world.failure();
    assert_eq!(fault.kind, FaultKind::SchemaMismatch);
    assert!(
        world
            .ids
            .values()
            .all(|w| *w != Work::OpenSource && *w != Work::PrepareTarget)
    );
    assert!(world.is_closed());
}

#[test]
fn a_job_survives_being_stored_at_every_command() {
    for work in SNAPSHOT_WORK {
        let mut world = World::new(Method::Snapshot);
        world.until(work);
        let text = serde_json::to_string(&world.job).unwrap();
        assert_eq!(serde_json::from_str::<Job>(&text).unwrap(), world.job);
        for side in Side::BOTH {
            world.down(side);
        }
        world.up(Side::Target);
        world.up(Side::Source);
        world.run_on();
        assert_eq!(world.node, NodeState::Synchronized);
    }
}
