//! `steep-repl verify`, `analyze-overlap` and the plan of `repair`: the comparison runs as long as the command.

use indicatif::ProgressBar;
use steep_protocol::FaultKind;
use steep_protocol::message::agent::WorkProgress;
use steep_protocol::message::api::{ApiReply, Order};
use steep_protocol::message::verify::{TableReport, VerifyReport, VerifySpec};

use super::{Context, interrupted, interruptible};
use crate::args::{Every, OverlapArgs, VerifyArgs};
use crate::client::Client;
use crate::failure::{self, Failure};
use crate::render::{overlap, stored, verify};
use crate::signals::Signals;
use crate::terminal::{Terminal, print, print_json, print_line, tell};

/// Shows how far the comparison is, then its result.
pub(super) async fn run(args: VerifyArgs, context: &Context) -> Result<u8, Failure> {
    let terminal = context.terminal;
    if let Some(every) = args.every {
        return interruptible(schedule(&args, every, context)).await;
    }
    let report = compared(args.spec(&context.settings), context).await?;
    if terminal.json {
        print_json(&verify::json(&report, args.rows.values()));
    } else {
        print(&verify::report(&report, (&args.a, &args.b), terminal.out));
    }
    verdict(&report)
}

/// Has the coordinator compare regularly, or no longer.
async fn schedule(args: &VerifyArgs, every: Every, context: &Context) -> Result<u8, Failure> {
    let spec = args.schedule(every, &context.settings);
    let client = context.client().await?;
    client
        .ask_all(Order::ScheduleVerify(Box::new(spec.clone())))
        .await?;
    client.close().await;
    match context.terminal.json {
        true => print_json(&verify::schedule_json(&spec)),
        false => print_line(&verify::schedule(&spec)),
    }
    Ok(failure::SUCCESS)
}

/// The exit code. Rows that differ count for more than tables that could not be read.
///
/// # Errors
/// The tables that could not be read, where all others are equal.
pub(super) fn verdict(report: &VerifyReport) -> Result<u8, Failure> {
    let (unread, read): (Vec<&TableReport>, Vec<_>) = report
        .tables
        .iter()
        .partition(|table| table.is_unreadable());
    if !read.iter().all(|table| table.is_equal()) {
        return Ok(failure::ROWS_DIFFER);
    }
    match verify::unreadable(&unread) {
        None => Ok(failure::SUCCESS),
        Some((text, hint)) => Err(Failure::new(FaultKind::Failed, text).hint(hint)),
    }
}

/// The same, counted as a merge needs it. Tables without a common key are refused.
pub(super) async fn overlap(args: OverlapArgs, context: &Context) -> Result<u8, Failure> {
    let terminal = context.terminal;
    let report = compared(args.spec(&context.settings), context).await?;
    if terminal.json {
        print_json(&overlap::json(&report, args.rows.values()));
    } else {
        print(&overlap::report(&report, (&args.a, &args.b), terminal.out));
    }
    let refused = overlap::refused(&report);
    if refused.is_empty() {
        return Ok(failure::SUCCESS);
    }
    let text = format!("not counted: {}", refused.join(", "));
    let hint = "the list says why; give tables without a key that is unique on both nodes a primary key, or name the others with --tables";
    Err(Failure::new(FaultKind::Failed, text).hint(hint))
}

/// The result. A signal ends the comparison at once: the coordinator notices a connection that is closed.
pub(super) async fn compared(spec: VerifySpec, context: &Context) -> Result<VerifyReport, Failure> {
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
