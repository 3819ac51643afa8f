//! Packs chunks and digests them. Buffers and contexts are reused.

use std::fmt;
use std::time::Duration;

use flate2::Compress;
use lz4_flex::block::CompressTable;
use steep_protocol::frame::{FrameHead, Packing};
use steep_protocol::limits::CHUNK_RAW_MAX;
use steep_protocol::message::job::Compression;
use steep_protocol::stored::StoredCodec;
use zstd::bulk::Compressor;

use super::lz4::Stored;
use super::{PackError, gzip, lz4, room};

/// A longer round trip means a real network, where stronger compression pays, as one core packs more than
/// most such links carry. Between busy machines side by side, threads that wait for a processor look like
/// milliseconds of distance.
const FAR: Duration = Duration::from_millis(10);

/// About 400 MB/s on one core.
const FAR_LEVEL: u8 = 1;

/// Chunks sent raw after one that did not shrink, so that incompressible data cost a hundredth of the
/// packing.
const RAW_RUN: u32 = 100;

/// A chunk that keeps more than 15/16 of its size is not worth unpacking.
const WORTH_IT: (usize, usize) = (15, 16);

/// How chunks of one stream are packed.
#[derive(Debug)]
pub struct Packer {
    method: Method,
    raw: Raw,
    /// As long as the largest chunk packed so far could get; bytes behind a chunk's end are old.
    packed: Vec<u8>,
}

/// Whether a chunk that does not shrink is sent raw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Raw {
    /// On the wire: raw, and so are that many more.
    Next(u32),
    /// In a store: never, for its files are of one format.
    Never,
}

enum Method {
    None,
    /// Created with the first chunk, like the others: an empty table is not worth a context's memory.
    Lz4(Option<Box<CompressTable>>),
    Gzip(Option<Compress>),
    Zstd {
        level: u8,
        context: Option<Compressor<'static>>,
    },
}

impl fmt::Debug for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("None"),
            Self::Lz4(_) => f.write_str("Lz4"),
            Self::Gzip(_) => f.write_str("Gzip"),
            Self::Zstd { level, .. } => write!(f, "Zstd({level})"),
        }
    }
}

impl Packer {
    /// For the wire, as the operator chose; `auto` depends on the distance to the peer.
    #[must_use]
    pub fn new(compression: Compression, rtt: Duration) -> Self {
        let method = match compression {
            Compression::None => Method::None,
            Compression::Lz4 => Method::Lz4(None),
            Compression::Zstd(level) => Method::zstd(level),
            Compression::Auto if rtt > FAR => Method::zstd(FAR_LEVEL),
            Compression::Auto => Method::Lz4(None),
        };
        Self::with(method, Raw::Next(0))
    }

    /// For a store: every chunk is a frame of that format, even where it does not shrink.
    #[must_use]
    pub fn stored(codec: StoredCodec) -> Self {
        let method = match codec {
            StoredCodec::None => Method::None,
            StoredCodec::Gzip => Method::Gzip(None),
            StoredCodec::Lz4 => Method::Lz4(None),
            StoredCodec::Zstd(level) => Method::zstd(level),
        };
        Self::with(method, Raw::Never)
    }

    fn with(method: Method, raw: Raw) -> Self {
        Self {
            method,
            raw,
            packed: Vec::new(),
        }
    }

    /// The head and payload for those raw bytes, 1 to [`CHUNK_RAW_MAX`] of them. Where packing does
    /// not pay, the payload is `raw` itself, which is left empty; else its buffer can be used again.
    ///
    /// # Errors
    /// [`PackError::Compress`] where the compressor fails, which it has no reason to.
    pub fn pack(&mut self, raw: &mut Vec<u8>) -> Result<(FrameHead, Vec<u8>), PackError> {
        let raw_length = raw.len();
        let (packing, payload) = match self.try_pack(raw)? {
            Some((packing, length)) => (packing, self.packed[..length].to_vec()),
            None => (Packing::Raw, std::mem::take(raw)),
        };
        let length = |n: usize| u32::try_from(n).expect("a chunk is at most 256 KiB");
        let head = FrameHead::Chunk {
            packing,
            raw: length(raw_length),
            wire: length(payload.len()),
            digest: *blake3::hash(&payload).as_bytes(),
        };
        Ok((head, payload))
    }

    /// How the start of `self.packed` is packed and how long it is; `None` where packing does not pay.
    fn try_pack(&mut self, raw: &[u8]) -> Result<Option<(Packing, usize)>, PackError> {
        debug_assert!(!raw.is_empty() && raw.len() <= CHUNK_RAW_MAX);
        if let Raw::Next(left @ 1..) = &mut self.raw {
            *left -= 1;
            return Ok(None);
        }
        let (packing, length) = match &mut self.method {
            Method::None => return Ok(None),
            Method::Lz4(table) => {
                let table = table.get_or_insert_with(|| Box::new(CompressTable::large()));
                let stored = match self.raw {
                    Raw::Never => Stored::Allowed,
                    Raw::Next(_) => Stored::Never,
                };
                (
                    Packing::Lz4,
                    lz4::pack(raw, &mut self.packed, table, stored)?,
                )
            }
            Method::Gzip(deflate) => {
                let deflate = deflate.get_or_insert_with(gzip::compressor);
                (Packing::Gzip, gzip::pack(raw, &mut self.packed, deflate)?)
            }
            Method::Zstd { level, context } => {
                let failed = |e: std::io::Error| PackError::Compress(e.to_string());
                let context = match context {
                    Some(context) => context,
                    None => context.insert(Compressor::new((*level).into()).map_err(failed)?),
                };
                let bound = zstd::zstd_safe::compress_bound(raw.len());
                let length = context
                    .compress_to_buffer(raw, room(&mut self.packed, bound))
                    .map_err(failed)?;
                (Packing::Zstd, length)
            }
        };
        if let Raw::Next(left) = &mut self.raw
            && length * WORTH_IT.1 > raw.len() * WORTH_IT.0
        {
            *left = RAW_RUN;
            return Ok(None);
        }
        Ok(Some((packing, length)))
    }
}

