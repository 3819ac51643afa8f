//! The two halves of a stream. Control messages are length-prefixed frames; parts are raw bytes,
//! whose heads the caller reads.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::error::StreamError;
use crate::wire::close::CloseCode;
use crate::wire::codec;
use crate::wire::frame::{FrameHead, HEAD_LENGTH};
use crate::wire::limits::CONTROL_FRAME_MAX;

/// Bytes allocated for a message before its content has arrived, whatever length it claims.
const TRUST: usize = 64 * 1024;

/// Target size of the pieces that [`Sender::send_all`] writes.
const TOGETHER: usize = 64 * 1024;

/// The sending half.
#[derive(Debug)]
pub struct Sender {
    inner: quinn::SendStream,
}

/// The receiving half.
#[derive(Debug)]
pub struct Receiver {
    inner: quinn::RecvStream,
    prefix: [u8; 4],
    prefix_filled: usize,
    body: Vec<u8>,
}

impl Sender {
    pub(super) fn new(inner: quinn::SendStream) -> Self {
        Self { inner }
    }

    /// Sends one control message.
    ///
    /// Not cancel-safe: if dropped midway, the stream can only be reset ([`Sender::reset`]).
    ///
    /// # Errors
    /// [`StreamError`] if the message is too long or the stream is gone.
    pub async fn send<T: Serialize>(&mut self, message: &T) -> Result<(), StreamError> {
        self.send_all(std::slice::from_ref(message)).await
    }

    /// Sends control messages together: small ones share packets, and the peer wakes once.
    ///
    /// Not cancel-safe, like [`Sender::send`].
    ///
    /// # Errors
    /// [`StreamError`] if a message is too long or the stream is gone.
    pub async fn send_all<T: Serialize>(&mut self, messages: &[T]) -> Result<(), StreamError> {
        let mut frames = Vec::new();
        for message in messages {
            let body = codec::encode(message)?;
            let length = u32::try_from(body.len()).map_err(|_| codec::CodecError::TooLong {
                length: body.len(),
                longest: CONTROL_FRAME_MAX,
            })?;
            frames.extend_from_slice(&length.to_be_bytes());
            frames.extend_from_slice(&body);
            if frames.len() >= TOGETHER {
                self.send_bytes(std::mem::take(&mut frames)).await?;
            }
        }
        if frames.is_empty() {
            return Ok(());
        }
        self.send_bytes(frames).await
    }

    /// Sends bytes without copying them. Waits while the peer's window is full, which is how a slow
    /// target slows its source.
    ///
    /// # Errors
    /// [`StreamError`] if the stream is gone.
    pub async fn send_bytes(&mut self, bytes: Vec<u8>) -> Result<(), StreamError> {
        Ok(self.inner.write_chunk(bytes.into()).await?)
    }

    /// Sends pieces in order, like [`Sender::send_bytes`] for each, but wakes the transport and the
    /// peer only once for as many as fit the window.
    ///
    /// # Errors
    /// [`StreamError`] if the stream is gone.
    pub async fn send_pieces(
        &mut self,
        pieces: impl IntoIterator<Item = Vec<u8>>,
    ) -> Result<(), StreamError> {
        let mut pieces: Vec<_> = pieces.into_iter().map(Into::into).collect();
        Ok(self.inner.write_all_chunks(&mut pieces).await?)
    }

    /// Sends a frame's head.
    ///
    /// # Errors
    /// [`StreamError`] if the stream is gone.
    pub async fn send_head(&mut self, head: FrameHead) -> Result<(), StreamError> {
        Ok(self.inner.write_all(&head.to_bytes()).await?)
    }

    /// Ends the stream. Sending afterwards is an error; finishing twice is not.
    pub fn finish(&mut self) {
        // Fails only if the stream has already ended.
        let _ = self.inner.finish();
    }

    /// Abandons the stream; sent bytes may not arrive.
    pub fn reset(&mut self, code: CloseCode) {
        let _ = self.inner.reset(quinn::VarInt::from_u32(code.code()));
    }

