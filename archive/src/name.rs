//! The names of a snapshot's files. They are made from part numbers and fixed words, never read from a
//! manifest, so that no manifest can name a file elsewhere.

use std::fmt;

use steep_protocol::PartNo;
use steep_protocol::encryption::{Encryption, EncryptionFormat};
use steep_protocol::frame::Packing;
use steep_protocol::limits::PARTS_MAX;

/// The folder of the parts.
pub(crate) const PARTS: &str = "parts";

/// A file of a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum FileName {
    /// Whose files these are; written first, and never encrypted: whoever deletes or goes on has to know.
    Claim,
    /// What the snapshot is; written last, and never encrypted: it says how the others are.
    Manifest,
    /// The schema.
    Schema(Cipher),
    /// Sequences' positions.
    Sequences(Cipher),
    /// The COPY data of a part.
    Data(PartNo, Suffix, Cipher),
    /// The heads of a part's chunks.
    Index(PartNo, Cipher),
}

/// Whether a file is encrypted, which its name shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Cipher {
    None,
    Age,
}

impl Cipher {
    const ALL: [Self; 2] = [Self::None, Self::Age];

    fn as_str(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Age => ".age",
        }
    }
}

impl From<Option<&Encryption>> for Cipher {
    fn from(encryption: Option<&Encryption>) -> Self {
        match encryption.map(|encryption| encryption.format) {
            None => Self::None,
            Some(EncryptionFormat::Age) => Self::Age,
        }
    }
}

/// The names of one snapshot's files, apart from those that all snapshots have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Names {
    pub(crate) packing: Packing,
    pub(crate) cipher: Cipher,
}

impl Names {
    pub(crate) fn data(self, no: PartNo) -> FileName {
        FileName::Data(no, self.packing.into(), self.cipher)
    }

    pub(crate) fn index(self, no: PartNo) -> FileName {
        FileName::Index(no, self.cipher)
    }

    pub(crate) fn schema(self) -> FileName {
        FileName::Schema(self.cipher)
    }

    pub(crate) fn sequences(self) -> FileName {
        FileName::Sequences(self.cipher)
    }
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
            Self::Claim | Self::Manifest | Self::Schema(_) | Self::Sequences(_) => None,
            Self::Data(..) | Self::Index(..) => Some(PARTS),
        }
    }

    /// Whether it is encrypted.
    pub(crate) fn cipher(self) -> Cipher {
        match self {
            Self::Claim | Self::Manifest => Cipher::None,
            Self::Schema(cipher)
            | Self::Sequences(cipher)
            | Self::Data(_, _, cipher)
            | Self::Index(_, cipher) => cipher,
        }
    }

    /// Its name within its folder.
    pub(crate) fn base(self) -> String {
        let base = match self {
            Self::Claim => "snapshot.json".to_owned(),
            Self::Manifest => "manifest.json".to_owned(),
            Self::Schema(_) => "schema.sql".to_owned(),
            Self::Sequences(_) => "sequences.json".to_owned(),
            Self::Data(no, suffix, _) => format!("{:07}{}", no.0, suffix.as_str()),
            Self::Index(no, _) => format!("{:07}.index", no.0),
        };
        base + self.cipher().as_str()
    }

    /// The file of that path within a snapshot, if it is one of ours.
    pub(crate) fn parse(path: &str) -> Option<Self> {
        let fixed = [Self::Claim, Self::Manifest].into_iter();
        let either = Cipher::ALL.map(|cipher| [Self::Schema(cipher), Self::Sequences(cipher)]);
        let mut fixed = fixed.chain(either.into_iter().flatten());
        if let Some(name) = fixed.find(|name| name.base() == path) {
            return Some(name);
        }
        let base = path.strip_prefix(PARTS)?.strip_prefix('/')?;
        let (digits, rest) = base.split_at_checked(7)?;
        if !digits.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        let no = PartNo(digits.parse().ok().filter(|no| *no < PARTS_MAX)?);
        let (rest, cipher) = match rest.strip_suffix(Cipher::Age.as_str()) {
            Some(rest) => (rest, Cipher::Age),
            None => (rest, Cipher::None),
        };
        if rest == ".index" {
            return Some(Self::Index(no, cipher));
        }
        let suffix = Suffix::ALL.into_iter().find(|s| s.as_str() == rest)?;
        Some(Self::Data(no, suffix, cipher))
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
        fn a_name_reads_back_and_nothing_else_is_ours(
            no in 0..PARTS_MAX,
            text in ".{0,30}|(parts/0000001)?\\.(index|copy|copy\\.zst|age)(\\.age){0,2}",
        ) {
            let no = PartNo(no);
            prop_assert_eq!(FileName::parse(&FileName::Manifest.to_string()), Some(FileName::Manifest));
            for cipher in Cipher::ALL {
                for suffix in Suffix::ALL {
                    let name = FileName::Data(no, suffix, cipher);
                    prop_assert_eq!(FileName::parse(&name.to_string()), Some(name));
                }
                for name in [FileName::Index(no, cipher), FileName::Schema(cipher), FileName::Sequences(cipher)] {
                    prop_assert_eq!(FileName::parse(&name.to_string()), Some(name));
                }
            }
            if let Some(name) = FileName::parse(&text) {
                prop_assert_eq!(name.to_string(), text);
            }
        }
    }
}
