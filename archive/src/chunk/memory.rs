//! How much memory packing and unpacking take.

use steep_protocol::message::job::Compression;
use steep_protocol::stored::StoredCodec;

/// Bytes for packing or unpacking a part, besides the chunks. Zstandard's contexts as its own `sizeof`
/// reports them for our chunk size; a test compares.
#[must_use]
pub const fn context_bytes(compression: Compression) -> usize {
    const MIB: usize = 1024 * 1024;
    match compression {
        Compression::None | Compression::Lz4 => 0,
        Compression::Auto => MIB,
        Compression::Zstd(0..=2) => MIB,
        Compression::Zstd(3..=5) => 2 * MIB,
        Compression::Zstd(6..=10) => 3 * MIB + MIB / 2,
        Compression::Zstd(_) => 6 * MIB,
    }
}

/// The same for a store's compression.
#[must_use]
pub const fn codec_bytes(codec: StoredCodec) -> usize {
    match codec {
        StoredCodec::None | StoredCodec::Lz4 => 0,
        // The sliding window, hash chains and the pending output.
        StoredCodec::Gzip => 384 * 1024,
        StoredCodec::Zstd(level) => context_bytes(Compression::Zstd(level)),
    }
}
