//! Commands to agents that belong to no job: reading a schema, storing fingerprints, comparing what a
//! node replicates with its source, preparing a slot for a backup.
//!
//! An query is one command after another, each answered by its agent, until whoever asked is answered
//! or it is given up. It makes no job and keeps nothing over a restart.

use std::time::Duration;

use jiff::Timestamp;
use steep_protocol::message::agent::{Command, CoordinatorMessage, Outcome};
use steep_protocol::message::facts::Finding;
use steep_protocol::message::handover::{PrepareSpec, Replication};
use steep_protocol::message::job::TableFilter;
use steep_protocol::message::schema::{SchemaCursor, SchemaReview};
use steep_protocol::{CommandId, Fault, FaultKind, JobId, NodeId, Retry};

use super::audit::AuditEntry;
use super::compose::addressed;
use super::give_up::Sweep;
use super::{Answer, Driver, Operator, Reply};
use crate::job::time::after;
use crate::store::Store;

/// Longer than reading the largest catalog takes.
const QUERY_LIMIT: Duration = Duration::from_secs(120);

/// How long a slot is waited for that is being prepared: transactions that were running have to end
/// first.
const PREPARE_LIMIT: Duration = Duration::from_secs(600);

/// How long missing objects may take: indexes of large tables are among them.
const REBUILD_LIMIT: Duration = Duration::from_secs(24 * 3600);

/// AgentQuerys at once.
const QUERIES_MAX: usize = 64;

/// Ids that one query uses: capture, admit, compare, and taking back the permission.
const COMMANDS: u64 = 4;

/// Something agents do beside jobs.
pub(super) struct AgentQuery {
    job: JobId,
    /// The ids that are left.
    next: u64,
    /// Who does what now.
    on: NodeId,
    command: CommandId,
    purpose: Purpose,
    /// What its commands are about, where they are about a prepared slot.
    replication: Option<Replication>,
    give_up: Timestamp,
}

impl AgentQuery {
    /// Whether its commands are that job's.
    pub(super) fn asks_as(&self, job: JobId) -> bool {
        self.job == job
    }
}

/// What it is for.
pub(super) enum Purpose {
    /// A page of a schema.
    Describe(Reply),
    /// Fingerprints of the node itself; then those of a peer, where one is named.
    Capture { peer: Option<NodeId>, reply: Reply },
    /// The peer has been told to answer; the node compares next.
    Admit(Pair, After),
    /// The node compares itself with its peer.
    Compare(Pair, After),
    /// The source looks whether a slot can be prepared.
    LookBeforePrepare(PrepareSpec, Reply),
    /// The source prepares it; what was found before is told with it.
    Prepare(Vec<Finding>, Reply),
    /// The source drops a prepared slot.
    DropPrepared(Reply),
    /// The node tries again what could not be made.
    Rebuild(Reply),
    /// Leftovers of forgotten jobs are removed.
    Sweep(Box<Sweep>),
}

/// A node and what it is compared with.
#[derive(Clone)]
pub(super) struct Pair {
    node: NodeId,
    peer: NodeId,
    filter: TableFilter,
}

/// What a comparison is for.
pub(super) enum After {
    /// Only the fingerprints it leaves: the answer says how many tables the node has itself.
    Captured { tables: u64, reply: Reply },
    /// Whether the node has drifted from what the replication of that job carries.
    Drift { replication: JobId },
}

impl<S: Store> Driver<S> {
    /// Reads a node's schema, from the first page or on from another.
    pub(super) fn describe(
        &mut self,
        node: &NodeId,
        filter: TableFilter,
        cursor: Option<SchemaCursor>,
        reply: Reply,
        now: Timestamp,
    ) {
        match self.check_query(node) {
            Ok(()) => {
                let command = Command::DescribeSchema { filter, cursor };
                self.begin_query(node, command, Purpose::Describe(reply), now);
            }
            Err(fault) => self.answer(reply, Err(fault)),
        }
    }

