//! Whether synchronized nodes still follow their sources.
//!
//! Judged by what agents observe: slot and publication on the source, the subscription on the target,
//! the replicated tables (`carried`) and a digest over their columns on both. If one is bad, the node
//! is DIVERGED, with every known cause; if all are good again, it is SYNCHRONIZED again. A slot,
//! publication or subscription that was lost is a permanent cause, stored with the node: created
//! again it looks good, but changes are missing. If the digests differ, the two ends are compared
//! (`query`) to find the differences, and `columns` decides whether they are drift.

use jiff::Timestamp;
use steep_protocol::message::schema::{SchemaDifference, SchemaReview};
use steep_protocol::{Fault, JobId, NodeId, NodeState};
use steep_schema::named;

use super::Driver;
use super::carried;
use super::columns::{self, Differing, Digests, Judgement};
use super::following::{self, Cause, Following, Health, Lasts};
use super::lineage::follows;
use super::log::Note;
use crate::job::apply_health::ApplyHealth;
use crate::job::standing::Word;
use crate::job::state::{NodeEvent, transition};
use crate::registry::Agent;
use crate::store::{Accepted, Columns, NodeRecord, Store, Write};

/// Maximum number of differences named in a reason.
const NAMED: usize = 5;

/// Ends the reason of a permanent cause. Never changes: `lineage` recognises stored reasons by it.
pub(super) const ANEW: &str = "changes may be missing, so the node must be initialised anew";

/// News if the agent that sent this observation is the one that observes the part.
fn word(observer: &NodeId, own: &NodeId) -> Word {
    if observer == own {
        Word::News
    } else {
        Word::Known
    }
}

impl<S: Store> Driver<S> {
    /// Checks the replications that the agent observes one end of.
    pub(super) fn check_drift(&mut self, observer: &NodeId, now: Timestamp) {
        if !self
            .registry
            .get(observer)
            .is_some_and(Agent::postgres_answers)
        {
            return;
        }
        let concerned = self.nodes.values().filter(|record| {
            let own = record.id == *observer || record.source.as_ref() == Some(observer);
            // One that is being detached is its job's.
            follows(record.state) && own && self.live_job(&record.id).is_none()
        });
        let concerned: Vec<NodeRecord> = concerned.cloned().collect();
        for record in concerned {
            if let (Some(job), Some(source)) = (record.replication(), record.source.as_ref()) {
                self.check_node(&record, source, job, observer, now);
            }
        }
    }

    fn check_node(
        &mut self,
        record: &NodeRecord,
        source: &NodeId,
        job: JobId,
        observer: &NodeId,
        now: Timestamp,
    ) {
        // Removed while it is updated, since the checks below borrow the driver.
        let known = self.following.remove(&record.id);
        let known = known.filter(|following| following.job == job);
        let mut following = known.unwrap_or_else(|| Following::new(job));
        if record.id == *observer
            && let Some(agent) = self.registry.get(&record.id)
            && let Some(seen) = agent.subscription(job)
        {
            following.apply.observe(seen, now);
        }
        let reachability = self.reachability_health(&record.id, source);
        following.reachability.take(reachability, Word::News);
        let slot = self.slot_health(record, source);
        following.slot.take(slot, word(observer, source));
        if source == observer && self.is_slot_moved(&record.id, source, job, &mut following) {
            let why = format!(
                "the replication slot on {source} was moved while the subscription was disabled: {ANEW}"
            );
            following
                .slot
                .take(Health::Bad(Cause::permanent(why)), Word::News);
        }
        let publication = self.publication_health(source, job);
        following
            .publication
            .take(publication, word(observer, source));
        let carried = self.carried_health(record, source, job, &mut following.watched, now);
        following.carried.take(carried, Word::News);
        let subscription = self.subscription_health(record, job, following.apply.health(now));
        following
            .subscription
            .take(subscription, word(observer, &record.id));
        if record.lost.is_none() {
            let columns = self.column_health(record, source, job, &mut following.differing, now);
            following.columns.take(columns, Word::News);
        }
        self.following.insert(record.id.clone(), following);
        self.settle(&record.id, now);
    }

    fn slot_health(&self, record: &NodeRecord, source: &NodeId) -> Health {
        let Some(agent) = self
            .registry
            .get(source)
            .filter(|agent| agent.postgres_answers())
        else {
            return Health::Unknown;
        };
        match agent.slot_of(record) {
            None => Health::Suspect(Cause::permanent(format!(
                "the replication slot on {source} is gone: {ANEW}"
            ))),
            Some(slot) if slot.wal_status == "lost" => Health::Bad(Cause::permanent(format!(
                "the replication slot on {source} lost its WAL (wal_status lost): {ANEW}"
            ))),
            Some(_) => Health::Good,
        }
    }

