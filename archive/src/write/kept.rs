//! Finds the whole parts of an earlier process by reading them again.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::{StreamExt, TryStreamExt, stream};
use steep_protocol::frame::{FrameHead, HEAD_LENGTH};
use steep_protocol::{ByteCount, PartNo};

use crate::blocking::blocking;
use crate::content::{ContentReader, Digesting};
use crate::error::Error;
use crate::index::IndexSums;
use crate::keys::Keys;
use crate::manifest::StoredPart;
use crate::name::{Cipher, FileName, Names};
use crate::place::Place;

/// The lengths of a part's files, where they exist.
#[derive(Default)]
struct Files {
    data: Option<u64>,
    index: Option<u64>,
    other: Vec<FileName>,
}

/// The whole parts, by number. Everything else of parts is removed. Encrypted ones are whole only if `keys` read them.
pub(super) async fn find(
    place: &Place,
    (names, keys): (Names, &Keys),
    parallel: usize,
) -> Result<Vec<StoredPart>, Error> {
    let mut found: BTreeMap<PartNo, Files> = BTreeMap::new();
    for (name, length) in place.list().await?.files {
        let (no, is_ours) = match name {
            FileName::Data(no, ..) => (no, name == names.data(no)),
            FileName::Index(no, _) => (no, name == names.index(no)),
            FileName::Claim | FileName::Manifest | FileName::Schema(_) | FileName::Sequences(_) => {
                continue;
            }
        };
        let files = found.entry(no).or_default();
        match name {
            _ if !is_ours => files.other.push(name),
            FileName::Index(..) => files.index = Some(length),
            _ => files.data = Some(length),
        }
    }
    let mut broken: BTreeSet<FileName> = BTreeSet::new();
    let mut checks = Vec::new();
    for (no, files) in found {
        broken.extend(files.other);
        match (files.data, files.index) {
            (Some(data), Some(index)) => {
                let of = (names, keys.clone());
                checks.push(read_again(place.clone(), no, of, (data, index)));
            }
            (Some(_), None) => drop(broken.insert(names.data(no))),
            (None, Some(_)) => drop(broken.insert(names.index(no))),
            (None, None) => {}
        }
    }
    let checked: Vec<(PartNo, Option<StoredPart>)> = stream::iter(checks)
        .buffer_unordered(parallel.max(1))
        .try_collect()
        .await?;
    let mut kept = Vec::new();
    for (no, part) in checked {
        match part {
            Some(part) => kept.push(part),
            None => broken.extend([names.index(no), names.data(no)]),
        }
    }
    // Indexes come last in the order of names, but a part without data is no more whole than one without
    // an index.
    place.remove(broken.into_iter().collect()).await?;
    kept.sort_by_key(|part| part.no);
    Ok(kept)
}

/// The part, if it is what its index says.
async fn read_again(
    place: Place,
    no: PartNo,
    of: (Names, Keys),
    lengths: (u64, u64),
) -> Result<(PartNo, Option<StoredPart>), Error> {
    match check(place, no, of, lengths).await {
        Ok(part) => Ok((no, part)),
        // Shorter or other than it was listed, or it cannot be decrypted.
        Err(Error::Problem { .. }) => Ok((no, None)),
        Err(error) => Err(error),
    }
}

async fn check(
    place: Place,
    no: PartNo,
    (names, keys): (Names, Keys),
    (length, index_length): (u64, u64),
) -> Result<Option<StoredPart>, Error> {
    let how = (&keys, Digesting::Yes);
    let mut heads = ContentReader::new(&place, names.index(no), index_length, how);
    let mut data = ContentReader::new(&place, names.data(no), length, how);
    let mut sums = IndexSums::new(names.packing);
    loop {
        let bytes = heads.take_up_to(HEAD_LENGTH).await?;
        if bytes.is_empty() {
            break;
        }
        let Ok(head) = sums.decode(&bytes) else {
            return Ok(None);
        };
        if let FrameHead::Chunk { wire, digest, .. } = head {
            let payload = data.take(wire as usize).await?;
            let hashed = blocking(move || *blake3::hash(&payload).as_bytes());
            if hashed.await != digest {
                return Ok(None);
            }
        }
    }
    let Some(rows) = sums.rows else {
        return Ok(None);
    };
    if !data.is_at_end().await? {
        return Ok(None);
    }
    let (Some(data), Some(index)) = (data.digests(), heads.digests()) else {
        return Ok(None);
    };
    Ok(Some(StoredPart {
        no,
        rows,
        chunks: sums.chunks,
        bytes: sums.bytes,
        stored_bytes: ByteCount(data.bytes),
        sha256: data.sha256,
        blake3: data.blake3,
        index_blake3: index.blake3,
        index_bytes: match names.cipher {
            Cipher::None => None,
            Cipher::Age => Some(ByteCount(index.bytes)),
        },
    }))
}
