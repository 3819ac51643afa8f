//! Tables that join or leave the replication of a node that follows, and what is removed of a job.

use steep_protocol::Fault;
use steep_protocol::message::agent::{
    EarlierEpoch, OpenSource, Outcome, PeerAddress, PrepareTarget,
};
use steep_protocol::message::job::CancelledData;
use steep_protocol::message::lineage::ChangeOrigin;
use steep_protocol::message::tables::ChangedTables;

use super::dispatch::Agent;
use crate::replication::fold;
use crate::replication::join::{self, Leaving};
use crate::snapshot;
use crate::target;
use crate::task::Task;

impl Agent {
    /// Makes one subscription of those of several epochs.
    pub(super) async fn fold(
        &self,
        task: &Task,
        source: PeerAddress,
        (origin, earlier): (ChangeOrigin, &[EarlierEpoch]),
    ) -> Result<Outcome, Fault> {
        let link = self.source_agent(source, task.job);
        let folded = fold::fold(task, &link, origin, earlier).await;
        folded.map(|()| Outcome::Done)
    }

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

    /// Opens a snapshot of tables that the target follows already.
    pub(super) async fn open_followed(
        &self,
        task: &Task,
        mut request: OpenSource,
    ) -> Result<Outcome, Fault> {
        if let Some(followed) = request.followed.take() {
            snapshot::check_followed(task, &followed, &request.filter).await?;
        }
        self.open(task, request).await
    }

    /// Makes shadow tables for the plan.
    pub(super) async fn prepare_shadows(
        &self,
        task: &Task,
        request: PrepareTarget,
        changed: &ChangedTables,
    ) -> Result<Outcome, Fault> {
        // Parts of an earlier snapshot have other numbers.
        self.reports.forget(task.job);
        let link = self.source_agent(request.source, task.job);
        let plan = link.plan().await?;
        let note = request.note.as_deref();
        target::make_shadows(task, &plan.tables, note, changed).await?;
        Ok(Outcome::Done)
    }

    /// Puts the new rows in the place of the old ones.
    pub(super) async fn swap(
        &self,
        task: &Task,
        changed: &ChangedTables,
    ) -> Result<Outcome, Fault> {
        let link = self.source_agent(changed.source.clone(), task.job);
        let swapped = Box::pin(target::swap(task, &link, changed)).await;
        swapped.map(|()| Outcome::Done)
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
