//! Writes the frames of an arriving part beside its load.
//!
//! The load hands each frame over and goes on. A thread writes them; if it falls behind for longer than
//! [`STALL`], the part is given up, and the load never waits for it again.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::sync::Arc;
use std::time::Duration;

use steep_protocol::frame::FrameHead;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::Store;
use super::index::Ticket;

/// Frames that wait for the disk. With those in other hands, a part's memory holds three more chunks.
const QUEUE: usize = 1;

/// How long a load may wait for the disk, once; afterwards nothing is kept for a while.
const STALL: Duration = Duration::from_millis(250);

/// For heads and small chunks; larger ones are written as they are.
const BUFFER: usize = 64 * 1024;

/// A part that is being written. Dropped unfinished, it is removed.
#[derive(Debug)]
pub(crate) struct Writer {
    store: Arc<Store>,
    frames: mpsc::Sender<Frame>,
    thread: JoinHandle<bool>,
}

#[derive(Debug)]
enum Frame {
    Chunk(FrameHead, Vec<u8>),
    End(FrameHead),
}

/// Says whether a part was kept.
#[derive(Debug)]
pub(crate) struct Written(JoinHandle<bool>);

impl Writer {
    /// Memory that a part takes while it is kept.
    pub(crate) const MEMORY: usize = (QUEUE + 2) * steep_protocol::limits::CHUNK_WIRE_MAX;

    pub(super) fn start(store: Arc<Store>, ticket: Ticket) -> Self {
        let (frames, arriving) = mpsc::channel(QUEUE);
        let own = Arc::clone(&store);
        let thread = tokio::task::spawn_blocking(move || run(&own, &ticket, arriving));
        Self {
            store,
            frames,
            thread,
        }
    }

    /// Hands a frame over. `None` where the part is not kept after all.
    pub(crate) async fn chunk(self, head: FrameHead, payload: &[u8]) -> Option<Self> {
        let frame = Frame::Chunk(head, payload.to_vec());
        self.hand_over(frame).await
    }

    /// The part is complete.
    pub(crate) async fn end(self, head: FrameHead) -> Option<Written> {
        let writer = self.hand_over(Frame::End(head)).await?;
        Some(Written(writer.thread))
    }

    async fn hand_over(self, frame: Frame) -> Option<Self> {
        use mpsc::error::SendTimeoutError::{Closed, Timeout};
        match self.frames.send_timeout(frame, STALL).await {
            Ok(()) => Some(self),
            // The thread has said why.
            Err(Closed(_)) => None,
            Err(Timeout(_)) => {
                self.store.pause("the disk is slower than the load");
                None
            }
        }
    }
}

impl Written {
    pub(crate) async fn kept(self) -> bool {
        self.0.await.unwrap_or(false)
    }
}

fn run(store: &Store, ticket: &Ticket, frames: mpsc::Receiver<Frame>) -> bool {
    match write(store, ticket, frames) {
        Ok(Ended::Whole) if store.complete(ticket) => return true,
        // Its job was forgotten, or its load has failed.
        Ok(Ended::Whole | Ended::Midway) => {
            store.abandon(ticket);
        }
        Err(error) => {
            if store.abandon(ticket) {
                store.complain(&error.to_string());
            }
        }
    }
    false
}

enum Ended {
    Whole,
    Midway,
}

fn write(store: &Store, ticket: &Ticket, mut frames: mpsc::Receiver<Frame>) -> io::Result<Ended> {
    let mut file: Option<BufWriter<File>> = None;
    while let Some(frame) = frames.blocking_recv() {
        let (head, payload) = match &frame {
            Frame::Chunk(head, payload) => (head, payload.as_slice()),
            Frame::End(head) => (head, &[][..]),
        };
        let head = head.to_bytes();
        store.grow(ticket, (head.len() + payload.len()) as u64)?;
        let file = match &mut file {
            Some(file) => file,
            None => {
                let created = store.place.create(&ticket.file)?;
                file.insert(BufWriter::with_capacity(BUFFER, created))
            }
        };
        file.write_all(&head)?;
        file.write_all(payload)?;
        if matches!(frame, Frame::End(_)) {
            file.flush()?;
            return Ok(Ended::Whole);
        }
    }
    Ok(Ended::Midway)
}
