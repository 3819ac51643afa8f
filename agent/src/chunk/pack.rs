//! Packing and unpacking of one chunk, with its digest. Pure, but for the CPU it takes.

use std::time::Duration;

use steep_protocol::frame::{FrameHead, Packing};
use steep_protocol::limits::CHUNK_RAW_MAX;
use steep_protocol::message::job::Compression;

/// Round trips above this mean that bytes leave the building: stronger compression pays, since one
/// core packs more than most such links carry.
const FAR: Duration = Duration::from_millis(2);

/// Zstandard's level for such links: about 400 MB/s on one core.
const FAR_LEVEL: u8 = 1;

/// After a chunk that did not shrink, this many are sent raw before packing is tried again, so
/// incompressible data costs a hundredth of the packing.
const RAW_RUN: u32 = 100;

/// A chunk that keeps more than 15/16 of its size is not worth unpacking.
const WORTH_IT: (usize, usize) = (15, 16);

/// How chunks of one stream are packed.
#[derive(Debug)]
pub struct Packer {
    method: Method,
    raw_left: u32,
    packed: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Method {
    None,
    Lz4,
    Zstd(u8),
}

/// A chunk that cannot be packed or is not what its head says.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// The compressor failed.
    #[error("a chunk cannot be compressed: {0}")]
    Compress(String),
    /// The bytes do not unpack to the length in the head.
    #[error("a chunk does not unpack: {0}")]
    Unpack(String),
    /// The bytes are not those that were digested at the source.
    #[error("a chunk's BLAKE3 digest does not match: its bytes were changed on the way")]
    Digest,
}

impl Packer {
    /// A packer for what the operator chose; `auto` decides by how far away the peer is.
    #[must_use]
    pub fn new(compression: Compression, rtt: Duration) -> Self {
        let method = match compression {
            Compression::None => Method::None,
            Compression::Lz4 => Method::Lz4,
            Compression::Zstd(level) => Method::Zstd(level),
            Compression::Auto if rtt > FAR => Method::Zstd(FAR_LEVEL),
            Compression::Auto => Method::Lz4,
        };
        Self {
            method,
            raw_left: 0,
            packed: Vec::new(),
        }
    }

    /// Whether packing takes long enough to be in the way of other tasks on the same thread. LZ4 and
    /// the digest take a quarter of a millisecond a chunk; moving that elsewhere costs as much.
    #[must_use]
    pub fn is_slow(&self) -> bool {
        matches!(self.method, Method::Zstd(_))
    }

    /// The head and payload for those raw bytes, 1 to [`CHUNK_RAW_MAX`] of them. Where packing does
    /// not pay, the payload is `raw` itself, which is left empty; else its buffer can be used again.
    ///
    /// # Errors
    /// [`PackError::Compress`] where the compressor fails, which it has no reason to.
    pub fn pack(&mut self, raw: &mut Vec<u8>) -> Result<(FrameHead, Vec<u8>), PackError> {
        let digest = *blake3::hash(raw).as_bytes();
        let packing = self.try_pack(raw)?;
        let raw_length = raw.len();
        let payload = if packing == Packing::Raw {
            std::mem::take(raw)
        } else {
            self.packed.clone()
        };
        let length = |n: usize| u32::try_from(n).expect("a chunk is at most 256 KiB");
        let head = FrameHead::Chunk {
            packing,
            raw: length(raw_length),
            wire: length(payload.len()),
            digest,
        };
        Ok((head, payload))
    }

    /// Fills `self.packed` and says how, or `Raw` where that does not pay.
    fn try_pack(&mut self, raw: &[u8]) -> Result<Packing, PackError> {
        debug_assert!(!raw.is_empty() && raw.len() <= CHUNK_RAW_MAX);
        if self.raw_left > 0 {
            self.raw_left -= 1;
            return Ok(Packing::Raw);
        }
        let packing = match self.method {
            Method::None => return Ok(Packing::Raw),
            Method::Lz4 => {
                self.packed
                    .resize(lz4_flex::block::get_maximum_output_size(raw.len()), 0);
                let length = lz4_flex::block::compress_into(raw, &mut self.packed)
                    .map_err(|e| PackError::Compress(e.to_string()))?;
                self.packed.truncate(length);
                Packing::Lz4
            }
            Method::Zstd(level) => {
                self.packed
                    .resize(zstd::zstd_safe::compress_bound(raw.len()), 0);
                let length = zstd::bulk::compress_to_buffer(raw, &mut self.packed, level.into())
                    .map_err(|e| PackError::Compress(e.to_string()))?;
                self.packed.truncate(length);
                Packing::Zstd
            }
        };
        if self.packed.len() * WORTH_IT.1 > raw.len() * WORTH_IT.0 {
            self.raw_left = RAW_RUN;
            return Ok(Packing::Raw);
        }
        Ok(packing)
    }
}

