//! `steep-repl init prepare`: creates a slot on the source before a backup is taken.

use steep_protocol::message::api::{ApiReply, ApiRequest, Order, Query};
use steep_protocol::message::facts::Finding;
use steep_protocol::message::handover::PreparedSlot;
use steep_protocol::{FaultKind, NodeId};

use crate::args::PrepareArgs;
use crate::client::Client;
use crate::commands::Context;
use crate::failure::{self, Failure};
use crate::render::{findings, json, prepared};
use crate::terminal::{print, print_json, print_line, tell};

/// Prepares a slot, or drops one that is prepared.
pub(crate) async fn run(args: PrepareArgs, context: &Context) -> Result<u8, Failure> {
    let terminal = context.terminal;
    let client = context.client().await?;
    if args.drop {
        let (node, slot) = (args.node.clone(), args.slot.clone());
        client.ask_all(Order::DropPrepared { node, slot }).await?;
        client.close().await;
        if terminal.json {
            print_json(&json::unprepared(&args.node, &args.slot));
        } else {
            print_line(&format!("{}: slot {} is dropped", args.node, args.slot));
        }
        return Ok(failure::SUCCESS);
    }
    let (slots, warnings) = ask(&client, Order::Prepare(args.spec())).await?;
    client.close().await;
    let Some(slot) = slots.first() else {
        let text = "the coordinator did not say what was prepared";
        return Err(Failure::new(FaultKind::Failed, text).on(&args.node));
    };
    let next = prepared::next(&args.node, slot);
    if terminal.json {
        print_json(&json::prepared(&args.node, slot, &next, &warnings));
    } else {
        if !warnings.is_empty() {
            tell(findings::report(&args.node, &warnings, terminal.err).trim_end());
        }
        print(&prepared::made(&args.node, slot, &next, terminal.out));
    }
    Ok(failure::SUCCESS)
}

/// The prepared slots, and findings.
async fn ask(
    client: &Client,
    request: impl Into<ApiRequest>,
) -> Result<(Vec<PreparedSlot>, Vec<Finding>), Failure> {
    let (mut slots, mut warnings) = (Vec::new(), Vec::new());
    for reply in client.ask_all(request).await? {
        match reply {
            ApiReply::Prepared(more) => slots.extend(more),
            ApiReply::Findings { findings, .. } => warnings.extend(findings),
            _ => {}
        }
    }
    Ok((slots, warnings))
}

/// The slots prepared on a node. On error none: the caller shows them beside other things.
pub(in crate::commands) async fn on(client: &Client, node: &NodeId) -> Vec<PreparedSlot> {
    let request = Query::Prepared { node: node.clone() };
    let asked = ask(client, request).await;
    asked.map(|(slots, _)| slots).unwrap_or_default()
}
