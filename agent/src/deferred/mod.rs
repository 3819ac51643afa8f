//! Indexes, constraints and checks that wait for the rows.
//!
//! [`objects`] stores their definitions in `steep_repl.deferred_objects`: for a schema that the job
//! creates, before anything else; for an existing schema, in the transaction that drops them ([`indexes`],
//! [`checks`]). [`build`] builds them, with as many [`workers`] as [`memory`] allows.

pub(crate) mod build;
pub(crate) mod checks;
pub(crate) mod indexes;
pub(crate) mod named;
pub(crate) mod objects;

mod identity;
mod memory;
mod queue;
mod workers;
