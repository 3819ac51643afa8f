//! An earlier epoch's tables go to the present epoch's publication, and what is left of it is dropped.

use std::time::Duration;

use steep_protocol::limits::LISTED_MAX;
use steep_protocol::message::handover::Replication;
use steep_protocol::message::peer::PeerReply;
use steep_protocol::quic::{Sender, StreamError};
use steep_protocol::{Fault, FaultKind, JobId, Retry, SnapshotId};
use tokio_util::sync::CancellationToken;

use super::Server;
use crate::chunk::Sent;
use crate::node::slot_notes;
use crate::pg::PgError;
use crate::replication::fence;
use crate::snapshot::{SourceJob, epochs, slot};
use crate::task::Task;

/// How long the earlier epoch's subscription may take to confirm what came before the move. Meanwhile the present one
/// stands still.
const CONFIRM_LIMIT: Duration = Duration::from_secs(30);

impl Server {
    /// Moves tables from one epoch's publication to another's. Afterwards the subscription of the first has
    /// everything from before.
    pub(super) async fn move_tables(
        &self,
        entry: &SourceJob,
        job: JobId,
        (from, into): (Replication, JobId),
        cancel: CancellationToken,
    ) -> Result<PeerReply, Fault> {
        let fault = |error: PgError| error.to_fault(&self.node);
        let into = self.epoch(job, Replication::of(into), cancel.clone())?;
        let into = into.replication.name();
        let task = self.epoch(job, from, cancel)?;
        let from = task.replication.name();
        let session = task.connect("fold").await?;
        if !slot_notes::is_used_by(&session, &task.replication, &entry.target)
            .await
            .map_err(fault)?
        {
            return Err(self.no_epoch(job, &task.replication));
        }
        let moved = epochs::move_tables(&session, &task.cancel, (&from, &into)).await;
        let mut left = moved.map_err(fault)?;
        if left.is_empty() {
            let wide = epochs::widen(&session, &task.cancel, &into, &entry.filter).await;
            wide.map_err(fault)?;
        }
        session.close().await;
        let confirmed = tokio::time::timeout(CONFIRM_LIMIT, fence::await_fence(&task)).await;
        confirmed.map_err(|_elapsed| {
            let text = format!("the subscription {from} is behind its source");
            Fault::new(FaultKind::Failed, text)
                .retry(Retry::Backoff)
                .on(&self.node)
        })??;
        left.truncate(LISTED_MAX);
        Ok(PeerReply::Moved { left })
    }

    /// A part of a snapshot that was lost: what has that number now is another one.
    pub(super) async fn refuse_old(
        &self,
        sender: &mut Sender,
    ) -> Result<Result<Sent, Fault>, StreamError> {
        let text = "the part belongs to a snapshot that is gone";
        let fault = Fault::new(FaultKind::Failed, text).on(&self.node);
        sender.send(&PeerReply::Fault(fault.clone())).await?;
        Ok(Err(fault))
    }

    /// Drops the publication and slot of an epoch without tables.
    pub(super) async fn drop_epoch(
        &self,
        entry: &SourceJob,
        job: JobId,
        epoch: Replication,
        cancel: CancellationToken,
    ) -> Result<PeerReply, Fault> {
        let task = self.epoch(job, epoch, cancel)?;
        let session = task.connect("fold").await?;
        let used = slot_notes::is_used_by(&session, &task.replication, &entry.target).await;
        session.close().await;
        // An earlier try may have dropped them.
        if used.map_err(|error| error.to_fault(&self.node))? {
            slot::cleanup(&task, None).await?;
        }
        Ok(PeerReply::Noted)
    }

    /// The first epoch may be a snapshot that had a life of its own, with a slot for this job.
    fn epoch(
        &self,
        job: JobId,
        epoch: Replication,
        cancel: CancellationToken,
    ) -> Result<Task, Fault> {
        let own = job.has_epoch(epoch.id) && epoch == Replication::of(epoch.id);
        if !own && epoch != Replication::of_snapshot(SnapshotId(epoch.id.0), job) {
            return Err(self.no_epoch(job, &epoch));
        }
        Ok(Task {
            replication: epoch,
            ..self.task(job, cancel)
        })
    }

    fn no_epoch(&self, job: JobId, epoch: &Replication) -> Fault {
        let text = format!("{} is no epoch of job {job}", epoch.slot);
        Fault::new(FaultKind::BadRequest, text).on(&self.node)
    }
}
