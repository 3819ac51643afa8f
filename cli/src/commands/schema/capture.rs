//! `steep-repl schema capture`.

use serde_json::json;
use steep_protocol::FaultKind;
use steep_protocol::message::api::{ApiReply, Order};

use crate::args::CaptureArgs;
use crate::commands::Context;
use crate::failure::{self, Failure};
use crate::terminal::{print_json, print_line};

/// Makes the node store fingerprints, and prints the number of tables.
pub(super) async fn run(args: CaptureArgs, context: &Context) -> Result<u8, Failure> {
    let client = context.client().await?;
    let request = Order::Capture {
        node: args.node.clone(),
        peer: args.peer.clone(),
    };
    let replies = client.ask_all(request).await?;
    client.close().await;
    let captured = replies.into_iter().find_map(|reply| match reply {
        ApiReply::Captured { tables } => Some(tables),
        _ => None,
    });
    let Some(tables) = captured else {
        let text = "the coordinator did not say whether fingerprints are stored";
        return Err(Failure::new(FaultKind::Failed, text).on(&args.node));
    };
    if context.terminal.json {
        print_json(&json!({
            "event": "schema.captured",
            "node_id": args.node,
            "peer": args.peer,
            "tables": tables,
        }));
    } else {
        let also = args
            .peer
            .map_or_else(String::new, |peer| format!(", and those of {peer}"));
        print_line(&format!(
            "{}: fingerprints of {tables} tables are stored{also}",
            args.node
        ));
    }
    Ok(failure::SUCCESS)
}
