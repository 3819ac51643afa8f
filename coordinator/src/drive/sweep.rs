//! Leftovers of forgotten jobs, which this coordinator does not remember: finds and removes them.

use std::collections::VecDeque;
use std::time::Duration;

use jiff::Timestamp;
use steep_protocol::message::agent::{Command, SourceCommand, TargetCommand};
use steep_protocol::message::api::Afterwards;
use steep_protocol::message::handover::{Replication, SlotName, SlotOwner};
use steep_protocol::message::job::{CancelledData, ReplicationNames};
use steep_protocol::message::lineage::{Lineage, Tool};
use steep_protocol::{Fault, JobId, NodeId, NodeState};

use super::effects::removed;
use super::give_up::{Remains, left_behind};
use super::log::Note;
use super::query::Purpose;
use super::{Driver, Ticket};
use crate::job::state::{NodeEvent, transition};
use crate::job::time::after;
use crate::job::{Job, Side};
use crate::store::{NodeRecord, Store, Write};

/// How long an agent may still list what was removed: it looks every five seconds, and a look that is under
/// way may take five more.
const LISTED_STILL: Duration = Duration::from_secs(20);

/// Leftovers being removed, one at a time.
pub(super) struct Sweep {
    pub(super) node: NodeId,
    /// The removal under way, and those after it.
    pub(super) steps: VecDeque<Removal>,
    /// What cannot be removed, a sentence each.
    pub(super) left: Vec<String>,
    pub(super) data: CancelledData,
    pub(super) afterwards: Afterwards,
    pub(super) operator: String,
    pub(super) ticket: Ticket,
}

/// The removal of one end of a forgotten job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Removal {
    on: NodeId,
    replication: Replication,
    side: Side,
}

/// What a sweep would do.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) steps: VecDeque<Removal>,
    pub(super) left: Vec<String>,
}

impl<S: Store> Driver<S> {
    /// Whether a known job or another synchronized node uses that replication. Those made from one snapshot share its
    /// name, and each has a slot of its own.
    fn is_used(&self, replication: &Replication, node: &NodeId) -> bool {
        let owner = SlotOwner::of(replication.slot.as_str()).and_then(SlotOwner::job);
        let mut jobs = self.jobs.values().map(|live| &live.job);
        let uses = |job: &Job| job.named().any(|id| id == replication.id);
        let same_slot = |record: &NodeRecord| record.slot.as_ref() == Some(&replication.slot);
        jobs.any(|job| uses(job) && owner.is_none_or(|owner| owner == job.id))
            || self.nodes.values().any(|record| {
                record.id != *node
                    && record.replication() == Some(replication.id)
                    && record.state == NodeState::Synchronized
                    && (owner.is_none() || same_slot(record))
            })
    }

    /// Plans the removal of all leftovers on a node.
    pub(super) fn sweep_plan(&self, node: &NodeId, now: Timestamp) -> Plan {
        let mut plan = Plan::default();
        let Some(record) = self.nodes.get(node) else {
            return plan;
        };
        let lineage = record.lineage.as_deref().cloned().unwrap_or_default();
        let mut replications = forgotten_here(&lineage);
        // The node's own replication may have been given up while its other end was away.
        if let Some(own) = record.replication()
            && !replications.iter().any(|known| known.id == own)
        {
            replications.push(Replication::of(own));
        }
        replications.retain(|replication| !self.is_used(replication, node));
        for replication in &replications {
            let here =
                is_here(&lineage, replication.id) && !self.just_swept(replication.id, node, now);
            if here && self.registry.is_online(node) {
                plan.steps.push_back(Removal {
                    on: node.clone(),
                    replication: replication.clone(),
                    side: Side::Target,
                });
            } else if here {
                let why = "its agent has no session";
                let remains = target_remains(&lineage, replication.id);
                plan.left.push(left_behind(node, remains, replication, why));
            }
            let known = (plan.steps.len(), plan.left.len());
            self.plan_publishers(node, replication, &mut plan, now);
            for owner in self.slots_from_snapshots(node, replication.id) {
                self.plan_publishers(node, &owner.replication(), &mut plan, now);
            }
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
            if !self.is_used(&Replication::of(job), node) && !self.just_swept(job, node, now) {
                self.plan_own_slot(node, job, &mut plan);
            }
        }
        // Copies before their templates, since the last slot takes the publication along.
        let mut owners = self.forgotten_snapshot_slots(node);
        owners.sort_by_key(|owner| owner.job().is_none());
        for owner in owners {
            let replication = owner.replication();
            if !self.just_swept(swept_id(&replication), node, now) {
                plan.steps.push_back(Removal {
                    on: node.clone(),
                    replication,
                    side: Side::Source,
                });
            }
        }
        plan
    }

