//! Jobs that were running when the coordinator's store was lost.
//!
//! Such a job goes on if its target has a note of it which says that all rows are there, or if its source still holds the
//! very snapshot that the note names: rows of two snapshots are never mixed. Anything else is left to an operator.

use std::time::Duration;

use jiff::Timestamp;
use steep_protocol::{JobId, NodeId, NodeState};

use super::Driver;
use super::log::Note;
use crate::job::COMMANDS_PER_JOB;
use crate::job::note::JobNote;
use crate::job::time::after;
use crate::store::Store;

/// How long a node waits for the agent of its job's source before it is FAILED: agents come back one by one. Later, the
/// job still goes on.
const SOURCE_WITHIN: Duration = Duration::from_secs(25);

/// Whether a job that this coordinator does not remember can go on.
enum Adoptable {
    Yes(Box<JobNote>),
    /// Its source's agent has no session.
    Later(NodeId),
    No(String),
}

impl<S: Store> Driver<S> {
    /// Goes on with the unfinished job that a node has, or shows the node as FAILED.
    pub(super) fn take_up(&mut self, node: &NodeId, job: JobId, now: Timestamp) {
        let agent = self.registry.get(node);
        let sweeping = self.queries.iter().any(|query| query.sweeps(node));
        if sweeping || !agent.is_some_and(|agent| agent.lineage_known) {
            return;
        }
        let fails = self.state_of(node) == NodeState::Uninitialized;
        match self.adoptable(node, job) {
            Adoptable::Yes(note) => {
                self.awaited_sources.remove(node);
                self.adopt_job(*note, now);
            }
            Adoptable::No(why) if fails => self.found_unfinished(node, job, &why, now),
            Adoptable::Later(source) if fails => {
                let since = *self.awaited_sources.entry(node.clone()).or_insert(now);
                if after(since, SOURCE_WITHIN) <= now {
                    let why = format!(
                        "; it goes on by itself if the agent of {source} comes back and still holds its snapshot"
                    );
                    self.found_unfinished(node, job, &why, now);
                }
            }
            Adoptable::No(_) | Adoptable::Later(_) => {}
        }
    }

    /// Looks again at nodes whose job waits for its source.
    pub(super) fn tick_adoptions(&mut self, now: Timestamp) {
        for node in self.awaited_sources.keys().cloned().collect::<Vec<_>>() {
            if self.state_of(&node) == NodeState::Uninitialized {
                self.adopt_unknown(&node, now);
            } else {
                self.awaited_sources.remove(&node);
            }
        }
    }

    fn adoptable(&mut self, node: &NodeId, job: JobId) -> Adoptable {
        let no = |why: &str| Adoptable::No(format!("; it cannot go on: {why}"));
        let lineage = self
            .nodes
            .get(node)
            .and_then(|record| record.lineage.as_ref());
        if lineage.is_none_or(|lineage| lineage.jobs != [job]) {
            return Adoptable::No(String::new());
        }
        let target = self.registry.get(node);
        let Some(text) = target.and_then(|agent| agent.note.as_deref()) else {
            return no("it left no note that all its rows were there");
        };
        // Where something of it was removed, its source may have closed the snapshot since it registered.
        let swept = self.swept.keys().any(|(swept, _)| *swept == job);
        if swept || !matches!(self.store.job(job), Ok(None)) {
            return Adoptable::No(String::new());
        }
        let Some(note) = JobNote::parse(text) else {
            return no("the note that it left is damaged or of another version");
        };
        if note.job != job || note.spec.target != *node {
            return no("the note that it left is of another job");
        }
        let source = &note.spec.source;
        let Some(agent) = self.registry.get(source) else {
            return Adoptable::Later(source.clone());
        };
        if let Err(fault) = self.check_shape(std::slice::from_ref(&note.spec)) {
            return no(&fault.message);
        }
        if note.copied.is_some() {
            return Adoptable::Yes(Box::new(note));
        }
        let mut held = agent.registration.open_snapshots.iter();
        let held = held.find(|held| held.job == job && held.target == *node);
        let lost = agent.observed.lost_snapshots.contains(&job);
        match held {
            Some(held) if held.lsn != note.plan.lsn => {
                no(&format!("{source} holds another snapshot for it"))
            }
            Some(_) if !lost => Adoptable::Yes(Box::new(note)),
            Some(_) | None => no(&format!(
                "the agent of {source} no longer holds its snapshot"
            )),
        }
    }

    fn adopt_job(&mut self, note: JobNote, now: Timestamp) {
        let first = self.take_commands(COMMANDS_PER_JOB);
        let mut job = note.into_job(first);
        // It may have failed for want of time, and been kept for a resume.
        job.began_at = now;
        let (target, source) = (&job.spec.target, &job.spec.source);
        let has = match job.recalled {
            None => format!("{target} has its note and {source} its snapshot"),
            Some(_) => format!("{target} has its note and all its rows"),
        };
        let text = format!(
            "job {} of {}, {target} from {source}, goes on: this coordinator does not remember it, but {has}",
            job.id, job.operator
        );
        let event = Note::warn("init.adopted", text)
            .job(&job)
            .field("operator", &job.operator)
            .field("method", job.spec.method.name())
            .field("parallel", job.spec.parallel);
        let event = match job.adopted.or(job.attempt.plan) {
            Some(plan) => event.field("lsn", plan.lsn),
            None => event,
        };
        self.start(job, event, now);
    }
}
