//! Whether nodes that are synchronized still follow.
//!
//! Judged from what agents observe: the slot on the source's server, the subscription on the target's,
//! and a digest over the columns of what is replicated on both. Where one is bad the node is DIVERGED,
//! with the reason; where all are good again it is SYNCHRONIZED again. Digests only tell that columns
//! differ; then the two schemas are compared (`errand`), which names what differs and makes sure that
//! it does at this moment.

use std::time::Duration;

use jiff::Timestamp;
use steep_protocol::message::schema::{SchemaReview, Subject};
use steep_protocol::{Fault, JobId, NodeId, NodeState};
use steep_schema::named;

use super::Driver;
use super::log::Note;
use crate::job::machine::after;
use crate::job::state::{NodeEvent, transition};
use crate::registry::Agent;
use crate::store::{Columns, NodeRecord, Store, Write};

/// Observations in a row that must miss a slot or subscription: one may have been made while
/// PostgreSQL was just starting.
const SUSPICIONS: u8 = 3;

/// New errors of a subscription, without a calm between them, that count as broken. Workers start again
/// after five seconds (`wal_retrieve_retry_interval`), so this is some fifteen seconds of errors.
const STRIKES: u8 = 3;

/// Observations without a new error after which a subscription is taken to work again: three starts of
/// its worker.
const CALM: u16 = 15;

/// Observations without an apply worker that count as broken, where a server does not count errors.
const ABSENT: u16 = 60;

/// When schemas are compared again whose digests still differ.
const COMPARE_AGAIN: Duration = Duration::from_secs(60);

/// Differences named in a reason.
const NAMED: usize = 5;

/// What is the case with one part of a replication.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Health {
    Good,
    /// Nothing can be said at this moment.
    Unknown,
    /// It may be a passing state; counted.
    Suspect(String),
    /// It will not come back by itself.
    Lost(String),
}

/// How a subscription's worker fares, from one observation to the next.
#[derive(Debug, Clone, Default)]
pub(super) struct Applying {
    /// Errors at the last observation; nothing before the first.
    errors: Option<u64>,
    strikes: u8,
    calm: u16,
    absent: u16,
}

impl Applying {
    fn observe(&mut self, errors: u64, running: bool) {
        match self.errors.replace(errors) {
            // Counters begin anew where statistics are reset.
            Some(before) if errors > before => {
                self.strikes = self.strikes.saturating_add(1);
                self.calm = 0;
            }
            Some(_) | None => {
                self.calm = self.calm.saturating_add(1);
                if self.calm >= CALM {
                    self.strikes = 0;
                }
            }
        }
        self.absent = if running {
            0
        } else {
            self.absent.saturating_add(1)
        };
    }

    fn health(&self, node: &NodeId) -> Health {
        let log = format!("the reason is in the log of PostgreSQL on {node}");
        if self.strikes >= STRIKES {
            let errors = self.errors.unwrap_or(0);
            return Health::Lost(format!(
                "the subscription keeps failing ({errors} errors): {log}"
            ));
        }
        if self.absent >= ABSENT {
            return Health::Lost(format!(
                "the subscription has had no worker for a minute: {log}"
            ));
        }
        if self.strikes > 0 || self.absent > 0 {
            // Neither broken nor sound.
            return Health::Unknown;
        }
        Health::Good
    }
}

impl<S: Store> Driver<S> {
    /// Looks at every node that follows and for which that agent's word counts.
    pub(super) fn check_drift(&mut self, observer: &NodeId, now: Timestamp) {
        if !self.registry.get(observer).is_some_and(Agent::sees) {
            return;
        }
        let concerned = self.nodes.values().filter(|record| {
            let follows = matches!(record.state, NodeState::Synchronized | NodeState::Diverged);
            let own = record.id == *observer || record.source.as_ref() == Some(observer);
            follows && own
        });
        let concerned: Vec<NodeRecord> = concerned.cloned().collect();
        for record in concerned {
            self.check_node(&record, observer, now);
        }
    }

