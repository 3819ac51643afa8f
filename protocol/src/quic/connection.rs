//! A connection with a known peer and a completed hello.

use std::net::SocketAddr;
use std::time::Duration;

use steep_certs::{Identity, Role};

use super::error::{ConnectError, StreamError, closed_with};
use super::stream::{Receiver, Sender};
use crate::wire::close::CloseCode;
use crate::wire::hello::{Answer, HELLO_LENGTH, Hello};
use crate::wire::{ByteCount, NodeId};

/// The peer's identity, from its certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its role.
    pub role: Role,
    /// Its name; for an agent, the node's.
    pub name: NodeId,
    /// The serial number of the certificate it showed, as `steep-repl certs show` prints it.
    pub certificate: String,
}

/// Statistics of a connection's path. Counters cover the connection's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PathStats {
    /// The current round-trip estimate.
    pub rtt: Duration,
    /// Bytes that congestion control allows in flight.
    pub congestion_window: ByteCount,
    /// Packets sent.
    pub sent_packets: u64,
    /// Packets considered lost.
    pub lost_packets: u64,
    /// UDP payload sent.
    pub sent: ByteCount,
    /// UDP payload received.
    pub received: ByteCount,
}

/// A connection. Clones share it.
#[derive(Debug, Clone)]
pub struct Connection {
    inner: quinn::Connection,
    peer: Peer,
    protocol: u16,
}

impl Connection {
    pub(super) async fn greet(inner: quinn::Connection) -> Result<Self, ConnectError> {
        let peer = identify(&inner)?;
        let broken = |e: &dyn std::fmt::Display| ConnectError::Broken(e.to_string());
        let (mut send, mut recv) = inner.open_bi().await.map_err(|e| refused_or_broken(&e))?;
        send.write_all(&Hello::OURS.to_bytes())
            .await
            .map_err(|e| broken(&e))?;
        let _ = send.finish();
        let mut head = [0; HELLO_LENGTH];
        if let Err(error) = recv.read_exact(&mut head).await {
            // A listener that refuses closes the connection; its reason is more specific than the
            // stream's.
            return Err(inner
                .close_reason()
                .map_or_else(|| broken(&error), |e| refused_or_broken(&e)));
        }
        let mut reason = vec![0; Answer::reason_length(&head)?];
        recv.read_exact(&mut reason).await.map_err(|e| broken(&e))?;
        match Answer::from_bytes(&head, &reason)? {
            Answer::Accepted { version } => Ok(Self {
                inner,
                peer,
                protocol: version,
            }),
            Answer::Refused { code, reason } => {
                inner.close(quinn::VarInt::from_u32(CloseCode::Done.code()), b"");
                Err(ConnectError::Refused { code, reason })
            }
        }
    }

    pub(super) async fn welcome(inner: quinn::Connection) -> Result<Self, ConnectError> {
        let peer = identify(&inner)?;
        let broken = |e: &dyn std::fmt::Display| ConnectError::Broken(e.to_string());
        let (mut send, mut recv) = inner.accept_bi().await.map_err(|e| broken(&e))?;
        let mut hello = [0; HELLO_LENGTH];
        recv.read_exact(&mut hello).await.map_err(|e| broken(&e))?;
        let answer = Hello::from_bytes(&hello)?.answer(Hello::OURS);
        send.write_all(&answer.to_bytes())
            .await
            .map_err(|e| broken(&e))?;
        let _ = send.finish();
        match answer {
            Answer::Accepted { version } => Ok(Self {
                inner,
                peer,
                protocol: version,
            }),
            Answer::Refused { code, reason } => {
                // The peer closes after reading the refusal.
                let _ = tokio::time::timeout(Duration::from_secs(5), inner.closed()).await;
                Err(ConnectError::Refused { code, reason })
            }
        }
    }

    /// The peer's identity.
    #[must_use]
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// The protocol version in use ([`crate::hello::VERSION`]).
    #[must_use]
    pub fn protocol(&self) -> u16 {
        self.protocol
    }

