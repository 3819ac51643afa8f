//! Chunks: at most 256 KiB of COPY data, packed and digested once, at the source. The wire, a file and a
//! bucket carry the same bytes. Pure.
//!
//! The digest covers the payload as it travels: it is checked before anything unpacks the bytes, and rows
//! that pack well cost little to digest. Each payload is one complete standard frame, so a concatenation of
//! payloads is a file that standard tools open.

mod gzip;
mod lz4;
mod memory;
mod pack;
mod unpack;

pub use memory::{codec_bytes, context_bytes};
pub use pack::Packer;
pub use unpack::Unpacker;

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

/// The first `length` bytes of a buffer that only grows, so that it is zeroed only once.
fn room(buffer: &mut Vec<u8>, length: usize) -> &mut [u8] {
    if buffer.len() < length {
        buffer.resize(length, 0);
    }
    &mut buffer[..length]
}
