//! The connection to the coordinator. Each request has a stream of its own, which carries the replies.

use std::time::Duration;

use steep_certs::{Credentials, Role};
use steep_protocol::close::CloseCode;
use steep_protocol::message::api::{ApiReply, ApiRequest};
use steep_protocol::quic::{Connection, Endpoint, Expect, Receiver, Sender, StreamError, Tuning};
use steep_protocol::{Fault, FaultKind, Retry};

use crate::failure::Failure;
use crate::settings::Access;

/// How long closing the connection may take.
const CLOSE_LIMIT: Duration = Duration::from_millis(500);

/// A connection to the coordinator.
#[derive(Debug)]
pub(crate) struct Client {
    endpoint: Endpoint,
    connection: Connection,
    access: Access,
}

/// The replies to one request.
#[derive(Debug)]
pub(crate) struct Replies {
    receiver: Receiver,
    ended: bool,
    // Dropping the sender resets our half of the stream, which abandons the request.
    _sender: Sender,
}

impl Client {
    /// Connects to the coordinator.
    ///
    /// # Errors
    /// [`Failure`] with exit code 6 if the certificates are unusable, nobody answers, or the
    /// coordinator refuses.
    pub(crate) async fn connect(access: Access, tuning: Tuning) -> Result<Self, Failure> {
        let unauthorized = |message: String| {
            Failure::new(FaultKind::Unauthorized, message)
                .hint("`steep-repl certs show FILE` shows what a certificate is for")
        };
        let credentials = Credentials::load(&access.ca, &access.cert, &access.key)
            .map_err(|error| unauthorized(error.to_string()))?;
        let identity = credentials.identity();
        if identity.role != Role::Operator {
            return Err(unauthorized(format!(
                "{} is the certificate of {}: the command line needs an operator's",
                access.cert.display(),
                identity
            ))
            .hint("issue one with `steep-repl certs issue --role operator --name operator`"));
        }
        let endpoint = Endpoint::dialer(&credentials, tuning)
            .map_err(|error| Failure::new(FaultKind::Unreachable, error.to_string()))?;
        let connection = dial(&endpoint, &access).await?;
        Ok(Self {
            endpoint,
            connection,
            access,
        })
    }

    /// The address of the coordinator.
    pub(crate) fn address(&self) -> &str {
        &self.access.coordinator
    }

    /// Reconnects after the connection was lost.
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub(crate) async fn reconnect(&mut self) -> Result<(), Failure> {
        self.connection = dial(&self.endpoint, &self.access).await?;
        Ok(())
    }

    /// Sends a request.
    ///
    /// # Errors
    /// [`Failure`] if the connection is lost.
    pub(crate) async fn ask(&self, request: impl Into<ApiRequest>) -> Result<Replies, Failure> {
        let (mut sender, receiver) = self.connection.open().await.map_err(lost)?;
        sender.send(&request.into()).await.map_err(lost)?;
        Ok(Replies {
            receiver,
            ended: false,
            _sender: sender,
        })
    }

    /// Sends a request and collects all replies.
    ///
    /// # Errors
    /// [`Failure`] if the coordinator refuses or the connection is lost.
    pub(crate) async fn ask_all(
        &self,
        request: impl Into<ApiRequest>,
    ) -> Result<Vec<ApiReply>, Failure> {
        let mut replies = self.ask(request).await?;
        let mut all = Vec::new();
        while let Some(reply) = replies.next().await? {
            all.push(reply);
        }
        Ok(all)
    }

    /// Closes the connection. Jobs go on.
    pub(crate) async fn close(self) {
        self.endpoint.close(CloseCode::Done, CLOSE_LIMIT).await;
    }
}

/// Why there is no reply.
#[derive(Debug)]
pub(crate) enum ReplyError {
    /// The coordinator refused the request or failed. Asking again is no use.
    Refused(Failure),
    /// The connection was lost: the request may still be carried out. Ask again.
    Lost(Failure),
}

impl From<ReplyError> for Failure {
    fn from(broken: ReplyError) -> Self {
        match broken {
            ReplyError::Refused(failure) | ReplyError::Lost(failure) => failure,
        }
    }
}

impl Replies {
    /// The next reply; `None` at the end. Cancel-safe.
    ///
    /// # Errors
    /// [`ReplyError`].
    pub(crate) async fn next(&mut self) -> Result<Option<ApiReply>, ReplyError> {
        if self.ended {
            return Ok(None);
        }
        match self.receiver.recv::<ApiReply>().await.map_err(broken)? {
            Some(ApiReply::End) => {
                self.ended = true;
                Ok(None)
            }
            Some(ApiReply::Fault(fault)) => {
                self.ended = true;
                // The coordinator is stopping: ask again when it is back.
                let again = fault.retry == Retry::NewConnection;
                let how = if again {
                    ReplyError::Lost
                } else {
                    ReplyError::Refused
                };
                Err(how(fault.into()))
            }
            Some(reply) => Ok(Some(reply)),
            None => Err(ReplyError::Lost(Failure::new(
                FaultKind::Unreachable,
                "the coordinator stopped answering in the middle of a reply",
            ))),
        }
    }
}

async fn dial(endpoint: &Endpoint, access: &Access) -> Result<Connection, Failure> {
    endpoint
        .dial(&access.coordinator, &Expect::Coordinator)
        .await
        .map_err(|error| {
            let fault = error.to_fault();
            let message = format!("cannot connect to the coordinator: {}", fault.message);
            Failure::from(Fault { message, ..fault })
        })
}

fn lost(error: StreamError) -> Failure {
    let fault = error.to_fault();
    let failure = Failure::new(
        fault.kind,
        format!(
            "the connection to the coordinator was lost: {}",
            fault.message
        ),
    );
    failure.hint(
        "jobs go on without the command line, and so does a request that has arrived: `steep-repl \
         status` shows them",
    )
}

/// Refusals are final; after other errors the client may reconnect.
fn broken(error: StreamError) -> ReplyError {
    match error.retry() {
        Retry::Never => ReplyError::Refused(lost(error)),
        Retry::Backoff | Retry::NewConnection => match error.code() {
            Some(CloseCode::Forbidden | CloseCode::Version) => ReplyError::Refused(lost(error)),
            _ => ReplyError::Lost(lost(error)),
        },
    }
}