    /// Has a node store its fingerprints, and a peer's. It writes on the node, so it is in the audit
    /// trail.
    pub(super) fn capture(
        &mut self,
        node: &NodeId,
        peer: Option<NodeId>,
        operator: &Operator,
        reply: Reply,
        now: Timestamp,
    ) {
        let checked = self.check_query(node).and_then(|()| match &peer {
            Some(peer) if peer == node => {
                let text = "a node is not its own peer";
                Err(Fault::new(FaultKind::BadRequest, text).on(node))
            }
            Some(peer) => self.check_query(peer),
            None => Ok(()),
        });
        let outcome = checked.as_ref().map(|()| None).map_err(Fault::to_string);
        self.audit(
            AuditEntry::capture(node, peer.as_ref()),
            operator,
            outcome,
            now,
        );
        match checked {
            Ok(()) => {
                let purpose = Purpose::Capture { peer, reply };
                self.begin_query(node, Command::CaptureFingerprints, purpose, now);
            }
            Err(fault) => self.answer(reply, Err(fault)),
        }
    }

    /// Compares what a node replicates with its source; what comes of it is `drift`'s. Says whether it
    /// could be begun.
    pub(super) fn compare_with_source(
        &mut self,
        node: &NodeId,
        source: &NodeId,
        filter: TableFilter,
        replication: JobId,
        now: Timestamp,
    ) -> bool {
        let busy = self.queries.iter().any(|query| {
            matches!(&query.purpose, Purpose::Admit(pair, After::Drift { .. })
                | Purpose::Compare(pair, After::Drift { .. }) if pair.node == *node)
        });
        if busy || self.check_query(node).is_err() || self.check_query(source).is_err() {
            return false;
        }
        let pair = Pair {
            node: node.clone(),
            peer: source.clone(),
            filter,
        };
        let after = After::Drift { replication };
        let command = admit(&pair, &after);
        self.begin_query(source, command, Purpose::Admit(pair, after), now);
        true
    }

    pub(super) fn check_query(&self, node: &NodeId) -> Result<(), Fault> {
        self.known(node)?;
        self.check_online(node)?;
        if self.queries.len() < QUERIES_MAX {
            return Ok(());
        }
        let text = "too many questions to agents are waiting for an answer";
        Err(Fault::new(FaultKind::Failed, text).retry(Retry::Backoff))
    }

    pub(super) fn begin_query(
        &mut self,
        on: &NodeId,
        command: Command,
        purpose: Purpose,
        now: Timestamp,
    ) {
        let first = self.take_commands(COMMANDS);
        let limit = match purpose {
            Purpose::Rebuild(_) => REBUILD_LIMIT,
            _ => QUERY_LIMIT,
        };
        let query = AgentQuery {
            job: self.new_job_id(),
            next: first,
            on: on.clone(),
            command: CommandId(first),
            purpose,
            replication: None,
            give_up: after(now, limit),
        };
        self.start_query(query, on, command);
    }

    /// Begins what is about a prepared slot. A new one has the query's id.
    pub(super) fn begin_query_on(
        &mut self,
        on: &NodeId,
        replication: Replication,
        command: Command,
        purpose: Purpose,
        now: Timestamp,
    ) {
        let first = self.take_commands(COMMANDS);
        let query = AgentQuery {
            job: replication.id,
            next: first,
            on: on.clone(),
            command: CommandId(first),
            purpose,
            replication: Some(replication),
            give_up: after(now, PREPARE_LIMIT),
        };
        self.start_query(query, on, command);
    }

    fn start_query(&mut self, mut query: AgentQuery, on: &NodeId, command: Command) {
        self.query_send(&mut query, on, command);
        self.queries.push(query);
    }

    fn query_send(&mut self, query: &mut AgentQuery, on: &NodeId, command: Command) {
        let id = CommandId(query.next);
        query.next += 1;
        query.command = id;
        query.on = on.clone();
        let message = addressed(id, query.job, query.replication.clone(), command);
        self.send(on, message);
    }

    /// Whether that node tries again what could not be made.
    pub(super) fn is_rebuilding(&self, node: &NodeId) -> bool {
        let own =
            |query: &AgentQuery| matches!(query.purpose, Purpose::Rebuild(_)) && query.on == *node;
        self.queries.iter().any(own)
    }

    /// Whether that command is an query's.
    pub(super) fn query_owns(&self, node: &NodeId, command: CommandId) -> bool {
        let own = |query: &AgentQuery| query.command == command && query.on == *node;
        self.queries.iter().any(own)
    }

