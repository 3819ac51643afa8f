//! The loop that owns all mutable state.
//!
//! It takes agents' messages, operators' questions and ticks of the clock, applies pure steps and
//! carries out their effects. [`Driver::run`] is the only writer of the store and of all maps here;
//! everything else holds a [`Handle`].
//!
//! A turn handles its input, collects writes, messages and answers, commits the writes and only then
//! sends. So nobody learns anything that a restarted coordinator would not know. The loop never waits for an agent
//! or an operator: it uses `try_send` on bounded queues, and `watch` channels, which keep only the latest view.

mod adjust;
mod admit;
mod adoption;
mod agents;
mod audit;
mod carried;
mod change;
mod clock;
mod columns;
mod compose;
mod detach;
mod doctor;
mod drift;
mod early;
mod effects;
mod ended;
mod epochs;
mod findings;
mod following;
mod gauges;
mod give_up;
mod handle;
mod handover;
mod jobs;
mod lineage;
mod live;
mod locks;
mod log;
mod merge;
mod new_tables;
mod orders;
mod outdated;
mod query;
mod reachability;
mod rebuild;
mod repair;
mod requests;
mod restore;
mod resume;
mod room;
mod scheduled;
mod schema;
mod sequences;
mod snapshots;
mod span;
mod stored_check;
mod sweep;
mod switchover;
mod ticket;
mod unknown_slots;
mod verify;
mod views;
mod watchers;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use jiff::Timestamp;
use steep_daemon::Throttle;
use steep_protocol::message::agent::{CoordinatorMessage, PartDone};
use steep_protocol::message::api::AuditView;
use steep_protocol::{Fault, JobId, NodeId, SnapshotId};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use self::live::Live;
use self::ticket::Ticket;
pub use gauges::{Copied, Ended, Gauges, JobGauges, NodeGauges, SourceGauges};
pub use handle::{
    AgentInput, Answer, Ask, Feed, Follow, Handle, Interest, Operator, Question, Reply, VerifyFeed,
};
pub use reachability::UNSEEN_GRACE;

use crate::admission::Admission;
use crate::job::health::Bounds;
use crate::job::machine::{Parting, Rules};
use crate::job::preflight;
use crate::job::retry::Patience;
use crate::job::time::after;
use crate::registry::Registry;
use crate::store::{NodeRecord, Store, StoreError, TableTimes, Write};
use clock::Clock;
use gauges::Counters;

/// Batches of agents' messages that may wait: few, since a message can be long.
const AGENT_QUEUE: usize = 16;

/// Questions that may wait.
const ASK_QUEUE: usize = 64;

/// The period of the loop's clock. Followers are promised an update every 500 ms.
const TICK: Duration = Duration::from_millis(250);

/// The tick of a calm job, see [`Live::is_calm`].
const TICK_CALM: Duration = Duration::from_secs(1);

/// How often completed parts are written, if nothing else is.
const PARTS_EVERY: Duration = Duration::from_secs(2);

/// By default, how long columns must differ before that is drift: time to change one end, then the other.
pub const DRIFT_GRACE: Duration = Duration::from_secs(60);

/// Why a turn happens.
enum Wake {
    /// Input from agents.
    Agents,
    /// An operator's question.
    Operator(Ask),
    /// A tick of the clock.
    Time,
}

/// The output of a turn.
#[derive(Default)]
struct Outbox {
    writes: Vec<Write>,
    messages: Vec<(NodeId, CoordinatorMessage)>,
    replies: Vec<(Reply, Result<Answer, Fault>)>,
    /// Jobs whose views may have changed.
    touched: Vec<JobId>,
    /// Jobs to drop from memory.
    closed: Vec<JobId>,
    /// Whether an agent's observation changed.
    observed: bool,
}

