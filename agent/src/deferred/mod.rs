//! Indexes, constraints and checks that wait until the rows are there.
//!
//! [`objects`] stores their definitions in `steep_repl.deferred_objects`: those of a schema that a job
//! makes before anything is made, those of a schema that is there in the transaction that drops them
//! ([`indexes`], [`checks`]). [`build`] makes them by several [`workers`],
//! with as much memory as [`memory`] finds.

pub(crate) mod build;
pub(crate) mod checks;
pub(crate) mod indexes;
pub(crate) mod named;
pub(crate) mod objects;

mod identity;
mod memory;
mod queue;
mod workers;
