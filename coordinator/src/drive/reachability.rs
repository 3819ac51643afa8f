//! Which nodes are unreachable, because their agent or PostgreSQL is. A replica is synchronized only
//! while both its own server and its source's can be observed (G4). If one is unreachable for longer
//! than the grace time, the replica is diverged until both are observed again and good.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use steep_protocol::{NodeId, NodeState};

use super::Driver;
use super::detach::waits;
use super::following::{Cause, Following, Health};
use super::lineage::{alias_warning, follows};
use super::new_tables::not_followed;
use crate::job::standing::Word;
use crate::job::time::after;
use crate::registry::Agent;
use crate::store::{NodeRecord, Store, Write};

/// By default, how long a synchronized node may be unreachable: enough to restart its machine.
pub const UNSEEN_GRACE: Duration = Duration::from_secs(60);

/// Shorter outages are not shown, such as a restart of the agent or a slow observation.
pub(super) const WORTH_TELLING: Duration = Duration::from_secs(5);

impl<S: Store> Driver<S> {
    /// Updates which nodes are unreachable, and the state of replicas.
    pub(super) fn tick_reachability(&mut self, now: Timestamp) {
        let mut news = Vec::new();
        for record in self.nodes.values_mut() {
            let reachable = self
                .registry
                .get(&record.id)
                .is_some_and(Agent::postgres_answers);
            match (reachable, self.unseen.get(&record.id)) {
                (true, Some(_)) => {
                    self.unseen.remove(&record.id);
                }
                (false, None) => {
                    // The stored time counts if it was unreachable before the coordinator stopped.
                    let since = record.unseen_since.unwrap_or(now);
                    self.unseen.insert(record.id.clone(), since);
                }
                (true, None) | (false, Some(_)) => {}
            }
            let since = self.unseen.get(&record.id);
            let lasting = since.filter(|since| after(**since, self.unseen_grace) <= now);
            if record.unseen_since.as_ref() != lasting {
                record.unseen_since = lasting.copied();
                news.push(Write::Node(Box::new(record.clone())));
            }
        }
        self.out.writes.extend(news);
        let following = self
            .nodes
            .values()
            .filter(|record| follows(record.state) && self.live_job(&record.id).is_none());
        for record in following.cloned().collect::<Vec<_>>() {
            self.check_reachability(&record, now);
        }
    }

    fn check_reachability(&mut self, record: &NodeRecord, now: Timestamp) {
        let (Some(job), Some(source)) = (record.replication(), record.source.as_ref()) else {
            return;
        };
        let health = self.reachability_health(&record.id, source);
        if !matches!(health, Health::Bad(_)) {
            // `check_drift` takes it together with the other parts.
            return;
        }
        let following = self.following.entry(record.id.clone());
        let following = following.or_insert_with(|| Following::new(job));
        if following.job != job {
            *following = Following::new(job);
        }
        following.reachability.take(health, Word::News);
        self.settle(&record.id, now);
    }

    /// Whether both ends of a replication can be observed.
    pub(super) fn reachability_health(&self, node: &NodeId, source: &NodeId) -> Health {
        for end in [node, source] {
            match self.nodes.get(end).map(|record| record.unseen_since) {
                Some(None) if self.unseen.contains_key(end) => return Health::Unknown,
                Some(None) => {}
                Some(Some(since)) => {
                    return Health::Bad(Cause::temporary(format!(
                        "{end} has been unreachable since {since:.0}, so whether {node} still \
                         follows {source} is unknown"
                    )));
                }
                None => {
                    return Health::Bad(Cause::temporary(format!(
                        "{end} is no longer a node of this cluster, so whether {node} still follows \
                         it is unknown"
                    )));
                }
            }
        }
        Health::Good
    }

    /// Since when a node is unreachable, if for longer than [`WORTH_TELLING`].
    pub(super) fn unseen_since(&self, node: &NodeId) -> Option<Timestamp> {
        let since = *self.unseen.get(node)?;
        (after(since, WORTH_TELLING) <= self.ticked).then_some(since)
    }

    /// How long a node has been unreachable.
    pub(super) fn unseen_for(&self, node: &NodeId, now: Timestamp) -> Duration {
        let since = self.unseen.get(node).copied();
        let unseen = since.map_or(SignedDuration::ZERO, |since| now.duration_since(since));
        Duration::try_from(unseen).unwrap_or_default()
    }

    /// A node's warnings, shown with its state.
    pub(super) fn warnings(&self, record: &NodeRecord) -> Vec<String> {
        let aliases = self.aliases(&record.id);
        let mut warnings: Vec<String> = aliases
            .into_iter()
            .map(|other| alias_warning(&record.id, other))
            .collect();
        if let Some(since) = self.unseen_since(&record.id)
            && (follows(record.state) || self.is_source(&record.id))
        {
            let why = self
                .registry
                .get(&record.id)
                .map_or("its agent has no session", |agent| {
                    match &agent.observed.postgres {
                        Some(Err(why)) => why.as_str(),
                        Some(Ok(_)) | None => "its agent has not observed PostgreSQL yet",
                    }
                });
            let give_up = if follows(record.state) {
                format!(
                    "; if it is gone for good, give it up with steep-repl init cancel --node {0} \
                     --force-cleanup, or steep-repl nodes remove {0}",
                    record.id
                )
            } else {
                String::new()
            };
            warnings.push(format!(
                "it has been unreachable since {since:.0}: {why}{give_up}"
            ));
        }
        warnings.extend(self.unknown_warnings(&record.id));
        warnings.extend(self.lifted_warning(&record.id));
        if record.state == NodeState::Synchronized
            && let Some(kept) = self.sequences.get(&record.id)
        {
            warnings.extend(kept.view.warning.clone());
        }
        warnings.extend(not_followed(record));
        warnings.extend(record.left.iter().map(waits));
        warnings.extend(self.merge_warning(record));
        warnings
    }

    fn is_source(&self, node: &NodeId) -> bool {
        let mut all = self.nodes.values();
        all.any(|record| follows(record.state) && record.source.as_ref() == Some(node))
    }
}
