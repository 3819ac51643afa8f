//! Jobs of a store that is older than its nodes, because a copy of it was put back.
//!
//! What is unfinished in such a store may have ended since, and its target may be a replica. To go on with it would open
//! its snapshot again and drop the replica's slot. So no agent counts as present for a job that was read from the store
//! until its target has said what it is.

use jiff::Timestamp;
use steep_protocol::message::lineage::Lineage;
use steep_protocol::{Fault, FaultKind, JobId, NodeId};

use super::Driver;
use super::lineage::{follows, own_subscription};
use super::log::Note;
use crate::job::state::{NodeEvent, transition};
use crate::job::{Closed, Job, Side, Stage, Step};
use crate::store::{Store, Write};

impl<S: Store> Driver<S> {
    /// Notes that a job was read from the store. One that is being removed never became a replica, and one that
    /// changes tables of a replica leaves that as it is.
    pub(super) fn hold_back(&mut self, job: &Job) {
        if matches!(job.stage, Stage::Working(_) | Stage::Kept(_)) && job.change.is_none() {
            self.held_back.insert(job.id);
        }
    }

    /// Lets the jobs go on whose target has reported its lineage, or ends them if it follows by them already.
    pub(super) fn check_held_back(&mut self, node: &NodeId, lineage: &Lineage, now: Timestamp) {
        let held = self.held_back.iter().copied();
        let held = held.filter(|id| {
            let live = self.jobs.get(id);
            live.is_none_or(|live| live.job.spec.target == *node)
        });
        for id in held.collect::<Vec<_>>() {
            match ended_since(lineage, id) {
                Some(replication) => self.put_right(id, replication, lineage, now),
                None => self.let_go_on(id, now),
            }
        }
    }

    /// The target's server does not answer. What is left to do on the source after its snapshot was opened harms no
    /// replica.
    pub(super) fn cannot_be_asked(&mut self, id: JobId, now: Timestamp) {
        let stage = self.jobs.get(&id).map(|live| &live.job.stage);
        if matches!(stage, Some(Stage::Working(step)) if *step > Step::OpenSource) {
            self.let_go_on(id, now);
        }
    }

    /// A job that is cancelled does not wait for a target that nobody can ask.
    pub(super) fn cancels_held_back(&mut self, id: JobId, now: Timestamp) {
        let target = self.jobs.get(&id).map(|live| &live.job.spec.target);
        if target.is_some_and(|target| self.registry.get(target).is_none()) {
            self.let_go_on(id, now);
        }
    }

    /// Tells a job that was held back which of its agents are there, whatever its target may be by now: it endangers its
    /// source, or is given up.
    pub(super) fn let_go_on(&mut self, id: JobId, now: Timestamp) {
        if !self.held_back.remove(&id) {
            return;
        }
        for side in Side::BOTH {
            let end = self
                .jobs
                .get(&id)
                .map(|live| side.node(&live.job.spec).clone());
            if let Some(end) = end.filter(|end| self.registry.get(end).is_some()) {
                self.note_presence(id, &end, now);
            }
        }
    }

    /// Forgets an unfinished job that ended before this store was put back, and adopts its replica.
    fn put_right(&mut self, id: JobId, replication: JobId, lineage: &Lineage, now: Timestamp) {
        self.held_back.remove(&id);
        let Some(live) = self.jobs.get_mut(&id) else {
            return;
        };
        let (target, source) = (live.job.spec.target.clone(), live.job.spec.source.clone());
        live.job.stage = Stage::Closed(Closed::Synchronized);
        let waiting = std::mem::take(&mut live.waiting);
        let text = format!(
            "job {id} is unfinished in the coordinator's store, but {target} already follows {source} by it: the store \
             is an older copy, and what happened since is missing in it"
        );
        let note = Note::warn("init.outdated", text.clone());
        self.record_end(id, None, note, now);
        let fault = Fault::new(FaultKind::Failed, text).on(&target);
        self.replied(waiting, &Err(fault));
        self.out.closed.push(id);
        if let Some(record) = self.nodes.get_mut(&target)
            && let Ok(to) = transition(record.state, NodeEvent::Cancelled)
        {
            record.state = to;
            self.out.writes.push(Write::Node(Box::new(record.clone())));
            let mirrored = lineage.mirrored.as_ref();
            self.adopt_replica(&target, &source, replication, mirrored, now);
        }
    }
}

/// The id in the names of the replication by which a node follows since that job, if it does.
fn ended_since(lineage: &Lineage, job: JobId) -> Option<JobId> {
    let mirrored = lineage.mirrored.as_ref()?;
    let (_, replication) = own_subscription(lineage)?;
    let ended = mirrored.job == Some(job) && follows(mirrored.state) && lineage.jobs.is_empty();
    ended.then_some(replication)
}