    fn subscription_health(&self, record: &NodeRecord, job: JobId, apply: ApplyHealth) -> Health {
        let node = &record.id;
        let Some(agent) = self
            .registry
            .get(node)
            .filter(|agent| agent.postgres_answers())
        else {
            return Health::Unknown;
        };
        match agent.subscription(job) {
            None => Health::Suspect(Cause::permanent(format!(
                "the subscription is gone: {ANEW}"
            ))),
            Some(subscription) => {
                if let Some(wrong) = carried::wiring(subscription.wiring) {
                    return wrong;
                }
                if !subscription.enabled {
                    let why = "the subscription is disabled".to_owned();
                    return Health::Suspect(Cause::temporary(why));
                }
                following::health(apply, subscription.trouble.as_deref(), &record.risks, node)
            }
        }
    }

    /// Whether both ends have the same columns. If the digests differ, starts a comparison.
    fn column_health(
        &mut self,
        record: &NodeRecord,
        source: &NodeId,
        job: JobId,
        differing: &mut Option<Differing>,
        now: Timestamp,
    ) -> Health {
        let digest = |node: &NodeId| {
            let agent = self
                .registry
                .get(node)
                .filter(|agent| agent.postgres_answers())?;
            agent.digest(job).map(str::to_owned)
        };
        let (Some(there), Some(here)) = (digest(source), digest(&record.id)) else {
            return Health::Unknown;
        };
        if there == here {
            *differing = None;
            // Accepted differences are gone; should one come back, it is a new one.
            self.accept(&record.id, Columns::Equal);
            return Health::Good;
        }
        let digests = Digests {
            source: there,
            node: here,
        };
        let differing = differing.get_or_insert_with(|| Differing::new(digests.clone(), now));
        differing.observe(digests, now);
        if differing.is_due(now) && self.compare_columns(record, source, job, now) {
            differing.asked(now);
        }
        match differing.judgement() {
            None => Health::Unknown,
            Some(Judgement::Accepted) => Health::Good,
            Some(Judgement::Drifted(differences, unlisted)) => Health::Bad(Cause::temporary(
                drifted(differences, *unlisted, source, &record.id),
            )),
        }
    }

    fn accept(&mut self, node: &NodeId, columns: Columns) {
        if let Some(record) = self.nodes.get_mut(node)
            && record.columns != columns
        {
            record.columns = columns;
            self.out.writes.push(Write::Node(Box::new(record.clone())));
        }
    }

    fn compare_columns(
        &mut self,
        record: &NodeRecord,
        source: &NodeId,
        job: JobId,
        now: Timestamp,
    ) -> bool {
        let stored = record.job.map(|job| self.store.job(job)).transpose();
        match stored.map(Option::flatten) {
            Ok(stored) => {
                // The filter of an adopted replica is unknown; the comparison covers what it replicates.
                let filter = stored.map_or_else(Default::default, |stored| stored.job.spec.filter);
                self.compare_with_source(&record.id, source, filter, job, now)
            }
            Err(error) => {
                tracing::warn!(node_id = %record.id, %error, "the job's tables cannot be read from the store");
                false
            }
        }
    }

    /// Takes the result of a comparison.
    pub(super) fn columns_compared(
        &mut self,
        node: &NodeId,
        source: &NodeId,
        job: JobId,
        review: &SchemaReview,
        now: Timestamp,
    ) {
        let record = self
            .nodes
            .get(node)
            .filter(|r| r.replication() == Some(job));
        let Some(record) = record.filter(|record| follows(record.state)).cloned() else {
            return;
        };
        let accepted = self.accepted(&record, review);
        let found = columns::weigh(review, accepted.as_ref());
        let grace = self.drift_grace;
        let Some(following) = self.following.get_mut(node).filter(|f| f.job == job) else {
            return;
        };
        let Some(differing) = following.differing.as_mut() else {
            // The digests have become equal.
            return;
        };
        differing.compared(found, now, grace);
        match differing.judgement() {
            None => return,
            Some(Judgement::Accepted) => {
                following.columns.take(Health::Good, Word::News);
                // Differences that were repaired are no longer accepted.
                let still = columns::still(accepted.unwrap_or_default(), review);
                self.accept(node, Columns::Accepted(still));
            }
            Some(Judgement::Drifted(differences, unlisted)) => {
                let why = drifted(differences, *unlisted, source, node);
                let cause = Health::Bad(Cause::temporary(why.clone()));
                following.columns.take(cause, Word::News);
                let known = record.error_message.as_deref();
                if !known.is_some_and(|known| known.contains(&why)) {
                    let note = Note::warn("schema.mismatch_detected", format!("{node}: {why}"))
                        .node(node)
                        .of(Some(source), Some(job));
                    self.log(note, now);
                }
            }
        }
        self.settle(node, now);
    }

