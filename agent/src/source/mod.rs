//! The end that has the rows: one consistent point, and everything read at it.
//!
//! [`open`] makes publication, slot, snapshot and plan; [`OpenSnapshot`] holds them; [`CopyOut`] and
//! [`SchemaDump`] read under them. Inside: `listing` (the catalog as values) → `publication` and
//! `plan` (pure) → `slot` → `snapshot` (the order in which it all happens) → `pool`, `copy_out`,
//! `schema`, cut to what a filter makes of it by `selection`. `jobs` is who may ask for which. `prepared` makes slots for nodes whose rows come from a
//! backup, and `notes` remembers them.
//!
//! Invariants: every table copied is published, and the other way round, at one LSN; a table that was
//! rewritten, truncated, dropped or altered since is not read (`table_state`); no session of ours waits
//! in a lock's queue for more than a moment; nothing here writes to a user's table.

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
mod selection;
mod sequences;
mod slot;
mod snapshot;
mod table_state;
mod types;

use steep_protocol::message::facts::FilterFacts;
use steep_protocol::message::job::TableFilter;

use crate::pg::catalog::Partitions;
use crate::pg::{PgError, Session};

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

/// What a filter makes of the schema; nothing where it chooses everything.
///
/// # Errors
/// [`PgError`] of a query.
pub async fn filter_facts(session: &Session, filter: &TableFilter) -> Result<FilterFacts, PgError> {
    let partitions = Partitions::load(session).await?;
    match selection::Selection::load(session, filter, &partitions).await? {
        Some(selection) => selection.facts(session).await,
        None => Ok(FilterFacts::default()),
    }
}
