//! From the command line to a running coordinator, and down again on a signal.

use std::io::IsTerminal;

use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use crate::config::{Config, Given, LogFormat};
use crate::server::Server;

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// Where settings, certificates, store or addresses cannot be used; the message says which and why.
pub async fn run(given: Given) -> anyhow::Result<()> {
    let given = given.with_file()?;
    if given.print_config {
        print!("{}", given.shown());
        return Ok(());
    }
    let config = Config::try_from(given)?;
    start_logging(config.log_format);
    let server = Server::bind(&config).await?;
    let shutdown = CancellationToken::new();
    let mut signals = JoinSet::new();
    signals.spawn(cancel_on_signal(shutdown.clone())?);
    server.run(shutdown).await
}

/// Cancels at the first SIGTERM or SIGINT.
fn cancel_on_signal(
    shutdown: CancellationToken,
) -> std::io::Result<impl Future<Output = ()> + Send + 'static> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        let name = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        };
        tracing::info!(event = "stopping", signal = name, "told to stop");
        shutdown.cancel();
    })
}

/// Logs to stderr; `STEEP_LOG` says what, as `RUST_LOG` does elsewhere.
fn start_logging(format: Option<LogFormat>) {
    let filter = EnvFilter::try_from_env("STEEP_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let terminal = std::io::stderr().is_terminal();
    let default = if terminal {
        LogFormat::Text
    } else {
        LogFormat::Json
    };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match format.unwrap_or(default) {
        LogFormat::Json => builder.json().flatten_event(true).init(),
        LogFormat::Text => builder.with_ansi(terminal).with_target(false).init(),
    }
}
