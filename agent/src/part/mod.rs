//! One part of a table: read from the source under its snapshot, written to the target with its ledger row.
//!
//! [`copy_out`] and [`copy_in`] are the two ends and independent of each other. A part's ledger row is
//! committed with its rows (G2), so [`ledger`] lists what has arrived.

pub(crate) mod copy_in;
pub(crate) mod copy_out;
pub(crate) mod formats;
pub(crate) mod ledger;

mod load_connection;
