//! One consistent point of the source: publication, slot, held snapshot and plan.
//!
//! [`open()`] makes them; [`OpenSnapshot`] holds them, and [`SourceJobs`] knows who may ask for which.
//! Inside: `listing` (the catalog as values) → `publication` and `plan` (pure) → `slot` → `open` (the
//! order in which it all happens) → `pool` (connections that read under the snapshot).
//!
//! Invariants: every table copied is published, and the other way round, at one LSN; a table that was
//! rewritten, truncated, dropped or altered since is not read (`table_state`); no session waits
//! in a lock's queue for more than a moment; nothing here writes to a user's table.

pub(crate) mod listing;
pub(crate) mod plan;
pub(crate) mod pool;
pub(crate) mod publication;
pub(crate) mod published;
pub(crate) mod slot;
pub(crate) mod table_state;

mod jobs;
mod open;
mod replicated;
mod types;

pub(crate) use jobs::{SourceJob, SourceJobs};
pub(crate) use open::published_oids;
pub(crate) use open::{OpenSnapshot, open};
pub(crate) use replicated::describe_replicated;
