//! The coordinator: holds the state of every node and job, sends commands to agents and answers
//! operators.
//!
//! In the order a request flows:
//!
//! ```text
//! operator ══QUIC══▶ api/ ──question──▶ drive/ ──event──▶ job/ (pure: machine, copy_progress, progress, preflight)
//!                                         │ ▲   ◀─effects──  └ assign/ (pure: order of parts, workers)
//!                       store/ ◀─writes───┤ │
//! agents  ◀══QUIC══▶ session/ ◀─commands──┘ └── agents' messages
//! ```
//! [`server`] starts and stops it; [`registry`] holds the agents that have a session.
//!
//! The coordinator never sees a row, a password or a connection string, and never talks to
//! PostgreSQL. Transfers between agents continue while it is down.

mod admission;
pub mod api;
pub mod assign;
pub mod config;
pub mod drive;
pub mod job;
mod metrics;
pub mod registry;
pub mod run;
pub mod server;
pub mod session;
pub mod snapshot;
pub mod store;
pub mod switchover;

#[cfg(test)]
mod testing;
