//! Runs a daemon from its command line to its exit code, and notifies systemd.

use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::config::{self, ConfigError, Invocation, ReadError, Settings, Shared};
use crate::{logging, traces};

/// The contract's exit code for invalid arguments and settings.
const BAD_ARGUMENTS: u8 = 2;

/// The shutdown request. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Stop {
    asked: CancellationToken,
    hurried: CancellationToken,
}

impl Stop {
    /// Cancelled at the first SIGTERM or SIGINT: accept no more work.
    #[must_use]
    pub fn asked(&self) -> &CancellationToken {
        &self.asked
    }

    /// Cancelled at the second, never before the first: stop waiting for work in progress.
    #[must_use]
    pub fn hurried(&self) -> &CancellationToken {
        &self.hurried
    }

    /// Requests a shutdown once more, as a signal does.
    pub fn tell(&self) {
        if self.asked.is_cancelled() {
            self.hurried.cancel();
        }
        self.asked.cancel();
    }
}

/// Reads the settings, starts the log and traces, and runs `program` until it ends. The program is
/// expected to drain at the first SIGTERM or SIGINT and return.
///
/// The exit code is 0 for success, 2 for invalid settings, otherwise 1.
pub async fn main<S: Settings>(
    program: impl AsyncFnOnce(S, Stop) -> anyhow::Result<()>,
) -> ExitCode {
    let (settings, shared) = match config::read::<S>(std::env::args_os()) {
        Ok(Invocation::Run(settings, shared)) => (settings, shared),
        Ok(Invocation::Print(text)) => {
            print!("{text}");
            return ExitCode::SUCCESS;
        }
        // Help and usage errors, with clap's own exit codes 0 and 2.
        Err(ReadError::Line(error)) => error.exit(),
        Err(ReadError::Config(error)) => return failed::<S>(&error.into()),
    };
    logging::start(shared.log_format);
    if let Err(error) = start_traces::<S>(&shared) {
        return failed::<S>(&error);
    }
    let stop = Stop::default();
    let mut signals = JoinSet::new();
    match tell_on_signal(stop.clone()) {
        Ok(watching) => {
            signals.spawn(watching);
        }
        Err(error) => return failed::<S>(&anyhow::Error::new(error).context("signals")),
    }
    let outcome = program(*settings, stop).await;
    // Nothing else runs any more, so this may block.
    traces::stop();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed::<S>(&error),
    }
}

fn start_traces<S: Settings>(shared: &Shared) -> anyhow::Result<()> {
    match shared.endpoint()? {
        Some(endpoint) => traces::start(S::NAME, &endpoint),
        None => Ok(()),
    }
}

fn failed<S: Settings>(error: &anyhow::Error) -> ExitCode {
    eprintln!("{}: {}", S::NAME, chain(error));
    if error.is::<ConfigError>() {
        ExitCode::from(BAD_ARGUMENTS)
    } else {
        ExitCode::FAILURE
    }
}

/// The error and its causes, without those that the error before them already tells.
fn chain(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text.push_str(&format!(": {cause}"));
        }
    }
    text
}

/// Forwards SIGTERM and SIGINT to `stop`.
fn tell_on_signal(stop: Stop) -> std::io::Result<impl Future<Output = ()> + Send + 'static> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        while !stop.hurried().is_cancelled() {
            let name = tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            };
            let what = if stop.asked().is_cancelled() {
                "told again to stop: work in progress is cancelled"
            } else {
                "told to stop"
            };
            tracing::info!(event = "stopping", signal = name, "{what}");
            // Fails without systemd.
            let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
            stop.tell();
        }
    })
}

/// Logs a panic of a task that nobody else reports.
pub fn say_panic(ended: Result<(), JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(%error, "a task panicked; please report it");
    }
}

/// Tells systemd that the daemon is ready.
pub fn ready() {
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_that_was_told_is_not_told_again() {
        let io = || std::io::Error::from(std::io::ErrorKind::AddrInUse);
        let named = anyhow::Error::new(io()).context(format!("cannot listen: {}; stop it", io()));
        assert_eq!(chain(&named), format!("cannot listen: {}; stop it", io()));
        let unnamed = anyhow::Error::new(io()).context("cannot listen");
        assert_eq!(chain(&unnamed), format!("cannot listen: {}", io()));
    }

    #[test]
    fn the_first_signal_asks_and_the_second_hurries() {
        let stop = Stop::default();
        let told = |stop: &Stop| {
            let (asked, hurried) = (stop.asked(), stop.hurried());
            (asked.is_cancelled(), hurried.is_cancelled())
        };
        assert_eq!(told(&stop), (false, false));
        stop.clone().tell();
        assert_eq!(told(&stop), (true, false));
        stop.tell();
        assert_eq!(told(&stop), (true, true));
    }
}
