//! After the decision: the new node is detached, and the old one follows it, if that is wanted.

use std::time::Duration;

use jiff::Timestamp;
use steep_protocol::message::api::{AbsentSource, DetachSpec};
use steep_protocol::message::handover::SchemaCheck;
use steep_protocol::message::job::{Confirmation, JobSpec, Method, SchemaMode};
use steep_protocol::message::switchover::SwitchoverStep as Step;
use steep_protocol::{Fault, FaultKind, JobId, NodeState, Retry};
use tokio::sync::oneshot;

use crate::drive::detach::Standing;
use crate::drive::orders::Start;
use crate::drive::{Driver, Ticket};
use crate::job::handover::Handover;
use crate::job::time::after;
use crate::store::{Store, Write};
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
        let (from, to) = (one.spec.from.clone(), one.spec.to.clone());
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
        let text = format!("{from} does not follow {to}, so there is no way back: {why}");
        Ok(Some(Event::Followed(Err(text))))
    }

    fn begin_to_follow(&mut self, id: JobId, now: Timestamp) -> Result<(), Fault> {
        let one = &self.switchovers[&id].switchover;
        let (from, to) = (one.spec.from.clone(), one.spec.to.clone());
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
        let spec = JobSpec {
            method: Method::Backup,
            schema_mode: SchemaMode::Manual,
            confirmation: Confirmation::Given,
            ..JobSpec::new(to, from)
        };
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