    /// Plans the removal of a forgotten subscription's slot and publication.
    fn plan_publishers(
        &self,
        node: &NodeId,
        replication: &Replication,
        plan: &mut Plan,
        now: Timestamp,
    ) {
        let publishes = |record: &&NodeRecord| {
            let agent = self.registry.get(&record.id);
            let observed = agent.is_some_and(|agent| agent.slot(replication.id).is_some());
            let told = record.lineage.as_ref().is_some_and(|lineage| {
                let slot = replication.slot.as_str();
                lineage.slots.iter().any(|known| known == slot)
                    || lineage.publications.contains(&replication.id)
            });
            record.id != *node
                && (observed || told)
                && !self.just_swept(swept_id(replication), &record.id, now)
        };
        for record in self.nodes.values().filter(publishes) {
            if self.registry.is_online(&record.id) {
                plan.steps.push_back(Removal {
                    on: record.id.clone(),
                    replication: replication.clone(),
                    side: Side::Source,
                });
            } else {
                let why = "its agent has no session";
                plan.left.push(left_behind(
                    &record.id,
                    Remains::Publisher,
                    replication,
                    why,
                ));
            }
        }
    }

    /// Plans the removal of a slot with a name of ours and no known job, unless it is in use.
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
                "slot {name} on {node} stays: a server without an agent uses it"
            )),
            (None, Some(false)) => plan.steps.push_back(Removal {
                on: node.clone(),
                replication: slot,
                side: Side::Source,
            }),
            // The slot is gone, or the agent is offline.
            (None, None) => {}
        }
    }

    pub(super) fn has_leftovers(&self, node: &NodeId, now: Timestamp) -> bool {
        self.sweep_plan(node, now) != Plan::default()
    }

    /// Whether a job's objects were removed from the node so recently that its agent may still list them.
    fn just_swept(&self, job: JobId, node: &NodeId, now: Timestamp) -> bool {
        let at = self.swept.get(&(job, node.clone()));
        at.is_some_and(|at| now < after(*at, LISTED_STILL))
    }

    /// Starts the next removal; after the last one, resets the node.
    pub(super) fn sweep(&mut self, sweep: Sweep, now: Timestamp) {
        let Some(next) = sweep.steps.front().cloned() else {
            return self.sweep_over(sweep, now);
        };
        let command = match next.side {
            Side::Target => Command::from(TargetCommand::Cleanup {
                data: sweep.data,
                earlier: Vec::new(),
                sequences: None,
                joined: None,
            }),
            Side::Source => Command::from(self.source_removal(&next)),
        };
        let purpose = Purpose::Sweep(Box::new(sweep));
        // One of several jobs from a snapshot must not end that for the others.
        let job = match next.side {
            Side::Target => next.replication.id,
            Side::Source => swept_id(&next.replication),
        };
        self.begin_query_as(job, &next.on, next.replication, (command, purpose), now);
    }

    /// A snapshot's own slot goes with the files that it may have in the spool, others without any.
    fn source_removal(&self, removal: &Removal) -> SourceCommand {
        let owner = SlotOwner::of(removal.replication.slot.as_str());
        let Some(SlotOwner::Template(snapshot)) = owner else {
            return SourceCommand::Cleanup {
                sync_slots: None,
                earlier: Vec::new(),
            };
        };
        let agent = self.registry.get(&removal.on);
        let spool = agent.and_then(|agent| agent.registration.spool.as_ref());
        SourceCommand::DeleteSnapshot {
            location: spool.map(|directory| format!("{directory}/{snapshot}")),
        }
    }

    /// A removal ended.
    pub(super) fn swept(&mut self, mut sweep: Sweep, failed: Option<&Fault>, now: Timestamp) {
        if let Some(step) = sweep.steps.pop_front() {
            match failed {
                Some(fault) => {
                    let remains = match step.side {
                        Side::Source => Remains::Publisher,
                        Side::Target => {
                            let record = self.nodes.get(&step.on);
                            let lineage = record.and_then(|r| r.lineage.as_deref().cloned());
                            target_remains(&lineage.unwrap_or_default(), step.replication.id)
                        }
                    };
                    let why = &fault.message;
                    sweep
                        .left
                        .push(left_behind(&step.on, remains, &step.replication, why));
                }
                None => self.unlist(&step, now),
            }
        }
        self.sweep(sweep, now);
    }

    /// Removes it from the node's lineage, and notes it in case a lineage read earlier still arrives.
    fn unlist(&mut self, step: &Removal, now: Timestamp) {
        let job = step.replication.id;
        let swept = match step.side {
            Side::Target => job,
            Side::Source => swept_id(&step.replication),
        };
        self.swept.insert((swept, step.on.clone()), now);
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
                lineage.jobs.retain(|other| *other != job);
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

    /// A slot and what belongs to it were removed from that node.
    pub(super) fn unlist_slot(&mut self, on: &NodeId, replication: &Replication, now: Timestamp) {
        let step = Removal {
            on: on.clone(),
            replication: replication.clone(),
            side: Side::Source,
        };
        self.unlist(&step, now);
    }

    /// The job itself has removed what it made on that side.
    pub(super) fn unlist_job(&mut self, job: &Job, side: Side, now: Timestamp) {
        let on = side.node(&job.spec).clone();
        self.swept.insert((job.id, on.clone()), now);
        let replication = job.replication();
        // A prepared slot may stay.
        if side == Side::Target || replication.id == job.id {
            let step = Removal {
                on,
                replication,
                side,
            };
            self.unlist(&step, now);
        }
        if side == Side::Target
            && let Some(record) = self.nodes.get_mut(side.node(&job.spec))
            && let Some(lineage) = &mut record.lineage
        {
            lineage.jobs.retain(|other| *other != job.id);
        }
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
        let text = format!(
            "cancelled by {operator}; all reachable leftovers of forgotten jobs are removed"
        );
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

    /// Makes the node uninitialized.
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
        record.slot = None;
        record.error_message = None;
        record.lost = None;
        let record = record.clone();
        self.following.remove(node);
        self.out.writes.push(Write::Node(Box::new(record)));
        let note =
            Note::info("init.state_change", format!("{node}: from {from} to {to}")).node(node);
        self.log(note.field("from", from).field("to", to), now);
        self.mirror(node, now);
    }
}

