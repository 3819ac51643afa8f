//! Giving up: a job is removed as far as its servers can be reached, leftovers that no job here stands
//! for are removed, and a node that is gone is forgotten. What stays on a server that nobody reaches is
//! told.

use std::collections::VecDeque;

use jiff::Timestamp;
use steep_protocol::message::agent::{Command, SourceCommand, TargetCommand};
use steep_protocol::message::api::Afterwards;
use steep_protocol::message::handover::{Replication, SlotName};
use steep_protocol::message::job::{CancelledData, ReplicationNames};
use steep_protocol::message::lineage::{Lineage, Tool};
use steep_protocol::{Fault, FaultKind, JobId, NodeId, NodeState};

use super::effects::removed;
use super::lineage::follows;
use super::log::Note;
use super::query::Purpose;
use super::requests::unreadable;
use super::sight::WORTH_TELLING;
use super::{Driver, Ticket};
use crate::job::machine::JobEvent;
use crate::job::state::{NodeEvent, transition};
use crate::job::{Side, Stage};
use crate::store::{NodeRecord, Store, Write};

/// Leftovers being removed, one after the other.
pub(super) struct Sweep {
    node: NodeId,
    /// What is being removed, and what comes after it.
    steps: VecDeque<Removal>,
    /// What stays, a sentence each.
    left: Vec<String>,
    data: CancelledData,
    afterwards: Afterwards,
    operator: String,
    ticket: Ticket,
}

/// One end of one forgotten job.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Removal {
    on: NodeId,
    replication: Replication,
    side: Side,
}

/// What a sweep would do.
#[derive(Debug, Default, PartialEq, Eq)]
struct Plan {
    steps: VecDeque<Removal>,
    left: Vec<String>,
}

impl<S: Store> Driver<S> {
    /// Removes what can be reached of everything that is ours on a node, and gives up the rest.
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
                let plan = self.sweep_plan(node);
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

