//! Deletes a snapshot, and nothing else.

use steep_protocol::SnapshotId;

use crate::error::{Error, Problem};
use crate::location::Location;
use crate::manifest::{MANIFEST_MAX, Manifest};
use crate::name::FileName;
use crate::place::{Place, Purpose};
use crate::read::Archive;
use crate::write;

/// Names deleted at once.
const BATCH: usize = 1_000;

/// What [`Archive::delete`] did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Deleted {
    /// Files that were deleted.
    pub files: u64,
    /// Some of the files that are not the snapshot's and stay.
    pub strangers: Vec<String>,
    /// How many of them there are.
    pub strangers_count: u64,
}

impl Archive {
    /// Deletes a snapshot, complete or not: the manifest first, so that the rest never looks complete, and
    /// the claim last, so that a deletion that was interrupted can go on. Files with other names stay.
    /// A place without a snapshot is no error: it may have been deleted before.
    ///
    /// # Errors
    /// [`Error::Occupied`] if the place holds another snapshot, [`Error::Problem`] if it cannot be told
    /// which, [`Error::Locked`] while it is written or read, or the place's own error.
    pub async fn delete(location: &Location, snapshot: SnapshotId) -> Result<Deleted, Error> {
        match Place::open(location, Purpose::Delete).await {
            Ok(place) => Self::delete_in(&place, snapshot).await,
            Err(Error::Incomplete { .. }) => Ok(Deleted::default()),
            Err(error) => Err(error),
        }
    }

    pub(crate) async fn delete_in(place: &Place, snapshot: SnapshotId) -> Result<Deleted, Error> {
        let listing = place.list().await?;
        let mut deleted = Deleted {
            files: 0,
            strangers: listing.strangers,
            strangers_count: listing.strangers_count,
        };
        if !listing.files.is_empty() {
            match owner(place).await? {
                Some(found) if found == snapshot => {}
                found => {
                    return Err(Error::Occupied {
                        place: place.location().clone(),
                        found,
                        why: String::new(),
                    });
                }
            }
        }
        let mut names: Vec<_> = listing.files.into_iter().map(|(name, _)| name).collect();
        deleted.files = names.len() as u64;
        names.retain(|name| !matches!(name, FileName::Manifest | FileName::Claim));
        place.remove(vec![FileName::Manifest]).await?;
        for batch in names.chunks(BATCH) {
            place.remove(batch.to_vec()).await?;
        }
        place.remove_unfinished().await?;
        place.remove(vec![FileName::Claim]).await?;
        place.remove_folders().await?;
        Ok(deleted)
    }
}

/// Whose files are in a place.
async fn owner(place: &Place) -> Result<Option<SnapshotId>, Error> {
    if let Some(claim) = write::claim(place).await? {
        return Ok(Some(claim.snapshot_id));
    }
    let Some(bytes) = place.read(FileName::Manifest, MANIFEST_MAX).await? else {
        return Ok(None);
    };
    let manifest = Manifest::decode(&bytes);
    let bad = |why| Problem::damaged(FileName::Manifest, why).at(place.location());
    Ok(Some(manifest.map_err(bad)?.snapshot_id))
}
