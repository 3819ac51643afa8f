//! Reads a whole snapshot and checks everything that can be checked.

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use steep_protocol::frame::FrameHead;
use steep_protocol::{ByteCount, RowCount};

use crate::blocking::offload;
use crate::chunk::Unpacker;
use crate::content::Digesting;
use crate::error::{Error, Problem};
use crate::manifest::StoredPart;
use crate::read::{Archive, StoredReader, problem};

/// How far [`Archive::verify`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// Parts that have been read, whole or broken.
    pub parts: u64,
    /// Their files' bytes, as the manifest says.
    pub stored_bytes: ByteCount,
}

/// What [`Archive::verify`] found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Verified {
    /// Every problem, in the order of the manifest; none if all is well.
    pub problems: Vec<Problem>,
    /// Parts that are whole.
    pub parts: u64,
    /// Rows counted in them.
    pub rows: RowCount,
    /// Bytes of COPY data in them.
    pub bytes: ByteCount,
    /// Why rows could not be read, if so: they are encrypted, and there is no key for them. Then files were checked as
    /// they are stored, and rows and bytes were not counted.
    pub unread: Option<String>,
}

/// A part's rows so far.
#[derive(Default)]
struct Content {
    unpacker: Unpacker,
    rows: u64,
}

impl Content {
    fn chunk(&mut self, head: FrameHead, payload: &Bytes) -> Result<(), String> {
        let FrameHead::Chunk { packing, raw, .. } = head else {
            return Ok(());
        };
        let raw = self
            .unpacker
            .unpack_digested(packing, raw, payload)
            .map_err(|e| e.to_string())?;
        // COPY's text format escapes line ends in values.
        self.rows += memchr::memchr_iter(b'\n', raw).count() as u64;
        Ok(())
    }
}

impl Archive {
    /// Reads everything, at most `parallel` parts at once: both digests of each file, every chunk's digest
    /// and length, and each part's rows, counted as lines. `progress` hears of each part. Without a key, an encrypted
    /// snapshot is compared with its manifest as it is stored.
    ///
    /// # Errors
    /// The place's own error. A broken file is a problem in the result, and the others are still read.
    pub async fn verify(
        &self,
        parallel: usize,
        mut progress: impl FnMut(Progress),
    ) -> Result<Verified, Error> {
        let unread = self.check_keys().err();
        let mut verified = Verified {
            problems: self.check_whole_files().await?,
            unread: unread.map(|error| error.to_string()),
            ..Verified::default()
        };
        let readable = verified.unread.is_none();
        let parts: Vec<StoredPart> = self.manifest().parts().copied().collect();
        let checks = parts
            .into_iter()
            .map(|part| verify_part(self.clone(), part));
        let mut checked = stream::iter(checks).buffered(parallel.max(1));
        let mut so_far = Progress::default();
        while let Some(found) = checked.next().await {
            let (part, result) = found;
            so_far.parts += 1;
            so_far.stored_bytes += part.stored_bytes;
            match problem(result)? {
                Some(problem) => verified.problems.push(problem),
                None if !readable => verified.parts += 1,
                None => {
                    verified.parts += 1;
                    verified.rows += part.rows;
                    verified.bytes += part.bytes;
                }
            }
            progress(so_far);
        }
        Ok(verified)
    }
}

async fn verify_part(archive: Archive, part: StoredPart) -> (StoredPart, Result<(), Error>) {
    let result = match archive.check_keys() {
        Ok(()) => read_part(&archive, &part).await,
        Err(_) => archive.check_stored_part(&part).await,
    };
    (part, result)
}

async fn read_part(archive: &Archive, part: &StoredPart) -> Result<(), Error> {
    let name = archive.manifest().names().data(part.no);
    let damaged = |why: String| Problem::damaged(name, why).at(archive.location());
    let mut reader = StoredReader::open(archive, part.no, Digesting::Yes).await?;
    let mut content = Content::default();
    let mut chunk = 0u64;
    while let Some((head, payload)) = reader.next().await? {
        chunk += 1;
        let done = offload(&mut content, move |content: &mut Content| {
            content.chunk(head, &payload)
        });
        let done = done.await;
        done.map_err(|why| damaged(format!("chunk {chunk} of {}: {why}", part.chunks)))?;
    }
    let digests = reader.data_digests();
    if digests.map(|digests| (digests.sha256, digests.blake3)) != Some((part.sha256, part.blake3)) {
        return Err(damaged(
            "its digests are not those of the manifest".to_owned(),
        ));
    }
    if content.rows != part.rows.0 {
        let why = format!(
            "it has {} rows where the manifest says {}",
            content.rows, part.rows.0
        );
        return Err(damaged(why));
    }
    Ok(())
}
