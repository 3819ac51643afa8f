//! Says what a wrong file is: swapped, another snapshot's, truncated or damaged.

use steep_protocol::frame::HEAD_LENGTH;

use super::Archive;
use crate::content::{ContentReader, Digesting};
use crate::error::{Error, Problem, ProblemKind};
use crate::index::IndexSums;
use crate::manifest::StoredPart;
use crate::name::{Cipher, FileName};

/// Longer indexes of wrong length are not read to say what they are: a part of 6 TB.
const READ_MAX: u64 = 1024 * 1024 * 1024;

/// What an index says.
struct Heads {
    sums: IndexSums,
    /// Why it is none.
    broken: Option<String>,
    /// Of what is stored.
    digest: [u8; 32],
}

impl Archive {
    /// Reads a part's index as a whole: its heads add up, and it is the one that was written. Of an encrypted one
    /// without a key, only the latter can be told.
    pub(super) async fn check_index(&self, part: &StoredPart) -> Result<(), Error> {
        let name = self.manifest().names().index(part.no);
        let problem = |kind| Err(Problem::new(name, kind).at(self.location()));
        let Some(length) = self.place().length(name).await? else {
            return problem(ProblemKind::Missing);
        };
        let expected = part.stored_index_bytes().0;
        if length > READ_MAX.max(expected) {
            let why = format!("it has {length} bytes where the manifest says {expected}");
            return problem(ProblemKind::Damaged(why));
        }
        if name.cipher() != Cipher::None {
            // Whatever was changed cannot be decrypted: what it is shows before.
            let digest = self.place().digests(name, length).await?.blake3;
            if digest != part.index_blake3 {
                return problem(
                    self.wrong_index(digest.0, (length, expected))
                        .unwrap_or_else(|| {
                            ProblemKind::Damaged("it is not the one that was written".to_owned())
                        }),
                );
            }
            if self.check_keys().is_err() {
                return Ok(());
            }
        }
        let Heads {
            sums,
            broken,
            digest,
        } = self.read_index(name, length).await?;
        if digest == part.index_blake3.0 {
            let same = (sums.chunks, sums.bytes, sums.rows)
                == (part.chunks, part.bytes, Some(part.rows))
                && (name.cipher() != Cipher::None || sums.stored_bytes == part.stored_bytes);
            return match broken {
                None if same => Ok(()),
                None => problem(ProblemKind::Damaged(
                    "it does not match the manifest".to_owned(),
                )),
                Some(why) => problem(ProblemKind::Damaged(why)),
            };
        }
        let is_whole = broken.is_none() && sums.rows.is_some();
        let as_long = (sums.chunks, sums.bytes, sums.stored_bytes, sums.rows)
            == (part.chunks, part.bytes, part.stored_bytes, Some(part.rows));
        match self.wrong_index(digest, (length, expected)) {
            Some(kind @ ProblemKind::Swapped { .. }) => problem(kind),
            // A digest in it was changed.
            None if is_whole && as_long => problem(ProblemKind::Damaged(
                "it is not the one that was written".to_owned(),
            )),
            _ if is_whole => {
                let why = "it is the index of a part that the manifest does not name".to_owned();
                problem(ProblemKind::Foreign(why))
            }
            Some(kind) => problem(kind),
            None => problem(ProblemKind::Damaged(
                broken.unwrap_or_else(|| "it has no end".to_owned()),
            )),
        }
    }

    async fn read_index(&self, name: FileName, length: u64) -> Result<Heads, Error> {
        let how = (self.keys(), Digesting::Yes);
        let mut heads = ContentReader::new(self.place(), name, length, how);
        let mut sums = IndexSums::new(self.manifest().codec.packing());
        let mut broken = None;
        loop {
            // No more than a head at once.
            let head = heads.take_up_to(HEAD_LENGTH).await?;
            if head.is_empty() {
                break;
            }
            if broken.is_none() {
                broken = sums.decode(&head).err();
            }
        }
        let digest = heads.digests().map_or([0; 32], |digests| digests.blake3.0);
        Ok(Heads {
            sums,
            broken,
            digest,
        })
    }

    /// What an index of that digest and length is, if that says it.
    fn wrong_index(&self, digest: [u8; 32], (length, expected): (u64, u64)) -> Option<ProblemKind> {
        let mut parts = self.manifest().parts();
        if let Some(other) = parts.find(|part| part.index_blake3.0 == digest) {
            let with = self.manifest().names().index(other.no).to_string();
            return Some(ProblemKind::Swapped { with });
        }
        (length < expected).then_some(ProblemKind::Truncated { length, expected })
    }

    /// What a part's data of that length is, if it is not as long as it should be.
    pub(super) async fn check_length(
        &self,
        part: &StoredPart,
        length: Option<u64>,
    ) -> Result<(), Error> {
        let expected = part.stored_bytes.0;
        let kind = match length {
            None => ProblemKind::Missing,
            Some(length) if length == expected => return Ok(()),
            Some(length) => match self.whose(part, length).await? {
                Some(with) => ProblemKind::Swapped { with },
                None if length < expected => ProblemKind::Truncated { length, expected },
                None => ProblemKind::Damaged(format!(
                    "it has {length} bytes where the manifest says {expected}"
                )),
            },
        };
        Err(Problem::new(self.data_name(part.no), kind).at(self.location()))
    }

    /// The other file of this snapshot whose content a part's data has. Reads it only if another file has
    /// that length.
    pub(super) async fn whose(
        &self,
        part: &StoredPart,
        length: u64,
    ) -> Result<Option<String>, Error> {
        let others = || {
            self.manifest()
                .parts()
                .filter(|other| other.no != part.no && other.stored_bytes.0 == length)
        };
        if length == 0 || others().next().is_none() {
            return Ok(None);
        }
        let digest = self
            .place()
            .digests(self.data_name(part.no), length)
            .await?;
        let other = others().find(|other| other.blake3 == digest.blake3);
        Ok(other.map(|other| self.data_name(other.no).to_string()))
    }

    /// Checks a part's files as they are stored.
    pub(crate) async fn check_stored_part(&self, part: &StoredPart) -> Result<(), Error> {
        self.check_index(part).await?;
        let name = self.data_name(part.no);
        let length = self.place().length(name).await?;
        self.check_length(part, length).await?;
        let digests = self.place().digests(name, part.stored_bytes.0).await?;
        if (digests.sha256, digests.blake3) == (part.sha256, part.blake3) {
            return Ok(());
        }
        let kind = match self.whose(part, part.stored_bytes.0).await? {
            Some(with) => ProblemKind::Swapped { with },
            None => ProblemKind::Damaged("its digests are not those of the manifest".to_owned()),
        };
        Err(Problem::new(name, kind).at(self.location()))
    }
}
