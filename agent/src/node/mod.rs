//! This node's database as jobs use it: their connections and their records.
//!
//! What must survive a crash is in the schema `steep_repl` of that database ([`own_schema`]), written
//! before the action or in its transaction: jobs and their planned tables ([`job_records`]), and slots
//! prepared for a node from a backup ([`slot_notes`]).

pub(crate) mod connection;
pub(crate) mod job_records;
pub(crate) mod own_schema;
pub(crate) mod slot_notes;
pub(crate) mod wal_writer;
