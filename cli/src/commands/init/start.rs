//! `steep-repl init TARGET... --from SOURCE`.

use steep_protocol::message::api::{ApiReply, ApiRequest};
use steep_protocol::message::facts::Finding;
use steep_protocol::message::job::{Confirmation, JobSpec, SchemaMode};
use steep_protocol::{FaultKind, JobId, NodeId, NodeState};

use crate::args::StartArgs;
use crate::client::Client;
use crate::commands::doctor::{self, SCHEMA_MISMATCH};
use crate::commands::init::plan;
use crate::commands::{Context, nodes};
use crate::failure::{self, Failure};
use crate::follow::Follower;
use crate::render::{findings, json};
use crate::signals::Signals;
use crate::terminal::{self, Terminal, print_line, tell};

/// Starts the jobs, and follows them unless told not to. Where that fails before there is a job,
/// programs are told with an `init.failed` for each target.
pub(crate) async fn run(mut args: StartArgs, context: &Context) -> Result<u8, Failure> {
    let choices = &mut args.choices;
    choices.schema_sync = choices.schema_sync.or(context.settings.schema_sync);
    match go(&args, context).await {
        Err(failure) if context.terminal.json => {
            for target in failure.concerns(&args.targets) {
                print_line(&json::line(&json::Failed::job(&failure.0, target)));
            }
            tell(&failure::render(&failure.0, context.terminal.err));
            Ok(failure.exit_code())
        }
        done => done,
    }
}

async fn go(args: &StartArgs, context: &Context) -> Result<u8, Failure> {
    let parallel = Some(context.settings.parallel);
    let mut specs = args.specs(parallel)?;
    let mut signals = Signals::catch()?;
    let mut client = context.client().await?;
    let terminal = context.terminal;

    if args.dry_run {
        return plan::show(client, &specs, &mut signals, terminal).await;
    }
    if args.resume {
        let active = active(&client, &args.targets, terminal).await?;
        if active.len() == args.targets.len() {
            let follower = Follower::new(&mut client, &mut signals, terminal, active);
            let left = follower.attach().await;
            client.close().await;
            return Ok(left.exit_code());
        }
        if let Some(busy) = active.first() {
            return Err(Failure::bad_request("a job is at work on this target, and not on all that were named")
                .on(busy)
                .hint(format!("follow it with `steep-repl init progress --node {busy} --follow`, and name the others alone")));
        }
    }
    let asks = |spec: &JobSpec| {
        spec.schema_mode == SchemaMode::Manual && spec.confirmation == Confirmation::Needed
    };
    if specs.iter().any(asks) {
        specs = confirmed(&client, specs, &mut signals, terminal).await?;
    }
    plan::announce(&client, &specs, &mut signals, terminal).await?;
    if args.detach {
        let jobs = accepted(&client, specs).await?;
        client.close().await;
        for (node, job) in &jobs {
            print_line(&if terminal.json {
                json::line(&json::Detached::new(node, *job))
            } else {
                format!("{node}: job {job}")
            });
        }
        return Ok(failure::SUCCESS);
    }
    let follower = Follower::new(&mut client, &mut signals, terminal, args.targets.clone());
    let left = follower.start(ApiRequest::Init { specs }).await;
    client.close().await;
    Ok(left.exit_code())
}

/// Those targets that have a job at work; says what becomes of the others.
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
        } else if !terminal.json {
            let what = match view.state {
                NodeState::Failed => {
                    "its last job failed; what it left is cleaned up, and a new one runs from the start"
                }
                _ => "no job is at work, so a new one begins",
            };
            tell(&format!("{target}: {what}"));
        }
    }
    Ok(active)
}

/// Shows how the schemas differ and has it confirmed. Without a difference nothing is asked.
async fn confirmed(
    client: &Client,
    mut specs: Vec<JobSpec>,
    signals: &mut Signals,
    terminal: Terminal,
) -> Result<Vec<JobSpec>, Failure> {
    debug_assert!(
        specs
            .iter()
            .all(|spec| spec.schema_mode == SchemaMode::Manual)
    );
    let found = tokio::select! {
        found = doctor::ask(client, specs.clone()) => found?,
        _ = signals.next() => return Err(Failure::new(FaultKind::Cancelled, "interrupted before anything was changed")),
    };
    let mut differing = None;
    for (target, all) in &found {
        let differences: Vec<Finding> = all
            .iter()
            .filter(|finding| finding.code == SCHEMA_MISMATCH)
            .cloned()
            .collect();
        if !differences.is_empty() {
            differing.get_or_insert(target);
            tell(&findings::report(target, &differences, terminal.err));
        }
    }
    if let Some(target) = differing {
        if !terminal.interactive {
            return Err(Failure::new(
                FaultKind::SchemaMismatch,
                "the schemas differ, and nobody can be asked to confirm",
            )
            .on(target)
            .hint("look at the differences above and give --yes to go on with them"));
        }
        let answer = tokio::select! {
            answer = terminal::confirm("Go on with these differences?") => answer,
            _ = signals.next() => false,
        };
        if !answer {
            return Err(Failure::new(
                FaultKind::SchemaMismatch,
                "the differences were not confirmed",
            )
            .on(target)
            .hint("make the schemas alike, or use --schema-sync auto"));
        }
    }
    for spec in &mut specs {
        spec.confirmation = Confirmation::Given;
    }
    Ok(specs)
}

/// Starts the jobs and waits no longer than until they are stored.
async fn accepted(client: &Client, specs: Vec<JobSpec>) -> Result<Vec<(NodeId, JobId)>, Failure> {
    let mut replies = client.ask(&ApiRequest::Init { specs }).await?;
    while let Some(reply) = replies.next().await? {
        if let ApiReply::Accepted { jobs } = reply {
            return Ok(jobs);
        }
    }
    Err(Failure::new(
        FaultKind::Failed,
        "the coordinator did not say that it has the jobs",
    ))
}