    /// Differences that are not drift. The first comparison after a job accepts those that its schema
    /// mode allows.
    fn accepted(&mut self, record: &NodeRecord, review: &SchemaReview) -> Option<Accepted> {
        match &record.columns {
            Columns::Equal => None,
            Columns::Accepted(accepted) => Some(accepted.clone()),
            Columns::AsFirstSeen => {
                let stored = self.store.job(record.job?).ok().flatten()?;
                let mode = stored.job.spec.schema_mode;
                let accepted = columns::first_seen(review, mode);
                self.accept(&record.id, Columns::Accepted(accepted.clone()));
                Some(accepted)
            }
        }
    }

    /// A comparison failed; it is retried.
    pub(super) fn comparison_failed(node: &NodeId, fault: &Fault) {
        tracing::warn!(node_id = %node, error = %fault, "the schema cannot be compared with the source's");
    }

    /// Updates a node's state and its reason from the health of its parts.
    pub(super) fn settle(&mut self, node: &NodeId, now: Timestamp) {
        let (Some(following), Some(record)) = (self.following.get(node), self.nodes.get_mut(node))
        else {
            return;
        };
        let parts = following.parts();
        let causes: Vec<&Cause> = parts.iter().filter_map(|part| part.cause()).collect();
        let lasting = causes.iter().find(|cause| cause.lasts == Lasts::ForGood);
        if let Some(lasting) = lasting.filter(|_| record.lost.is_none()) {
            record.lost = Some(lasting.why.clone());
            self.out.writes.push(Write::Node(Box::new(record.clone())));
        }
        let lost = record.lost.as_deref();
        let rows = record
            .verify
            .as_ref()
            .and_then(|regular| regular.differ.as_deref());
        let others = causes.iter().map(|cause| cause.why.as_str()).chain(rows);
        let all: Vec<&str> = lost
            .into_iter()
            .chain(others.filter(|why| Some(*why) != lost))
            .collect();
        let (sound, decided) = (following.is_sound(), following.is_decided());
        let reason = all.join("; and ");
        let said = record.error_message.clone().unwrap_or_default();
        let news = all.iter().any(|why| !said.contains(why)) || decided;
        match record.state {
            NodeState::Synchronized if !all.is_empty() => {
                self.follow_changed(node, NodeEvent::Drifted, Some(&reason), now);
            }
            NodeState::Diverged if all.is_empty() && sound => {
                self.follow_changed(node, NodeEvent::Recovered, None, now);
            }
            NodeState::Diverged if !all.is_empty() && reason != said && news => {
                self.reason_changed(node, &reason, now);
            }
            _ => {}
        }
    }

    /// Changes the reason of a diverged node.
    fn reason_changed(&mut self, node: &NodeId, reason: &str, now: Timestamp) {
        let Some(record) = self.nodes.get_mut(node) else {
            return;
        };
        record.error_message = Some(reason.to_owned());
        let record = record.clone();
        self.out.writes.push(Write::Node(Box::new(record.clone())));
        let text = format!("{node}: still {}: {reason}", record.state);
        let note = Note::warn("init.reason_changed", text).field("reason", reason);
        let note = note.node(node).of(record.source.as_ref(), record.job);
        self.log(note, now);
        self.mirror(node, now);
    }

    pub(super) fn follow_changed(
        &mut self,
        node: &NodeId,
        event: NodeEvent,
        reason: Option<&str>,
        now: Timestamp,
    ) {
        let Some(record) = self.nodes.get_mut(node) else {
            return;
        };
        let from = record.state;
        let Ok(to) = transition(from, event) else {
            return;
        };
        record.state = to;
        record.error_message = reason.map(str::to_owned);
        let record = record.clone();
        self.out.writes.push(Write::Node(Box::new(record.clone())));
        let change = format!("{node}: from {from} to {to}");
        let note = match reason {
            Some(reason) => Note::warn("init.state_change", format!("{change}: {reason}"))
                .field("reason", reason),
            None => Note::info(
                "init.state_change",
                format!(
                    "{change}: slot, publication, subscription, columns and rows are good again"
                ),
            ),
        };
        let note = note.node(node).field("from", from).field("to", to);
        self.log(note.of(record.source.as_ref(), record.job), now);
        self.mirror(node, now);
    }
}

fn drifted(
    differences: &[SchemaDifference],
    unlisted: u64,
    source: &NodeId,
    node: &NodeId,
) -> String {
    let names: Vec<String> = differences
        .iter()
        .take(NAMED)
        .map(|d| named(d, source.as_str(), node.as_str()))
        .collect();
    let more = (differences.len() - names.len()) as u64 + unlisted;
    let mut reason = format!("the schema differs from the source's: {}", names.join("; "));
    if more > 0 {
        reason.push_str(&format!("; and {more} more"));
    }
    reason
}
