//! `steep-repl init TARGET... --from SOURCE`.

use steep_protocol::NodeId;

use super::begin::{self, Manner};
use super::request::InitRequest;
use crate::args::StartArgs;
use crate::client::Client;
use crate::commands::init::plan;
use crate::commands::{Context, nodes};
use crate::failure::Failure;
use crate::follow::Follower;
use crate::signals::Signals;
use crate::terminal::{Terminal, tell};

/// Starts the jobs, and follows them unless told not to. Where that fails before there is a job,
/// programs are told with an `init.failed` for each target.
pub(crate) async fn run(mut args: StartArgs, context: &Context) -> Result<u8, Failure> {
    let choices = &mut args.choices;
    choices.schema_sync = choices.schema_sync.or(context.settings.schema_sync);
    choices.yield_to_ddl = choices.yield_to_ddl.or(context.settings.yield_to_ddl.0);
    begin::told(go(&args, context).await, &args.targets, context.terminal)
}

async fn go(args: &StartArgs, context: &Context) -> Result<u8, Failure> {
    let parallel = Some(context.settings.parallel);
    let wanted = InitRequest::Copies(args.specs(parallel)?);
    let mut signals = Signals::catch()?;
    let mut client = context.client().await?;
    let terminal = context.terminal;

    if args.dry_run {
        return plan::show(client, &wanted, &mut signals, terminal).await;
    }
    let wanted = match args.resume {
        false => wanted,
        true => {
            let active = active(&client, &args.targets, terminal).await?;
            if active.len() == args.targets.len() {
                let follower = Follower::new(&mut client, &mut signals, terminal, active);
                let left = follower.attach().await;
                client.close().await;
                return Ok(left.exit_code());
            }
            if let Some(busy) = active.first() {
                return Err(Failure::bad_request("a job is at work on this target, and not on all that were named")
                    .on(busy)
                    .hint(format!("follow it with `steep-repl init progress --node {busy} --follow`, and name the others alone")));
            }
            InitRequest::Resumed(wanted.specs().to_vec())
        }
    };
    let manner = Manner::of(args.detach);
    let done = begin::run(wanted, manner, &mut client, &mut signals, terminal).await;
    client.close().await;
    done
}

/// Those targets that have a job at work; says what the others have kept.
async fn active(
    client: &Client,
    targets: &[NodeId],
    terminal: Terminal,
) -> Result<Vec<NodeId>, Failure> {
    let mut active = Vec::new();
    for target in targets {
        let views = nodes::ask(client, Some(target)).await?;
        let Some(view) = views.iter().find(|view| &view.node_id == target) else {
            continue;
        };
        if view.state.is_active() {
            active.push(target.clone());
        } else if let Some(until) = view.kept_until
            && !terminal.json
        {
            tell(&format!(
                "{target}: goes on where it failed, with what it has kept (until {until:.0})"
            ));
        }
    }
    Ok(active)
}
