//! Counters that work increments and [`crate::metrics`] shows.

mod flow;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use steep_protocol::quic::Links;

pub use flow::Flow;

#[derive(Debug, Default)]
pub(crate) struct Telemetry {
    pub(crate) sent: Flow,
    pub(crate) links: Links,
    pub(crate) coordinator: AtomicBool,
    pub(crate) running: AtomicU64,
    pub(crate) done: AtomicU64,
    pub(crate) failed: AtomicU64,
    pub(crate) cancelled: AtomicU64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CommandEnd {
    Done,
    Failed,
    Cancelled,
}

impl Telemetry {
    pub(crate) fn coordinator(&self, connected: bool) {
        self.coordinator.store(connected, Ordering::Relaxed);
    }

    /// The command runs until the value is dropped.
    pub(crate) fn command_began(&self) -> RunningCommand<'_> {
        self.running.fetch_add(1, Ordering::Relaxed);
        RunningCommand {
            telemetry: self,
            how: CommandEnd::Failed,
        }
    }
}

/// A command that ends without saying how, by a panic, has failed.
#[derive(Debug)]
pub(crate) struct RunningCommand<'a> {
    telemetry: &'a Telemetry,
    how: CommandEnd,
}

impl RunningCommand<'_> {
    pub(crate) fn ended(mut self, how: CommandEnd) {
        self.how = how;
    }
}

impl Drop for RunningCommand<'_> {
    fn drop(&mut self) {
        self.telemetry.running.fetch_sub(1, Ordering::Relaxed);
        let counter = match self.how {
            CommandEnd::Done => &self.telemetry.done,
            CommandEnd::Failed => &self.telemetry.failed,
            CommandEnd::Cancelled => &self.telemetry.cancelled,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_that_panics_runs_no_longer_and_has_failed() {
        let telemetry = Telemetry::default();
        telemetry.command_began().ended(CommandEnd::Done);
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _running = telemetry.command_began();
            panic!("as a mistake of ours would");
        }));
        assert!(panicked.is_err());
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let ended = [&telemetry.done, &telemetry.failed, &telemetry.cancelled].map(load);
        assert_eq!((load(&telemetry.running), ended), (0, [1, 1, 0]));
    }
}
