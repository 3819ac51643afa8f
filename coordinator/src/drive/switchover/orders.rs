//! Checks an order, looks at both nodes, and begins.

use jiff::Timestamp;
use steep_protocol::message::agent::{
    Command, NodeCommand, SlotOrigin, SourceCommand, TargetCommand,
};
use steep_protocol::message::api::{AbsentSource, ApiReply, Order};
use steep_protocol::message::facts::{Finding, Severity, SourceFacts, TargetFacts};
use steep_protocol::message::job::{Confirmation, JobSpec, Method, SchemaMode, TableFilter};
use steep_protocol::message::switchover::{
    Needed, RowsCheck, STOP_MAX, SwitchoverCommand, SwitchoverFacts, SwitchoverSpec,
    SwitchoverStep as Step, WayBack,
};
use steep_protocol::{Fault, FaultKind, JobId, NodeId, NodeState, Retry};

use super::Switching;
use crate::drive::audit::AuditEntry;
use crate::drive::detach::Standing;
use crate::drive::log::Note;
use crate::drive::query::{Next, Purpose};
use crate::drive::{Answer, Driver, Ticket};
use crate::job::Job;
use crate::job::preflight::{self, Case};
use crate::store::{Columns, Store, Write};
use crate::switchover::judge::{self, Known};
use crate::switchover::machine::Event;
use crate::switchover::{COMMANDS, Switchover};

/// A look at both nodes.
pub(in crate::drive) struct Looking {
    spec: SwitchoverSpec,
    then: Then,
    ticket: Ticket,
    /// What speaks against the way back.
    way_back: Vec<Finding>,
}

/// What follows it.
enum Then {
    /// The findings are the answer.
    Show,
    /// The switchover begins, on behalf of that operator.
    Begin(String),
}

fn look(needed: Needed) -> Command {
    NodeCommand::Switchover(SwitchoverCommand::Look { needed }).into()
}

fn look_at_old(looking: Box<Looking>) -> (NodeId, Command, Purpose) {
    let from = looking.spec.from.clone();
    (from, look(Needed::default()), Purpose::LookAtOld(looking))
}

/// The first look, if the old node is to follow: at the new one, as its source.
fn look_at_way_back(looking: Box<Looking>) -> (NodeId, Command, Purpose) {
    let spec = &looking.spec;
    let command = SourceCommand::Gather {
        target: spec.from.clone(),
        filter: TableFilter::default(),
        slot: SlotOrigin::Made,
    };
    let to = spec.to.clone();
    (to, command.into(), Purpose::LookAtWayBack(looking))
}

/// The job by which the old node follows the new one.
pub(super) fn follow_spec(spec: &SwitchoverSpec) -> JobSpec {
    JobSpec {
        method: Method::Backup,
        schema_mode: SchemaMode::Manual,
        confirmation: Confirmation::Given,
        ..JobSpec::new(spec.to.clone(), spec.from.clone())
    }
}

impl<S: Store> Driver<S> {
    /// What speaks against a switchover.
    pub(in crate::drive) fn switchover_plan(
        &mut self,
        spec: SwitchoverSpec,
        ticket: Ticket,
        now: Timestamp,
    ) -> Result<(), Fault> {
        if self.same_switchover(&spec).is_some() {
            let target = spec.to;
            let findings = Vec::new();
            let reply = ApiReply::Findings { target, findings };
            self.answer(ticket, Ok(reply.into()));
            return Ok(());
        }
        self.look_before_switchover(spec, Then::Show, ticket, now)
    }

    /// Begins a switchover, or follows the one that is under way or was completed. Idempotent.
    pub(in crate::drive) fn switchover(
        &mut self,
        spec: SwitchoverSpec,
        operator: &str,
        ticket: Ticket,
        now: Timestamp,
    ) -> Result<(), Fault> {
        if let Some(id) = self.same_switchover(&spec) {
            self.join(id, ticket);
            return Ok(());
        }
        self.look_before_switchover(spec, Then::Begin(operator.to_owned()), ticket, now)
    }

