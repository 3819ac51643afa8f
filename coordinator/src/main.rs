//! `steep-coordinator`: starts what the library builds.

use std::process::ExitCode;

use clap::Parser;
use steep_coordinator::config::{Cli, ConfigError};

/// The contract's exit code for bad arguments, wherever they were given.
const BAD_ARGUMENTS: u8 = 2;

#[tokio::main]
async fn main() -> ExitCode {
    match steep_coordinator::run::run(Cli::parse().given()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("steep-coordinator: {error:#}");
            if error.is::<ConfigError>() {
                ExitCode::from(BAD_ARGUMENTS)
            } else {
                ExitCode::FAILURE
            }
        }
    }
}
