//! `steep-repl init TARGET... --from SOURCE`.

use steep_protocol::NodeId;
use steep_protocol::message::api::InitRequest;
use steep_protocol::message::job::JobSpec;

use super::apply::{self, Making};
use super::begin::{self, AfterStart};
use crate::args::{StartArgs, Stored};
use crate::client::Client;
use crate::commands::init::plan;
use crate::commands::{Context, nodes};
use crate::failure::{self, Failure};
use crate::follow::Follower;
use crate::signals::Signals;
use crate::terminal::{Terminal, tell};

/// Starts the jobs, and follows them unless `--detach` is given. If there is no job yet when it fails, JSON
/// output has an `init.failed` for each target.
pub(crate) async fn run(args: StartArgs, context: &Context) -> Result<u8, Failure> {
    let targets = args.targets.clone();
    begin::told(go(args, context).await, &targets, context.terminal)
}

async fn go(mut args: StartArgs, context: &Context) -> Result<u8, Failure> {
    if let Some(id) = args.snapshot {
        args.choices.fill(&context.settings);
        let making = Making {
            which: &Stored::Known(id),
            targets: &args.targets,
            verify: true,
            dry_run: args.dry_run,
            after_start: AfterStart::of(args.detach),
        };
        return apply::make(making, |source| args.specs_from(source), context).await;
    }
    let ignored = changed(args.specs()?.first());
    args.choices.fill(&context.settings);
    let specs = args.specs()?;
    let mut signals = Signals::catch()?;
    let mut client = context.client().await?;
    let terminal = context.terminal;

    if args.dry_run {
        let wanted = match args.resume {
            true => InitRequest::Resume(specs),
            false => InitRequest::Copy(specs),
        };
        return plan::show(client, &wanted, &mut signals, terminal).await;
    }
    let after_start = AfterStart::of(args.detach);
    let wanted = if args.resume {
        let active = active(&client, &args.targets, terminal).await?;
        if active.len() == args.targets.len() {
            if !ignored.is_empty() {
                tell(&format!(
                    "a job at work keeps the settings it began with: {} changes nothing; steep-repl init \
                     adjust changes --parallel and --max-rate",
                    ignored.join(" ")
                ));
            }
            let code = attach(&active, after_start, &mut client, &mut signals, terminal).await?;
            client.close().await;
            return Ok(code);
        }
        if let Some(busy) = active.first() {
            let text =
                "this node's job is at work, and those of other nodes that were named are not";
            return Err(Failure::bad_request(text).on(busy).hint(format!(
                "follow it with `steep-repl init progress --node {busy} --follow`, and resume the others alone"
            )));
        }
        InitRequest::Resume(specs)
    } else {
        InitRequest::Copy(specs)
    };
    let done = begin::run(wanted, after_start, &mut client, &mut signals, terminal).await;
    client.close().await;
    done
}

/// The job flags that differ from their default.
fn changed(spec: Option<&JobSpec>) -> Vec<&'static str> {
    let Some(spec) = spec else { return Vec::new() };
    let usual = JobSpec::new(spec.source.clone(), spec.target.clone());
    let all = [
        ("--method", spec.method != usual.method),
        ("--parallel", spec.parallel != usual.parallel),
        ("--schema-sync", spec.schema_mode != usual.schema_mode),
        ("--force", spec.existing != usual.existing),
        ("--timeout", spec.timeout_seconds != usual.timeout_seconds),
        ("--compress", spec.compression != usual.compression),
        ("--max-rate", spec.max_rate != usual.max_rate),
        (
            "--include-schema",
            spec.filter.include_schemas != usual.filter.include_schemas,
        ),
        (
            "--exclude-table",
            spec.filter.exclude_tables != usual.filter.exclude_tables,
        ),
        (
            "--large-table-threshold",
            spec.large_table_threshold != usual.large_table_threshold,
        ),
        ("--yield-to-ddl", spec.yield_to_ddl != usual.yield_to_ddl),
    ];
    let changed = all.into_iter().filter(|(_, is_changed)| *is_changed);
    changed.map(|(flag, _)| flag).collect()
}

/// Follows running jobs or, with `--detach`, names them.
async fn attach(
    targets: &[NodeId],
    after_start: AfterStart,
    client: &mut Client,
    signals: &mut Signals,
    terminal: Terminal,
) -> Result<u8, Failure> {
    if after_start == AfterStart::Follow {
        let follower = Follower::new(client, signals, terminal, targets.to_vec());
        return Ok(follower.attach().await.exit_code());
    }
    let mut jobs = Vec::new();
    for node in targets {
        let view = nodes::job(client, node).await?;
        jobs.extend(view.and_then(|view| Some((node.clone(), view.job_id?))));
    }
    begin::detached(&jobs, terminal);
    Ok(failure::SUCCESS)
}

/// The targets with a running job. Tells the user what the other targets have kept.
async fn active(
    client: &Client,
    targets: &[NodeId],
    terminal: Terminal,
) -> Result<Vec<NodeId>, Failure> {
    let mut active = Vec::new();
    for target in targets {
        let views = nodes::ask(client, Some(target)).await?;
        let Some(view) = views.iter().find(|view| &view.node_id == target) else {
            continue;
        };
        if view.state.is_active() {
            active.push(target.clone());
        } else if let Some(until) = view.kept_until
            && !terminal.json
        {
            tell(&format!(
                "{target}: goes on where it failed, with what it has kept (until {until:.0})"
            ));
        }
    }
    Ok(active)
}
