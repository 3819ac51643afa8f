//! `steep-repl snapshot apply` and `init --snapshot`: nodes made from a stored snapshot.

use std::collections::BTreeSet;

use futures_util::future::join_all;
use steep_protocol::message::api::{ApiReply, InitRequest, Query};
use steep_protocol::message::job::JobSpec;
use steep_protocol::message::snapshot::{ApplySpec, CarriedTo, FoundSnapshot, SnapshotView};
use steep_protocol::{FaultKind, NodeId};

use super::begin::{self, AfterStart};
use super::plan;
use crate::args::{ApplyArgs, Stored};
use crate::client::Client;
use crate::commands::{Context, interrupted, snapshot};
use crate::failure::Failure;
use crate::render::clean;
use crate::signals::Signals;
use crate::terminal::tell;

/// Starts the jobs and follows them as `init` does.
pub(crate) async fn run(mut args: ApplyArgs, context: &Context) -> Result<u8, Failure> {
    args.load.fill(&context.settings);
    let targets = args.targets.clone();
    begin::told(go(&args, context).await, &targets, context.terminal)
}

async fn go(args: &ApplyArgs, context: &Context) -> Result<u8, Failure> {
    let making = Making {
        which: &args.input,
        targets: &args.targets,
        verify: args.verify,
        dry_run: args.dry_run,
        after_start: AfterStart::of(args.detach),
    };
    make(making, |source| args.specs(source), context).await
}

/// How nodes are made from a stored snapshot.
pub(super) struct Making<'a> {
    pub(super) which: &'a Stored,
    pub(super) targets: &'a [NodeId],
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
    let found = tokio::select! {
        found = find(&client, making.which, making.targets) => found?,
        interrupt = signals.next() => return Err(interrupted(interrupt)),
    };
    let wanted = InitRequest::Apply(Box::new(ApplySpec {
        jobs: specs(&found.view.source_node)?,
        snapshot: found.view.snapshot_id,
        carried: found.carried,
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

/// A snapshot, and the targets that it was carried to.
struct Found {
    view: SnapshotView,
    carried: Option<CarriedTo>,
}

/// The snapshot of that id; or the one at that place: where the targets' agents find it, they read it, and
/// otherwise the source's agent does where it was stored.
async fn find(client: &Client, which: &Stored, targets: &[NodeId]) -> Result<Found, Failure> {
    let location = match which {
        Stored::Known(id) => {
            let view = snapshot::known(client, Some(*id), None).await?.pop();
            let view = view.ok_or_else(|| unknown(format!("there is no snapshot {id}")))?;
            return Ok(Found {
                view,
                carried: None,
            });
        }
        Stored::At(location) => location.to_string(),
    };
    let (mut ids, mut nodes) = (BTreeSet::new(), Vec::new());
    let (mut without, mut unreadable) = (Vec::new(), Vec::new());
    let looks = targets.iter().map(|target| look(client, target, &location));
    for (target, found) in targets.iter().zip(join_all(looks).await) {
        match found {
            Ok(found) => {
                ids.insert(found.snapshot);
                match found.unreadable {
                    None => nodes.push(target.clone()),
                    Some(fault) => unreadable.push((target, *fault)),
                }
            }
            Err(failure) => without.push((target, failure.on(target))),
        }
    }
    if ids.len() > 1 {
        let ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
        let text = format!(
            "the targets do not find the same snapshot in {location}: {}",
            ids.join(", ")
        );
        return Err(unknown(text));
    }
    let mut views = snapshot::known(client, ids.first().copied(), None).await?;
    let Some(id) = ids.first() else {
        views.retain(|view| view.location.as_ref() == Some(&location) && !view.holders.is_empty());
        // The newest, where a place was used again.
        let view = views.pop().ok_or_else(|| nowhere(&location, &without))?;
        return Ok(Found {
            view,
            carried: None,
        });
    };
    let view = views.pop().ok_or_else(|| {
        unknown(format!(
            "the snapshot in {location} is {id}, which this coordinator does not know: it was made in another \
             cluster, or deleted"
        ))
    })?;
    for (target, failure) in without {
        tell(&format!(
            "{target} does not find the snapshot in {location} ({failure}); the agent of {} reads it for {target}",
            view.source_node
        ));
    }
    for (target, fault) in unreadable {
        tell(&clean(&format!(
            "{target} finds the snapshot in {location} and cannot read it ({fault}); the agent of {} reads it for {target}",
            view.source_node
        )));
    }
    // Without a target that reads it, the source's agent does, where it was stored.
    let carried = (!nodes.is_empty()).then_some(CarriedTo { location, nodes });
    Ok(Found { view, carried })
}

/// Which snapshot the node's agent finds there.
async fn look(client: &Client, node: &NodeId, location: &str) -> Result<FoundSnapshot, Failure> {
    let query = Query::FindSnapshot {
        node: node.clone(),
        location: location.to_owned(),
    };
    let replies = client.ask_all(query).await?;
    let found = replies.into_iter().find_map(|reply| match reply {
        ApiReply::Found(found) => Some(found),
        _ => None,
    });
    found.ok_or_else(|| Failure::new(FaultKind::Failed, "the coordinator did not answer"))
}

fn nowhere(location: &str, without: &[(&NodeId, Failure)]) -> Failure {
    let looked: Vec<String> = without.iter().map(|(_, why)| why.to_string()).collect();
    unknown(format!(
        "no source has stored a complete snapshot in {location}, and no target finds one there ({})",
        looked.join("; ")
    ))
}

fn unknown(text: String) -> Failure {
    Failure::new(FaultKind::Failed, text)
        .hint("steep-repl snapshot list shows all of them, and where they are")
}
