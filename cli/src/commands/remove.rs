//! `steep-repl nodes remove` and `init cancel --force-cleanup`: clean-up without waiting for servers that
//! cannot be reached.

use steep_protocol::message::api::{Afterwards, ApiReply, Order};
use steep_protocol::message::job::CancelledData;
use steep_protocol::{FaultKind, NodeId};

use super::{Context, nodes};
use crate::client::Client;
use crate::failure::{self, Failure};
use crate::render::{clean, json};
use crate::signals::Signals;
use crate::terminal::{self, print_json, print_line};

/// Makes the coordinator forget a node. Asks first on a terminal.
pub(crate) async fn remove(node: NodeId, yes: bool, context: &Context) -> Result<u8, Failure> {
    let mut signals = Signals::catch()?;
    let client = context.client().await?;
    nodes::ask(&client, Some(&node)).await?;
    if !yes && context.terminal.interactive {
        let question = format!(
            "Forget {node}? Its slot and publication on its source are removed; what is on {node} itself stays."
        );
        let confirmed = tokio::select! {
            confirmed = terminal::confirm(&question) => confirmed,
            _ = signals.next() => false,
        };
        if !confirmed {
            return Err(Failure::new(FaultKind::Failed, "nothing was removed").on(&node));
        }
    }
    // Tables and rows belong to the node.
    let wanted = (CancelledData::Keep, Afterwards::Forget);
    let left = give_up(&node, wanted, &client).await?;
    client.close().await;
    say(
        &node,
        "removed",
        &format!("{node} is forgotten"),
        &left,
        context,
    );
    Ok(failure::SUCCESS)
}

/// Removes everything of ours on a node, even if the coordinator does not know of it.
pub(crate) async fn clean_up(
    node: NodeId,
    data: CancelledData,
    client: Client,
    context: &Context,
) -> Result<u8, Failure> {
    let left = give_up(&node, (data, Afterwards::Keep), &client).await?;
    client.close().await;
    let text = format!("{node} is uninitialized; what could be reached is removed");
    say(&node, "uninitialized", &text, &left, context);
    Ok(failure::SUCCESS)
}

async fn give_up(
    node: &NodeId,
    (data, afterwards): (CancelledData, Afterwards),
    client: &Client,
) -> Result<Vec<String>, Failure> {
    let request = Order::GiveUp {
        node: node.clone(),
        data,
        afterwards,
    };
    let replies = client.ask_all(request).await?;
    let left = replies.into_iter().filter_map(|reply| match reply {
        ApiReply::Left(left) => Some(left),
        _ => None,
    });
    Ok(left.flatten().map(|text| clean(&text)).collect())
}

fn say(node: &NodeId, state: &str, text: &str, left: &[String], context: &Context) {
    if context.terminal.json {
        print_json(&json::given_up(node, state, left));
        return;
    }
    print_line(text);
    for text in left {
        print_line(&format!("left: {text}"));
    }
}
