//! The one loop that owns everything that changes.
//!
//! Agents' messages, operators' questions and time come in; pure steps are applied; their effects go
//! out. [`Driver::run`] is the only writer of the store and of every map in here; everybody else
//! holds a [`Handle`].
//!
//! A turn: take what has come in, collect writes, messages and answers, write, and only then send.
//! So nobody hears of anything that a restarted coordinator would not know. The loop never waits for
//! an agent or an operator: queues are bounded and tried, views are watched, latest wins.

mod admit;
mod agents;
mod audit;
mod carried;
mod columns;
mod compose;
mod doctor;
mod drift;
mod early;
mod effects;
mod following;
mod gauges;
mod give_up;
mod handle;
mod handover;
mod jobs;
mod lineage;
mod locks;
mod log;
mod orders;
mod query;
mod rebuild;
mod requests;
mod restore;
mod resume;
mod schema;
mod sight;
mod span;
mod sweep;
mod views;
mod watchers;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use steep_daemon::Throttle;
use steep_protocol::message::agent::{CoordinatorMessage, PartDone};
use steep_protocol::message::api::{Afterwards, AuditView, EndView, ProgressSample};
use steep_protocol::{Fault, JobId, NodeId, TableNo};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

pub use sight::UNSEEN_GRACE;

pub use gauges::{Copied, Ended, Gauges, JobGauges, NodeGauges};
pub use handle::{
    AgentInput, Answer, Ask, Feed, Follow, Handle, Interest, Operator, Question, Reply,
};

use crate::admission::Admission;
use crate::job::copy_progress::CopyProgress;
use crate::job::health::{Bounds, JobHealth};
use crate::job::locks::JobLocks;
use crate::job::machine::{Parting, Rules};
use crate::job::progress::Meter;
use crate::job::report::Slowest;
use crate::job::retry::Patience;
use crate::job::time::after;
use crate::job::{Job, Side, preflight};
use crate::registry::Registry;
use crate::store::{NodeRecord, Store, StoreError, TableTimes, Write};
use gauges::Counters;

/// Messages of agents that may wait. Each can be as long as a control frame, so few.
const AGENT_QUEUE: usize = 16;

/// Questions that may wait.
const ASK_QUEUE: usize = 64;

/// How often time is looked at. Followers get an update each time something changed, which keeps the
/// promise of one every 500 ms.
const TICK: Duration = Duration::from_millis(250);

/// How often time passes for a job that nobody watches and at which nothing but work happens.
const TICK_CALM: Duration = Duration::from_secs(1);

/// How often parts that are done are written, where nothing else is.
const PARTS_EVERY: Duration = Duration::from_secs(2);

/// How long columns must differ before that is drift, unless told otherwise: a change that is made on
/// both ends by hand, one after the other, takes no longer.
pub const DRIFT_GRACE: Duration = Duration::from_secs(60);

/// A job in memory: at work, or with something left to remove.
struct Live {
    job: Job,
    copied: CopyProgress,
    health: JobHealth,
    locks: JobLocks,
    meter: Meter,
    feed: watch::Sender<Feed>,
    /// Who looks at it in full.
    lease: watchers::Lease,
    /// Operators that wait for the end of a cancel.
    waiting: Vec<Ticket>,
    /// Tables that began and have not been completed, and when.
    began: BTreeMap<TableNo, Timestamp>,
    /// Tables that took longest.
    slowest: Slowest,
    /// Workers its Copy was given.
    workers: u8,
    /// How it ended, once it has.
    end: Option<Arc<EndView>>,
    /// What was given up, a sentence each.
    given_up: Vec<String>,
    /// What becomes of its node once nothing is left to do.
    afterwards: Afterwards,
    /// Why a removal failed last, by side. It is tried again and again; only news is logged.
    complaints: Vec<(Side, String)>,
    /// When its target last said what has been copied.
    heard: Timestamp,
    published: Timestamp,
    mirrored: Timestamp,
    sampled: Timestamp,
    /// Where it was when; what the store has too.
    history: Vec<ProgressSample>,
}

