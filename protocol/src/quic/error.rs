//! Errors of endpoints, connections and streams, and whether to retry.

use std::net::SocketAddr;

use crate::wire::close::CloseCode;
use crate::wire::codec::CodecError;
use crate::wire::frame::FrameError;
use crate::wire::hello::HelloError;
use crate::wire::{Fault, FaultKind, Retry};

/// An endpoint could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// The address is in use or not local.
    #[error("cannot listen on UDP {address}: {source}; {}", listen_hint(source))]
    Bind {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// No TLS configuration can be built from the certificates.
    #[error("the certificates cannot be used for TLS")]
    Credentials(#[from] steep_certs::CredentialsError),
    /// The TLS configuration lacks what QUIC needs.
    #[error("the TLS configuration cannot be used for QUIC: {0}")]
    Tls(String),
}

fn listen_hint(error: &std::io::Error) -> &'static str {
    match error.kind() {
        std::io::ErrorKind::AddrInUse => {
            "stop the process that uses it, or choose another --listen"
        }
        std::io::ErrorKind::AddrNotAvailable => {
            "this machine does not have that address: choose another --listen"
        }
        std::io::ErrorKind::PermissionDenied => {
            "this user may not use that port: choose one above 1023 with --listen"
        }
        _ => "choose another --listen",
    }
}

/// A connection failed.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The name has no address.
    #[error("cannot resolve {address}: {source}")]
    Resolve {
        /// The address.
        address: String,
        /// The resolver's error.
        source: std::io::Error,
    },
    /// Nothing answers at that address.
    #[error("no answer from {address} over UDP: {reason}")]
    Unreachable {
        /// Where.
        address: String,
        /// Why.
        reason: String,
    },
    /// TLS failed: another CA, an expired certificate, or not the expected node.
    #[error("{address} was reached and the certificates do not agree: {reason}")]
    Certificate {
        /// Where.
        address: String,
        /// Why.
        reason: String,
    },
    /// The peer's certificate carries no identity of this cluster.
    #[error("the peer's certificate does not say who it is: {0}")]
    Identity(String),
    /// The peer refused, with a reason.
    #[error("refused: {reason}")]
    Refused {
        /// The code.
        code: CloseCode,
        /// The reason as text.
        reason: String,
    },
    /// The peer speaks another protocol.
    #[error(transparent)]
    Hello(#[from] HelloError),
    /// The connection broke before it could be used.
    #[error("the connection broke during the hello: {0}")]
    Broken(String),
}

impl ConnectError {
    /// Whether dialling again can help.
    #[must_use]
    pub fn retry(&self) -> Retry {
        match self {
            Self::Resolve { .. } | Self::Unreachable { .. } | Self::Broken(_) => Retry::Backoff,
            Self::Refused {
                code: CloseCode::ShuttingDown | CloseCode::TooMany,
                ..
            } => Retry::Backoff,
            Self::Certificate { .. }
            | Self::Identity(_)
            | Self::Refused { .. }
            | Self::Hello(_) => Retry::Never,
        }
    }

    /// The error for people and scripts, with the next step.
    #[must_use]
    pub fn to_fault(&self) -> Fault {
        let (kind, hint) = match self {
            Self::Resolve { .. } => (FaultKind::Unreachable, "check the host name"),
            Self::Unreachable { .. } | Self::Broken(_) => (
                FaultKind::Unreachable,
                "check that it runs and that UDP to that port is allowed",
            ),
            Self::Certificate { .. } | Self::Identity(_) => (
                FaultKind::Unauthorized,
                "both ends need certificates of the same CA, within their validity, for the right \
                 node: see `steep-repl certs show FILE`",
            ),
            Self::Refused {
                code: CloseCode::Forbidden,
                ..
            } => (
                FaultKind::Unauthorized,
                "use a certificate with the role that this needs",
            ),
            Self::Refused { .. } => (FaultKind::Unreachable, ""),
            Self::Hello(_) => (
                FaultKind::Unreachable,
                "check the address: something else answers",
            ),
        };
        Fault::new(kind, self.to_string())
            .hint(hint)
            .retry(self.retry())
    }
}

