//! The machine against agents that live in memory: good ones, and ones that die, lose their session,
//! fail and lie, at every step.

use std::collections::HashMap;

use jiff::SignedDuration;
use proptest::prelude::*;
use steep_protocol::message::facts::{Severity, SourceFacts};
use steep_protocol::message::handover::{
    HandoverFacts, Replication, SchemaCheck, SlotFacts, SlotName, Used,
};
use steep_protocol::message::job::Method;
use steep_protocol::{ByteCount, FaultKind, JobId, Lsn, NodeState, RowCount};

use super::super::handover::Handover;
use super::super::state::transition;
use super::super::{Shown, Why};
use super::*;
use crate::testing;

const DONE: Totals = Totals {
    parts: 3,
    rows: RowCount(30),
    bytes: ByteCount(300),
};

fn no_findings(_: &Case<'_>) -> Vec<Finding> {
    Vec::new()
}

fn schema_differs(_: &Case<'_>) -> Vec<Finding> {
    vec![Finding {
        severity: Severity::Error,
        code: "schema_mismatch".to_owned(),
        node: Some(testing::node("b")),
        what: "table public.t is missing".to_owned(),
        why: String::new(),
        fix: String::new(),
    }]
}

/// One agent: what it was told and has not ended, what it was told to stop.
#[derive(Default)]
struct Agent {
    online: bool,
    incarnation: u64,
    snapshot: bool,
    at_work: Vec<(CommandId, Work)>,
    aborted: Vec<CommandId>,
}

/// A job with both its agents, its node and its clock.
struct World {
    job: Job,
    node: NodeState,
    /// The states it went through.
    nodes: Vec<NodeState>,
    now: Timestamp,
    agents: [Agent; 2],
    counted: Counted,
    finishes: Vec<Finish>,
    ids: HashMap<CommandId, Work>,
    rules: Rules,
}

impl World {
    fn new(method: Method) -> Self {
        let mut spec = testing::spec("a", "b");
        spec.method = method;
        let now = Timestamp::UNIX_EPOCH;
        let mut job = Job::new(JobId(7), spec, "op", 1_000, now);
        job.handover = (method == Method::Backup).then(handover);
        let mut world = Self {
            job,
            node: NodeState::Uninitialized,
            nodes: Vec::new(),
            now,
            agents: [Agent::default(), Agent::default()],
            counted: Counted {
                tables: 2,
                planned: 3,
                done: DONE,
            },
            finishes: Vec::new(),
            ids: HashMap::new(),
            rules: Rules {
                judge: no_findings,
                bounds: Bounds::default(),
            },
        };
        world.up(Side::Source);
        world.up(Side::Target);
        world.apply(JobEvent::Begin).unwrap();
        world
    }

    fn agent(&mut self, side: Side) -> &mut Agent {
        &mut self.agents[usize::from(side == Side::Target)]
    }

    fn apply(&mut self, event: JobEvent) -> Result<(), Refused> {
        let before = self.job.clone();
        let (job, effects) = step(before, event, self.now, self.rules)?;
        self.job = job;
        for effect in effects {
            self.execute(effect);
        }
        Ok(())
    }

    fn execute(&mut self, effect: Effect) {
        match effect {
            Effect::Send { id, work } => {
                assert_eq!(
                    *self.ids.entry(id).or_insert(work),
                    work,
                    "an id was reused"
                );
                if work.is_cleanup() {
                    let others = self
                        .job
                        .running
                        .iter()
                        .any(|r| r.work.side() == work.side() && !r.work.is_cleanup());
                    assert!(!others, "{work:?} given while others run on its side");
                }
                let agent = self.agent(work.side());
                assert!(agent.online, "{work:?} sent to nobody");
                if !agent.at_work.contains(&(id, work)) {
                    agent.at_work.push((id, work));
                }
            }
            Effect::Abort { id, side } => self.agent(side).aborted.push(id),
            Effect::Node(event) => {
                self.node = transition(self.node, event).expect("the node's relation");
                self.nodes.push(self.node);
            }
            Effect::Finished(finish) => self.finishes.push(finish),
            Effect::Closed => assert!(self.job.running.is_empty(), "closed with commands running"),
            Effect::Forget { .. }
            | Effect::PhaseStarted(_)
            | Effect::PhaseCompleted { .. }
            | Effect::Found(_)
            | Effect::CleanupFailed { .. } => {}
        }
    }

