//! One module per command: ask, hand to [`crate::render`], print.

mod certs;
mod completions;
mod detach;
mod doctor;
mod events;
mod init;
mod merge;
mod nodes;
mod reinit;
mod remove;
mod repair;
mod schema;
mod snapshot;
mod switchover;
mod tables;
mod verify;
mod watch;

pub(crate) use self::merge::Counts as MergeCounts;

use steep_protocol::FaultKind;
use steep_protocol::quic::Tuning;

use crate::args::{Cli, Command, InitCommand, NodesArgs, NodesCommand};
use crate::client::Client;
use crate::failure::{self, Failure};
use crate::logging;
use crate::render::json;
use crate::settings::{self, Settings};
use crate::signals::{Interrupt, Signals};
use crate::terminal::{self, Terminal};

/// The environment of a command.
pub(crate) struct Context {
    pub(crate) settings: Settings,
    pub(crate) terminal: Terminal,
}

impl Context {
    async fn client(&self) -> Result<Client, Failure> {
        Client::connect(self.settings.access()?, Tuning::CONTROL).await
    }
}

/// Runs the command and returns the exit code. Prints failures.
pub(crate) async fn run(cli: Cli) -> u8 {
    let terminal = Terminal::detect(cli.global.json);
    match execute(cli, terminal).await {
        Ok(code) => code,
        Err(failure) => {
            if terminal.json {
                // stdout itself may be what failed: then stderr has it.
                let _ = terminal::try_print(&format!("{}\n", json::error(&failure.0)));
            }
            terminal::tell(&failure::render(&failure.0, terminal.err));
            failure.exit_code()
        }
    }
}

async fn execute(cli: Cli, terminal: Terminal) -> Result<u8, Failure> {
    let settings = Settings::load(&cli.global, settings::from_process)?;
    logging::start(settings.log_format);
    if cli.global.print_config {
        terminal::print(&settings.to_toml());
        return Ok(failure::SUCCESS);
    }
    let Some(command) = cli.command else {
        return Err(Failure::bad_request("no command is given")
            .hint("`steep-repl --help` lists the commands"));
    };
    let context = Context { settings, terminal };
    match command {
        Command::Certs(command) => certs::run(command, &context),
        Command::Completions { shell } => completions::run(shell),
        Command::Init(init) => match init.command {
            None if init.start.merge.mode.is_some() => merge::run(init.start, &context).await,
            None => init::start::run(init.start, &context).await,
            Some(InitCommand::Progress(args)) => init::progress::run(args, &context).await,
            Some(InitCommand::Cancel(args)) => init::cancel::run(args, &context).await,
            Some(InitCommand::Prepare(args)) => {
                interruptible(init::prepare::run(args, &context)).await
            }
            Some(InitCommand::Adjust(args)) => {
                interruptible(init::adjust::run(args, &context)).await
            }
            Some(InitCommand::Rebuild(args)) => {
                interruptible(init::rebuild::run(args, &context)).await
            }
            Some(InitCommand::Complete(args)) => init::complete::run(args, &context).await,
        },
        Command::Nodes(NodesArgs {
            command: None,
            snapshots,
        }) => interruptible(nodes::all(snapshots, &context)).await,
        Command::Nodes(NodesArgs {
            command: Some(NodesCommand::Remove { node, yes }),
            ..
        }) => remove::remove(node, yes, &context).await,
        Command::Status {
            node: Some(node),
            last_report: true,
        } => interruptible(nodes::last_report(node, &context)).await,
        Command::Status { node, .. } => interruptible(nodes::status(node, &context)).await,
        Command::Tables(command) => tables::run(command, &context).await,
        Command::Reinit(args) => reinit::run(args, &context).await,
        Command::Detach(args) => detach::run(args, &context).await,
        Command::Switchover(args) => switchover::run(args, &context).await,
        Command::Watch(args) => watch::run(&args, &context).await,
        Command::Events(args) => events::run(args, &context).await,
        Command::Snapshot(command) => snapshot::run(command, &context).await,
        Command::Verify(args) => verify::run(args, &context).await,
        Command::Repair(args) => repair::run(args, &context).await,
        Command::AnalyzeOverlap(args) => verify::overlap(args, &context).await,
        Command::Schema(command) => interruptible(schema::run(command, &context)).await,
        Command::Doctor(args) => interruptible(doctor::run(args, &context)).await,
    }
}

/// Runs a command that a signal may stop at any point.
async fn interruptible(work: impl Future<Output = Result<u8, Failure>>) -> Result<u8, Failure> {
    let mut signals = Signals::catch()?;
    tokio::select! {
        done = work => done,
        interrupt = signals.next() => Err(interrupted(interrupt)),
    }
}

fn interrupted(interrupt: Interrupt) -> Failure {
    let text = match interrupt {
        Interrupt::Keyboard => "interrupted",
        Interrupt::Terminate => "terminated",
    };
    Failure::new(FaultKind::Cancelled, text)
}
