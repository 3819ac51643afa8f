//! The end that has the rows: one consistent point, and everything read at it.
//!
//! [`open`] makes publication, slot, snapshot and plan; [`OpenSnapshot`] holds them; [`CopyOut`] and
//! [`SchemaDump`] read under them. Inside: `listing` (the catalog as values) → `publication` and
//! `plan` (pure) → `slot` → `snapshot` (the order in which it all happens) → `pool`, `copy_out`,
//! `schema`. `jobs` is who may ask for which. `prepared` makes slots for nodes whose rows come from a
//! backup, and `notes` remembers them.
//!
//! Invariants: every table copied is published, and the other way round, at one LSN; the tables
//! cannot be rewritten, truncated or dropped while the snapshot is held; nothing here writes to a
//! user's table.

mod copy_out;
mod fence;
mod jobs;
mod listing;
mod membership;
mod notes;
mod plan;
mod pool;
mod prepared;
mod publication;
mod replicated;
mod schema;
mod sequences;
mod slot;
mod snapshot;
mod types;

use steep_protocol::ByteCount;
use steep_protocol::message::agent::Export;
use steep_protocol::message::job::TableFilter;

pub use copy_out::{CopyOut, read_part};
pub use fence::await_fence;
pub use jobs::{SourceJob, SourceJobs};
pub use membership::{publication_statuses, published};
pub use notes::prepared_slots;
pub use prepared::{
    Dropped, Unwanted, drop_prepared, drop_unused, give_back, prepare, slot_facts, take,
};
pub use replicated::describe_replicated;
pub use schema::{SchemaDump, pg_dump_major};
pub use sequences::sequences;
pub use slot::{cleanup, slot_statuses};
pub use snapshot::{OpenSnapshot, open};

/// What [`open`] is asked for.
#[derive(Debug, Clone)]
pub struct OpenRequest {
    /// Which tables.
    pub filter: TableFilter,
    /// Whether a slot and a snapshot are wanted.
    pub export: Export,
    /// Workers that will read.
    pub parallel: u8,
    /// Tables above this are split finely.
    pub large_table_threshold: ByteCount,
}
