//! Ctrl-C and SIGTERM, as values.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::failure::Failure;
use steep_protocol::FaultKind;

/// What a person or a supervisor wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Interrupt {
    /// Ctrl-C.
    Keyboard,
    /// SIGTERM or SIGHUP: whoever watched is going.
    Terminate,
}

/// The signals, from now on caught.
#[derive(Debug)]
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    /// Catches them.
    ///
    /// # Errors
    /// [`Failure`] where the system refuses.
    pub(crate) fn catch() -> Result<Self, Failure> {
        let on = |kind| {
            signal(kind).map_err(|error| {
                Failure::new(
                    FaultKind::Failed,
                    format!("signals cannot be caught: {error}"),
                )
            })
        };
        Ok(Self {
            interrupt: on(SignalKind::interrupt())?,
            terminate: on(SignalKind::terminate())?,
            hangup: on(SignalKind::hangup())?,
        })
    }

    /// The next one. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Interrupt {
        tokio::select! {
            _ = self.interrupt.recv() => Interrupt::Keyboard,
            _ = self.terminate.recv() => Interrupt::Terminate,
            _ = self.hangup.recv() => Interrupt::Terminate,
        }
    }
}