    /// The switchover between the same nodes that is under way, or is what happened last.
    fn same_switchover(&self, spec: &SwitchoverSpec) -> Option<JobId> {
        let to = self.nodes.get(&spec.to)?;
        let completed = to.source.as_ref() != Some(&spec.from);
        let same = |one: &&Switchover| {
            (&one.spec.from, &one.spec.to) == (&spec.from, &spec.to)
                && (!one.step.is_over() || one.step == Step::Completed && completed)
        };
        let mut all = self.switchovers.values().map(|one| &one.switchover);
        all.find(same).map(|one| one.id)
    }

    fn join(&mut self, id: JobId, ticket: Ticket) {
        let feed = self.switchovers[&id].feed.subscribe();
        self.answer(ticket, Ok(Answer::Switching(feed)));
    }

    /// Refuses an order about a node whose switchover has not ended.
    pub(in crate::drive) fn check_switching(
        &self,
        order: &Order,
        entries: &[AuditEntry],
    ) -> Result<(), Fault> {
        if matches!(
            order,
            Order::Switchover(_)
                | Order::Verify(_)
                | Order::VerifyRest { .. }
                | Order::Capture { .. }
        ) {
            return Ok(());
        }
        let mut nodes = entries.iter().flat_map(AuditEntry::nodes);
        nodes
            .find_map(|node| self.switching(node))
            .map_or(Ok(()), |one| Err(busy(one)))
    }

    fn look_before_switchover(
        &mut self,
        spec: SwitchoverSpec,
        then: Then,
        ticket: Ticket,
        now: Timestamp,
    ) -> Result<(), Fault> {
        let job = self.check_switchover(&spec)?;
        let looking = Box::new(Looking {
            spec,
            then,
            ticket,
            way_back: Vec::new(),
        });
        let (on, command, purpose) = match looking.spec.way_back {
            WayBack::Follow => look_at_way_back(looking),
            WayBack::None => look_at_old(looking),
        };
        // Under an id of its own: the job's may be at work.
        let id = self.new_job_id();
        let command = (command, purpose);
        self.begin_query_as(id, &on, job.replication(), command, now);
        Ok(())
    }

    /// The new node was looked at as a source: the old one follows, as its target.
    pub(in crate::drive) fn look_at_follower(
        &self,
        looking: Box<Looking>,
        source: Box<SourceFacts>,
    ) -> Next {
        let spec = &looking.spec;
        let command = TargetCommand::Gather {
            source: self.peer(&spec.to),
            filter: TableFilter::default(),
        };
        let from = spec.from.clone();
        Some((
            from,
            command.into(),
            Purpose::LookAtFollower(looking, source),
        ))
    }

    /// Judges whether the old node can follow, then looks at it as the node that takes writes.
    pub(in crate::drive) fn looked_at_follower(
        &self,
        mut looking: Box<Looking>,
        source: &SourceFacts,
        target: &TargetFacts,
    ) -> Next {
        let spec = follow_spec(&looking.spec);
        let findings = (self.rules.judge)(&Case {
            spec: &spec,
            source,
            target,
            handover: None,
            stored: None,
            around: &self.around(),
        });
        looking.way_back = preflight::of_way_back(findings);
        Some(look_at_old(looking))
    }

