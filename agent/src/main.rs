//! `steep-agent`: starts what the library builds, and stops it when told to.

use std::process::ExitCode;

use clap::Parser;
use steep_agent::config::{Cli, Command};

#[tokio::main]
async fn main() -> ExitCode {
    let Command::Run(given) = Cli::parse().command;
    match steep_agent::run::run(*given).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("steep-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}
