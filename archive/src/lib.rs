//! A stored snapshot: rows, schema and sequences of a database at one position of its log, in a directory or
//! an object store.
//!
//! ```text
//! snapshot.json            whose files these are; written first
//! parts/0000017.copy.zst   a part: its chunks after one another; standard tools open it
//! parts/0000017.index      the wire's frame heads of those chunks
//! schema.sql               pre-data and post-data
//! sequences.json
//! manifest.json            everything's lengths and digests; written last
//! ```
//!
//! Encrypted, all but `snapshot.json` and `manifest.json` are age files, with `.age` at the end of their names.
//!
//! [`chunk`] packs and unpacks, for the wire too. [`Archive::create`] writes a snapshot, [`Archive::open`]
//! reads one. What is not complete never looks complete, and nothing that is read is believed before it was
//! checked. Memory does not depend on the size of rows, chunks or parts.
//!
//! This crate knows nothing of PostgreSQL's connections or of agents.

pub mod chunk;

mod blocking;
mod content;
mod delete;
mod error;
mod index;
mod keys;
mod location;
mod manifest;
mod name;
mod place;
mod read;
mod schema;
mod sequences;
mod verify;
mod write;

#[cfg(test)]
mod tests;

pub use delete::Deleted;
pub use error::{Error, Passing, Problem, ProblemKind};
pub use keys::{KeyFileError, KeyProblem, Keys, generate as generate_key};
pub use location::{InvalidLocation, Location, Scheme};
pub use manifest::{
    CopyFormat, FORMAT_VERSION, Manifest, Source, StoredPart, StoredSchema, StoredSequences,
    StoredTable, Sum, Totals,
};
pub use read::{Archive, StoredReader};
pub use schema::Schema;
pub use verify::{Progress, Verified};
pub use write::{Contents, Finished, Identity, PartFile, PlannedTable, Writing};