/// Why a turn happens.
enum Wake {
    /// Agents said something.
    Agents,
    /// An operator asks.
    Operator(Ask),
    /// Time has passed.
    Time,
}

/// What a turn has collected.
#[derive(Default)]
struct Outbox {
    writes: Vec<Write>,
    messages: Vec<(NodeId, CoordinatorMessage)>,
    replies: Vec<(Reply, Result<Answer, Fault>)>,
    /// Jobs whose followers see something new.
    touched: Vec<JobId>,
    /// Jobs of which nothing is left to do.
    closed: Vec<JobId>,
    /// Whether agents see something that they did not see before.
    observed: bool,
}

/// Stands for an operator who waits. Whoever has it may answer; the first answer counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Ticket(u64);

/// The loop's state.
pub struct Driver<S> {
    store: S,
    clock: Clock,
    rules: Rules,
    nodes: BTreeMap<NodeId, NodeRecord>,
    registry: Registry,
    /// Who looks at everything.
    overseer: watchers::Lease,
    /// When time passed last.
    ticked: Timestamp,
    jobs: BTreeMap<JobId, Live>,
    /// Preflights that are asked for, by the number that their looks name.
    doctors: BTreeMap<u64, doctor::Doctor>,
    queries: Vec<query::AgentQuery>,
    /// Questions that wait for an agent to look at its slots.
    early: Vec<early::Early>,
    /// How often each agent may say that slots have expired.
    expirations: Admission,
    /// Which lines are written of what agents do.
    throttle: Throttle,
    /// Nodes that nobody can look at, and since when.
    unseen: BTreeMap<NodeId, Timestamp>,
    /// How long one that follows may be so and still be called synchronized.
    unseen_grace: Duration,
    /// Pairs of nodes of which it was said that they are one database.
    aliases_told: BTreeSet<(NodeId, NodeId)>,
    /// Jobs whose leftovers were removed; agents may still list them for some seconds.
    swept: BTreeSet<JobId>,
    /// How nodes that follow fare.
    following: BTreeMap<NodeId, following::Following>,
    /// How long columns must differ before that is drift.
    drift_grace: Duration,
    /// Operators who wait for an answer.
    tickets: BTreeMap<Ticket, Reply>,
    next_ticket: u64,
    next_command: u64,
    next_event: u64,
    next_audit: u64,
    /// Audit entries that nodes have not confirmed, oldest first.
    audit_due: BTreeMap<NodeId, Vec<AuditView>>,
    /// When they were told of them last.
    audit_told: Timestamp,
    counters: Counters,
    /// Parts done that are not written yet, and when some were last.
    parts_due: BTreeMap<JobId, Vec<PartDone>>,
    parts_written: Timestamp,
    /// When tables began and ended, as far as that is not written yet either.
    times_due: BTreeMap<JobId, Vec<TableTimes>>,
    out: Outbox,
    pulse: watch::Sender<u64>,
    failure: Arc<OnceLock<String>>,
    agents: mpsc::Receiver<AgentInput>,
    asks: mpsc::Receiver<Ask>,
}

/// Wall time that never jumps: it is read once and then follows the monotonic clock, so that a
/// corrected system clock times out no job and no agent.
#[derive(Debug, Clone, Copy)]
struct Clock {
    began: Timestamp,
    instant: Instant,
}

impl Clock {
    fn start() -> Self {
        Self {
            began: Timestamp::now(),
            instant: Instant::now(),
        }
    }

    fn now(self) -> Timestamp {
        SignedDuration::try_from(self.instant.elapsed())
            .ok()
            .and_then(|elapsed| self.began.checked_add(elapsed).ok())
            .unwrap_or(Timestamp::MAX)
    }
}

