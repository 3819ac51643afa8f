//! `steep-repl completions`.

use clap::CommandFactory;
use clap_complete::{Shell, generate};

use crate::args::Cli;
use crate::failure::{self, Failure};
use crate::terminal::print;

pub(super) fn run(shell: Shell) -> Result<u8, Failure> {
    let mut script = Vec::new();
    generate(shell, &mut Cli::command(), "steep-repl", &mut script);
    print(&String::from_utf8_lossy(&script));
    Ok(failure::SUCCESS)
}
