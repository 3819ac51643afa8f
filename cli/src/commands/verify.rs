//! `steep-repl verify`, `analyze-overlap` and the plan of `repair`: the comparison runs as long as the command.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use indicatif::ProgressBar;
use steep_protocol::limits::VERIFY_DONE_MAX;
use steep_protocol::message::agent::WorkProgress;
use steep_protocol::message::api::{ApiReply, Order};
use steep_protocol::message::verify::{TableReport, VerifyReport, VerifySpec};
use steep_protocol::{FaultKind, Retry, TableName};
use tokio::time::Instant;

use super::{Context, interrupted, interruptible};
use crate::args::{Every, OverlapArgs, VerifyArgs};
use crate::client::Client;
use crate::failure::{self, Failure};
use crate::redial::PAUSE;
use crate::render::{overlap, stored, verify};
use crate::signals::Signals;
use crate::terminal::{Terminal, print, print_json, print_line, tell};

/// How long a comparison waits for agents or a coordinator that it has lost.
const RETRY_FOR: Duration = Duration::from_secs(30 * 60);

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

/// The result. A signal ends the comparison at once: the coordinator notices a connection that is closed. Agents and a
/// coordinator that are lost meanwhile are waited for; what was compared until then stands.
pub(super) async fn compared(spec: VerifySpec, context: &Context) -> Result<VerifyReport, Failure> {
    let mut signals = Signals::catch()?;
    let mut client = tokio::select! {
        client = context.client() => client?,
        interrupt = signals.next() => return Err(interrupted(interrupt)),
    };
    let report = tokio::select! {
        report = follow(&mut client, spec, context.terminal) => report,
        interrupt = signals.next() => Err(interrupted(interrupt)),
    };
    client.close().await;
    report
}

/// Asks until there is a result.
async fn follow(
    client: &mut Client,
    spec: VerifySpec,
    terminal: Terminal,
) -> Result<VerifyReport, Failure> {
    let mut shown = Shown::new(terminal);
    let mut done: Vec<TableReport> = Vec::new();
    let mut until: Option<Instant> = None;
    loop {
        let told = told(&done);
        let mut heard = Heard::Nothing;
        let rest = (&spec, told.clone());
        let attempt = attempt(client, rest, &mut done, (&mut shown, &mut heard)).await;
        let failure = match attempt {
            Ok(report) => return Ok(whole(report, done, &told)),
            Err(failure) => failure,
        };
        until = match (heard, until) {
            (Heard::Something, _) => Some(Instant::now() + RETRY_FOR),
            (Heard::Nothing, until) => until,
        };
        // What never began is refused at once.
        let goes_on = until.is_some_and(|until| Instant::now() < until);
        if !goes_on || !passes(&failure) {
            return Err(failure);
        }
        shown.wait(&failure);
        tokio::time::sleep(PAUSE).await;
        // Where it is the coordinator that is away, the next attempt fails.
        let _ = client.reconnect().await;
    }
}

/// Whether an attempt has begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Heard {
    Nothing,
    Something,
}

/// Whether the comparison can go on once somebody is back.
fn passes(failure: &Failure) -> bool {
    failure.0.kind == FaultKind::Unreachable || failure.0.retry != Retry::Never
}

/// Compares what is not done yet.
async fn attempt(
    client: &Client,
    (spec, told): (&VerifySpec, Vec<TableReport>),
    done: &mut Vec<TableReport>,
    (shown, heard): (&mut Shown, &mut Heard),
) -> Result<VerifyReport, Failure> {
    let spec = Box::new(spec.clone());
    let order = match told.is_empty() {
        true => Order::Verify(spec),
        false => Order::VerifyRest { spec, done: told },
    };
    let mut replies = client.ask(order).await?;
    while let Some(reply) = replies.next().await? {
        match reply {
            ApiReply::Verifying(work) => {
                *heard = Heard::Something;
                shown.show(&work);
            }
            ApiReply::TableCompared(table) => {
                *heard = Heard::Something;
                done.retain(|known| known.name != table.name);
                done.push(*table);
            }
            ApiReply::Compared(report) => return Ok(*report),
            _ => {}
        }
    }
    Err(Failure::new(
        FaultKind::Failed,
        "the coordinator did not answer",
    ))
}

/// What the coordinator is told of the tables that are done: the largest ones, as many as an order has room for.
fn told(done: &[TableReport]) -> Vec<TableReport> {
    /// Numbers and lengths of a table, at most.
    const NUMBERS: usize = 64;
    let mut largest: Vec<&TableReport> = done
        .iter()
        .filter(|table| table.problem.is_none())
        .collect();
    largest.sort_by_key(|table| std::cmp::Reverse(table.rows_a.max(table.rows_b)));
    let mut room = VERIFY_DONE_MAX;
    let fitting = largest.into_iter().take_while(|table| {
        let name = table.name.schema.as_str().len() + table.name.table.as_str().len();
        room = room.saturating_sub(name + NUMBERS);
        room > 0
    });
    fitting.map(TableReport::summary).collect()
}

/// The report, with the rows that earlier attempts have found in the tables that the last one left out.
fn whole(
    mut report: VerifyReport,
    done: Vec<TableReport>,
    left_out: &[TableReport],
) -> VerifyReport {
    let left_out: HashSet<&TableName> = left_out.iter().map(|table| &table.name).collect();
    let done = done
        .into_iter()
        .filter(|table| left_out.contains(&table.name));
    let mut done: HashMap<TableName, TableReport> =
        done.map(|table| (table.name.clone(), table)).collect();
    for table in &mut report.tables {
        if let Some(earlier) = done.remove(&table.name) {
            *table = earlier;
        }
    }
    report
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

    /// Says, once, for whom the comparison waits.
    fn wait(&mut self, failure: &Failure) {
        let minutes = RETRY_FOR.as_secs() / 60;
        let line = format!(
            "waiting for up to {minutes} min, then the comparison goes on: {}",
            failure::line(&failure.0)
        );
        if self.terminal.json || line == self.line {
            return;
        }
        match &self.bar {
            Some(bar) => bar.suspend(|| tell(&line)),
            None => tell(&line),
        }
        self.line = line;
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
