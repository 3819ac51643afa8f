//! `steep-repl schema export`.

use jiff::Timestamp;

use super::{ask, file};
use crate::args::ExportArgs;
use crate::commands::Context;
use crate::failure::{self, Failure};
use crate::render::json;
use crate::render::schema::json::Exported;
use crate::terminal::print_line;

/// Writes the node's schema to a file.
pub(super) async fn run(args: ExportArgs, context: &Context) -> Result<u8, Failure> {
    let client = context.client().await?;
    let schema = ask(&client, &args.node, &args.schemas).await?;
    client.close().await;
    let tables = schema.tables().len();
    file::write(&args.output, &args.node, schema, Timestamp::now())?;
    print_line(&if context.terminal.json {
        json::line(&Exported::new(&args.node, &args.output, tables))
    } else {
        format!(
            "{}: {tables} tables written to {}",
            args.node,
            args.output.display()
        )
    });
    Ok(failure::SUCCESS)
}
