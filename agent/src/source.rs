//! The steps of a job on its source, by the room that takes each.

pub use crate::replication::fence::await_fence;
pub use crate::replication::prepared::{drop_prepared, give_back, prepare, slot_facts, take};
pub use crate::snapshot::slot::cleanup;
pub use crate::snapshot::{OpenSnapshot, SourceJobs, open};
