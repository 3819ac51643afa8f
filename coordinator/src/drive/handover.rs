//! Nodes made from a backup: slots prepared on a source, and jobs that replicate from one.
//!
//! The source stores its prepared slots and its agent reports them; they are known here only while the
//! agent has a session. Preparing is a query (`query`); completing is a job like any other.

use std::time::Instant;

use jiff::Timestamp;
use steep_protocol::message::agent::{SlotOrigin, SourceCommand};
use steep_protocol::message::api::ApiReply;
use steep_protocol::message::facts::{Finding, Severity, SourceFacts};
use steep_protocol::message::handover::{
    CompleteSpec, EXPIRES_MAX, PrepareSpec, PreparedSlot, PreparedState, Replication, SchemaCheck,
    SlotName,
};
use steep_protocol::message::job::{Confirmation, JobSpec, Method, SchemaMode, TableFilter};
use steep_protocol::{CommandId, Fault, FaultKind, JobId, NodeId, Retry};

use super::log::Note;
use super::query::{Next, Purpose};
use super::{Answer, Driver, Ticket};
use crate::job::handover::{self, Handover};
use crate::job::{Job, Running, Stage, Work, preflight};
use crate::store::Store;

impl<S: Store> Driver<S> {
    /// Starts to check a source and then prepare a slot there.
    pub(super) fn prepare(
        &mut self,
        spec: PrepareSpec,
        ticket: Ticket,
        now: Timestamp,
    ) -> Result<(), Fault> {
        self.check_prepare(&spec)?;
        let id = self.new_job_id();
        let replication = Replication {
            id,
            slot: spec.slot.clone(),
        };
        let node = spec.node.clone();
        let command = SourceCommand::Gather {
            target: node.clone(),
            filter: TableFilter::default(),
            slot: SlotOrigin::Made,
        };
        let purpose = Purpose::LookBeforePrepare(spec, ticket);
        self.begin_query_on(&node, replication, command, purpose, now);
        Ok(())
    }

    fn check_prepare(&self, spec: &PrepareSpec) -> Result<(), Fault> {
        let bad = |text: String| Err(Fault::new(FaultKind::BadRequest, text));
        if spec.slot.is_reserved() {
            return bad(format!(
                "the prefix of {} is reserved for the slots of jobs",
                spec.slot
            ));
        }
        if !(1..=EXPIRES_MAX).contains(&spec.expires_seconds) {
            return bad(format!(
                "a prepared slot can be kept for 1 s to {} days",
                EXPIRES_MAX / (24 * 3600)
            ));
        }
        self.check_query(&spec.node)?;
        if self.may_be_source(&spec.node) {
            return Ok(());
        }
        let text = format!("it is {} and cannot be a source", self.state_of(&spec.node));
        let hint = "a source must be synchronized, or not a replica";
        Err(Fault::new(FaultKind::Failed, text)
            .on(&spec.node)
            .hint(hint))
    }

    /// Starts to drop an unused prepared slot.
    pub(super) fn drop_prepared(
        &mut self,
        node: &NodeId,
        slot: &SlotName,
        ticket: Ticket,
        now: Timestamp,
    ) -> Result<(), Fault> {
        self.check_query(node)?;
        let known = handover::choose(self.prepared_on(node)?, Some(slot), node)?;
        let replication = known.replication.clone();
        let purpose = Purpose::DropPrepared(ticket);
        let command = SourceCommand::DropPrepared;
        self.begin_query_on(node, replication, command, purpose, now);
        Ok(())
    }

    /// Slots prepared on a node, as its agent reported them.
    pub(super) fn prepared_on(&self, node: &NodeId) -> Result<&[PreparedSlot], Fault> {
        self.known(node)?;
        self.check_online(node)?;
        let known = self.registry.get(node).and_then(|a| a.prepared.as_deref());
        known.ok_or_else(|| {
            let text = "the agent has not reported yet which slots are prepared";
            Fault::new(FaultKind::Unreachable, text)
                .on(node)
                .hint(
                    "try again in a moment; steep-repl status shows whether its PostgreSQL answers",
                )
                .retry(Retry::Backoff)
        })
    }

    /// Removes a dropped slot at once, before the agent's next report.
    pub(super) fn slot_dropped(&mut self, node: &NodeId, slot: &SlotName) {
        if let Some(known) = self.registry.prepared_mut(node) {
            known.retain(|known| known.replication.slot != *slot);
        }
    }

    /// Marks a job's prepared slot as waiting, if that command returned it, before the agent's next
    /// report.
    pub(super) fn note_returned(&mut self, id: JobId, command: CommandId) {
        let Some(live) = self.jobs.get(&id) else {
            return;
        };
        let Job {
            spec,
            handover: Some(handover),
            stage: Stage::Ending(ending),
            running,
            ..
        } = &live.job
        else {
            return;
        };
        let returned = |r: &Running| r.id == command && r.work == Work::CleanupSource;
        if ending.slot.returned().is_none() || !running.iter().any(returned) {
            return;
        }
        let known = self.registry.prepared_mut(&spec.source);
        if let Some(slot) = known
            .into_iter()
            .flatten()
            .find(|known| known.replication == handover.replication)
            && matches!(slot.state, PreparedState::Taken(_))
        {
            slot.state = PreparedState::Waiting;
        }
    }