/// The loop's state.
pub struct Driver<S> {
    store: S,
    clock: Clock,
    rules: Rules,
    nodes: BTreeMap<NodeId, NodeRecord>,
    registry: Registry,
    cluster_lease: watchers::Lease,
    ticked: Timestamp,
    jobs: BTreeMap<JobId, Live>,
    /// Jobs that were read from the store, until their targets have said what they are.
    held_back: BTreeSet<JobId>,
    /// Stored snapshots, and those being made.
    snapshots: BTreeMap<SnapshotId, snapshots::Stored>,
    /// Snapshots that were forgotten, oldest first; at most [`FORGOTTEN_KEPT`](crate::store::FORGOTTEN_KEPT).
    forgotten: VecDeque<SnapshotId>,
    /// Records of snapshots, by the node that has reported them, that were refused and logged.
    not_adopted: BTreeSet<(NodeId, SnapshotId)>,
    /// Open `doctor` requests, by the number in [`doctor::Look`].
    doctors: BTreeMap<u64, doctor::Doctor>,
    /// Requests to resume jobs whose snapshots are being looked at.
    resuming: BTreeMap<u64, stored_check::Resuming>,
    queries: Vec<query::AgentQuery>,
    /// Questions waiting until an agent has reported its slots.
    early: Vec<early::Early>,
    /// Limits how often each agent may report expired slots.
    expirations: Admission,
    /// Limits log lines that agents cause.
    throttle: Throttle,
    /// Nodes whose agent or PostgreSQL is unreachable, and since when.
    unseen: BTreeMap<NodeId, Timestamp>,
    /// How long a synchronized node may be unreachable before it is diverged.
    unseen_grace: Duration,
    /// Pairs of nodes that were reported as one database.
    aliases_told: BTreeSet<(NodeId, NodeId)>,
    /// When the objects of these jobs were removed from these nodes; agents may still list them for some
    /// seconds.
    swept: BTreeMap<(JobId, NodeId), Timestamp>,
    /// Since when nodes with the job of a lost store wait for the agent of its source.
    awaited_sources: BTreeMap<NodeId, Timestamp>,
    /// Slots of ours, by node and name, that nobody is known to need.
    unknown: BTreeMap<(NodeId, String), unknown_slots::Unknown>,
    /// The health of nodes that follow.
    following: BTreeMap<NodeId, following::Following>,
    /// The sequences of nodes that follow.
    sequences: BTreeMap<NodeId, sequences::Kept>,
    /// Tables that nodes are to follow by themselves.
    new_tables: BTreeMap<NodeId, new_tables::Pending>,
    /// Merges that operators wait for, and how often sequences could not be set apart.
    merges: merge::Merges,
    /// How long columns must differ before that is drift.
    drift_grace: Duration,
    /// Switchovers: those that have not ended, and the last one of each node.
    switchovers: BTreeMap<JobId, switchover::Switching>,
    /// When to try again to remove what was left behind on these sources.
    left_again: BTreeMap<NodeId, Timestamp>,
    /// Draws a job's id. A parameter, so that a simulation can be repeated.
    draw_id: fn() -> JobId,
    next_command: u64,
    next_event: u64,
    next_audit: u64,
    /// Audit entries that nodes have not confirmed, oldest first.
    audit_due: BTreeMap<NodeId, Vec<AuditView>>,
    /// When they were last sent again.
    audit_told: Timestamp,
    counters: Counters,
    /// Completed parts to write.
    parts_due: BTreeMap<JobId, Vec<PartDone>>,
    parts_written: Timestamp,
    /// Start and end times of tables to write.
    times_due: BTreeMap<JobId, Vec<TableTimes>>,
    out: Outbox,
    pulse: watch::Sender<u64>,
    failure: Arc<OnceLock<String>>,
    agents: mpsc::Receiver<AgentInput>,
    asks: mpsc::Receiver<Ask>,
}

impl<S: Store> Driver<S> {
    /// Loads the store. Active jobs continue when their agents reconnect; `bounds` apply to them too.
    ///
    /// # Errors
    /// [`StoreError`] if the store cannot be read.
    pub fn new(store: S, bounds: Bounds) -> Result<(Self, Handle), StoreError> {
        Self::with_clock(store, bounds, Clock::start())
    }

