//! Schemas: running a dump, what could not be created, what exists, and how two schemas differ.
//!
//! [`sql_split`] cuts a dump into statements, [`statement`] classifies them, [`batch`] runs them, where `lanes`
//! allows it on two sessions, and [`missing`] stores those that fail and that rows do not need. [`objects`] lists what a job created, so
//! that a cleanup drops exactly that (G6). [`fingerprints`] and [`replicated`] compare two nodes.

pub(crate) mod batch;
pub(crate) mod fingerprints;
pub(crate) mod missing;
pub(crate) mod objects;
pub(crate) mod replicated;
pub(crate) mod settings;
pub(crate) mod sql_split;
pub(crate) mod statement;

mod disarm;
mod lanes;
mod namespaces;
mod privileges;
