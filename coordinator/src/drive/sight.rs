//! Since when nobody can look at a node. One that follows is synchronized only while both its own
//! server and its source's can be looked at (G4): longer than a grace without, and it is diverged until
//! both are seen again and sound.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use steep_protocol::NodeId;

use super::Driver;
use super::following::{Cause, Following, Health};
use super::lineage::{alias_warning, follows};
use crate::job::standing::Word;
use crate::job::time::after;
use crate::registry::Agent;
use crate::store::{NodeRecord, Store, Write};

/// How long a node may be out of sight and still be called synchronized, unless told otherwise: a
/// restart of its machine takes no longer.
pub const UNSEEN_GRACE: Duration = Duration::from_secs(60);

/// What is shorter is not worth a word: an agent that is started again, a look that took too long.
pub(super) const WORTH_TELLING: Duration = Duration::from_secs(5);

impl<S: Store> Driver<S> {
    /// Notes which nodes can be looked at, and what follows from it for those that follow.
    pub(super) fn tick_sight(&mut self, now: Timestamp) {
        let mut news = Vec::new();
        for record in self.nodes.values_mut() {
            let sees = self.registry.get(&record.id).is_some_and(Agent::sees);
            match (sees, self.unseen.get(&record.id)) {
                (true, Some(_)) => {
                    self.unseen.remove(&record.id);
                }
                (false, None) => {
                    // Of one that was out of sight when the coordinator stopped, it is as long ago.
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
        let following = self.nodes.values().filter(|record| follows(record.state));
        for record in following.cloned().collect::<Vec<_>>() {
            self.check_sight(&record, now);
        }
    }

    fn check_sight(&mut self, record: &NodeRecord, now: Timestamp) {
        let (Some(job), Some(source)) = (record.replication(), record.source.as_ref()) else {
            return;
        };
        let health = self.sight_health(&record.id, source);
        if !matches!(health, Health::Bad(_)) {
            // With a next look at the rest, it is taken together with it.
            return;
        }
        let following = self.following.entry(record.id.clone());
        let following = following.or_insert_with(|| Following::new(job));
        if following.job != job {
            *following = Following::new(job);
        }
        following.sight.take(health, Word::News);
        self.settle(&record.id, now);
    }

    /// Whether somebody can look at both ends of a replication.
    pub(super) fn sight_health(&self, node: &NodeId, source: &NodeId) -> Health {
        for end in [node, source] {
            let record = self.nodes.get(end);
            let unseen = record.map(|record| record.unseen_since);
            match unseen {
                Some(None) if self.unseen.contains_key(end) => return Health::Unknown,
                Some(None) => {}
                Some(Some(since)) => {
                    return Health::Bad(Cause::passing(format!(
                        "nobody can look at {end} since {since:.0}: whether {node} still follows \
                         {source} is unknown"
                    )));
                }
                None => {
                    return Health::Bad(Cause::passing(format!(
                        "{end} is not a node of this cluster any more: whether {node} still follows \
                         it is unknown"
                    )));
                }
            }
        }
        Health::Good
    }

    /// Since when nobody can look at a node, where that is worth telling.
    pub(super) fn unseen_since(&self, node: &NodeId) -> Option<Timestamp> {
        let since = *self.unseen.get(node)?;
        (after(since, WORTH_TELLING) <= self.ticked).then_some(since)
    }

    /// For how long nobody has been able to look at a node.
    pub(super) fn unseen_for(&self, node: &NodeId, now: Timestamp) -> Duration {
        let since = self.unseen.get(node).copied();
        let unseen = since.map_or(SignedDuration::ZERO, |since| now.duration_since(since));
        Duration::try_from(unseen).unwrap_or_default()
    }

    /// What a person should know about a node beside its state.
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
                        Some(Ok(_)) | None => "its agent has not looked at PostgreSQL yet",
                    }
                });
            let give_up = if follows(record.state) {
                format!(
                    "; should it be gone for good, give it up with steep-repl init cancel --node {0} \
                     --force-cleanup, or steep-repl nodes remove {0}",
                    record.id
                )
            } else {
                String::new()
            };
            warnings.push(format!(
                "how it fares is unknown since {since:.0}: {why}{give_up}"
            ));
        }
        warnings
    }

    fn is_source(&self, node: &NodeId) -> bool {
        let mut all = self.nodes.values();
        all.any(|record| follows(record.state) && record.source.as_ref() == Some(node))
    }
}
