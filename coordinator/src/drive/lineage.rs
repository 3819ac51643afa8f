//! The lineage that agents report: stored with each node, combined into the graph that preflight
//! checks, and used to adopt replicas that this coordinator does not remember.

use jiff::Timestamp;
use steep_protocol::message::handover::Replication;
use steep_protocol::message::job::ReplicationNames;
use steep_protocol::message::lineage::{Lineage, MirroredNode, Sameness, SubscriptionSeen, Tool};
use steep_protocol::{JobId, NodeId, NodeState};

use super::Driver;
use super::drift::ANEW;
use super::log::Note;
use crate::job::Job;
use crate::job::lineage::{Around, Known, Sight};
use crate::job::state::{NodeEvent, transition};
use crate::job::{Closed, Stage};
use crate::store::{NodeRecord, Store, Write};

impl<S: Store> Driver<S> {
    /// Takes the lineage of an agent's node.
    pub(super) fn on_lineage(&mut self, node: &NodeId, mut lineage: Box<Lineage>, now: Timestamp) {
        if !lineage.is_bounded() {
            tracing::warn!(node_id = %node, "an agent's lineage exceeds the limits and is ignored");
            return;
        }
        let Some(agent) = self.registry.get_mut(node) else {
            return;
        };
        let first = !std::mem::replace(&mut agent.lineage_known, true);
        // Needed only while this coordinator does not know the job.
        agent.note = lineage.note.take();
        let lifted = self.lifted(node).is_some();
        let Some(record) = self.nodes.get_mut(node) else {
            return;
        };
        if record.lineage.as_ref() != Some(&lineage) {
            record.lineage = Some(lineage);
            self.out.writes.push(Write::Node(Box::new(record.clone())));
            self.tell_lifted(node, lifted, now);
        }
        let told = self.nodes.get(node);
        if let Some(lineage) = told.and_then(|record| record.lineage.clone()) {
            self.check_held_back(node, &lineage, now);
        }
        self.warn_of_aliases(node, now);
        // This lineage may show the slot of another node's subscription.
        for node in self.nodes.keys().cloned().collect::<Vec<_>>() {
            self.adopt_unknown(&node, now);
        }
        if first {
            self.mirror(node, now);
        }
    }

    /// Whether the node's mirror row may be written. For a node without a job, only after it was read:
    /// it may be all that is known of a replica.
    pub(super) fn may_mirror(&self, node: &NodeId) -> bool {
        let blank = self
            .nodes
            .get(node)
            .is_some_and(|record| record.state == NodeState::Uninitialized && record.job.is_none());
        let agent = self.registry.get(node);
        !blank || agent.is_some_and(|agent| agent.lineage_known)
    }

    /// What is known of all nodes' lineage.
    pub(super) fn around(&self) -> Around {
        let known = self.nodes.values().filter_map(|record| {
            let agent = self.registry.get(&record.id);
            Some(Known {
                node: record.id.clone(),
                lineage: record.lineage.as_deref()?.clone(),
                sight: if agent.is_some_and(|agent| agent.lineage_known) {
                    Sight::Now
                } else {
                    Sight::Before
                },
            })
        });
        Around {
            nodes: known.collect(),
            remembered: self.in_use(),
        }
    }

    /// Ids in the names of the replications that jobs, nodes and prepared slots use.
    pub(super) fn in_use(&self) -> Vec<JobId> {
        let jobs = self.jobs.values().map(|live| &live.job);
        let jobs = jobs.flat_map(Job::named);
        let following = self.nodes.values();
        let following = following.filter(|r| follows(r.state) || r.change.is_some());
        let following = following.flat_map(|record| [record.job, record.replication]);
        let prepared = self
            .nodes
            .keys()
            .filter_map(|node| self.registry.get(node)?.prepared.as_ref())
            .flatten()
            .map(|slot| slot.replication.id);
        jobs.chain(following.flatten()).chain(prepared).collect()
    }

    /// Other nodes that are the same database, if their agents have sessions.
    pub(super) fn aliases(&self, node: &NodeId) -> Vec<&NodeId> {
        let identity = |node: &NodeId| {
            self.registry
                .get(node)
                .filter(|agent| agent.lineage_known)?;
            self.nodes.get(node)?.lineage.as_ref()?.identity
        };
        let Some(own) = identity(node) else {
            return Vec::new();
        };
        let same = |other: &&NodeId| {
            *other != node
                && identity(other).is_some_and(|other| own.compare(&other) == Sameness::Same)
        };
        self.nodes.keys().filter(same).collect()
    }

