//! The binary against a scripted coordinator: output, exit codes, signals, lost connections.
#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests, outside of #[test] functions"
)]

mod coordinator;
mod following;
mod pty;
mod questions;
mod terminal;
mod views;
mod watching;
