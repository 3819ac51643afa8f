//! One part over one QUIC stream: frames out of a [`PartReader`], frames into a [`PartWriter`].

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use steep_protocol::frame::{FrameHead, HEAD_LENGTH};
use steep_protocol::limits::CHUNK_RAW_MAX;
use steep_protocol::quic::{Receiver, Sender, StreamError};
use steep_protocol::{ByteCount, Fault, FaultKind, Retry, Sum, codec};

use super::exchange::Tee;
use super::expected::Expected;
use crate::chunk::{
    FrameReader, Heads, PackError, Packer, PartReader, PartWriter, ReadStep, Sent, Unpacker,
};
use crate::rate::Rate;
use crate::snapshot::stored::StoredFrames;
use crate::telemetry::Flow;

/// Frames are handed to QUIC together once they hold this many bytes…
const TOGETHER_BYTES: usize = 64 * 1024;

/// …or this many bytes unpacked, so that a well-packed stream keeps moving…
const TOGETHER_RAW: ByteCount = ByteCount(1024 * 1024);

/// …or the first of them has waited this long, as with a slow reader.
const TOGETHER_WAIT: Duration = Duration::from_millis(100);

/// Sends everything a reader has, then the end frame; or a fault frame where the reader fails.
/// `flow` counts what has gone.
///
/// Returns what was sent; where the reader failed, its fault.
///
/// # Errors
/// [`StreamError`] where the receiving end is gone; the reader's own faults go to the peer.
pub async fn send<R: PartReader>(
    reader: &mut R,
    mut packer: Packer,
    sender: &mut Sender,
    flow: &Flow,
) -> Result<Result<Sent, Fault>, StreamError> {
    let mut chunks = 0u64;
    let (mut total, mut on_wire) = (ByteCount(0), ByteCount(0));
    let mut raw = Vec::new();
    let mut held = Held::default();
    loop {
        raw.clear();
        raw.reserve_exact(CHUNK_RAW_MAX);
        let step = match reader.read(&mut raw, CHUNK_RAW_MAX).await {
            Ok(step) => step,
            Err(fault) => {
                send_fault(&fault, sender).await?;
                return Ok(Err(fault));
            }
        };
        if !raw.is_empty() {
            chunks += 1;
            let length = ByteCount(raw.len() as u64);
            total += length;
            let (head, payload) = match packer.pack(&mut raw) {
                Ok(packed) => packed,
                Err(error) => {
                    let fault = chunk_fault(&error);
                    send_fault(&fault, sender).await?;
                    return Ok(Err(fault));
                }
            };
            on_wire += held
                .hand_over((head, payload), length, sender, flow)
                .await?;
        }
        if let ReadStep::End { rows } = step {
            let raw = total;
            let end = FrameHead::End { chunks, raw, rows };
            let heads = held.end(end, sender, flow).await?;
            flow.completed(rows);
            return Ok(Ok(Sent {
                rows,
                bytes: total,
                wire: on_wire,
                heads,
            }));
        }
    }
}

/// Sends a part as it was packed before; or a fault frame where it cannot be read. `flow` counts what has
/// gone.
///
/// Returns what was sent; where the part cannot be read, its fault.
///
/// # Errors
/// [`StreamError`] where the receiving end is gone.
pub(crate) async fn send_frames<R: FrameReader>(
    reader: &mut R,
    sender: &mut Sender,
    flow: &Flow,
) -> Result<Result<Sent, Fault>, StreamError> {
    let mut on_wire = ByteCount(0);
    let mut held = Held::default();
    loop {
        let (head, payload) = match reader.next().await {
            Ok(frame) => frame,
            Err(fault) => {
                send_fault(&fault, sender).await?;
                return Ok(Err(fault));
            }
        };
        match head {
            FrameHead::Chunk { raw, .. } => {
                let raw = ByteCount(raw.into());
                on_wire += held.hand_over((head, payload), raw, sender, flow).await?;
            }
            FrameHead::End { raw, rows, .. } => {
                let heads = held.end(head, sender, flow).await?;
                flow.completed(rows);
                return Ok(Ok(Sent {
                    rows,
                    bytes: raw,
                    wire: on_wire,
                    heads,
                }));
            }
            FrameHead::Fault { .. } => return Err(StreamError::Finished),
        }
    }
}

