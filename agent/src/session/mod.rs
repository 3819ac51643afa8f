//! The control path's end in the agent: one session with the coordinator, kept up for life.
//!
//! [`Control`] owns everything that outlives a session: commands at work, outcomes not acknowledged,
//! parts reported done. A lost session changes none of it: transfers run on, and the next session
//! says again what the coordinator may have missed. [`dispatch`] turns a command into a future;
//! [`observe`] looks at the server; [`report`] collects progress between sends. A
//! shutdown goes through stages, each with a deadline: [`drain`] defines them, [`drainer`] waits for them. [`greet`] begins a
//! session.

mod commands;
mod control;
mod digests;
mod dispatch;
mod drain;
mod drainer;
mod greet;
mod observe;
mod readings;
mod report;

pub(crate) use control::{Control, Coordinator, Queues, Seen};
pub(crate) use digests::{DigestWatcher, Looked};
pub(crate) use dispatch::Agent;
pub(crate) use drainer::overdue;
pub(crate) use observe::{LineageWatch, Observer, PreparedWatch};
pub(crate) use readings::Readings;
pub(crate) use report::Reports;
