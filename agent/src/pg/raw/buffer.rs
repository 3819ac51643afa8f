//! The read buffer: one allocation for the life of a connection.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use tokio::io::{AsyncRead, ReadBuf};

use crate::pg::PgError;

/// The most that one read takes.
pub(crate) const CAPACITY: usize = 256 * 1024;

/// Tag and length.
pub(super) const HEAD: usize = 5;

#[derive(Debug)]
pub(super) struct ReadBuffer {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

/// A message's head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) tag: u8,
    /// Bytes after the head.
    pub(super) body: usize,
}

impl Head {
    /// From at least [`HEAD`] bytes.
    #[inline]
    fn read(bytes: &[u8]) -> Result<Self, PgError> {
        let length = u32::from_be_bytes([bytes[1], bytes[2], bytes[3], bytes[4]]);
        match length.checked_sub(4) {
            Some(body) => Ok(Self {
                tag: bytes[0],
                body: body as usize,
            }),
            None => Err(PgError::Protocol(
                "a message shorter than its own length".to_owned(),
            )),
        }
    }
}

impl ReadBuffer {
    pub(super) fn new() -> Self {
        Self {
            bytes: vec![0; CAPACITY].into_boxed_slice(),
            start: 0,
            end: 0,
        }
    }

    #[inline]
    pub(super) fn available(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    #[inline]
    pub(super) fn consume(&mut self, count: usize) {
        self.start += count;
        debug_assert!(self.start <= self.end, "more was consumed than was there");
    }

    /// The next head, if it is complete; not consumed.
    #[inline]
    pub(super) fn head(&self) -> Result<Option<Head>, PgError> {
        let available = self.available();
        if available.len() < HEAD {
            Ok(None)
        } else {
            Head::read(available).map(Some)
        }
    }

    /// Reads once. The buffer must not be full.
    pub(super) async fn fill<R: AsyncRead + Unpin>(&mut self, from: &mut R) -> Result<(), PgError> {
        poll_fn(|cx| self.poll_fill(cx, from)).await
    }

    /// [`ReadBuffer::fill`] for callers that wait for something else as well.
    pub(super) fn poll_fill<R: AsyncRead + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut R,
    ) -> Poll<Result<(), PgError>> {
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
        } else if self.end == self.bytes.len() {
            self.bytes.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        let mut room = ReadBuf::new(&mut self.bytes[self.end..]);
        ready!(Pin::new(from).poll_read(cx, &mut room))?;
        let read = room.filled().len();
        if read == 0 {
            return Poll::Ready(Err(PgError::Closed));
        }
        self.end += read;
        Poll::Ready(Ok(()))
    }

    /// The next message with its head, in a buffer of its own; its length is checked before allocating.
    pub(super) async fn message<R: AsyncRead + Unpin>(
        &mut self,
        from: &mut R,
        limit: usize,
    ) -> Result<BytesMut, PgError> {
        let head = loop {
            match self.head()? {
                Some(head) => break head,
                None => self.fill(from).await?,
            }
        };
        if head.body > limit {
            return Err(PgError::Protocol(format!(
                "a message of {} bytes, over the limit of {limit}",
                head.body
            )));
        }
        let mut missing = HEAD + head.body;
        let mut message = BytesMut::with_capacity(missing);
        while missing > 0 {
            if self.available().is_empty() {
                self.fill(from).await?;
            }
            let take = missing.min(self.available().len());
            message.extend_from_slice(&self.available()[..take]);
            self.consume(take);
            missing -= take;
        }
        Ok(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap()
            .block_on(future)
    }

    #[test]
    fn a_length_over_the_limit_is_refused_before_it_is_read() {
        let mut bytes: &[u8] = &[b'E', 0x7f, 0xff, 0xff, 0xff];
        let refused = block_on(ReadBuffer::new().message(&mut bytes, 1024));
        assert!(matches!(refused, Err(PgError::Protocol(_))), "{refused:?}");
        let mut bytes: &[u8] = &[b'E', 0, 0, 0, 3];
        let refused = block_on(ReadBuffer::new().message(&mut bytes, 1024));
        assert!(matches!(refused, Err(PgError::Protocol(_))), "{refused:?}");
    }

    proptest! {
        #[test]
        fn any_bytes_are_messages_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut rest = bytes.as_slice();
            let mut buffer = ReadBuffer::new();
            let mut taken = 0;
            while let Ok(message) = block_on(buffer.message(&mut rest, 100)) {
                taken += message.len();
            }
            prop_assert!(taken <= bytes.len());
        }
    }
}
