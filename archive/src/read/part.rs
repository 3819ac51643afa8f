//! One part on its way out of a place.

use bytes::Bytes;
use steep_protocol::PartNo;
use steep_protocol::frame::{FrameHead, HEAD_LENGTH};

use super::Archive;
use crate::content::{ContentReader, Digesting};
use crate::error::{Error, Problem, ProblemKind};
use crate::index::IndexSums;
use crate::keys::Keys;
use crate::manifest::StoredPart;
use crate::name::Names;
use crate::place::{FileDigests, Place};

/// The frames of a stored part, in the order and form of the wire: to serve it, send each head and its
/// payload. Holds some pieces of a few MiB, whatever the part's size.
#[derive(Debug)]
pub struct StoredReader {
    place: Place,
    names: Names,
    part: StoredPart,
    /// Of a complete snapshot: it can tell swapped files from damaged ones.
    archive: Option<Archive>,
    heads: ContentReader,
    data: ContentReader,
    sums: IndexSums,
    /// A head whose payload was not taken yet.
    next: Option<FrameHead>,
}

impl StoredReader {
    /// Bytes of memory that a reader holds at most: of two files.
    pub const MEMORY: usize = 2 * ContentReader::MEMORY as usize;

    /// `digesting` also digests the data's file.
    pub(crate) async fn open(
        archive: &Archive,
        no: PartNo,
        digesting: Digesting,
    ) -> Result<Self, Error> {
        let missing = || Error::NoSuchPart {
            place: archive.location().clone(),
            no,
        };
        let part = *archive.find(no).ok_or_else(missing)?.1;
        archive.check_keys()?;
        archive.check_index(&part).await?;
        let length = archive.place().length(archive.data_name(no)).await?;
        archive.check_length(&part, length).await?;
        let names = archive.manifest().names();
        let how = (archive.keys(), digesting);
        let reader = Self::of(archive.place().clone(), names, part, how);
        Ok(Self {
            archive: Some(archive.clone()),
            ..reader
        })
    }

    /// A part whose files have been written.
    pub(crate) fn of(
        place: Place,
        names: Names,
        part: StoredPart,
        (keys, digesting): (&Keys, Digesting),
    ) -> Self {
        let (index, data) = (names.index(part.no), names.data(part.no));
        let index_bytes = part.stored_index_bytes().0;
        Self {
            heads: ContentReader::new(&place, index, index_bytes, (keys, Digesting::Yes)),
            data: ContentReader::new(&place, data, part.stored_bytes.0, (keys, digesting)),
            sums: IndexSums::new(names.packing),
            next: None,
            archive: None,
            place,
            names,
            part,
        }
    }

    /// The part as the manifest describes it.
    #[must_use]
    pub fn part(&self) -> &StoredPart {
        &self.part
    }

    /// The next frame: a chunk's head with its payload, whose digest has been checked; at last the end's
    /// head with an empty payload; then `None`. Cancel-safe.
    ///
    /// # Errors
    /// [`Error::Problem`] or the place's own error. The reader is only good for dropping then.
    pub async fn next(&mut self) -> Result<Option<(FrameHead, Bytes)>, Error> {
        if self.next.is_none() {
            if self.sums.rows.is_some() {
                return Ok(None);
            }
            let bytes = self.heads.take(HEAD_LENGTH).await?;
            let head = self.sums.decode(&bytes);
            self.next = Some(head.map_err(|why| self.changed(&why))?);
        }
        let Some(head) = self.next else {
            return Ok(None);
        };
        let FrameHead::Chunk { wire, digest, .. } = head else {
            // It was right when the part was opened.
            let at_end = self.heads.is_at_end().await?;
            let digests = self.heads.digests().filter(|_| at_end);
            if digests.map(|digests| digests.blake3) != Some(self.part.index_blake3) {
                return Err(self.changed("it was changed meanwhile"));
            }
            if !self.data.is_at_end().await? {
                let name = self.names.data(self.part.no);
                let problem = Problem::damaged(name, "it goes on after its last chunk");
                return Err(problem.at(self.place.location()));
            }
            self.next = None;
            return Ok(Some((head, Bytes::new())));
        };
        let payload = match self.data.take(wire as usize).await {
            Ok(payload) => payload,
            Err(Error::Problem { problem, .. }) => return Err(self.wrong_chunk(problem).await),
            Err(error) => return Err(error),
        };
        if *blake3::hash(&payload).as_bytes() != digest {
            let why = match &self.archive {
                Some(_) => format!(
                    "chunk {} of {} is not the one that was written",
                    self.sums.chunks, self.part.chunks
                ),
                None => "it was changed after it was written".to_owned(),
            };
            let problem = Problem::damaged(self.names.data(self.part.no), why);
            return Err(self.wrong_chunk(problem).await);
        }
        self.next = None;
        Ok(Some((head, payload)))
    }

    /// The digests of the data's file as it is stored, after its last frame, if they were asked for.
    pub(crate) fn data_digests(&mut self) -> Option<FileDigests> {
        self.data.digests()
    }

    /// What the data's file is whose next chunk is not there: another file, or as `problem` says.
    async fn wrong_chunk(&self, mut problem: Problem) -> Error {
        let told = matches!(problem.kind, ProblemKind::Damaged(_));
        if let Some(archive) = self.archive.as_ref().filter(|_| told) {
            match archive.whose(&self.part, self.part.stored_bytes.0).await {
                Ok(Some(with)) => problem.kind = ProblemKind::Swapped { with },
                Ok(None) => {}
                Err(error) => return error,
            }
        }
        problem.at(self.place.location())
    }

    fn changed(&self, why: &str) -> Error {
        Problem::damaged(self.names.index(self.part.no), why).at(self.place.location())
    }
}