    /// Waits until the peer has read everything.
    ///
    /// # Errors
    /// [`StreamError`] if the peer stopped reading or the connection was lost.
    pub async fn drained(&mut self) -> Result<(), StreamError> {
        match self.inner.stopped().await {
            Ok(None) => Ok(()),
            Ok(Some(code)) => Err(StreamError::Reset(CloseCode::from_code(
                u32::try_from(code.into_inner()).unwrap_or(u32::MAX),
            ))),
            Err(quinn::StoppedError::ConnectionLost(error)) => Err(error.into()),
            Err(quinn::StoppedError::ZeroRttRejected) => Err(StreamError::Finished),
        }
    }
}

impl Receiver {
    pub(super) fn new(inner: quinn::RecvStream) -> Self {
        Self {
            inner,
            prefix: [0; 4],
            prefix_filled: 0,
            body: Vec::new(),
        }
    }

    /// Like [`Receiver::recv`], for a message of at most `longest` bytes; a longer one is rejected
    /// by its length. Use it for peers that have not proved a right to send more.
    ///
    /// # Errors
    /// As [`Receiver::recv`]; [`StreamError::Codec`] for a longer message.
    pub async fn recv_short<T: DeserializeOwned>(
        &mut self,
        longest: usize,
    ) -> Result<Option<T>, StreamError> {
        self.recv_at_most(longest).await
    }

    /// The next control message, or `None` at a clean end.
    ///
    /// Cancel-safe: a partly received message is kept for the next call.
    ///
    /// # Errors
    /// [`StreamError`] if the stream broke, or its bytes are not such a message.
    pub async fn recv<T: DeserializeOwned>(&mut self) -> Result<Option<T>, StreamError> {
        self.recv_at_most(CONTROL_FRAME_MAX).await
    }

    async fn recv_at_most<T: DeserializeOwned>(
        &mut self,
        longest: usize,
    ) -> Result<Option<T>, StreamError> {
        while self.prefix_filled < 4 {
            let read = self
                .inner
                .read(&mut self.prefix[self.prefix_filled..])
                .await?;
            match read {
                Some(n) => self.prefix_filled += n,
                None if self.prefix_filled == 0 => return Ok(None),
                None => return Err(StreamError::Truncated),
            }
        }
        let length = codec::frame_length(self.prefix, longest)?;
        while self.body.len() < length {
            let wanted = (length - self.body.len()).min(TRUST);
            // A chunk is taken whole or not at all, so dropping this future loses nothing.
            match self.inner.read_chunk(wanted, true).await? {
                Some(chunk) => self.body.extend_from_slice(&chunk.bytes),
                None => return Err(StreamError::Truncated),
            }
        }
        let message = codec::decode(&self.body);
        self.prefix_filled = 0;
        self.body = Vec::new();
        Ok(Some(message?))
    }

    /// Reads a frame's head.
    ///
    /// # Errors
    /// [`StreamError`] if the stream ended or the bytes are not a head.
    pub async fn recv_head(&mut self) -> Result<FrameHead, StreamError> {
        let mut bytes = [0; HEAD_LENGTH];
        self.read_exact(&mut bytes).await?;
        Ok(FrameHead::from_bytes(&bytes)?)
    }

    /// Reads exactly that many bytes. Not cancel-safe.
    ///
    /// # Errors
    /// [`StreamError::Truncated`] if the stream ends before.
    pub async fn read_exact(&mut self, into: &mut [u8]) -> Result<(), StreamError> {
        self.inner
            .read_exact(into)
            .await
            .map_err(|error| match error {
                quinn::ReadExactError::FinishedEarly(_) => StreamError::Truncated,
                quinn::ReadExactError::ReadError(error) => error.into(),
            })
    }

    /// Tells the peer to stop sending.
    pub fn stop(&mut self, code: CloseCode) {
        // Fails only if the stream has already ended.
        let _ = self.inner.stop(quinn::VarInt::from_u32(code.code()));
    }
}
