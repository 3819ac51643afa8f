//! Commands to agents that belong to no job: a preflight alone, reading a schema, storing fingerprints,
//! comparing what a node replicates with its source, preparing a slot for a backup, removing leftovers.
//!
//! A query is one command after another, each answered by its agent, until whoever asked is answered or
//! it is given up. It makes no job and keeps nothing over a restart. What an outcome leads to is said by
//! [`Driver::query_step`]; the module that begins a query also takes its last outcome.

use std::time::Duration;

use jiff::Timestamp;
use steep_protocol::message::agent::{
    Command, Comparison, CoordinatorMessage, Outcome, SourceCommand, TargetCommand,
};
use steep_protocol::message::api::ApiReply;
use steep_protocol::message::facts::{Finding, SourceFacts};
use steep_protocol::message::handover::{PrepareSpec, Replication};
use steep_protocol::message::job::TableFilter;
use steep_protocol::{CommandId, Fault, FaultKind, JobId, NodeId, Retry};

use super::doctor::Look;
use super::sweep::Sweep;
use super::{Answer, Driver, Ticket};
use crate::job::time::after;
use crate::store::Store;

/// Queries at once, without those of doctors.
const QUERIES_MAX: usize = 64;

/// Ids that one query uses: capture, admit, compare, and taking back the permission.
const COMMANDS: u64 = 4;

/// Something agents do beside jobs.
pub(super) struct AgentQuery {
    course: Course,
    purpose: Purpose,
}

/// How far a query is.
struct Course {
    /// As whom it asks. No job has that id, unless it is about a replication.
    job: JobId,
    /// What its commands are about.
    replication: Replication,
    /// The next of its ids.
    next: u64,
    /// Who does what now.
    on: NodeId,
    command: CommandId,
    /// How long that may take, and until when.
    limit: Duration,
    give_up: Timestamp,
    /// The source that was told to answer the target.
    admitted: Option<NodeId>,
}

/// What a command is for.
pub(super) enum Purpose {
    /// The source looks, for a doctor.
    LookAtSource(Look),
    /// The target looks; what the source saw is judged with it.
    LookAtTarget(Look, Box<SourceFacts>),
    /// A page of a schema.
    Describe(Ticket),
    /// Fingerprints of the node itself; then those of a peer, where one is named.
    Capture {
        peer: Option<NodeId>,
        ticket: Ticket,
    },
    /// The peer has been told to answer; the node compares next.
    Admit(Pair, After),
    /// The node compares itself with its peer.
    Compare(Pair, After),
    /// The source looks whether a slot can be prepared.
    LookBeforePrepare(PrepareSpec, Ticket),
    /// The source prepares it; what was found before is told with it.
    Prepare(Vec<Finding>, Ticket),
    /// The source drops a prepared slot.
    DropPrepared(Ticket),
    /// The node tries again what could not be made.
    Rebuild(Ticket),
    /// Leftovers of forgotten jobs are removed.
    Sweep(Box<Sweep>),
}

/// A node and what it is compared with.
#[derive(Clone)]
pub(super) struct Pair {
    pub(super) node: NodeId,
    pub(super) peer: NodeId,
    pub(super) filter: TableFilter,
}

/// What a comparison is for.
pub(super) enum After {
    /// Only the fingerprints it leaves: the answer says how many tables the node has itself.
    Captured { tables: u64, ticket: Ticket },
    /// Whether the node has drifted from what the replication of that job carries.
    Drift { replication: JobId },
}

/// What follows the outcome of a command: another one, on that node, for that purpose.
type Next = Option<(NodeId, Command, Purpose)>;

impl Purpose {
    /// What is said with a timeout.
    fn hint(&self) -> &'static str {
        match self {
            Self::Prepare(..) => {
                "a new slot waits for transactions that were running before it: see \
                 pg_stat_activity for old ones, end them, then try again"
            }
            Self::Rebuild(_) => "run steep-repl init rebuild again: what was made stays made",
            Self::LookAtSource(_)
            | Self::LookAtTarget(..)
            | Self::Describe(_)
            | Self::Capture { .. }
            | Self::Admit(..)
            | Self::Compare(..)
            | Self::LookBeforePrepare(..)
            | Self::DropPrepared(_)
            | Self::Sweep(_) => "",
        }
    }
}