    fn with_clock(
        mut store: S,
        bounds: Bounds,
        clock: Clock,
    ) -> Result<(Self, Handle), StoreError> {
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
            clock,
            rules: Rules {
                judge: preflight::judge,
                bounds,
                patience: Patience::default(),
            },
            nodes,
            registry: Registry::default(),
            cluster_lease: watchers::Lease::EMPTY,
            ticked: Timestamp::UNIX_EPOCH,
            jobs: BTreeMap::new(),
            held_back: BTreeSet::new(),
            snapshots: loaded
                .snapshots
                .into_iter()
                .map(|snapshot| (snapshot.id, snapshots::Stored::of(snapshot)))
                .collect(),
            forgotten: loaded.forgotten.into(),
            not_adopted: BTreeSet::new(),
            doctors: BTreeMap::new(),
            resuming: BTreeMap::new(),
            queries: Vec::new(),
            early: Vec::new(),
            expirations: Admission::default(),
            throttle: Throttle::default(),
            unseen: BTreeMap::new(),
            unseen_grace: UNSEEN_GRACE,
            aliases_told: BTreeSet::new(),
            swept: BTreeMap::new(),
            awaited_sources: BTreeMap::new(),
            unknown: BTreeMap::new(),
            following: BTreeMap::new(),
            sequences: BTreeMap::new(),
            new_tables: BTreeMap::new(),
            merges: merge::Merges::default(),
            drift_grace: DRIFT_GRACE,
            switchovers: BTreeMap::new(),
            left_again: BTreeMap::new(),
            draw_id: || JobId(rand::random()),
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
                tracing::error!(event = "store.unreadable", job_id = %id, error = %error, "a job cannot be continued: init cancel --force-cleanup removes what it left on its servers");
            }
        }
        driver.fail_unreadable(driver.clock.now());
        driver.restore_switchovers(loaded.switchovers);
        let handle = Handle {
            agents: agent_sender,
            asks: ask_sender,
            pulse: pulse_receiver,
            failure: Arc::clone(&driver.failure),
        };
        Ok((driver, handle))
    }

    /// Sets how long a synchronized node may be unreachable before it is diverged.
    #[must_use]
    pub fn unseen_grace(mut self, grace: Duration) -> Self {
        self.unseen_grace = grace;
        self
    }

    /// Sets how long jobs retry, and keep rows and slot after a failure.
    #[must_use]
    pub fn patience(mut self, patience: Patience) -> Self {
        self.rules.patience = patience;
        self
    }

    /// Sets how long columns must differ before that is drift.
    #[must_use]
    pub fn drift_grace(mut self, grace: Duration) -> Self {
        self.drift_grace = grace;
        self
    }

    /// Runs until `shutdown`. Needs a multi-threaded runtime, for `block_in_place`; one worker is
    /// enough.
    ///
    /// # Errors
    /// [`StoreError`] if the store fails. Everything sent so far is stored, transfers between agents
    /// continue, and so do jobs after a restart.
    pub async fn run(mut self, shutdown: CancellationToken) -> Result<(), StoreError> {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut said = Vec::with_capacity(AGENT_QUEUE);
        loop {
            // All are cancel-safe: what is not received stays in its queue.
            let wake = tokio::select! {
                1.. = self.agents.recv_many(&mut said, AGENT_QUEUE) => Wake::Agents,
                Some(ask) = self.asks.recv() => Wake::Operator(ask),
                _ = tick.tick() => Wake::Time,
                () = shutdown.cancelled() => return self.last_turn(),
            };
            let done = match self.turn(&mut said, wake) {
                Err(full) if full.is_full() => self.wait_for_room(full, &shutdown).await,
                done => done,
            };
            done.inspect_err(|error| {
                // Set once: the loop ends with it.
                let _ = self.failure.set(error.to_string());
            })?;
        }
    }

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
                self.set_report_intervals(now);
            }
            Wake::Time => self.on_tick(now),
        }
        let flushed = self.flush(now);
        self.counters.turn(began.elapsed());
        flushed
    }

    fn on_tick(&mut self, now: Timestamp) {
        let second = jobs::beat(self.ticked, TICK_CALM) != jobs::beat(now, TICK_CALM);
        self.ticked = now;
        let due = |live: &Live| second || !live.is_calm(now);
        let due = self.jobs.iter().filter(|(_, live)| due(live));
        for id in due.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.tick_job(id, now);
        }
        if second {
            self.tick_reachability(now);
            self.tick_adoptions(now);
            self.tick_permissions(now);
            self.tick_unknown_slots(now);
            self.tick_left(now);
            self.tick_sequences(now);
            self.tick_new_tables(now);
            self.tick_scheduled(now);
        }
        self.tick_audit(now);
        self.tick_snapshots(now);
        self.tick_switchovers(now);
        self.tick_merges(now);
        self.tick_queries(now);
        self.tick_early(now);
        // Leases of watchers that left expire without a message.
        self.set_report_intervals(now);
    }

    /// Stores each job's progress, so that it does not go back after a restart.
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
            // Waits for the disk. Only if there is something to write: `block_in_place` costs more
            // than most turns do.
            let written = tokio::task::block_in_place(|| self.store.apply(&out.writes));
            if let Err(error) = written {
                self.out = out;
                return Err(error);
            }
        }
        for (node, message) in out.messages {
            if self.registry.send(&node, message).is_err()
                && let Some(session) = self.registry.session(&node)
            {
                tracing::warn!(node_id = %node, "the agent does not read its messages; its session is closed");
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
            // The operator may have left.
            let _ = reply.send(answer);
        }
        if news {
            self.pulse.send_modify(|n| *n += 1);
        }
        Ok(())
    }

    /// Adds the parts and table times that are due to `writes`: together with other writes, or every
    /// [`PARTS_EVERY`], so that many copies do not mean many waits for the disk. None is lost, since
    /// agents report parts again to a restarted coordinator. They come first, because sealing a job
    /// drops its parts.
    fn take_parts(&mut self, writes: &mut Vec<Write>, now: Timestamp) {
        let due = after(self.parts_written, PARTS_EVERY) <= now;
        let nothing = self.parts_due.is_empty() && self.times_due.is_empty();
        if nothing || (writes.is_empty() && !due) {
            return;
        }
        self.parts_written = now;
        let parts = std::mem::take(&mut self.parts_due)
            .into_iter()
            .map(|(job, parts)| Write::Parts { job, parts });
        let times = std::mem::take(&mut self.times_due)
            .into_iter()
            .map(|(job, tables)| Write::Times { job, tables });
        writes.splice(0..0, parts.chain(times));
    }

    /// Notes that a job's view may have changed.
    fn touch(&mut self, id: JobId) {
        if !self.out.touched.contains(&id) {
            self.out.touched.push(id);
        }
    }

    /// Queues a message to a node's agent.
    fn send(&mut self, node: &NodeId, message: CoordinatorMessage) {
        self.out.messages.push((node.clone(), message));
    }

    /// Queues an answer.
    fn answer(&mut self, ticket: Ticket, answer: Result<Answer, Fault>) {
        if let Some(reply) = ticket.take() {
            self.out.replies.push((reply, answer));
        }
    }
}
