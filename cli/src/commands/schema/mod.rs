//! `steep-repl schema`: reads schemas from nodes or files and compares them here.

mod capture;
mod compare;
mod diff;
mod export;
mod file;

use steep_protocol::message::api::{ApiReply, ApiRequest};
use steep_protocol::message::job::TableFilter;
use steep_protocol::{FaultKind, Identifier, NodeId};
use steep_schema::Schema;

use super::Context;
use crate::args::{SchemaCommand, Side};
use crate::client::Client;
use crate::failure::Failure;

pub(super) async fn run(command: SchemaCommand, context: &Context) -> Result<u8, Failure> {
    match command {
        SchemaCommand::Compare(args) => compare::run(args, context).await,
        SchemaCommand::Diff(args) => diff::run(args, context).await,
        SchemaCommand::Capture(args) => capture::run(args, context).await,
        SchemaCommand::Export(args) => export::run(args, context).await,
    }
}

/// Both sides, limited to `schemas`. Two files need no connection.
async fn both(
    local: &Side,
    remote: &Side,
    schemas: &[Identifier],
    context: &Context,
) -> Result<(Schema, Schema), Failure> {
    if local == remote {
        let text = "both sides are the same: there is nothing to compare";
        return Err(Failure::bad_request(text));
    }
    let needs_client = [local, remote]
        .iter()
        .any(|side| matches!(side, Side::Node(_)));
    let client = match needs_client {
        true => Some(context.client().await?),
        false => None,
    };
    let here = of_side(local, schemas, client.as_ref()).await?;
    let there = of_side(remote, schemas, client.as_ref()).await?;
    if let Some(client) = client {
        client.close().await;
    }
    let known = |schema: &&Identifier| here.has_schema(schema) || there.has_schema(schema);
    if let Some(unknown) = schemas.iter().find(|schema| !known(schema)) {
        let (local, remote) = (local.name(), remote.name());
        let text =
            format!("neither {local} nor {remote} has a schema {unknown} with tables or types");
        return Err(Failure::new(FaultKind::Failed, text)
            .hint("check the names after --schemas, which are separated by commas"));
    }
    Ok((here, there))
}

async fn of_side(
    side: &Side,
    schemas: &[Identifier],
    client: Option<&Client>,
) -> Result<Schema, Failure> {
    match (side, client) {
        (Side::Node(node), Some(client)) => ask(client, node, schemas).await,
        (Side::Node(node), None) => {
            let text = "there is no connection to ask this node over";
            Err(Failure::bad_request(text).on(node))
        }
        (Side::File(path), _) => Ok(file::read(path)?.within(schemas)),
    }
}

/// A node's schema as it is now.
async fn ask(client: &Client, node: &NodeId, schemas: &[Identifier]) -> Result<Schema, Failure> {
    let filter = TableFilter {
        include_schemas: schemas.to_vec(),
        exclude_tables: Vec::new(),
        ..TableFilter::default()
    };
    let node = node.clone();
    let mut replies = client.ask(ApiRequest::Schema { node, filter }).await?;
    let mut schema = Schema::default();
    while let Some(reply) = replies.next().await? {
        if let ApiReply::Schema(page) = reply {
            schema.add(*page);
        }
    }
    Ok(schema)
}
