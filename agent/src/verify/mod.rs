//! Comparing the rows of two nodes, exactly, while both are written to.
//!
//! Both servers digest their rows themselves: what travels first is a count and a sum of digests for each of
//! some thousand buckets of keys. Of buckets that differ, keys and digests travel; rows whose digests differ
//! are looked up again, under a fence, until it is certain that they differ or that they do not.
//!
//! In the order of a comparison: [`compare_rows`] lists the tables, [`table`] compares one: [`choice`] (pure)
//! decides on columns and key, [`scan`] reads heap pages in short statements, [`digest`] (pure) compares
//! sums, [`keyed`] and [`multiset`] narrow what differs to rows, [`settle`] looks at those again, [`plan`] keeps them
//! for a repair, which [`repair`] writes, or a merge ([`merging`]). [`pool`] has the sessions on both sides; [`answer`] is the side that asks PostgreSQL, with the statements of
//! [`sql`] (pure) and the facts of [`catalog`]; before each of them [`owner_code`](crate::pg::owner_code) looks for code that it would run.
//!
//! Invariants: one statement reads for at most [`answer::STATEMENT_LIMIT`], several pages for some seconds, and is a
//! transaction of its own, so no server's `xmin` and no lock is held for longer; memory does not grow with a table; no code of a database's
//! users runs (no casts, no operators but those of indexes, no table whose constraints, indexes or statistics call some).

mod answer;
mod catalog;
mod choice;
mod compare;
mod digest;
mod examples;
mod fence;
mod following;
mod keyed;
mod merging;
mod multiset;
mod parse;
mod plan;
mod pool;
mod progress;
mod repair;
mod scan;
mod settle;
mod sql;
mod table;

#[cfg(test)]
mod tests;

use steep_protocol::Fault;
use steep_protocol::message::verify::{VerifyAsk, VerifyReply};

pub(crate) use answer::Answerer;
pub(crate) use compare::compare_rows;
pub(crate) use repair::{forget_origin, remove_origin, repair_rows};

/// One conversation with one side.
pub(crate) trait Ask: std::fmt::Debug + Send {
    /// Puts a question. A fault is an `Err`, never a reply.
    fn ask(&mut self, ask: VerifyAsk) -> impl Future<Output = Result<VerifyReply, Fault>> + Send;
}

/// Begins conversations.
pub(crate) trait Dial: std::fmt::Debug + Send + Sync {
    /// The conversation.
    type Side: Ask;
    /// Begins one.
    fn dial(&self) -> impl Future<Output = Result<Self::Side, Fault>> + Send;
}
