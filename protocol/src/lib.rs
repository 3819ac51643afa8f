//! What steep-repl's processes say to each other.
//!
//! [`wire`] is pure: ids, limits, messages, the chunk frame, the codec, close codes. It has no
//! socket, no clock and no task, so all of it is tested as values. [`quic`] carries it: endpoints
//! with mutual TLS, framed streams, and the peer's identity read from its certificate.
//!
//! Nothing here knows PostgreSQL beyond names and log positions, and nothing here decides anything:
//! the state machine is the coordinator's, the data path is the agents'.

pub mod wire;

#[cfg(feature = "quic")]
pub mod quic;

pub use wire::*;
