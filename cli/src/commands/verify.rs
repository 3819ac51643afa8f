//! `steep-repl verify` and `analyze-overlap`: the comparison runs as long as the command.

use indicatif::ProgressBar;
use steep_protocol::FaultKind;
use steep_protocol::message::agent::WorkProgress;
use steep_protocol::message::api::{ApiReply, Order};
use steep_protocol::message::verify::{VerifyReport, VerifySpec};

use super::{Context, interrupted};
use crate::args::{OverlapArgs, VerifyArgs};
use crate::client::Client;
use crate::failure::{self, Failure};
use crate::render::{overlap, stored, verify};
use crate::signals::Signals;
use crate::terminal::{Terminal, print, print_json, tell};

/// Shows how far the comparison is, then its result.
pub(super) async fn run(args: VerifyArgs, context: &Context) -> Result<u8, Failure> {
    let terminal = context.terminal;
    let report = compared(args.spec(&context.settings), context).await?;
    if terminal.json {
        print_json(&verify::json(&report));
    } else {
        print(&verify::report(&report, (&args.a, &args.b), terminal.out));
    }
    Ok(match report.is_equal() {
        true => failure::SUCCESS,
        false => failure::ROWS_DIFFER,
    })
}

/// The same, counted as a merge needs it. Tables without a common key are refused.
pub(super) async fn overlap(args: OverlapArgs, context: &Context) -> Result<u8, Failure> {
    let terminal = context.terminal;
    let report = compared(args.spec(&context.settings), context).await?;
    if terminal.json {
        print_json(&overlap::json(&report));
    } else {
        print(&overlap::report(&report, (&args.a, &args.b), terminal.out));
    }
    let refused = overlap::refused(&report);
    if refused.is_empty() {
        return Ok(failure::SUCCESS);
    }
    let text = format!("no key is unique on both nodes: {}", refused.join(", "));
    let hint = "give these tables a primary key on both nodes, or name the others with --tables";
    Err(Failure::new(FaultKind::Failed, text).hint(hint))
}

/// The result. A signal ends the comparison at once: the coordinator notices a connection that is closed.
async fn compared(spec: VerifySpec, context: &Context) -> Result<VerifyReport, Failure> {
    let mut signals = Signals::catch()?;
    let client = tokio::select! {
        client = context.client() => client?,
        interrupt = signals.next() => return Err(interrupted(interrupt)),
    };
    let order = Order::Verify(Box::new(spec));
    let report = tokio::select! {
        report = follow(&client, order, context.terminal) => report,
        interrupt = signals.next() => Err(interrupted(interrupt)),
    };
    client.close().await;
    report
}

async fn follow(
    client: &Client,
    order: Order,
    terminal: Terminal,
) -> Result<VerifyReport, Failure> {
    let mut replies = client.ask(order).await?;
    let mut shown = Shown::new(terminal);
    while let Some(reply) = replies.next().await? {
        match reply {
            ApiReply::Verifying(work) => shown.show(&work),
            ApiReply::Compared(report) => return Ok(*report),
            _ => {}
        }
    }
    Err(Failure::new(
        FaultKind::Failed,
        "the coordinator did not answer",
    ))
}

/// What is shown of the progress. Dropped, the bar is gone.
struct Shown {
    bar: Option<ProgressBar>,
    terminal: Terminal,
    line: String,
}

impl Shown {
    fn new(terminal: Terminal) -> Self {
        let bar = terminal.live.then(stored::bar);
        let line = String::new();
        Self {
            bar,
            terminal,
            line,
        }
    }

    fn show(&mut self, work: &WorkProgress) {
        if let Some(bar) = &self.bar {
            verify::advance(bar, work);
            return;
        }
        let line = verify::line(work);
        // The output is the result alone.
        if !self.terminal.json && line != self.line {
            tell(&line);
            self.line = line;
        }
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
