//! A connection on the bare protocol, for what tokio-postgres cannot do or not fast enough: replication
//! connections, COPY OUT and COPY IN.
//!
//! COPY data go from a large read buffer straight into the caller's, header by header: a row of a gigabyte
//! is never held whole. In the other direction, the caller's buffers are written without copying.
//! Everything else the server sends is small and limited by [`MESSAGE_MAX`].
//!
//! After [`PgError::Server`] a connection is usable; after any other error, or when a future was dropped,
//! its state is unknown, and its owner drops it.

mod buffer;
mod copy_in;
mod copy_out;
mod startup;

use std::collections::HashMap;

use bytes::BytesMut;
use postgres_protocol::message::backend::{ErrorResponseBody, Message, RowDescriptionBody};
use postgres_protocol::message::frontend;
use tokio::io::AsyncWriteExt;
use tokio_postgres::fallible_iterator::FallibleIterator;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::conninfo::Conninfo;
use super::dial::{self, Route, Stream};
use super::error::ErrorFields;
use super::settings::UserViews;
use super::transport::Reads;
use super::{PgError, guard, settings};
use buffer::ReadBuffer;

pub(crate) use buffer::CAPACITY as READ_BUFFER;
pub(crate) use copy_out::CopyStep;

/// Limit for messages other than COPY data. PostgreSQL's own are far smaller; rows of a simple query have
/// no limit, but ours are short.
pub(crate) const MESSAGE_MAX: usize = 16 * 1024 * 1024;

/// Limit for all rows of one simple query, in bytes.
const ANSWER_MAX: usize = 64 * 1024 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Plain,
    /// As `Plain`, for much COPY data out: the user's thread may block.
    CopyOut,
    /// A walsender for this database, which accepts SQL too.
    Replication,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Idle,
    CopyOut {
        /// Bytes still to come of the current message.
        remaining: usize,
    },
    CopyIn,
}

/// Dropping it closes the socket.
#[derive(Debug)]
pub(crate) struct RawConnection {
    stream: Stream,
    buffer: ReadBuffer,
    parameters: HashMap<String, String>,
    cancel: Canceller,
    version: u32,
    state: State,
}

/// Cancels what its connection runs, from outside.
#[derive(Debug, Clone)]
pub(crate) struct Canceller {
    conninfo: Conninfo,
    route: Route,
    process_id: i32,
    secret_key: i32,
}

/// A row of a simple query.
pub(crate) type TextRow = Vec<Option<String>>;

/// The answer of statements before a COPY in the same query: columns and row of the last one.
#[derive(Debug, Default)]
pub(crate) struct Preamble {
    pub(crate) columns: Vec<AnswerColumn>,
    pub(crate) row: Option<TextRow>,
}

/// A column as PostgreSQL describes it; for a domain, its base type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AnswerColumn {
    pub(crate) name: String,
    pub(crate) type_oid: u32,
    pub(crate) type_modifier: i32,
}

impl RawConnection {
    /// Connects as `steep-repl <purpose>`, with the settings of every connection of ours.
    pub(crate) async fn connect(
        conninfo: &Conninfo,
        purpose: &str,
        mode: Mode,
    ) -> Result<Self, PgError> {
        let reads = match mode {
            Mode::CopyOut => Reads::Patient,
            Mode::Plain | Mode::Replication => Reads::Eager,
        };
        let login = |stream, route| Self::login(conninfo, stream, route, purpose, mode);
        dial::connect(conninfo, reads, login).await
    }

    async fn login(
        conninfo: &Conninfo,
        stream: Stream,
        route: Route,
        purpose: &str,
        mode: Mode,
    ) -> Result<Self, PgError> {
        let canceller = Canceller {
            conninfo: conninfo.pinned(&route.endpoint),
            route: route.clone(),
            process_id: 0,
            secret_key: 0,
        };
        let mut connection = Self {
            stream,
            buffer: ReadBuffer::new(),
            parameters: HashMap::new(),
            cancel: canceller,
            version: 0,
            state: State::Idle,
        };
        connection.start(conninfo, &route, purpose, mode).await?;
        let parameter = |name: &str| connection.parameters.get(name).map(String::as_str);
        dial::check_kind(conninfo.session_attrs, &route, parameter)?;
        connection.version = settings::version_num(parameter("server_version").unwrap_or(""))?;
        connection
            .query(&settings::statements(connection.version))
            .await?;
        connection.guard(mode).await?;
        Ok(connection)
    }

