//! `steep-repl schema export`.

use jiff::Timestamp;
use serde_json::json;

use super::{ask, file};
use crate::args::ExportArgs;
use crate::commands::Context;
use crate::failure::{self, Failure};
use crate::terminal::{print_json, print_line};

/// Writes the node's schema to a file.
pub(super) async fn run(args: ExportArgs, context: &Context) -> Result<u8, Failure> {
    let client = context.client().await?;
    let schema = ask(&client, &args.node, &args.schemas).await?;
    client.close().await;
    let tables = schema.tables().len();
    file::write(&args.output, &args.node, schema, Timestamp::now())?;
    let output = args.output.display();
    if context.terminal.json {
        print_json(&json!({
            "event": "schema.exported",
            "node_id": args.node,
            "output": output.to_string(),
            "tables": tables,
        }));
    } else {
        print_line(&format!(
            "{}: {tables} tables written to {output}",
            args.node
        ));
    }
    Ok(failure::SUCCESS)
}
