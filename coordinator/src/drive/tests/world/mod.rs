//! A whole cluster in memory: the real loop and store, fake agents that answer when told to, and a
//! clock that tests advance. No tasks, no sockets, no waiting.

mod agent;
mod performing;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use jiff::SignedDuration;
use steep_protocol::message::agent::{
    AgentMessage, Command, CoordinatorMessage, CopyParts, HeldSnapshot, MissingObjects,
    NodeCommand, Observed, Outcome, PartDone, Rebuilt, Registration, ReplicatedDigest, Seat,
    SlotOrigin, SlotStatus, SourceCommand, SubscriptionStatus, TableSummary, TargetCommand,
};
use steep_protocol::message::api::{
    ApiReply, EndView, EventView, InitRequest, NodeView, Order, ProgressView, Query,
};
use steep_protocol::message::facts::{Finding, SourceFacts};
use steep_protocol::message::handover::{
    PreparedSlot, PreparedState, Replication, SlotFacts, SlotName,
};
use steep_protocol::message::job::{CancelledData, JobSpec};
use steep_protocol::message::schema::{SchemaCursor, SchemaReview};
use steep_protocol::report_interval::ReportInterval;
use steep_protocol::{
    ByteCount, CommandId, Fault, FaultKind, JobId, Lsn, NodeId, NodeState, PartNo, RowCount,
    TableName, TableNo,
};
use tokio::sync::{mpsc, oneshot};

pub(super) use self::agent::FakeAgent;
pub(super) use self::performing::{done, prepared};
use super::super::*;
use crate::job::preflight::Case;
use crate::registry::{Link, SessionId};
use crate::store::EventQuery;
use crate::store::sqlite::SqliteStore;
use crate::testing::node;

pub(super) const TABLES: u32 = 3;
pub(super) const PARTS: u32 = 6;

/// The replies to an operator.
pub(super) fn replies(answer: Result<Answer, Fault>) -> Vec<ApiReply> {
    match answer {
        Ok(Answer::Replies(replies)) => replies,
        other => panic!("{other:?}"),
    }
}

impl From<Query> for Question {
    fn from(query: Query) -> Self {
        Self::Query(query)
    }
}

impl From<Order> for Question {
    fn from(order: Order) -> Self {
        Self::Order(order, operator())
    }
}

pub(super) fn operator() -> Operator {
    Operator {
        name: "dba".to_owned(),
        certificate: "0a:1b".to_owned(),
        address: "192.0.2.7".to_owned(),
    }
}

pub(super) struct World {
    pub(super) driver: Driver<SqliteStore>,
    /// Kept so that the loop's queues stay open.
    _handle: Handle,
    pub(super) agents: BTreeMap<NodeId, FakeAgent>,
    sessions: u64,
    skipped: SignedDuration,
    /// The result of each comparison of schemas.
    pub(super) review: SchemaReview,
    /// Missing objects of every target.
    pub(super) missing: MissingObjects,
    /// What every source finds in its database.
    pub(super) facts: SourceFacts,
    /// What agents ask for that register from now on.
    pub(super) sequence_interval_seconds: u32,
    /// Whether agents say nothing of their lineage when they register, although jobs wait for it.
    pub(super) silent: bool,
}

impl World {
    pub(super) fn open(directory: &Path, nodes: &[&str]) -> Self {
        let (driver, handle) = open_driver(directory);
        let mut world = Self {
            driver,
            _handle: handle,
            agents: BTreeMap::new(),
            sessions: 0,
            skipped: SignedDuration::ZERO,
            review: SchemaReview::default(),
            missing: MissingObjects::default(),
            facts: SourceFacts::default(),
            sequence_interval_seconds: 0,
            silent: false,
        };
        for name in nodes {
            world.join(name);
        }
        world
    }

    /// Kills and restarts the coordinator; the agents' processes live on without a session.
    pub(super) fn restart(self, directory: &Path) -> Self {
        self.restart_after(directory, || {})
    }

    /// [`World::restart`]; calls `meanwhile` while the coordinator is down.
    pub(super) fn restart_after(self, directory: &Path, meanwhile: impl FnOnce()) -> Self {
        let Self {
            driver,
            mut agents,
            sessions,
            skipped,
            review,
            missing,
            facts,
            sequence_interval_seconds,
            silent,
            ..
        } = self;
        drop(driver);
        meanwhile();
        for agent in agents.values_mut() {
            agent.online = false;
        }
        let (driver, handle) = open_driver(directory);
        let mut world = Self {
            driver,
            _handle: handle,
            agents,
            sessions,
            skipped: SignedDuration::ZERO,
            review,
            missing,
            facts,
            sequence_interval_seconds,
            silent,
        };
        world.skip(skipped.as_secs());
        world
    }

    fn turn(&mut self, mut inputs: Vec<AgentInput>) {
        self.driver.turn(&mut inputs, Wake::Agents).unwrap();
    }

