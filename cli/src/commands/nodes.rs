//! `steep-repl nodes` and `steep-repl status`.

use steep_protocol::message::agent::MissingObjects;
use steep_protocol::message::api::{ApiReply, ApiRequest, EndView, NodeView, ProgressView, Query};
use steep_protocol::{FaultKind, NodeId, NodeState};

use super::init::{prepare, rebuild};
use super::{Context, snapshot};
use crate::client::Client;
use crate::failure::{self, Failure};
use crate::render::{json, missing, nodes, progress, report, stored};
use crate::terminal::{print, print_folded, print_json};

/// Every node, and every stored snapshot if that is wanted.
pub(super) async fn all(snapshots: bool, context: &Context) -> Result<u8, Failure> {
    let client = context.client().await?;
    let views = ask(&client, None).await?;
    let stored = match snapshots {
        true => Some(snapshot::known(&client, None, None).await?),
        false => None,
    };
    client.close().await;
    if context.terminal.json {
        print_json(&json::nodes(&views, stored.as_deref()));
        return Ok(failure::SUCCESS);
    }
    let paint = context.terminal.out;
    print(&nodes::nodes(&views, paint));
    if let Some(stored) = stored {
        print(&format!("\n{}", stored::list(&stored, paint)));
    }
    Ok(failure::SUCCESS)
}

/// One node with its job, or all of them in full.
pub(super) async fn status(node: Option<NodeId>, context: &Context) -> Result<u8, Failure> {
    let client = context.client().await?;
    let views = ask(&client, node.as_ref()).await?;
    let paint = context.terminal.out;
    let mut text = String::new();
    for view in &views {
        let job = if view.state.is_active() {
            job(&client, &view.node_id).await?
        } else {
            None
        };
        let prepared = if node.is_some() && view.agent_online {
            prepare::on(&client, &view.node_id).await
        } else {
            Vec::new()
        };
        let lacks = if node.is_some() && view.missing_objects > 0 {
            rebuild::of(&client, &view.node_id).await?
        } else {
            MissingObjects::default()
        };
        if context.terminal.json && node.is_some() {
            let status = json::status(view, job.as_ref(), &prepared, &lacks.findings);
            print_json(&status);
            continue;
        }
        let fault = if view.state == NodeState::Failed {
            // Without a stored report, only the hint is missing: the view has the error.
            let end = end(&client, &view.node_id).await.ok().flatten();
            end.and_then(|end| end.fault)
        } else {
            None
        };
        if !text.is_empty() {
            text.push('\n');
        }
        text.push_str(&nodes::status(view, &prepared, fault.as_ref(), paint));
        text.push_str(&missing::list(&lacks, paint));
        if let Some(job) = job.filter(|_| node.is_some()) {
            text.push_str(&format!("\n{}", progress::block(&job, paint)));
        }
    }
    client.close().await;
    match (context.terminal.json, &node) {
        (true, None) => print_json(&json::nodes(&views, None)),
        (true, Some(_)) => {}
        (false, _) if views.is_empty() => print(&nodes::nodes(&[], paint)),
        (false, _) => print(&text),
    }
    Ok(failure::SUCCESS)
}

/// Prints the report of the node's last job that has ended.
pub(super) async fn last_report(node: NodeId, context: &Context) -> Result<u8, Failure> {
    let client = context.client().await?;
    let end = end(&client, &node).await?;
    client.close().await;
    let Some(end) = end else {
        let text = "the coordinator did not say how the last job ended";
        return Err(Failure::new(FaultKind::Failed, text).on(&node));
    };
    if context.terminal.json {
        print_json(&json::end(&end));
    } else {
        print_folded(&report::end(&end, context.terminal.out));
    }
    Ok(failure::SUCCESS)
}

async fn end(client: &Client, node: &NodeId) -> Result<Option<Box<EndView>>, Failure> {
    let request = Query::Report { node: node.clone() };
    let replies = client.ask_all(request).await?;
    Ok(replies.into_iter().find_map(|reply| match reply {
        ApiReply::Ended(end) => Some(end),
        _ => None,
    }))
}

/// The views of one node or of all. An unknown node is an error.
pub(super) async fn ask(client: &Client, node: Option<&NodeId>) -> Result<Vec<NodeView>, Failure> {
    let request = Query::Nodes {
        node: node.cloned(),
    };
    let mut views = Vec::new();
    for reply in client.ask_all(request).await? {
        if let ApiReply::Nodes(more) = reply {
            views.extend(more);
        }
    }
    match node {
        Some(node) if !views.iter().any(|view| &view.node_id == node) => Err(Failure::new(
            FaultKind::Failed,
            "the coordinator knows no such node",
        )
        .on(node)
        .hint("`steep-repl nodes` lists those it knows")),
        _ => Ok(views),
    }
}

/// The progress of a node's job; `None` without a job.
pub(super) async fn job(client: &Client, node: &NodeId) -> Result<Option<ProgressView>, Failure> {
    let request = ApiRequest::Progress {
        node: node.clone(),
        follow: false,
    };
    let replies = client.ask_all(request).await?;
    Ok(replies.into_iter().find_map(|reply| match reply {
        ApiReply::Progress(view) => Some(*view),
        _ => None,
    }))
}
