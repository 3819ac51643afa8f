//! `steep-agent`: starts what the library builds, and stops it when told to.

use std::process::ExitCode;

use clap::Parser;
use steep_agent::config::Cli;

#[tokio::main]
async fn main() -> ExitCode {
    match steep_agent::run::run(Cli::parse().given()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("steep-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}
