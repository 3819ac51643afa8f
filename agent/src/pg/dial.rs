//! From a [`Conninfo`] to an open stream, with TLS where wanted; shared by every kind of connection.
//!
//! Addresses are tried in order. As in libpq, a refused login ends the search, except that `sslmode=allow`
//! and `prefer` retry the same address the other way.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::BytesMut;
use postgres_protocol::message::frontend;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};
use tokio_postgres::error::SqlState;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::either::Either;

use super::conninfo::{
    Address, Conninfo, Endpoint, Keepalive, SessionAttrs, SslMode, socket_path, word,
};
use super::transport::{self, Reads, Transport};
use super::{PgError, tls};

/// Plain on the left, TLS on the right.
pub(super) type Stream = Either<Transport, Box<TlsStream<Transport>>>;

/// A way to one server; used again for a cancel request.
#[derive(Debug, Clone)]
pub(super) struct Route {
    pub(super) endpoint: Endpoint,
    tls: TlsUse,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TlsUse {
    Never,
    IfOffered,
    Always,
}

/// The routes to try, in order.
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

/// Tries one route after another until `login` succeeds. Each has `connect_timeout` for stream and login.
pub(super) async fn connect<T, F: Future<Output = Result<T, PgError>>>(
    conninfo: &Conninfo,
    reads: Reads,
    login: impl Fn(Stream, Route) -> F,
) -> Result<T, PgError> {
    let mut failed = Vec::new();
    for route in routes(conninfo) {
        if !is_worth_trying(&route, failed.last()) {
            continue;
        }
        let attempt = async { login(open(conninfo, &route, reads).await?, route.clone()).await };
        match tokio::time::timeout(conninfo.connect_timeout, attempt).await {
            Ok(Ok(connection)) => return Ok(connection),
            Ok(Err(error)) => failed.push((route, error)),
            Err(_) => failed.push((route.clone(), timed_out(&route))),
        }
    }
    Err(most_telling(failed))
}

/// The first answer of a server; without any, all places that did not answer.
fn most_telling(mut failed: Vec<(Route, PgError)>) -> PgError {
    let answered = failed
        .iter()
        .position(|(_, error)| !matches!(error, PgError::Connect { .. }));
    if let Some(at) = answered.or((failed.len() == 1).then_some(0)) {
        return failed.swap_remove(at).1;
    }
    let (mut places, mut reasons) = (Vec::new(), Vec::new());
    for (_, error) in failed {
        if let PgError::Connect { place, source } = error {
            reasons.push(format!("{place}: {source}"));
            places.push(place);
        }
    }
    PgError::Connect {
        place: places.join(" or "),
        source: io::Error::new(io::ErrorKind::NotConnected, reasons.join("; ")),
    }
}

fn is_worth_trying(route: &Route, last: Option<&(Route, PgError)>) -> bool {
    let Some((last, error)) = last else {
        return true;
    };
    let same_place = last.endpoint == route.endpoint;
    match error {
        // Not reached at all: the other way to the same place would not help.
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
        // Another server may be of the right kind.
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

/// Send buffer of a local socket, in bytes, so that a loader wakes once for hundreds of kilobytes. TCP
/// sizes its own.
const SEND_BUFFER: usize = 1024 * 1024;

/// Without a time limit: callers limit it together with the login.
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
            // Only speed depends on it, and the kernel may cap it.
            let _ = rustix::net::sockopt::set_socket_send_buffer_size(&stream, SEND_BUFFER);
            return Ok(Stream::Left(
                transport::unix(stream, reads).map_err(unreachable)?,
            ));
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
    let socket = transport::tcp(tcp, reads).map_err(unreachable)?;
    match route.tls {
        TlsUse::Never => Ok(Stream::Left(socket)),
        TlsUse::IfOffered | TlsUse::Always => encrypt(conninfo, route, &name, socket).await,
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
    // Exactly one byte: any further clear text must reach the handshake, which refuses it, and never pass
    // for the server's own.
    match transport.read_u8().await? {
        b'S' => {}
        b'N' if route.tls == TlsUse::IfOffered => return Ok(Stream::Left(transport)),
        b'N' => return Err(failed("the server does not offer it".to_owned())),
        _ => {
            return Err(failed(
                "the server's answer to the TLS request is invalid".to_owned(),
            ));
        }
    }
    let config = tls::client_config(&conninfo.tls).map_err(failed)?;
    let name = ServerName::try_from(name.to_owned())
        .map_err(|_| failed("the host is not a name that a certificate can have".to_owned()))?;
    let stream = TlsConnector::from(Arc::new(config))
        .connect(name, transport)
        .await
        .map_err(|error| failed(error.to_string()))?;
    Ok(Stream::Right(Box::new(stream)))
}

/// Checks `target_session_attrs` against what PostgreSQL 14 and newer report at the login.
pub(super) fn check_kind<'a>(
    wanted: SessionAttrs,
    route: &Route,
    parameter: impl Fn(&str) -> Option<&'a str>,
) -> Result<(), PgError> {
    let standby = parameter("in_hot_standby") == Some("on");
    let read_only = standby || parameter("default_transaction_read_only") == Some("on");
    let suits = match wanted {
        // Preferred only; with a single server that is the same as any.
        SessionAttrs::Any | SessionAttrs::PreferStandby => true,
        // Our sessions write also to a database that is read-only by default.
        SessionAttrs::ReadWrite => !standby,
        SessionAttrs::ReadOnly => read_only,
        SessionAttrs::Primary => !standby,
        SessionAttrs::Standby => standby,
    };
    if suits {
        return Ok(());
    }
    let is = match (standby, read_only) {
        (true, _) => "a standby",
        (false, true) => "read-only",
        (false, false) => "a primary",
    };
    let wanted = word(wanted);
    Err(PgError::Unsuitable {
        place: route.endpoint.to_string(),
        reason: format!("target_session_attrs={wanted} is wanted and the server is {is}"),
    })
}

pub(super) fn timed_out(route: &Route) -> PgError {
    let source = io::Error::new(io::ErrorKind::TimedOut, "no answer in time");
    PgError::Connect {
        place: route.endpoint.to_string(),
        source,
    }
}

/// Waits until the server closes the stream. After a cancel request this means that the request was handled
/// and cannot hit a later statement.
pub(super) async fn until_closed(stream: &mut Stream) {
    let mut rest = [0; 64];
    while matches!(stream.read(&mut rest).await, Ok(n) if n > 0) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kind_of_server_decides_whether_it_is_used() {
        let conninfo = Conninfo::parse("host=h user=u dbname=d").unwrap();
        let route = &routes(&conninfo)[0];
        let suits = |standby, read_only, wanted| {
            let parameter = |name: &str| match name {
                "in_hot_standby" => Some(standby),
                "default_transaction_read_only" => Some(read_only),
                _ => None,
            };
            check_kind(wanted, route, parameter).is_ok()
        };
        assert!(suits("off", "off", SessionAttrs::ReadWrite));
        assert!(!suits("on", "off", SessionAttrs::ReadWrite));
        assert!(suits("off", "on", SessionAttrs::ReadWrite));
        assert!(suits("off", "on", SessionAttrs::Primary));
        assert!(suits("on", "off", SessionAttrs::Standby));
        assert!(!suits("off", "off", SessionAttrs::Standby));
    }
}
