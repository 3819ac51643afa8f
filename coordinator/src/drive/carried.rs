//! What a node that follows carries: its publication and subscription as they were made, the tables that
//! entered later, the enum types behind their columns, and tables of the source that nobody replicates.

use jiff::Timestamp;
use steep_protocol::message::agent::{Published, Subscribed, SubscriptionWiring};
use steep_protocol::{JobId, NodeId, TableName};

use super::Driver;
use super::drift::ANEW;
use super::following::{Cause, Following, Health};
use super::log::Note;
use crate::job::membership::{self, Ends, Watched};
use crate::registry::Agent;
use crate::store::{NodeRecord, Store, Write};

/// What is wrong with a subscription that is wired so.
pub(super) fn wiring(wiring: SubscriptionWiring) -> Option<Health> {
    match wiring {
        SubscriptionWiring::Sound => None,
        SubscriptionWiring::Changed => Some(Health::Suspect(Cause::final_one(format!(
            "the subscription was given another slot or other publications: {ANEW}"
        )))),
        SubscriptionWiring::Skipping => Some(Health::Bad(Cause::final_one(format!(
            "the subscription was told to skip a transaction (ALTER SUBSCRIPTION … SKIP): {ANEW}"
        )))),
        SubscriptionWiring::Unmarked => Some(Health::Suspect(Cause::passing(
            "the comment by which steep-repl knows its subscription is gone: what the subscription has \
             taken since cannot be told"
                .to_owned(),
        ))),
    }
}

impl<S: Store> Driver<S> {
    pub(super) fn publication_health(&self, source: &NodeId, job: JobId) -> Health {
        let Some(agent) = self.registry.get(source).filter(|agent| agent.sees()) else {
            return Health::Unknown;
        };
        let status = agent.publication(job);
        if status.is_none() && agent.slot(job).is_none() {
            // The slot's absence is told already.
            return Health::Unknown;
        }
        match membership::publication(status) {
            None => Health::Good,
            Some(what) => Health::Suspect(Cause::final_one(format!(
                "the publication on {source} {what}: {ANEW}"
            ))),
        }
    }

    /// Whether somebody has moved the slot past what the target has.
    pub(super) fn is_slot_moved(
        &self,
        node: &NodeId,
        source: &NodeId,
        job: JobId,
        following: &mut Following,
    ) -> bool {
        let sees = |node: &NodeId| self.registry.get(node).filter(|agent| agent.sees());
        let slot = sees(source).and_then(|agent| agent.slot(job));
        let subscription = sees(node).and_then(|agent| agent.subscription(job));
        match (slot, subscription) {
            (Some(slot), Some(subscription)) => following.parked.is_moved(slot, subscription),
            _ => false,
        }
    }

    /// Whether every table that entered the replication later is complete on the node, and every label
    /// known there.
    pub(super) fn carried_health(
        &mut self,
        record: &NodeRecord,
        source: &NodeId,
        job: JobId,
        watched: &mut Watched,
        now: Timestamp,
    ) -> Health {
        let sees = |node: &NodeId| self.registry.get(node).filter(|agent| agent.sees());
        let (Some(there), Some(here)) = (sees(source), sees(&record.id)) else {
            return Health::Unknown;
        };
        let (Some(published), Some(subscribed)) = (there.published(job), here.subscribed(job))
        else {
            return Health::Unknown;
        };
        let ends = Ends {
            job,
            source: (source, published),
            look: there.observed.carried.look,
            target: (&record.id, subscribed),
        };
        let mut complete = record.complete.clone();
        let mut wrong = ends.judge(&mut complete, watched);
        let (theirs, ours) = (&published.enums, &subscribed.enums);
        wrong.extend(membership::missing_labels(theirs, ours, &record.id));
        let appeared = published.appeared.clone();
        if let Some(record) = self.nodes.get_mut(&record.id)
            && record.complete != complete
        {
            record.complete = complete;
            self.out.writes.push(Write::Node(Box::new(record.clone())));
        }
        self.note_appeared(&record.id, source, job, appeared, now);
        if wrong.is_empty() {
            Health::Good
        } else {
            Health::Bad(Cause::passing(wrong.join("; and ")))
        }
    }

    /// Tells tables of the source that were made later and that the node does not replicate, once each,
    /// as far as its job would have taken them.
    fn note_appeared(
        &mut self,
        node: &NodeId,
        source: &NodeId,
        job: JobId,
        mut appeared: Vec<TableName>,
        now: Timestamp,
    ) {
        let Some(record) = self.nodes.get(node).filter(|r| r.appeared != appeared) else {
            return;
        };
        let stored = record.job.map(|job| self.store.job(job));
        let Some(Ok(Some(stored))) = stored else {
            return;
        };
        appeared.retain(|table| stored.job.spec.filter.admits(table));
        let Some(record) = self.nodes.get_mut(node).filter(|r| r.appeared != appeared) else {
            return;
        };
        let known = std::mem::replace(&mut record.appeared, appeared.clone());
        self.out.writes.push(Write::Node(Box::new(record.clone())));
        for table in appeared.iter().filter(|table| !known.contains(table)) {
            let text = format!(
                "{table} was made on {source} after {node} was initialised: it is not replicated"
            );
            let note = Note::warn("table.appeared", text).node(node);
            self.log(note.of(Some(source), Some(job)).field("table", table), now);
        }
    }
}

impl Agent {
    /// What a replication publishes, where that was looked at since it was marked.
    fn published(&self, job: JobId) -> Option<&Published> {
        let mark = self.publication(job)?.mark;
        let mut all = self.observed.carried.published.iter();
        all.find(|p| p.job == job && p.mark == mark)
    }

    /// What a replication takes, where that was looked at since it was marked.
    fn subscribed(&self, job: JobId) -> Option<&Subscribed> {
        let mark = self.subscription(job)?.mark;
        let mut all = self.observed.carried.subscribed.iter();
        all.find(|s| s.job == job && s.mark == mark)
    }
}
