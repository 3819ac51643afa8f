//! From a [`Conninfo`] to an open stream, TLS where wanted; shared by every kind of connection.
//!
//! Addresses are tried in order. As in libpq, a refused login ends the search, except that
//! `sslmode=allow` and `prefer` try the same address once more the other way.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use postgres_protocol::message::frontend;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};
use tokio_postgres::error::SqlState;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::either::Either;

use super::conninfo::{Address, Conninfo, Endpoint, Keepalive, SslMode, socket_path};
use super::transport::{Reads, Transport};
use super::{PgError, tls};

/// An open connection, before the first PostgreSQL message or after it: in the clear on the left,
/// through TLS on the right.
pub(super) type Stream = Either<Transport, Box<TlsStream<Transport>>>;

/// One way to one server; can be taken again, for a cancel request.
#[derive(Debug, Clone)]
pub(super) struct Route {
    pub(super) endpoint: Endpoint,
    tls: TlsUse,
}

/// What to do about TLS on a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TlsUse {
    Never,
    IfOffered,
    Always,
}

/// The ways to try, in order.
fn routes(conninfo: &Conninfo) -> Vec<Route> {
    let ways = |endpoint: &Endpoint| -> &[TlsUse] {
        match (&endpoint.address, conninfo.tls.mode) {
            (Address::Socket(_), _) | (Address::Host { .. }, SslMode::Disable) => &[TlsUse::Never],
            (_, SslMode::Allow) => &[TlsUse::Never, TlsUse::Always],
            (_, SslMode::Prefer) => &[TlsUse::IfOffered, TlsUse::Never],
            (_, SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull) => &[TlsUse::Always],
        }
    };
    conninfo
        .endpoints
        .iter()
        .flat_map(|endpoint| {
            ways(endpoint).iter().map(|tls| Route {
                endpoint: endpoint.clone(),
                tls: *tls,
            })
        })
        .collect()
}

/// The search for a server that lets us in: one way after the other.
#[derive(Debug)]
pub(super) struct Search {
    ways: std::vec::IntoIter<Route>,
    patience: Duration,
    failed: Vec<(Route, PgError)>,
}

impl Search {
    pub(super) fn new(conninfo: &Conninfo) -> Self {
        Self {
            ways: routes(conninfo).into_iter(),
            patience: conninfo.connect_timeout,
            failed: Vec::new(),
        }
    }

    /// The next way worth trying after what failed.
    pub(super) fn way(&mut self) -> Option<Route> {
        let Self { ways, failed, .. } = self;
        ways.find(|route| is_worth_trying(route, failed.last()))
    }

    /// What `attempt` makes of that way, unless it fails or takes longer than `connect_timeout`.
    pub(super) async fn within<T>(
        &mut self,
        route: &Route,
        attempt: impl Future<Output = Result<T, PgError>>,
    ) -> Option<T> {
        let outcome = tokio::time::timeout(self.patience, attempt).await;
        match outcome.unwrap_or_else(|_| Err(timed_out(route))) {
            Ok(made) => Some(made),
            Err(error) => {
                self.failed.push((route.clone(), error));
                None
            }
        }
    }

    /// The one error to tell: a server's answer before a missing one, all places where none answered.
    pub(super) fn into_error(mut self) -> PgError {
        let answered = self
            .failed
            .iter()
            .position(|(_, error)| !matches!(error, PgError::Connect { .. }));
        if let Some(at) = answered {
            return self.failed.swap_remove(at).1;
        }
        if self.failed.len() == 1 {
            return self.failed.swap_remove(0).1;
        }
        let mut places = Vec::new();
        let mut reasons = Vec::new();
        for (_, error) in self.failed {
            if let PgError::Connect { place, source } = error {
                reasons.push(format!("{place}: {source}"));
                places.push(place);
            }
        }
        let kind = io::ErrorKind::NotConnected;
        PgError::Connect {
            place: places.join(" or "),
            source: io::Error::new(kind, reasons.join("; ")),
        }
    }
}

/// Whether `route` is worth trying after the last failure.
fn is_worth_trying(route: &Route, last: Option<&(Route, PgError)>) -> bool {
    let Some((last, error)) = last else {
        return true;
    };
    let same_place = last.endpoint == route.endpoint;
    match error {
        // Not even reached: the other way to the same place would not get further.
        PgError::Connect { .. } if same_place => false,
        PgError::Connect { .. } | PgError::Tls { .. } | PgError::Closed | PgError::Io(_) => true,
        PgError::Server(error) => {
            let elsewhere = [
                SqlState::CANNOT_CONNECT_NOW,
                SqlState::TOO_MANY_CONNECTIONS,
                SqlState::ADMIN_SHUTDOWN,
            ];
            let refused = error.code.code().starts_with("28");
            same_place == refused && (refused || elsewhere.contains(&error.code))
        }
        // The wrong kind of server: another may be the right one.
        PgError::Unsuitable { .. } if !same_place => true,
        PgError::Login { .. }
        | PgError::Unsuitable { .. }
        | PgError::Conninfo(_)
        | PgError::Protocol(_)
        | PgError::Driver(_)
        | PgError::Extension { .. }
        | PgError::Untrusted { .. }
        | PgError::Cancelled => false,
    }
}

