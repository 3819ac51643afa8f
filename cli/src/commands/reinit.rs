//! `steep-repl reinit`: tables of a node are copied again.

use steep_protocol::message::api::NodeView;
use steep_protocol::message::tables::Carried;
use steep_protocol::{FaultKind, NodeId, NodeState, TableName};

use super::nodes::ask;
use super::tables::{begin, follow, listed};
use super::{Context, interruptible};
use crate::args::ReinitArgs;
use crate::failure::Failure;
use crate::render::tables::named;
use crate::terminal;

pub(super) async fn run(args: ReinitArgs, context: &Context) -> Result<u8, Failure> {
    if !args.yes && !context.terminal.interactive {
        let text = "nobody can be asked whether to copy them again: nothing was changed";
        let failure = Failure::new(FaultKind::BadRequest, text).on(&args.node);
        return Err(failure.hint("repeat the command with --yes"));
    }
    let tables = tables(&args, context).await?;
    if !args.yes {
        let which = match tables.is_empty() {
            true => "all its tables".to_owned(),
            false => named(&tables),
        };
        let question = format!(
            "{} gets the rows of {which} again from its source; rows that are on it alone are lost. Go on?",
            args.node,
        );
        if !terminal::confirm(&question).await {
            return Err(Failure::new(FaultKind::Cancelled, "not confirmed"));
        }
    }
    let spec = args.spec(tables);
    if args.detach {
        return interruptible(begin(spec, context)).await;
    }
    follow(spec, context).await
}

/// Those that are named, or all that the node follows; none if it follows no longer and is copied as a whole.
async fn tables(args: &ReinitArgs, context: &Context) -> Result<Vec<TableName>, Failure> {
    let which = &args.which;
    if !which.tables.is_empty() {
        return Ok(which.tables.clone());
    }
    if which.full && !follows(&args.node, context).await? {
        return Ok(Vec::new());
    }
    let listed = listed(&args.node, context).await?;
    let wanted = |table: &TableName| match &which.schema {
        Some(schema) => table.schema == *schema,
        None => true,
    };
    let followed = listed
        .tables
        .into_iter()
        .filter(|one| one.carried == Carried::Followed && wanted(&one.table));
    let tables: Vec<TableName> = followed.map(|one| one.table).collect();
    if tables.is_empty() {
        let text = match &which.schema {
            Some(schema) => format!("it follows no table of schema {schema}"),
            None => "it follows no table".to_owned(),
        };
        let failure = Failure::new(FaultKind::BadRequest, text).on(&args.node);
        return Err(failure.hint(format!(
            "steep-repl tables list --node {} shows what it follows",
            args.node
        )));
    }
    Ok(tables)
}

/// Whether the node's replication goes on, so that its tables can be told.
async fn follows(node: &NodeId, context: &Context) -> Result<bool, Failure> {
    let client = context.client().await?;
    let views = ask(&client, Some(node)).await;
    client.close().await;
    let ended = |view: &NodeView| view.needs_init || view.state == NodeState::Failed;
    Ok(!views?
        .iter()
        .any(|view| view.node_id == *node && ended(view)))
}
