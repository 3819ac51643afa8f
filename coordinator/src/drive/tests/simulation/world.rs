//! The cluster: the real loop with its store, agents' processes, their servers, and the connections between them. Time
//! passes only in [`Cluster::step`].

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use steep_protocol::message::agent::{Command, Outcome, SourceCommand};
use steep_protocol::{CommandId, Epoch, Fault, FaultKind, JobId, NodeId, Retry};

use super::super::super::clock::Clock;
use super::super::super::{AgentInput, Answer, Ask, Driver, Handle, Question, Wake};
use super::agent::{Agent, Entry, Running};
use super::dice::Dice;
use super::disk::Disk;
use super::faults::Weather;
use super::judge::is_restored;
use super::postgres::{Server, Slot, TABLES, replicate};
use super::stored::timestamp;
use crate::job::health::Bounds;
use crate::job::machine::Parting;
use crate::job::note::JobNote;
use crate::job::retry::Patience;
use crate::job::{COMMANDS_PER_JOB, Job, Stage, Step};
use crate::registry::SessionId;
use crate::testing::node;

/// The simulation's first second.
pub(super) const BEGAN: i64 = 1_800_000_000;

/// What a stage of a command leads to.
pub(super) enum Next {
    /// Another stage, after that many milliseconds.
    After(i64),
    Done(Outcome),
}
pub(super) use Next::{After, Done};

pub(super) struct Node {
    pub(super) name: NodeId,
    pub(super) server: Server,
    pub(super) agent: Agent,
}

/// Whether a run prints what happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trace {
    Silent,
    Aloud,
}

pub(super) struct Cluster {
    pub(super) driver: Option<Driver<Disk>>,
    handle: Option<Handle>,
    pub(super) disk: Disk,
    /// When the coordinator is started again.
    pub(super) coordinator_back: i64,
    pub(super) dice: Dice,
    /// Milliseconds since the simulation began.
    pub(super) now: i64,
    /// The source comes first.
    pub(super) nodes: Vec<Node>,
    pub(super) weather: Weather,
    /// Ends of sessions that the coordinator has not noticed.
    pub(super) unnoticed: Vec<(i64, NodeId, SessionId)>,
    pub(super) sessions: u64,
    patience: Patience,
    /// Whether the store was lost: before, the coordinator has nothing to learn from agents.
    pub(super) store_lost: bool,
    /// The jobs of a coordinator that died between two turns.
    at_death: Option<BTreeMap<JobId, Job>>,
    /// Nodes with rows of a copy that was complete when its job ended: they stay.
    pub(super) keeps_rows: BTreeSet<usize>,
    /// How the next one differs from it.
    pub(super) misrestored: Option<String>,
    pub(super) trace: Trace,
}

thread_local! {
    static IDS: RefCell<Dice> = RefCell::new(Dice::new(0));
}

/// Job ids of the seed, in the place of random ones.
fn draw_id() -> JobId {
    IDS.with_borrow_mut(|ids| JobId(ids.next()))
}

impl Cluster {
    pub(super) fn new(seed: u64, names: &[&str], patience: Patience) -> Self {
        let mut dice = Dice::new(seed);
        IDS.replace(Dice::new(dice.next()));
        let nodes = names.iter().map(|name| Node {
            name: node(name),
            server: Server::default(),
            agent: Agent::new(dice.next() >> 8),
        });
        let nodes = nodes.collect();
        let mut cluster = Self {
            driver: None,
            handle: None,
            disk: Disk::new(),
            coordinator_back: 0,
            weather: Weather::calm(),
            dice,
            now: 0,
            nodes,
            unnoticed: Vec::new(),
            sessions: 0,
            patience,
            store_lost: false,
            at_death: None,
            keeps_rows: BTreeSet::new(),
            misrestored: None,
            trace: Trace::Silent,
        };
        let rows = cluster.dice.below(12);
        for _ in 0..rows {
            cluster.write();
        }
        cluster.start_coordinator();
        cluster
    }

    pub(super) fn note(&self, what: impl FnOnce() -> String) {
        if self.trace == Trace::Aloud {
            println!("{:>8.2} {}", self.now as f64 / 1e3, what());
        }
    }

    fn write(&mut self) {
        let table = u32::try_from(self.dice.below(u64::from(TABLES))).unwrap();
        // One table stays empty, as many do.
        if table + 1 < TABLES {
            self.nodes[0].server.write(table);
        }
    }

    // ---- the coordinator

