//! Schemas: a dump as statements that are run, what could not be made, what is there, and how two differ.
//!
//! [`sql_split`] cuts a dump into statements, [`statement`] says what each is, [`batch`] runs them, and
//! [`missing`] stores those that fail and that rows do not need. [`objects`] lists what a job has made, so
//! that a cleanup drops exactly that (G6). [`fingerprints`] and [`replicated`] compare two nodes.

pub(crate) mod batch;
pub(crate) mod fingerprints;
pub(crate) mod missing;
pub(crate) mod objects;
pub(crate) mod replicated;
pub(crate) mod settings;
pub(crate) mod sql_split;
pub(crate) mod statement;

mod namespaces;
mod privileges;
