//! Logical replication around the copy: the subscription and its origin, and the proof that nothing is
//! missing.
//!
//! On the target: [`subscription`], the tables it carries ([`subscribed`]), and [`keep_out`], which keeps
//! others from writing to them before. On the source: [`fence`] (everything has arrived), [`sequences`],
//! which no subscription carries, and [`prepared`], slots for nodes restored from a backup. On both, while a
//! node follows and when it stops: [`sequence_use`].

pub(crate) mod fence;
pub(crate) mod fold;
pub(crate) mod keep_out;
pub(crate) mod native;
pub(crate) mod prepared;
pub(crate) mod sequence_use;
pub(crate) mod sequences;
pub(crate) mod server_log;
pub(crate) mod subscribed;
pub(crate) mod subscription;
