//! The half with sockets: QUIC endpoints with mutual TLS, framed streams, the peer's identity.
//!
//! Invariants: no byte is exchanged with a peer whose certificate the cluster's CA did not sign; a
//! dialled peer must prove the expected name by its certificate, whatever its address; every
//! connection begins with the frozen hello ([`crate::hello`]); every window is bounded, and so are
//! unfinished handshakes and the connections of each identity ([`Listener`]).

mod connection;
mod endpoint;
mod error;
mod links;
mod listener;
mod stream;
mod tuning;

#[cfg(test)]
mod tests;

pub use connection::{Connection, PathStats, Peer};
pub use endpoint::{Endpoint, Expect, Incoming};
pub use error::{ConnectError, EndpointError, StreamError};
pub use links::{Links, PeerStats, Watched};
pub use listener::{Accepted, Arrival, Busy, ConnectionLimits, Listener, Place};
pub use steep_certs::Role;
pub use stream::{Receiver, Sender};
pub use tuning::{Congestion, Traffic, Tuning};