    /// A command of an query ended.
    pub(super) fn query_finished(
        &mut self,
        node: &NodeId,
        command: CommandId,
        outcome: Result<Outcome, Fault>,
        now: Timestamp,
    ) {
        let own = |query: &AgentQuery| query.command == command && query.on == *node;
        let Some(at) = self.queries.iter().position(own) else {
            return;
        };
        let query = self.queries.swap_remove(at);
        match outcome {
            Ok(outcome) => self.query_step(query, outcome, now),
            Err(fault) => self.query_failed(query, fault),
        }
    }

    fn query_step(&mut self, mut query: AgentQuery, outcome: Outcome, now: Timestamp) {
        let purpose = match (query.purpose, outcome) {
            (Purpose::Describe(reply), Outcome::SchemaPage { page, next }) => {
                return self.answer(reply, Ok(Answer::Schema { page, next }));
            }
            (Purpose::Capture { peer: None, reply }, Outcome::Captured { tables }) => {
                return self.answer(reply, Ok(Answer::Captured { tables }));
            }
            (
                Purpose::Capture {
                    peer: Some(peer),
                    reply,
                },
                Outcome::Captured { tables },
            ) => {
                let pair = Pair {
                    node: query.on.clone(),
                    peer,
                    filter: TableFilter::default(),
                };
                Purpose::Admit(pair, After::Captured { tables, reply })
            }
            (Purpose::Admit(pair, after), Outcome::Done) => Purpose::Compare(pair, after),
            (Purpose::Compare(pair, after), Outcome::Reviewed(review)) => {
                self.release_permission(query.job, query.next, &pair.peer);
                return self.compared(&pair, after, &review, now);
            }
            (Purpose::LookBeforePrepare(spec, reply), Outcome::SourceFacts(facts)) => {
                match Self::judge_prepare(&spec.node, &facts) {
                    Ok(findings) => {
                        let expires_seconds = spec.expires_seconds;
                        let command = Command::PrepareSlot { expires_seconds };
                        query.purpose = Purpose::Prepare(findings, reply);
                        self.query_send(&mut query, &spec.node, command);
                        self.queries.push(query);
                    }
                    Err(fault) => {
                        self.release_permission(query.job, query.next, &query.on);
                        self.answer(reply, Err(fault));
                    }
                }
                return;
            }
            (Purpose::Prepare(findings, reply), Outcome::SlotPrepared(slot)) => {
                self.release_permission(query.job, query.next, &query.on);
                self.slot_prepared(&query.on, &slot, now);
                let slots = vec![*slot];
                return self.answer(reply, Ok(Answer::Prepared { findings, slots }));
            }
            (Purpose::Rebuild(reply), Outcome::Rebuilt(rebuilt)) => {
                return self.rebuilt(&query.on, rebuilt, reply, now);
            }
            (Purpose::Sweep(sweep), Outcome::Done | Outcome::Warned(_)) => {
                return self.swept(*sweep, None, now);
            }
            (Purpose::DropPrepared(reply), Outcome::Done) => {
                if let Some(replication) = &query.replication {
                    self.slot_dropped(&query.on, &replication.slot);
                }
                return self.answer(reply, Ok(Answer::Done));
            }
            (purpose, _) => {
                query.purpose = purpose;
                let text = "the agent gave an answer that does not fit to what it was asked";
                let hint = "run the same version on the coordinator and on all agents";
                let fault = Fault::new(FaultKind::Failed, text).on(&query.on).hint(hint);
                return self.query_failed(query, fault);
            }
        };
        let (on, command) = match &purpose {
            Purpose::Compare(pair, after) => {
                let (source, filter) = (self.peer(&pair.peer), pair.filter.clone());
                let command = match after {
                    After::Captured { .. } => Command::CompareSchemas { source, filter },
                    After::Drift { replication } => Command::CompareReplicated {
                        source,
                        filter,
                        replication: *replication,
                    },
                };
                (pair.node.clone(), command)
            }
            Purpose::Admit(pair, after) => (pair.peer.clone(), admit(pair, after)),
            // Ended above.
            Purpose::Describe(_)
            | Purpose::Capture { .. }
            | Purpose::LookBeforePrepare(..)
            | Purpose::Prepare(..)
            | Purpose::DropPrepared(_)
            | Purpose::Rebuild(_)
            | Purpose::Sweep(_) => return,
        };
        query.purpose = purpose;
        self.query_send(&mut query, &on, command);
        self.queries.push(query);
    }

