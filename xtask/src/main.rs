//! The project's own commands: `cargo xtask demo | test | bench | soak | pictures`.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod bench;
mod cargo;
mod demo;
mod interrupt;
mod pictures;
mod soak;
mod test;
mod units;

/// The project's own commands.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

/// Subcommands.
#[derive(Debug, Subcommand)]
enum Command {
    /// Shows the product at work on two real PostgreSQL servers under a write load
    Demo(demo::Arguments),
    /// Runs everything that must pass: formatting, lints, documentation, all tests
    Test(test::Arguments),
    /// Compares the product with other ways to copy a database
    Bench(bench::Arguments),
    /// Strikes jobs under a write load with faults, and looks for lost rows
    Soak(soak::Arguments),
    /// Makes the pictures of README.md again, from a real run
    Pictures(pictures::Arguments),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = interrupt::watch().and_then(|()| match arguments.command {
        Command::Demo(arguments) => demo::run(&arguments),
        Command::Test(arguments) => test::run(&arguments),
        Command::Bench(arguments) => bench::run(&arguments),
        Command::Soak(arguments) => soak::run(&arguments),
        Command::Pictures(arguments) => pictures::run(&arguments),
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The alternate form prints the chain of causes, without a backtrace.
            eprintln!("\nerror: {error:#}");
            ExitCode::FAILURE
        }
    }
}
