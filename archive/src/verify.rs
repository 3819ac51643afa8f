//! Reads a whole snapshot and checks everything that can be checked.

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use steep_protocol::frame::FrameHead;
use steep_protocol::{ByteCount, RowCount};

use crate::blocking::offload;
use crate::chunk::Unpacker;
use crate::error::{Error, Problem, ProblemKind};
use crate::manifest::StoredPart;
use crate::name::FileName;
use crate::place::Digests;
use crate::read::{Archive, problem};

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
}

/// A part's file so far.
#[derive(Default)]
struct Content {
    digests: Digests,
    unpacker: Unpacker,
    rows: u64,
}

impl Content {
    fn chunk(&mut self, head: FrameHead, payload: &Bytes) -> Result<(), String> {
        self.digests.update(payload);
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
    /// and length, and each part's rows, counted as lines. `progress` hears of each part.
    ///
    /// # Errors
    /// The place's own error. A broken file is a problem in the result, and the others are still read.
    pub async fn verify(
        &self,
        parallel: usize,
        mut progress: impl FnMut(Progress),
    ) -> Result<Verified, Error> {
        let mut verified = Verified::default();
        let sections = self.schema().await.map(drop);
        verified.problems.extend(problem(sections)?);
        let sequences = self.sequences().await.map(drop);
        verified.problems.extend(problem(sequences)?);
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
    let result = read_part(&archive, &part).await;
    (part, result)
}

async fn read_part(archive: &Archive, part: &StoredPart) -> Result<(), Error> {
    let name = FileName::Data(part.no, archive.manifest().codec.packing().into());
    let damaged = |why| Problem::new(name, ProblemKind::Damaged(why)).at(archive.location());
    let mut reader = archive.part(part.no).await?;
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
    let digests = content.digests.finish();
    if (digests.sha256, digests.blake3) != (part.sha256, part.blake3) {
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
