//! From settings to a running coordinator.

use tokio_util::sync::CancellationToken;

use crate::config::{Config, Given};
use crate::server::Server;

/// Runs until `stop`.
///
/// # Errors
/// Where settings, certificates, store or addresses cannot be used; the message says which and why.
pub async fn run(given: Given, stop: CancellationToken) -> anyhow::Result<()> {
    let config = Config::try_from(given)?;
    Server::bind(&config).await?.run(stop).await
}
