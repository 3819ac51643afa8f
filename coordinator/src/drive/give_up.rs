//! `init cancel --force-cleanup` and `nodes remove`: cancels a job without waiting for unreachable
//! servers, removes leftovers of forgotten jobs and forgets nodes. The answer says what could not be
//! removed.

use jiff::Timestamp;
use steep_protocol::message::api::Afterwards;
use steep_protocol::message::handover::{Replication, SlotOwner};
use steep_protocol::message::job::{CancelledData, Method};
use steep_protocol::{Fault, FaultKind, JobId, NodeId, NodeState};

use super::effects::removed;
use super::lineage::follows;
use super::log::Note;
use super::reachability::WORTH_TELLING;
use super::requests::unreadable;
use super::sweep::{Plan, Sweep, forgotten_here};
use super::{Driver, Ticket};
use crate::job::machine::{JobEvent, Refused};
use crate::job::state::NodeEvent;
use crate::job::{Side, Stage};
use crate::store::{Store, Write};

impl<S: Store> Driver<S> {
    /// Starts to remove everything reachable that jobs created for a node, and gives up the rest.
    pub(super) fn give_up(
        &mut self,
        node: &NodeId,
        wanted: (CancelledData, Afterwards),
        operator: &str,
        ticket: Ticket,
        now: Timestamp,
    ) -> Result<Option<JobId>, Fault> {
        let (data, afterwards) = wanted;
        self.check_give_up(node, afterwards, now)?;
        let live = match self.live_job(node) {
            None if follows(self.state_of(node)) => {
                self.revive_last(node, now).map_err(unreadable)?
            }
            live => live,
        };
        let note = Note::info("init.cancel_requested", format!("by {operator}")).node(node);
        self.log(note.field("operator", operator), now);
        match live {
            Some(id) => self.give_up_job(id, wanted, operator, ticket, now)?,
            None => {
                let plan = self.sweep_plan(node, now);
                let mut left = plan.left;
                if afterwards == Afterwards::Forget {
                    left.extend(self.followers_left(node));
                }
                let sweep = Sweep {
                    node: node.clone(),
                    steps: plan.steps,
                    left,
                    data,
                    afterwards,
                    operator: operator.to_owned(),
                    ticket,
                };
                self.sweep(sweep, now);
            }
        }
        Ok(live)
    }

    /// Whether a forgotten job has left something on a node.
    pub(super) fn holds_forgotten(&mut self, node: &NodeId) -> bool {
        let lineage = self
            .nodes
            .get(node)
            .and_then(|record| record.lineage.clone());
        let forgotten = forgotten_here(&lineage.unwrap_or_default());
        let mut forgotten = forgotten.iter();
        forgotten.any(|known| self.is_forgotten(known.id, node))
    }

    fn check_give_up(
        &mut self,
        node: &NodeId,
        afterwards: Afterwards,
        now: Timestamp,
    ) -> Result<(), Fault> {
        self.known(node)?;
        if afterwards == Afterwards::Forget {
            if !self.registry.is_online(node) {
                return Ok(());
            }
            let text = "its agent is connected and would register again at once";
            let hint = "stop the agent first; to remove only its job, use steep-repl init cancel";
            return Err(Fault::new(FaultKind::Failed, text).on(node).hint(hint));
        }
        let state = self.state_of(node);
        let seen = self.unseen_for(node, now) < WORTH_TELLING;
        if state == NodeState::Synchronized && seen && self.remembers_job_of(node) {
            let text = "it is synchronized and reachable";
            let hint = "to start over, drop its subscription on the target and wait until the node is \
                        diverged; then it can be cancelled";
            return Err(Fault::new(FaultKind::Failed, text).on(node).hint(hint));
        }
        let nothing = state == NodeState::Uninitialized && self.live_job(node).is_none();
        if nothing && self.sweep_plan(node, now) == Plan::default() {
            let text = "no leftovers are known on it or on its source";
            let hint = "see steep-repl status for what its agent reports";
            return Err(Fault::new(FaultKind::Failed, text).on(node).hint(hint));
        }
        Ok(())
    }