    /// A reader of tables must not read views in their place; a loader writes the ledger.
    async fn guard(&mut self, mode: Mode) -> Result<(), PgError> {
        match mode {
            Mode::CopyOut => {
                let refuse = settings::user_views(self.version, UserViews::Refused);
                if let Some(refuse) = refuse {
                    self.query(&refuse).await?;
                }
            }
            Mode::Plain => {
                let rows = self.query(guard::LOOK).await?;
                let cell = |at: usize| rows.first()?.get(at)?.as_deref();
                guard::judge([cell(0), cell(1), cell(2)])?;
            }
            Mode::Replication => {}
        }
        Ok(())
    }

    /// Whether no COPY is running, so that a query may be sent.
    pub(crate) fn is_idle(&self) -> bool {
        self.state == State::Idle
    }

    pub(crate) fn process_id(&self) -> i32 {
        self.cancel.process_id
    }

    pub(crate) fn canceller(&self) -> Canceller {
        self.cancel.clone()
    }

    /// Runs a simple query, which may be several statements or a replication command, and returns all rows.
    pub(crate) async fn query(&mut self, sql: &str) -> Result<Vec<TextRow>, PgError> {
        self.send_query(sql).await?;
        let mut rows = Vec::new();
        let mut size = 0;
        let mut failed = None;
        loop {
            match self.message().await? {
                Message::DataRow(body) => {
                    size += body.buffer().len();
                    if size > ANSWER_MAX {
                        return Err(PgError::Protocol(format!(
                            "the answer to a query is longer than {ANSWER_MAX} bytes"
                        )));
                    }
                    rows.push(text_row(&body)?);
                }
                Message::ErrorResponse(body) => failed = failed.or(Some(server_error(&body)?)),
                Message::ReadyForQuery(_) => break,
                Message::RowDescription(_)
                | Message::CommandComplete(_)
                | Message::EmptyQueryResponse => {}
                _ => return Err(PgError::Protocol("a message that answers no query".into())),
            }
        }
        match failed {
            None => Ok(rows),
            Some(error) => Err(error),
        }
    }

    /// Says goodbye and closes.
    pub(crate) async fn close(mut self) {
        let mut goodbye = BytesMut::new();
        frontend::terminate(&mut goodbye);
        // Whether it arrives makes no difference: the socket closes either way.
        let _ = self.stream.write_all(&goodbye).await;
        let _ = self.stream.shutdown().await;
    }

