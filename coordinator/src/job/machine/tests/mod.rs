//! The machine against in-memory agents: good ones, and ones that die, lose their session, fail or report
//! wrong sums, at every step.

mod absence;
mod change;
mod ending;
mod epochs;
mod forward;
mod histories;
mod keeping;
mod merge;
mod retrying;
mod samples;
mod terms;

use std::collections::HashMap;

use jiff::SignedDuration;
use steep_protocol::message::agent::{MissingObjects, Outcome};
use steep_protocol::message::facts::{Severity, SourceFacts};
use steep_protocol::message::handover::{SlotFacts, Used};
use steep_protocol::message::job::{CancelledData, Compression, Method};
use steep_protocol::{ByteCount, Fault, FaultKind, JobId, Lsn, NodeState, Retry, RowCount};

use self::samples::{changing, handover, stored};
use super::super::state::transition;
use super::super::{Complete, Shown};
use super::*;
use crate::testing;

const DONE: Totals = Totals {
    parts: 3,
    rows: RowCount(30),
    bytes: ByteCount(300),
};

/// Of [`DONE`], what is done in mid-copy.
const PART: Totals = Totals {
    parts: 1,
    rows: RowCount(10),
    bytes: ByteCount(100),
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

/// One agent, with its running and its aborted commands.
#[derive(Clone, Default)]
struct Agent {
    online: bool,
    incarnation: u64,
    snapshot: bool,
    at_work: Vec<(CommandId, Work)>,
    aborted: Vec<CommandId>,
}

/// A job with both agents, its node and a clock.
#[derive(Clone)]
struct World {
    job: Job,
    node: NodeState,
    /// All states so far.
    nodes: Vec<NodeState>,
    now: Timestamp,
    agents: [Agent; 2],
    /// The counts of a plan once its copy has ended.
    counted: Counted,
    /// What is complete before that.
    half: Complete,
    copied: bool,
    finishes: Vec<Finish>,
    ids: HashMap<CommandId, Work>,
    /// Every command that was sent, in order.
    sent: Vec<(CommandId, Work)>,
    rules: Rules,
}

impl World {
    fn new(method: Method) -> Self {
        let mut spec = testing::spec("a", "b");
        spec.method = method;
        let now = Timestamp::UNIX_EPOCH;
        let mut job = Job::new(JobId(7), spec, "op", 1_000, now);
        job.handover = (method == Method::Backup).then(handover);
        job.stored = (method == Method::Load).then(stored);
        job.change = method.changes_tables().then(changing);
        if method == Method::Drop {
            job.stage = Stage::Working(Step::Leave);
        }
        let mut world = Self {
            node: match job.change {
                Some(_) => NodeState::Synchronized,
                None => NodeState::Uninitialized,
            },
            job,
            nodes: Vec::new(),
            now,
            agents: [Agent::default(), Agent::default()],
            counted: Counted {
                tables: 2,
                planned: 3,
                done: DONE,
                complete: Complete {
                    tables: 2,
                    sum: DONE,
                },
            },
            half: Complete::default(),
            copied: false,
            finishes: Vec::new(),
            ids: HashMap::new(),
            sent: Vec::new(),
            rules: Rules {
                judge: no_findings,
                bounds: Bounds::default(),
                patience: Patience::default(),
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
        let (job, effects) = step(before, event, self.count(), self.now, self.rules)?;
        self.job = job;
        for effect in effects {
            self.execute(effect);
        }
        Ok(())
    }

    /// The counts so far.
    fn count(&self) -> Counted {
        let kept = self.job.kept;
        let (done, complete) = match self.copied {
            true => (self.counted.done, self.counted.complete),
            false => (PART, self.half),
        };
        Counted {
            tables: self.counted.tables + kept.tables,
            planned: self.counted.planned + kept.sum.parts,
            done: done + kept.sum,
            complete: Complete {
                tables: complete.tables + kept.tables,
                sum: complete.sum + kept.sum,
            },
        }
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
                self.sent.push((id, work));
                let agent = self.agent(work.side());
                assert!(agent.online, "{work:?} sent to nobody");
                if !agent.at_work.contains(&(id, work)) {
                    agent.at_work.push((id, work));
                }
            }
            Effect::Abort { id, side } => {
                let running = self.job.running.iter().find(|r| r.id == id);
                let running = running.map(|r| (r.id, r.work));
                let agent = self.agent(side);
                agent.aborted.push(id);
                // An agent ends one that it has not heard of, too.
                if let Some(unknown) = running.filter(|r| !agent.at_work.contains(r)) {
                    agent.at_work.extend(agent.online.then_some(unknown));
                }
            }
            Effect::Node(event) => {
                self.node = transition(self.node, event).expect("the node's relation");
                self.nodes.push(self.node);
            }
            Effect::Finished(finish) => self.finishes.push(finish),
            Effect::Closed => assert!(self.job.running.is_empty(), "closed with commands running"),
            Effect::PlanDropped => self.copied = false,
            Effect::Resumed => self.finishes.clear(),
            Effect::EpochBegins { .. }
            | Effect::Folded
            | Effect::Forget { .. }
            | Effect::TriesAgain { .. }
            | Effect::BeginsAgain { .. }
            | Effect::KeepEnds { .. }
            | Effect::PhaseStarted(_)
            | Effect::PhaseCompleted { .. }
            | Effect::Found(_)
            | Effect::Missing(_)
            | Effect::CleanupFailed { .. }
            | Effect::GivenUp { .. } => {}
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
            since: self.now,
            parting,
        };
        self.apply(event).unwrap();
    }

    /// The agent's process dies, with its commands and its snapshot.
    fn kill(&mut self, side: Side) {
        self.end_process(side);
        if self.agent(side).online {
            self.down(side);
        }
    }

    /// The same, announced by the agent.
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

    fn cancel(&mut self) {
        let data = CancelledData::Remove;
        self.apply(JobEvent::Cancel { data }).unwrap();
    }

    fn resume(&mut self) {
        self.apply(JobEvent::Resume { terms: TERMS }).unwrap();
    }

    /// The fault that the job failed with, its only end.
    fn failure(&self) -> &Fault {
        match &self.finishes[..] {
            [Finish::Failed(fault)] => fault,
            finishes => panic!("{finishes:?}"),
        }
    }

    fn endanger(&mut self) {
        let fault = Fault::new(FaultKind::Failed, "the slot is lost");
        let side = Side::Source;
        self.apply(JobEvent::Endangered { side, fault }).unwrap();
    }

    /// Ends one command, if the agent is online.
    fn end_one(&mut self, side: Side, at: usize, fault: bool) {
        let fault = fault.then(|| Fault::new(FaultKind::Failed, "disk full"));
        self.end_with(side, at, fault);
    }

    /// Ends one command with a transient fault.
    fn stumble(&mut self, side: Side, at: usize) {
        let fault = Fault::new(FaultKind::Failed, "the connection was closed");
        self.end_with(side, at, Some(fault.retry(Retry::NewConnection)));
    }

    fn end_with(&mut self, side: Side, at: usize, fault: Option<Fault>) {
        let agent = self.agent(side);
        if !agent.online || agent.at_work.is_empty() {
            return;
        }
        let (id, work) = agent.at_work.remove(at % agent.at_work.len());
        let outcome = if agent.aborted.contains(&id) {
            Err(Fault::new(FaultKind::Cancelled, "aborted"))
        } else if let Some(fault) = fault {
            Err(fault)
        } else {
            match work {
                Work::OpenSource => agent.snapshot = true,
                Work::CloseSnapshot | Work::CleanupSource => agent.snapshot = false,
                Work::Copy => self.copied = true,
                _ => {}
            }
            Ok(self.outcome_of(work))
        };
        let outcome = Box::new(outcome);
        self.apply(JobEvent::Ended { id, outcome }).unwrap();
    }

    /// The agent reports whether its server answers.
    fn server(&mut self, side: Side, answers: Result<(), String>) {
        if self.agent(side).online {
            self.apply(JobEvent::Server { side, answers }).unwrap();
        }
    }

    /// The session that held the snapshot ends, and the agent reports it.
    fn lose_snapshot(&mut self) {
        self.agent(Side::Source).snapshot = false;
        self.apply(JobEvent::SnapshotLost).unwrap();
    }

    /// Time passes and every command succeeds, until nothing is left to do.
    fn live_on(&mut self) {
        for _ in 0..40 {
            self.run_on();
            self.tick(15);
        }
    }

    fn outcome_of(&self, work: Work) -> Outcome {
        if work == Work::GatherSource && self.job.handover.is_some() {
            return Outcome::SourceFacts(Box::new(SourceFacts {
                slot: Some(SlotFacts::default()),
                ..SourceFacts::default()
            }));
        }
        if work == Work::ProveTarget {
            let Totals { parts, rows, bytes } = DONE + self.job.kept.sum;
            return Outcome::Totals { parts, rows, bytes };
        }
        outcome_of(work)
    }

    fn work_of(&self, side: Side) -> Vec<Work> {
        let agent = &self.agents[usize::from(side == Side::Target)];
        agent.at_work.iter().map(|(_, work)| *work).collect()
    }

    /// Ends commands successfully until that one runs.
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

/// The terms of a resume.
const TERMS: Terms = Terms {
    parallel: 2,
    timeout_seconds: 24 * 3600,
    max_rate: None,
    compression: Compression::None,
};

/// How a job of that method ends if all goes well.
fn success(method: Method) -> Finish {
    match method.follows() {
        _ if method.changes_tables() => Finish::Changed,
        true => Finish::Synchronized,
        false => Finish::Loaded,
    }
}

fn outcome_of(work: Work) -> Outcome {
    let Totals { parts, rows, bytes } = DONE;
    match work {
        Work::GatherSource => Outcome::SourceFacts(Box::default()),
        Work::GatherTarget => Outcome::TargetFacts(Box::default()),
        Work::OpenSource | Work::OpenCarried => Outcome::SourceOpened {
            lsn: Lsn(5),
            tables: 2,
            parts,
        },
        Work::PrepareTarget | Work::BuildIndexes | Work::BuildConstraints => {
            Outcome::Warned(Vec::new())
        }
        Work::Finish => Outcome::Finished {
            findings: Vec::new(),
            missing: MissingObjects::default(),
        },
        Work::AwaitFence => Outcome::FencePassed { lsn: Lsn(6) },
        Work::ProveTarget | Work::ProveSource => Outcome::Totals { parts, rows, bytes },
        Work::Copy
        | Work::CloseSnapshot
        | Work::Regrant
        | Work::TakeSlot
        | Work::Subscribe
        | Work::AwaitNativeCopy
        | Work::Fold
        | Work::Join
        | Work::Leave
        | Work::Swap
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

/// The commands of a job that starts from a backup.
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
