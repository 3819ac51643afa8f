//! `steep-repl snapshot apply` and `init --snapshot`: nodes made from a stored snapshot.

use steep_protocol::message::api::{ApiReply, InitRequest, Query};
use steep_protocol::message::job::JobSpec;
use steep_protocol::message::snapshot::{ApplySpec, SnapshotRef, SnapshotView};
use steep_protocol::{FaultKind, NodeId};

use super::begin::{self, AfterStart};
use super::plan;
use crate::args::{ApplyArgs, Stored};
use crate::client::Client;
use crate::commands::Context;
use crate::failure::Failure;
use crate::signals::Signals;

/// Starts the jobs and follows them as `init` does.
pub(crate) async fn run(mut args: ApplyArgs, context: &Context) -> Result<u8, Failure> {
    args.schema_sync.get_or_insert(context.settings.schema_sync);
    args.parallel.get_or_insert(context.settings.parallel);
    let targets = args.targets.clone();
    begin::told(go(&args, context).await, &targets, context.terminal)
}

async fn go(args: &ApplyArgs, context: &Context) -> Result<u8, Failure> {
    let mut signals = Signals::catch()?;
    let mut client = context.client().await?;
    let terminal = context.terminal;
    let view = find(&client, &args.input).await?;
    let jobs = args.specs(&view.source_node)?;
    let wanted = request(&view, jobs, args.verify);
    if args.dry_run {
        return plan::show(client, &wanted, &mut signals, terminal).await;
    }
    let after_start = AfterStart::of(args.detach);
    let done = begin::run(wanted, after_start, &mut client, &mut signals, terminal).await;
    client.close().await;
    done
}

/// The request that makes those jobs from that snapshot.
pub(super) fn request(view: &SnapshotView, jobs: Vec<JobSpec>, verify: bool) -> InitRequest {
    InitRequest::Apply(Box::new(ApplySpec {
        jobs,
        snapshot: SnapshotRef::Id(view.snapshot_id),
        verify,
    }))
}

/// The snapshot that the coordinator knows by that id or at that place.
pub(super) async fn find(client: &Client, which: &Stored) -> Result<SnapshotView, Failure> {
    let snapshot = match which {
        Stored::Known(id) => Some(*id),
        Stored::At(_) => None,
    };
    let source: Option<NodeId> = None;
    let replies = client
        .ask_all(Query::Snapshots { snapshot, source })
        .await?;
    let views = replies.into_iter().filter_map(|reply| match reply {
        ApiReply::Snapshots(views) => Some(views),
        _ => None,
    });
    let mut views: Vec<SnapshotView> = views.flatten().collect();
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