    async fn send_query(&mut self, sql: &str) -> Result<(), PgError> {
        let mut request = BytesMut::new();
        frontend::query(sql, &mut request)?;
        self.send(&request).await
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<(), PgError> {
        self.stream.write_all(bytes).await?;
        self.stream.flush().await?;
        Ok(())
    }

    /// Sends a query with a COPY, and reads up to the message that `begun` recognises as its start.
    async fn begin_copy(
        &mut self,
        sql: &str,
        begun: fn(&Message) -> Option<State>,
        preamble: &mut Preamble,
    ) -> Result<(), PgError> {
        self.send_query(sql).await?;
        loop {
            let message = self.message().await?;
            if let Some(state) = begun(&message) {
                self.state = state;
                return Ok(());
            }
            match message {
                // A statement before the COPY, in the same query.
                Message::CommandComplete(_) | Message::EmptyQueryResponse => {}
                Message::RowDescription(body) => preamble.columns = answer_columns(&body)?,
                Message::DataRow(body) => preamble.row = Some(text_row(&body)?),
                Message::ErrorResponse(body) => {
                    let error = server_error(&body)?;
                    self.until_ready().await?;
                    return Err(error);
                }
                Message::ReadyForQuery(_) => {
                    return Err(PgError::Protocol("a query that began no COPY".to_owned()));
                }
                _ => {
                    return Err(PgError::Protocol(
                        "a message that begins no COPY".to_owned(),
                    ));
                }
            }
        }
    }

    async fn until_ready(&mut self) -> Result<(), PgError> {
        let mut failed = None;
        loop {
            match self.message().await? {
                Message::ReadyForQuery(_) => return failed.map_or(Ok(()), Err),
                Message::ErrorResponse(body) => failed = failed.or(Some(server_error(&body)?)),
                _ => {}
            }
        }
    }

    /// The next message other than notices and parameters.
    async fn message(&mut self) -> Result<Message, PgError> {
        loop {
            if let Some(message) = self.message_or_notice().await? {
                return Ok(message);
            }
        }
    }

    /// `None` for a notice, and for a parameter, which is stored.
    async fn message_or_notice(&mut self) -> Result<Option<Message>, PgError> {
        let mut bytes = self.buffer.message(&mut self.stream, MESSAGE_MAX).await?;
        let message = Message::parse(&mut bytes)?
            .ok_or_else(|| PgError::Protocol("a message was cut short".to_owned()))?;
        match message {
            Message::NoticeResponse(_) | Message::NotificationResponse(_) => Ok(None),
            Message::ParameterStatus(body) => {
                self.parameters
                    .insert(body.name()?.to_owned(), body.value()?.to_owned());
                Ok(None)
            }
            other => Ok(Some(other)),
        }
    }
}

impl Canceller {
    /// Runs `work`, a call on the connection. When `cancel` comes first, asks the server to end it; the
    /// connection's state is then unknown.
    pub(crate) async fn run<T>(
        &self,
        cancel: &CancellationToken,
        work: impl Future<Output = Result<T, PgError>>,
    ) -> Result<T, PgError> {
        if cancel.is_cancelled() {
            return Err(PgError::Cancelled);
        }
        tokio::select! {
            biased;
            outcome = work => return outcome,
            () = cancel.cancelled() => {}
        }
        if let Err(error) = self.cancel().await {
            debug!(%error, "a statement could not be cancelled");
        }
        Err(PgError::Cancelled)
    }

    /// Asks the server to end what the connection runs; returns when it has been told.
    pub(crate) async fn cancel(&self) -> Result<(), PgError> {
        let asking = async {
            let mut stream = dial::open(&self.conninfo, &self.route, Reads::Eager).await?;
            let mut request = BytesMut::new();
            frontend::cancel_request(self.process_id, self.secret_key, &mut request);
            stream.write_all(&request).await?;
            stream.flush().await?;
            dial::until_closed(&mut stream).await;
            Ok(())
        };
        match tokio::time::timeout(self.conninfo.connect_timeout, asking).await {
            Ok(outcome) => outcome,
            Err(_) => Err(dial::timed_out(&self.route)),
        }
    }
}

fn answer_columns(body: &RowDescriptionBody) -> Result<Vec<AnswerColumn>, PgError> {
    let mut columns = Vec::new();
    let mut fields = body.fields();
    while let Some(field) = fields.next()? {
        columns.push(AnswerColumn {
            name: field.name().to_owned(),
            type_oid: field.type_oid(),
            type_modifier: field.type_modifier(),
        });
    }
    Ok(columns)
}

fn text_row(body: &postgres_protocol::message::backend::DataRowBody) -> Result<TextRow, PgError> {
    let mut row = Vec::new();
    let mut ranges = body.ranges();
    while let Some(range) = ranges.next()? {
        let value = range.map(|range| String::from_utf8(body.buffer()[range].to_vec()));
        let value = value
            .transpose()
            .map_err(|_| PgError::Protocol("a value of a query is not UTF-8".to_owned()))?;
        row.push(value);
    }
    Ok(row)
}

fn server_error(body: &ErrorResponseBody) -> Result<PgError, PgError> {
    let mut known = ErrorFields::default();
    let mut fields = body.fields();
    while let Some(field) = fields.next()? {
        let value = String::from_utf8_lossy(field.value_bytes()).into_owned();
        // Field codes: PostgreSQL manual, section "Error and Notice Message Fields".
        match field.type_() {
            b'C' => known.code = value,
            b'M' => known.message = value,
            b'H' => known.hint = Some(value),
            b'D' => known.detail = Some(value),
            b'W' => known.context = Some(value),
            b's' => known.schema = Some(value),
            b't' => known.table = Some(value),
            b'n' => known.constraint = Some(value),
            _ => {}
        }
    }
    Ok(PgError::Server(Box::new(known.into())))
}
