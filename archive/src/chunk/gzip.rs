//! A chunk as one gzip member (RFC 1952): ten fixed bytes, the deflated content, its CRC-32 and length.
//!
//! Written by hand around the deflate stream, so that one compressor serves all chunks: flate2's gzip
//! encoder creates its tables, a quarter of a megabyte, for each member.

use flate2::{Compress, Compression, Crc, Decompress, FlushCompress, FlushDecompress, Status};

use super::{PackError, room};

/// Deflate, no flags, no time, an unknown system.
const HEADER: [u8; 10] = [0x1F, 0x8B, 8, 0, 0, 0, 0, 0, 0, 0xFF];
const TRAILER: usize = 8;

/// gzip's own default level.
const LEVEL: u32 = 6;

/// The most by which a deflated chunk is longer than its content: 5 bytes for each stored block, of which
/// a chunk has fewer than a hundred, and a few more.
const OVERHEAD: usize = 512;

/// A compressor for [`pack`].
pub(super) fn compressor() -> Compress {
    Compress::new(Compression::new(LEVEL), false)
}

/// Writes the member to the start of `into` and returns its length.
pub(super) fn pack(
    raw: &[u8],
    into: &mut Vec<u8>,
    deflate: &mut Compress,
) -> Result<usize, PackError> {
    let bound = raw.len() + OVERHEAD;
    let member = room(into, HEADER.len() + bound + TRAILER);
    member[..HEADER.len()].copy_from_slice(&HEADER);
    deflate.reset();
    let status = deflate
        .compress(
            raw,
            &mut member[HEADER.len()..][..bound],
            FlushCompress::Finish,
        )
        .map_err(|e| PackError::Compress(e.to_string()))?;
    if status != Status::StreamEnd {
        return Err(PackError::Compress(format!(
            "deflate ended with {status:?}"
        )));
    }
    let end = HEADER.len() + usize::try_from(deflate.total_out()).unwrap_or(usize::MAX);
    member[end..end + TRAILER].copy_from_slice(&trailer(raw));
    Ok(end + TRAILER)
}

/// The content of exactly such a member, in `into`.
pub(super) fn unpack<'a>(
    member: &[u8],
    into: &'a mut [u8],
    inflate: &mut Decompress,
) -> Result<&'a [u8], PackError> {
    let bad = |why: &str| PackError::Unpack(format!("it is not a gzip member as expected: {why}"));
    let rest = member.strip_prefix(&HEADER).ok_or_else(|| bad("header"))?;
    let (deflated, end) = rest
        .split_last_chunk::<TRAILER>()
        .ok_or_else(|| bad("length"))?;
    inflate.reset(false);
    let status = inflate
        .decompress(deflated, into, FlushDecompress::Finish)
        .map_err(|e| PackError::Unpack(e.to_string()))?;
    if status != Status::StreamEnd || inflate.total_in() != deflated.len() as u64 {
        return Err(bad("length of the content"));
    }
    let raw = &into[..usize::try_from(inflate.total_out()).unwrap_or(usize::MAX)];
    if trailer(raw) != *end {
        return Err(bad("CRC"));
    }
    Ok(raw)
}

fn trailer(raw: &[u8]) -> [u8; TRAILER] {
    let mut crc = Crc::new();
    crc.update(raw);
    let mut bytes = [0; TRAILER];
    bytes[..4].copy_from_slice(&crc.sum().to_le_bytes());
    bytes[4..].copy_from_slice(&crc.amount().to_le_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use flate2::read::MultiGzDecoder;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_library_opens_concatenated_members(
            chunks in proptest::collection::vec(proptest::collection::vec(0u8..=9, 1..4_000), 1..4),
        ) {
            let (mut file, mut packed, mut deflate) = (Vec::new(), Vec::new(), compressor());
            for raw in &chunks {
                let length = pack(raw, &mut packed, &mut deflate).unwrap();
                file.extend_from_slice(&packed[..length]);
            }
            let mut got = Vec::new();
            MultiGzDecoder::new(file.as_slice()).read_to_end(&mut got).unwrap();
            prop_assert_eq!(got, chunks.concat());
        }

        #[test]
        fn any_bytes_are_a_member_or_an_error(bytes: Vec<u8>, length in 0usize..100) {
            let mut inflate = Decompress::new(false);
            let _ = unpack(&bytes, &mut vec![0; length], &mut inflate);
            let member = [&HEADER[..], &bytes].concat();
            let _ = unpack(&member, &mut vec![0; length], &mut inflate);
        }
    }
}
