//! A daemon's life: from its command line to its exit code, and what systemd hears of it.

use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::config::{self, ConfigError, ReadError, Settings, Shared, Wish};
use crate::{logging, traces};

/// The contract's exit code for bad arguments, wherever they were given.
const BAD_ARGUMENTS: u8 = 2;

/// Reads the settings, starts the log and, where wanted, traces, and runs `program` until it ends. Its token is cancelled at the
/// first SIGTERM or SIGINT; it is expected to drain then and to return.
///
/// The exit code is 0 after a good end, 2 where settings are not usable, else 1.
pub async fn main<S: Settings>(
    program: impl AsyncFnOnce(S, CancellationToken) -> anyhow::Result<()>,
) -> ExitCode {
    let (settings, shared) = match config::read::<S>(std::env::args_os()) {
        Ok(Wish::Run(settings, shared)) => (settings, shared),
        Ok(Wish::Print(text)) => {
            print!("{text}");
            return ExitCode::SUCCESS;
        }
        // Help and usage errors, with clap's own exit codes: 0 and 2.
        Err(ReadError::Line(error)) => error.exit(),
        Err(ReadError::Config(error)) => return failed::<S>(&error.into()),
    };
    logging::start(shared.log_format);
    if let Err(error) = start_traces::<S>(&shared) {
        return failed::<S>(&error);
    }
    let stop = CancellationToken::new();
    let mut signals = JoinSet::new();
    match cancel_on_signal(stop.clone()) {
        Ok(watching) => {
            signals.spawn(watching);
        }
        Err(error) => return failed::<S>(&anyhow::Error::new(error).context("signals")),
    }
    let outcome = program(*settings, stop).await;
    // Nothing else runs any more: this may block.
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
    eprintln!("{}: {error:#}", S::NAME);
    if error.is::<ConfigError>() {
        ExitCode::from(BAD_ARGUMENTS)
    } else {
        ExitCode::FAILURE
    }
}

/// Cancels at the first SIGTERM or SIGINT.
fn cancel_on_signal(
    stop: CancellationToken,
) -> std::io::Result<impl Future<Output = ()> + Send + 'static> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        let name = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        };
        tracing::info!(event = "stopping", signal = name, "told to stop");
        // Without systemd there is nobody to tell.
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
        stop.cancel();
    })
}

/// Tells systemd, where it asks, that the daemon serves.
pub fn ready() {
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
}
