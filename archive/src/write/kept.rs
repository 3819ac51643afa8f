//! Finds the parts that an earlier attempt has finished, and that nobody has touched since.

use std::collections::{BTreeSet, HashMap};

use futures_util::{StreamExt, TryStreamExt, stream};

use crate::error::Error;
use crate::manifest::StoredPart;
use crate::name::{FileName, Names};
use crate::place::Place;

/// Those of `finished` whose files are what was written. All other files of parts are removed, whatever they say of
/// themselves.
pub(super) async fn find(
    place: &Place,
    names: Names,
    finished: Vec<StoredPart>,
    parallel: usize,
) -> Result<Vec<StoredPart>, Error> {
    let listing = place.list().await?.files.into_iter();
    let of_parts = listing.filter(|(name, _)| match name {
        FileName::Data(..) | FileName::Index(..) => true,
        FileName::Claim | FileName::Manifest | FileName::Schema(_) | FileName::Sequences(_) => {
            false
        }
    });
    let lengths: HashMap<FileName, u64> = of_parts.collect();
    let checks: Vec<_> = finished
        .into_iter()
        .filter(|part| {
            lengths.get(&names.data(part.no)) == Some(&part.stored_bytes.0)
                && lengths.get(&names.index(part.no)) == Some(&part.stored_index_bytes().0)
        })
        .map(|part| compare(place, names, part))
        .collect();
    let compared: Vec<Option<StoredPart>> = stream::iter(checks)
        .buffer_unordered(parallel.max(1))
        .try_collect()
        .await?;
    let mut kept: Vec<StoredPart> = compared.into_iter().flatten().collect();
    kept.sort_by_key(|part| part.no);
    let mut others: BTreeSet<FileName> = lengths.into_keys().collect();
    for part in &kept {
        others.remove(&names.data(part.no));
        others.remove(&names.index(part.no));
    }
    place.remove(others.into_iter().collect()).await?;
    Ok(kept)
}

/// The part, if its files have the digests that were written.
async fn compare(
    place: &Place,
    names: Names,
    part: StoredPart,
) -> Result<Option<StoredPart>, Error> {
    let digested = async {
        let data = place.digests(names.data(part.no), part.stored_bytes.0);
        let data = data.await?;
        let index = place.digests(names.index(part.no), part.stored_index_bytes().0);
        Ok((data, index.await?))
    };
    match digested.await {
        Ok((data, index)) => {
            let same = (data.sha256, data.blake3, index.blake3)
                == (part.sha256, part.blake3, part.index_blake3);
            Ok(same.then_some(part))
        }
        // It was listed with another length than it has now.
        Err(Error::Problem { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}
