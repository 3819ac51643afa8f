//! Slots of ours that belong to no job, snapshot or node that this coordinator knows: its store was lost, or
//! another coordinator made them. They hold WAL until somebody removes them, so they are named.

use std::time::Duration;

use jiff::Timestamp;
use steep_protocol::message::handover::SlotOwner;
use steep_protocol::message::lineage::Lineage;
use steep_protocol::{JobId, NodeId, NodeState};

use super::Driver;
use super::log::Note;
use crate::job::time::after;
use crate::registry::Agent;
use crate::store::{NodeRecord, Store};

/// How long a slot must be unknown: agents list what was removed for some seconds, and those of replicas may
/// come after those of sources.
const TOLD_AFTER: Duration = Duration::from_secs(25);

/// A slot that nobody is known to need.
#[derive(Debug, Clone, Copy)]
pub(super) struct Unknown {
    since: Timestamp,
    told: bool,
}

impl<S: Store> Driver<S> {
    /// Looks for such slots, and logs each once.
    pub(super) fn tick_unknown_slots(&mut self, now: Timestamp) {
        let used = self.in_use();
        let mut found = Vec::new();
        for record in self.nodes.values() {
            let agent = self.registry.get(&record.id);
            if agent.is_some_and(|agent| agent.lineage_known) {
                let slots = self.unknown_slots(record, &used).into_iter();
                found.extend(slots.map(|(slot, _)| (record.id.clone(), slot.to_owned())));
            }
        }
        self.unknown.retain(|slot, _| found.contains(slot));
        for slot in found {
            let unknown = Unknown {
                since: now,
                told: false,
            };
            let unknown = self.unknown.entry(slot.clone()).or_insert(unknown);
            if unknown.told || now < after(unknown.since, TOLD_AFTER) {
                continue;
            }
            unknown.told = true;
            let (node, slot) = slot;
            if let Some(text) = self.unknown_text(&node, &slot) {
                let note = Note::warn("slot.unknown", format!("{node}: {text}")).node(&node);
                self.log(note.field("slot", &slot), now);
            }
            self.out.observed = true;
        }
    }

    /// The slots of that node which were told to be unknown, a sentence each.
    pub(super) fn unknown_warnings(&self, node: &NodeId) -> Vec<String> {
        let told = self.unknown.iter().filter(|(_, unknown)| unknown.told);
        let here = told.filter(|((on, _), _)| on == node);
        here.filter_map(|((_, slot), _)| self.unknown_text(node, slot))
            .collect()
    }

    fn unknown_text(&self, node: &NodeId, slot: &str) -> Option<String> {
        let agent = self.registry.get(node)?;
        let status = agent
            .observed
            .slots
            .iter()
            .find(|s| s.slot.as_str() == slot);
        let template = agent
            .templates
            .iter()
            .find(|s| s.replication.slot.as_str() == slot);
        let whose = match SlotOwner::of(slot)? {
            SlotOwner::Job(job) | SlotOwner::Made(_, job) => format!("job {job}"),
            SlotOwner::Template(snapshot) => format!("snapshot {snapshot}"),
        };
        let held = match (status, template) {
            (Some(status), _) => format!(", holds {} bytes of WAL", status.wal_held.0),
            (None, Some(slot)) => format!(
                ", holds {} bytes of WAL, until {:.0} at most,",
                slot.wal_held.0, slot.expires_at
            ),
            (None, None) => String::new(),
        };
        let active = status.is_some_and(|status| status.active);
        let drop = format!("SELECT pg_drop_replication_slot('{slot}')");
        let what = if active {
            "a server uses it: start its agent, and it is known again".to_owned()
        } else if self.state_of(node) == NodeState::Synchronized {
            format!("if no server needs it: {drop}")
        } else {
            format!(
                "if no server needs it, steep-repl init cancel --node {node} --force-cleanup removes it, \
                 and so does {drop}"
            )
        };
        Some(format!(
            "slot {slot}{held} and is of {whose}, which this coordinator does not know; {what}"
        ))
    }

    /// Slots of ours on that node without a job, snapshot or node; `used` is [`Driver::in_use`].
    fn unknown_slots<'a>(
        &'a self,
        record: &'a NodeRecord,
        used: &[JobId],
    ) -> Vec<(&'a str, SlotOwner)> {
        let lineage = record.lineage.as_deref();
        let slots = lineage.into_iter().flat_map(|lineage| &lineage.slots);
        let own = slots.filter_map(|slot| Some((slot.as_str(), SlotOwner::of(slot)?)));
        let unknown = |(slot, owner): &(&str, SlotOwner)| match *owner {
            SlotOwner::Template(snapshot) => !self.snapshots.contains_key(&snapshot),
            SlotOwner::Job(job) | SlotOwner::Made(_, job) => {
                !(used.contains(&job)
                    || self.is_snapshot(job)
                    || self.is_asking(job)
                    || self.is_left(slot)
                    || self.nodes.values().any(|other| needs(other, slot, job)))
            }
        };
        own.filter(unknown).collect()
    }

    /// Whether a node has left that slot when it was detached: it is removed without being named.
    fn is_left(&self, slot: &str) -> bool {
        let mut left = self.nodes.values().flat_map(|record| &record.left);
        left.any(|left| left.replication.slot.as_str() == slot)
    }

    /// Templates and copies on that node whose snapshot and job nobody knows, and that nobody uses.
    pub(super) fn forgotten_snapshot_slots(&self, node: &NodeId) -> Vec<SlotOwner> {
        let (Some(record), Some(agent)) = (self.nodes.get(node), self.registry.get(node)) else {
            return Vec::new();
        };
        let slots = self.unknown_slots(record, &self.in_use()).into_iter();
        slots
            .filter(|(slot, owner)| match owner {
                // Those are found by their job.
                SlotOwner::Job(_) => false,
                SlotOwner::Made(..) => !is_active(agent, slot),
                SlotOwner::Template(_) => true,
            })
            .map(|(_, owner)| owner)
            .collect()
    }

    /// The slots on other nodes that a forgotten job on this one got from a snapshot.
    pub(super) fn slots_from_snapshots(&self, node: &NodeId, job: JobId) -> Vec<SlotOwner> {
        let others = self.nodes.values().filter(|record| record.id != *node);
        let lineages = others.filter_map(|record| record.lineage.as_deref());
        let slots = lineages.flat_map(|lineage| &lineage.slots);
        let owners = slots.filter_map(|slot| SlotOwner::of(slot));
        owners
            .filter(|owner| matches!(owner, SlotOwner::Made(_, made) if *made == job))
            .collect()
    }
}

/// Whether a node has the job's tables or a subscription to the slot. Then that node is told about.
fn needs(record: &NodeRecord, slot: &str, job: JobId) -> bool {
    let has = |lineage: &Lineage| {
        let subscribed = |s: &str| s == slot;
        let mut subscriptions = lineage.subscriptions.iter();
        lineage.jobs.contains(&job)
            || subscriptions.any(|s| s.slot.as_deref().is_some_and(subscribed))
    };
    record.lineage.as_deref().is_some_and(has)
}

fn is_active(agent: &Agent, slot: &str) -> bool {
    let mut slots = agent.observed.slots.iter();
    slots.any(|status| status.slot.as_str() == slot && status.active)
}
