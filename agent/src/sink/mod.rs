//! The target's end: schema, COPY in, indexes and constraints, subscription, and taking it all back.
//!
//! In the order a job uses them: [`prepare`] (schema made or checked, indexes put aside) →
//! [`formats`] and [`ledger`] (what is to be fetched, and how) → [`Loader`] (rows) →
//! [`build_indexes`], [`build_constraints`] → [`subscribe`] → [`finish`] → [`totals`] (the proof) →
//! [`release`]; or [`cleanup`] at any time.
//!
//! Everything is idempotent by job, and what a crash must not forget is in the schema `steep_repl`
//! of this very database ([`schema`]), written before or together with what it is about:
//! - a part's ledger row in the transaction of its rows (G2);
//! - an index's definition in the transaction that drops it;
//! - the list of what was there before anything is made (G6).
//!
//! Nothing here decides what a job does next, and nothing talks to another node.

pub mod schema;

mod batch;
mod bootstrap;
mod build;
mod checks;
mod cleanup;
mod conn;
mod copy_in;
mod deferred;
mod existing;
mod fingerprints;
mod finish;
mod formats;
mod identity;
mod job_records;
mod keep_out;
mod ledger;
mod load_connection;
mod membership;
mod memory;
mod missing;
mod named;
mod objects;
mod prepare;
mod privileges;
mod queue;
mod replicated;
mod schemas;
mod server_log;
mod settings;
mod sql_split;
mod statement;
mod subscription;
mod sync;
mod wal;

pub use build::{build_constraints, build_indexes};
pub use cleanup::cleanup;
pub use copy_in::{Begin, Loader, PartLoad};
pub use fingerprints::{capture_fingerprints, compare_schemas};
pub use finish::finish;
pub use formats::formats;
pub use ledger::{ledger, release, totals};
pub use membership::subscribed;
pub use missing::rebuild;
pub use named::{Named, build_named};
pub use prepare::{Dumps, PrepareRequest, SchemaRequest, match_schema, prepare};
pub use replicated::compare_replicated;
pub use server_log::troubles;
pub use subscription::{await_native_copy, subscribe, subscription_statuses};
pub(crate) use wal::WalWriterAwake;

use prepare::replica_role;
