//! Endpoints: one UDP socket that listens and dials, or only dials.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use steep_certs::{Credentials, Role};

use super::connection::{Connection, is_tls};
use super::error::{ConnectError, EndpointError, describe};
use super::tuning::{Side, Traffic, Tuning};
use crate::wire::NodeId;
use crate::wire::close::CloseCode;
use crate::wire::hello::ALPN;

/// Time for one address to answer before the next is tried.
const DIAL_TIMEOUT: Duration = Duration::from_secs(5);

/// Time for a caller to finish TLS and hello; the caller waits as long.
const HANDSHAKE_TIMEOUT: Duration = DIAL_TIMEOUT;

/// Requested socket buffers: 4 MiB hold 20 ms at 200 MB/s. The kernel grants at most
/// `net.core.rmem_max`.
const SOCKET_BUFFER: usize = 4 * 1024 * 1024;

/// Callers waiting to be accepted. The transport rejects more.
const INCOMING_MAX: usize = 1_024;

/// Bytes buffered per waiting caller: its first flight of packets.
const INCOMING_BUFFER: u64 = 16 * 1024;

/// Bytes buffered for all waiting callers.
const INCOMING_BUFFERS: u64 = 4 * 1024 * 1024;

/// The expected identity of a dialled peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expect {
    /// A coordinator of this cluster.
    Coordinator,
    /// The agent of that node.
    Agent(NodeId),
}

/// A UDP socket that speaks QUIC with this process's certificate.
#[derive(Debug)]
pub struct Endpoint {
    inner: quinn::Endpoint,
    local: SocketAddr,
}

/// A caller that has not been authenticated yet.
#[derive(Debug)]
pub struct Incoming {
    inner: quinn::Incoming,
}

impl Incoming {
    /// The caller's address.
    #[must_use]
    pub fn remote(&self) -> SocketAddr {
        self.inner.remote_address()
    }

    /// The caller, if it has proved that it receives at its address. Otherwise it is told to retry
    /// with a proof.
    pub(super) fn with_proved_address(self) -> Option<Self> {
        if !self.inner.may_retry() {
            return Some(self);
        }
        // Fails only if a retry is not allowed; the caller then times out.
        let _ = self.inner.retry();
        None
    }

    /// Finishes TLS and the hello within [`HANDSHAKE_TIMEOUT`]. Run it beside the accept loop.
    ///
    /// # Errors
    /// [`ConnectError`] if the caller has no certificate of this cluster or speaks another
    /// protocol.
    pub async fn handshake(self) -> Result<Connection, ConnectError> {
        let address = self.inner.remote_address().to_string();
        let work = async {
            let connecting = self
                .inner
                .accept()
                .map_err(|e| ConnectError::Broken(describe(&e)))?;
            let connection = connecting.await.map_err(|e| failed(&address, &e))?;
            Connection::welcome(connection).await
        };
        tokio::time::timeout(HANDSHAKE_TIMEOUT, work)
            .await
            .unwrap_or_else(|_| {
                Err(ConnectError::Broken(
                    "the handshake took longer than 5 s".to_owned(),
                ))
            })
    }
}

impl Endpoint {
    /// Listens on that address, and can also dial from it, as an agent does.
    ///
    /// # Errors
    /// [`EndpointError`] if the address is not available or the certificates cannot be used.
    pub fn listen(
        address: SocketAddr,
        credentials: &Credentials,
        tuning: Tuning,
    ) -> Result<Self, EndpointError> {
        let tls = credentials.server_config(ALPN)?;
        let crypto =
            QuicServerConfig::try_from(tls).map_err(|e| EndpointError::Tls(e.to_string()))?;
        let mut server = quinn::ServerConfig::with_crypto(Arc::new(crypto));
        server
            .transport_config(tuning.transport(Side::Listens))
            .max_incoming(INCOMING_MAX)
            .incoming_buffer_size(INCOMING_BUFFER)
            .incoming_buffer_size_total(INCOMING_BUFFERS);
        let socket = bind(address).map_err(|source| EndpointError::Bind { address, source })?;
        Self::open(socket, Some(server), credentials, tuning)
    }

