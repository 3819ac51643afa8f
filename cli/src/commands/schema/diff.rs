//! `steep-repl schema diff`: one table, side by side.

use steep_protocol::FaultKind;
use steep_schema::{Status, compare};

use super::both;
use crate::args::DiffArgs;
use crate::commands::Context;
use crate::failure::{self, Failure};
use crate::render::schema::{self, Sides};
use crate::terminal::{print, print_json};

/// Prints the table on both sides. The exit code says whether it differs.
pub(super) async fn run(args: DiffArgs, context: &Context) -> Result<u8, Failure> {
    let only = [args.table.schema.clone()];
    let (local, remote) = both(&args.local, &args.remote, &only, context).await?;
    let (local, remote) = (local.only(&args.table), remote.only(&args.table));
    let compared = compare(&local, &remote);
    let Some(table) = compared.tables.first() else {
        let text = format!("neither side has a table {}", args.table);
        return Err(Failure::new(FaultKind::Failed, text)
            .hint("names are taken as SQL takes them: write \"Odd Name\" in double quotes"));
    };
    let sides = Sides {
        table: &args.table,
        local: (&args.local.name(), &local),
        remote: (&args.remote.name(), &remote),
    };
    if context.terminal.json {
        print_json(&schema::json::diff(table, &sides));
    } else {
        print(&schema::side_by_side(
            table,
            &sides,
            width(),
            context.terminal.out,
        ));
    }
    Ok(match table.status {
        Status::Match => failure::SUCCESS,
        Status::Mismatch | Status::LocalOnly | Status::RemoteOnly => failure::SCHEMA_MISMATCH,
    })
}

/// Columns of the terminal; `None`, and no limit, if stdout is not one.
fn width() -> Option<usize> {
    let terminal = console::Term::stdout();
    let (_, columns) = terminal.size_checked().filter(|_| terminal.is_term())?;
    Some(usize::from(columns))
}
