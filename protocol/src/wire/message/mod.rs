//! Control messages, by who speaks to whom.
//!
//! [`api`] CLI and coordinator · [`agent`] agents and coordinator · [`peer`] agent and agent ·
//! [`schema`] what all three say of schemas, [`handover`] of nodes made from a backup, [`lineage`] of which database a node is and whose changes it applies, [`identity`] of replica identities, [`feature`] of what servers may lack. Each is plain data; what may follow what is said where the conversation is held.

pub mod agent;
pub mod api;
pub mod facts;
pub mod feature;
pub mod handover;
pub mod identity;
pub mod job;
pub mod lineage;
pub mod peer;
pub mod schema;

#[cfg(test)]
mod tests;