    fn up(&mut self, side: Side) {
        let agent = self.agent(side);
        agent.online = true;
        let event = JobEvent::Up {
            side,
            incarnation: agent.incarnation,
            snapshot: if agent.snapshot {
                Snapshot::Held
            } else {
                Snapshot::NotHeld
            },
        };
        self.apply(event).unwrap();
    }

    fn down(&mut self, side: Side) {
        self.leave(side, Parting::Lost);
    }

    fn leave(&mut self, side: Side, parting: Parting) {
        self.agent(side).online = false;
        let event = JobEvent::Down {
            side,
            give_up: after(self.now, AWAY_LIMIT),
            parting,
        };
        self.apply(event).unwrap();
    }

    /// The process dies: what it did and what it knew is gone.
    fn kill(&mut self, side: Side) {
        self.end_process(side);
        if self.agent(side).online {
            self.down(side);
        }
    }

    /// The same, said beforehand.
    fn kill_politely(&mut self, side: Side) {
        self.end_process(side);
        self.leave(side, Parting::Stopped);
    }

    fn end_process(&mut self, side: Side) {
        let agent = self.agent(side);
        agent.at_work.clear();
        agent.snapshot = false;
        agent.incarnation += 1;
    }

    fn tick(&mut self, seconds: i64) {
        self.now += SignedDuration::from_secs(seconds);
        self.apply(JobEvent::Tick).unwrap();
    }

    fn endanger(&mut self) {
        let fault = Fault::new(FaultKind::Failed, "the slot is lost");
        self.apply(JobEvent::Endangered { fault }).unwrap();
    }

    /// Ends one command, if the agent is there to say so.
    fn end_one(&mut self, side: Side, at: usize, fault: bool) {
        let counted = self.counted;
        let agent = self.agent(side);
        if !agent.online || agent.at_work.is_empty() {
            return;
        }
        let (id, work) = agent.at_work.remove(at % agent.at_work.len());
        let outcome = if agent.aborted.contains(&id) {
            Err(Fault::new(FaultKind::Cancelled, "aborted"))
        } else if fault {
            Err(Fault::new(FaultKind::Failed, "disk full"))
        } else {
            if work == Work::OpenSource {
                agent.snapshot = true;
            }
            Ok(self.outcome_of(work))
        };
        let outcome = Box::new(outcome);
        self.apply(JobEvent::Ended {
            id,
            outcome,
            counted,
        })
        .unwrap();
    }

    fn outcome_of(&self, work: Work) -> Outcome {
        if work == Work::GatherSource && self.job.handover.is_some() {
            return Outcome::HandoverFacts(Box::new(HandoverFacts {
                source: SourceFacts::default(),
                slot: SlotFacts::default(),
            }));
        }
        outcome_of(work)
    }

    fn work_of(&self, side: Side) -> Vec<Work> {
        let agent = &self.agents[usize::from(side == Side::Target)];
        agent.at_work.iter().map(|(_, work)| *work).collect()
    }

    /// Ends commands well until that one is at work.
    fn until(&mut self, work: Work) {
        for _ in 0..50 {
            for side in Side::BOTH {
                if self.work_of(work.side()).contains(&work) {
                    return;
                }
                self.end_one(side, 0, false);
            }
        }
        panic!("{work:?} never began; the job is {:?}", self.job.stage);
    }

    fn run_on(&mut self) {
        for _ in 0..100 {
            for side in Side::BOTH {
                self.end_one(side, 0, false);
            }
        }
    }

    fn is_closed(&self) -> bool {
        matches!(self.job.stage, Stage::Closed(_))
    }
}

