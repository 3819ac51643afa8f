//! An earlier epoch's tables go to the present epoch's publication, and what is left of it is dropped.

use std::time::Duration;

use steep_protocol::limits::LISTED_MAX;
use steep_protocol::message::handover::Replication;
use steep_protocol::message::peer::PeerReply;
use steep_protocol::message::tables::Followed;
use steep_protocol::quic::{Sender, StreamError};
use steep_protocol::{Fault, FaultKind, JobId, Lsn, Retry};
use tokio_util::sync::CancellationToken;

use super::Server;
use crate::chunk::Sent;
use crate::node::slot_notes;
use crate::pg::{PgError, Session};
use crate::replication::fence;
use crate::snapshot::{SourceJob, epochs, joining, slot};
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
        let followed = entry.followed.as_ref();
        let followed = followed.filter(|followed| followed.replication.id == into);
        let (into, filter) = match followed {
            Some(followed) => (
                self.followed(job, followed, cancel.clone()),
                &followed.filter,
            ),
            None => {
                let present = self.epoch(job, Replication::of(into), cancel.clone())?;
                (present, &entry.filter)
            }
        };
        let task = self.epoch(job, from, cancel)?;
        let session = task.connect("fold").await?;
        for task in [&task, &into] {
            if !is_used_by(&session, task, entry).await.map_err(fault)? {
                return Err(self.no_epoch(job, &task.replication));
            }
        }
        let (from, into) = (task.replication.name(), into.replication.name());
        let joined = match followed {
            Some(followed) => {
                Some(joining::before(&session, &task, followed, (&from, &entry.filter)).await?)
            }
            None => None,
        };
        let moved = epochs::move_tables(&session, &task.cancel, (&from, &into)).await;
        let mut left = moved.map_err(fault)?;
        if let Some(wanted) = joined {
            let kept = joining::after(&session, &task.cancel, &into, wanted).await;
            kept.map_err(fault)?;
        }
        if left.is_empty() {
            let wide = epochs::widen(&session, &task.cancel, &into, filter).await;
            wide.map_err(fault)?;
        }
        session.give_back().await;
        self.confirmed(&task).await?;
        left.truncate(LISTED_MAX);
        Ok(PeerReply::Moved { left })
    }

    /// Takes the job's tables out of the publication that the target follows.
    pub(super) async fn leave_tables(
        &self,
        entry: &SourceJob,
        job: JobId,
        cancel: CancellationToken,
    ) -> Result<PeerReply, Fault> {
        let Some(followed) = &entry.followed else {
            let text = format!("job {job} changes no replication");
            return Err(Fault::new(FaultKind::BadRequest, text).on(&self.node));
        };
        let task = self.followed(job, followed, cancel);
        let session = task.connect("leave").await?;
        let used = is_used_by(&session, &task, entry).await;
        if !used.map_err(|error| error.to_fault(&self.node))? {
            return Err(self.no_epoch(job, &task.replication));
        }
        joining::leave(&session, &task, followed, &entry.filter).await?;
        session.give_back().await;
        Ok(PeerReply::Noted)
    }

    fn followed(&self, job: JobId, followed: &Followed, cancel: CancellationToken) -> Task {
        Task {
            replication: followed.replication.clone(),
            ..self.task(job, cancel)
        }
    }

    /// A fence that the subscription of an earlier epoch has passed. It lies behind the slot of the present epoch, which
    /// waited for all transactions that had begun before the earlier epochs' publications were as they are now.
    pub(super) async fn pass_fence(
        &self,
        entry: &SourceJob,
        (job, epoch): (JobId, Replication),
        cancel: CancellationToken,
    ) -> Result<PeerReply, Fault> {
        let task = self.epoch(job, epoch, cancel)?;
        let session = task.connect("fold").await?;
        let used = is_used_by(&session, &task, entry).await;
        session.give_back().await;
        if !used.map_err(|error| error.to_fault(&self.node))? {
            return Err(self.no_epoch(job, &task.replication));
        }
        let lsn = self.confirmed(&task).await?;
        Ok(PeerReply::Passed { lsn })
    }

    /// Waits until the epoch's subscription has everything from before now.
    async fn confirmed(&self, task: &Task) -> Result<Lsn, Fault> {
        let confirmed = tokio::time::timeout(CONFIRM_LIMIT, fence::await_fence(task)).await;
        confirmed.map_err(|_elapsed| {
            let name = task.replication.name();
            let text = format!("the subscription {name} is behind its source");
            Fault::new(FaultKind::Failed, text)
                .retry(Retry::Backoff)
                .on(&self.node)
        })?
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
        let fault = |error: PgError| error.to_fault(&self.node);
        let used = is_used_by(&session, &task, entry).await.map_err(fault)?;
        let name = task.replication.name();
        let full = epochs::has_tables(&session, &name).await.map_err(fault)?;
        session.give_back().await;
        if used && full {
            let text = format!("the publication {name} still has tables");
            return Err(Fault::new(FaultKind::Failed, text)
                .hint("its subscription was dropped by hand: changes may be missing on the target, so run init again with --force")
                .on(&self.node));
        }
        // An earlier try may have dropped them.
        if used {
            slot::cleanup(&task, None).await?;
        }
        Ok(PeerReply::Noted)
    }

    /// The first epoch may have a slot that was made for this job from a snapshot with a life of its own.
    fn epoch(
        &self,
        job: JobId,
        epoch: Replication,
        cancel: CancellationToken,
    ) -> Result<Task, Fault> {
        let own = job.has_epoch(epoch.id) && epoch == Replication::of(epoch.id);
        let made = epoch.id == job && epoch.shared().is_some();
        if !own && !made {
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

/// Whether the epoch is that target's.
async fn is_used_by(session: &Session, task: &Task, entry: &SourceJob) -> Result<bool, PgError> {
    let noted = slot::noted(&task.replication);
    slot_notes::is_used_by(session, &noted, &entry.target).await
}
