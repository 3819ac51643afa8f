//! Compares the schemas of two nodes, and plans what makes a target's like its source's.
//!
//! Pure: [`Schema`] is put together from pages that agents read ([`steep_protocol::message::schema`]),
//! [`compare`] names every difference, [`plan`] turns differences into statements in an order in which
//! they can run. No socket, no catalog, no clock, so that agents (before and while they apply a plan)
//! and the command line (for two nodes, or a node and a file) share one judgement. A crate of its own,
//! since agents and the command line know nothing of each other, and `protocol` decides nothing.
//!
//! Invariants, tested with random schemas:
//! - a schema does not differ from itself, and one change gives exactly the difference that names it;
//! - two tables have equal fingerprints just where no difference is about their columns;
//! - a plan's statements name what they would lose.

mod columns;
mod cut;
mod diff;
mod model;
mod order;
mod plan;
mod rows;
mod text;

#[cfg(test)]
mod samples;

pub use columns::{definition, fingerprint, line};
pub use cut::bounded;
pub use diff::{Comparison, Status, TableComparison, compare, gates, named, place};
pub use model::Schema;
pub use plan::{Contents, Plan, at_stake, blocker, plan, review};
pub use rows::{Unfindable, unfindable};
