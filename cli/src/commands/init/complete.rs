//! `steep-repl init complete`: a node whose rows were restored from a backup goes on by replication.

use super::begin::{self, Manner};
use super::request::InitRequest;
use crate::args::CompleteArgs;
use crate::commands::{Context, doctor};
use crate::failure::Failure;
use crate::signals::Signals;

/// Starts the job and follows it as `init` does.
pub(crate) async fn run(mut args: CompleteArgs, context: &Context) -> Result<u8, Failure> {
    if !args.skip_schema_check {
        args.schema_sync = args.schema_sync.or(context.settings.schema_sync);
    }
    let targets = [args.node.clone()];
    begin::told(go(&args, context).await, &targets, context.terminal)
}

async fn go(args: &CompleteArgs, context: &Context) -> Result<u8, Failure> {
    let wanted = InitRequest::Backup(Box::new(args.spec(context.settings.parallel)?));
    let mut signals = Signals::catch()?;
    let mut client = context.client().await?;
    let terminal = context.terminal;
    if args.dry_run {
        let found = wanted.look(&client, &mut signals).await?;
        client.close().await;
        return Ok(doctor::told(&found, terminal));
    }
    let manner = Manner::of(args.detach);
    let done = begin::run(wanted, manner, &mut client, &mut signals, terminal).await;
    client.close().await;
    done
}
