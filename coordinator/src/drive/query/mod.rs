//! Commands to agents that belong to no job: a preflight alone, reading a schema, storing fingerprints,
//! comparing what a node replicates with its source, preparing a slot for a backup, removing leftovers.
//!
//! A query sends one command after another until it has an answer or fails. It does not survive a
//! restart. [`Driver::query_step`] decides what follows an outcome; the module that starts a query also
//! handles its last outcome.

mod compared;
mod ends;
mod looks;

use std::time::Duration;

use jiff::Timestamp;
use steep_protocol::message::agent::{
    Command, CoordinatorMessage, Outcome, SourceCommand, TargetCommand,
};
use steep_protocol::message::api::ApiReply;
use steep_protocol::message::facts::{Finding, SourceFacts, TargetFacts};
use steep_protocol::message::handover::{PrepareSpec, Replication};
use steep_protocol::message::snapshot::SnapshotSpec;
use steep_protocol::message::switchover::SwitchoverFacts;
use steep_protocol::message::tables::ChangeSpec;
use steep_protocol::{CommandId, Fault, FaultKind, JobId, NodeId, Retry, SnapshotId};

use super::detach::Detaching;
use super::doctor::Look;
use super::merge::SettingApart;
use super::repair::Repairing;
use super::schema::{After, Pair};
use super::stored_check::StoredLook;
use super::sweep::Sweep;
use super::switchover::Looking;
use super::verify::Verification;
use super::{Answer, Driver, Ticket};
use crate::job::time::after;
use crate::store::{LeftBehind, Store};

/// Maximum number of concurrent queries, not counting those of doctors.
const QUERIES_MAX: usize = 64;

/// Command ids reserved for a query: at most four looks, and release.
const COMMANDS: u64 = 5;

/// A query under way.
pub(super) struct AgentQuery {
    course: Course,
    purpose: Purpose,
}

/// The state of a query.
struct Course {
    /// The job id in its commands: that of a replication, or an unused one.
    job: JobId,
    /// The replication in its commands.
    replication: Replication,
    /// Its next command id.
    next: u64,
    /// The node that executes the current command.
    on: NodeId,
    command: CommandId,
    /// How long that may take, and until when.
    limit: Duration,
    give_up: Timestamp,
    /// The source whose permission must be revoked at the end.
    admitted: Option<NodeId>,
}

/// The purpose of a command.
pub(super) enum Purpose {
    /// Gather the source's facts, for a doctor.
    LookAtSource(Look),
    /// Gather the target's facts; the source's are those given.
    LookAtTarget(Look, Box<SourceFacts>),
    /// Read a page of a schema.
    Describe(Ticket),
    /// Store the node's own fingerprints, then those of a peer, if given.
    Capture {
        peer: Option<NodeId>,
        ticket: Ticket,
    },
    /// Permit the node to send requests to its peer, before the comparison.
    Admit(Pair, After),
    /// Compare the node with its peer.
    Compare(Pair, After),
    /// Gather facts of a source on which a slot is to be prepared.
    LookBeforePrepare(PrepareSpec, Ticket),
    /// Prepare a slot. The findings are part of the answer.
    Prepare(Vec<Finding>, Ticket),
    /// Gather facts of a source of which a snapshot is to be made.
    LookBeforeGenerate(Box<SnapshotSpec>, String, Ticket),
    /// See whether a snapshot can be stored at its place. The findings are part of the answer.
    LookAtPlace(Box<SnapshotSpec>, String, Vec<Finding>, Ticket),
    /// Read a stored snapshot again.
    VerifySnapshot(SnapshotId, Ticket),
    /// See which snapshot is at a place.
    FindSnapshot(Ticket),
    /// See whether a stored snapshot can be loaded, for a doctor; the facts of both ends are those given.
    LookAtStored(Look, Box<SourceFacts>, Box<TargetFacts>),
    /// See whether a failed job's stored snapshot can be loaded.
    CheckStored(StoredLook),
    /// List the tables of a node's replication.
    ListTables(NodeId, Ticket),
    /// See that a node follows tables, before that operator's order drops them.
    CheckFollowed(Box<ChangeSpec>, String, Ticket),
    /// Drop a prepared slot.
    DropPrepared(Ticket),
    /// Retry missing objects.
    Rebuild(Ticket),
    /// Raise that node's sequences.
    RaiseSequences(NodeId),
    /// Permit the node to compare rows with its peer, before it does.
    AdmitVerify(Box<Verification>),
    /// Compare rows.
    Verify(Box<Verification>),
    /// Permit the node to read its source's rows, before it writes a page of a repair.
    AdmitRepair(Box<Repairing>),
    /// Write the page.
    Repair(Box<Repairing>),
    /// Set the sequences of two nodes apart.
    SetApart(Box<SettingApart>),
    /// Remove leftovers of forgotten jobs.
    Sweep(Box<Sweep>),
    /// Wait until a node has applied what was written, before it is detached.
    AwaitBeforeDetach(Box<Detaching>),
    /// Remove what a detached node has left on its source.
    RemoveLeft(NodeId, Box<LeftBehind>),
    /// See whether the old node can follow the new one after a switchover: first what the new one is as a source.
    LookAtWayBack(Box<Looking>),
    LookAtFollower(Box<Looking>, Box<SourceFacts>),
    /// See what a switchover needs to know of the node that takes writes, then of the replica.
    LookAtOld(Box<Looking>),
    LookAtNew(Box<Looking>, Box<SwitchoverFacts>),
}

