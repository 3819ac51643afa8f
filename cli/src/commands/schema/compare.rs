//! `steep-repl schema compare`.

use steep_schema::compare;

use super::both;
use crate::args::CompareArgs;
use crate::commands::Context;
use crate::failure::{self, Failure};
use crate::render::schema;
use crate::terminal::{print, print_json};

/// Prints every difference. The exit code says whether there is one.
pub(super) async fn run(args: CompareArgs, context: &Context) -> Result<u8, Failure> {
    let (local, remote) = both(&args.local, &args.remote, &args.schemas, context).await?;
    let compared = compare(&local, &remote);
    if context.terminal.json {
        print_json(&schema::json::comparison(&compared));
    } else {
        let names = (args.local.name(), args.remote.name());
        print(&schema::comparison(
            &compared,
            &names.0,
            &names.1,
            context.terminal.out,
        ));
    }
    Ok(match compared.differences().next() {
        Some(_) => failure::SCHEMA_MISMATCH,
        None => failure::SUCCESS,
    })
}
