//! Tables that join or leave the replication of a node that follows, and what is removed of a job.

use steep_protocol::Fault;
use steep_protocol::message::agent::{EarlierEpoch, Outcome, PeerAddress};
use steep_protocol::message::job::CancelledData;
use steep_protocol::message::tables::ChangedTables;

use super::dispatch::Agent;
use crate::replication::join::{self, Leaving};
use crate::target;
use crate::task::Task;

impl Agent {
    /// Lets the job's tables join what the node follows by.
    pub(super) async fn join(
        &self,
        task: &Task,
        changed: &ChangedTables,
    ) -> Result<Outcome, Fault> {
        let link = self.source_agent(changed.source.clone(), task.job);
        let joined = join::join(task, &link, &changed.followed).await;
        joined.map(|()| Outcome::Done)
    }

    /// Takes tables out of what the node follows by.
    pub(super) async fn leave(
        &self,
        task: &Task,
        changed: &ChangedTables,
        why: Leaving,
    ) -> Result<Outcome, Fault> {
        let link = self.source_agent(changed.source.clone(), task.job);
        let left = join::leave(task, &link, changed, why).await;
        left.map(|()| Outcome::Done)
    }

    /// Removes what a job has made. What the node goes on following by is put back first.
    pub(super) async fn clean_up(
        &self,
        task: &Task,
        (data, earlier): (CancelledData, &[EarlierEpoch]),
        sequences: Option<PeerAddress>,
        joined: Option<&ChangedTables>,
    ) -> Result<Outcome, Fault> {
        let job = task.job;
        self.reports.forget(job);
        self.kept.forget(job);
        self.carried.forget(job);
        if let Some(changed) = joined {
            self.leave(task, changed, Leaving::Undone).await?;
        }
        let link = sequences.map(|source| self.source_agent(source, job));
        let cleaned = target::cleanup(task, data, earlier, link.as_ref());
        Box::pin(cleaned).await.map(Outcome::Warned)
    }
}