    fn warn_of_aliases(&mut self, node: &NodeId, now: Timestamp) {
        let aliases: Vec<NodeId> = self.aliases(node).into_iter().cloned().collect();
        for other in aliases {
            let pair = if *node < other {
                (node.clone(), other.clone())
            } else {
                (other.clone(), node.clone())
            };
            if self.aliases_told.insert(pair) {
                let text = alias_warning(node, &other);
                let note = Note::warn("node.same_database", text).node(node);
                self.log(note.field("same_as", &other), now);
            }
        }
    }

    /// Adopts a replica, or the job of a node that is to be one, that this coordinator does not remember, because its
    /// store was lost or another coordinator made it.
    pub(super) fn adopt_unknown(&mut self, node: &NodeId, now: Timestamp) {
        let Some(record) = self.nodes.get(node) else {
            return;
        };
        let failed = record.state == NodeState::Failed;
        let blank = failed || record.state == NodeState::Uninitialized;
        if !blank || self.live_job(node).is_some() {
            return;
        }
        let Some(lineage) = record.lineage.as_deref().cloned() else {
            return;
        };
        // One that was catching up has its subscription, too.
        let forgotten = |job: &&JobId| self.is_forgotten(**job, node);
        if let Some(job) = lineage.jobs.iter().find(forgotten) {
            return self.take_up(node, *job, now);
        }
        let Some((subscription, replication)) = own_subscription(&lineage) else {
            return;
        };
        if failed || !lineage.jobs.is_empty() || !self.is_forgotten(replication, node) {
            return;
        }
        let mirrored = lineage.mirrored.as_ref();
        let source = self.publisher_of(&subscription, node).or_else(|| {
            let said = mirrored.and_then(|mirrored| mirrored.source.clone());
            said.filter(|source| self.nodes.contains_key(source))
        });
        if let Some(source) = source {
            self.adopt_replica(node, &source, replication, mirrored, now);
        }
    }

    /// Whether this coordinator does not remember that job, or has given up what it left on that node. A
    /// job that was removed from there counts as remembered, since a lineage read earlier may still list it.
    pub(super) fn is_forgotten(&mut self, job: JobId, node: &NodeId) -> bool {
        let known = self
            .nodes
            .values()
            .any(|record| record.job == Some(job) || record.replication == Some(job));
        let removed = self.swept.contains_key(&(job, node.clone()));
        if known || removed || self.jobs.contains_key(&job) {
            return false;
        }
        match self.store.job(job) {
            Ok(None) => true,
            Ok(Some(stored)) => matches!(
                stored.job.stage,
                Stage::Closed(Closed::Cancelled | Closed::Failed(_))
            ),
            Err(error) => {
                tracing::warn!(job_id = %job, %error, "the job cannot be read from the store");
                false
            }
        }
    }

    /// The other node whose database has the subscription's slot, if there is exactly one.
    fn publisher_of(&self, subscription: &SubscriptionSeen, node: &NodeId) -> Option<NodeId> {
        let slot = subscription.slot.as_ref()?;
        let has = |record: &&NodeRecord| {
            let lineage = record.lineage.as_ref();
            record.id != *node && lineage.is_some_and(|lineage| lineage.slots.contains(slot))
        };
        let mut publishers = self.nodes.values().filter(has);
        let publisher = publishers.next()?;
        publishers.next().is_none().then(|| publisher.id.clone())
    }

