//! Reads a kept part as it came. Blocking: a part is served on a thread of its own.

use std::fs::File;
use std::io::{self, BufReader, Read};

use steep_protocol::frame::{FrameHead, HEAD_LENGTH};
use steep_protocol::{Fault, FaultKind, Retry};

use crate::chunk::FrameReader;

const BUFFER: usize = 64 * 1024;

/// The receiving end checks the digests.
#[derive(Debug)]
pub(crate) struct Reader {
    file: BufReader<File>,
}

impl Reader {
    /// Memory that a part takes while it is sent, besides what every part takes.
    pub(crate) const MEMORY: usize = BUFFER;

    pub(super) fn new(file: File) -> Self {
        Self {
            file: BufReader::with_capacity(BUFFER, file),
        }
    }

    fn frame(&mut self) -> io::Result<(FrameHead, Vec<u8>)> {
        let mut head = [0; HEAD_LENGTH];
        self.file.read_exact(&mut head)?;
        let head = FrameHead::from_bytes(&head).map_err(io::Error::other)?;
        let length = match head {
            FrameHead::Chunk { wire, .. } => wire as usize,
            FrameHead::End { .. } => 0,
            FrameHead::Fault { .. } => return Err(io::Error::other("it holds a fault")),
        };
        let mut payload = vec![0; length];
        self.file.read_exact(&mut payload)?;
        Ok((head, payload))
    }
}

impl FrameReader for Reader {
    async fn next(&mut self) -> Result<(FrameHead, Vec<u8>), Fault> {
        self.frame().map_err(|error| {
            let text = format!("a kept part cannot be read: {error}");
            Fault::new(FaultKind::Failed, text).retry(Retry::NewConnection)
        })
    }
}