impl After {
    fn replicated(&self) -> Option<JobId> {
        match self {
            Self::Captured { .. } => None,
            Self::Drift { replication } => Some(*replication),
        }
    }
}

impl AgentQuery {
    /// Whether its commands are that job's.
    pub(super) fn asks_as(&self, job: JobId) -> bool {
        self.course.job == job
    }

    /// Whether it compares that node with its source.
    pub(super) fn compares(&self, of: &NodeId) -> bool {
        let (Purpose::Admit(pair, after) | Purpose::Compare(pair, after)) = &self.purpose else {
            return false;
        };
        pair.node == *of && matches!(after, After::Drift { .. })
    }

    /// Whether that node tries again what could not be made.
    pub(super) fn rebuilds(&self, node: &NodeId) -> bool {
        self.course.on == *node && matches!(self.purpose, Purpose::Rebuild(_))
    }

    /// Whether it is a look of that doctor.
    pub(super) fn is_look_of(&self, doctor: u64) -> bool {
        self.look().is_some_and(|look| look.doctor == doctor)
    }

    fn look(&self) -> Option<&Look> {
        match &self.purpose {
            Purpose::LookAtSource(look) | Purpose::LookAtTarget(look, _) => Some(look),
            _ => None,
        }
    }

    /// Whether it cannot be answered without that node's agent.
    fn needs(&self, node: &NodeId) -> bool {
        self.course.on == *node || self.look().is_some_and(|look| look.spec.target == *node)
    }
}

impl<S: Store> Driver<S> {
    /// Whether a node can be asked something.
    pub(super) fn check_query(&self, node: &NodeId) -> Result<(), Fault> {
        self.known(node)?;
        self.check_online(node)?;
        let own = self.queries.iter().filter(|query| query.look().is_none());
        if own.count() < QUERIES_MAX {
            return Ok(());
        }
        let text = "too many questions to agents are waiting for an answer";
        Err(Fault::new(FaultKind::Failed, text).retry(Retry::Backoff))
    }

    /// Begins what is about no replication.
    pub(super) fn begin_query(
        &mut self,
        on: &NodeId,
        command: impl Into<Command>,
        purpose: Purpose,
        now: Timestamp,
    ) {
        let replication = Replication::of(self.new_job_id());
        self.begin_query_on(on, replication, command, purpose, now);
    }

    /// Begins what is about that replication, whose id it has.
    pub(super) fn begin_query_on(
        &mut self,
        on: &NodeId,
        replication: Replication,
        command: impl Into<Command>,
        purpose: Purpose,
        now: Timestamp,
    ) {
        let job = replication.id;
        self.begin_query_as(job, on, replication, (command.into(), purpose), now);
    }

    /// Begins what is about that replication, under an id of its own.
    pub(super) fn begin_query_as(
        &mut self,
        job: JobId,
        on: &NodeId,
        replication: Replication,
        (command, purpose): (Command, Purpose),
        now: Timestamp,
    ) {
        let first = self.take_commands(COMMANDS);
        let course = Course {
            job,
            replication,
            next: first,
            on: on.clone(),
            command: CommandId(first),
            limit: Duration::ZERO,
            give_up: now,
            admitted: None,
        };
        self.go_on(course, on.clone(), command, purpose, now);
    }

    /// Gives a query's next command.
    fn go_on(
        &mut self,
        mut course: Course,
        on: NodeId,
        command: Command,
        purpose: Purpose,
        now: Timestamp,
    ) {
        if let Command::Source(SourceCommand::Gather { .. } | SourceCommand::Admit { .. }) = command
        {
            course.admitted = Some(on.clone());
        }
        course.command = CommandId(course.next);
        course.next += 1;
        course.limit = command.policy().limit;
        course.give_up = after(now, course.limit);
        let message = CoordinatorMessage::Command {
            id: course.command,
            job: course.job,
            replication: course.replication.clone(),
            command,
        };
        self.send(&on, message);
        course.on = on;
        self.queries.push(AgentQuery { course, purpose });
    }

