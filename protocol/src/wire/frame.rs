//! The frames of a part on its stream: a fixed head, then that many bytes.
//!
//! ```text
//! chunk  kind:u8=1  packing:u8  reserved:u16  raw:u32  wire:u32  blake3:[u8;32]   44 bytes, payload
//! end    kind:u8=2  reserved:u24  chunks:u64  raw:u64  rows:u64   (zero to 44)    44 bytes
//! fault  kind:u8=3  reserved:u24  length:u32                      (zero to 44)    44 bytes, a Fault
//! ```
//! Numbers are big-endian. The digest is BLAKE3 of the payload on the wire, checked before
//! unpacking. Chunks are cut without regard to rows: a row may span many, so a worker's memory does
//! not depend on row sizes.

use super::limits::{CHUNK_RAW_MAX, CHUNK_WIRE_MAX, CONTROL_FRAME_MAX};
use super::{ByteCount, RowCount};

/// The length of every frame head, in bytes.
pub const HEAD_LENGTH: usize = 44;

const KIND_CHUNK: u8 = 1;
const KIND_END: u8 = 2;
const KIND_FAULT: u8 = 3;

/// A chunk's compression.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Packing {
    /// Uncompressed.
    Raw,
    /// One LZ4 frame.
    Lz4,
    /// One Zstandard frame.
    Zstd,
    /// One gzip member.
    Gzip,
}

impl Packing {
    fn code(self) -> u8 {
        match self {
            Self::Raw => 0,
            Self::Lz4 => 1,
            Self::Zstd => 2,
            Self::Gzip => 3,
        }
    }

    fn from_code(code: u8) -> Result<Self, FrameError> {
        match code {
            0 => Ok(Self::Raw),
            1 => Ok(Self::Lz4),
            2 => Ok(Self::Zstd),
            3 => Ok(Self::Gzip),
            other => Err(FrameError::Packing(other)),
        }
    }
}

/// The head of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameHead {
    /// COPY data follows.
    Chunk {
        /// Its compression.
        packing: Packing,
        /// Its uncompressed length, 1 to [`CHUNK_RAW_MAX`] bytes.
        raw: u32,
        /// Its length on the wire, 1 to [`CHUNK_WIRE_MAX`] bytes.
        wire: u32,
        /// BLAKE3 of the bytes on the wire.
        digest: [u8; 32],
    },
    /// The part is complete; nothing follows.
    End {
        /// Number of chunks sent.
        chunks: u64,
        /// COPY bytes in all chunks.
        raw: ByteCount,
        /// Rows, as the source's PostgreSQL counted them.
        rows: RowCount,
    },
    /// The source failed; an encoded [`super::Fault`] of that length follows, then nothing.
    Fault {
        /// Its length in bytes.
        length: u32,
    },
}

/// Not a valid frame head.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Neither chunk, end nor fault.
    #[error("frame kind {0} is unknown")]
    Kind(u8),
    /// A compression of a newer peer.
    #[error("packing {0} is unknown")]
    Packing(u8),
    /// A length is zero or over its limit.
    #[error("a frame says {field} is {length} bytes; 1 to {limit} are allowed")]
    Length {
        /// The field.
        field: &'static str,
        /// Its value.
        length: u64,
        /// The limit.
        limit: usize,
    },
}

fn within(field: &'static str, length: u32, limit: usize) -> Result<u32, FrameError> {
    if length == 0 || length as usize > limit {
        Err(FrameError::Length {
            field,
            length: u64::from(length),
            limit,
        })
    } else {
        Ok(length)
    }
}

impl FrameHead {
    /// Encodes the head.
    #[must_use]
    pub fn to_bytes(self) -> [u8; HEAD_LENGTH] {
        let mut bytes = [0; HEAD_LENGTH];
        match self {
            Self::Chunk {
                packing,
                raw,
                wire,
                digest,
            } => {
                bytes[0] = KIND_CHUNK;
                bytes[1] = packing.code();
                bytes[4..8].copy_from_slice(&raw.to_be_bytes());
                bytes[8..12].copy_from_slice(&wire.to_be_bytes());
                bytes[12..44].copy_from_slice(&digest);
            }
            Self::End { chunks, raw, rows } => {
                bytes[0] = KIND_END;
                bytes[4..12].copy_from_slice(&chunks.to_be_bytes());
                bytes[12..20].copy_from_slice(&raw.0.to_be_bytes());
                bytes[20..28].copy_from_slice(&rows.0.to_be_bytes());
            }
            Self::Fault { length } => {
                bytes[0] = KIND_FAULT;
                bytes[4..8].copy_from_slice(&length.to_be_bytes());
            }
        }
        bytes
    }