    fn compared(&mut self, pair: &Pair, after: After, review: &SchemaReview, now: Timestamp) {
        match after {
            After::Captured { tables, reply } => {
                self.answer(reply, Ok(Answer::Captured { tables }));
            }
            After::Drift { replication } => {
                self.columns_compared(&pair.node, &pair.peer, replication, review, now);
            }
        }
    }

    fn query_failed(&mut self, query: AgentQuery, fault: Fault) {
        if let Purpose::Admit(pair, _) | Purpose::Compare(pair, _) = &query.purpose {
            self.release_permission(query.job, query.next, &pair.peer);
        }
        if query.replication.is_some() {
            self.release_permission(query.job, query.next, &query.on);
        }
        match query.purpose {
            Purpose::Describe(reply)
            | Purpose::Capture { reply, .. }
            | Purpose::Admit(_, After::Captured { reply, .. })
            | Purpose::Compare(_, After::Captured { reply, .. })
            | Purpose::LookBeforePrepare(_, reply)
            | Purpose::Prepare(_, reply)
            | Purpose::DropPrepared(reply)
            | Purpose::Rebuild(reply) => self.answer(reply, Err(fault)),
            Purpose::Sweep(sweep) => {
                let now = self.clock.now();
                self.swept(*sweep, Some(&fault), now);
            }
            Purpose::Admit(pair, After::Drift { .. })
            | Purpose::Compare(pair, After::Drift { .. }) => {
                Self::comparison_failed(&pair.node, &fault);
            }
        }
    }

    /// Gives up what takes too long.
    pub(super) fn tick_queries(&mut self, now: Timestamp) {
        self.end_queries(|query| {
            let (limit, hint) = match &query.purpose {
                Purpose::Prepare(..) => (
                    PREPARE_LIMIT,
                    "a new slot waits for transactions that were running before it: see \
                     pg_stat_activity for old ones, end them, then try again",
                ),
                Purpose::LookBeforePrepare(..) | Purpose::DropPrepared(_) | Purpose::Sweep(_) => {
                    (PREPARE_LIMIT, "")
                }
                Purpose::Rebuild(_) => (
                    REBUILD_LIMIT,
                    "run steep-repl init rebuild again: what was made stays made",
                ),
                Purpose::Describe(_)
                | Purpose::Capture { .. }
                | Purpose::Admit(..)
                | Purpose::Compare(..) => (QUERY_LIMIT, ""),
            };
            let text = format!("the agent did not answer within {} s", limit.as_secs());
            let fault = Fault::new(FaultKind::Timeout, text)
                .on(&query.on)
                .hint(hint);
            (query.give_up <= now).then_some(fault)
        });
    }

    /// An agent's session ended: whoever waits for it waits in vain.
    pub(super) fn queries_lost(&mut self, node: &NodeId) {
        let text = "the agent went away before it had answered";
        self.end_queries(|query| {
            let fault = Fault::new(FaultKind::Unreachable, text).on(node);
            (query.on == *node).then(|| fault.retry(Retry::Backoff))
        });
    }

    fn end_queries(&mut self, why: impl Fn(&AgentQuery) -> Option<Fault>) {
        for query in std::mem::take(&mut self.queries) {
            match why(&query) {
                Some(fault) => {
                    let abort = CoordinatorMessage::Abort { id: query.command };
                    self.send(&query.on.clone(), abort);
                    self.query_failed(query, fault);
                }
                None => self.queries.push(query),
            }
        }
    }
}

fn admit(pair: &Pair, after: &After) -> Command {
    let (target, filter) = (pair.node.clone(), pair.filter.clone());
    match after {
        After::Captured { .. } => Command::Admit { target, filter },
        After::Drift { replication } => Command::AdmitReplicated {
            target,
            filter,
            replication: *replication,
        },
    }
}
