//! This node's database as jobs work in it: their connections, and what they note there.
//!
//! What a crash must not forget is in the schema `steep_repl` of this very database ([`own_schema`]),
//! written before, or in one transaction with, what it is about: a job and its planned tables
//! ([`job_records`]), slots prepared for a node from a backup ([`slot_notes`]).

pub(crate) mod connection;
pub(crate) mod job_records;
pub(crate) mod own_schema;
pub(crate) mod slot_notes;
pub(crate) mod wal_writer;
