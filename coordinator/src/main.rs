//! `steep-coordinator`: starts what the library builds.

use std::process::ExitCode;

use clap::Parser;
use steep_coordinator::config::{Cli, Command};

#[tokio::main]
async fn main() -> ExitCode {
    let Command::Run(given) = Cli::parse().command;
    match steep_coordinator::run::run(*given).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("steep-coordinator: {error:#}");
            ExitCode::FAILURE
        }
    }
}
