//! A stored snapshot.
pub mod chunk;