    /// Opens a stream. Waits while the peer's limit of streams is reached.
    ///
    /// # Errors
    /// [`StreamError::Lost`] if the connection is gone.
    pub async fn open(&self) -> Result<(Sender, Receiver), StreamError> {
        let (send, recv) = self.inner.open_bi().await?;
        Ok((Sender::new(send), Receiver::new(recv)))
    }

    /// Waits for the next stream that the peer opens.
    ///
    /// # Errors
    /// [`StreamError::Lost`] if the connection is gone.
    pub async fn accept(&self) -> Result<(Sender, Receiver), StreamError> {
        let (send, recv) = self.inner.accept_bi().await?;
        Ok((Sender::new(send), Receiver::new(recv)))
    }

    /// Closes it at once with that reason.
    pub fn close(&self, code: CloseCode) {
        self.inner.close(
            quinn::VarInt::from_u32(code.code()),
            code.to_string().as_bytes(),
        );
    }

    /// Waits until either end has closed it. Returns the peer's reason, if it gave one.
    pub async fn closed(&self) -> Option<CloseCode> {
        closed_with(&self.inner.closed().await)
    }

    /// Whether it is closed.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.inner.close_reason().is_some()
    }

    /// The peer's address as seen from here.
    #[must_use]
    pub fn remote(&self) -> SocketAddr {
        self.inner.remote_address()
    }

    /// The transport's own statistics.
    #[must_use]
    pub fn path(&self) -> PathStats {
        let stats = self.inner.stats();
        PathStats {
            rtt: stats.path.rtt,
            congestion_window: ByteCount(stats.path.cwnd),
            sent_packets: stats.path.sent_packets,
            lost_packets: stats.path.lost_packets,
            sent: ByteCount(stats.udp_tx.bytes),
            received: ByteCount(stats.udp_rx.bytes),
        }
    }

    /// The current round-trip estimate.
    #[must_use]
    pub fn rtt(&self) -> Duration {
        self.inner.rtt()
    }
}

fn refused_or_broken(error: &quinn::ConnectionError) -> ConnectError {
    match closed_with(error) {
        Some(code) => ConnectError::Refused {
            code,
            reason: code.to_string(),
        },
        // In TLS 1.3 the client finishes before the server has checked its certificate, so the
        // server's alert arrives here.
        None if is_tls(error) => ConnectError::Certificate {
            address: "the peer".to_owned(),
            reason: error.to_string(),
        },
        None => ConnectError::Broken(super::error::describe(error)),
    }
}

pub(super) fn is_tls(error: &quinn::ConnectionError) -> bool {
    // RFC 9001, 4.8: TLS alerts are the transport errors 0x100 to 0x1ff.
    let code = match error {
        quinn::ConnectionError::TransportError(error) => u64::from(error.code),
        quinn::ConnectionError::ConnectionClosed(close) => u64::from(close.error_code),
        _ => 0,
    };
    (0x100..0x200).contains(&code)
}

fn identify(connection: &quinn::Connection) -> Result<Peer, ConnectError> {
    let refuse = |why: &str| ConnectError::Identity(why.to_owned());
    let chain = connection
        .peer_identity()
        .and_then(|any| {
            any.downcast::<Vec<rustls::pki_types::CertificateDer<'static>>>()
                .ok()
        })
        .ok_or_else(|| refuse("none was presented"))?;
    let leaf = chain.first().ok_or_else(|| refuse("none was presented"))?;
    let identity =
        Identity::from_certificate(leaf).map_err(|e| ConnectError::Identity(e.to_string()))?;
    let name = NodeId::parse(&identity.name).map_err(|e| ConnectError::Identity(e.to_string()))?;
    Ok(Peer {
        role: identity.role,
        name,
        certificate: Identity::serial(leaf).map_err(|e| ConnectError::Identity(e.to_string()))?,
    })
}
