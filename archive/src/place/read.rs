//! Reads one file from its start with constant memory: a piece in use and one ahead.

use bytes::{Bytes, BytesMut};
use tokio::task::JoinSet;

use super::Place;
use crate::error::{Error, Problem, ProblemKind};
use crate::name::FileName;

/// A file that is being read. Dropping it stops the read ahead.
#[derive(Debug)]
pub(crate) struct FileReader {
    place: Place,
    name: FileName,
    length: u64,
    /// The end of what was asked for.
    asked: u64,
    piece: Bytes,
    ahead: JoinSet<Result<Bytes, Error>>,
}

impl FileReader {
    /// Bytes of one read: a request to a store costs some ten milliseconds.
    pub(crate) const PIECE: u64 = 4 * 1024 * 1024;

    /// For the first `length` bytes.
    pub(crate) fn new(place: Place, name: FileName, length: u64) -> Self {
        Self {
            place,
            name,
            length,
            asked: 0,
            piece: Bytes::new(),
            ahead: JoinSet::new(),
        }
    }

    /// The next `length` bytes, at most [`Self::PIECE`] of them. Cancel-safe.
    ///
    /// # Errors
    /// [`ProblemKind::Truncated`] where the file ends before.
    pub(crate) async fn take(&mut self, length: usize) -> Result<Bytes, Error> {
        while self.piece.len() < length {
            let mut next = self.next().await?;
            if self.piece.is_empty() {
                self.piece = next;
                continue;
            }
            // No more than what is asked for is copied, once for each piece.
            let missing = next.len().min(length - self.piece.len());
            let mut joined = BytesMut::with_capacity(self.piece.len() + missing);
            joined.extend_from_slice(&self.piece);
            joined.extend_from_slice(&next.split_to(missing));
            if joined.len() == length {
                self.piece = next;
                return Ok(joined.freeze());
            }
            self.piece = joined.freeze();
        }
        Ok(self.piece.split_to(length))
    }

    /// The rest of the file in pieces of any length; empty at its end. Cancel-safe.
    pub(crate) async fn take_some(&mut self) -> Result<Bytes, Error> {
        if self.piece.is_empty() && (self.asked < self.length || !self.ahead.is_empty()) {
            self.piece = self.next().await?;
        }
        Ok(std::mem::take(&mut self.piece))
    }

    async fn next(&mut self) -> Result<Bytes, Error> {
        self.ask();
        match self.ahead.join_next().await {
            Some(read) => {
                let read = read.map_err(std::io::Error::other);
                let bytes = read.map_err(|e| self.place.io("read", self.name, e))??;
                self.ask();
                Ok(bytes)
            }
            None => {
                let kind = ProblemKind::Truncated {
                    length: self.asked,
                    expected: self.length,
                };
                Err(Problem::new(self.name, kind).at(self.place.location()))
            }
        }
    }

    /// Asks for the next piece if none is on its way.
    fn ask(&mut self) {
        if !self.ahead.is_empty() || self.asked >= self.length {
            return;
        }
        let range = self.asked..self.length.min(self.asked + Self::PIECE);
        self.asked = range.end;
        let (place, name, expected) = (self.place.clone(), self.name, self.length);
        self.ahead.spawn(async move {
            let bytes = place.read_range(name, range.clone()).await?;
            if bytes.len() as u64 != range.end - range.start {
                let length = range.start + bytes.len() as u64;
                let kind = ProblemKind::Truncated { length, expected };
                return Err(Problem::new(name, kind).at(place.location()));
            }
            Ok(bytes)
        });
    }
}