    /// Starts a session of a node's agent, with the previous process, if any.
    pub(super) fn join(&mut self, name: &str) {
        self.sessions += 1;
        let session = SessionId(self.sessions);
        let (outbox, queue) = mpsc::channel(1_000);
        let id = node(name);
        let agent = self.agents.entry(id.clone()).or_insert_with(|| FakeAgent {
            session,
            incarnation: 1,
            queue: mpsc::channel(1).1,
            online: false,
            snapshots: BTreeSet::new(),
            held_at: Lsn(9),
            snapshots_of: "b",
            admitted: BTreeSet::new(),
            at_work: BTreeMap::new(),
            kept: BTreeMap::new(),
            history: Vec::new(),
            told: Vec::new(),
            mirrored: Vec::new(),
            audited: Vec::new(),
            rejected: Vec::new(),
            intervals: Vec::new(),
            sums: BTreeMap::new(),
            write_stop: None,
        });
        agent.session = session;
        agent.queue = queue;
        agent.online = true;
        let registration = Registration {
            advertise: format!("{name}:7401"),
            version: "0.1.0".to_owned(),
            incarnation: agent.incarnation,
            open_snapshots: agent.held().collect(),
            admitted: agent.admitted.iter().copied().collect(),
            max_workers: 16,
            spool: Some("/var/spool".to_owned()),
            seat: Seat(0),
            sequence_interval_seconds: self.sequence_interval_seconds,
        };
        let kept: Vec<_> = agent.kept.clone().into_iter().collect();
        self.turn(vec![AgentInput::Joined {
            node: id.clone(),
            link: Link { session, outbox },
            registration,
        }]);
        for (command, outcome) in kept {
            self.say(name, AgentMessage::Finished { command, outcome });
        }
        if !self.driver.held_back.is_empty() && !self.silent {
            self.say(name, AgentMessage::Lineage(Box::default()));
        }
        self.listen();
    }

    /// Registers another process as a node's agent. Returns why it is rejected, if it is.
    pub(super) fn knock(&mut self, name: &str, incarnation: u64, seat: Seat) -> Option<Fault> {
        self.sessions += 1;
        let session = SessionId(self.sessions);
        let (outbox, mut queue) = mpsc::channel(1_000);
        let registration = Registration {
            advertise: format!("{name}-again:7401"),
            version: "0.1.0".to_owned(),
            incarnation,
            open_snapshots: Vec::new(),
            admitted: Vec::new(),
            max_workers: 16,
            spool: None,
            seat,
            sequence_interval_seconds: 0,
        };
        self.turn(vec![AgentInput::Joined {
            node: node(name),
            link: Link { session, outbox },
            registration,
        }]);
        match queue.try_recv() {
            Ok(CoordinatorMessage::Rejected(fault)) => Some(fault),
            _ => None,
        }
    }

    /// Ends the agent's session; [`World::kill`] ends its process too.
    pub(super) fn leave(&mut self, name: &str) {
        let agent = self.agent(name);
        agent.online = false;
        let session = agent.session;
        self.turn(vec![AgentInput::Left {
            node: node(name),
            session,
            parting: Parting::Lost,
        }]);
        self.listen();
    }

    pub(super) fn kill(&mut self, name: &str) {
        let agent = self.agent(name);
        agent.at_work.clear();
        agent.kept.clear();
        agent.snapshots.clear();
        agent.admitted.clear();
        agent.incarnation += 1;
        self.leave(name);
    }

    pub(super) fn agent(&mut self, name: &str) -> &mut FakeAgent {
        self.agents.get_mut(&node(name)).unwrap()
    }

    pub(super) fn say(&mut self, name: &str, message: AgentMessage) {
        let session = self.agent(name).session;
        self.turn(vec![AgentInput::Said {
            node: node(name),
            session,
            messages: vec![message],
        }]);
        self.listen();
    }

    /// Delivers messages to the agents.
    pub(super) fn listen(&mut self) {
        let mut again = Vec::new();
        for (id, agent) in &mut self.agents {
            while let Ok(message) = agent.queue.try_recv() {
                match message {
                    CoordinatorMessage::Command {
                        id: command,
                        job,
                        command: what,
                        ..
                    } => {
                        if let Command::Target(TargetCommand::Copy(copy)) = &what {
                            agent.told.push(copy.clone());
                        }
                        if let Some(outcome) = agent.kept.get(&command) {
                            again.push((id.clone(), command, outcome.clone()));
                        } else {
                            if !agent.at_work.contains_key(&command) {
                                agent.history.push((command, what.clone()));
                            }
                            // Repeated, a command has the newest arguments.
                            agent.at_work.insert(command, (job, what));
                        }
                    }
                    CoordinatorMessage::Abort { id: command, .. } => {
                        agent.at_work.remove(&command);
                        let aborted = || Err(Fault::new(FaultKind::Cancelled, "aborted"));
                        let outcome = agent.kept.entry(command).or_insert_with(aborted);
                        again.push((id.clone(), command, outcome.clone()));
                    }
                    CoordinatorMessage::Forget { id } => {
                        agent.kept.remove(&id);
                    }
                    CoordinatorMessage::Mirror(row) => agent.mirrored.push(row),
                    CoordinatorMessage::Audit(entry) => agent.audited.push(*entry),
                    CoordinatorMessage::ReportInterval(interval) => agent.intervals.push(interval),
                    CoordinatorMessage::Rejected(fault) => agent.rejected.push(fault),
                    CoordinatorMessage::Welcome { .. } => {}
                }
            }
        }
        for (id, command, outcome) in again {
            self.say(id.as_str(), AgentMessage::Finished { command, outcome });
        }
    }