/// The next command, if any: its node, the command and its purpose.
pub(super) type Next = Option<(NodeId, Command, Purpose)>;

impl Purpose {
    /// The hint of a timeout.
    fn hint(&self) -> &'static str {
        match self {
            Self::Prepare(..) => {
                "a new slot waits for all running transactions: find old ones in \
                 pg_stat_activity, end them, then try again"
            }
            Self::Rebuild(_) => "run steep-repl init rebuild again: created objects stay",
            Self::Repair(_) => "run steep-repl repair again: rows that are repaired stay so",
            Self::LookAtSource(_)
            | Self::LookAtTarget(..)
            | Self::Describe(_)
            | Self::Capture { .. }
            | Self::Admit(..)
            | Self::Compare(..)
            | Self::LookBeforePrepare(..)
            | Self::LookBeforeGenerate(..)
            | Self::LookAtPlace(..)
            | Self::LookAtStored(..)
            | Self::CheckStored(_)
            | Self::VerifySnapshot(..)
            | Self::FindSnapshot(_)
            | Self::ListTables(..)
            | Self::CheckFollowed(..)
            | Self::DropPrepared(_)
            | Self::AdmitVerify(_)
            | Self::Verify(_)
            | Self::AdmitRepair(_)
            | Self::SetApart(_)
            | Self::Sweep(_)
            | Self::AwaitBeforeDetach(_)
            | Self::RaiseSequences(_)
            | Self::LookAtWayBack(_)
            | Self::LookAtFollower(..)
            | Self::LookAtOld(_)
            | Self::LookAtNew(..)
            | Self::RemoveLeft(..) => "",
        }
    }
}

impl AgentQuery {
    /// Whether its commands have that job id.
    pub(super) fn asks_as(&self, job: JobId) -> bool {
        self.course.job == job
    }

    /// Whether it compares that node with its source, to detect drift.
    pub(super) fn compares(&self, of: &NodeId) -> bool {
        let (Purpose::Admit(pair, after) | Purpose::Compare(pair, after)) = &self.purpose else {
            return false;
        };
        pair.node == *of && matches!(after, After::Drift { .. })
    }

    /// Whether it raises the sequences of that node.
    pub(super) fn raises(&self, of: &NodeId) -> bool {
        match &self.purpose {
            Purpose::RaiseSequences(node) => node == of,
            Purpose::Admit(pair, After::Sequences { .. }) => pair.node == *of,
            _ => false,
        }
    }

    /// Whether it retries missing objects on that node.
    pub(super) fn rebuilds(&self, node: &NodeId) -> bool {
        self.course.on == *node && matches!(self.purpose, Purpose::Rebuild(_))
    }

    /// Whether it sets the sequences of that job's nodes apart.
    pub(super) fn sets_apart(&self, job: JobId) -> bool {
        matches!(&self.purpose, Purpose::SetApart(setting) if setting.is_for(job))
    }

    /// Whether it removes what is left on that node.
    pub(super) fn sweeps(&self, node: &NodeId) -> bool {
        matches!(&self.purpose, Purpose::Sweep(sweep) if sweep.node == *node)
    }

    /// Whether it belongs to that doctor.
    pub(super) fn is_look_of(&self, doctor: u64) -> bool {
        self.look().is_some_and(|look| look.doctor == doctor)
    }

    fn look(&self) -> Option<&Look> {
        match &self.purpose {
            Purpose::LookAtSource(look)
            | Purpose::LookAtTarget(look, _)
            | Purpose::LookAtStored(look, ..) => Some(look),
            _ => None,
        }
    }

    /// Whether it needs that node's agent.
    fn needs(&self, node: &NodeId) -> bool {
        self.course.on == *node
            || self
                .look()
                .is_some_and(|look| look.wanted.spec.target == *node)
    }
}

impl<S: Store> Driver<S> {
    /// Checks whether a query to a node may start.
    pub(super) fn check_query(&self, node: &NodeId) -> Result<(), Fault> {
        self.known(node)?;
        self.check_online(node)?;
        let own = self.queries.iter().filter(|query| query.look().is_none());
        if own.count() < QUERIES_MAX {
            return Ok(());
        }
        let text = "too many requests are waiting for answers of agents";
        Err(Fault::new(FaultKind::Failed, text).retry(Retry::Backoff))
    }

    /// Starts a query that is not about a replication.
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

    /// Starts a query about a replication, under its id.
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

