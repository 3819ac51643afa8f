//! Control messages, by their ends.
//!
//! [`api`]: CLI and coordinator. [`agent`]: agents and coordinator. [`peer`]: agent and agent, with
//! [`verify`], the conversation of two agents that compare rows, [`repair`], what is written of it, and [`merge`],
//! what two nodes need that are merged. All
//! of them use [`schema`], [`handover`] (nodes restored from a backup), [`switchover`], [`lineage`] (a node's
//! database and subscriptions), [`identity`] (replica identities) and [`feature`] (what servers may
//! lack). Messages are plain data; the session defines their order.

pub mod adjust;
pub mod agent;
pub mod api;
pub mod facts;
pub mod feature;
mod filter;
pub mod handover;
pub mod identity;
pub mod job;
pub mod lineage;
pub mod merge;
pub mod peer;
pub mod repair;
pub mod schema;
pub mod snapshot;
pub mod switchover;
pub mod tables;
pub mod verify;

#[cfg(test)]
mod tests;