    /// The job by which the new node follows the old one.
    fn check_switchover(&mut self, spec: &SwitchoverSpec) -> Result<Job, Fault> {
        let (from, to) = (&spec.from, &spec.to);
        if from == to {
            let text = "writes cannot move from a node to itself: name two nodes";
            return Err(Fault::new(FaultKind::BadRequest, text).on(from));
        }
        if !(1..=STOP_MAX).contains(&spec.max_stop_seconds) {
            let text = format!("writes can be stopped for 1 s to {} h", STOP_MAX / 3600);
            return Err(Fault::new(FaultKind::BadRequest, text));
        }
        if spec.terminate_after_seconds >= spec.max_stop_seconds {
            let text = "transactions must have less time than writes are stopped at most";
            return Err(Fault::new(FaultKind::BadRequest, text)
                .hint("give a shorter --terminate-after, or a longer --max-stop"));
        }
        self.check_query(from)?;
        self.check_query(to)?;
        for node in [from, to] {
            self.reachable(node).map_err(|why| {
                Fault::new(FaultKind::Unreachable, why)
                    .on(node)
                    .hint("nothing was changed; try again when it answers: see steep-repl status")
                    .retry(Retry::Backoff)
            })?;
        }
        if let Some(one) = self.switching(from).or_else(|| self.switching(to)) {
            return Err(busy(one));
        }
        let source = self.nodes[to].source.clone();
        if source.as_ref() != Some(from) {
            let text = match source {
                Some(source) => format!("it follows {source}, not {from}"),
                None => format!("it does not follow {from}"),
            };
            return Err(Fault::new(FaultKind::Failed, text).on(to).hint(format!(
                "only a replica can take over: see steep-repl nodes, or make one with steep-repl init {to} --from {from}"
            )));
        }
        if self.are_merged(from, to) {
            let text = format!("{from} and {to} are merged: both take writes already");
            let hint =
                "point the applications at the other node; steep-repl detach ends the replication";
            return Err(Fault::new(FaultKind::Failed, text).on(to).hint(hint));
        }
        let state = self.state_of(to);
        if state != NodeState::Synchronized {
            let text = format!("it is {state}, and only a synchronized replica can take over");
            return Err(Fault::new(FaultKind::Failed, text)
                .on(to)
                .hint(format!("see why: steep-repl status {to}")));
        }
        match self.standing(to, AbsentSource::Refuse)? {
            Standing::Follows(job) if job.earlier.is_empty() => Ok(*job),
            Standing::Follows(_) => {
                let text = "its snapshots have not been folded into one replication yet";
                Err(Fault::new(FaultKind::Failed, text)
                    .on(to)
                    .hint("try again in a minute"))
            }
            Standing::Ending(_) | Standing::Detached(_) => {
                let text = format!("it is being detached from {from}");
                Err(Fault::new(FaultKind::Failed, text).on(to))
            }
        }
    }

    /// The old node was looked at: the new one follows.
    pub(in crate::drive) fn look_at_new(looking: Box<Looking>, old: Box<SwitchoverFacts>) -> Next {
        let command = look(old.needed.clone());
        let to = looking.spec.to.clone();
        Some((to, command, Purpose::LookAtNew(looking, old)))
    }

    /// Both were looked at: the findings are shown, or it begins.
    pub(in crate::drive) fn looked_before_switchover(
        &mut self,
        looking: Looking,
        old: &SwitchoverFacts,
        new: &SwitchoverFacts,
        now: Timestamp,
    ) {
        let Looking {
            spec,
            then,
            ticket,
            way_back,
        } = looking;
        let mut findings = way_back;
        findings.extend(judge::judge(&spec, &self.known_before(&spec), old, new));
        match then {
            Then::Show => {
                let target = spec.to;
                let reply = ApiReply::Findings { target, findings };
                self.answer(ticket, Ok(reply.into()));
            }
            Then::Begin(_) if !judge::is_free(&findings) => {
                self.answer(ticket, Err(spoken_against(&findings)));
            }
            Then::Begin(operator) => {
                // Meanwhile another operator may have begun the same, or something else.
                if let Some(id) = self.same_switchover(&spec) {
                    return self.join(id, ticket);
                }
                match self.check_switchover(&spec) {
                    Ok(job) => {
                        let first = self.take_commands(COMMANDS);
                        let id = self.new_job_id();
                        let mut one = Switchover::new(id, spec, &operator, &job, first, now);
                        if one.spec.rows == RowsCheck::Skipped {
                            one.small.clone_from(&old.small);
                            one.tables_not_compared = old.large.clone();
                        }
                        self.begin_switchover(one, ticket, now);
                    }
                    Err(fault) => self.answer(ticket, Err(fault)),
                }
            }
        }
    }

