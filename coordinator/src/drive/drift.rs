//! Whether nodes that are synchronized still follow.
//!
//! Judged from what agents observe: the slot on the source's server, the subscription on the
//! target's. A node whose slot or subscription is gone is DIVERGED, with the reason. Putting it right
//! again belongs to re-initialisation, which takes it up from that state.

use jiff::Timestamp;
use steep_protocol::{JobId, NodeId, NodeState};

use super::Driver;
use super::log::Note;
use crate::job::state::{NodeEvent, transition};
use crate::registry::Agent;
use crate::store::{Store, Write};

/// Observations in a row that must miss a slot or subscription: one may have been made while
/// PostgreSQL was just starting.
const SUSPICIONS: u8 = 3;

/// What is the case with one half of a replication.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Health {
    Good,
    /// It may be a passing state; counted.
    Suspect(String),
    /// It will not come back.
    Lost(String),
}

impl<S: Store> Driver<S> {
    /// Looks at every synchronized node for which that agent's word counts.
    pub(super) fn check_drift(&mut self, observer: &NodeId, now: Timestamp) {
        let Some(agent) = self.registry.get(observer).filter(|agent| agent.sees()) else {
            return;
        };
        let mut verdicts = Vec::new();
        for record in self.nodes.values() {
            let (NodeState::Synchronized, Some(job)) = (record.state, record.job) else {
                continue;
            };
            if record.source.as_ref() == Some(observer) {
                verdicts.push((record.id.clone(), slot_health(agent, job, observer)));
            } else if record.id == *observer {
                verdicts.push((record.id.clone(), subscription_health(agent, job)));
            }
        }
        for (node, health) in verdicts {
            match health {
                // Either half can be the bad one; each observer only clears what it counted.
                Health::Good => {
                    self.suspects.remove(&(node, observer.clone()));
                }
                Health::Lost(reason) => self.diverged(&node, &reason, now),
                Health::Suspect(reason) => {
                    let count = self
                        .suspects
                        .entry((node.clone(), observer.clone()))
                        .or_default();
                    *count += 1;
                    if *count >= SUSPICIONS {
                        self.diverged(&node, &reason, now);
                    }
                }
            }
        }
    }

    fn diverged(&mut self, node: &NodeId, reason: &str, now: Timestamp) {
        self.suspects.retain(|(suspect, _), _| suspect != node);
        let Some(record) = self.nodes.get_mut(node) else {
            return;
        };
        let from = record.state;
        let Ok(to) = transition(from, NodeEvent::Drifted) else {
            return;
        };
        record.state = to;
        record.error_message = Some(reason.to_owned());
        let record = record.clone();
        self.out.writes.push(Write::Node(record.clone()));
        let mut note = Note::warn(
            "init.state_change",
            format!("{node}: {from} to {to}: {reason}"),
        )
        .node(node)
        .field("from", from)
        .field("to", to)
        .field("reason", reason);
        note = note.of(record.source.as_ref(), record.job);
        self.log(note, now);
        self.mirror(node, now);
    }
}

fn slot_health(agent: &Agent, job: JobId, source: &NodeId) -> Health {
    match agent.slot(job) {
        None => Health::Suspect(format!("the replication slot on {source} is gone")),
        Some(slot) if slot.wal_status == "lost" => Health::Lost(format!(
            "the replication slot on {source} lost its WAL (wal_status lost): changes since then \
             cannot be replicated any more"
        )),
        Some(_) => Health::Good,
    }
}

fn subscription_health(agent: &Agent, job: JobId) -> Health {
    match agent.subscription(job) {
        None => Health::Suspect("the subscription is gone".to_owned()),
        Some(subscription) if !subscription.enabled => {
            Health::Suspect("the subscription is disabled".to_owned())
        }
        Some(_) => Health::Good,
    }
}
