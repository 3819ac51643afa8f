//! After the decision: the new node is detached, and the old one follows it, if that is wanted.

use std::time::Duration;

use jiff::Timestamp;
use steep_protocol::message::api::{AbsentSource, DetachSpec};
use steep_protocol::message::handover::{PreparedSlot, PreparedState, SchemaCheck};
use steep_protocol::message::switchover::SwitchoverStep as Step;
use steep_protocol::{Fault, FaultKind, JobId, NodeId, NodeState, Retry};
use tokio::sync::oneshot;

use super::orders::follow_spec;
use crate::drive::detach::Standing;
use crate::drive::orders::Start;
use crate::drive::{Driver, Ticket};
use crate::job::Stage;
use crate::job::handover::Handover;
use crate::job::time::after;
use crate::store::{LeftBehind, Store, Write};
use crate::switchover::machine::Event;

/// How long the new node's agent may take to see that its subscription is gone.
const SEEN_WITHIN: Duration = Duration::from_secs(60);

impl<S: Store> Driver<S> {
    /// Does what is due of a switchover that is decided.
    pub(super) fn tick_ending(&mut self, id: JobId, now: Timestamp) {
        let one = &self.switchovers[&id].switchover;
        if one.trouble.is_some_and(|trouble| trouble.again > now) {
            return;
        }
        let event = match one.step {
            Step::Detach => self.detach_new(id, now),
            Step::Follow => self.follow_new(id, now),
            _ => return,
        };
        match event {
            Ok(Some(event)) => self.step_switchover(id, event, now),
            Ok(None) => {}
            Err(fault) => self.step_switchover(id, Event::Hindered(fault), now),
        }
    }

    /// Detaches the new node, once. The old one may be gone by now: what it keeps is removed when it is back.
    fn detach_new(&mut self, id: JobId, now: Timestamp) -> Result<Option<Event>, Fault> {
        let one = &self.switchovers[&id].switchover;
        let (node, operator) = (one.spec.to.clone(), one.operator.clone());
        match self.standing(&node, AbsentSource::LeaveBehind)? {
            Standing::Detached(_) => Ok(Some(Event::Detached)),
            Standing::Ending(_) => Ok(None),
            Standing::Follows(_) => {
                let spec = DetachSpec {
                    node,
                    wait_seconds: None,
                    absent: AbsentSource::LeaveBehind,
                };
                // Nobody waits for that answer.
                let (reply, _) = oneshot::channel();
                self.detach_now(&spec, &operator, Ticket::new(reply), now)?;
                Ok(None)
            }
        }
    }

    /// Lets the old node follow the new one by a job on the slot that was made before the stop.
    fn follow_new(&mut self, id: JobId, now: Timestamp) -> Result<Option<Event>, Fault> {
        let one = &self.switchovers[&id].switchover;
        let from = one.spec.from.clone();
        let Some(job) = one.following else {
            return self.begin_to_follow(id, now).map(|()| None);
        };
        let record = &self.nodes[&from];
        let why = match record.state {
            _ if record.job != Some(job) => "another job took its place".to_owned(),
            NodeState::Synchronized => return Ok(Some(Event::Followed(Ok(())))),
            NodeState::Failed | NodeState::Diverged | NodeState::Uninitialized => {
                record.error_message.clone().unwrap_or_default()
            }
            NodeState::Preparing
            | NodeState::Copying
            | NodeState::CatchingUp
            | NodeState::Reinitializing => return Ok(None),
        };
        let fault = self.no_way_back(id, &why);
        Ok(Some(Event::Followed(Err(fault))))
    }

    /// Why there is no way back, and what an operator can do about it.
    fn no_way_back(&self, id: JobId, why: &str) -> Fault {
        let one = &self.switchovers[&id].switchover;
        let (from, to) = (&one.spec.from, &one.spec.to);
        let slot = one.way_back().slot;
        let text = format!("{from} does not follow {to}, so there is no way back: {why}");
        let job = one.following.and_then(|job| self.jobs.get(&job));
        let is_kept = job.is_some_and(|live| matches!(live.job.stage, Stage::Kept(_)));
        let again = match (is_kept, one.position) {
            (true, _) => format!("steep-repl init {from} --from {to} --resume"),
            (false, Some(lsn)) => format!(
                "steep-repl init complete --node {from} --source {to} --source-lsn {lsn} --slot {slot} --skip-schema-check"
            ),
            (false, None) => format!("steep-repl init {from} --from {to} --force"),
        };
        Fault::new(FaultKind::Failed, text).on(from).hint(format!(
            "{to} takes writes. Once the cause is removed: {again}. Without a way back: steep-repl init cancel \
             --node {from}, which also drops the slot {slot}; until then that keeps WAL on {to}"
        ))
    }

    /// A node has been initialised: if by that it follows the one that took its writes, there is a way back.
    pub(in crate::drive) fn way_back_found(&mut self, node: &NodeId) {
        let Some(record) = self.nodes.get(node) else {
            return;
        };
        for one in self.switchovers.values_mut().map(|one| &mut one.switchover) {
            let follows = one.spec.from == *node && record.source.as_ref() == Some(&one.spec.to);
            if one.step == Step::Completed && follows && one.fault.take().is_some() {
                self.out
                    .writes
                    .push(Write::Switchover(Box::new(one.clone())));
            }
        }
    }

    /// What a node leaves on the one that took its writes, once it is not to follow that after all.
    pub(in crate::drive) fn way_back_left(&self, node: &NodeId) -> Option<LeftBehind> {
        let mut all = self.switchovers.values().map(|one| &one.switchover);
        let one = all.find(|one| one.step == Step::Completed && one.spec.from == *node)?;
        one.fault.as_ref()?;
        let left = LeftBehind {
            source: one.spec.to.clone(),
            replication: one.way_back(),
        };
        let agent = self.registry.get(&left.source);
        let mut known = agent.into_iter().flat_map(|a| a.prepared.iter().flatten());
        let slot = known.find(|slot| slot.replication == left.replication);
        let other =
            |slot: &PreparedSlot| matches!(&slot.state, PreparedState::Taken(by) if by != node);
        (!slot.is_some_and(other)).then_some(left)
    }

    fn begin_to_follow(&mut self, id: JobId, now: Timestamp) -> Result<(), Fault> {
        let one = &self.switchovers[&id].switchover;
        let to = one.spec.to.clone();
        let old = one.replication.name();
        let still = self.nodes[&to].lineage.as_ref().is_some_and(|lineage| {
            let mut all = lineage.subscriptions.iter();
            all.any(|subscription| subscription.name == old.as_str())
        });
        let long = one
            .trouble
            .is_some_and(|t| after(t.since, SEEN_WITHIN) <= now);
        if still && !long {
            let text = "its agent has not reported yet that the old subscription is gone";
            let fault = Fault::new(FaultKind::Failed, text).on(&to);
            return Err(fault.retry(Retry::Backoff));
        }
        let handover = Handover {
            replication: one.way_back(),
            lsn: one.position.unwrap_or_default(),
            schema: SchemaCheck::Skipped,
        };
        let operator = one.operator.clone();
        let spec = follow_spec(&one.spec);
        self.check_init(&spec)?;
        self.check_slot_free(&handover)?;
        let job = self.begin(spec, Start::Backup(handover), &operator, now);
        if let Some(one) = self.switchovers.get_mut(&id) {
            one.switchover.following = Some(job);
            one.switchover.trouble = None;
            let write = Write::Switchover(Box::new(one.switchover.clone()));
            self.out.writes.push(write);
        }
        Ok(())
    }
}
