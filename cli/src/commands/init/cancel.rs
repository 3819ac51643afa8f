//! `steep-repl init cancel`.

use steep_protocol::message::api::{ApiReply, Order};
use steep_protocol::message::job::CancelledData;
use steep_protocol::{FaultKind, NodeState};

use crate::args::CancelArgs;
use crate::commands::{Context, nodes, remove};
use crate::failure::{self, Failure};
use crate::render::{events, json};
use crate::signals::Signals;
use crate::terminal::{self, print_json, print_line, tell};

/// Cancels a node's job and removes what it made. Asks first on a terminal.
pub(crate) async fn run(args: CancelArgs, context: &Context) -> Result<u8, Failure> {
    let mut signals = Signals::catch()?;
    let client = context.client().await?;
    let node = nodes::ask(&client, Some(&args.node)).await?;
    if let (false, true, Some(view)) = (args.yes, context.terminal.interactive, node.first()) {
        let rows = match view.state {
            NodeState::Diverged => "ends its replication and keeps tables and rows",
            _ if args.keep_data => "keeps the rows",
            _ => "removes the rows it copied",
        };
        let state = match view.state {
            NodeState::Failed => "has failed".to_owned(),
            NodeState::Diverged => "has diverged".to_owned(),
            state => format!("is {state}"),
        };
        let question = format!("{} {state}. Cancel its job? That {rows}.", args.node);
        let confirmed = tokio::select! {
            confirmed = terminal::confirm(&question) => confirmed,
            _ = signals.next() => false,
        };
        if !confirmed {
            return Err(Failure::new(FaultKind::Failed, "nothing was cancelled").on(&args.node));
        }
    }
    if args.force_cleanup {
        let data = data(args.keep_data);
        return remove::clean_up(args.node, data, client, context).await;
    }
    let data = data(args.keep_data);
    let request = Order::Cancel {
        node: args.node.clone(),
        data,
    };
    let mut replies = client.ask(request).await?;
    loop {
        let reply = tokio::select! {
            reply = replies.next() => reply?,
            _ = signals.next() => {
                tell(&format!(
                    "{}: the cancel goes on; `steep-repl status {0}` shows when it is done",
                    args.node
                ));
                return Ok(failure::ERROR);
            }
        };
        match reply {
            Some(ApiReply::Event(event)) if context.terminal.json => {
                print_json(&json::event(&event));
            }
            Some(ApiReply::Event(event)) => {
                print_line(&events::event(&event, context.terminal.out));
            }
            Some(_) => {}
            None => break,
        }
    }
    let after = nodes::ask(&client, Some(&args.node)).await;
    client.close().await;
    let follows = after.ok().and_then(|views| {
        let state = views.first()?.state;
        matches!(state, NodeState::Synchronized | NodeState::Diverged).then_some(state)
    });
    if context.terminal.json {
        let state = follows.unwrap_or(NodeState::Uninitialized);
        print_json(&json::cancelled(&args.node, state));
    } else if let Some(state) = follows {
        print_line(&format!(
            "{} is {state}, as before: what the addition made is removed",
            args.node
        ));
    } else {
        // The state before the cancel.
        let followed = node
            .first()
            .is_some_and(|view| view.state == NodeState::Diverged);
        let done = match (followed, args.keep_data) {
            (true, _) => {
                "its slot, publication and subscription are removed; tables, rows and settings stay"
            }
            (false, true) => "what the job made is removed; its tables and rows are kept",
            (false, false) => "what the job made is removed",
        };
        print_line(&format!("{} is uninitialized; {done}", args.node));
    }
    Ok(failure::SUCCESS)
}

fn data(keep: bool) -> CancelledData {
    if keep {
        CancelledData::Keep
    } else {
        CancelledData::Remove
    }
}
