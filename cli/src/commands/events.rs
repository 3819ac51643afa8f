//! `steep-repl events`.

use steep_protocol::NodeId;
use steep_protocol::message::api::{ApiReply, ApiRequest};

use super::Context;
use crate::client::{Broken, Client};
use crate::failure::{self, Failure};
use crate::redial::Redial;
use crate::render::{audit, events, json};
use crate::terminal::{print_json, print_line, tell};

/// What operators wanted.
pub(super) async fn audit(node: Option<NodeId>, context: &Context) -> Result<u8, Failure> {
    let client = context.client().await?;
    let mut replies = client.ask(&ApiRequest::Audit { node }).await?;
    while let Some(reply) = replies.next().await? {
        let ApiReply::Audit(wishes) = reply else {
            continue;
        };
        for wish in &wishes {
            if context.terminal.json {
                print_json(&json::audit_entry(wish));
            } else {
                print_line(&audit::wish(wish, context.terminal.out));
            }
        }
    }
    client.close().await;
    Ok(failure::SUCCESS)
}

/// What happened, oldest first.
pub(super) async fn past(node: Option<NodeId>, context: &Context) -> Result<u8, Failure> {
    let client = context.client().await?;
    let mut last = 0;
    show(&client, &node, Going::Once, &mut last, context).await?;
    client.close().await;
    Ok(failure::SUCCESS)
}

/// What happened and what happens, until somebody stops it. A coordinator that went away is dialled
/// again, and no event is shown twice.
pub(super) async fn follow(node: Option<NodeId>, context: &Context) -> Result<u8, Failure> {
    let mut client = context.client().await?;
    let mut last = 0;
    loop {
        let why = match show(&client, &node, Going::On, &mut last, context).await {
            Ok(()) => break,
            Err(Broken::Said(failure)) => return Err(failure),
            Err(Broken::Lost(failure)) => failure,
        };
        tell(&format!(
            "{}; dialling {} again",
            failure::line(&why.0),
            client.address()
        ));
        let mut redial = Redial::begin(why);
        // Waited for even the first time: a coordinator that starts and dies is not hammered.
        redial.wait().await;
        while let Err(failure) = client.reconnect().await {
            redial.failed(failure)?.wait().await;
        }
        tell("connected again");
    }
    client.close().await;
    Ok(failure::SUCCESS)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Going {
    Once,
    On,
}

/// Prints events after `last`, and moves it on.
async fn show(
    client: &Client,
    node: &Option<NodeId>,
    going: Going,
    last: &mut u64,
    context: &Context,
) -> Result<(), Broken> {
    let request = ApiRequest::Events {
        node: node.clone(),
        follow: going == Going::On,
        after: *last,
    };
    let mut replies = client.ask(&request).await.map_err(Broken::Lost)?;
    while let Some(reply) = replies.next().await? {
        if let ApiReply::Event(event) = reply {
            *last = event.seq.max(*last);
            if context.terminal.json {
                print_json(&json::event(&event));
            } else {
                print_line(&events::event(&event, context.terminal.out));
            }
        }
    }
    Ok(())
}
