//! Runs the coordinator with the given settings.

use steep_daemon::Stop;

use crate::config::{Config, Given};
use crate::server::Server;

/// Runs until `stop`. Shutdown takes a few seconds at most, so asking again does not speed it up.
///
/// # Errors
/// If settings, certificates, store or addresses cannot be used; the message says which and why.
pub async fn run(given: Given, stop: Stop) -> anyhow::Result<()> {
    let config = Config::try_from(given)?;
    Server::bind(&config).await?.run(stop.asked().clone()).await
}