    /// Decodes a head and checks every length.
    ///
    /// # Errors
    /// [`FrameError`] if it is not valid.
    pub fn from_bytes(bytes: &[u8; HEAD_LENGTH]) -> Result<Self, FrameError> {
        let u32_at = |at: usize| {
            u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let u64_at = |at: usize| u64::from(u32_at(at)) << 32 | u64::from(u32_at(at + 4));
        match bytes[0] {
            KIND_CHUNK => {
                let mut digest = [0; 32];
                digest.copy_from_slice(&bytes[12..44]);
                Ok(Self::Chunk {
                    packing: Packing::from_code(bytes[1])?,
                    raw: within("raw", u32_at(4), CHUNK_RAW_MAX)?,
                    wire: within("wire", u32_at(8), CHUNK_WIRE_MAX)?,
                    digest,
                })
            }
            KIND_END => Ok(Self::End {
                chunks: u64_at(4),
                raw: ByteCount(u64_at(12)),
                rows: RowCount(u64_at(20)),
            }),
            KIND_FAULT => Ok(Self::Fault {
                length: within("fault", u32_at(4), CONTROL_FRAME_MAX)?,
            }),
            other => Err(FrameError::Kind(other)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_head() -> impl Strategy<Value = FrameHead> {
        let packing = prop_oneof![
            Just(Packing::Raw),
            Just(Packing::Lz4),
            Just(Packing::Zstd),
            Just(Packing::Gzip)
        ];
        prop_oneof![
            (
                packing,
                1..=CHUNK_RAW_MAX as u32,
                1..=CHUNK_WIRE_MAX as u32,
                any::<[u8; 32]>()
            )
                .prop_map(|(packing, raw, wire, digest)| FrameHead::Chunk {
                    packing,
                    raw,
                    wire,
                    digest
                }),
            any::<(u64, u64, u64)>().prop_map(|(chunks, raw, rows)| FrameHead::End {
                chunks,
                raw: ByteCount(raw),
                rows: RowCount(rows)
            }),
            (1..=CONTROL_FRAME_MAX as u32).prop_map(|length| FrameHead::Fault { length }),
        ]
    }

    #[test]
    fn chunk_bytes_are_frozen() {
        let head = FrameHead::Chunk {
            packing: Packing::Lz4,
            raw: 0x0102,
            wire: 3,
            digest: [9; 32],
        };
        let mut bytes = [9; HEAD_LENGTH];
        bytes[..12].copy_from_slice(&[1, 1, 0, 0, 0, 0, 1, 2, 0, 0, 0, 3]);
        assert_eq!(head.to_bytes(), bytes);
    }

    #[test]
    fn lengths_are_refused_before_anything_is_allocated() {
        let mut bytes = FrameHead::Chunk {
            packing: Packing::Raw,
            raw: 1,
            wire: 1,
            digest: [0; 32],
        }
        .to_bytes();
        bytes[4..8].copy_from_slice(&u32::MAX.to_be_bytes());
        assert!(matches!(
            FrameHead::from_bytes(&bytes),
            Err(FrameError::Length { .. })
        ));
        bytes[4..8].copy_from_slice(&0u32.to_be_bytes());
        assert!(matches!(
            FrameHead::from_bytes(&bytes),
            Err(FrameError::Length { .. })
        ));
    }

    proptest! {
        #[test]
        fn heads_round_trip(head in any_head()) {
            prop_assert_eq!(FrameHead::from_bytes(&head.to_bytes()).unwrap(), head);
        }

        #[test]
        fn any_bytes_are_a_head_or_an_error(bytes in proptest::collection::vec(any::<u8>(), HEAD_LENGTH)) {
            let bytes: [u8; HEAD_LENGTH] = bytes.try_into().unwrap();
            let _ = FrameHead::from_bytes(&bytes);
        }
    }
}
