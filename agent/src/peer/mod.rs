//! Agent to agent: the middle of the data path.
//!
//! [`serve`] answers a target's agent from the snapshots held open here; [`connection`] is the target's
//! end. [`stream`] moves one part over one QUIC stream, [`fetch`] runs the workers that fetch a plan,
//! [`workers`] counts them, [`Rate`](crate::rate::Rate) limits them all together, [`pending`] is a dump that is
//! requested early, and [`span`] makes the trace spans of parts.
//!
//! Invariants: only the node that the coordinator named for a job gets an answer (G7); a part is reported
//! done only after the target's commit (G2); a broken connection costs the parts on it and nothing else.

pub(crate) mod connection;
pub(crate) mod fetch;
pub(crate) mod pending;
pub(crate) mod serve;
mod span;
pub mod stream;
mod workers;
