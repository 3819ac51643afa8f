//! COPY OUT: the hot path. One header per row, no allocation.

use postgres_protocol::message::backend::Message;
use steep_protocol::RowCount;

use super::buffer::HEAD;
use super::{PgError, Preamble, RawConnection, State, server_error};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CopyStep {
    /// The buffer is full; more may follow.
    More,
    /// All data were read, this many rows in PostgreSQL's count. The connection is ready for the next
    /// query.
    End(RowCount),
}

impl RawConnection {
    /// Begins a `COPY … TO STDOUT`. Other statements may stand before and after it in `sql`; errors of
    /// later ones count as the COPY's. `preamble` has the answer of those before it, even where the COPY
    /// fails.
    pub(crate) async fn copy_start(
        &mut self,
        sql: &str,
        preamble: &mut Preamble,
    ) -> Result<(), PgError> {
        let begun = |message: &Message| match message {
            Message::CopyOutResponse(_) => Some(State::CopyOut { remaining: 0 }),
            _ => None,
        };
        self.begin_copy(sql, begun, preamble).await
    }

    /// Appends COPY data to `into` until it holds `limit` bytes or the COPY ends.
    pub(crate) async fn copy_read(
        &mut self,
        into: &mut Vec<u8>,
        limit: usize,
    ) -> Result<CopyStep, PgError> {
        into.reserve(limit.saturating_sub(into.len()));
        let State::CopyOut { mut remaining } = self.state else {
            return Err(PgError::Protocol("no COPY gives data".to_owned()));
        };
        loop {
            let stop;
            (remaining, stop) = self.take_data(remaining, into, limit)?;
            self.state = State::CopyOut { remaining };
            match stop {
                Stop::Full => return Ok(CopyStep::More),
                Stop::Empty => self.buffer.fill(&mut self.stream).await?,
                Stop::Other => {
                    if let Some(rows) = self.after_data().await? {
                        return Ok(CopyStep::End(rows));
                    }
                }
            }
        }
    }

    /// Takes what the buffer holds. Returns the rest of the current message, and why it stopped.
    fn take_data(
        &mut self,
        mut remaining: usize,
        into: &mut Vec<u8>,
        limit: usize,
    ) -> Result<(usize, Stop), PgError> {
        loop {
            let room = limit.saturating_sub(into.len());
            if room == 0 {
                return Ok((remaining, Stop::Full));
            }
            if remaining == 0 {
                match self.buffer.head()? {
                    None => return Ok((0, Stop::Empty)),
                    Some(head) if head.tag == b'd' => {
                        self.buffer.consume(HEAD);
                        remaining = head.body;
                        continue;
                    }
                    Some(_) => return Ok((0, Stop::Other)),
                }
            }
            let available = self.buffer.available();
            let take = remaining.min(room).min(available.len());
            if take == 0 {
                return Ok((remaining, Stop::Empty));
            }
            into.extend_from_slice(&available[..take]);
            self.buffer.consume(take);
            remaining -= take;
        }
    }

    /// Handles a message other than COPY data; returns the row count at the end.
    async fn after_data(&mut self) -> Result<Option<RowCount>, PgError> {
        let Some(message) = self.message_or_notice().await? else {
            return Ok(None);
        };
        match message {
            Message::CopyDone => Ok(None),
            Message::CommandComplete(body) => {
                let rows = rows_of(body.tag()?)?;
                self.state = State::Idle;
                self.until_ready().await?;
                Ok(Some(rows))
            }
            Message::ErrorResponse(body) => {
                let error = server_error(&body)?;
                self.state = State::Idle;
                self.until_ready().await?;
                Err(error)
            }
            _ => Err(PgError::Protocol(
                "a message that does not belong to a COPY".to_owned(),
            )),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    Full,
    Empty,
    Other,
}

/// The row count of `COPY n`.
pub(super) fn rows_of(tag: &str) -> Result<RowCount, PgError> {
    tag.strip_prefix("COPY ")
        .and_then(|count| count.parse().ok())
        .map(RowCount)
        .ok_or_else(|| PgError::Protocol("a COPY that counted no rows".to_owned()))
}
