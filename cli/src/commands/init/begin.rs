//! Starts jobs: asks for confirmation, announces the statements of auto, then follows or detaches.

use steep_protocol::message::api::{ApiReply, InitRequest, Order};
use steep_protocol::message::facts::Finding;
use steep_protocol::{FaultKind, JobId, NodeId};

use crate::client::Client;
use crate::commands::doctor::SCHEMA_MISMATCH;
use crate::commands::init::{plan, request};
use crate::failure::{self, Failure};
use crate::follow::Follower;
use crate::render::{findings, json};
use crate::signals::Signals;
use crate::terminal::{self, Terminal, print_json, print_line, tell};

/// What to do once the job has started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AfterStart {
    /// Follow it to its end.
    Follow,
    /// Return once it is stored.
    Detach,
}

impl AfterStart {
    pub(super) fn of(detach: bool) -> Self {
        if detach { Self::Detach } else { Self::Follow }
    }
}

/// Starts the jobs.
pub(super) async fn run(
    mut wanted: InitRequest,
    after_start: AfterStart,
    client: &mut Client,
    signals: &mut Signals,
    terminal: Terminal,
) -> Result<u8, Failure> {
    if request::asks(&wanted) {
        confirmed(client, &wanted, signals, terminal).await?;
        request::confirm(&mut wanted);
    }
    plan::announce(client, &wanted, signals, terminal).await?;
    if after_start == AfterStart::Detach {
        detached(&accepted(client, wanted).await?, terminal);
        return Ok(failure::SUCCESS);
    }
    let targets = wanted.specs().iter().map(|spec| spec.target.clone());
    let follower = Follower::new(client, signals, terminal, targets.collect());
    Ok(follower.start(wanted).await.exit_code())
}

/// Prints the ids of jobs that are not followed.
pub(super) fn detached(jobs: &[(NodeId, JobId)], terminal: Terminal) {
    for (node, job) in jobs {
        if terminal.json {
            print_json(&json::detached(node, *job));
        } else {
            print_line(&format!("{node}: job {job}"));
        }
    }
}

/// Shows how the schemas differ and asks for confirmation if they do.
async fn confirmed(
    client: &Client,
    wanted: &InitRequest,
    signals: &mut Signals,
    terminal: Terminal,
) -> Result<(), Failure> {
    let found = request::look(wanted, client, signals).await?;
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
    let Some(target) = differing else {
        return Ok(());
    };
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
    if answer {
        return Ok(());
    }
    Err(Failure::new(
        FaultKind::SchemaMismatch,
        "the differences were not confirmed",
    )
    .on(target)
    .hint("make the schemas alike, or use --schema-sync auto"))
}

/// Starts the jobs and waits until they are stored.
async fn accepted(client: &Client, request: InitRequest) -> Result<Vec<(NodeId, JobId)>, Failure> {
    let mut replies = client.ask(Order::Init(request)).await?;
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

/// Prints a failure before there is a job as an `init.failed` for each target, in JSON output.
pub(super) fn told(
    done: Result<u8, Failure>,
    targets: &[NodeId],
    terminal: Terminal,
) -> Result<u8, Failure> {
    match done {
        Err(failure) if terminal.json => {
            for target in failure.concerns(targets) {
                print_json(&json::not_begun(&failure.0, target));
            }
            tell(&failure::render(&failure.0, terminal.err));
            Ok(failure.exit_code())
        }
        done => done,
    }
}
