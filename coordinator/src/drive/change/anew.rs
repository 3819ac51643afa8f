//! A node that no longer follows is reinitialised as a whole.
//!
//! One whose replication has lost changes keeps its rows until new ones take their place, and follows by a slot of the
//! job's own from then on. One whose `init` failed has no rows that anybody relies on: its
//! `init` starts over.

use jiff::Timestamp;
use steep_protocol::message::job::{Confirmation, ExistingRows, Method};
use steep_protocol::message::tables::{Change, Reinit};
use steep_protocol::{Fault, FaultKind, JobId, NodeId, TableName};

use super::terms;
use crate::drive::Driver;
use crate::drive::orders::Start;
use crate::drive::requests::unreadable;
use crate::store::Store;

/// What an order changes.
#[derive(Debug, Clone, Copy)]
pub(super) enum Extent<'a> {
    /// Tables that it names.
    Tables,
    /// A node with all its tables.
    Node(&'a Reinit),
}

impl<'a> Extent<'a> {
    pub(super) fn of(tables: &[TableName], change: &'a Change) -> Self {
        match change {
            Change::Reinit(reinit) if tables.is_empty() => Self::Node(reinit),
            Change::Reinit(_) | Change::Add(_) | Change::Drop => Self::Tables,
        }
    }
}

impl<S: Store> Driver<S> {
    /// Starts the `init` of a node again that has failed.
    pub(super) fn start_over(
        &mut self,
        node: &NodeId,
        reinit: &Reinit,
        operator: &str,
        now: Timestamp,
    ) -> Result<JobId, Fault> {
        self.check_kept(node)?;
        self.check_source(reinit, node)?;
        let job = self.nodes.get(node).and_then(|record| record.job);
        let stored = job.map(|job| self.store.job(job)).transpose();
        let stored = stored.map_err(unreadable)?.flatten();
        let copies =
            |method| matches!(method, Method::Snapshot | Method::TwoPhase | Method::Native);
        let Some(former) = stored.filter(|stored| copies(stored.job.spec.method)) else {
            let text = "its last job did not copy it from another node, so nothing can start over";
            let hint = format!("steep-repl init {node} --from SOURCE --force copies all of it");
            return Err(Fault::new(FaultKind::Failed, text).on(node).hint(hint));
        };
        let mut spec = former.job.spec;
        spec.existing = ExistingRows::Replace;
        spec.confirmation = Confirmation::Given;
        terms(&mut spec, (reinit.parallel, reinit.max_rate))?;
        self.check_copy(&spec)?;
        self.check_spool(std::slice::from_ref(&spec))?;
        Ok(self.begin(spec, Start::Live, operator, now))
    }

    /// Refuses another source than the node's: what that writes afterwards would not come by the node's replication.
    pub(super) fn check_source(&self, reinit: &Reinit, node: &NodeId) -> Result<(), Fault> {
        let follows = self
            .nodes
            .get(node)
            .and_then(|record| record.source.as_ref());
        match (&reinit.source, follows) {
            (Some(other), Some(follows)) if other != follows => {
                let text = format!("it follows {follows}, not {other}");
                let hint = "tables are reinitialised from the node that they are followed from: leave --source out";
                Err(Fault::new(FaultKind::BadRequest, text).on(node).hint(hint))
            }
            (Some(_) | None, _) => Ok(()),
        }
    }
}