    pub(super) fn start_coordinator(&mut self) {
        // The time of the test's machine must not count: this clock stands still between two steps.
        let clock = Clock {
            began: timestamp(self.now),
            instant: tokio::time::Instant::now() + std::time::Duration::from_secs(86_400),
        };
        let opened = Driver::with_clock(self.disk.clone(), Bounds::default(), clock);
        let (mut driver, handle) = opened.unwrap();
        driver.rules.judge = super::super::world::nothing_found;
        driver.rules.patience = self.patience;
        driver.draw_id = draw_id;
        self.driver = Some(driver);
        self.handle = Some(handle);
        if let Some(before) = self.at_death.take() {
            let compared = is_restored(&before, &self.jobs());
            self.misrestored = compared.err();
        }
        self.note(|| "the coordinator starts".to_owned());
    }

    /// The coordinator dies between two turns.
    pub(super) fn kill_coordinator(&mut self, back: i64) {
        if self.driver.is_some() {
            self.at_death = Some(self.jobs());
            self.died(back);
        }
    }

    /// The coordinator dies, and its store is lost.
    pub(super) fn lose_store(&mut self, back: i64) {
        if let Some(driver) = &self.driver {
            self.store_lost = true;
            self.disk.forget(driver.next_command + COMMANDS_PER_JOB);
            self.died(back);
        }
    }

    /// The job that goes on if the store is lost now: it is prepared or copied, under a snapshot that is open, and its slot is
    /// the only one.
    pub(super) fn adoptable(&self) -> Option<Job> {
        let jobs = self.jobs();
        let (Some(job), 1) = (jobs.values().next(), jobs.len()) else {
            return None;
        };
        let record = self.nodes[1].server.records.get(&job.id)?;
        let note = JobNote::parse(record.note.as_deref()?)?;
        let Node { server, agent, .. } = &self.nodes[0];
        let held = agent.open_snapshots();
        let plan = job.attempt.plan?;
        let held = held.iter().any(|h| h.job == job.id && h.lsn == plan.lsn);
        let holds = held && !agent.lost_snapshots(server.boots).contains(&job.id);
        let goes_on = match (&job.stage, note.copied) {
            (Stage::Working(Step::PrepareTarget | Step::Copy), None) => holds,
            (Stage::Working(step), Some(_)) => (Step::Indexes..=Step::Prove).contains(step),
            (Stage::Working(_) | Stage::Ending(_) | Stage::Kept(_) | Stage::Closed(_), _) => false,
        };
        let up = self
            .nodes
            .iter()
            .all(|n| n.agent.is_up() && n.server.is_up());
        let mut slots = server.slots.iter();
        let own =
            |(name, slot): (&String, &Slot)| *name == job.replication().slot.as_str() && !slot.lost;
        let alone = server.slots.len() == 1 && slots.all(own);
        let apart = note.copied.is_some() && job.epoch != Epoch(0);
        (goes_on && up && (alone || apart)).then(|| job.clone())
    }

    fn died(&mut self, back: i64) {
        self.note(|| "the coordinator dies".to_owned());
        self.driver = None;
        self.handle = None;
        self.coordinator_back = back;
        self.unnoticed.clear();
        for n in 0..self.nodes.len() {
            let dials_at = back + self.dice.between(50, 3_000);
            let agent = &mut self.nodes[n].agent;
            agent.session = None;
            agent.dials_at = agent.dials_at.max(dials_at);
        }
    }

    pub(super) fn turn(&mut self, mut inputs: Vec<AgentInput>, wake: Wake) {
        let Some(driver) = &mut self.driver else {
            return;
        };
        driver.clock.began = timestamp(self.now);
        if driver.turn(&mut inputs, wake).is_err() {
            let back = self.now + self.dice.between(100, 8_000);
            self.died(back);
        }
    }

    pub(super) fn ask(&mut self, question: Question) -> Option<Result<Answer, Fault>> {
        let (reply, mut answer) = tokio::sync::oneshot::channel();
        self.turn(Vec::new(), Wake::Operator(Ask { question, reply }));
        answer.try_recv().ok()
    }

    pub(super) fn jobs(&self) -> BTreeMap<JobId, Job> {
        let driver = self.driver.iter();
        let jobs = driver.flat_map(|driver| driver.jobs.iter());
        jobs.map(|(id, live)| (*id, live.job.clone())).collect()
    }

    // ---- time

