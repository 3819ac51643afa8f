//! `steep-repl init complete`: starts replication to a node that was restored from a backup.

use steep_protocol::message::api::InitRequest;

use super::begin::{self, AfterStart};
use super::request;
use crate::args::CompleteArgs;
use crate::commands::{Context, doctor};
use crate::failure::Failure;
use crate::signals::Signals;

/// Starts the job and follows it as `init` does.
pub(crate) async fn run(mut args: CompleteArgs, context: &Context) -> Result<u8, Failure> {
    if !args.skip_schema_check {
        args.schema_sync.get_or_insert(context.settings.schema_sync);
    }
    let targets = [args.node.clone()];
    begin::told(go(&args, context).await, &targets, context.terminal)
}

async fn go(args: &CompleteArgs, context: &Context) -> Result<u8, Failure> {
    let spec = args.spec(context.settings.parallel)?;
    let wanted = InitRequest::Complete(Box::new(spec));
    let mut signals = Signals::catch()?;
    let mut client = context.client().await?;
    let terminal = context.terminal;
    if args.dry_run {
        let found = request::look(&wanted, &client, &mut signals).await?;
        client.close().await;
        return Ok(doctor::told(&found, terminal));
    }
    let after_start = AfterStart::of(args.detach);
    let done = begin::run(wanted, after_start, &mut client, &mut signals, terminal).await;
    client.close().await;
    done
}
