//! `steep-repl init adjust`.

use steep_protocol::FaultKind;
use steep_protocol::message::adjust::Adjustment;
use steep_protocol::message::api::{ApiReply, Order};

use crate::args::AdjustArgs;
use crate::commands::Context;
use crate::failure::{self, Failure};
use crate::render::{adjusted, json};
use crate::terminal::{print_json, print_line};

/// Changes the terms of a node's running job.
pub(crate) async fn run(args: AdjustArgs, context: &Context) -> Result<u8, Failure> {
    let client = context.client().await?;
    let request = Order::Adjust {
        node: args.node.clone(),
        change: Adjustment {
            parallel: args.parallel,
            max_rate: args.max_rate,
        },
    };
    let replies = client.ask_all(request).await?;
    client.close().await;
    let terms = replies.into_iter().find_map(|reply| match reply {
        ApiReply::Adjusted(terms) => Some(terms),
        _ => None,
    });
    let Some(terms) = terms else {
        let text = "the coordinator did not say which terms the job has now";
        return Err(Failure::new(FaultKind::Failed, text).on(&args.node));
    };
    if context.terminal.json {
        print_json(&json::adjusted(&args.node, &terms));
    } else {
        print_line(&adjusted::line(&args.node, &terms, context.terminal.out));
    }
    Ok(failure::SUCCESS)
}