    /// Whether a job that nobody here remembers has left something on a node.
    pub(super) fn holds_forgotten(&mut self, node: &NodeId) -> bool {
        let lineage = self
            .nodes
            .get(node)
            .and_then(|record| record.lineage.clone());
        let forgotten = forgotten_here(&lineage.unwrap_or_default());
        forgotten.iter().any(|known| self.is_news(known.id))
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
            let text = "its agent has a session, and would be known again at once";
            let hint = "stop the agent first; to remove only its job use steep-repl init cancel";
            return Err(Fault::new(FaultKind::Failed, text).on(node).hint(hint));
        }
        let state = self.state_of(node);
        let seen = self.unseen_for(node, now) < WORTH_TELLING;
        if state == NodeState::Synchronized && seen && self.remembers_job_of(node) {
            let text = "it is synchronized and can be looked at";
            let hint = "to start over, drop its subscription on the target: it is then seen to have \
                        diverged, and can be cancelled";
            return Err(Fault::new(FaultKind::Failed, text).on(node).hint(hint));
        }
        let nothing = matches!(state, NodeState::Uninitialized) && self.live_job(node).is_none();
        if nothing && self.sweep_plan(node) == Plan::default() {
            let text = "nothing of ours is known to be left there or on its source";
            let hint = "see steep-repl status for what its agent reports";
            return Err(Fault::new(FaultKind::Failed, text).on(node).hint(hint));
        }
        Ok(())
    }

    /// Whether the job is stored that the node follows by.
    fn remembers_job_of(&mut self, node: &NodeId) -> bool {
        let job = self.nodes.get(node).and_then(|record| record.job);
        job.is_some_and(|job| !matches!(self.store.job(job), Ok(None)))
    }

    /// A job that is remembered goes its usual way out, but does not wait for who is away.
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
        let stepped = self.step(id, JobEvent::Cancel { data }, now);
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

    /// What the job made on that side stays: its server cannot be reached or does not let it be removed.
    pub(super) fn given_up(&mut self, id: JobId, side: Side, why: &str, now: Timestamp) {
        let Some(live) = self.jobs.get_mut(&id) else {
            return;
        };
        let node = side.node(&live.job.spec);
        let text = left_behind(node, side, live.job.replication().name().as_str(), why);
        live.given_up.push(text.clone());
        let note = Note::warn("init.given_up", text)
            .job(&live.job)
            .field("cleanup_on", node);
        self.log(note, now);
    }

    /// What is said of those that follow a node that is forgotten.
    fn followers_left(&self, node: &NodeId) -> Vec<String> {
        let following = self.nodes.values().filter(|record| {
            record.id != *node && follows(record.state) && record.source.as_ref() == Some(node)
        });
        let told = following.map(|record| {
            format!(
                "{0} follows {node} and keeps its subscription: steep-repl init cancel --node {0} \
                 --force-cleanup removes it",
                record.id
            )
        });
        told.collect()
    }

    /// Forgets a node of which nothing is to be done any more.
    pub(super) fn forget_node(&mut self, node: &NodeId, now: Timestamp) {
        let Some(record) = self.nodes.remove(node) else {
            return;
        };
        self.following.remove(node);
        self.unseen.remove(node);
        self.audit_due.remove(node);
        self.aliases_told.retain(|(a, b)| a != node && b != node);
        self.out.writes.push(Write::Forget(node.clone()));
        let note = Note::info("node.removed", format!("{node} is forgotten")).node(node);
        self.log(note.of(record.source.as_ref(), None), now);
    }

    /// Whether a job that is remembered, or another node that is synchronized, uses that replication.
    fn is_used(&self, replication: JobId, node: &NodeId) -> bool {
        let jobs = self.jobs.values().map(|live| &live.job);
        let mut named = jobs.flat_map(|job| [job.id, job.replication().id]);
        named.any(|id| id == replication)
            || self.nodes.values().any(|record| {
                record.id != *node
                    && record.replication() == Some(replication)
                    && record.state == NodeState::Synchronized
            })
    }

    /// What of ours on a node no job stands for, and how it is removed.
    fn sweep_plan(&self, node: &NodeId) -> Plan {
        let mut plan = Plan::default();
        let Some(record) = self.nodes.get(node) else {
            return plan;
        };
        let lineage = record.lineage.as_deref().cloned().unwrap_or_default();
        let mut replications = forgotten_here(&lineage);
        // What was given up while its other end was away, and is back.
        if let Some(own) = record.replication()
            && !replications.iter().any(|known| known.id == own)
        {
            replications.push(Replication::of(own));
        }
        replications.retain(|replication| !self.is_used(replication.id, node));
        for replication in &replications {
            let here = is_here(&lineage, replication.id);
            if here && self.registry.is_online(node) {
                plan.steps.push_back(Removal {
                    on: node.clone(),
                    replication: replication.clone(),
                    side: Side::Target,
                });
            } else if here {
                let name = replication.name();
                let why = "its agent has no session";
                plan.left
                    .push(left_behind(node, Side::Target, name.as_str(), why));
            }
            let known = (plan.steps.len(), plan.left.len());
            self.plan_publishers(node, replication, &mut plan);
            if here && known == (plan.steps.len(), plan.left.len()) {
                plan.left.push(unseen_publisher(replication));
            }
        }
        for slot in lineage
            .slots
            .iter()
            .filter(|slot| slot.starts_with(ReplicationNames::PREFIX))
        {
            let Some(job) = ReplicationNames::parse(slot) else {
                continue;
            };
            if !self.is_used(job, node) {
                self.plan_own_slot(node, job, &mut plan);
            }
        }
        plan
    }

    /// The other end of a forgotten subscription.
    fn plan_publishers(&self, node: &NodeId, replication: &Replication, plan: &mut Plan) {
        let publishes = |record: &&NodeRecord| {
            let agent = self.registry.get(&record.id);
            let observed = agent.is_some_and(|agent| agent.slot(replication.id).is_some());
            let told = record.lineage.as_ref().is_some_and(|lineage| {
                let slot = replication.slot.as_str();
                lineage.slots.iter().any(|known| known == slot)
                    || lineage.publications.contains(&replication.id)
            });
            record.id != *node && (observed || told)
        };
        for record in self.nodes.values().filter(publishes) {
            if self.registry.is_online(&record.id) {
                plan.steps.push_back(Removal {
                    on: record.id.clone(),
                    replication: replication.clone(),
                    side: Side::Source,
                });
            } else {
                let (name, why) = (replication.name(), "its agent has no session");
                plan.left
                    .push(left_behind(&record.id, Side::Source, name.as_str(), why));
            }
        }
    }

    /// A slot that is named like ours and stands for no job here. One that somebody uses stays.
    fn plan_own_slot(&self, node: &NodeId, job: JobId, plan: &mut Plan) {
        let slot = Replication::of(job);
        let name = &slot.slot;
        let user = self.nodes.values().find(|record| {
            let lineage = record.lineage.as_deref();
            record.id != *node && lineage.is_some_and(|lineage| is_here(lineage, job))
        });
        let agent = self.registry.get(node);
        let active = agent
            .and_then(|agent| agent.slot(job))
            .map(|slot| slot.active);
        match (user, active) {
            (Some(user), _) => plan.left.push(format!(
                "slot {name} on {node} is {0}'s: steep-repl init cancel --node {0} --force-cleanup",
                user.id
            )),
            (None, Some(true)) => plan.left.push(format!(
                "slot {name} on {node} is in use by a server that no agent runs beside, and stays"
            )),
            (None, Some(false)) => plan.steps.push_back(Removal {
                on: node.clone(),
                replication: slot,
                side: Side::Source,
            }),
            // It is gone, or its agent is.
            (None, None) => {}
        }
    }

    /// Whether something could be swept from a node.
    pub(super) fn has_leftovers(&self, node: &NodeId) -> bool {
        self.sweep_plan(node) != Plan::default()
    }

    /// Removes what comes next; at the end the node is as if nothing had been there.
    fn sweep(&mut self, sweep: Sweep, now: Timestamp) {
        let Some(next) = sweep.steps.front().cloned() else {
            return self.sweep_over(sweep, now);
        };
        let command = match next.side {
            Side::Target => Command::from(TargetCommand::Cleanup { data: sweep.data }),
            Side::Source => Command::from(SourceCommand::Cleanup { sync_slots: None }),
        };
        let purpose = Purpose::Sweep(Box::new(sweep));
        self.begin_query_on(&next.on, next.replication, command, purpose, now);
    }

    /// A step of a sweep ended, well or not.
    pub(super) fn swept(&mut self, mut sweep: Sweep, failed: Option<&Fault>, now: Timestamp) {
        if let Some(step) = sweep.steps.pop_front() {
            let name = step.replication.name();
            match failed {
                Some(fault) => sweep.left.push(left_behind(
                    &step.on,
                    step.side,
                    name.as_str(),
                    &fault.message,
                )),
                None => self.unlist(&step),
            }
        }
        self.sweep(sweep, now);
    }

    /// What was just removed is not taken for there any more, though a lineage that was read before may
    /// still come.
    fn unlist(&mut self, step: &Removal) {
        let job = step.replication.id;
        self.swept.insert(job);
        let Some(record) = self.nodes.get_mut(&step.on) else {
            return;
        };
        let Some(lineage) = &mut record.lineage else {
            return;
        };
        match step.side {
            Side::Target => {
                let own = |name: &str| ReplicationNames::parse(name) == Some(job);
                lineage.subscriptions.retain(|s| !own(&s.name));
                lineage.books.retain(|book| *book != job);
            }
            Side::Source => {
                lineage
                    .slots
                    .retain(|slot| slot != step.replication.slot.as_str());
                lineage
                    .publications
                    .retain(|publication| *publication != job);
            }
        }
        self.out.writes.push(Write::Node(Box::new(record.clone())));
    }

    fn sweep_over(&mut self, sweep: Sweep, now: Timestamp) {
        let Sweep {
            node,
            left,
            afterwards,
            operator,
            ticket,
            ..
        } = sweep;
        self.reset(&node, now);
        let text =
            format!("cancelled by {operator}; what could be reached of forgotten jobs is removed");
        let note = Note::info("init.cancelled", text).node(&node);
        self.log(note.field("operator", &operator), now);
        for text in &left {
            let note = Note::warn("init.given_up", text.clone()).node(&node);
            self.log(note, now);
        }
        if afterwards == Afterwards::Forget {
            self.forget_node(&node, now);
        }
        self.answer(ticket, Ok(removed(left)));
    }

    /// Back to uninitialized.
    fn reset(&mut self, node: &NodeId, now: Timestamp) {
        let Some(record) = self.nodes.get_mut(node) else {
            return;
        };
        let from = record.state;
        for event in [NodeEvent::Drifted, NodeEvent::Failed, NodeEvent::Cancelled] {
            if record.state != NodeState::Uninitialized
                && let Ok(to) = transition(record.state, event)
            {
                record.state = to;
            }
        }
        let to = record.state;
        if from == to {
            return;
        }
        record.source = None;
        record.replication = None;
        record.error_message = None;
        record.lost = None;
        let record = record.clone();
        self.following.remove(node);
        self.out.writes.push(Write::Node(Box::new(record)));
        let note = Note::info("init.state_change", format!("{node}: {from} to {to}")).node(node);
        self.log(note.field("from", from).field("to", to), now);
        self.mirror(node, now);
    }
}