    /// Starts a query about a replication, under another id.
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
        self.send_next(course, on.clone(), command, purpose, now);
    }

    /// Gives the query that was begun last another limit.
    pub(super) fn limit_query(&mut self, limit: Duration, now: Timestamp) {
        if let Some(query) = self.queries.last_mut() {
            query.course.limit = limit;
            query.course.give_up = after(now, limit);
        }
    }

    /// Sends a query's next command.
    fn send_next(
        &mut self,
        mut course: Course,
        on: NodeId,
        command: Command,
        purpose: Purpose,
        now: Timestamp,
    ) {
        if let Command::Source(
            SourceCommand::Gather { .. }
            | SourceCommand::Admit { .. }
            | SourceCommand::AdmitVerify { .. },
        ) = command
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

    /// A command ended that belongs to no job.
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
            Some((on, command, purpose)) => self.send_next(course, on, command, purpose, now),
            None => self.query_over(&course),
        }
    }

    /// Handles an outcome; returns the next command.
    fn query_step(
        &mut self,
        course: &Course,
        purpose: Purpose,
        outcome: Outcome,
        now: Timestamp,
    ) -> Next {
        match (purpose, outcome) {
            (Purpose::LookAtSource(look), Outcome::SourceFacts(facts)) => {
                let (command, on) = self.look_at_target(&look);
                return Some((on, command.into(), Purpose::LookAtTarget(look, facts)));
            }
            (Purpose::LookAtTarget(look, source), Outcome::TargetFacts(target)) => {
                let Some((command, on)) = look.look_at_stored() else {
                    self.looked(&look, &source, &target, None);
                    return None;
                };
                let purpose = Purpose::LookAtStored(look, source, target);
                return Some((on, command.into(), purpose));
            }
            (Purpose::LookAtStored(look, source, target), Outcome::Done) => {
                self.looked(&look, &source, &target, None);
            }
            (Purpose::CheckStored(look), Outcome::Done) => {
                self.stored_checked(look, Ok(()), now);
            }
            (Purpose::Describe(ticket), Outcome::SchemaPage { page, next }) => {
                self.answer(ticket, Ok(Answer::Schema { page, next }));
            }
            (Purpose::Capture { peer, ticket }, Outcome::Captured { tables }) => {
                return self.captured(course, peer, (tables, ticket));
            }
            (Purpose::Admit(pair, After::Sequences { .. }), Outcome::Done) => {
                let source = self.peer(&pair.peer);
                let command = TargetCommand::RaiseSequences { source };
                let purpose = Purpose::RaiseSequences(pair.node.clone());
                return Some((pair.node, command.into(), purpose));
            }
            (Purpose::RaiseSequences(node), Outcome::SequencesRaised(raised)) => {
                self.sequences_raised(&node, raised, now);
            }
            (Purpose::Admit(pair, after), Outcome::Done) => {
                let command = self.compare(&pair, &after);
                let (on, purpose) = (pair.node.clone(), Purpose::Compare(pair, after));
                return Some((on, command.into(), purpose));
            }
            (Purpose::Compare(pair, after), Outcome::Reviewed(review)) => {
                self.compared(&pair, after, &review, now);
            }
            (Purpose::AdmitVerify(verification), Outcome::Done) => {
                let command = self.verify_command(&verification);
                let on = verification.node.clone();
                return Some((on, command.into(), Purpose::Verify(verification)));
            }
            (Purpose::Verify(verification), Outcome::Compared(report)) => {
                self.verified(&verification, *report, now);
            }
            (Purpose::AdmitRepair(page), Outcome::Done) => return Some(self.write_page(page)),
            (Purpose::Repair(page), Outcome::Repaired(report)) => {
                self.repaired(*page, *report, now);
            }
            (Purpose::SetApart(setting), outcome) => {
                return self.setting_apart(*setting, (&course.on, outcome), now);
            }
            (Purpose::LookBeforePrepare(spec, ticket), Outcome::SourceFacts(facts)) => {
                return self.looked_before_prepare(spec, &facts, ticket);
            }
            (Purpose::Prepare(findings, ticket), Outcome::SlotPrepared(slot)) => {
                self.prepared(&course.on, (*slot, findings), ticket, now);
            }
            (Purpose::LookBeforeGenerate(spec, operator, ticket), Outcome::SourceFacts(facts)) => {
                return self.looked_before_generate(*spec, operator, (&facts, ticket));
            }
            (Purpose::LookAtPlace(spec, operator, findings, ticket), Outcome::Done) => {
                self.generate_checked(*spec, &operator, (findings, ticket), now);
            }
            (Purpose::VerifySnapshot(id, ticket), Outcome::Verified(verified)) => {
                let verified = self.snapshot_verified(id, *verified);
                self.answer(ticket, verified);
            }
            (Purpose::ListTables(node, ticket), Outcome::Listed(listed)) => {
                let listed = self.tables_listed(&node, listed);
                self.answer(ticket, Ok(ApiReply::Tables(listed).into()));
            }
            (Purpose::CheckFollowed(spec, operator, ticket), Outcome::Done) => {
                self.drop_followed(*spec, &operator, ticket, now);
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
            (Purpose::AwaitBeforeDetach(detaching), Outcome::FencePassed { .. }) => {
                self.waited(*detaching, now);
            }
            (Purpose::RemoveLeft(node, left), Outcome::Done) => {
                self.left_removed(&node, &left, now);
            }
            (purpose, outcome) => return self.other_step(&course.on, purpose, outcome, now),
        }
        None
    }
}
