//! `steep-repl switchover`: what speaks against it, then the switchover, for as long as the command runs.

use steep_protocol::FaultKind;
use steep_protocol::message::api::{ApiReply, Order, Query};
use steep_protocol::message::facts::{Finding, Severity};
use steep_protocol::message::switchover::{SwitchoverSpec, SwitchoverView};

use super::Context;
use crate::args::SwitchoverArgs;
use crate::client::{Client, ReplyError};
use crate::failure::{self, Failure};
use crate::render::{findings, switchover};
use crate::signals::Signals;
use crate::terminal::{self, Terminal, print, print_json, print_line, tell};

/// Shows the findings, asks on a terminal, and follows the switchover until its end.
pub(super) async fn run(args: SwitchoverArgs, context: &Context) -> Result<u8, Failure> {
    let mut signals = Signals::catch()?;
    let terminal = context.terminal;
    let client = context.client().await?;
    let spec = args.spec();
    let found = plan(&spec, &client).await?;
    let errors = found
        .iter()
        .any(|finding| finding.severity == Severity::Error);
    if args.dry_run || errors {
        client.close().await;
        match terminal.json {
            true => print_json(&switchover::plan_json(&spec, &found)),
            false => print(&findings::report(&spec.to, &found, terminal.out)),
        }
        return match (args.dry_run, errors) {
            (_, false) => Ok(failure::SUCCESS),
            (true, true) => Ok(failure::ERROR),
            (false, true) => {
                let text = "the switchover was not begun, and nothing was changed";
                Err(Failure::new(FaultKind::Failed, text).on(&spec.to))
            }
        };
    }
    if !terminal.json && !found.is_empty() {
        print(&findings::report(&spec.to, &found, terminal.out));
    }
    if !args.yes {
        if !terminal.interactive {
            let text = "nobody can be asked whether to move writes: nothing was changed";
            let failure = Failure::new(FaultKind::BadRequest, text).on(&spec.to);
            return Err(failure.hint("repeat the command with --yes"));
        }
        let question = format!("Stop writes to {} and move them to {}?", spec.from, spec.to);
        let confirmed = tokio::select! {
            confirmed = terminal::confirm(&question) => confirmed,
            _ = signals.next() => false,
        };
        if !confirmed {
            return Err(Failure::new(FaultKind::Cancelled, "nothing was changed").on(&spec.to));
        }
    }
    let followed = tokio::select! {
        followed = follow(&client, &spec, terminal) => followed,
        _ = signals.next() => Err(interrupted(&spec)),
    };
    // The coordinator undoes a switchover that is not decided once nobody is connected.
    client.close().await;
    let view = followed?;
    match terminal.json {
        true => print_json(&switchover::completed_json(&view)),
        false => print(&switchover::completed(&view)),
    }
    Ok(failure::SUCCESS)
}

fn interrupted(spec: &SwitchoverSpec) -> Failure {
    let text = format!(
        "interrupted: {} gets its writes back, unless it had given them away already",
        spec.from
    );
    let hint = format!("steep-repl status {} shows which", spec.from);
    Failure::new(FaultKind::Cancelled, text).hint(hint)
}

async fn plan(spec: &SwitchoverSpec, client: &Client) -> Result<Vec<Finding>, Failure> {
    let query = Query::SwitchoverPlan(Box::new(spec.clone()));
    let replies = client.ask_all(query).await?;
    let found = replies.into_iter().find_map(|reply| match reply {
        ApiReply::Findings { findings, .. } => Some(findings),
        _ => None,
    });
    found.ok_or_else(|| {
        let text = "the coordinator did not say what speaks against it";
        Failure::new(FaultKind::Failed, text).on(&spec.to)
    })
}

/// Shows each step; returns how it was when it was completed.
async fn follow(
    client: &Client,
    spec: &SwitchoverSpec,
    terminal: Terminal,
) -> Result<SwitchoverView, Failure> {
    let order = Order::Switchover(Box::new(spec.clone()));
    let mut replies = client.ask(order).await?;
    let mut last: Option<Box<SwitchoverView>> = None;
    loop {
        match replies.next().await {
            Ok(Some(ApiReply::Switchover(view))) => {
                let news = last.as_ref().is_none_or(|last| last.step != view.step);
                if news && terminal.json {
                    print_json(&switchover::step_json(&view));
                } else if news {
                    print_line(&switchover::step(&view));
                }
                last = Some(view);
            }
            Ok(Some(_)) => {}
            Ok(None) => break,
            Err(ReplyError::Refused(failure)) => return Err(failure),
            Err(ReplyError::Lost(failure)) => {
                tell(&format!(
                    "see steep-repl status {}: the switchover is undone unless it was decided",
                    spec.from
                ));
                return Err(failure);
            }
        }
    }
    last.map(|view| *view).ok_or_else(|| {
        let text = "the coordinator did not say how the switchover ended";
        Failure::new(FaultKind::Failed, text).on(&spec.to)
    })
}