/// Frames collected for one hand-over: a well-packed chunk is small, and a hand-over costs as much as
/// packing it.
#[derive(Debug, Default)]
struct Held {
    frames: Vec<Vec<u8>>,
    raw: ByteCount,
    wire: ByteCount,
    since: Option<Instant>,
    /// Of the whole part.
    heads: Heads,
}

impl Held {
    /// Returns the chunk's bytes on the wire.
    fn add(&mut self, head: FrameHead, payload: Vec<u8>, raw: ByteCount) -> ByteCount {
        let wire = ByteCount((payload.len() + HEAD_LENGTH) as u64);
        self.heads.add(head);
        self.frames.extend([head.to_bytes().to_vec(), payload]);
        self.raw += raw;
        self.wire += wire;
        self.since.get_or_insert_with(Instant::now);
        wire
    }

    /// One hand-over takes no more memory than a chunk.
    fn has_room(&self, payload: usize) -> bool {
        self.wire.0 as usize + payload <= CHUNK_RAW_MAX
    }

    fn is_due(&self) -> bool {
        self.wire.0 >= TOGETHER_BYTES as u64
            || self.raw >= TOGETHER_RAW
            || self.since.is_some_and(|t| t.elapsed() >= TOGETHER_WAIT)
    }

    /// Takes a chunk, and sends what is due. Returns the chunk's bytes on the wire.
    async fn hand_over(
        &mut self,
        (head, payload): (FrameHead, Vec<u8>),
        raw: ByteCount,
        sender: &mut Sender,
        flow: &Flow,
    ) -> Result<ByteCount, StreamError> {
        if !self.has_room(payload.len()) {
            self.send(sender, flow).await?;
        }
        let wire = self.add(head, payload, raw);
        if self.is_due() {
            self.send(sender, flow).await?;
        }
        Ok(wire)
    }

    /// Sends everything, with the part's end. Returns the digest of all heads.
    async fn end(
        &mut self,
        end: FrameHead,
        sender: &mut Sender,
        flow: &Flow,
    ) -> Result<Sum, StreamError> {
        self.heads.add(end);
        self.frames.push(end.to_bytes().to_vec());
        self.send(sender, flow).await?;
        sender.finish();
        Ok(self.heads.sum())
    }

    async fn send(&mut self, sender: &mut Sender, flow: &Flow) -> Result<(), StreamError> {
        let frames = std::mem::take(&mut self.frames);
        let (raw, wire) = (self.raw, self.wire);
        (self.raw, self.wire, self.since) = (ByteCount(0), ByteCount(0), None);
        sender.send_pieces(frames).await?;
        flow.moved(raw, wire);
        Ok(())
    }
}

/// Sends the fault frame that ends a stream of frames.
///
/// # Errors
/// [`StreamError`] where the receiving end is gone.
pub async fn send_fault(fault: &Fault, sender: &mut Sender) -> Result<(), StreamError> {
    let body = codec::encode(fault)?;
    let length = u32::try_from(body.len()).expect("a control frame's length fits");
    sender.send_head(FrameHead::Fault { length }).await?;
    sender.send_bytes(body).await?;
    sender.finish();
    Ok(())
}

/// Where frames come from.
#[derive(Debug)]
enum Frames {
    Stream(Receiver),
    Stored(Box<StoredFrames>),
}

impl Frames {
    /// The next head, and a chunk's payload. A sender's fault is an error.
    async fn next(&mut self, payload: &mut Vec<u8>) -> Result<FrameHead, Fault> {
        let receiver = match self {
            Self::Stream(receiver) => receiver,
            Self::Stored(frames) => {
                let (head, bytes) = frames.next().await?;
                *payload = bytes;
                return Ok(head);
            }
        };
        let head = receiver.recv_head().await.map_err(|e| e.to_fault())?;
        let length = match head {
            FrameHead::Chunk { wire, .. } => wire,
            FrameHead::End { .. } => 0,
            FrameHead::Fault { length } => length,
        };
        payload.resize(length as usize, 0);
        receiver
            .read_exact(payload)
            .await
            .map_err(|e| e.to_fault())?;
        match head {
            FrameHead::Fault { .. } => Err(codec::decode(payload).unwrap_or_else(|e| {
                let text = format!("the source's fault cannot be read: {e}");
                Fault::new(FaultKind::Failed, text)
            })),
            FrameHead::Chunk { .. } | FrameHead::End { .. } => Ok(head),
        }
    }
}