    pub(in crate::drive) fn not_looked_before_switchover(
        &mut self,
        looking: Looking,
        fault: Fault,
    ) {
        let hint = match fault.hint.as_str() {
            "" => "nothing was changed".to_owned(),
            hint => format!("nothing was changed; {hint}"),
        };
        self.answer(looking.ticket, Err(fault.hint(hint)));
    }

    /// What is known of the two nodes without a look.
    fn known_before(&self, spec: &SwitchoverSpec) -> Known {
        let Some(record) = self.nodes.get(&spec.to) else {
            return Known::default();
        };
        let digest = |node| {
            let agent = self.registry.get(node)?;
            agent.digest(record.replication()?).map(str::to_owned)
        };
        let digests = digest(&spec.from).zip(digest(&spec.to));
        let others = self
            .nodes
            .values()
            .filter(|other| other.source.as_ref() == Some(&spec.from) && other.id != spec.to);
        Known {
            lag: self.registry.slot(record).map(|slot| slot.lag),
            columns_differ: record.columns == Columns::Equal
                && digests.is_some_and(|(old, new)| old != new),
            others: others.map(|other| other.id.clone()).collect(),
            sequences: self
                .sequences
                .get(&spec.to)
                .and_then(|kept| kept.view.warning.clone()),
        }
    }

    fn begin_switchover(&mut self, switchover: Switchover, ticket: Ticket, now: Timestamp) {
        self.forget_ended(&switchover.spec);
        let (id, operator) = (switchover.id, &switchover.operator);
        let (from, to) = (&switchover.spec.from, &switchover.spec.to);
        let text = format!("writes move from {from} to {to}, by {operator}");
        let note = Note::info("switchover.started", text)
            .node(to)
            .of(Some(from), None);
        let note = note.field("operator", operator);
        self.log(note.field("switchover_id", id), now);
        let one = Switching::of(switchover, now);
        self.switchovers.insert(id, one);
        self.join(id, ticket);
        self.step_switchover(id, Event::Begin, now);
    }

    /// A node's last switchover is known until its next one.
    fn forget_ended(&mut self, spec: &SwitchoverSpec) {
        let ended = self.switchovers.values().map(|one| &one.switchover);
        let ended = ended.filter(|one| {
            let part = |node| one.side_of(node).is_some();
            one.step.is_over() && (part(&spec.from) || part(&spec.to))
        });
        for id in ended.map(|one| one.id).collect::<Vec<_>>() {
            self.switchovers.remove(&id);
            self.out.writes.push(Write::SwitchoverForgotten(id));
        }
    }
}

fn busy(one: &Switchover) -> Fault {
    let (from, to) = (&one.spec.from, &one.spec.to);
    let text = format!("a switchover from {from} to {to} is under way");
    let hint = format!("wait until it has ended: see steep-repl status {to}");
    Fault::new(FaultKind::Failed, text).on(to).hint(hint)
}

fn spoken_against(findings: &[Finding]) -> Fault {
    let errors = findings
        .iter()
        .filter(|found| found.severity == Severity::Error);
    let first = errors.clone().next();
    let fix = first.map_or("", |found| found.fix.as_str());
    let said: Vec<String> = errors
        .map(|found| match &found.node {
            Some(node) => format!("{node}: {}", found.what),
            None => found.what.clone(),
        })
        .collect();
    let text = format!("the switchover was not begun: {}", said.join("; "));
    Fault::new(FaultKind::Failed, text).hint(format!("nothing was changed; {fix}"))
}
