//! Agent to agent: the data path's middle.
//!
//! [`serve`] answers a target's agent from the snapshots this agent holds open; [`connection`] is the other
//! end, dialled by the target. [`stream`] moves one part over one QUIC stream; [`fetch`] runs the
//! workers that fetch a whole plan. [`rate`] is the operator's limit on all of them together. [`pending`] is a
//! schema dump that nobody waits for yet. [`span`] makes the
//! trace spans of parts.
//!
//! Invariants: a request is answered only for the node that the coordinator named for its job (G7);
//! a part is reported done only after the target's commit (G2); a broken connection costs the parts
//! on it and nothing else.

pub mod connection;
pub mod fetch;
pub mod pending;
pub mod rate;
pub mod serve;
mod span;
pub mod stream;
