//! From settings to a running coordinator.

use steep_daemon::Stop;

use crate::config::{Config, Given};
use crate::server::Server;

/// Runs until `stop`. The way down takes a few seconds at most, so that it is the same however often it is
/// told.
///
/// # Errors
/// Where settings, certificates, store or addresses cannot be used; the message says which and why.
pub async fn run(given: Given, stop: Stop) -> anyhow::Result<()> {
    let config = Config::try_from(given)?;
    Server::bind(&config).await?.run(stop.asked().clone()).await
}