/// A part on its way in: frames, unpacked and checked.
#[derive(Debug)]
pub struct Incoming {
    frames: Frames,
    chunks: u64,
    raw: ByteCount,
    wire: ByteCount,
    payload: Vec<u8>,
    unpacker: Unpacker,
    heads: Heads,
    /// What has to arrive, where another target sends it.
    expected: Option<Expected>,
    /// Keeps the frames for others.
    tee: Option<Tee>,
    /// Unpacked bytes not handed out yet; only [`PartReader::read`] leaves any.
    rest: VecDeque<u8>,
}

/// One step of an [`Incoming`] part.
#[derive(Debug)]
pub enum Arrived<'a> {
    /// The next bytes.
    Data(&'a [u8]),
    /// The part is complete, and is what its chunks added up to.
    End(Sent),
}

impl Incoming {
    /// Frames are next on that stream.
    #[must_use]
    pub fn new(receiver: Receiver) -> Self {
        Self::of(Frames::Stream(receiver))
    }

    /// A part of a stored snapshot that this agent reads itself.
    pub(super) fn stored(frames: StoredFrames) -> Self {
        Self::of(Frames::Stored(Box::new(frames)))
    }

    fn of(frames: Frames) -> Self {
        Self {
            frames,
            chunks: 0,
            raw: ByteCount(0),
            wire: ByteCount(0),
            payload: Vec::new(),
            unpacker: Unpacker::default(),
            heads: Heads::default(),
            expected: None,
            tee: None,
            rest: VecDeque::new(),
        }
    }

    /// Hands the frames to `tee` too.
    pub(crate) fn with(mut self, tee: Tee) -> Self {
        self.tee = Some(tee);
        self
    }

    /// Accepts nothing else.
    pub(super) fn expecting(mut self, expected: Expected) -> Self {
        self.expected = Some(expected);
        self
    }

    /// COPY bytes and wire bytes so far.
    #[must_use]
    pub fn so_far(&self) -> (ByteCount, ByteCount) {
        (self.raw, self.wire)
    }