    /// A command ended that no job waits for.
    pub(super) fn query_finished(
        &mut self,
        node: &NodeId,
        command: CommandId,
        outcome: Result<Outcome, Fault>,
        now: Timestamp,
    ) {
        let own = |query: &AgentQuery| query.course.command == command && query.course.on == *node;
        let Some(at) = self.queries.iter().position(own) else {
            return;
        };
        let AgentQuery { course, purpose } = self.queries.swap_remove(at);
        let next = match outcome {
            Ok(outcome) => self.query_step(&course, purpose, outcome, now),
            Err(fault) => {
                self.query_failed(purpose, fault, now);
                None
            }
        };
        match next {
            Some((on, command, purpose)) => self.go_on(course, on, command, purpose, now),
            None => self.query_over(&course),
        }
    }

    /// What an outcome leads to.
    fn query_step(
        &mut self,
        course: &Course,
        purpose: Purpose,
        outcome: Outcome,
        now: Timestamp,
    ) -> Next {
        match (purpose, outcome) {
            (Purpose::LookAtSource(look), Outcome::SourceFacts(facts)) => {
                let (source, filter) = (self.peer(&look.spec.source), look.spec.filter.clone());
                let command = TargetCommand::Gather { source, filter };
                let (on, purpose) = (look.spec.target.clone(), Purpose::LookAtTarget(look, facts));
                return Some((on, command.into(), purpose));
            }
            (Purpose::LookAtTarget(look, source), Outcome::TargetFacts(target)) => {
                self.looked(&look, &source, &target);
            }
            (Purpose::Describe(ticket), Outcome::SchemaPage { page, next }) => {
                self.answer(ticket, Ok(Answer::Schema { page, next }));
            }
            (Purpose::Capture { peer, ticket }, Outcome::Captured { tables }) => {
                let Some(peer) = peer else {
                    self.answer(ticket, Ok(ApiReply::Captured { tables }.into()));
                    return None;
                };
                let pair = Pair {
                    node: course.on.clone(),
                    peer,
                    filter: TableFilter::default(),
                };
                let after = After::Captured { tables, ticket };
                return Some((
                    pair.peer.clone(),
                    admit(&pair, &after),
                    Purpose::Admit(pair, after),
                ));
            }
            (Purpose::Admit(pair, after), Outcome::Done) => {
                let command = TargetCommand::Compare {
                    source: self.peer(&pair.peer),
                    filter: pair.filter.clone(),
                    what: match after.replicated() {
                        None => Comparison::Schemas,
                        Some(replication) => Comparison::Replicated(replication),
                    },
                };
                let (on, purpose) = (pair.node.clone(), Purpose::Compare(pair, after));
                return Some((on, command.into(), purpose));
            }
            (Purpose::Compare(pair, after), Outcome::Reviewed(review)) => match after {
                After::Captured { tables, ticket } => {
                    self.answer(ticket, Ok(ApiReply::Captured { tables }.into()));
                }
                After::Drift { replication } => {
                    self.columns_compared(&pair.node, &pair.peer, replication, &review, now);
                }
            },
            (Purpose::LookBeforePrepare(spec, ticket), Outcome::SourceFacts(facts)) => {
                match Self::judge_prepare(&spec.node, &facts) {
                    Ok(findings) => {
                        let expires_seconds = spec.expires_seconds;
                        let command = SourceCommand::PrepareSlot { expires_seconds };
                        let purpose = Purpose::Prepare(findings, ticket);
                        return Some((spec.node, command.into(), purpose));
                    }
                    Err(fault) => self.answer(ticket, Err(fault)),
                }
            }
            (Purpose::Prepare(findings, ticket), Outcome::SlotPrepared(slot)) => {
                self.slot_prepared(&course.on, &slot, now);
                let target = course.on.clone();
                let found =
                    (!findings.is_empty()).then_some(ApiReply::Findings { target, findings });
                let prepared = ApiReply::Prepared(vec![*slot]);
                let replies = found.into_iter().chain([prepared]).collect();
                self.answer(ticket, Ok(Answer::Replies(replies)));
            }
            (Purpose::DropPrepared(ticket), Outcome::Done) => {
                self.slot_dropped(&course.on, &course.replication.slot);
                self.answer(ticket, Ok(Answer::Replies(Vec::new())));
            }
            (Purpose::Rebuild(ticket), Outcome::Rebuilt(rebuilt)) => {
                self.rebuilt(&course.on, rebuilt, ticket, now);
            }
            (Purpose::Sweep(sweep), Outcome::Done | Outcome::Warned(_)) => {
                self.swept(*sweep, None, now);
            }
            (purpose, _) => {
                let text = "the agent gave an answer that does not fit to what it was asked";
                let hint = "run the same version on the coordinator and on all agents";
                let fault = Fault::new(FaultKind::Failed, text)
                    .on(&course.on)
                    .hint(hint);
                self.query_failed(purpose, fault, now);
            }
        }
        None
    }

