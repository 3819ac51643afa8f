//! The agent: runs beside one PostgreSQL server, the only process that talks to it.
//!
//! In the order rows flow:
//!
//! ```text
//! source/ (snapshot, plan, copy_out) → chunk/ (cut, pack, digest) → peer/ ══QUIC══▶ peer/ → chunk/ → sink/ (copy_in, ledger)
//! ```
//! and in the order commands flow: [`session`] (the coordinator's commands) → [`task`] (one per
//! command) → [`source`], [`sink`], [`facts`] → [`pg`].
//!
//! The agent never decides what a job does next: it does what it is told, idempotently, and says
//! what it sees.

pub mod budget;
pub mod chunk;
pub mod config;
pub mod descent;
pub mod facts;
pub mod locks;
pub mod peer;
pub mod pg;
pub mod run;
pub mod seat;
pub mod session;
pub mod sink;
pub mod source;
pub mod task;
pub mod telemetry;
