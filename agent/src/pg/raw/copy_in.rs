//! COPY IN: each of the caller's buffers is one message, written without copying.
//!
//! While data go out, the server sends nothing unless the COPY fails. It is read all the time, so a full
//! disk is noticed at the next buffer and not at the end of the part.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::Poll;

use postgres_protocol::message::backend::Message;
use steep_protocol::RowCount;
use tokio::io::AsyncWrite;

use super::buffer::HEAD;
use super::copy_out::rows_of;
use super::{PgError, Preamble, RawConnection, State, server_error};

/// The server reads a message's length as a signed 32-bit number and refuses more than a gigabyte.
const DATA_MAX: usize = 1 << 29;

/// `CopyDone` (PostgreSQL manual, "Message Formats").
const DONE: &[u8] = b"c\0\0\0\x04";

enum Wrote {
    All,
    /// The server sent something, or closed.
    Heard(Result<(), PgError>),
}

impl RawConnection {
    /// Begins a `COPY … FROM STDIN`, the last statement of `sql`.
    pub(crate) async fn copy_in_start(&mut self, sql: &str) -> Result<(), PgError> {
        let begun = |message: &Message| match message {
            Message::CopyInResponse(_) => Some(State::CopyIn),
            _ => None,
        };
        self.begin_copy(sql, begun, &mut Preamble::default()).await
    }

    /// Sends COPY data; rows may begin and end anywhere. After any error the connection is unusable.
    pub(crate) async fn copy_in_write(&mut self, data: &[u8]) -> Result<(), PgError> {
        if self.state != State::CopyIn {
            return Err(PgError::Protocol("no COPY takes data".to_owned()));
        }
        for piece in data.chunks(DATA_MAX) {
            self.write_message(piece).await?;
        }
        Ok(())
    }

    /// Ends the COPY; returns the number of rows that PostgreSQL counted.
    pub(crate) async fn copy_in_end(&mut self) -> Result<RowCount, PgError> {
        if self.state != State::CopyIn {
            return Err(PgError::Protocol("no COPY is to be ended".to_owned()));
        }
        if let Err(error) = self.send(DONE).await {
            return Err(self.last_words(error).await);
        }
        let mut rows = None;
        loop {
            match self.message().await? {
                Message::CommandComplete(body) => rows = Some(rows_of(body.tag()?)?),
                Message::ReadyForQuery(_) => break,
                Message::ErrorResponse(body) => {
                    let error = server_error(&body)?;
                    self.until_ready().await?;
                    self.state = State::Idle;
                    return Err(error);
                }
                _ => {}
            }
        }
        self.state = State::Idle;
        rows.ok_or_else(|| PgError::Protocol("a COPY that counted no rows".to_owned()))
    }

    async fn write_message(&mut self, data: &[u8]) -> Result<(), PgError> {
        let mut head = [b'd'; HEAD];
        // Fits: `data` is no longer than DATA_MAX.
        head[1..].copy_from_slice(&(data.len() as u32 + 4).to_be_bytes());
        let mut written = 0;
        loop {
            match self.write_or_hear(&head, data, &mut written).await {
                Ok(Wrote::All) => return Ok(()),
                Ok(Wrote::Heard(Err(error))) => return Err(error),
                Ok(Wrote::Heard(Ok(()))) => {
                    if let Some(message) = self.message_or_notice().await? {
                        return Err(refusal(&message)?);
                    }
                }
                Err(error) => return Err(self.last_words(PgError::Io(error)).await),
            }
        }
    }

    /// Continues at `written`, until all is written or the server sends something.
    async fn write_or_hear(
        &mut self,
        head: &[u8; HEAD],
        data: &[u8],
        written: &mut usize,
    ) -> io::Result<Wrote> {
        let Self { stream, buffer, .. } = self;
        poll_fn(|cx| {
            loop {
                if let Poll::Ready(heard) = buffer.poll_fill(cx, stream) {
                    return Poll::Ready(Ok(Wrote::Heard(heard)));
                }
                let rest = [
                    IoSlice::new(&head[(*written).min(HEAD)..]),
                    IoSlice::new(&data[written.saturating_sub(HEAD)..]),
                ];
                let rest = if *written < HEAD {
                    &rest[..]
                } else {
                    &rest[1..]
                };
                match Pin::new(&mut *stream).poll_write_vectored(cx, rest) {
                    Poll::Ready(Ok(0)) => {
                        return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                    }
                    Poll::Ready(Ok(count)) => *written += count,
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Pending => return Poll::Pending,
                }
                if *written == HEAD + data.len() {
                    return Poll::Ready(Ok(Wrote::All));
                }
            }
        })
        .await
    }

    /// The server's last message before it closed, which explains more than the failed write.
    async fn last_words(&mut self, failed: PgError) -> PgError {
        loop {
            match self.message_or_notice().await {
                Ok(Some(message)) => return refusal(&message).unwrap_or(failed),
                Ok(None) => {}
                Err(_) => return failed,
            }
        }
    }
}

fn refusal(message: &Message) -> Result<PgError, PgError> {
    match message {
        Message::ErrorResponse(body) => server_error(body),
        _ => Err(PgError::Protocol(
            "a message that does not belong to a COPY".to_owned(),
        )),
    }
}
