//! The source's consistent point: publication, slot, snapshot held open, and plan.
//!
//! [`open()`] creates them, [`OpenSnapshot`] holds them, [`SourceJobs`] knows who may ask for which.
//! Inside: `listing` (the catalog as values) → `publication` and `plan` (pure) → `slot` → `open` (the order
//! of events) → `pool` (connections that read under the snapshot) → `sharing` (several targets, one read).
//!
//! Invariants: the tables copied are exactly the tables published, at one LSN; a table that was rewritten,
//! truncated, dropped or altered since is not read (`table_state`); no session stays in a lock queue for
//! more than a moment; nothing here writes to a user's table.

pub(crate) mod epochs;
pub(crate) mod joining;
pub(crate) mod listing;
pub(crate) mod plan;
pub(crate) mod pool;
pub(crate) mod publication;
pub(crate) mod published;
pub(crate) mod sharing;
pub(crate) mod slot;
pub(crate) mod stored;
pub(crate) mod table_state;

mod catalog;
mod jobs;
mod listed;
mod open;
mod replicated;
mod types;

pub(crate) use catalog::published_oids;
pub(crate) use jobs::{SourceJob, SourceJobs};
pub(crate) use joining::{await_writers, check_followed};
pub(crate) use listed::{check_replicated, list};
pub(crate) use open::{OpenSnapshot, open};
pub(crate) use replicated::describe_replicated;