impl Method {
    fn zstd(level: u8) -> Self {
        Self::Zstd {
            level,
            context: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk::{Unpacker, context_bytes};
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

    fn any_codec() -> impl Strategy<Value = StoredCodec> {
        prop_oneof![
            Just(StoredCodec::None),
            Just(StoredCodec::Gzip),
            Just(StoredCodec::Lz4),
            (1u8..=9).prop_map(StoredCodec::Zstd),
        ]
    }

    fn noise(length: usize) -> Vec<u8> {
        let mut state = 1u64;
        (0..length)
            .map(|_| {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                (state >> 33) as u8
            })
            .collect()
    }

    fn unpack(
        packing: Packing,
        raw: u32,
        digest: &[u8; 32],
        payload: &[u8],
    ) -> Result<Vec<u8>, PackError> {
        let mut unpacker = Unpacker::default();
        let raw = unpacker.unpack(packing, raw, digest, payload)?;
        Ok(raw.to_vec())
    }

    fn digest(payload: &[u8]) -> [u8; 32] {
        *blake3::hash(payload).as_bytes()
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
        unpack(packing, raw, &digest, &payload)
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
            unpack(Packing::Zstd, 1000, &digest(&bomb), &bomb),
            Err(PackError::Unpack(_))
        ));
        let zeros = vec![0; CHUNK_RAW_MAX];
        for codec in [StoredCodec::Lz4, StoredCodec::Gzip, StoredCodec::Zstd(3)] {
            let (_, bomb) = Packer::stored(codec).pack(&mut zeros.clone()).unwrap();
            let refused = unpack(codec.packing(), 1000, &digest(&bomb), &bomb);
            assert!(matches!(refused, Err(PackError::Unpack(_))), "{codec}");
        }
    }

    #[test]
    fn what_does_not_shrink_is_sent_raw_and_not_tried_again_at_once() {
        let mut packer = Packer::new(Compression::Lz4, NEAR);
        for _ in 0..3 {
            let raw = noise(50_000);
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
        assert_eq!(packer.raw, Raw::Next(RAW_RUN - 2));
    }

    #[test]
    fn a_stored_chunk_is_always_of_the_stores_format_and_within_the_limit() {
        for codec in [
            StoredCodec::None,
            StoredCodec::Gzip,
            StoredCodec::Lz4,
            StoredCodec::Zstd(1),
            StoredCodec::Zstd(19),
        ] {
            let mut packer = Packer::stored(codec);
            for raw in [noise(CHUNK_RAW_MAX), noise(1), vec![b'x'; CHUNK_RAW_MAX]] {
                let (head, payload) = packer.pack(&mut raw.clone()).unwrap();
                let FrameHead::Chunk { packing, .. } = head else {
                    panic!("not a chunk: {head:?}");
                };
                assert_eq!(packing, codec.packing());
                // Decoding checks the limit.
                assert_eq!(FrameHead::from_bytes(&head.to_bytes()).unwrap(), head);
                assert_eq!(open(head, payload).unwrap(), raw, "{codec}");
            }
        }
    }

    #[test]
    fn a_context_takes_no_more_than_is_reckoned_with() {
        let raw: Vec<u8> = (0..CHUNK_RAW_MAX).map(|at| (at * at % 251) as u8).collect();
        for level in 1..=19 {
            let mut packer = Packer::new(Compression::Zstd(level), NEAR);
            packer.pack(&mut raw.clone()).unwrap();
            let Method::Zstd {
                context: Some(context),
                ..
            } = &mut packer.method
            else {
                panic!("a chunk was packed without a context");
            };
            let taken = context.context_mut().sizeof();
            let reckoned = context_bytes(Compression::Zstd(level));
            assert!(taken <= reckoned, "level {level} takes {taken}");
        }
    }

    #[test]
    fn chunks_of_any_length_share_one_packer_and_one_unpacker() {
        for compression in [Compression::None, Compression::Lz4, Compression::Zstd(3)] {
            let mut packer = Packer::new(compression, NEAR);
            let mut unpacker = Unpacker::default();
            for length in [1, CHUNK_RAW_MAX, 3, 70_000, 1_000, CHUNK_RAW_MAX] {
                let raw: Vec<u8> = (0..length).map(|at| (at / 7 % 5 + length) as u8).collect();
                let (head, payload) = packer.pack(&mut raw.clone()).unwrap();
                let FrameHead::Chunk {
                    packing,
                    raw: said,
                    digest,
                    ..
                } = head
                else {
                    panic!("not a chunk: {head:?}");
                };
                let got = unpacker.unpack(packing, said, &digest, &payload).unwrap();
                assert_eq!(got, raw, "{compression}, {length} bytes");
            }
        }
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
        fn stored_chunks_round_trip(
            codec in any_codec(),
            raw in proptest::collection::vec(any::<u8>(), 1..5_000),
        ) {
            let (head, payload) = Packer::stored(codec).pack(&mut raw.clone()).unwrap();
            prop_assert_eq!(open(head, payload).unwrap(), raw);
        }

        #[test]
        fn any_payload_is_a_chunk_or_an_error(
            payload in proptest::collection::vec(any::<u8>(), 1..300),
            raw in 1..=CHUNK_RAW_MAX as u32,
        ) {
            for packing in [Packing::Raw, Packing::Lz4, Packing::Zstd, Packing::Gzip] {
                let _ = unpack(packing, raw, &digest(&payload), &payload);
            }
        }
    }
}
