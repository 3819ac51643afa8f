//! `steep-repl detach`.

use steep_protocol::FaultKind;
use steep_protocol::message::api::{AbsentSource, ApiReply, DetachPlan, DetachSpec, Order, Query};

use super::Context;
use crate::args::DetachArgs;
use crate::client::Client;
use crate::failure::{self, Failure};
use crate::render::{clean, detach, json};
use crate::signals::Signals;
use crate::terminal::{self, print, print_json, print_line, tell};

/// Ends a node's replication. Shows first what that does, and asks on a terminal.
pub(super) async fn run(args: DetachArgs, context: &Context) -> Result<u8, Failure> {
    let mut signals = Signals::catch()?;
    let client = context.client().await?;
    let absent = match args.force {
        true => AbsentSource::LeaveBehind,
        false => AbsentSource::Refuse,
    };
    let plan = plan(&args, absent, &client).await?;
    if args.dry_run {
        client.close().await;
        match context.terminal.json {
            true => print_json(&json::detach_plan(&plan)),
            false => print(&detach::plan(&plan, context.terminal.out)),
        }
        return Ok(failure::SUCCESS);
    }
    if !context.terminal.json && plan.detached_at.is_none() {
        print(&detach::plan(&plan, context.terminal.out));
    }
    if !args.yes && plan.detached_at.is_none() {
        if !context.terminal.interactive {
            let text = "nobody can be asked whether to detach it: nothing was changed";
            let failure = Failure::new(FaultKind::BadRequest, text).on(&args.node);
            return Err(failure.hint("repeat the command with --yes"));
        }
        let question = format!("Detach {} from {}?", plan.node_id, plan.source_node);
        let confirmed = tokio::select! {
            confirmed = terminal::confirm(&question) => confirmed,
            _ = signals.next() => false,
        };
        if !confirmed {
            return Err(Failure::new(FaultKind::Cancelled, "nothing was changed").on(&args.node));
        }
    }
    let order = Order::Detach(DetachSpec {
        node: args.node.clone(),
        wait_seconds: args.wait.then_some(args.timeout.as_secs()),
        absent,
    });
    let replies = tokio::select! {
        replies = client.ask_all(order) => replies?,
        _ = signals.next() => {
            tell(&format!(
                "{}: the detach goes on; `steep-repl status {0}` shows when it is done",
                args.node
            ));
            return Ok(failure::ERROR);
        }
    };
    client.close().await;
    let left: Vec<String> = replies
        .into_iter()
        .filter_map(|reply| match reply {
            ApiReply::Left(left) => Some(left),
            _ => None,
        })
        .flatten()
        .map(|text| clean(&text))
        .collect();
    if context.terminal.json {
        print_json(&json::detached_from(&plan, &left));
        return Ok(failure::SUCCESS);
    }
    print_line(&detach::done(&plan));
    for text in left {
        print_line(&format!("left: {text}"));
    }
    Ok(failure::SUCCESS)
}

async fn plan(
    args: &DetachArgs,
    absent: AbsentSource,
    client: &Client,
) -> Result<DetachPlan, Failure> {
    let query = Query::DetachPlan {
        node: args.node.clone(),
        absent,
    };
    let replies = client.ask_all(query).await?;
    let plan = replies.into_iter().find_map(|reply| match reply {
        ApiReply::DetachPlan(plan) => Some(*plan),
        _ => None,
    });
    plan.ok_or_else(|| {
        let text = "the coordinator did not say what a detach would do";
        Failure::new(FaultKind::Failed, text).on(&args.node)
    })
}