/// A stream broke or violated the protocol.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The connection is gone.
    #[error("the connection was lost: {reason}")]
    Lost {
        /// The peer's reason, if the peer closed the connection.
        code: Option<CloseCode>,
        /// The reason as text.
        reason: String,
    },
    /// The peer reset or stopped this stream.
    #[error("the peer ended the stream: {0}")]
    Reset(CloseCode),
    /// The stream ended in the middle of a message.
    #[error("the stream ended in the middle of a message")]
    Truncated,
    /// The bytes are not a valid message.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// The bytes are not a valid frame.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The stream was used after it was finished.
    #[error("the stream was already finished")]
    Finished,
}

impl StreamError {
    /// Why the peer ended the stream or connection, if it said so.
    #[must_use]
    pub fn code(&self) -> Option<CloseCode> {
        match self {
            Self::Lost { code, .. } => *code,
            Self::Reset(code) => Some(*code),
            Self::Truncated | Self::Codec(_) | Self::Frame(_) | Self::Finished => None,
        }
    }

    /// Whether to retry.
    #[must_use]
    pub fn retry(&self) -> Retry {
        match self {
            Self::Lost { .. } => Retry::NewConnection,
            Self::Reset(CloseCode::ShuttingDown) | Self::Truncated => Retry::NewConnection,
            Self::Reset(_) | Self::Codec(_) | Self::Frame(_) | Self::Finished => Retry::Never,
        }
    }

    /// The error for people and scripts.
    #[must_use]
    pub fn to_fault(&self) -> Fault {
        let kind = match self.code() {
            Some(CloseCode::Cancelled) => FaultKind::Cancelled,
            Some(CloseCode::Forbidden) => FaultKind::Unauthorized,
            _ => match self {
                Self::Lost { .. } => FaultKind::Unreachable,
                _ => FaultKind::Failed,
            },
        };
        Fault::new(kind, self.to_string()).retry(self.retry())
    }
}

impl From<quinn::ConnectionError> for StreamError {
    fn from(error: quinn::ConnectionError) -> Self {
        Self::Lost {
            code: closed_with(&error),
            reason: describe(&error),
        }
    }
}

impl From<quinn::WriteError> for StreamError {
    fn from(error: quinn::WriteError) -> Self {
        match error {
            quinn::WriteError::Stopped(code) => Self::Reset(close_code(code)),
            quinn::WriteError::ConnectionLost(error) => error.into(),
            quinn::WriteError::ClosedStream | quinn::WriteError::ZeroRttRejected => Self::Finished,
        }
    }
}

impl From<quinn::ReadError> for StreamError {
    fn from(error: quinn::ReadError) -> Self {
        match error {
            quinn::ReadError::Reset(code) => Self::Reset(close_code(code)),
            quinn::ReadError::ConnectionLost(error) => error.into(),
            quinn::ReadError::ClosedStream
            | quinn::ReadError::IllegalOrderedRead
            | quinn::ReadError::ZeroRttRejected => Self::Finished,
        }
    }
}

fn close_code(code: quinn::VarInt) -> CloseCode {
    CloseCode::from_code(u32::try_from(code.into_inner()).unwrap_or(u32::MAX))
}

/// The peer's reason for closing, if it gave one.
pub(super) fn closed_with(error: &quinn::ConnectionError) -> Option<CloseCode> {
    match error {
        quinn::ConnectionError::ApplicationClosed(close) => Some(close_code(close.error_code)),
        quinn::ConnectionError::LocallyClosed => Some(CloseCode::Done),
        quinn::ConnectionError::VersionMismatch
        | quinn::ConnectionError::TransportError(_)
        | quinn::ConnectionError::ConnectionClosed(_)
        | quinn::ConnectionError::Reset
        | quinn::ConnectionError::TimedOut
        | quinn::ConnectionError::CidsExhausted => None,
    }
}

pub(super) fn describe(error: &quinn::ConnectionError) -> String {
    match error {
        quinn::ConnectionError::ApplicationClosed(close) => {
            format!("closed by the peer, {}", close_code(close.error_code))
        }
        quinn::ConnectionError::TimedOut => "no sign of life for 8 s".to_owned(),
        other => other.to_string(),
    }
}
