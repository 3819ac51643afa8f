//! What a replication carries: whether publication and subscription are unchanged, tables added later,
//! labels of enum types, and new tables of the source that are not replicated.

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

/// What is wrong with a subscription's wiring, if anything.
pub(super) fn wiring(wiring: SubscriptionWiring) -> Option<Health> {
    match wiring {
        SubscriptionWiring::Sound => None,
        SubscriptionWiring::Changed => Some(Health::Suspect(Cause::permanent(format!(
            "the subscription was given another slot or other publications: {ANEW}"
        )))),
        SubscriptionWiring::Skipping => Some(Health::Bad(Cause::permanent(format!(
            "the subscription was told to skip a transaction (ALTER SUBSCRIPTION … SKIP): {ANEW}"
        )))),
        SubscriptionWiring::Unmarked => Some(Health::Suspect(Cause::temporary(
            "steep-repl's comment on the subscription is gone, so the subscription may have been \
             changed unnoticed"
                .to_owned(),
        ))),
    }
}

impl<S: Store> Driver<S> {
    pub(super) fn publication_health(&self, source: &NodeId, job: JobId) -> Health {
        let Some(agent) = self
            .registry
            .get(source)
            .filter(|agent| agent.postgres_answers())
        else {
            return Health::Unknown;
        };
        let status = agent.publication(job);
        if status.is_none() && agent.slot(job).is_none() {
            // The missing slot is reported already.
            return Health::Unknown;
        }
        match membership::publication(status) {
            None => Health::Good,
            Some(what) => Health::Suspect(Cause::permanent(format!(
                "the publication on {source} {what}: {ANEW}"
            ))),
        }
    }

    /// Whether somebody has moved the slot past what the target has confirmed.
    pub(super) fn is_slot_moved(
        &self,
        node: &NodeId,
        source: &NodeId,
        job: JobId,
        following: &mut Following,
    ) -> bool {
        let observing = |node: &NodeId| {
            self.registry
                .get(node)
                .filter(|agent| agent.postgres_answers())
        };
        let slot = observing(source).and_then(|agent| agent.slot(job));
        let subscription = observing(node).and_then(|agent| agent.subscription(job));
        match (slot, subscription) {
            (Some(slot), Some(subscription)) => following.parked.is_moved(slot, subscription),
            _ => false,
        }
    }

    /// Tables that the node's source publishes and that it has not subscribed to.
    pub(super) fn untaken(&self, node: &NodeId) -> Vec<TableName> {
        let ends = self.nodes.get(node).and_then(|record| {
            let (job, source) = (record.replication()?, record.source.as_ref()?);
            let published = self.registry.get(source)?.published(job)?;
            Some((published, self.registry.get(node)?.subscribed(job)?))
        });
        ends.map_or_else(Vec::new, |(published, subscribed)| {
            membership::untaken(published, subscribed)
        })
    }

    /// Whether the node has all rows of tables added later, and all enum labels.
    pub(super) fn carried_health(
        &mut self,
        record: &NodeRecord,
        source: &NodeId,
        job: JobId,
        watched: &mut Watched,
        now: Timestamp,
    ) -> Health {
        let observing = |node: &NodeId| {
            self.registry
                .get(node)
                .filter(|agent| agent.postgres_answers())
        };
        let (Some(there), Some(here)) = (observing(source), observing(&record.id)) else {
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
        wrong.extend(membership::missing_labels(
            &published.enums,
            &subscribed.enums,
            &record.id,
        ));
        let mut appeared = published.appeared.clone();
        appeared.extend(membership::untaken(published, subscribed));
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
            Health::Bad(Cause::temporary(wrong.join("; and ")))
        }
    }

    /// Warns once of each new table of the source that is not replicated though the job's filter
    /// admits it.
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
                "{table} was created on {source} after {node} was initialised and is not replicated; \
                 steep-repl tables add --node {node} copies and follows it"
            );
            let note = Note::warn("table.appeared", text).node(node);
            self.log(note.of(Some(source), Some(job)).field("table", table), now);
        }
    }
}

impl Agent {
    /// What a replication publishes, if observed since the current mark.
    fn published(&self, job: JobId) -> Option<&Published> {
        let mark = self.publication(job)?.mark;
        let mut all = self.observed.carried.published.iter();
        all.find(|p| p.job == job && p.mark == mark)
    }

    /// What a replication subscribes to, if observed since the current mark.
    fn subscribed(&self, job: JobId) -> Option<&Subscribed> {
        let mark = self.subscription(job)?.mark;
        let mut all = self.observed.carried.subscribed.iter();
        all.find(|s| s.job == job && s.mark == mark)
    }
}
