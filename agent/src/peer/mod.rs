//! Agent to agent: the middle of the data path.
//!
//! [`serve`] answers a target's agent from the snapshots held open here; [`connection`] is the target's
//! end. [`stream`] moves one part over one QUIC stream, [`fetch`] runs the workers that fetch a plan,
//! taking parts from [`queue`] and getting them from the source or a snapshot carried here ([`rows`]); where
//! several targets share a snapshot, [`exchange`] gets them from one another.
//! [`workers`] counts them, [`Rate`](crate::rate::Rate) limits them all together, [`pending`] is a dump that is
//! requested early, and [`span`] makes the trace spans of parts.
//!
//! Invariants: only nodes that the coordinator named for a job or a snapshot get an answer (G7); a part is reported
//! done only after the target's commit (G2); a broken connection costs the parts on it and nothing else.

pub(crate) mod connection;
pub(crate) mod conversation;
mod exchange;
mod expected;
pub(crate) mod fetch;
pub(crate) mod pending;
mod queue;
pub(crate) mod rows;
pub(crate) mod serve;
mod span;
pub mod stream;
mod workers;

#[cfg(test)]
mod tests;