/// What a local socket is to hold on its way to the server, in bytes, so that whoever loads is woken
/// for hundreds of kilobytes at once. TCP finds its own size.
const SEND_BUFFER: usize = 1024 * 1024;

/// Opens a stream along `route`. Unbounded in time: callers bound it together with the login.
pub(super) async fn open(
    conninfo: &Conninfo,
    route: &Route,
    reads: Reads,
) -> Result<Stream, PgError> {
    let unreachable = |source| PgError::Connect {
        place: route.endpoint.to_string(),
        source,
    };
    let port = route.endpoint.port;
    let (name, tcp) = match &route.endpoint.address {
        Address::Socket(dir) => {
            let stream = UnixStream::connect(socket_path(dir, port))
                .await
                .map_err(unreachable)?;
            // Nothing but speed depends on it, and the kernel gives what its administrator allows.
            let _ = rustix::net::sockopt::set_socket_send_buffer_size(&stream, SEND_BUFFER);
            let transport = Transport::unix(stream, reads).map_err(unreachable)?;
            return Ok(Stream::Left(transport));
        }
        Address::Host {
            name,
            addr: Some(addr),
        } => {
            let address = SocketAddr::new(*addr, port);
            let tcp = TcpStream::connect(address).await.map_err(unreachable)?;
            (name.clone().unwrap_or_else(|| addr.to_string()), tcp)
        }
        Address::Host {
            name: Some(name),
            addr: None,
        } => {
            let tcp = TcpStream::connect((name.as_str(), port))
                .await
                .map_err(unreachable)?;
            (name.clone(), tcp)
        }
        Address::Host {
            name: None,
            addr: None,
        } => {
            return Err(unreachable(io::Error::other("no host is named")));
        }
    };
    prepare(&tcp, conninfo.keepalive).map_err(unreachable)?;
    let transport = Transport::tcp(tcp, reads).map_err(unreachable)?;
    match route.tls {
        TlsUse::Never => Ok(Stream::Left(transport)),
        TlsUse::IfOffered | TlsUse::Always => encrypt(conninfo, route, &name, transport).await,
    }
}

fn prepare(tcp: &TcpStream, keepalive: Option<Keepalive>) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    let Some(keepalive) = keepalive else {
        return Ok(());
    };
    rustix::net::sockopt::set_socket_keepalive(tcp, true)?;
    if !keepalive.idle.is_zero() {
        rustix::net::sockopt::set_tcp_keepidle(tcp, keepalive.idle)?;
    }
    if !keepalive.interval.is_zero() {
        rustix::net::sockopt::set_tcp_keepintvl(tcp, keepalive.interval)?;
    }
    if keepalive.count > 0 {
        rustix::net::sockopt::set_tcp_keepcnt(tcp, keepalive.count)?;
    }
    Ok(())
}

/// SSLRequest and handshake (PostgreSQL manual, section "SSL Session Encryption").
async fn encrypt(
    conninfo: &Conninfo,
    route: &Route,
    name: &str,
    mut transport: Transport,
) -> Result<Stream, PgError> {
    let failed = |reason: String| PgError::Tls {
        place: route.endpoint.to_string(),
        reason,
    };
    let mut request = BytesMut::new();
    frontend::ssl_request(&mut request);
    transport.write_all(&request).await?;
    // One byte and no more: whatever else came in clear text is the handshake's to refuse, and must not
    // be taken for the server's later.
    match transport.read_u8().await? {
        b'S' => {}
        b'N' if route.tls == TlsUse::IfOffered => return Ok(Stream::Left(transport)),
        b'N' => return Err(failed("the server does not offer it".to_owned())),
        _ => {
            return Err(failed(
                "the answer to the request was not understood".to_owned(),
            ));
        }
    }
    let config = tls::client_config(&conninfo.tls).map_err(failed)?;
    let name = ServerName::try_from(name.to_owned())
        .map_err(|_| failed("the host is no name that a certificate can carry".to_owned()))?;
    let stream = TlsConnector::from(Arc::new(config))
        .connect(name, transport)
        .await
        .map_err(|error| failed(error.to_string()))?;
    Ok(Stream::Right(Box::new(stream)))
}

/// The error of an attempt along `route` that took too long.
pub(super) fn timed_out(route: &Route) -> PgError {
    let source = io::Error::new(io::ErrorKind::TimedOut, "no answer in time");
    PgError::Connect {
        place: route.endpoint.to_string(),
        source,
    }
}

/// Waits until the server has closed: for a cancel request, that is when it has been acted on, so
/// that it cannot hit a later statement.
pub(super) async fn until_closed(stream: &mut Stream) {
    let mut rest = [0; 64];
    while matches!(stream.read(&mut rest).await, Ok(n) if n > 0) {}
}
