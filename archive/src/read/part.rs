//! One part on its way out of a place.

use bytes::Bytes;
use steep_protocol::PartNo;
use steep_protocol::frame::{FrameHead, HEAD_LENGTH};
use steep_protocol::stored::StoredCodec;

use super::Archive;
use crate::error::{Error, Problem};
use crate::index::{IndexSums, index_bytes};
use crate::manifest::StoredPart;
use crate::name::FileName;
use crate::place::{FileReader, Place};

/// The frames of a stored part, in the order and form of the wire: to serve it, send each head and its
/// payload. Holds some pieces of a few MiB, whatever the part's size.
#[derive(Debug)]
pub struct StoredReader {
    place: Place,
    name: FileName,
    part: StoredPart,
    /// Of a complete snapshot: it can tell swapped files from damaged ones.
    archive: Option<Archive>,
    heads: FileReader,
    data: FileReader,
    sums: IndexSums,
    hasher: blake3::Hasher,
    /// A head whose payload was not taken yet.
    next: Option<FrameHead>,
}

impl StoredReader {
    /// Bytes of memory that a reader holds at most: of two files, a piece in use, one ahead.
    pub const MEMORY: usize = 4 * FileReader::PIECE as usize;

    pub(super) async fn open(archive: &Archive, no: PartNo) -> Result<Self, Error> {
        let missing = || Error::NoSuchPart {
            place: archive.location().clone(),
            no,
        };
        let part = *archive.find(no).ok_or_else(missing)?.1;
        archive.check_index(&part).await?;
        let name = archive.data_name(no);
        let length = archive.place().length(name).await?;
        archive.check_length(&part, length).await?;
        let codec = archive.manifest().codec;
        let reader = Self::of(archive.place().clone(), codec, part);
        Ok(Self {
            archive: Some(archive.clone()),
            ..reader
        })
    }

    /// A part whose files have been written.
    pub(crate) fn of(place: Place, codec: StoredCodec, part: StoredPart) -> Self {
        let name = FileName::Data(part.no, codec.packing().into());
        let index = FileName::Index(part.no);
        Self {
            heads: FileReader::new(place.clone(), index, index_bytes(part.chunks)),
            data: FileReader::new(place.clone(), name, part.stored_bytes.0),
            sums: IndexSums::new(codec.packing()),
            hasher: blake3::Hasher::new(),
            next: None,
            archive: None,
            place,
            name,
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
            self.hasher.update(&bytes);
            self.next = Some(head.map_err(|why| self.changed(&why))?);
        }
        let Some(head) = self.next else {
            return Ok(None);
        };
        let FrameHead::Chunk { wire, digest, .. } = head else {
            // It was right when the part was opened.
            if self.hasher.finalize() != self.part.index_blake3.0 {
                return Err(self.changed("it was changed meanwhile"));
            }
            self.next = None;
            return Ok(Some((head, Bytes::new())));
        };
        let payload = self.data.take(wire as usize).await?;
        if *blake3::hash(&payload).as_bytes() != digest {
            let problem = match &self.archive {
                Some(archive) => archive.wrong_chunk(&self.part, self.sums.chunks).await?,
                None => Problem::damaged(self.name, "it was changed after it was written"),
            };
            return Err(problem.at(self.place.location()));
        }
        self.next = None;
        Ok(Some((head, payload)))
    }

    fn changed(&self, why: &str) -> Error {
        Problem::damaged(FileName::Index(self.part.no), why).at(self.place.location())
    }
}