impl<S: Store> Driver<S> {
    /// Takes up what the store holds. Jobs that were active go on when their agents come back, held to
    /// these bounds like new ones.
    ///
    /// # Errors
    /// [`StoreError`] where the store cannot be read.
    pub fn new(mut store: S, bounds: Bounds) -> Result<(Self, Handle), StoreError> {
        let loaded = store.load()?;
        let (agent_sender, agents) = mpsc::channel(AGENT_QUEUE);
        let (ask_sender, asks) = mpsc::channel(ASK_QUEUE);
        let (pulse, pulse_receiver) = watch::channel(0);
        let nodes = loaded
            .nodes
            .into_iter()
            .map(|node| (node.id.clone(), node))
            .collect();
        let mut driver = Self {
            store,
            clock: Clock::start(),
            rules: Rules {
                judge: preflight::judge,
                bounds,
                patience: Patience::default(),
            },
            nodes,
            registry: Registry::default(),
            overseer: watchers::Lease::EMPTY,
            ticked: Timestamp::UNIX_EPOCH,
            jobs: BTreeMap::new(),
            doctors: BTreeMap::new(),
            queries: Vec::new(),
            early: Vec::new(),
            expirations: Admission::default(),
            throttle: Throttle::default(),
            unseen: BTreeMap::new(),
            unseen_grace: UNSEEN_GRACE,
            aliases_told: BTreeSet::new(),
            swept: BTreeSet::new(),
            following: BTreeMap::new(),
            drift_grace: DRIFT_GRACE,
            tickets: BTreeMap::new(),
            next_ticket: 0,
            next_command: loaded.next_command,
            next_event: loaded.next_event,
            next_audit: loaded.next_audit,
            audit_due: BTreeMap::new(),
            audit_told: Timestamp::UNIX_EPOCH,
            counters: Counters::default(),
            parts_due: BTreeMap::new(),
            parts_written: Timestamp::UNIX_EPOCH,
            times_due: BTreeMap::new(),
            out: Outbox::default(),
            pulse,
            failure: Arc::default(),
            agents,
            asks,
        };
        driver.restore_audit(loaded.audit_due);
        for job in loaded.open_jobs {
            let id = job.id;
            if let Err(error) = driver.resume(job) {
                tracing::error!(event = "store.unreadable", job_id = %id, error = %error, "a job is not taken up again: what it left on its servers is removed by init cancel --force-cleanup");
            }
        }
        driver.fail_unreadable(driver.clock.now());
        let handle = Handle {
            agents: agent_sender,
            asks: ask_sender,
            pulse: pulse_receiver,
            failure: Arc::clone(&driver.failure),
        };
        Ok((driver, handle))
    }

    /// A node that nobody can look at is not called synchronized after that time.
    #[must_use]
    pub fn unseen_grace(mut self, grace: Duration) -> Self {
        self.unseen_grace = grace;
        self
    }

    /// Jobs try again, and keep what they have once they have failed, for that long.
    #[must_use]
    pub fn patience(mut self, patience: Patience) -> Self {
        self.rules.patience = patience;
        self
    }

    /// Columns that differ are drift after that time.
    #[must_use]
    pub fn drift_grace(mut self, grace: Duration) -> Self {
        self.drift_grace = grace;
        self
    }

    /// Runs until `shutdown`. Needs a multi-threaded runtime, if of one worker: the store is
    /// written in place.
    ///
    /// # Errors
    /// [`StoreError`] where the store fails. Nothing has been said then that is not stored, and
    /// transfers between agents go on; started again, the coordinator goes on where it was.
    pub async fn run(mut self, shutdown: CancellationToken) -> Result<(), StoreError> {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut said = Vec::with_capacity(AGENT_QUEUE);
        loop {
            // All are cancel-safe: what is not taken stays in its queue.
            let wake = tokio::select! {
                1.. = self.agents.recv_many(&mut said, AGENT_QUEUE) => Wake::Agents,
                Some(ask) = self.asks.recv() => Wake::Operator(ask),
                _ = tick.tick() => Wake::Time,
                () = shutdown.cancelled() => return self.last_turn(),
            };
            self.turn(&mut said, wake).inspect_err(|error| {
                // Set once: the loop ends with it.
                let _ = self.failure.set(error.to_string());
            })?;
        }
    }

    /// One turn of the loop.
    fn turn(&mut self, said: &mut Vec<AgentInput>, wake: Wake) -> Result<(), StoreError> {
        let began = Instant::now();
        let now = self.clock.now();
        match wake {
            Wake::Agents => {
                for input in said.drain(..) {
                    self.on_agent(input, now);
                }
            }
            Wake::Operator(Ask { question, reply }) => {
                self.on_ask(question, reply, now);
                self.set_paces(now);
            }
            Wake::Time => self.on_tick(now),
        }
        let flushed = self.flush(now);
        self.counters.turn(began.elapsed());
        flushed
    }

