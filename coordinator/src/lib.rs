//! The coordinator: holds the state of every node and job, tells agents what to do next, and tells
//! operators how far it is.
//!
//! In the order a request flows:
//!
//! ```text
//! operator ══QUIC══▶ api/ ──question──▶ drive/ ──event──▶ job/ (pure: machine, copy_progress, progress, preflight)
//!                                         │ ▲   ◀─effects──  └ assign/ (pure: order of parts, workers)
//!                       store/ ◀─writes───┤ │
//! agents  ◀══QUIC══▶ session/ ◀─commands──┘ └── what agents say
//! ```
//! [`server`] puts it together; [`registry`] knows who is there.
//!
//! The coordinator never sees a row, a password or a connection string, and never talks to
//! PostgreSQL. While it is down, transfers between agents go on.

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
pub mod store;

#[cfg(test)]
mod testing;
