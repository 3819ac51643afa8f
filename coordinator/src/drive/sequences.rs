//! Keeps the sequences of nodes that follow up with their sources': logical replication does not carry them.
//!
//! Every so often, as the node's agent is set, a query admits the node at its source for one question and has it
//! raise what is behind. In memory only: after a restart of the coordinator, the next one comes within an interval.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash as _, Hasher as _};
use std::time::Duration;

use jiff::Timestamp;
use steep_protocol::message::agent::SequencesRaised;
use steep_protocol::message::api::SequencesView;
use steep_protocol::{Fault, JobId, NodeId, NodeState};

use super::Driver;
use super::log::Note;
use super::schema::After;
use crate::job::time::after;
use crate::registry::Agent;
use crate::store::Store;

/// Queries that are begun in one second: a restarted coordinator does not ask all nodes at once.
const BEGUN_MAX: usize = 8;

/// The sequences of one node.
#[derive(Debug)]
pub(super) struct Kept {
    /// The replication that they follow by; another one starts afresh.
    replication: JobId,
    due: Timestamp,
    pub(super) view: SequencesView,
}

impl Kept {
    /// The first time is drawn from the node's name, so that nodes do not all ask in the same second.
    fn new(node: &NodeId, replication: JobId, interval: Duration, now: Timestamp) -> Self {
        let mut hasher = DefaultHasher::new();
        node.hash(&mut hasher);
        let spread = hasher.finish() % (interval.as_millis() as u64).max(1);
        Self {
            replication,
            due: after(now, Duration::from_millis(spread)),
            view: SequencesView::default(),
        }
    }

    /// Takes a result; returns the warning, if it is a new one, or that there is none any more.
    fn take(&mut self, warning: Option<String>) -> Option<Option<String>> {
        let news = warning != self.view.warning;
        self.view.warning.clone_from(&warning);
        news.then_some(warning)
    }
}

impl<S: Store> Driver<S> {
    /// Begins what is due.
    pub(super) fn tick_sequences(&mut self, now: Timestamp) {
        let mut begun = 0;
        let following = self.nodes.values().filter(|record| {
            record.state == NodeState::Synchronized && self.live_job(&record.id).is_none()
        });
        let following: Vec<_> = following
            .filter_map(|record| {
                let agent = self
                    .registry
                    .get(&record.id)
                    .filter(|a| a.postgres_answers())?;
                let interval = agent.registration.sequence_interval_seconds;
                let source = record.source.clone()?;
                if self.are_merged(&record.id, &source) {
                    // Set apart.
                    return None;
                }
                let known = self
                    .registry
                    .get(&source)
                    .is_some_and(Agent::postgres_answers);
                let id = (
                    record.id.clone(),
                    source,
                    record.job?,
                    record.replication()?,
                );
                (interval > 0 && known).then(|| (id, Duration::from_secs(interval.into())))
            })
            .collect();
        self.sequences.retain(|node, kept| {
            let record = self.nodes.get(node);
            record.is_some_and(|record| record.replication() == Some(kept.replication))
        });
        for ((node, source, job, replication), interval) in following {
            let kept = self.sequences.entry(node.clone());
            let kept = kept.or_insert_with(|| {
                let mut kept = Kept::new(&node, replication, interval, now);
                // The job has set them at its end.
                let completed = self.nodes[&node].init_completed_at;
                kept.view.set_at = completed.filter(|at| after(*at, interval) > now);
                kept
            });
            if kept.due > now || begun == BEGUN_MAX {
                continue;
            }
            kept.due = after(now, interval);
            begun += usize::from(self.raise_sequences(&node, &source, (job, replication), now));
        }
    }

    /// Begins to raise a node's sequences. Returns whether that was begun.
    fn raise_sequences(
        &mut self,
        node: &NodeId,
        source: &NodeId,
        (job, replication): (JobId, JobId),
        now: Timestamp,
    ) -> bool {
        let busy = self.queries.iter().any(|query| query.raises(node));
        if busy {
            return false;
        }
        // The filter of an adopted replica is unknown: it follows what is published.
        let filter = match self.store.job(job) {
            Ok(stored) => stored.map_or_else(Default::default, |stored| stored.job.spec.filter),
            Err(error) => {
                tracing::warn!(node_id = %node, %error, "the job's tables cannot be read from the store");
                return false;
            }
        };
        let after = After::Sequences { replication };
        self.begin_admitted((node, source, filter), after, now)
    }

    /// A node's sequences are set, as far as that was possible.
    pub(super) fn sequences_raised(
        &mut self,
        node: &NodeId,
        raised: SequencesRaised,
        now: Timestamp,
    ) {
        if let Some(kept) = self.sequences.get_mut(node) {
            kept.view.set_at = Some(now);
            kept.view.followed = raised.followed;
        }
        let all = raised.problems.into_iter().chain(raised.left_alone);
        let problems = all.collect::<Vec<_>>().join("; ");
        let warning = (!problems.is_empty())
            .then(|| format!("some sequences are not set to the source's: {problems}"));
        self.sequences_news(node, warning, now);
    }

    /// They could not be set; that is tried again.
    pub(super) fn sequences_failed(&mut self, node: &NodeId, fault: &Fault, now: Timestamp) {
        let set_at = self.sequences.get(node).and_then(|kept| kept.view.set_at);
        let since = set_at.map_or_else(String::new, |at| format!(" since {at:.0}"));
        let warning = format!("its sequences have not been set to the source's{since}: {fault}");
        self.sequences_news(node, Some(warning), now);
    }

    /// Logs a warning once, and its end.
    fn sequences_news(&mut self, node: &NodeId, warning: Option<String>, now: Timestamp) {
        let Some(kept) = self.sequences.get_mut(node) else {
            return;
        };
        let Some(news) = kept.take(warning) else {
            return;
        };
        let note = match news {
            Some(warning) => Note::warn("sequences.not_set", format!("{node}: {warning}")),
            None => Note::info(
                "sequences.set",
                format!("{node}: its sequences are set to the source's again"),
            ),
        };
        let source = self
            .nodes
            .get(node)
            .and_then(|record| record.source.clone());
        self.log(note.node(node).of(source.as_ref(), None), now);
        self.out.observed = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_warning_is_news_once_and_so_is_its_end() {
        let now = Timestamp::UNIX_EPOCH;
        let node = NodeId::parse("node_b").unwrap();
        let interval = Duration::from_secs(60);
        let mut kept = Kept::new(&node, JobId(1), interval, now);
        assert!(kept.due >= now && kept.due < after(now, interval));
        let warning = || Some("the source is away".to_owned());
        assert_eq!(kept.take(None), None);
        assert_eq!(kept.take(warning()), Some(warning()));
        assert_eq!(kept.take(warning()), None);
        assert_eq!(kept.take(None), Some(None));
    }
}
