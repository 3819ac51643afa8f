//! `steep-repl switchover`: what speaks against it, then the switchover, for as long as the command runs.

use std::time::Duration;

use steep_protocol::FaultKind;
use steep_protocol::message::api::{ApiReply, Order, Query};
use steep_protocol::message::facts::{Finding, Severity};
use steep_protocol::message::switchover::{SwitchoverSpec, SwitchoverStep, SwitchoverView};

use super::{Context, nodes};
use crate::args::SwitchoverArgs;
use crate::client::{Client, ReplyError};
use crate::failure::{self, Failure};
use crate::render::{findings, switchover};
use crate::signals::Signals;
use crate::terminal::{self, Terminal, print, print_json, print_line, tell};

/// How often an interrupted command looks at how the switchover ends.
const LOOK_EVERY: Duration = Duration::from_millis(200);

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
    let followed = follow(&client, &spec, terminal, &mut signals).await;
    // The coordinator undoes a switchover that is not decided once nobody is connected.
    client.close().await;
    let view = followed?;
    match terminal.json {
        true => print_json(&switchover::completed_json(&view)),
        false => print(&switchover::completed(&view)),
    }
    match view.fault {
        None => Ok(failure::SUCCESS),
        Some(fault) => {
            let text = format!(
                "the switchover is done, and {} takes writes; the way back is not: {}",
                view.to, fault.message
            );
            Err(Failure::new(FaultKind::Failed, text).hint(fault.hint))
        }
    }
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

/// Shows each step; returns how it was when it was completed. Interrupted, it has the switchover undone, unless it is
/// decided, and waits for its end.
async fn follow(
    client: &Client,
    spec: &SwitchoverSpec,
    terminal: Terminal,
    signals: &mut Signals,
) -> Result<SwitchoverView, Failure> {
    let order = Order::Switchover(Box::new(spec.clone()));
    let mut replies = client.ask(order).await?;
    let mut shown = Shown {
        last: None,
        terminal,
    };
    loop {
        let reply = tokio::select! {
            reply = replies.next() => reply,
            _ = signals.next() => {
                // Nobody waits for it from here on: the coordinator undoes it.
                drop(replies);
                return interrupted(client, spec, shown, signals).await;
            }
        };
        match reply {
            Ok(Some(ApiReply::Switchover(view))) => shown.show(view),
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
    shown.last.map(|view| *view).ok_or_else(|| {
        let text = "the coordinator did not say how the switchover ended";
        Failure::new(FaultKind::Failed, text).on(&spec.to)
    })
}

/// The steps that were shown.
struct Shown {
    last: Option<Box<SwitchoverView>>,
    terminal: Terminal,
}

impl Shown {
    fn show(&mut self, view: Box<SwitchoverView>) {
        let seen = |view: &SwitchoverView| {
            let hindrance = view.hindrance.as_ref();
            (view.step, hindrance.map(|fault| fault.message.clone()))
        };
        let news = self.last.as_deref().map(seen) != Some(seen(&view));
        if news && self.terminal.json {
            print_json(&switchover::step_json(&view));
        } else if news {
            print_line(&switchover::progress(&view));
        }
        self.last = Some(view);
    }
}

/// Waits until the switchover is undone or, if it was decided before, completed.
async fn interrupted(
    client: &Client,
    spec: &SwitchoverSpec,
    mut shown: Shown,
    signals: &mut Signals,
) -> Result<SwitchoverView, Failure> {
    let Some(id) = shown.last.as_ref().map(|view| view.switchover_id) else {
        return Err(left(spec));
    };
    tell("interrupted: waiting for how the switchover ends; once more leaves it alone");
    let mut decided = false;
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            _ = signals.next() => return Err(left(spec)),
        }
        let nodes = nodes::ask(client, Some(&spec.from)).await?;
        let mut views = nodes.into_iter().filter_map(|node| node.switchover);
        let Some(view) = views.find(|view| view.switchover_id == id) else {
            return Err(left(spec));
        };
        if !decided && view.step > SwitchoverStep::Decide && view.step <= SwitchoverStep::Completed
        {
            decided = true;
            tell(&format!(
                "{} had given its writes away already: the switchover goes on",
                spec.from
            ));
        }
        shown.show(view.clone());
        if view.step == SwitchoverStep::Completed {
            return Ok(*view);
        }
        if view.is_undone() {
            let text = format!(
                "interrupted, and undone: {} takes writes as before",
                spec.from
            );
            return Err(Failure::new(FaultKind::Cancelled, text));
        }
    }
}

fn left(spec: &SwitchoverSpec) -> Failure {
    let text = format!(
        "interrupted: {} gets its writes back, unless it had given them away already",
        spec.from
    );
    let hint = format!("steep-repl status {} shows which", spec.from);
    Failure::new(FaultKind::Cancelled, text).hint(hint)
}
