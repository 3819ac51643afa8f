//! Says what a wrong file is: swapped, another snapshot's, truncated or damaged.

use steep_protocol::frame::HEAD_LENGTH;

use super::Archive;
use crate::blocking::offload;
use crate::error::{Error, Problem, ProblemKind};
use crate::index::{IndexSums, index_bytes};
use crate::manifest::StoredPart;
use crate::name::FileName;
use crate::place::{Digests, FileReader};

/// Longer indexes of wrong length are not read to say what they are: a part of 6 TB.
const READ_MAX: u64 = 1024 * 1024 * 1024;

impl Archive {
    /// Reads a part's index as a whole: its heads add up, and it is the one that was written.
    pub(super) async fn check_index(&self, part: &StoredPart) -> Result<(), Error> {
        let name = FileName::Index(part.no);
        let problem = |kind| Err(Problem::new(name, kind).at(self.location()));
        let Some(length) = self.place().length(name).await? else {
            return problem(ProblemKind::Missing);
        };
        let expected = index_bytes(part.chunks);
        if length > READ_MAX.max(expected) {
            let why = format!("it has {length} bytes where the manifest says {expected}");
            return problem(ProblemKind::Damaged(why));
        }
        let mut heads = FileReader::new(self.place().clone(), name, length);
        let mut sums = IndexSums::new(self.manifest().codec.packing());
        let mut hasher = blake3::Hasher::new();
        let mut broken = None;
        let mut left = length;
        while left > 0 {
            let taken = left.min(HEAD_LENGTH as u64);
            left -= taken;
            // No more than a head at once.
            let head = heads
                .take(usize::try_from(taken).unwrap_or(HEAD_LENGTH))
                .await?;
            hasher.update(&head);
            if broken.is_none() {
                broken = sums.decode(&head).err();
            }
        }
        let digest = *hasher.finalize().as_bytes();
        let same = (sums.chunks, sums.bytes, sums.stored_bytes, sums.rows)
            == (part.chunks, part.bytes, part.stored_bytes, Some(part.rows));
        if digest == part.index_blake3.0 {
            return match broken {
                None if same => Ok(()),
                None => problem(ProblemKind::Damaged(
                    "it does not match the manifest".to_owned(),
                )),
                Some(why) => problem(ProblemKind::Damaged(why)),
            };
        }
        if let Some(other) = self.manifest().parts().find(|p| p.index_blake3.0 == digest) {
            let with = FileName::Index(other.no).to_string();
            return problem(ProblemKind::Swapped { with });
        }
        match broken {
            None if sums.rows.is_some() => {
                let why = "it is the index of a part that the manifest does not name".to_owned();
                problem(ProblemKind::Foreign(why))
            }
            _ if length < expected => problem(ProblemKind::Truncated { length, expected }),
            Some(why) => problem(ProblemKind::Damaged(why)),
            None => problem(ProblemKind::Damaged("it has no end".to_owned())),
        }
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

    /// What a part's data is whose chunk is not that of its index.
    pub(crate) async fn wrong_chunk(
        &self,
        part: &StoredPart,
        chunk: u64,
    ) -> Result<Problem, Error> {
        let name = self.data_name(part.no);
        let kind = match self.whose(part, part.stored_bytes.0).await? {
            Some(with) => ProblemKind::Swapped { with },
            None => ProblemKind::Damaged(format!(
                "chunk {chunk} of {} is not the one that was written",
                part.chunks
            )),
        };
        Ok(Problem::new(name, kind))
    }

    /// The other file of this snapshot whose content a part's data has. Reads it only if another file has
    /// that length.
    async fn whose(&self, part: &StoredPart, length: u64) -> Result<Option<String>, Error> {
        let others = || {
            self.manifest()
                .parts()
                .filter(|other| other.no != part.no && other.stored_bytes.0 == length)
        };
        if length == 0 || others().next().is_none() {
            return Ok(None);
        }
        let mut file = FileReader::new(self.place().clone(), self.data_name(part.no), length);
        let mut digests = Digests::default();
        loop {
            let bytes = file.take_some().await?;
            if bytes.is_empty() {
                break;
            }
            offload(&mut digests, move |digests: &mut Digests| {
                digests.update(&bytes);
            })
            .await;
        }
        let digest = digests.finish().blake3;
        let other = others().find(|other| other.blake3 == digest);
        Ok(other.map(|other| self.data_name(other.no).to_string()))
    }
}
