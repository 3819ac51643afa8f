//! The agent's end of the control path: one session with the coordinator at a time.
//!
//! [`Control`] owns everything that outlives a session; [`commands`] keeps running commands and
//! unacknowledged outcomes. A lost session changes none of it: transfers go on, and the next session
//! repeats what the coordinator may have missed. [`greet`] begins a session, [`dispatch`] turns a command
//! into a future, [`told`] logs it, [`observe`] looks at the server, [`report`] collects progress between sends. A shutdown
//! goes through stages, each with a deadline: [`drain`] defines them, [`drainer`] waits for them.

mod asked;
mod changing;
mod commands;
mod control;
mod digests;
mod dispatch;
mod drain;
mod drainer;
mod greet;
mod observe;
mod opening;
mod readings;
mod report;
mod steps;
mod told;

#[cfg(test)]
mod tests;

pub(crate) use control::{Control, Coordinator, Queues, Seen};
pub(crate) use digests::{DigestWatcher, Looked};
pub(crate) use dispatch::Agent;
pub(crate) use drainer::overdue;
pub(crate) use observe::{ChangeWatch, Observer, PreparedWatch};
pub(crate) use readings::Readings;
pub(crate) use report::Reports;