    /// The next bytes or the end. Not cancel-safe.
    ///
    /// # Errors
    /// The source's fault, or one of our own where the stream breaks or its bytes do not add up.
    pub async fn next(&mut self) -> Result<Arrived<'_>, Fault> {
        let head = self.frames.next(&mut self.payload).await?;
        self.heads.add(head);
        match head {
            FrameHead::Chunk {
                packing,
                raw,
                wire,
                digest,
            } => {
                self.chunks += 1;
                self.raw += ByteCount(raw.into());
                self.wire += ByteCount(u64::from(wire) + HEAD_LENGTH as u64);
                if let Some(expected) = &self.expected {
                    expected.admit(self.raw)?;
                }
                if let Some(tee) = &mut self.tee {
                    tee.chunk(head, &self.payload).await;
                }
                self.unpacker
                    .unpack(packing, raw, &digest, &self.payload)
                    .map(Arrived::Data)
                    .map_err(|error| chunk_fault(&error))
            }
            FrameHead::End { chunks, raw, rows } => {
                if chunks != self.chunks || raw != self.raw {
                    return Err(Fault::new(
                        FaultKind::Failed,
                        format!(
                            "a part ended after {} chunks and {} bytes; its source sent {chunks} and {}",
                            self.chunks, self.raw.0, raw.0
                        ),
                    )
                    .retry(Retry::NewConnection));
                }
                let sent = Sent {
                    rows,
                    bytes: raw,
                    wire: self.wire,
                    heads: self.heads.sum(),
                };
                // Nothing else is kept for others, or committed.
                if let Some(expected) = &self.expected {
                    expected.compare(sent.sum())?;
                }
                if let Some(tee) = self.tee.take() {
                    tee.end(head, sent).await;
                }
                Ok(Arrived::End(sent))
            }
            FrameHead::Fault { .. } => {
                let text = "a fault where a chunk was expected";
                Err(Fault::new(FaultKind::Failed, text))
            }
        }
    }

    /// Feeds a writer to the end and commits, in pieces that the rate admits. `report` hears of each.
    ///
    /// # Errors
    /// The first fault of either end; the writer is dropped then, which takes everything back.
    pub async fn pour<W: PartWriter>(
        mut self,
        mut writer: W,
        rate: &Rate,
        mut report: impl FnMut(ByteCount, ByteCount) + Send,
    ) -> Result<Sent, Fault> {
        let mut written = ByteCount(0);
        loop {
            let wire = self.wire;
            match self.next().await? {
                Arrived::Data(mut data) => {
                    while !data.is_empty() {
                        let (piece, rest) = data.split_at(rate.admit(data.len()).await);
                        writer.write(piece).await?;
                        written += ByteCount(piece.len() as u64);
                        // A chunk's bytes on the wire count with its last piece.
                        if !rest.is_empty() {
                            report(written, wire);
                        }
                        data = rest;
                    }
                    report(written, self.wire);
                }
                Arrived::End(sent) => {
                    writer.commit(sent).await?;
                    return Ok(sent);
                }
            }
        }
    }
}

/// A dump fetched from the source is a part without rows, read like a local one.
impl PartReader for Incoming {
    async fn read(&mut self, into: &mut Vec<u8>, limit: usize) -> Result<ReadStep, Fault> {
        loop {
            let room = limit.saturating_sub(into.len());
            if room == 0 {
                return Ok(ReadStep::More);
            }
            if self.rest.is_empty() {
                match self.next().await? {
                    Arrived::Data(data) => {
                        let data = VecDeque::from(data.to_vec());
                        self.rest = data;
                    }
                    Arrived::End(sent) => return Ok(ReadStep::End { rows: sent.rows }),
                }
            }
            let taken = room.min(self.rest.len());
            into.extend(self.rest.drain(..taken));
        }
    }
}

fn chunk_fault(error: &PackError) -> Fault {
    let retry = match error {
        PackError::Compress(_) => Retry::Never,
        PackError::Unpack(_) | PackError::Digest => Retry::NewConnection,
    };
    Fault::new(FaultKind::Failed, error.to_string()).retry(retry)
}

#[cfg(test)]
mod tests {
    use super::*;
    use steep_protocol::RowCount;

    const HEAD: FrameHead = FrameHead::End {
        chunks: 0,
        raw: ByteCount(0),
        rows: RowCount(0),
    };

    /// How many chunks of that size go together.
    fn together(payload: usize, raw: usize) -> usize {
        let mut held = Held::default();
        let fill = |_: &usize| {
            let fits = held.has_room(payload) && !held.is_due();
            if fits {
                held.add(HEAD, vec![0; payload], ByteCount(raw as u64));
            }
            fits
        };
        (0..1_000).take_while(fill).count()
    }

    #[test]
    fn small_chunks_go_together_and_large_ones_alone() {
        assert_eq!(together(1_000, CHUNK_RAW_MAX), 4, "a megabyte of rows");
        assert_eq!(together(20_000, CHUNK_RAW_MAX), 4);
        assert_eq!(together(30_000, CHUNK_RAW_MAX), 3, "a hand-over's worth");
        assert_eq!(together(250_000, CHUNK_RAW_MAX), 1);
    }

    #[test]
    fn what_was_held_leaves_no_room_for_a_chunk_that_did_not_pack() {
        let mut held = Held::default();
        assert!(held.has_room(CHUNK_RAW_MAX), "alone it always goes");
        held.add(HEAD, vec![0; 10], ByteCount(10));
        assert!(!held.has_room(CHUNK_RAW_MAX));
    }
}
