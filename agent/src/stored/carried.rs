//! Stored snapshots that were carried to where this agent can read them: as a target it loads from them
//! itself.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use steep_archive::Archive;
use steep_protocol::message::snapshot::StoredPlace;
use steep_protocol::{Fault, FaultKind, JobId, NodeId, SnapshotId};

use super::{fault, locate, open};
use crate::mutex::lock;
use crate::snapshot::stored::StoredSnapshot;

/// Those of this agent's jobs, open until the job ends.
#[derive(Debug, Default)]
pub(crate) struct Carried(Mutex<HashMap<JobId, Arc<StoredSnapshot>>>);

impl Carried {
    /// The job's snapshot: opened and looked through, unless this process has.
    pub(crate) async fn open(
        &self,
        job: JobId,
        place: &StoredPlace,
        node: &NodeId,
    ) -> Result<Arc<StoredSnapshot>, Fault> {
        if let Some(open) = self.get(job) {
            return Ok(open);
        }
        // This node alone reads it.
        let opened = Arc::new(open(node, place, 1).await?);
        if place.verify {
            opened.check(node).await?;
        }
        lock(&self.0).insert(job, Arc::clone(&opened));
        Ok(opened)
    }

    pub(crate) fn get(&self, job: JobId) -> Option<Arc<StoredSnapshot>> {
        lock(&self.0).get(&job).cloned()
    }

    /// Idempotent.
    pub(crate) fn forget(&self, job: JobId) {
        lock(&self.0).remove(&job);
    }
}

/// How long a look at a place may take: a bucket without credentials asks for them at length.
const LOOK: Duration = Duration::from_secs(10);

/// Which snapshot is at a place, according to its manifest.
pub(crate) async fn find(node: &NodeId, location: &str) -> Result<SnapshotId, Fault> {
    let place = locate(location, node)?;
    let Ok(archive) = tokio::time::timeout(LOOK, Archive::open(&place)).await else {
        let text = format!("{location} does not answer within {} s", LOOK.as_secs());
        return Err(Fault::new(FaultKind::Failed, text).on(node));
    };
    let archive = archive.map_err(|error| fault(&error, node))?;
    Ok(archive.manifest().snapshot_id)
}