    /// Lets that much time pass.
    pub(super) fn step(&mut self, millis: i64) {
        self.now += millis;
        if self.driver.is_none() && self.coordinator_back <= self.now {
            self.start_coordinator();
        }
        for n in 0..self.nodes.len() {
            self.come_back(n);
        }
        let (noticed, rest) = std::mem::take(&mut self.unnoticed)
            .into_iter()
            .partition(|(at, _, _)| *at <= self.now);
        self.unnoticed = rest;
        let noticed: Vec<(i64, NodeId, SessionId)> = noticed;
        for (_, node, session) in noticed {
            self.left(node, session, Parting::Lost);
        }
        if self.dice.chance(400) {
            self.write();
        }
        self.turn(Vec::new(), Wake::Time);
        for n in 0..self.nodes.len() {
            self.replicate(n);
            self.work(n);
            self.look(n);
            self.deliver(n);
            self.listen(n);
        }
    }

    fn come_back(&mut self, n: usize) {
        let now = self.now;
        let Node { server, agent, .. } = &mut self.nodes[n];
        if server.down_until.is_some_and(|until| until <= now) {
            server.down_until = None;
        }
        if agent.down_until.is_some_and(|until| until <= now) {
            agent.down_until = None;
        }
        if agent.is_up() && agent.session.is_none() && agent.dials_at <= now {
            self.join(n);
        }
    }

    fn replicate(&mut self, n: usize) {
        if n == 0 || self.dice.chance(300) {
            return;
        }
        let (source, target) = self.nodes.split_at_mut(n);
        let (source, target) = (&mut source[0].server, &mut target[0].server);
        if source.is_up() && target.is_up() {
            replicate(source, target);
        }
    }

    /// Lets all subscriptions catch up with a source that nobody writes to.
    pub(super) fn catch_up(&mut self) {
        for _ in 0..10 {
            for n in 1..self.nodes.len() {
                let (source, target) = self.nodes.split_at_mut(n);
                replicate(&mut source[0].server, &mut target[0].server);
            }
        }
    }

    /// Fails where the node's PostgreSQL does not answer.
    pub(super) fn asks_server(&self, n: usize) -> Result<(), Fault> {
        if self.nodes[n].server.is_up() {
            return Ok(());
        }
        let fault = Fault::new(FaultKind::Unreachable, "PostgreSQL does not answer");
        Err(fault.retry(Retry::Backoff).on(&self.nodes[n].name))
    }

    // ---- commands

    fn work(&mut self, n: usize) {
        if !self.nodes[n].agent.is_up() {
            return;
        }
        let due = self.nodes[n].agent.commands.iter().filter(
            |(_, entry)| matches!(entry, Entry::Running(running) if running.due <= self.now),
        );
        let due: Vec<CommandId> = due.map(|(id, _)| *id).collect();
        for id in due {
            let Some(Entry::Running(mut run)) = self.nodes[n].agent.commands.remove(&id) else {
                continue;
            };
            let ended = self.advance(n, &mut run);
            let agent = &mut self.nodes[n].agent;
            match ended {
                None => {
                    agent.commands.insert(id, Entry::Running(run));
                }
                Some(outcome) => {
                    let outcome = outcome.map_err(|fault| match &fault.node {
                        Some(_) => fault,
                        None => fault.on(&self.nodes[n].name),
                    });
                    let job = run.job;
                    let agent = &mut self.nodes[n].agent;
                    agent.commands.insert(id, Entry::Ended { job, outcome });
                    agent.report();
                    agent.tell(id);
                }
            }
        }
    }

    /// Runs the stages that are due, and returns the outcome once there is one.
    fn advance(&mut self, n: usize, run: &mut Running) -> Option<Result<Outcome, Fault>> {
        loop {
            let staged = if run.cancelled {
                Err(Fault::new(FaultKind::Cancelled, "cancelled"))
            } else {
                match self.weather.hits(&mut self.dice, &run.command) {
                    Some(fault) => Err(fault),
                    None => self.stage(n, run),
                }
            };
            match staged {
                Ok(Done(outcome)) => return Some(Ok(outcome)),
                Ok(After(millis)) => {
                    run.stage += 1;
                    run.due = run.due.max(self.now - 250) + millis;
                    if run.due > self.now {
                        return None;
                    }
                }
                Err(fault) => {
                    if let Command::Source(SourceCommand::Open(request)) = run.command.clone() {
                        self.tidy_open(n, run, &request);
                    }
                    return Some(Err(fault));
                }
            }
        }
    }
}
