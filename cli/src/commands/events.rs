//! `steep-repl events`.

use steep_protocol::NodeId;
use steep_protocol::message::api::{ApiReply, ApiRequest};

use super::Context;
use crate::failure::{self, Failure};
use crate::render::{events, json};
use crate::terminal::print_line;

/// What happened, and with `follow` what happens, until somebody stops it.
pub(super) async fn run(
    node: Option<NodeId>,
    follow: bool,
    context: &Context,
) -> Result<u8, Failure> {
    let client = context.client().await?;
    let mut replies = client.ask(&ApiRequest::Events { node, follow }).await?;
    while let Some(reply) = replies.next().await? {
        if let ApiReply::Event(event) = reply {
            print_line(&if context.terminal.json {
                json::line(&json::Event::from(&event))
            } else {
                events::event(&event, context.terminal.out)
            });
        }
    }
    client.close().await;
    Ok(failure::SUCCESS)
}