/// The raw bytes of a chunk's payload, checked against its length and digest.
///
/// # Errors
/// [`PackError`] where the payload is not what the head says.
pub fn unpack(
    packing: Packing,
    raw_length: u32,
    digest: &[u8; 32],
    payload: Vec<u8>,
) -> Result<Vec<u8>, PackError> {
    let length = raw_length as usize;
    let raw = match packing {
        Packing::Raw => payload,
        Packing::Lz4 => {
            let mut raw = vec![0; length];
            let got = lz4_flex::block::decompress_into(&payload, &mut raw)
                .map_err(|e| PackError::Unpack(e.to_string()))?;
            raw.truncate(got);
            raw
        }
        Packing::Zstd => zstd::bulk::decompress(&payload, length)
            .map_err(|e| PackError::Unpack(e.to_string()))?,
    };
    if raw.len() != length {
        return Err(PackError::Unpack(format!(
            "{} bytes where {length} were said",
            raw.len()
        )));
    }
    // A hash comparison in constant time is what blake3 gives; nothing here is secret.
    if blake3::hash(&raw) != blake3::Hash::from_bytes(*digest) {
        return Err(PackError::Digest);
    }
    Ok(raw)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NEAR: Duration = Duration::from_micros(100);

    fn any_compression() -> impl Strategy<Value = Compression> {
        prop_oneof![
            Just(Compression::Auto),
            Just(Compression::None),
            Just(Compression::Lz4),
            (1u8..=9).prop_map(Compression::Zstd),
        ]
    }

    fn open(head: FrameHead, payload: Vec<u8>) -> Result<Vec<u8>, PackError> {
        let FrameHead::Chunk {
            packing,
            raw,
            wire,
            digest,
        } = head
        else {
            panic!("not a chunk: {head:?}");
        };
        assert_eq!(wire as usize, payload.len());
        unpack(packing, raw, &digest, payload)
    }

    #[test]
    fn bytes_changed_on_the_way_are_noticed() {
        let raw: Vec<u8> = (0..100_000u32)
            .flat_map(|i| (i / 100).to_be_bytes())
            .take(200_000)
            .collect();
        for compression in [Compression::None, Compression::Lz4, Compression::Zstd(3)] {
            let (head, mut payload) = Packer::new(compression, NEAR)
                .pack(&mut raw.clone())
                .unwrap();
            let at = payload.len() / 2;
            payload[at] ^= 1;
            assert!(open(head, payload).is_err(), "{compression}");
        }
    }

    #[test]
    fn a_payload_that_unpacks_to_more_than_it_says_is_refused() {
        let bomb = zstd::bulk::compress(&vec![0; 10_000_000], 3).unwrap();
        assert!(matches!(
            unpack(Packing::Zstd, 1000, &[0; 32], bomb),
            Err(PackError::Unpack(_))
        ));
        let bomb = lz4_flex::block::compress(&vec![0; 10_000_000]);
        assert!(matches!(
            unpack(Packing::Lz4, 1000, &[0; 32], bomb),
            Err(PackError::Unpack(_))
        ));
    }

    #[test]
    fn what_does_not_shrink_is_sent_raw_and_not_tried_again_at_once() {
        let mut state = 1u64;
        let mut noise = || {
            (0..50_000)
                .map(|_| {
                    state = state
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1);
                    (state >> 33) as u8
                })
                .collect::<Vec<u8>>()
        };
        let mut packer = Packer::new(Compression::Lz4, NEAR);
        for _ in 0..3 {
            let raw = noise();
            let (head, payload) = packer.pack(&mut raw.clone()).unwrap();
            assert!(matches!(
                head,
                FrameHead::Chunk {
                    packing: Packing::Raw,
                    ..
                }
            ));
            assert_eq!(payload, raw);
        }
        assert_eq!(packer.raw_left, RAW_RUN - 2);
    }

    proptest! {
        #[test]
        fn chunks_round_trip(
            compression in any_compression(),
            raw in proptest::collection::vec(0u8..4, 1..5_000),
        ) {
            let (head, payload) = Packer::new(compression, NEAR).pack(&mut raw.clone()).unwrap();
            prop_assert_eq!(open(head, payload).unwrap(), raw);
        }

        #[test]
        fn any_payload_is_a_chunk_or_an_error(
            payload in proptest::collection::vec(any::<u8>(), 1..300),
            raw in 1..=CHUNK_RAW_MAX as u32,
        ) {
            for packing in [Packing::Raw, Packing::Lz4, Packing::Zstd] {
                let _ = unpack(packing, raw, &[0; 32], payload.clone());
            }
        }
    }
}