    /// Whether the store has the node's last job, or cannot be read.
    fn remembers_job_of(&mut self, node: &NodeId) -> bool {
        let job = self.nodes.get(node).and_then(|record| record.job);
        job.is_some_and(|job| !matches!(self.store.job(job), Ok(None)))
    }

    /// Cancels a known job as usual, but without waiting for unreachable servers.
    fn give_up_job(
        &mut self,
        id: JobId,
        (data, afterwards): (CancelledData, Afterwards),
        operator: &str,
        ticket: Ticket,
        now: Timestamp,
    ) -> Result<(), Fault> {
        let Some(live) = self.jobs.get(&id) else {
            return Ok(());
        };
        let node = live.job.spec.target.clone();
        if self.state_of(&node) == NodeState::Synchronized {
            let reason = format!("given up by {operator}");
            self.follow_changed(&node, NodeEvent::Drifted, Some(&reason), now);
        }
        let followers = match afterwards {
            Afterwards::Keep => Vec::new(),
            Afterwards::Forget => self.followers_left(&node),
        };
        if let Some(live) = self.jobs.get_mut(&id) {
            live.job.cancelled_by = Some(operator.to_owned());
            live.afterwards = afterwards;
            live.given_up = followers;
        }
        self.let_go_on(id, now);
        let stepped = match self.step(id, JobEvent::Cancel { data }, now) {
            // It can be ended no other way.
            Err(Refused::Swapping) => self.step(id, JobEvent::GiveUp, now),
            stepped => stepped,
        };
        stepped.map_err(|refused| Fault::new(FaultKind::Failed, refused.to_string()).on(&node))?;
        let Some(live) = self.jobs.get_mut(&id) else {
            return Ok(());
        };
        if matches!(live.job.stage, Stage::Closed(_)) {
            let left = std::mem::take(&mut live.given_up);
            self.answer(ticket, Ok(removed(left)));
            return Ok(());
        }
        live.waiting.push(ticket);
        self.advance(id, JobEvent::GiveUp, now);
        Ok(())
    }

    /// Notes that what the job created on a side stays, because its server is unreachable or the
    /// cleanup failed.
    pub(super) fn given_up(&mut self, id: JobId, side: Side, why: &str, now: Timestamp) {
        let Some(live) = self.jobs.get_mut(&id) else {
            return;
        };
        let job = &live.job;
        let node = side.node(&job.spec);
        let record = self.nodes.get(&job.spec.target);
        let completed = record.and_then(|record| record.init_completed_at);
        let remains = match (side, job.spec.method) {
            (Side::Source, _) => Remains::Publisher,
            (Side::Target, Method::Backup | Method::Merge) => Remains::Subscriber,
            (Side::Target, _) if completed.is_some_and(|at| at >= job.accepted_at) => {
                Remains::Subscriber
            }
            (Side::Target, _) => Remains::Tables(job.id),
        };
        let text = left_behind(node, remains, &job.replication(), why);
        live.given_up.push(text.clone());
        live.left_on.push(side);
        let note = Note::warn("init.given_up", text)
            .job(&live.job)
            .field("cleanup_on", node);
        self.log(note, now);
    }

    /// A sentence for each replica of a node that is forgotten.
    fn followers_left(&self, node: &NodeId) -> Vec<String> {
        let following = self.nodes.values().filter(|record| {
            record.id != *node && follows(record.state) && record.source.as_ref() == Some(node)
        });
        following
            .map(|record| {
                format!(
                    "{0} follows {node} and keeps its subscription: steep-repl init cancel --node {0} \
                     --force-cleanup removes it",
                    record.id
                )
            })
            .collect()
    }

