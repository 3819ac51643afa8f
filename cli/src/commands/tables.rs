//! `steep-repl tables`: which tables a node follows.

use steep_protocol::message::api::{ApiReply, Order, Query};
use steep_protocol::message::job::NewTables;
use steep_protocol::message::tables::{ChangeSpec, TableList};
use steep_protocol::{FaultKind, JobId, NodeId};

use super::{Context, interruptible};
use crate::args::{AddArgs, DropArgs, TablesCommand};
use crate::client::Client;
use crate::failure::{self, Failure};
use crate::follow::Follower;
use crate::render::{json, tables};
use crate::signals::Signals;
use crate::terminal::{self, print, print_json, print_line};

pub(super) async fn run(command: TablesCommand, context: &Context) -> Result<u8, Failure> {
    match command {
        TablesCommand::List { node } => interruptible(list(node, context)).await,
        TablesCommand::Add(args) => add(args, context).await,
        TablesCommand::Drop(args) => drop_tables(args, context).await,
        TablesCommand::Policy { node, policy } => {
            interruptible(set_policy(node, policy.into(), context)).await
        }
    }
}

async fn list(node: NodeId, context: &Context) -> Result<u8, Failure> {
    let listed = listed(&node, context).await?;
    if context.terminal.json {
        print_json(&tables::json(&node, &listed));
    } else {
        print(&tables::list(&node, &listed, context.terminal.out));
    }
    Ok(failure::SUCCESS)
}

/// The tables of the node's replication.
pub(super) async fn listed(node: &NodeId, context: &Context) -> Result<TableList, Failure> {
    let client = context.client().await?;
    let replies = client.ask_all(Query::Tables { node: node.clone() }).await?;
    client.close().await;
    let listed: Option<TableList> = replies.into_iter().find_map(|reply| match reply {
        ApiReply::Tables(listed) => Some(listed),
        _ => None,
    });
    listed.ok_or_else(|| {
        let text = "the coordinator did not list the tables";
        Failure::new(FaultKind::Failed, text).on(node)
    })
}

async fn add(args: AddArgs, context: &Context) -> Result<u8, Failure> {
    let spec = args.spec(&context.settings);
    if args.detach {
        return interruptible(begin(spec, context)).await;
    }
    follow(spec, context).await
}

async fn drop_tables(args: DropArgs, context: &Context) -> Result<u8, Failure> {
    if !args.yes && !context.terminal.interactive {
        let text = "nobody can be asked whether to drop them: nothing was changed";
        let failure = Failure::new(FaultKind::BadRequest, text).on(&args.node);
        return Err(failure.hint("repeat the command with --yes"));
    }
    if !args.yes {
        let named = tables::named(&args.tables);
        let question = format!(
            "{} will no longer follow {named}. To follow again, they are copied anew. Go on?",
            args.node
        );
        if !terminal::confirm(&question).await {
            return Err(Failure::new(FaultKind::Cancelled, "not confirmed"));
        }
    }
    follow(args.spec(), context).await
}

async fn set_policy(node: NodeId, policy: NewTables, context: &Context) -> Result<u8, Failure> {
    let client = context.client().await?;
    let order = Order::SetNewTables {
        node: node.clone(),
        policy,
    };
    client.ask_all(order).await?;
    client.close().await;
    if context.terminal.json {
        print_json(&tables::policy_json(&node, policy));
    } else {
        print_line(&tables::policy(&node, policy));
    }
    Ok(failure::SUCCESS)
}

/// Starts the job and follows it to its end.
pub(super) async fn follow(spec: ChangeSpec, context: &Context) -> Result<u8, Failure> {
    let mut signals = Signals::catch()?;
    let mut client = context.client().await?;
    let targets = vec![spec.node.clone()];
    let follower = Follower::new(&mut client, &mut signals, context.terminal, targets);
    let outcome = follower.start(Order::ChangeTables(spec)).await;
    client.close().await;
    Ok(outcome.exit_code())
}

/// Starts the job, and prints its id.
pub(super) async fn begin(spec: ChangeSpec, context: &Context) -> Result<u8, Failure> {
    let client = context.client().await?;
    let begun = accepted(&client, spec).await;
    client.close().await;
    for (node, job) in begun? {
        if context.terminal.json {
            print_json(&json::detached(&node, job));
        } else {
            print_line(&format!("{node}: job {job}"));
        }
    }
    Ok(failure::SUCCESS)
}

async fn accepted(client: &Client, spec: ChangeSpec) -> Result<Vec<(NodeId, JobId)>, Failure> {
    let mut replies = client.ask(Order::ChangeTables(spec)).await?;
    while let Some(reply) = replies.next().await? {
        if let ApiReply::Accepted { jobs } = reply {
            return Ok(jobs);
        }
    }
    let text = "the coordinator did not say that it has the job";
    Err(Failure::new(FaultKind::Failed, text))
}
