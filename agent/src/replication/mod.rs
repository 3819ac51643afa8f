//! Logical replication around the copy: the subscription and its origin, and the proof that nothing is
//! missing.
//!
//! On the target: [`subscription`], the tables it carries ([`subscribed`]), and [`keep_out`], which keeps
//! others from writing to them before; [`fold`] makes one of several, and [`join`] lets tables join one that goes on.
//! On the source: [`fence`] (everything has arrived), [`sequences`],
//! which no subscription carries, and [`prepared`], slots for nodes restored from a backup. On both, while a
//! node follows and when it stops: [`sequence_use`]; on two nodes that are merged: [`apart`].

pub(crate) mod apart;
pub(crate) mod fence;
pub(crate) mod fold;
pub(crate) mod join;
pub(crate) mod keep_out;
pub(crate) mod native;
mod options;
pub(crate) mod prepared;
pub(crate) mod sequence_use;
pub(crate) mod sequences;
pub(crate) mod server_log;
pub(crate) mod subscribed;
pub(crate) mod subscription;
