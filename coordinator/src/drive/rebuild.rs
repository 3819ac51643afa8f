//! Objects of the source's schema that could not be created on a node: stored with the node, and
//! retried by `init rebuild`.

use jiff::Timestamp;
use steep_protocol::message::agent::{MissingObjects, Rebuilt, TargetCommand};
use steep_protocol::message::api::ApiReply;
use steep_protocol::{Fault, FaultKind, JobId, NodeId};

use super::log::{Level, Note};
use super::query::Purpose;
use super::{Driver, Ticket};
use crate::store::{Store, Write};

impl<S: Store> Driver<S> {
    /// Starts a retry of a node's missing objects.
    pub(super) fn rebuild(
        &mut self,
        node: &NodeId,
        ticket: Ticket,
        now: Timestamp,
    ) -> Result<Option<JobId>, Fault> {
        self.check_query(node)?;
        self.check_idle(node)?;
        self.check_rebuilding(node)?;
        let command = TargetCommand::RebuildMissing;
        self.begin_query(node, command, Purpose::Rebuild(ticket), now);
        Ok(self.nodes.get(node).and_then(|record| record.job))
    }

    /// Refuses while a job, which creates and removes the same objects, is running.
    fn check_idle(&self, node: &NodeId) -> Result<(), Fault> {
        let state = self.state_of(node);
        if !state.is_active() && self.live_job(node).is_none() {
            return Ok(());
        }
        let text = format!("a job is running on it ({state}) or being cleaned up");
        let hint = format!(
            "wait until it has ended, see steep-repl status {node}: it retries missing objects by itself"
        );
        Err(Fault::new(FaultKind::Failed, text).on(node).hint(hint))
    }

    /// Refuses while another rebuild is running on that node.
    pub(super) fn check_rebuilding(&self, node: &NodeId) -> Result<(), Fault> {
        if !self.queries.iter().any(|query| query.rebuilds(node)) {
            return Ok(());
        }
        let text = "missing objects are being built on it";
        let hint = "wait until steep-repl init rebuild has ended";
        Err(Fault::new(FaultKind::Failed, text).on(node).hint(hint))
    }

    /// A rebuild ended.
    pub(super) fn rebuilt(
        &mut self,
        node: &NodeId,
        rebuilt: Rebuilt,
        ticket: Ticket,
        now: Timestamp,
    ) {
        let Rebuilt { made, missing } = &rebuilt;
        let text = format!(
            "{made} missing objects were created, {} are still missing",
            missing.total
        );
        let level = if missing.total == 0 {
            Level::Info
        } else {
            Level::Warn
        };
        let note = Note::new(level, "init.rebuilt", text)
            .node(node)
            .field("made", made)
            .field("missing", missing.total);
        self.log(note, now);
        self.misses(node, missing.clone());
        self.answer(ticket, Ok(ApiReply::Rebuilt(rebuilt).into()));
    }

    /// Stores the objects that a job could not create.
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