    /// Advances the clock and ticks the loop.
    pub(super) fn skip(&mut self, seconds: i64) {
        self.skipped += SignedDuration::from_secs(seconds);
        self.driver.clock.began += SignedDuration::from_secs(seconds);
        self.driver.turn(&mut Vec::new(), Wake::Time).unwrap();
        self.listen();
    }

    /// Ends the agent's oldest command, successfully or with a fault, and returns it.
    pub(super) fn end_one(&mut self, name: &str, fault: Option<Fault>) -> Option<Command> {
        if !self.agent(name).online {
            return None;
        }
        let (command, (job, what)) = self.agent(name).at_work.pop_first()?;
        let outcome = match fault {
            Some(fault) => Err(fault),
            None => Ok(self.perform(name, job, &what)),
        };
        self.agent(name).kept.insert(command, outcome.clone());
        self.say(name, AgentMessage::Finished { command, outcome });
        Some(what)
    }

    /// Performs commands until no agent has any.
    pub(super) fn run_on(&mut self) {
        let names: Vec<String> = self.agents.keys().map(ToString::to_string).collect();
        for _ in 0..500 {
            let ended = names
                .iter()
                .filter(|name| self.end_one(name, None).is_some())
                .count();
            if ended == 0 {
                return;
            }
        }
        panic!("commands without end");
    }

    /// Performs commands until that agent has a command of that kind.
    pub(super) fn until(&mut self, name: &str, wanted: impl Fn(&Command) -> bool) {
        let names: Vec<String> = self.agents.keys().map(ToString::to_string).collect();
        for _ in 0..100 {
            for other in &names {
                if self
                    .agent(name)
                    .at_work
                    .values()
                    .any(|(_, command)| wanted(command))
                {
                    return;
                }
                self.end_one(other, None);
            }
        }
        panic!("{name} never came to that command");
    }

    /// Asks; the answer may come later.
    pub(super) fn ask_later(
        &mut self,
        question: impl Into<Question>,
    ) -> oneshot::Receiver<Result<Answer, Fault>> {
        let (reply, answer) = oneshot::channel();
        let question = question.into();
        let ask = Ask { question, reply };
        self.driver
            .turn(&mut Vec::new(), Wake::Operator(ask))
            .unwrap();
        self.listen();
        answer
    }

    pub(super) fn ask(&mut self, question: impl Into<Question>) -> Result<Answer, Fault> {
        self.ask_later(question)
            .try_recv()
            .expect("an answer at once")
    }

    pub(super) fn init(&mut self, specs: Vec<JobSpec>) -> Result<Vec<Follow>, Fault> {
        match self.ask(Order::Init(InitRequest::Copy(specs)))? {
            Answer::Accepted { jobs, .. } => Ok(jobs),
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn resume(&mut self, specs: Vec<JobSpec>) -> Result<Vec<Follow>, Fault> {
        match self.ask(Order::Init(InitRequest::Resume(specs)))? {
            Answer::Accepted { jobs, .. } => Ok(jobs),
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn cancel(&mut self, name: &str) -> oneshot::Receiver<Result<Answer, Fault>> {
        self.ask_later(Order::Cancel {
            node: node(name),
            data: CancelledData::Remove,
        })
    }

    pub(super) fn node(&mut self, name: &str) -> NodeView {
        let question = Query::Nodes {
            node: Some(node(name)),
        };
        match &replies(self.ask(question))[..] {
            [ApiReply::Nodes(nodes)] => nodes[0].clone(),
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn state(&mut self, name: &str) -> NodeState {
        self.node(name).state
    }

    pub(super) fn progress(&mut self, name: &str) -> (ProgressView, Option<EndView>) {
        let question = Question::Progress {
            node: node(name),
            interest: Interest::Once,
        };
        match self.ask(question).unwrap() {
            Answer::Progress { view, end, .. } => (*view, end.map(|end| *end)),
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn events(&mut self, name: &str) -> Vec<EventView> {
        let query = EventQuery {
            node: Some(node(name)),
            after: 0,
            limit: 500,
        };
        match self.ask(Question::Events(query)).unwrap() {
            Answer::Events(events) => events,
            other => panic!("{other:?}"),
        }
    }
}

/// Replaces preflight, which has tests of its own.
pub(super) fn nothing_found(_: &Case<'_>) -> Vec<Finding> {
    Vec::new()
}

fn open_driver(directory: &Path) -> (Driver<SqliteStore>, Handle) {
    let (mut driver, handle) =
        Driver::new(SqliteStore::open(directory).unwrap(), Bounds::default()).unwrap();
    driver.rules.judge = nothing_found;
    (driver, handle)
}
