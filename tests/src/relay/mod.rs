//! Relays that stand between two processes and play a bad network: datagrams ([`UdpRelay`]) for agents and
//! coordinator, connections ([`TcpRelay`]) for PostgreSQL.
//!
//! A process reaches another through a relay by being told the relay's address. A relay changes no byte.

mod tcp;
mod udp;

use std::sync::{Mutex, PoisonError};

pub use tcp::TcpRelay;
pub use udp::UdpRelay;

/// The state of the network between two processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Condition {
    /// Everything arrives.
    #[default]
    Clear,
    /// Nothing arrives, in either direction. Connections stay open.
    Cut,
    /// Of ten datagrams, one is lost, one arrives twice and one arrives late. A connection notices
    /// nothing of this.
    Poor,
}

/// A condition that several threads look at.
#[derive(Debug, Default)]
struct Shared(Mutex<State>);

#[derive(Debug, Default, Clone, Copy)]
struct State {
    condition: Condition,
    stopped: bool,
    /// Grows when all connections are to break.
    resets: u32,
}

impl Shared {
    fn read(&self) -> State {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}