/// A job that goes on from a backup.
fn handover() -> Handover {
    Handover {
        replication: Replication {
            id: JobId(9),
            slot: SlotName::parse("backup").unwrap(),
        },
        lsn: Lsn(5),
        schema: SchemaCheck::Compared,
    }
}

fn outcome_of(work: Work) -> Outcome {
    let Totals { parts, rows, bytes } = DONE;
    match work {
        Work::GatherSource | Work::Regrant => Outcome::SourceFacts(Box::default()),
        Work::GatherTarget => Outcome::TargetFacts(Box::default()),
        Work::OpenSource => Outcome::SourceOpened {
            lsn: Lsn(5),
            tables: 2,
            parts,
        },
        Work::PrepareTarget | Work::BuildIndexes | Work::BuildConstraints | Work::Finish => {
            Outcome::Warned(Vec::new())
        }
        Work::AwaitFence => Outcome::FencePassed { lsn: Lsn(6) },
        Work::ProveTarget | Work::ProveSource => Outcome::Totals { parts, rows, bytes },
        Work::Copy
        | Work::CloseSnapshot
        | Work::TakeSlot
        | Work::Subscribe
        | Work::AwaitNativeCopy
        | Work::ReleaseTarget
        | Work::ReleaseSource
        | Work::CleanupTarget(_)
        | Work::CleanupSource => Outcome::Done,
    }
}

const SNAPSHOT_WORK: [Work; 15] = [
    Work::GatherSource,
    Work::GatherTarget,
    Work::OpenSource,
    Work::PrepareTarget,
    Work::Copy,
    Work::CloseSnapshot,
    Work::BuildIndexes,
    Work::BuildConstraints,
    Work::Subscribe,
    Work::AwaitFence,
    Work::Finish,
    Work::ProveTarget,
    Work::ProveSource,
    Work::ReleaseTarget,
    Work::GatherSource,
];

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

/// Which commands a hand-over from a backup gives.
const BACKUP_WORK: [Work; 9] = [
    Work::GatherSource,
    Work::GatherTarget,
    Work::TakeSlot,
    Work::PrepareTarget,
    Work::Subscribe,
    Work::AwaitFence,
    Work::Finish,
    Work::ReleaseTarget,
    Work::ReleaseSource,
];

