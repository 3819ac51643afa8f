//! `steep-repl`, the command line.
//!
//! `args` (parsed) → `settings` (from flags, environment, file) → `commands` → `client` ══QUIC══▶
//! coordinator → `follow` → `render` (pure) → `terminal`; or → `watch`, the screen.
//!
//! Sends requests to the coordinator and shows the replies. It never talks to an agent or to PostgreSQL
//! and never sees a row or a database password. Jobs do not depend on it.

use std::process::ExitCode;

use clap::Parser;

mod args;
mod client;
mod commands;
mod failure;
mod follow;
mod logging;
mod redial;
mod render;
mod settings;
mod signals;
mod terminal;
mod units;
mod watch;

fn main() -> ExitCode {
    let cli = args::Cli::parse();
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            terminal::tell(&format!("error: cannot start: {error}"));
            return ExitCode::from(failure::ERROR);
        }
    };
    let code = runtime.block_on(commands::run(cli));
    // A thread may still be reading from the terminal; it ends with the process.
    runtime.shutdown_background();
    ExitCode::from(code)
}
