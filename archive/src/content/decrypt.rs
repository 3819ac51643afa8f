//! From the bytes of an age file to its content. Pure.
//!
//! The library reads from a stream that blocks; here, the file comes in pieces. So its stream is one that says "not
//! yet" where the pieces end, after which the library goes on where it was.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, BufRead, Read};
use std::sync::{Arc, Mutex, PoisonError};

use age::DecryptError;
use age::stream::StreamReader;
use bytes::{Buf, Bytes};

use super::{AGE_CHUNK, AGE_HEAD_MAX};
use crate::keys::Keys;

/// A file that is being decrypted.
pub(super) struct Decrypting {
    stream: StreamReader<Feed>,
    pieces: Pieces,
}

/// Why a file is not decrypted.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Undecryptable {
    /// None of the keys fits.
    OtherKey,
    /// It is not what was encrypted.
    Damaged(&'static str),
}

/// The pieces that were not read yet.
#[derive(Clone, Default)]
struct Pieces(Arc<Mutex<Queue>>);

#[derive(Default)]
struct Queue {
    pieces: VecDeque<Bytes>,
    ended: bool,
}

/// The end that the library reads.
struct Feed {
    piece: Bytes,
    pieces: Pieces,
}

impl fmt::Debug for Decrypting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Decrypting")
    }
}

impl Pieces {
    fn with<T>(&self, what: impl FnOnce(&mut Queue) -> T) -> T {
        what(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl BufRead for Feed {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.piece.is_empty() {
            let (piece, ended) = self.pieces.with(|q| (q.pieces.pop_front(), q.ended));
            match piece {
                Some(piece) => self.piece = piece,
                None if ended => break,
                None => return Err(io::ErrorKind::WouldBlock.into()),
            }
        }
        Ok(&self.piece)
    }

    fn consume(&mut self, amount: usize) {
        self.piece.advance(amount);
    }
}

impl Read for Feed {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let taken = available.len().min(into.len());
        into[..taken].copy_from_slice(&available[..taken]);
        self.consume(taken);
        Ok(taken)
    }
}

impl Decrypting {
    /// Begins with the first piece, in which the file's head must be. Returns the content that it has.
    pub(super) fn begin(mut first: Bytes, keys: &Keys) -> Result<(Self, Bytes), Undecryptable> {
        let pieces = Pieces::default();
        // No more than this is looked at before a key fits.
        let head = first.split_to(first.len().min(AGE_HEAD_MAX));
        let feed = Feed {
            piece: head,
            pieces: pieces.clone(),
        };
        let decryptor = age::Decryptor::new_buffered(feed).map_err(|error| of_head(&error))?;
        let stream = decryptor.decrypt(keys.identities());
        let stream = stream.map_err(|error| of_head(&error))?;
        let mut decrypting = Self { stream, pieces };
        let content = decrypting.push(first)?;
        Ok((decrypting, content))
    }

    /// The content that the pieces so far have and that was not taken yet.
    pub(super) fn push(&mut self, piece: Bytes) -> Result<Bytes, Undecryptable> {
        let expected = piece.len();
        self.pieces.with(|queue| queue.pieces.push_back(piece));
        self.take(expected)
    }

    /// The rest, after the last piece. A file that was cut off is damaged.
    pub(super) fn finish(&mut self) -> Result<Bytes, Undecryptable> {
        self.pieces.with(|queue| queue.ended = true);
        self.take(0)
    }

    fn take(&mut self, expected: usize) -> Result<Bytes, Undecryptable> {
        // The library keeps less than a chunk back.
        let mut content = vec![0; expected + 2 * AGE_CHUNK as usize];
        let mut length = 0;
        loop {
            if length == content.len() {
                content.resize(length + AGE_CHUNK as usize, 0);
            }
            match self.stream.read(&mut content[length..]) {
                Ok(0) => break,
                Ok(read) => length += read,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    return Err(Undecryptable::Damaged("it was cut off"));
                }
                Err(_) => {
                    let why = "its encrypted bytes are not those that were written";
                    return Err(Undecryptable::Damaged(why));
                }
            }
        }
        content.truncate(length);
        Ok(content.into())
    }
}

fn of_head(error: &DecryptError) -> Undecryptable {
    match error {
        DecryptError::NoMatchingKeys => Undecryptable::OtherKey,
        _ => Undecryptable::Damaged("it does not begin like an age file"),
    }
}
