//! What a node lacks of its source's schema: kept with the node as its agent last said, and tried again
//! when an operator asks.

use jiff::Timestamp;
use steep_protocol::message::agent::{MissingObjects, Rebuilt, TargetCommand};
use steep_protocol::{Fault, FaultKind, JobId, NodeId};

use super::audit::AuditEntry;
use super::log::{Level, Note};
use super::query::Purpose;
use super::{Answer, Driver, Operator, Reply};
use crate::store::{Store, Write};

impl<S: Store> Driver<S> {
    /// Has a node try again what could not be made.
    pub(super) fn rebuild(
        &mut self,
        node: &NodeId,
        operator: &Operator,
        reply: Reply,
        now: Timestamp,
    ) {
        let checked = self
            .check_query(node)
            .and_then(|()| self.check_idle(node))
            .and_then(|()| self.check_rebuilding(node));
        let job = self.nodes.get(node).and_then(|record| record.job);
        let outcome = checked.as_ref().map(|()| job).map_err(Fault::to_string);
        self.audit(AuditEntry::rebuild(node), operator, outcome, now);
        match checked {
            Ok(()) => {
                let command = TargetCommand::RebuildMissing;
                self.begin_query(node, command, Purpose::Rebuild(reply), now);
            }
            Err(fault) => self.answer(reply, Err(fault)),
        }
    }

    /// A job makes and removes the same objects.
    fn check_idle(&self, node: &NodeId) -> Result<(), Fault> {
        let state = self.state_of(node);
        if !state.is_active() && self.live_job(node).is_none() {
            return Ok(());
        }
        let text = format!("a job is at work on it ({state}), or what it made is being removed");
        let hint = format!(
            "wait until it has ended, see steep-repl status {node}: it tries what is missing by itself"
        );
        Err(Fault::new(FaultKind::Failed, text).on(node).hint(hint))
    }

    /// Refuses while missing objects are being built on that node.
    pub(super) fn check_rebuilding(&self, node: &NodeId) -> Result<(), Fault> {
        if !self.queries.iter().any(|query| query.rebuilds(node)) {
            return Ok(());
        }
        let text = "missing objects are being built on it";
        let hint = "wait until steep-repl init rebuild has ended";
        Err(Fault::new(FaultKind::Failed, text).on(node).hint(hint))
    }

    /// The node has tried.
    pub(super) fn rebuilt(
        &mut self,
        node: &NodeId,
        rebuilt: Rebuilt,
        reply: Reply,
        now: Timestamp,
    ) {
        let Rebuilt { made, missing } = &rebuilt;
        let text = format!(
            "{made} missing objects were made, {} are still missing",
            missing.total
        );
        let level = match missing.total {
            0 => Level::Info,
            _ => Level::Warn,
        };
        let note = Note::new(level, "init.rebuilt", text)
            .node(node)
            .field("made", made)
            .field("missing", missing.total);
        self.log(note, now);
        self.misses(node, missing.clone());
        self.answer(reply, Ok(Answer::Rebuilt(rebuilt)));
    }

    /// A job has tried everything.
    pub(super) fn job_misses(&mut self, job: JobId, missing: MissingObjects) {
        if let Some(live) = self.jobs.get(&job) {
            let target = live.job.spec.target.clone();
            self.misses(&target, missing);
        }
    }

    fn misses(&mut self, node: &NodeId, missing: MissingObjects) {
        if let Some(record) = self.nodes.get_mut(node)
            && record.missing != missing
        {
            record.missing = missing;
            self.out.writes.push(Write::Node(Box::new(record.clone())));
        }
    }
}