    fn query_failed(&mut self, purpose: Purpose, fault: Fault, now: Timestamp) {
        match purpose {
            Purpose::LookAtSource(look) | Purpose::LookAtTarget(look, _) => {
                self.doctor_failed(look.doctor, fault, now);
            }
            Purpose::Describe(ticket)
            | Purpose::Capture { ticket, .. }
            | Purpose::Admit(_, After::Captured { ticket, .. })
            | Purpose::Compare(_, After::Captured { ticket, .. })
            | Purpose::LookBeforePrepare(_, ticket)
            | Purpose::Prepare(_, ticket)
            | Purpose::DropPrepared(ticket)
            | Purpose::Rebuild(ticket) => self.answer(ticket, Err(fault)),
            Purpose::Sweep(sweep) => self.swept(*sweep, Some(&fault), now),
            Purpose::Admit(pair, After::Drift { .. })
            | Purpose::Compare(pair, After::Drift { .. }) => {
                Self::comparison_failed(&pair.node, &fault);
            }
        }
    }

    /// Takes back what a source was told to allow (G7).
    fn query_over(&mut self, course: &Course) {
        if let Some(source) = &course.admitted {
            self.release_permission(course.job, course.next, source);
        }
    }

    /// Gives up what takes too long.
    pub(super) fn tick_queries(&mut self, now: Timestamp) {
        let late = |query: &AgentQuery| {
            let Course { on, limit, .. } = &query.course;
            let text = format!("the agent did not answer within {} s", limit.as_secs());
            let fault = Fault::new(FaultKind::Timeout, text).on(on);
            (query.course.give_up <= now).then(|| fault.hint(query.purpose.hint()))
        };
        self.end_queries(late, now);
    }

    /// An agent's session ended: whoever waits for it waits in vain.
    pub(super) fn queries_lost(&mut self, node: &NodeId, now: Timestamp) {
        let text = "the agent went away before it had answered";
        let fault = Fault::new(FaultKind::Unreachable, text).on(node);
        let lost = |query: &AgentQuery| {
            query
                .needs(node)
                .then(|| fault.clone().retry(Retry::Backoff))
        };
        self.end_queries(lost, now);
    }

    /// Ends those queries for which there is a reason.
    pub(super) fn end_queries(
        &mut self,
        why: impl Fn(&AgentQuery) -> Option<Fault>,
        now: Timestamp,
    ) {
        let mut ended = Vec::new();
        for query in std::mem::take(&mut self.queries) {
            match why(&query) {
                Some(fault) => ended.push((query, fault)),
                None => self.queries.push(query),
            }
        }
        for (AgentQuery { course, purpose }, fault) in ended {
            self.send(&course.on, CoordinatorMessage::Abort { id: course.command });
            self.query_failed(purpose, fault, now);
            self.query_over(&course);
        }
    }
}

/// Has the peer answer the node that compares itself with it.
pub(super) fn admit(pair: &Pair, after: &After) -> Command {
    Command::Source(SourceCommand::Admit {
        target: pair.node.clone(),
        filter: pair.filter.clone(),
        replicated: after.replicated(),
    })
}
