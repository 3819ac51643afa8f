//! `steep-repl init progress`.

use steep_protocol::FaultKind;

use crate::args::ProgressArgs;
use crate::commands::{Context, interruptible, nodes};
use crate::failure::{self, Failure};
use crate::follow::Follower;
use crate::render::{json, progress};
use crate::signals::Signals;
use crate::terminal::{print, print_json};

/// Shows the progress of a node's job, once or until its end.
pub(crate) async fn run(args: ProgressArgs, context: &Context) -> Result<u8, Failure> {
    if !args.follow {
        return interruptible(once(&args, context)).await;
    }
    let mut signals = Signals::catch()?;
    let mut client = context.client().await?;
    let follower = Follower::new(
        &mut client,
        &mut signals,
        context.terminal,
        vec![args.node.clone()],
    );
    let left = follower.look_on().await;
    client.close().await;
    Ok(left.exit_code())
}

async fn once(args: &ProgressArgs, context: &Context) -> Result<u8, Failure> {
    let client = context.client().await?;
    let job = nodes::job(&client, &args.node).await?;
    client.close().await;
    let Some(job) = job else {
        return Err(Failure::new(FaultKind::Failed, "the node has no job")
            .on(&args.node)
            .hint(format!("`steep-repl status {}` shows the node", args.node)));
    };
    if context.terminal.json {
        print_json(&json::progress(&job));
    } else {
        print(&progress::block(&job, context.terminal.out));
    }
    Ok(failure::SUCCESS)
}
