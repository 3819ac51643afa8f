//! The messages between steep-repl's processes.
//!
//! [`wire`] is pure: ids, limits, messages, the chunk frame, the codec, close codes. It has no
//! socket, clock or task, so its tests need none. [`quic`] carries it: endpoints with mutual TLS,
//! framed streams, and the peer's identity read from its certificate.
//!
//! This crate knows names and log positions of PostgreSQL and makes no decisions: the state machine
//! is the coordinator's, the data path is the agents'.

pub mod wire;

#[cfg(feature = "quic")]
pub mod quic;

pub use wire::*;