    /// Removes a node from memory and store.
    pub(super) fn forget_node(&mut self, node: &NodeId, now: Timestamp) {
        let Some(record) = self.nodes.remove(node) else {
            return;
        };
        self.following.remove(node);
        self.unseen.remove(node);
        self.audit_due.remove(node);
        self.aliases_told.retain(|(a, b)| a != node && b != node);
        self.not_adopted.retain(|(on, _)| on != node);
        self.out.writes.push(Write::Forget(node.clone()));
        let note = Note::info("node.removed", format!("{node} is forgotten")).node(node);
        self.log(note.of(record.source.as_ref(), None), now);
    }
}

/// What stays on a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Remains {
    /// The source's end of a replication.
    Publisher,
    /// The target's end of a replication whose copy is complete.
    Subscriber,
    /// What a job made on its target, with the tables that it had not completed.
    Tables(JobId),
}

pub(super) fn left_behind(
    node: &NodeId,
    remains: Remains,
    replication: &Replication,
    why: &str,
) -> String {
    let (name, slot) = (replication.name(), &replication.slot);
    let name = name.as_str();
    let drop_subscription = format!(
        "ALTER SUBSCRIPTION {name} DISABLE, then SET (slot_name = NONE), then DROP SUBSCRIPTION {name}"
    );
    match remains {
        Remains::Subscriber => format!(
            "on {node} subscription {name}, its origin and its rows in steep_repl remain ({why}). To \
             remove the subscription: {drop_subscription}"
        ),
        Remains::Tables(job) => format!(
            "on {node} the tables and rows of job {job}, its records in steep_repl and, if it had come so \
             far, subscription {name} remain ({why}). The trigger steep_repl_keep_out refuses writes to \
             those tables. Once the agent of {node} is back, steep-repl init cancel --node {node} \
             --force-cleanup removes all of it, with --keep-data all but tables and rows. Without an \
             agent: DROP FUNCTION steep_repl.keep_out_{job}() CASCADE removes the triggers; for the \
             subscription, {drop_subscription}"
        ),
        Remains::Publisher => {
            let drop_publication = match SlotOwner::of(slot.as_str()) {
                // Without it, the others would no longer get any change.
                Some(SlotOwner::Made(..)) => format!(
                    "; once no other node of the same snapshot follows by it, DROP PUBLICATION {name}"
                ),
                _ => format!(" and DROP PUBLICATION {name}"),
            };
            format!(
                "on {node} slot {slot} and publication {name} remain ({why}), and the slot keeps WAL. To remove \
                 them as a superuser: if the slot is in use, SELECT pg_terminate_backend(active_pid) FROM \
                 pg_replication_slots WHERE slot_name = '{slot}'; then SELECT \
                 pg_drop_replication_slot('{slot}'){drop_publication}"
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use steep_protocol::SnapshotId;

    use super::*;

    #[test]
    fn what_stays_of_an_unfinished_job_is_named_with_the_command_that_removes_it() {
        let node = NodeId::parse("node_b").unwrap();
        let own = Replication::of(JobId(1));
        let text = |remains| left_behind(&node, remains, &own, "its agent has no session");
        let tables = text(Remains::Tables(JobId(1)));
        for said in [
            "tables and rows of job",
            "steep_repl_keep_out",
            "steep-repl init cancel --node node_b --force-cleanup",
        ] {
            assert!(tables.contains(said), "{tables}");
        }
        assert!(!text(Remains::Subscriber).contains("keep_out"));
        let publisher = text(Remains::Publisher);
        let name = own.name();
        for said in [
            format!("pg_drop_replication_slot('{}') and DROP", own.slot),
            format!("DROP PUBLICATION {}", name.as_str()),
        ] {
            assert!(publisher.contains(&said), "{publisher}");
        }
        let shared = Replication::of_snapshot(SnapshotId(7), JobId(1));
        let text = left_behind(
            &node,
            Remains::Publisher,
            &shared,
            "its agent has no session",
        );
        for said in [
            format!("pg_drop_replication_slot('{}'); once no other", shared.slot),
            format!("DROP PUBLICATION {}", shared.name().as_str()),
        ] {
            assert!(text.contains(&said), "{text}");
        }
        assert_ne!(shared.slot.as_str(), shared.name().as_str());
    }
}
