//! What has been written, in memory.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use steep_protocol::PartNo;

use crate::manifest::{Manifest, StoredPart, Sum};

/// Lengths and digests of what was written of one snapshot, over all attempts to write it. Clones share them.
///
/// The files themselves prove nothing: whoever can write to the place can replace a part and its index by others that
/// fit together, and a manifest, too. This is in memory, where they cannot write.
#[derive(Debug, Clone, Default)]
pub struct Finished(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    parts: BTreeMap<PartNo, StoredPart>,
    /// The checksum of the last manifest that may have been written.
    manifest: Option<Sum>,
}

impl Finished {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn add(&self, part: StoredPart) {
        self.inner().parts.insert(part.no, part);
    }

    pub(super) fn remove(&self, no: PartNo) {
        self.inner().parts.remove(&no);
    }

    pub(super) fn replace(&self, parts: &[StoredPart]) {
        self.inner().parts = parts.iter().map(|part| (part.no, *part)).collect();
    }

    pub(super) fn parts(&self) -> Vec<StoredPart> {
        self.inner().parts.values().copied().collect()
    }

    /// Before it is written: its answer may be lost.
    pub(super) fn sealing(&self, manifest: &Manifest) {
        self.inner().manifest = manifest.checksum;
    }

    /// Whether that manifest is the one that was written.
    #[must_use]
    pub fn is_sealed_by(&self, manifest: &Manifest) -> bool {
        manifest.checksum.is_some() && self.inner().manifest == manifest.checksum
    }
}
