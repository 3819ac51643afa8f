//! `steep-repl init` and what stands below it.

pub(super) mod cancel;
mod plan;
pub(super) mod progress;
pub(super) mod start;
