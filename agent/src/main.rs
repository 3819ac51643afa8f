//! `steep-agent`: starts what the library builds, and stops it when told to.

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    steep_daemon::main(steep_agent::run::run).await
}