#[test]
fn a_hand_over_copies_nothing_and_goes_through_the_same_states() {
    let mut world = World::new(Method::Backup);
    world.run_on();
    let mut given: Vec<(CommandId, Work)> = world.ids.iter().map(|(id, w)| (*id, *w)).collect();
    given.sort_by_key(|(id, _)| *id);
    let given: Vec<Work> = given.into_iter().map(|(_, work)| work).collect();
    assert_eq!(given, BACKUP_WORK);
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
fn a_prepared_slot_is_given_back_unless_it_had_become_the_nodes_own() {
    let data = CancelledData::Remove;
    for work in &BACKUP_WORK[..8] {
        let mut world = World::new(Method::Backup);
        world.until(*work);
        world.apply(JobEvent::Cancel { data }).unwrap();
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
        assert_eq!(world.finishes, [Finish::Cancelled], "{work:?}");
        assert_eq!(world.node, NodeState::Uninitialized);
    }
    let mut world = World::new(Method::Backup);
    world.run_on();
    world.node = NodeState::Diverged;
    world.apply(JobEvent::Cancel { data }).unwrap();
    let Stage::Ending(ending) = &world.job.stage else {
        panic!("{:?}", world.job.stage);
    };
    assert_eq!(ending.slot.returned(), None);
    world.run_on();
    assert!(world.is_closed());
}

#[test]
fn a_source_that_says_nothing_of_the_slot_ends_the_hand_over() {
    let mut world = World::new(Method::Backup);
    let (id, _) = world.agent(Side::Source).at_work[0];
    let counted = world.counted;
    let outcome = Box::new(Ok(Outcome::SourceFacts(Box::default())));
    let event = JobEvent::Ended {
        id,
        outcome,
        counted,
    };
    world.apply(event).unwrap();
    world.run_on();
    let [Finish::Failed(fault)] = &world.finishes[..] else {
        panic!("{:?}", world.finishes);
    };
    assert!(fault.hint.contains("same version"), "{fault:?}");
}

#[test]
fn a_cancel_at_every_command_removes_everything_target_first() {
    for work in SNAPSHOT_WORK {
        let mut world = World::new(Method::Snapshot);
        world.until(work);
        let data = CancelledData::Remove;
        world.apply(JobEvent::Cancel { data }).unwrap();
        let cleanup = |w: &Work| w.is_cleanup();
        assert!(
            !world.work_of(work.side()).iter().any(cleanup),
            "{work:?} runs still"
        );
        world.run_on();
        assert_eq!(world.finishes, [Finish::Cancelled], "cancelled at {work:?}");
        assert_eq!(world.node, NodeState::Uninitialized);
        let touched = |w: Work| world.ids.iter().find(|(_, x)| **x == w).map(|(id, _)| *id);
        let (target, source) = (
            touched(Work::CleanupTarget(data)),
            touched(Work::CleanupSource),
        );
        assert!(source.is_some(), "the grant at least is taken back");
        if touched(Work::PrepareTarget).is_some() {
            assert!(target < source, "the source was cleaned before the target");
        }
    }
}

#[test]
fn a_fault_at_every_command_ends_in_failed_with_its_cause() {
    for work in SNAPSHOT_WORK {
        let mut world = World::new(Method::Snapshot);
        world.until(work);
        let at = world
            .work_of(work.side())
            .iter()
            .position(|w| *w == work)
            .unwrap();
        world.end_one(work.side(), at, true);
        world.run_on();
        assert_eq!(world.node, NodeState::Failed);
        let [Finish::Failed(fault)] = &world.finishes[..] else {
            panic!("{work:?}: {:?}", world.finishes);
        };
        assert_eq!(fault.message, "disk full");
        assert_eq!(fault.node.as_ref(), Some(work.side().node(&world.job.spec)));
        assert!(world.is_closed());
    }
}

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

#[test]
fn parts_whose_messages_were_lost_are_asked_for_again_and_not_without_end() {
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
fn nothing_is_synchronized_when_the_sums_differ() {
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
            let counted = world.counted;
            world
                .apply(JobEvent::Ended {
                    id,
                    outcome,
                    counted,
                })
                .unwrap();
            world.run_on();
            assert_eq!(world.node, NodeState::Failed, "{work:?} with {lie:?}");
        }
    }
}