    /// The source was looked at: the slot follows, if nothing speaks against it.
    pub(super) fn looked_before_prepare(
        &mut self,
        spec: PrepareSpec,
        facts: &SourceFacts,
        ticket: Ticket,
    ) -> Next {
        match judge_prepare(&spec.node, facts) {
            Ok(findings) => {
                let expires_seconds = spec.expires_seconds;
                let command = SourceCommand::PrepareSlot { expires_seconds };
                Some((
                    spec.node,
                    command.into(),
                    Purpose::Prepare(findings, ticket),
                ))
            }
            Err(fault) => {
                self.answer(ticket, Err(fault));
                None
            }
        }
    }

    /// The slot is there.
    pub(super) fn prepared(
        &mut self,
        target: &NodeId,
        (slot, findings): (PreparedSlot, Vec<Finding>),
        ticket: Ticket,
        now: Timestamp,
    ) {
        self.slot_prepared(target, &slot, now);
        let target = target.clone();
        let found = (!findings.is_empty()).then_some(ApiReply::Findings { target, findings });
        let prepared = ApiReply::Prepared(vec![slot]);
        let replies = found.into_iter().chain([prepared]).collect();
        self.answer(ticket, Ok(Answer::Replies(replies)));
    }

    /// Adds a prepared slot at once, before the agent's next report.
    pub(super) fn slot_prepared(&mut self, node: &NodeId, slot: &PreparedSlot, now: Timestamp) {
        if let Some(agent) = self.registry.get_mut(node) {
            let known = agent.prepared.get_or_insert_default();
            known.retain(|known| known.replication.slot != slot.replication.slot);
            known.push(slot.clone());
        }
        let name = &slot.replication.slot;
        let text = format!(
            "slot {name} is prepared on {node} from {}, until {:.0}",
            slot.lsn, slot.expires_at
        );
        let note = Note::info("init.slot_prepared", text).node(node);
        self.log(note.field("slot", name).field("lsn", slot.lsn), now);
    }

    /// A prepared slot has expired and was dropped.
    pub(super) fn slot_expired(&mut self, node: &NodeId, slot: &SlotName, now: Timestamp) {
        if self.template_expired(node, slot, now) {
            return;
        }
        self.slot_dropped(node, slot);
        if !self.expirations.admit(node, Instant::now()) {
            if let Some(left_out) = self.throttle.pass("init.slot_expired") {
                tracing::warn!(node_id = %node, left_out, "an agent reports too many expired slots; they are not recorded");
            }
            return;
        }
        let text = format!(
            "slot {slot}, prepared on {node}, has expired and was dropped: no backup was completed \
             with it"
        );
        let note = Note::warn("init.slot_expired", text).node(node);
        self.log(note.field("slot", slot), now);
    }

    /// The requested job and its handover.
    pub(super) fn resolve(&self, request: CompleteSpec) -> Result<(JobSpec, Handover), Fault> {
        let mut spec = request.job;
        if spec.method != Method::Backup || !spec.filter.is_everything() {
            let text = "init complete requires a backup of all tables";
            return Err(Fault::new(FaultKind::BadRequest, text));
        }
        if request.schema == SchemaCheck::Skipped {
            // Skipping the check confirms all differences.
            spec.schema_mode = SchemaMode::Manual;
            spec.confirmation = Confirmation::Given;
        }
        let prepared = self.prepared_on(&spec.source)?;
        let slot = handover::choose(prepared, request.slot.as_ref(), &spec.source)?;
        let handover = Handover {
            replication: slot.replication.clone(),
            lsn: request.source_lsn,
            schema: request.schema,
        };
        Ok((spec, handover))
    }

    /// Refuses a slot that another job uses or has not cleaned up.
    pub(super) fn check_slot_free(&self, handover: &Handover) -> Result<(), Fault> {
        let id = handover.replication.id;
        let mut jobs = self.jobs.values().map(|live| &live.job);
        let Some(other) =
            jobs.find(|job| job.replication().id == id && !matches!(job.stage, Stage::Closed(_)))
        else {
            return Ok(());
        };
        let (slot, target) = (&handover.replication.slot, &other.spec.target);
        let text = format!("slot {slot} is used by job {} of {target}", other.id);
        let hint =
            format!("see steep-repl status {target}; the slot is free once that job is removed");
        Err(Fault::new(FaultKind::Failed, text)
            .on(&other.spec.source)
            .hint(hint)
            .retry(Retry::Backoff))
    }
}

/// Runs the preflight of a source before a slot is prepared there.
pub(super) fn judge_prepare(node: &NodeId, source: &SourceFacts) -> Result<Vec<Finding>, Fault> {
    // A job from the node to itself: only its source is checked.
    let spec = JobSpec {
        method: Method::Backup,
        ..JobSpec::new(node.clone(), node.clone())
    };
    let findings = preflight::judge_source(&spec, source);
    let errors = findings.iter().filter(|f| f.severity == Severity::Error);
    let said: Vec<&str> = errors.clone().map(|f| f.what.as_str()).collect();
    if said.is_empty() {
        return Ok(findings);
    }
    let text = format!("a slot cannot be prepared: {}", said.join("; "));
    let fix = errors.map(|f| f.fix.as_str()).next().unwrap_or_default();
    Err(Fault::new(FaultKind::Failed, text)
        .on(node)
        .hint(format!("nothing was changed; {fix}")))
}
