//! `steep-repl init rebuild`.

use steep_protocol::message::agent::MissingObjects;
use steep_protocol::message::api::{ApiReply, Order, Query};
use steep_protocol::{FaultKind, NodeId};

use crate::args::RebuildArgs;
use crate::client::Client;
use crate::commands::Context;
use crate::failure::{self, Failure};
use crate::render::{json, missing};
use crate::terminal::{print, print_json};

/// Makes a node retry its missing objects. Exit code 1 if some are still missing.
pub(crate) async fn run(args: RebuildArgs, context: &Context) -> Result<u8, Failure> {
    let client = context.client().await?;
    let request = Order::Rebuild {
        node: args.node.clone(),
    };
    let replies = client.ask_all(request).await?;
    client.close().await;
    let rebuilt = replies.into_iter().find_map(|reply| match reply {
        ApiReply::Rebuilt(rebuilt) => Some(rebuilt),
        _ => None,
    });
    let Some(rebuilt) = rebuilt else {
        let text = "the coordinator did not say what the rebuild came to";
        return Err(Failure::new(FaultKind::Failed, text).on(&args.node));
    };
    if context.terminal.json {
        print_json(&json::rebuilt(&args.node, &rebuilt));
    } else {
        print(&missing::rebuilt(
            &args.node,
            &rebuilt,
            context.terminal.out,
        ));
    }
    Ok(match rebuilt.missing.total {
        0 => failure::SUCCESS,
        _ => failure::ERROR,
    })
}

/// The missing objects of a node.
pub(crate) async fn of(client: &Client, node: &NodeId) -> Result<MissingObjects, Failure> {
    let request = Query::Missing { node: node.clone() };
    let replies = client.ask_all(request).await?;
    let missing = replies.into_iter().find_map(|reply| match reply {
        ApiReply::Missing(missing) => Some(missing),
        _ => None,
    });
    Ok(missing.unwrap_or_default())
}