#[test]
fn a_schema_that_differs_stops_before_anything_is_touched() {
    let mut world = World::new(Method::Snapshot);
    world.rules.judge = schema_differs;
    world.run_on();
    let [Finish::Failed(fault)] = &world.finishes[..] else {
        panic!("{:?}", world.finishes);
    };
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
fn the_jobs_time_is_over_when_it_says() {
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
fn what_is_seen_to_go_wrong_ends_a_job_at_work_with_that_cause_and_changes_nothing_after() {
    for work in SNAPSHOT_WORK {
        let mut world = World::new(Method::Snapshot);
        world.until(work);
        world.endanger();
        // The first cause is the one that counts.
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
fn a_snapshot_ends_its_job_when_it_is_too_old_and_only_while_it_is_held() {
    let old = |method, work| {
        let mut world = World::new(method);
        world.rules.bounds.snapshot_age = Some(Duration::from_secs(60));
        // Time before the snapshot is not its age.
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
fn a_cancel_with_an_agent_away_says_what_is_pending_and_completes_later() {
    let mut world = World::new(Method::Snapshot);
    world.until(Work::Copy);
    world.kill(Side::Target);
    let data = CancelledData::Remove;
    world.apply(JobEvent::Cancel { data }).unwrap();
    world.run_on();
    assert!(matches!(&world.finishes[..], [Finish::CancelPending(_)]));
    assert_eq!(world.node, NodeState::Failed);
    assert!(
        !world.job.owes(Side::Source),
        "the source does not wait for the target"
    );
    world.apply(JobEvent::Cancel { data }).unwrap();
    assert_eq!(world.finishes.len(), 2, "who asks again is told again");
    world.up(Side::Target);
    world.run_on();
    assert_eq!(world.finishes.last(), Some(&Finish::Cancelled));
    assert_eq!(world.node, NodeState::Uninitialized);
}

#[test]
fn a_target_that_cannot_be_cleaned_for_long_does_not_keep_the_source_from_it() {
    let mut world = World::new(Method::Snapshot);
    world.until(Work::Copy);
    let data = CancelledData::Remove;
    world.apply(JobEvent::Cancel { data }).unwrap();
    world.end_one(Side::Target, 0, false);
    assert_eq!(world.work_of(Side::Target), [Work::CleanupTarget(data)]);
    world.tick(19);
    assert_eq!(world.work_of(Side::Source), []);
    world.tick(1);
    assert_eq!(world.work_of(Side::Source), [Work::CleanupSource]);
    world.run_on();
    assert_eq!(world.finishes, [Finish::Cancelled]);
}

#[test]
fn a_removal_that_failed_is_tried_again_by_itself() {
    let mut world = World::new(Method::Snapshot);
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

/// Something random that happens.
#[derive(Debug, Clone)]
enum Chance {
    End { side: Side, at: usize, fault: bool },
    Kill(Side),
    Down(Side),
    Up(Side),
    Tick(i64),
    Cancel(CancelledData),
    Endanger,
}

fn chance() -> impl Strategy<Value = Chance> {
    let side = || prop_oneof![Just(Side::Source), Just(Side::Target)];
    let data = prop_oneof![Just(CancelledData::Remove), Just(CancelledData::Keep)];
    prop_oneof![
        20 => (side(), 0usize..3, proptest::bool::weighted(0.05))
            .prop_map(|(side, at, fault)| Chance::End { side, at, fault }),
        1 => side().prop_map(Chance::Kill),
        2 => side().prop_map(Chance::Down),
        4 => side().prop_map(Chance::Up),
        4 => (0i64..12).prop_map(Chance::Tick),
        1 => data.prop_map(Chance::Cancel),
        1 => Just(Chance::Endanger),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn no_history_gets_stuck(
        method in 0usize..3,
        chances in proptest::collection::vec(chance(), 0..120),
    ) {
        let method = [Method::Native, Method::Snapshot, Method::Backup][method];
        let mut world = World::new(method);
        for chance in chances {
            match chance {
                Chance::End { side, at, fault } => world.end_one(side, at, fault),
                Chance::Kill(side) => world.kill(side),
                Chance::Down(side) if world.agent(side).online => world.down(side),
                Chance::Up(side) if !world.agent(side).online => world.up(side),
                Chance::Down(_) | Chance::Up(_) => {}
                Chance::Tick(seconds) => world.tick(seconds),
                Chance::Endanger => world.endanger(),
                Chance::Cancel(data) if !world.is_closed() => {
                    world.apply(JobEvent::Cancel { data }).unwrap();
                }
                Chance::Cancel(_) => {}
            }
        }
        // From here on everything is well again, and an operator cancels.
        if !world.is_closed() {
            world.apply(JobEvent::Cancel { data: CancelledData::Remove }).unwrap();
        }
        for side in Side::BOTH {
            if !world.agent(side).online {
                world.up(side);
            }
        }
        for _ in 0..10 {
            world.run_on();
            world.tick(15);
        }
        prop_assert!(world.is_closed(), "stuck: {:?}", world.job);
        let settled = [NodeState::Uninitialized, NodeState::Failed, NodeState::Synchronized];
        prop_assert!(settled.contains(&world.node));
        prop_assert_eq!(
            world.node == NodeState::Synchronized,
            world.finishes.contains(&Finish::Synchronized)
        );
        if world.node != NodeState::Synchronized {
            for side in Side::BOTH {
                prop_assert!(!world.job.owes(side), "{:?} keeps something", side);
            }
        }
    }
}