    /// Only dials, from any port.
    ///
    /// # Errors
    /// [`EndpointError`] if no socket can be opened or the certificates cannot be used.
    pub fn dialer(credentials: &Credentials, tuning: Tuning) -> Result<Self, EndpointError> {
        let any6 = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0));
        let any4 = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        let socket = bind(any6)
            .or_else(|_| bind(any4))
            .map_err(|source| EndpointError::Bind {
                address: any4,
                source,
            })?;
        Self::open(socket, None, credentials, tuning)
    }

    fn open(
        socket: UdpSocket,
        server: Option<quinn::ServerConfig>,
        credentials: &Credentials,
        tuning: Tuning,
    ) -> Result<Self, EndpointError> {
        let tls = credentials.client_config(ALPN)?;
        let crypto =
            QuicClientConfig::try_from(tls).map_err(|e| EndpointError::Tls(e.to_string()))?;
        let mut client = quinn::ClientConfig::new(Arc::new(crypto));
        client.transport_config(tuning.transport(Side::Dials));
        let mut config = quinn::EndpointConfig::default();
        if tuning.traffic == Traffic::Bulk {
            config
                .max_udp_payload_size(tuning.mtu_max())
                .map_err(|e| EndpointError::Tls(e.to_string()))?;
        }
        let unspecified = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        let broken = |source| EndpointError::Bind {
            address: unspecified,
            source,
        };
        let local = socket.local_addr().map_err(broken)?;
        let runtime = Arc::new(quinn::TokioRuntime);
        let mut inner =
            quinn::Endpoint::new(config, server, socket, runtime).map_err(|source| {
                EndpointError::Bind {
                    address: local,
                    source,
                }
            })?;
        inner.set_default_client_config(client);
        Ok(Self { inner, local })
    }

    /// Waits for the next caller; `None` once the endpoint is closed. Cancel-safe.
    pub async fn accept(&self) -> Option<Incoming> {
        self.inner.accept().await.map(|inner| Incoming { inner })
    }

    /// Dials `HOST:PORT`, trying each of its addresses in turn, and verifies the peer's identity.
    ///
    /// # Errors
    /// [`ConnectError`] of the last address tried.
    pub async fn dial(&self, address: &str, expect: &Expect) -> Result<Connection, ConnectError> {
        let resolve = |source| ConnectError::Resolve {
            address: address.to_owned(),
            source,
        };
        let found: Vec<SocketAddr> = tokio::net::lookup_host(address)
            .await
            .map_err(resolve)?
            .collect();
        let mut last = resolve(std::io::Error::other("the name has no address"));
        for remote in found {
            match self.dial_one(remote, expect).await {
                Ok(connection) => return Ok(connection),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    async fn dial_one(
        &self,
        remote: SocketAddr,
        expect: &Expect,
    ) -> Result<Connection, ConnectError> {
        let address = remote.to_string();
        let name = match expect {
            Expect::Coordinator => steep_certs::any_coordinator(),
            Expect::Agent(node) => steep_certs::server_name(Role::Agent, node.as_str()),
        };
        let remote = if self.local.is_ipv6() {
            mapped(remote)
        } else {
            remote
        };
        let unreachable = |reason: String| ConnectError::Unreachable {
            address: address.clone(),
            reason,
        };
        let work = async {
            let connection = self
                .inner
                .connect(remote, &name.to_str())
                .map_err(|e| unreachable(e.to_string()))?
                .await
                .map_err(|e| failed(&address, &e))?;
            Connection::greet(connection).await
        };
        tokio::time::timeout(DIAL_TIMEOUT, work)
            .await
            .unwrap_or_else(|_| Err(unreachable("nothing came within 5 s".to_owned())))
    }

    /// The listening address, with the port that the kernel chose.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Closes every connection with that reason and waits until the peers have been notified, or
    /// `deadline` has passed.
    pub async fn close(&self, code: CloseCode, deadline: Duration) {
        self.inner.close(
            quinn::VarInt::from_u32(code.code()),
            code.to_string().as_bytes(),
        );
        let _ = tokio::time::timeout(deadline, self.inner.wait_idle()).await;
    }
}

fn failed(address: &str, error: &quinn::ConnectionError) -> ConnectError {
    let address = address.to_owned();
    if is_tls(error) {
        ConnectError::Certificate {
            address,
            reason: error.to_string(),
        }
    } else {
        ConnectError::Unreachable {
            address,
            reason: describe(error),
        }
    }
}

/// An IPv6 socket reaches IPv4 hosts by mapped addresses.
fn mapped(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(v4) => SocketAddr::from((v4.ip().to_ipv6_mapped(), v4.port())),
        v6 @ SocketAddr::V6(_) => v6,
    }
}

fn bind(address: SocketAddr) -> std::io::Result<UdpSocket> {
    use socket2::{Domain, Protocol, Socket, Type};
    let socket = Socket::new(
        Domain::for_address(address),
        Type::DGRAM,
        Some(Protocol::UDP),
    )?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    // Best effort: the kernel may grant less, and a sandbox nothing.
    let _ = socket.set_recv_buffer_size(SOCKET_BUFFER);
    let _ = socket.set_send_buffer_size(SOCKET_BUFFER);
    socket.bind(&address.into())?;
    Ok(socket.into())
}
