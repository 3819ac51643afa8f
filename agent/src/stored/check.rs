//! Reads a stored snapshot again, and removes one.

use std::time::Duration;

use backon::{ConstantBuilder, Retryable as _};
use steep_archive::{Archive, Keys};
use steep_protocol::limits::LISTED_MAX;
use steep_protocol::message::agent::{WorkProgress, WorkUnit};
use steep_protocol::message::snapshot::{Compared, VerifiedSnapshot};
use steep_protocol::{Fault, FaultKind, Phase, SnapshotId};
use tracing::{info, warn};

use super::{fault, locate, record};
use crate::snapshot::slot;
use crate::task::Task;

/// How often and how long to wait for readers of a snapshot that is deleted.
const LOCKED_TRIES: usize = 5;
const LOCKED_PAUSE: Duration = Duration::from_millis(200);

/// Parts read at once: as many as it takes to keep a disk and a processor busy.
const PARALLEL: usize = 4;

/// Reads everything and checks every digest and, as far as the keys go, every row count. Changes nothing.
pub(crate) async fn verify(
    task: &Task,
    location: &str,
    keys: &Keys,
) -> Result<VerifiedSnapshot, Fault> {
    let place = locate(location, &task.node)?;
    let reading = async {
        let archive = Archive::open(&place, keys).await?;
        let total = archive.manifest().totals.stored_bytes.0;
        let tell = |progress: steep_archive::Progress| {
            let work = WorkProgress {
                done: progress.stored_bytes.0,
                total,
                unit: WorkUnit::Bytes,
                current: None,
                workers: PARALLEL as u8,
            };
            task.work(Phase::Copy, work);
        };
        let verified = archive.verify(PARALLEL, tell).await?;
        let manifest = archive.manifest();
        Ok((manifest.snapshot_id, manifest.checksum, verified))
    };
    let outcome = tokio::select! {
        outcome = reading => outcome,
        () = task.cancel.cancelled() => {
            return Err(Fault::new(FaultKind::Cancelled, "cancelled").on(&task.node));
        }
    };
    let (snapshot, manifest, verified) =
        outcome.map_err(|error: steep_archive::Error| fault(&error, &task.node))?;
    let problems = verified.problems.iter().take(LISTED_MAX);
    Ok(VerifiedSnapshot {
        snapshot,
        manifest,
        parts: verified.parts,
        rows: verified.rows.0,
        bytes: verified.bytes.0,
        unread: verified.unread,
        problems: problems.map(ToString::to_string).collect(),
        problems_total: verified.problems.len() as u64,
        compared: Compared::Nothing {
            why: "the coordinator has not looked at it yet".to_owned(),
        },
    })
}

/// Removes a snapshot's slot, publication, files, if it was stored, and record. Idempotent. The slot goes
/// first: it keeps WAL. The record goes last: without it, nobody would know of files that are left.
pub(crate) async fn delete(task: &Task, location: Option<&str>) -> Result<(), Fault> {
    record::removal_begins(task).await?;
    slot::cleanup(task, None).await?;
    if let Some(location) = location {
        delete_files(task, location).await?;
    }
    record::removed(task).await
}

async fn delete_files(task: &Task, location: &str) -> Result<(), Fault> {
    let place = locate(location, &task.node)?;
    let snapshot = SnapshotId(task.replication.id.0);
    // A part may still be on its way out of it.
    let deleting = (|| Archive::delete(&place, snapshot))
        .retry(
            ConstantBuilder::new()
                .with_delay(LOCKED_PAUSE)
                .with_max_times(LOCKED_TRIES),
        )
        .when(|error| matches!(error, steep_archive::Error::Locked { .. }));
    match deleting.await {
        Ok(deleted) => {
            if deleted.strangers_count > 0 {
                warn!(%snapshot, location, count = deleted.strangers_count, "files that are not the snapshot's stay");
            }
            info!(%snapshot, location, files = deleted.files, "stored snapshot removed");
            Ok(())
        }
        // Somebody replaced it: nothing there is ours.
        Err(error @ steep_archive::Error::Occupied { .. }) => {
            warn!(%snapshot, %error, "the snapshot's files are gone, and others stay");
            Ok(())
        }
        Err(error) => Err(fault(&error, &task.node)),
    }
}
