//! An earlier epoch's tables go to the present epoch's publication, and what is left of it is dropped.

use std::time::Duration;

use steep_protocol::limits::LISTED_MAX;
use steep_protocol::message::handover::Replication;
use steep_protocol::message::peer::PeerReply;
use steep_protocol::quic::{Sender, StreamError};
use steep_protocol::{Fault, FaultKind, JobId, Retry};
use tokio_util::sync::CancellationToken;

use super::Server;
use crate::chunk::Sent;
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
        (from, into): (JobId, JobId),
        cancel: CancellationToken,
    ) -> Result<PeerReply, Fault> {
        let fault = |error: PgError| error.to_fault(&self.node);
        let task = self.epoch(job, from, cancel.clone())?;
        let into = self.epoch(job, into, cancel)?.replication.name();
        let from = task.replication.name();
        let session = task.connect("fold").await?;
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
        job: JobId,
        epoch: JobId,
        cancel: CancellationToken,
    ) -> Result<PeerReply, Fault> {
        slot::cleanup(&self.epoch(job, epoch, cancel)?, None).await?;
        Ok(PeerReply::Noted)
    }

    fn epoch(&self, job: JobId, epoch: JobId, cancel: CancellationToken) -> Result<Task, Fault> {
        if !job.has_epoch(epoch) {
            let text = format!("{epoch} is no epoch of job {job}");
            return Err(Fault::new(FaultKind::BadRequest, text).on(&self.node));
        }
        Ok(Task {
            replication: Replication::of(epoch),
            ..self.task(job, cancel)
        })
    }
}