fn left_behind(node: &NodeId, side: Side, name: &str, why: &str) -> String {
    match side {
        Side::Target => format!(
            "on {node} subscription {name}, its origin and rows in steep_repl stay ({why}): ALTER \
             SUBSCRIPTION {name} DISABLE, then SET (slot_name = NONE), then DROP SUBSCRIPTION {name}"
        ),
        Side::Source => format!(
            "on {node} slot and publication {name} stay ({why}), and the slot keeps WAL: as a superuser, \
             SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = \
             '{name}', where it is in use, then SELECT pg_drop_replication_slot('{name}') and DROP \
             PUBLICATION {name}"
        ),
    }
}

/// The other end is no node that this coordinator has seen: its agent has not come back yet, or none runs
/// beside it.
fn unseen_publisher(replication: &Replication) -> String {
    format!(
        "no node with a session has slot or publication {}: they are gone, or stay where this coordinator \
         has not looked yet, and a slot keeps WAL: once the source's agent is back, steep-repl init cancel \
         --node SOURCE --force-cleanup removes them",
        replication.name().as_str()
    )
}

/// Subscriptions of ours in a database, and jobs whose tables are in it.
fn forgotten_here(lineage: &Lineage) -> Vec<Replication> {
    let native = lineage.subscriptions.iter();
    let native = native.filter(|subscription| subscription.tool == Tool::PostgreSql);
    let mut found: Vec<Replication> = native
        .filter_map(|subscription| {
            let id = ReplicationNames::parse(&subscription.name)?;
            let slot = subscription.slot.as_ref();
            let slot = slot.and_then(|slot| SlotName::parse(slot.clone()).ok());
            Some(slot.map_or_else(|| Replication::of(id), |slot| Replication { id, slot }))
        })
        .collect();
    for book in &lineage.books {
        if !found.iter().any(|known| known.id == *book) {
            found.push(Replication::of(*book));
        }
    }
    found
}

fn is_here(lineage: &Lineage, job: JobId) -> bool {
    forgotten_here(lineage).iter().any(|known| known.id == job)
}