    fn check_node(&mut self, record: &NodeRecord, observer: &NodeId, now: Timestamp) {
        let (Some(job), Some(source)) = (record.job, record.source.as_ref()) else {
            return;
        };
        if record.id == *observer {
            self.note_applying(record, job);
        }
        let slot = self.slot_health(source, job);
        let subscription = self.subscription_health(&record.id, job);
        let seen = if observer == source {
            slot.clone()
        } else {
            subscription.clone()
        };
        if let Some(reason) = self.weigh(record, observer, seen) {
            return self.diverged(&record.id, &reason, now);
        }
        let columns = self.column_health(record, source, job, now);
        let sound = [slot, subscription, columns]
            .iter()
            .all(|health| *health == Health::Good);
        if sound && record.state == NodeState::Diverged {
            self.recovered(&record.id, now);
        }
    }

    /// Why the node is lost, if what one observer sees says so. Each observer only clears what it
    /// counted, since either half can be the bad one.
    fn weigh(&mut self, record: &NodeRecord, observer: &NodeId, seen: Health) -> Option<String> {
        let key = (record.id.clone(), observer.clone());
        match seen {
            Health::Good => {
                self.suspects.remove(&key);
                None
            }
            Health::Unknown => None,
            Health::Lost(reason) => Some(reason),
            Health::Suspect(reason) => {
                let count = self.suspects.entry(key).or_default();
                *count = count.saturating_add(1);
                (*count >= SUSPICIONS).then_some(reason)
            }
        }
    }

    fn note_applying(&mut self, record: &NodeRecord, job: JobId) {
        let agent = self.registry.get(&record.id);
        let Some(subscription) = agent.and_then(|agent| agent.subscription(job)) else {
            return;
        };
        let (errors, running) = (subscription.apply_errors, subscription.running);
        let applying = self.failing.entry(record.id.clone()).or_default();
        applying.observe(errors, running);
    }

    fn slot_health(&self, source: &NodeId, job: JobId) -> Health {
        let Some(agent) = self.registry.get(source).filter(|agent| agent.sees()) else {
            return Health::Unknown;
        };
        match agent.slot(job) {
            None => Health::Suspect(format!("the replication slot on {source} is gone")),
            Some(slot) if slot.wal_status == "lost" => Health::Lost(format!(
                "the replication slot on {source} lost its WAL (wal_status lost): changes since \
                 then cannot be replicated any more"
            )),
            Some(_) => Health::Good,
        }
    }

    fn subscription_health(&self, node: &NodeId, job: JobId) -> Health {
        let Some(agent) = self.registry.get(node).filter(|agent| agent.sees()) else {
            return Health::Unknown;
        };
        match agent.subscription(job) {
            None => Health::Suspect("the subscription is gone".to_owned()),
            Some(subscription) if !subscription.enabled => {
                Health::Suspect("the subscription is disabled".to_owned())
            }
            Some(_) => self
                .failing
                .get(node)
                .map_or(Health::Unknown, |applying| applying.health(node)),
        }
    }

    /// Whether both ends have the columns they should. Where they seem not to, the schemas are
    /// compared, at once for a new pair of digests and then now and then.
    fn column_health(
        &mut self,
        record: &NodeRecord,
        source: &NodeId,
        job: JobId,
        now: Timestamp,
    ) -> Health {
        let digest = |node: &NodeId| {
            let agent = self.registry.get(node).filter(|agent| agent.sees())?;
            agent.digest(job).map(str::to_owned)
        };
        let (Some(there), Some(here)) = (digest(source), digest(&record.id)) else {
            return Health::Unknown;
        };
        if there == here {
            self.compared.remove(&record.id);
            return Health::Good;
        }
        match &record.columns {
            Columns::As { source, node } if *source == there && *node == here => {
                self.compared.remove(&record.id);
                return Health::Good;
            }
            Columns::AsFirstSeen => {
                self.accept_columns(&record.id, there, here);
                return Health::Good;
            }
            Columns::Equal | Columns::As { .. } => {}
        }
        let pair = (there, here);
        let due = self
            .compared
            .get(&record.id)
            .is_none_or(|(compared, again)| *compared != pair || *again <= now);
        if record.state == NodeState::Synchronized && due {
            self.compare_columns(record, source, job, pair, now);
        }
        Health::Unknown
    }

    fn accept_columns(&mut self, node: &NodeId, source: String, own: String) {
        if let Some(record) = self.nodes.get_mut(node) {
            record.columns = Columns::As { source, node: own };
            self.out.writes.push(Write::Node(record.clone()));
        }
    }

