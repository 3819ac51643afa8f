//! `steep-repl init` and what stands below it.

pub(super) mod adjust;
pub(super) mod apply;
mod begin;
pub(super) mod cancel;
pub(super) mod complete;
mod plan;
pub(super) mod prepare;
pub(super) mod progress;
pub(super) mod rebuild;
mod request;
pub(super) mod start;
