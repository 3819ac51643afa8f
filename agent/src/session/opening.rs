//! `Open`: a job's snapshot is taken, found in an archive, or shared with other targets. And the sequences that belong
//! to it.

use std::path::Path;
use std::sync::Arc;

use steep_protocol::message::agent::{Export, OpenSource, Outcome, PeerAddress, SequencesFrom};
use steep_protocol::message::peer::SequenceValue;
use steep_protocol::message::snapshot::{SealedSnapshot, StoreSnapshot};
use steep_protocol::{Fault, FaultKind, JobId, Lsn, NodeId, Phase, Retry, SnapshotId};

use super::dispatch::Agent;
use crate::replication::prepared;
use crate::snapshot;
use crate::snapshot::stored::Holder;
use crate::stored;
use crate::target;
use crate::task::Task;

impl Agent {
    /// Stores everything under the snapshot that is open.
    pub(super) async fn store(
        &self,
        task: &Task,
        request: StoreSnapshot,
    ) -> Result<SealedSnapshot, Fault> {
        let open = match self.jobs.get(task.job).and_then(|j| j.open) {
            Some(Holder::Live(open)) if !open.is_lost() => open,
            Some(Holder::Live(_) | Holder::Shared(_) | Holder::Stored(_)) | None => {
                return Err(snapshot_lost(&self.node));
            }
        };
        // An operator's own place may be filled to the last byte.
        let location = Path::new(&request.store.location);
        let spool = self
            .spool
            .clone()
            .filter(|spool| location.starts_with(spool));
        let limits = (self.budget.clone(), spool);
        let sealed = stored::store(task, &open, (request, &self.keys), limits).await?;
        self.forget(task.job).await;
        Ok(sealed)
    }

    /// Opens a job's snapshot, or finds it open.
    pub(super) async fn open(&self, task: &Task, request: OpenSource) -> Result<Outcome, Fault> {
        let job = task.job;
        if let Some(at) = request.only_at {
            self.check_open(job, &request, at)?;
        }
        let (target, filter) = (request.target.clone(), request.filter.clone());
        self.jobs.admit(job, target, filter, None);
        self.jobs.locks().set_rule(job, request.yield_to_ddl);
        if let Some(open) = self.jobs.get(job).and_then(|j| j.open) {
            if !open.is_gone() && open.is_of(&request) {
                return opened(&open);
            }
            // No row has been read under it yet, or the job has given it up.
            open.close().await;
            open.left(&request.target);
        }
        if let Export::Template { snapshot } = request.export {
            prepared::copy_template(task, &request.target, snapshot).await?;
            return Ok(Outcome::Done);
        }
        if let Export::Stored(place) | Export::Files(place) = &request.export {
            let stored = stored::open(&self.reader(), place, request.parallel).await?;
            if place.verify {
                stored.check(&self.node).await?;
            }
            if matches!(request.export, Export::Stored(_)) {
                prepared::copy_template(task, &request.target, place.snapshot).await?;
            }
            return opened(&Holder::Stored(self.jobs.open_stored(job, stored)));
        }
        if let Export::Shared { snapshot } = request.export {
            return self.open_shared(task, &request.target, snapshot).await;
        }
        let kept_seconds = request.kept_seconds;
        if let Some(seconds) = kept_seconds {
            stored::record::note(task, seconds).await?;
        }
        let open = snapshot::open(task, request, Arc::clone(self.jobs.locks())).await?;
        let open = Holder::Live(Arc::new(open));
        self.jobs.open(job, open.clone());
        if kept_seconds.is_some() {
            stored::record::opened(task, open.lsn()).await?;
        }
        opened(&open)
    }

    /// Refuses a request for a snapshot at that position unless it is open for the same target.
    fn check_open(&self, job: JobId, request: &OpenSource, at: Lsn) -> Result<(), Fault> {
        let held = self.jobs.get(job).is_some_and(|entry| {
            let same = |open: &Holder| !open.is_gone() && open.is_of(request) && open.lsn() == at;
            entry.target == request.target && entry.open.as_ref().is_some_and(same)
        });
        if held {
            return Ok(());
        }
        let text =
            format!("the snapshot at {at} that the job's rows are from is not open any more");
        Err(Fault::new(FaultKind::SourceChanged, text)
            .hint("see the logs of the source and of its agent for why; then run init again")
            .on(&self.node))
    }

    /// Lets `target` take parts of a snapshot that is open, and gives it a slot at its position.
    async fn open_shared(
        &self,
        task: &Task,
        target: &NodeId,
        snapshot: SnapshotId,
    ) -> Result<Outcome, Fault> {
        let open = self.jobs.shared(snapshot);
        let open = open.ok_or_else(|| snapshot_lost(&self.node))?;
        prepared::copy_template(task, target, snapshot).await?;
        let holder = Holder::Shared(open);
        self.jobs.open(task.job, holder.clone());
        opened(&holder)
    }

    /// Sets sequences and statistics.
    pub(super) async fn finish(
        &self,
        task: &Task,
        source: PeerAddress,
        (parallel, sequences): (u8, SequencesFrom),
    ) -> Result<Outcome, Fault> {
        // The coordinator counts it to that phase.
        let phase = match &sequences {
            SequencesFrom::Source => Phase::CatchUp,
            SequencesFrom::Stored | SequencesFrom::Carried(_) => Phase::Constraints,
        };
        let sequences = self.sequences(task.job, source, sequences).await?;
        let (findings, missing) = target::finish(task, sequences, (parallel, phase)).await?;
        Ok(Outcome::Finished { findings, missing })
    }

    /// The positions that a target's sequences get.
    pub(super) async fn sequences(
        &self,
        job: JobId,
        source: PeerAddress,
        from: SequencesFrom,
    ) -> Result<Vec<SequenceValue>, Fault> {
        let link = self.source_agent(source, job);
        match from {
            SequencesFrom::Source => link.sequences().await,
            SequencesFrom::Stored => link.stored_sequences().await,
            SequencesFrom::Carried(place) => {
                let stored = self.carried.open(job, &place, &self.reader()).await?;
                stored.sequences(&self.node).await
            }
        }
    }
}

pub(super) fn snapshot_lost(node: &NodeId) -> Fault {
    Fault::new(
        FaultKind::Failed,
        "the snapshot is gone, because the session that held it has ended",
    )
    .hint("see the source's log for why the session ended")
    .retry(Retry::Backoff)
    .on(node)
}

pub(super) fn opened(open: &Holder) -> Result<Outcome, Fault> {
    let tables = u32::try_from(open.tables().len())
        .map_err(|_| Fault::new(FaultKind::Failed, "more tables than PostgreSQL can hold"))?;
    Ok(Outcome::SourceOpened {
        lsn: open.lsn(),
        tables,
        parts: open.parts(),
    })
}