    /// Adopts a replica as diverged. Once observed, it becomes synchronized, if slot, subscription and
    /// columns are good and its previous coordinator called it synchronized.
    pub(super) fn adopt_replica(
        &mut self,
        node: &NodeId,
        source: &NodeId,
        replication: JobId,
        mirrored: Option<&MirroredNode>,
        now: Timestamp,
    ) {
        let Some(record) = self.nodes.get_mut(node) else {
            return;
        };
        let from = record.state;
        let Ok(to) = transition(from, NodeEvent::Adopted) else {
            return;
        };
        let job = mirrored.and_then(|mirrored| mirrored.job);
        record.state = to;
        record.source = Some(source.clone());
        record.job = Some(job.unwrap_or(replication));
        let known = record.lineage.as_deref();
        let known = known.map(super::sweep::forgotten_here).unwrap_or_default();
        let known = known.into_iter().find(|known| known.id == replication);
        record.replicates_by(&known.unwrap_or_else(|| Replication::of(replication)));
        record.lost = lasting(mirrored);
        let reason = match &record.lost {
            Some(lost) => lost.clone(),
            None => format!(
                "found on {node} and {source}: this coordinator does not remember job \
                 {replication} and has not checked the replica yet"
            ),
        };
        record.error_message = Some(reason.clone());
        let record = record.clone();
        self.out.writes.push(Write::Node(Box::new(record.clone())));
        let text = format!("{node}: from {from} to {to}: {reason}");
        let note = Note::warn("node.adopted", text)
            .node(node)
            .of(Some(source), record.job)
            .field("from", from)
            .field("to", to);
        self.log(note, now);
        self.mirror(node, now);
    }

    /// Fails a node with an unfinished job that this coordinator does not remember.
    pub(super) fn found_unfinished(
        &mut self,
        node: &NodeId,
        job: JobId,
        why: &str,
        now: Timestamp,
    ) {
        let reason = format!(
            "tables here belong to job {job}, which this coordinator does not remember or has given up{why}: \
             steep-repl init cancel --node {node} --force-cleanup removes what it created"
        );
        self.fail_without_job(node, job, reason, now);
    }

    /// Fails active nodes whose job's record cannot be read.
    pub(super) fn fail_unreadable(&mut self, now: Timestamp) {
        let jobs: Vec<(NodeId, JobId)> = self
            .nodes
            .values()
            .filter(|record| record.state.is_active())
            .filter_map(|record| Some((record.id.clone(), record.newest_job()?)))
            .filter(|(_, job)| !self.jobs.contains_key(job))
            .collect();
        for (node, job) in jobs {
            let reason = format!(
                "the coordinator's record of job {job} cannot be read: steep-repl init cancel \
                 --node {node} --force-cleanup removes what the job created"
            );
            self.fail_without_job(&node, job, reason, now);
        }
    }

    fn fail_without_job(&mut self, node: &NodeId, job: JobId, reason: String, now: Timestamp) {
        let Some(record) = self.nodes.get_mut(node) else {
            return;
        };
        let from = record.state;
        let Ok(to) = transition(from, NodeEvent::Failed) else {
            return;
        };
        record.state = to;
        record.error_message = Some(reason.clone());
        self.out.writes.push(Write::Node(Box::new(record.clone())));
        let note = Note::warn(
            "node.adopted",
            format!("{node}: from {from} to {to}: {reason}"),
        )
        .node(node)
        .of(None, Some(job))
        .field("from", from)
        .field("to", to);
        self.log(note, now);
        self.mirror(node, now);
    }
}

pub(super) fn alias_warning(node: &NodeId, other: &NodeId) -> String {
    format!(
        "{node} and {other} are the same database: correct --postgres of one of their agents, or stop \
         one of them"
    )
}

/// Whether a node in that state has a subscription made by a job.
pub(super) fn follows(state: NodeState) -> bool {
    matches!(state, NodeState::Synchronized | NodeState::Diverged)
}

pub(super) fn own_subscription(lineage: &Lineage) -> Option<(SubscriptionSeen, JobId)> {
    let mut own = lineage.subscriptions.iter();
    own.find_map(|subscription| {
        let job = ReplicationNames::parse(&subscription.name)?;
        (subscription.tool == Tool::PostgreSql).then(|| (subscription.clone(), job))
    })
}

/// Why an adopted node must be initialised again, if so.
fn lasting(mirrored: Option<&MirroredNode>) -> Option<String> {
    let unproved = "whether its rows were ever proved equal to the source's is unknown";
    match mirrored {
        Some(mirrored) => match mirrored.state {
            // Records of a job that was catching up go when it is proved complete; its subscription stays only then.
            NodeState::Synchronized | NodeState::CatchingUp => None,
            // Temporary causes are observed again.
            NodeState::Diverged => mirrored.error.clone().filter(|error| error.contains(ANEW)),
            NodeState::Uninitialized
            | NodeState::Preparing
            | NodeState::Copying
            | NodeState::Failed
            | NodeState::Reinitializing => Some(format!(
                "{unproved}: it was {} when it last heard from its coordinator",
                mirrored.state
            )),
        },
        None => Some(unproved.to_owned()),
    }
}
