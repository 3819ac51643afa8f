//! `steep-repl snapshot apply` and `init --snapshot`: nodes made from a stored snapshot.

use steep_protocol::message::api::InitRequest;
use steep_protocol::message::job::JobSpec;
use steep_protocol::message::snapshot::{ApplySpec, SnapshotView};
use steep_protocol::{FaultKind, NodeId};

use super::begin::{self, AfterStart};
use super::plan;
use crate::args::{ApplyArgs, Stored};
use crate::client::Client;
use crate::commands::{Context, snapshot};
use crate::failure::Failure;
use crate::signals::Signals;

/// Starts the jobs and follows them as `init` does.
pub(crate) async fn run(mut args: ApplyArgs, context: &Context) -> Result<u8, Failure> {
    args.load.fill(&context.settings);
    let targets = args.targets.clone();
    begin::told(go(&args, context).await, &targets, context.terminal)
}

async fn go(args: &ApplyArgs, context: &Context) -> Result<u8, Failure> {
    let making = Making {
        which: &args.input,
        verify: args.verify,
        dry_run: args.dry_run,
        after_start: AfterStart::of(args.detach),
    };
    make(making, |source| args.specs(source), context).await
}

/// How nodes are made from a stored snapshot.
pub(super) struct Making<'a> {
    pub(super) which: &'a Stored,
    pub(super) verify: bool,
    pub(super) dry_run: bool,
    pub(super) after_start: AfterStart,
}

/// Starts the jobs that `specs` makes for the snapshot's source, or shows what would be done.
pub(super) async fn make(
    making: Making<'_>,
    specs: impl FnOnce(&NodeId) -> Result<Vec<JobSpec>, Failure>,
    context: &Context,
) -> Result<u8, Failure> {
    let mut signals = Signals::catch()?;
    let mut client = context.client().await?;
    let terminal = context.terminal;
    let view = find(&client, making.which).await?;
    let wanted = InitRequest::Apply(Box::new(ApplySpec {
        jobs: specs(&view.source_node)?,
        snapshot: view.snapshot_id,
        verify: making.verify,
    }));
    if making.dry_run {
        return plan::show(client, &wanted, &mut signals, terminal).await;
    }
    let after_start = making.after_start;
    let done = begin::run(wanted, after_start, &mut client, &mut signals, terminal).await;
    client.close().await;
    done
}

/// The snapshot that the coordinator knows by that id or at that place.
async fn find(client: &Client, which: &Stored) -> Result<SnapshotView, Failure> {
    let snapshot = match which {
        Stored::Known(id) => Some(*id),
        Stored::At(_) => None,
    };
    let mut views = snapshot::known(client, snapshot, None).await?;
    if let Stored::At(location) = which {
        let location = location.to_string();
        views.retain(|view| view.location.as_ref() == Some(&location) && !view.holders.is_empty());
    }
    // The newest, where a place was used again.
    views.pop().ok_or_else(|| {
        let text = match which {
            Stored::Known(id) => format!("there is no snapshot {id}"),
            Stored::At(location) => format!("no complete snapshot is known in {location}"),
        };
        Failure::new(FaultKind::Failed, text)
            .hint("steep-repl snapshot list shows all of them, and where they are")
    })
}
