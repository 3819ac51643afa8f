//! Compares the schemas of two nodes and plans how to make a target's match its source's.
//!
//! Pure: [`Schema`] is built from pages that agents read ([`steep_protocol::message::schema`]),
//! [`compare`] lists every difference, [`plan`] turns differences into statements in a valid order.
//! Agents use it before and while they apply a plan, the command line for two nodes, or a node and
//! a file.
//!
//! Invariants, tested with random schemas:
//! - a schema equals itself, and one change gives exactly the difference that names it;
//! - two tables have equal fingerprints if and only if none of their differences concerns columns;
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
pub use diff::{Comparison, Status, TableComparison, compare, creates, gates, named, place};
pub use model::Schema;
pub use plan::{Contents, Plan, at_stake, blocker, parents_elsewhere, plan, review};
pub use rows::{Unfindable, unfindable};
