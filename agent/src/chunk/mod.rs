//! COPY data in pieces: cut to size, packed, digested, on the way out; the reverse on the way in. Packing
//! itself is in `steep_archive::chunk`, since stored chunks are the same bytes.
//!
//! The two traits here are the seam of the whole data path: anything that yields a part's bytes is a
//! [`PartReader`] (a COPY under the snapshot, a chunk store, a schema dump), anything that takes them
//! is a [`PartWriter`] (a COPY into the target, a chunk store).

use std::future::Future;

use steep_protocol::frame::FrameHead;
use steep_protocol::message::peer::PartSum;
use steep_protocol::{ByteCount, Fault, RowCount, Sum};

pub use steep_archive::chunk::{PackError, Packer, Unpacker, context_bytes};

/// The bytes of one part, in order, pulled.
pub trait PartReader: Send {
    /// Appends bytes to `into` until it holds `limit` bytes or the part ends. Never makes it longer
    /// than `limit`, whatever the size of a row. Not cancel-safe: a reader whose `read` was dropped
    /// midway is only good for dropping.
    fn read(
        &mut self,
        into: &mut Vec<u8>,
        limit: usize,
    ) -> impl Future<Output = Result<ReadStep, Fault>> + Send;
}

/// How a [`PartReader::read`] ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadStep {
    /// The buffer is full; more may follow.
    More,
    /// The part is complete. `into` may hold its last bytes.
    End {
        /// Rows in the whole part, as the source counted them.
        rows: RowCount,
    },
}

/// Takes the bytes of one part, in order. Dropping it without [`PartWriter::commit`] takes back
/// everything written.
pub trait PartWriter: Send {
    /// Takes the next bytes.
    fn write(&mut self, data: &[u8]) -> impl Future<Output = Result<(), Fault>> + Send;

    /// Makes the part durable together with its ledger row, if it counted as many rows as were sent.
    fn commit(self, sent: Sent) -> impl Future<Output = Result<(), Fault>> + Send;
}

/// The frames of a part that was packed before, in order, pulled.
pub(crate) trait FrameReader: Send {
    /// The next frame; the last is the end's head, without a payload.
    fn next(&mut self) -> impl Future<Output = Result<(FrameHead, Vec<u8>), Fault>> + Send;
}

/// What the sending end says a part was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sent {
    /// Rows.
    pub rows: RowCount,
    /// COPY bytes.
    pub bytes: ByteCount,
    /// Bytes on the wire.
    pub wire: ByteCount,
    /// Digest of the frames' heads, as in [`PartSum`].
    pub heads: Sum,
}

impl Sent {
    /// What anybody who passes the part on has to send.
    pub(crate) fn sum(&self) -> PartSum {
        PartSum {
            heads: self.heads,
            rows: self.rows,
            bytes: self.bytes,
        }
    }
}

/// Digests a part's frames by their heads, which hold the digests of the payloads.
#[derive(Debug, Default)]
pub(crate) struct Heads(Box<blake3::Hasher>);

impl Heads {
    pub(crate) fn add(&mut self, head: FrameHead) {
        self.0.update(&head.to_bytes());
    }

    /// With the end's head as the last one.
    pub(crate) fn sum(&self) -> Sum {
        Sum(self.0.finalize().into())
    }
}
