//! Finds the whole parts of an earlier process by reading them again.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::{StreamExt, TryStreamExt, stream};
use steep_protocol::PartNo;
use steep_protocol::frame::{FrameHead, HEAD_LENGTH};
use steep_protocol::stored::StoredCodec;

use crate::blocking::offload;
use crate::error::Error;
use crate::index::IndexSums;
use crate::manifest::StoredPart;
use crate::name::FileName;
use crate::place::{Digests, FileReader, Place};

/// The lengths of a part's files, where they exist.
#[derive(Default)]
struct Files {
    data: Option<u64>,
    index: Option<u64>,
    other: Vec<FileName>,
}

/// The whole parts, by number. Everything else of parts is removed.
pub(super) async fn find(
    place: &Place,
    codec: StoredCodec,
    parallel: usize,
) -> Result<Vec<StoredPart>, Error> {
    let mut found: BTreeMap<PartNo, Files> = BTreeMap::new();
    for (name, length) in place.list().await?.files {
        match name {
            FileName::Data(no, suffix) if suffix == codec.packing().into() => {
                found.entry(no).or_default().data = Some(length);
            }
            FileName::Data(no, _) => found.entry(no).or_default().other.push(name),
            FileName::Index(no) => found.entry(no).or_default().index = Some(length),
            FileName::Claim | FileName::Manifest | FileName::Schema | FileName::Sequences => {}
        }
    }
    let mut broken: BTreeSet<FileName> = BTreeSet::new();
    let mut checks = Vec::new();
    for (no, files) in found {
        broken.extend(files.other);
        let data = FileName::Data(no, codec.packing().into());
        match (files.data, files.index) {
            (Some(length), Some(index)) => {
                checks.push(read_again(place.clone(), no, codec, length, index));
            }
            (Some(_), None) => drop(broken.insert(data)),
            (None, Some(_)) => drop(broken.insert(FileName::Index(no))),
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
            None => broken.extend([
                FileName::Index(no),
                FileName::Data(no, codec.packing().into()),
            ]),
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
    codec: StoredCodec,
    length: u64,
    index_length: u64,
) -> Result<(PartNo, Option<StoredPart>), Error> {
    match check(place, no, codec, length, index_length).await {
        Ok(part) => Ok((no, part)),
        // Shorter or other than it was listed.
        Err(Error::Problem { .. }) => Ok((no, None)),
        Err(error) => Err(error),
    }
}

async fn check(
    place: Place,
    no: PartNo,
    codec: StoredCodec,
    length: u64,
    index_length: u64,
) -> Result<Option<StoredPart>, Error> {
    let name = FileName::Data(no, codec.packing().into());
    let mut heads = FileReader::new(place.clone(), FileName::Index(no), index_length);
    let mut data = FileReader::new(place, name, length);
    let mut sums = IndexSums::new(codec.packing());
    let (mut data_digests, mut index_digests) = (Digests::default(), Digests::default());
    let mut left = index_length;
    while left >= HEAD_LENGTH as u64 {
        left -= HEAD_LENGTH as u64;
        let bytes = heads.take(HEAD_LENGTH).await?;
        let Ok(head) = sums.decode(&bytes) else {
            return Ok(None);
        };
        index_digests.update(&bytes);
        if let FrameHead::Chunk { wire, digest, .. } = head {
            if sums.stored_bytes.0 > length {
                return Ok(None);
            }
            let payload = data.take(wire as usize).await?;
            let whole = offload(&mut data_digests, move |digests: &mut Digests| {
                digests.update(&payload);
                *blake3::hash(&payload).as_bytes() == digest
            });
            if !whole.await {
                return Ok(None);
            }
        }
    }
    let Some(rows) = sums
        .rows
        .filter(|_| left == 0 && sums.stored_bytes.0 == length)
    else {
        return Ok(None);
    };
    let (data, index) = (data_digests.finish(), index_digests.finish());
    Ok(Some(StoredPart {
        no,
        rows,
        chunks: sums.chunks,
        bytes: sums.bytes,
        stored_bytes: sums.stored_bytes,
        sha256: data.sha256,
        blake3: data.blake3,
        index_blake3: index.blake3,
    }))
}
