//! One part on its way into a place.

use steep_protocol::frame::FrameHead;
use steep_protocol::{ByteCount, PartNo, RowCount};

use super::Writing;
use crate::content::ContentWriter;
use crate::error::Error;
use crate::index::IndexSums;
use crate::manifest::StoredPart;
use crate::name::Cipher;

/// A part that is being written. Dropping it removes what was written.
#[derive(Debug)]
pub struct PartFile {
    writing: Writing,
    no: PartNo,
    sums: IndexSums,
    data: ContentWriter,
    index: ContentWriter,
}

impl PartFile {
    pub(super) async fn begin(writing: Writing, no: PartNo) -> Result<Self, Error> {
        let names = writing.names();
        let data = writing.begin(names.data(no)).await?;
        let index = writing.begin(names.index(no)).await?;
        Ok(Self {
            writing,
            no,
            sums: IndexSums::new(names.packing),
            data,
            index,
        })
    }

    /// Appends a chunk as [`crate::chunk::Packer::stored`] made it. The digest in its head is trusted.
    /// Not cancel-safe: a part whose `chunk` was dropped midway is only good for dropping.
    ///
    /// # Errors
    /// [`Error::Full`], [`Error::Misuse`] if it is not a chunk of the snapshot's codec, or the place's own
    /// error.
    pub async fn chunk(&mut self, head: FrameHead, payload: &[u8]) -> Result<(), Error> {
        let fits = matches!(head, FrameHead::Chunk { wire, .. } if wire as usize == payload.len());
        if !fits {
            return Err(self.misuse("a chunk's head does not match its payload".to_owned()));
        }
        let counted = self.sums.push(&head);
        counted.map_err(|why| self.misuse(why))?;
        self.data.write(payload).await?;
        self.index.write(&head.to_bytes()).await
    }

    /// Makes the part durable: its data first, then its index, which makes it whole.
    ///
    /// # Errors
    /// [`Error::Full`] or the place's own error; nothing of the part counts then.
    pub async fn finish(mut self, rows: RowCount) -> Result<StoredPart, Error> {
        let end = FrameHead::End {
            chunks: self.sums.chunks,
            raw: self.sums.bytes,
            rows,
        };
        self.index.write(&end.to_bytes()).await?;
        let data = self.data.finish().await?;
        let index = self.index.finish().await?;
        let part = StoredPart {
            no: self.no,
            rows,
            chunks: self.sums.chunks,
            bytes: self.sums.bytes,
            stored_bytes: ByteCount(data.bytes),
            sha256: data.sha256,
            blake3: data.blake3,
            index_blake3: index.blake3,
            index_bytes: match self.writing.names().cipher {
                Cipher::None => None,
                Cipher::Age => Some(ByteCount(index.bytes)),
            },
        };
        self.writing.add(part);
        Ok(part)
    }

    fn misuse(&self, why: String) -> Error {
        self.writing.misuse(format!("part {}: {why}", self.no))
    }
}