    fn compare_columns(
        &mut self,
        record: &NodeRecord,
        source: &NodeId,
        job: JobId,
        pair: (String, String),
        now: Timestamp,
    ) {
        let filter = match self.store.job(job) {
            Ok(Some(stored)) => stored.job.spec.filter,
            Ok(None) => return,
            Err(error) => {
                tracing::warn!(node_id = %record.id, %error, "the job's tables cannot be looked up");
                return;
            }
        };
        if self.compare_with_source(&record.id, source, filter, now) {
            let again = after(now, COMPARE_AGAIN);
            self.compared.insert(record.id.clone(), (pair, again));
        }
    }

    /// The two schemas were compared.
    pub(super) fn columns_compared(
        &mut self,
        node: &NodeId,
        source: &NodeId,
        review: &SchemaReview,
        now: Timestamp,
    ) {
        // What does not touch columns is no drift: a replica may have indexes and keys of its own.
        let drifted = review
            .differences
            .iter()
            .filter(|d| matches!(d.subject, Subject::Table | Subject::Column));
        let drifted: Vec<String> = drifted
            .map(|d| named(d, source.as_str(), node.as_str()))
            .collect();
        if drifted.is_empty() {
            // One end's digest was older than the other's.
            return;
        }
        let mut reason = format!(
            "the schema is no longer the source's: {}",
            drifted[..drifted.len().min(NAMED)].join("; ")
        );
        if drifted.len() > NAMED {
            reason.push_str(&format!("; and {} more", drifted.len() - NAMED));
        }
        let record = self.nodes.get(node);
        if record.is_some_and(|record| record.state == NodeState::Synchronized) {
            let job = record.and_then(|record| record.job);
            let note = Note::warn("schema.mismatch_detected", format!("{node}: {reason}"))
                .node(node)
                .of(Some(source), job);
            self.log(note, now);
            self.diverged(node, &reason, now);
        }
    }

    /// They could not be compared; that is tried again.
    pub(super) fn comparison_failed(node: &NodeId, fault: &Fault) {
        tracing::warn!(node_id = %node, error = %fault, "the schema cannot be compared with the source's");
    }

    fn diverged(&mut self, node: &NodeId, reason: &str, now: Timestamp) {
        self.suspects.retain(|(suspect, _), _| suspect != node);
        self.follow_changed(node, NodeEvent::Drifted, Some(reason), now);
    }

    fn recovered(&mut self, node: &NodeId, now: Timestamp) {
        self.follow_changed(node, NodeEvent::Recovered, None, now);
    }

    fn follow_changed(
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
        self.out.writes.push(Write::Node(record.clone()));
        let text = match reason {
            Some(reason) => format!("{node}: {from} to {to}: {reason}"),
            None => {
                format!("{node}: {from} to {to}: slot, subscription and columns are sound again")
            }
        };
        let mut note = match reason {
            Some(reason) => Note::warn("init.state_change", text).field("reason", reason),
            None => Note::info("init.state_change", text),
        };
        note = note.node(node).field("from", from).field("to", to);
        note = note.of(record.source.as_ref(), record.job);
        self.log(note, now);
        self.mirror(node, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_keeps_failing_is_broken_and_one_that_is_calm_again_is_not() {
        let node = NodeId::parse("b").unwrap();
        let mut applying = Applying::default();
        applying.observe(7, true);
        assert_eq!(
            applying.health(&node),
            Health::Good,
            "errors of before do not count"
        );
        for errors in 8..10 {
            applying.observe(errors, false);
            assert_eq!(applying.health(&node), Health::Unknown);
        }
        applying.observe(10, false);
        assert!(matches!(applying.health(&node), Health::Lost(_)));
        for _ in 0..CALM {
            assert!(matches!(applying.health(&node), Health::Lost(_)));
            applying.observe(10, true);
        }
        assert_eq!(applying.health(&node), Health::Good);
    }

    #[test]
    fn a_worker_that_never_comes_is_broken_after_a_minute() {
        let node = NodeId::parse("b").unwrap();
        let mut applying = Applying::default();
        for _ in 0..ABSENT {
            assert!(!matches!(applying.health(&node), Health::Lost(_)));
            applying.observe(0, false);
        }
        assert!(matches!(applying.health(&node), Health::Lost(_)));
    }
}
