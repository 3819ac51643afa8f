//! How the parts of a stored snapshot are compressed.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::frame::Packing;

/// The compression of every part of one stored snapshot (`--compress`). Unlike
/// [`super::message::job::Compression`], it never varies within a file: each opens with one tool.
///
/// Text, also in JSON: `none`, `gzip`, `lz4`, `zstd` or `zstd:LEVEL`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum StoredCodec {
    /// Plain COPY text.
    None,
    /// Gzip members.
    Gzip,
    /// LZ4 frames.
    Lz4,
    /// Zstandard frames of that level, 1 to 19.
    Zstd(u8),
}

/// Text that names no compression.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no compression: use none, gzip, lz4, zstd or zstd:1 to zstd:19")]
pub struct InvalidCodec(String);

impl StoredCodec {
    /// Zstandard's default level.
    pub const ZSTD_LEVEL_DEFAULT: u8 = 3;

    /// How each of its chunks is packed.
    #[must_use]
    pub fn packing(self) -> Packing {
        match self {
            Self::None => Packing::Raw,
            Self::Gzip => Packing::Gzip,
            Self::Lz4 => Packing::Lz4,
            Self::Zstd(_) => Packing::Zstd,
        }
    }
}

impl FromStr for StoredCodec {
    type Err = InvalidCodec;

    fn from_str(text: &str) -> Result<Self, InvalidCodec> {
        match text {
            "none" => Ok(Self::None),
            "gzip" => Ok(Self::Gzip),
            "lz4" => Ok(Self::Lz4),
            "zstd" => Ok(Self::Zstd(Self::ZSTD_LEVEL_DEFAULT)),
            _ => text
                .strip_prefix("zstd:")
                .filter(|level| level.bytes().all(|b| b.is_ascii_digit()))
                .and_then(|level| level.parse().ok())
                .filter(|level| (1..=19).contains(level))
                .map(Self::Zstd)
                .ok_or_else(|| InvalidCodec(text.chars().take(80).collect())),
        }
    }
}

impl fmt::Display for StoredCodec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Gzip => f.write_str("gzip"),
            Self::Lz4 => f.write_str("lz4"),
            Self::Zstd(level) => write!(f, "zstd:{level}"),
        }
    }
}

impl TryFrom<String> for StoredCodec {
    type Error = InvalidCodec;
    fn try_from(text: String) -> Result<Self, InvalidCodec> {
        text.parse()
    }
}

impl From<StoredCodec> for String {
    fn from(codec: StoredCodec) -> Self {
        codec.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_codec_reads_back_as_it_was_written() {
        let all = [StoredCodec::None, StoredCodec::Gzip, StoredCodec::Lz4];
        for codec in all.into_iter().chain((1..=19).map(StoredCodec::Zstd)) {
            assert_eq!(codec.to_string().parse(), Ok(codec));
        }
        assert_eq!("zstd".parse(), Ok(StoredCodec::Zstd(3)));
        for bad in ["", "auto", "zstd:", "zstd:0", "zstd:20", "zstd:+3", "ZSTD"] {
            assert!(bad.parse::<StoredCodec>().is_err(), "{bad:?} was taken");
        }
    }
}