    /// Time has passed.
    fn on_tick(&mut self, now: Timestamp) {
        let second = jobs::beat(self.ticked, TICK_CALM) != jobs::beat(now, TICK_CALM);
        self.ticked = now;
        let due = |live: &Live| second || !live.is_calm(now);
        let due = self.jobs.iter().filter(|(_, live)| due(live));
        for id in due.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.tick_job(id, now);
        }
        if second {
            self.tick_sight(now);
        }
        self.tick_audit(now);
        self.tick_queries(now);
        self.tick_early(now);
        // Who has gone says nothing.
        self.set_paces(now);
    }

    /// Keeps where every job is, so that nothing that was shown goes back when the coordinator is
    /// started again.
    fn last_turn(&mut self) -> Result<(), StoreError> {
        let now = self.clock.now();
        for id in self.jobs.keys().copied().collect::<Vec<_>>() {
            self.sample(id, now);
        }
        self.flush(now)
    }

    /// Writes, then sends.
    fn flush(&mut self, now: Timestamp) -> Result<(), StoreError> {
        let mut out = std::mem::take(&mut self.out);
        self.take_parts(&mut out.writes, now);
        if !out.writes.is_empty() {
            // Waits for the disk. Most turns write nothing, and leaving the runtime costs more than
            // they do.
            tokio::task::block_in_place(|| self.store.apply(&out.writes))?;
        }
        for (node, message) in out.messages {
            if self.registry.send(&node, message).is_err()
                && let Some(session) = self.registry.session(&node)
            {
                tracing::warn!(node_id = %node, "the agent does not take its messages; its session is closed");
                self.on_left(&node, session, Parting::Lost, now);
            }
        }
        let mut news = !out.writes.is_empty() || out.observed;
        for id in out.touched {
            news |= self.publish(id, now);
        }
        for id in out.closed {
            self.jobs.remove(&id);
        }
        for (reply, answer) in out.replies {
            // Who asked may have gone.
            let _ = reply.send(answer);
        }
        if news {
            self.pulse.send_modify(|n| *n += 1);
        }
        Ok(())
    }

    /// Parts that are done are written with whatever else is, or every other second: agents say them
    /// again to a restarted coordinator, so none is lost, and a hundred copies do not mean a hundred
    /// waits for the disk a second. They go first: a job that is sealed after them drops them.
    fn take_parts(&mut self, writes: &mut Vec<Write>, now: Timestamp) {
        let due = after(self.parts_written, PARTS_EVERY) <= now;
        let nothing = self.parts_due.is_empty() && self.times_due.is_empty();
        if nothing || (writes.is_empty() && !due) {
            return;
        }
        self.parts_written = now;
        let parts = std::mem::take(&mut self.parts_due);
        let parts = parts
            .into_iter()
            .map(|(job, parts)| Write::Parts { job, parts });
        let times = std::mem::take(&mut self.times_due);
        let times = times
            .into_iter()
            .map(|(job, tables)| Write::Times { job, tables });
        let late: Vec<Write> = parts.chain(times).collect();
        writes.splice(0..0, late);
    }

    /// Remembers that a job's followers have something new to see.
    fn touch(&mut self, id: JobId) {
        if !self.out.touched.contains(&id) {
            self.out.touched.push(id);
        }
    }

    /// Queues a message to a node's agent.
    fn send(&mut self, node: &NodeId, message: CoordinatorMessage) {
        self.out.messages.push((node.clone(), message));
    }

    /// Takes in somebody who waits for an answer.
    fn issue(&mut self, reply: Reply) -> Ticket {
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        self.tickets.insert(ticket, reply);
        ticket
    }

    /// Queues an answer.
    fn answer(&mut self, ticket: Ticket, answer: Result<Answer, Fault>) {
        if let Some(reply) = self.tickets.remove(&ticket) {
            self.out.replies.push((reply, answer));
        }
    }
}