/// What a removed slot is remembered by: jobs from one snapshot share the replication's id.
pub(super) fn swept_id(replication: &Replication) -> JobId {
    let owner = SlotOwner::of(replication.slot.as_str());
    owner.and_then(SlotOwner::job).unwrap_or(replication.id)
}

/// No known node has the other end: its agent is not back yet, or the server has none.
fn unseen_publisher(replication: &Replication) -> String {
    format!(
        "no connected node has slot or publication {}. They may still exist on a server that is \
         offline, where the slot keeps WAL: once the source's agent is back, remove them with \
         steep-repl init cancel --node SOURCE --force-cleanup",
        replication.name().as_str()
    )
}

/// Replications of ours in a database: its subscriptions, and jobs that left tables in `steep_repl`.
pub(super) fn forgotten_here(lineage: &Lineage) -> Vec<Replication> {
    let mut found: Vec<Replication> = lineage
        .subscriptions
        .iter()
        .filter(|subscription| subscription.tool == Tool::PostgreSql)
        .filter_map(|subscription| {
            let id = ReplicationNames::parse(&subscription.name)?;
            let slot = subscription.slot.clone();
            Some(match slot.and_then(|slot| SlotName::parse(slot).ok()) {
                Some(slot) => Replication { id, slot },
                None => Replication::of(id),
            })
        })
        .collect();
    for job in &lineage.jobs {
        if !found.iter().any(|known| known.id == *job) {
            found.push(Replication::of(*job));
        }
    }
    found
}

/// What a forgotten job leaves on its target: its row in `steep_repl` goes once its tables are complete.
fn target_remains(lineage: &Lineage, job: JobId) -> Remains {
    if lineage.jobs.contains(&job) {
        Remains::Tables(job)
    } else {
        Remains::Subscriber
    }
}

fn is_here(lineage: &Lineage, job: JobId) -> bool {
    forgotten_here(lineage).iter().any(|known| known.id == job)
}
