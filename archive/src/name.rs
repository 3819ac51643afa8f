//! The names of a snapshot's files. They are made from part numbers and fixed words, never read from a
//! manifest, so that no manifest can name a file elsewhere.

use std::fmt;

use steep_protocol::PartNo;
use steep_protocol::frame::Packing;
use steep_protocol::limits::PARTS_MAX;

/// The folder of the parts.
pub(crate) const PARTS: &str = "parts";

/// A file of a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum FileName {
    /// Whose files these are; written first.
    Claim,
    /// What the snapshot is; written last.
    Manifest,
    /// The schema.
    Schema,
    /// Sequences' positions.
    Sequences,
    /// The COPY data of a part.
    Data(PartNo, Suffix),
    /// The heads of a part's chunks.
    Index(PartNo),
}

/// What tools recognise a part's format by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Suffix {
    Copy,
    Gz,
    Lz4,
    Zst,
}

impl Suffix {
    const ALL: [Self; 4] = [Self::Copy, Self::Gz, Self::Lz4, Self::Zst];

    fn as_str(self) -> &'static str {
        match self {
            Self::Copy => ".copy",
            Self::Gz => ".copy.gz",
            Self::Lz4 => ".copy.lz4",
            Self::Zst => ".copy.zst",
        }
    }
}

impl From<Packing> for Suffix {
    fn from(packing: Packing) -> Self {
        match packing {
            Packing::Raw => Self::Copy,
            Packing::Gzip => Self::Gz,
            Packing::Lz4 => Self::Lz4,
            Packing::Zstd => Self::Zst,
        }
    }
}

impl FileName {
    /// Its folder, if it is not the snapshot's own.
    pub(crate) fn folder(self) -> Option<&'static str> {
        match self {
            Self::Claim | Self::Manifest | Self::Schema | Self::Sequences => None,
            Self::Data(..) | Self::Index(_) => Some(PARTS),
        }
    }

    /// Its name within its folder.
    pub(crate) fn base(self) -> String {
        match self {
            Self::Claim => "snapshot.json".to_owned(),
            Self::Manifest => "manifest.json".to_owned(),
            Self::Schema => "schema.sql".to_owned(),
            Self::Sequences => "sequences.json".to_owned(),
            Self::Data(no, suffix) => format!("{:07}{}", no.0, suffix.as_str()),
            Self::Index(no) => format!("{:07}.index", no.0),
        }
    }

    /// The file of that path within a snapshot, if it is one of ours.
    pub(crate) fn parse(path: &str) -> Option<Self> {
        let fixed = [Self::Claim, Self::Manifest, Self::Schema, Self::Sequences];
        if let Some(name) = fixed.into_iter().find(|name| name.base() == path) {
            return Some(name);
        }
        let base = path.strip_prefix(PARTS)?.strip_prefix('/')?;
        let (digits, rest) = base.split_at_checked(7)?;
        if !digits.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        let no = PartNo(digits.parse().ok().filter(|no| *no < PARTS_MAX)?);
        if rest == ".index" {
            return Some(Self::Index(no));
        }
        let suffix = Suffix::ALL.into_iter().find(|s| s.as_str() == rest)?;
        Some(Self::Data(no, suffix))
    }
}

impl fmt::Display for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.folder() {
            Some(folder) => write!(f, "{folder}/{}", self.base()),
            None => f.write_str(&self.base()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_name_reads_back_and_nothing_else_is_ours(no in 0..PARTS_MAX, text in ".{0,30}") {
            for suffix in Suffix::ALL {
                for name in [FileName::Data(PartNo(no), suffix), FileName::Index(PartNo(no)), FileName::Manifest] {
                    prop_assert_eq!(FileName::parse(&name.to_string()), Some(name));
                }
            }
            if let Some(name) = FileName::parse(&text) {
                prop_assert_eq!(name.to_string(), text);
            }
        }
    }
}
