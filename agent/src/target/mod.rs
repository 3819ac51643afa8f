//! The steps of a job on its target, from an empty or existing schema to the end of catch-up.
//!
//! In a job's order: [`prepare`] (schema created or checked, indexes deferred) → `formats` and `ledger`
//! (what to fetch, and how) → rows → [`build_indexes`], [`build_constraints`] → [`subscribe`] → [`finish`]
//! → [`totals`] (the proof) → [`release`]; or [`cleanup`] at any time. Tables that the node follows already are filled
//! beside themselves ([`make_shadows`]), and [`swap`] comes after the proof. While the node follows then:
//! [`raise_sequences`].
//!
//! Idempotent by job. Nothing here decides what a job does next or talks to another node.

mod belongings;
mod bootstrap;
mod cleanup;
mod existing;
mod finish;
mod indexes;
mod prepare;
mod reinit;
mod sequences;
mod sync;

pub(crate) use cleanup::{cleanup, release};
pub(crate) use finish::finish;
pub(crate) use indexes::build_indexes;
pub(crate) use prepare::{
    Dumps, PrepareRequest, SchemaRequest, match_schema, prepare, prepare_again,
};
pub(crate) use reinit::{make_shadows, shadows, swap};
pub(crate) use sequences::raise_sequences;

pub(crate) use crate::deferred::build::build_constraints;
pub(crate) use crate::node::job_records::renew_note;
pub(crate) use crate::part::ledger::totals;
pub(crate) use crate::replication::native::await_native_copy;
pub(crate) use crate::replication::subscription::subscribe;
pub(crate) use crate::schema::fingerprints::{capture_fingerprints, compare_schemas};
pub(crate) use crate::schema::missing::rebuild;
pub(crate) use crate::schema::replicated::compare_replicated;
