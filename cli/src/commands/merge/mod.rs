//! `steep-repl init A --from B --mode bidirectional-merge`: compares, shows what would be written, asks, lets changes flow
//! both ways, has the rows written page by page, and compares again until both nodes are equal.
//!
//! Every step finds what is done already, so the command goes on when it is run again after whatever stopped it.

mod plan;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use steep_protocol::message::api::Order;
use steep_protocol::message::merge::MergeSpec;
use steep_protocol::message::repair::{MergeSide, PagePlace, RepairCounts, RepairSpec};
use steep_protocol::message::verify::{Relation, VerifyReport};
use steep_protocol::{Fault, FaultKind, NodeId, NodeState, Retry};

pub(crate) use self::plan::Counts;
use self::plan::Plan;
use super::{Context, interrupted, nodes, repair, verify as comparison};
use crate::args::{MergeArgs, StartArgs, Strategy};
use crate::client::Client;
use crate::failure::{self, Failure};
use crate::render::merge::{self, Outcome};
use crate::render::overlap;
use crate::signals::Signals;
use crate::terminal::{self, print, print_json, tell};

/// Rounds in which nothing could be written before the command gives up.
const IDLE_ROUNDS: u32 = 5;

/// Clashes named in an error; the plan has all of them.
const NAMED: usize = 5;

/// How long the nodes may take to be synchronized once their rows are proved to be equal.
const SYNCHRONIZED_WITHIN: Duration = Duration::from_secs(60);

/// How long what an earlier merge has left may take to be removed.
const LEFTOVERS_WITHIN: Duration = Duration::from_secs(60);

/// Between two looks at the nodes.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Merges two nodes, or plans to.
pub(super) async fn run(args: StartArgs, context: &Context) -> Result<u8, Failure> {
    let args = MergeArgs::of(&args, &context.settings)?;
    let began = Instant::now();
    let existing = args.plan.as_deref().filter(|path| path.exists());
    let (plan, proved) = match existing {
        Some(path) if args.dry_run => {
            let text = format!("{} is there already", path.display());
            let hint = "name a new file, or leave out --dry-run to merge by this one";
            return Err(Failure::bad_request(text).hint(hint));
        }
        Some(path) => (read(path, &args)?, false),
        None => {
            let (plan, report) = compare(&args, context).await?;
            if let Some(path) = &args.plan {
                write(path, &plan, &args)?;
            }
            (plan, is_proof(&report))
        }
    };
    show(&args, &plan, context);
    if args.dry_run {
        return Ok(failure::SUCCESS);
    }
    if plan.undecided() > 0 {
        return undecided(&args, &plan, args.plan.as_deref());
    }
    let mut written = Outcome::default();
    if !proved {
        confirm(&args, &plan, context).await?;
        begin(&args, context).await?;
        let merged = until_equal(&args, plan, &mut written, context).await;
        if let Some(code) = merged.map_err(|stopped| told(stopped, &written, &args))? {
            return Ok(code);
        }
    }
    synchronized(&args, context).await?;
    written.seconds = began.elapsed().as_secs_f64();
    let pair = (&args.a, &args.b);
    match context.terminal.json {
        true => print_json(&merge::done_json(&written, pair)),
        false => print(&merge::done(&written, pair, context.terminal.out)),
    }
    Ok(failure::SUCCESS)
}

/// Whether a comparison has shown both nodes to be equal while changes flow both ways.
fn is_proof(report: &VerifyReport) -> bool {
    let settled = report.tables.iter().all(|table| table.changing == 0);
    report.relation == Relation::Replicates && settled && report.is_equal()
}

/// What differs now. Tables whose rows cannot be told apart are refused by name.
async fn compare(args: &MergeArgs, context: &Context) -> Result<(Plan, VerifyReport), Failure> {
    let mut report = comparison::compared(args.spec(), context).await?;
    let refused = overlap::refused(&report);
    if !refused.is_empty() {
        let text = format!("cannot be merged: {}", refused.join(", "));
        let hint = "steep-repl analyze-overlap says why; give tables without a key that is unique on both nodes a primary key";
        return Err(Failure::new(FaultKind::Failed, text).hint(hint));
    }
    let plan = report.plan.take().ok_or_else(|| {
        let text = "the node's agent made no plan";
        let hint = "run the same version on the coordinator and on all agents";
        Failure::new(FaultKind::Failed, text).on(&args.b).hint(hint)
    })?;
    let nodes = (args.a.clone(), args.b.clone());
    Ok((Plan::new(nodes, plan, args.strategy), report))
}

fn show(args: &MergeArgs, plan: &Plan, context: &Context) {
    let (counts, path) = (plan.counts(), args.plan.as_deref());
    match (context.terminal.json, args.dry_run) {
        (true, true) => print_json(&merge::planned_json(&counts, path)),
        (true, false) => {}
        (false, _) => {
            let pair = (&args.a, &args.b);
            print(&merge::planned(&counts, pair, context.terminal.out));
        }
    }
}

/// Rows are left that the strategy cannot decide. Nothing is written before somebody has.
fn undecided(args: &MergeArgs, plan: &Plan, path: Option<&Path>) -> Result<u8, Failure> {
    let rows = plan.undecided();
    let mut text = format!("{rows} rows are undecided, so nothing was written");
    if args.strategy == Strategy::LastModified && plan.undated() > 0 {
        let undated = plan.undated();
        text.push_str(&format!(
            "; of {undated}, nobody can tell which one was modified last"
        ));
    }
    for clash in plan.clashes(NAMED) {
        text.push_str(&format!("; {clash}"));
    }
    let hint = match path {
        Some(path) => format!(
            "put \"a\" (the row of {}) or \"b\" (that of {}) in the place of null as their decision in {}, then run the command with that --plan",
            args.a,
            args.b,
            path.display()
        ),
        None => "give --plan FILE to get a file in which to decide them".to_owned(),
    };
    if args.strategy == Strategy::Manual {
        tell(&format!("{text}\nhint: {hint}"));
        return Ok(failure::ROWS_DIFFER);
    }
    Err(Failure::new(FaultKind::Failed, text).hint(hint))
}

fn write(path: &Path, plan: &Plan, args: &MergeArgs) -> Result<(), Failure> {
    let lines = plan.to_lines(args.strategy, &Timestamp::now().to_string());
    steep_certs::write_key_file(path, lines.as_bytes())
        .map_err(|error| Failure::new(FaultKind::Failed, error.to_string()))
}

fn read(path: &Path, args: &MergeArgs) -> Result<Plan, Failure> {
    let failed = |text: String| Failure::bad_request(format!("{}: {text}", path.display()));
    let length = std::fs::metadata(path).map_err(|error| failed(error.to_string()))?;
    if length.len() > repair::FILE_MAX {
        let text = format!("the file has more than {} bytes", repair::FILE_MAX);
        return Err(failed(text));
    }
    let text = std::fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
    let plan = Plan::parse(&text).map_err(|error| failed(error.to_string()))?;
    if (&plan.node_a, &plan.node_b) != (&args.a, &args.b) {
        let text = format!("the plan is for {} and {}", plan.node_a, plan.node_b);
        return Err(failed(text).hint("name these nodes in this order, or another plan"));
    }
    Ok(plan)
}

/// Asks on a terminal, unless that is settled.
async fn confirm(args: &MergeArgs, plan: &Plan, context: &Context) -> Result<(), Failure> {
    if args.yes {
        return Ok(());
    }
    if !context.terminal.interactive {
        let text = "nobody can be asked whether to merge: nothing was changed";
        return Err(Failure::bad_request(text).hint("repeat the command with --yes"));
    }
    let mut signals = Signals::catch()?;
    let (a, b) = (&args.a, &args.b);
    let question = format!("Merge {a} and {b}, {} rows?", plan.rows());
    let confirmed = tokio::select! {
        confirmed = terminal::confirm(&question) => confirmed,
        _ = signals.next() => false,
    };
    match confirmed {
        true => Ok(()),
        false => Err(Failure::new(FaultKind::Cancelled, "nothing was changed")),
    }
}

/// Waits until changes flow both ways.
async fn begin(args: &MergeArgs, context: &Context) -> Result<(), Failure> {
    let mut signals = Signals::catch()?;
    let client = context.client().await?;
    let order = Order::Merge(Box::new(MergeSpec {
        node_a: args.a.clone(),
        node_b: args.b.clone(),
        sequences: args.sequences,
    }));
    if !context.terminal.json {
        tell("changes begin to flow both ways");
    }
    let until = Instant::now() + LEFTOVERS_WITHIN;
    let begun = loop {
        let begun = tokio::select! {
            begun = client.ask_all(order.clone()) => begun.map(drop),
            interrupt = signals.next() => Err(interrupted(interrupt)),
        };
        // What an earlier merge has left is being removed.
        match &begun {
            Err(failure) if failure.0.retry == Retry::Backoff && Instant::now() < until => {
                tokio::time::sleep(LOOK_EVERY).await;
            }
            _ => break begun,
        }
    };
    client.close().await;
    begun
}

/// Writes the plan and compares, again and again. Returns an exit code where the operator has to decide.
async fn until_equal(
    args: &MergeArgs,
    mut plan: Plan,
    written: &mut Outcome,
    context: &Context,
) -> Result<Option<u8>, Failure> {
    let mut idle = 0;
    loop {
        let before = written.rows_a + written.rows_b;
        apply(args, &plan, written, context).await?;
        written.rounds += 1;
        let (next, report) = compare(args, context).await?;
        if is_proof(&report) {
            return Ok(None);
        }
        let progress = written.rows_a + written.rows_b > before;
        idle = if progress { 0 } else { idle + 1 };
        plan = next;
        if plan.undecided() > 0 {
            if !context.terminal.json {
                show(args, &plan, context);
            }
            let path = next_path(args.plan.as_deref());
            if let Some(path) = &path {
                write(path, &plan, args)?;
            }
            tell(&merge::so_far("rows are left", written, (&args.a, &args.b)));
            return undecided(args, &plan, path.as_deref()).map(Some);
        }
        if idle >= IDLE_ROUNDS {
            return Err(stuck(args, &plan, written));
        }
    }
}

/// A file beside the plan that is not there yet.
fn next_path(plan: Option<&Path>) -> Option<PathBuf> {
    let plan = plan?;
    let numbered = (2..).map(|number| {
        let mut name = plan.as_os_str().to_owned();
        name.push(format!(".{number}"));
        PathBuf::from(name)
    });
    numbered.into_iter().find(|path| !path.exists())
}

fn stuck(args: &MergeArgs, plan: &Plan, written: &Outcome) -> Failure {
    let rows = plan.rows();
    let mut text = format!("{rows} rows differ still, and nothing of them could be written");
    let mut hint = "run the command again when less is written to these rows".to_owned();
    let reason = written
        .failed
        .iter()
        .find_map(|table| table.reason.as_ref());
    if let Some(fault) = reason {
        text.push_str(&format!(": {}", fault.message));
        hint.clone_from(&fault.hint);
    }
    Failure::new(FaultKind::Failed, text).on(&args.b).hint(hint)
}

/// Has the plan written, page by page. A signal stops it after the page that is being written, a second one at once.
async fn apply(
    args: &MergeArgs,
    plan: &Plan,
    written: &mut Outcome,
    context: &Context,
) -> Result<(), Failure> {
    let pages = plan.pages();
    let count = pages.len();
    written.failed.clear();
    if count == 0 {
        return Ok(());
    }
    let mut signals = Signals::catch()?;
    let client = tokio::select! {
        client = context.client() => client?,
        interrupt = signals.next() => return Err(interrupted(interrupt)),
    };
    let mut outcome = Ok(());
    for (place, (to, page)) in (1_usize..).zip(pages) {
        let (source, target) = match to {
            MergeSide::A => (&args.b, &args.a),
            MergeSide::B => (&args.a, &args.b),
        };
        let number = |at: usize| u32::try_from(at).unwrap_or(u32::MAX);
        let spec = RepairSpec {
            node_a: source.clone(),
            node_b: target.clone(),
            plan: page,
            max_rate: args.spec().max_rate,
            place: PagePlace {
                page: number(place),
                pages: number(count),
                before: RepairCounts::default(),
            },
        };
        outcome = write_page(&client, (to, spec), &mut signals, written).await;
        if outcome.is_err() {
            break;
        }
        if !context.terminal.json && place < count {
            tell(&merge::line(written.rounds, place, count));
        }
    }
    client.close().await;
    outcome
}

async fn write_page(
    client: &Client,
    (to, spec): (MergeSide, RepairSpec),
    signals: &mut Signals,
    written: &mut Outcome,
) -> Result<(), Failure> {
    let order = Order::MergePage(Box::new(spec));
    let (report, signal) = repair::order(client, order, signals).await;
    let report = report?;
    let rows = report.counts().repaired;
    match to {
        MergeSide::A => written.rows_a += rows,
        MergeSide::B => written.rows_b += rows,
    }
    let failed = report
        .tables
        .into_iter()
        .filter(|table| table.reason.is_some());
    written.failed.extend(failed);
    match (report.stopped, signal) {
        (Some(fault), _) => Err(fault.into()),
        (None, Some(signal)) => Err(interrupted(signal)),
        (None, None) => Ok(()),
    }
}

/// Waits until both nodes are synchronized.
async fn synchronized(args: &MergeArgs, context: &Context) -> Result<(), Failure> {
    let client = context.client().await?;
    let until = Instant::now() + SYNCHRONIZED_WITHIN;
    let outcome = loop {
        let views = nodes::ask(&client, None).await?;
        let state = |node: &NodeId| {
            let view = views.iter().find(|view| view.node_id == *node);
            view.map(|view| view.state)
        };
        let states = [&args.a, &args.b].map(state);
        if states
            .iter()
            .all(|state| *state == Some(NodeState::Synchronized))
        {
            break Ok(());
        }
        if Instant::now() > until {
            let text = "the rows are equal, and the nodes are not synchronized yet";
            let hint = "steep-repl status says what they wait for";
            break Err(Failure::new(FaultKind::Timeout, text).hint(hint));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    };
    client.close().await;
    outcome
}

/// A failure after changes have begun to flow: with what is written, and how to go on.
fn told(stopped: Failure, written: &Outcome, args: &MergeArgs) -> Failure {
    let message = merge::so_far(&stopped.0.message, written, (&args.a, &args.b));
    let next = format!(
        "run the command again to go on; steep-repl init cancel --node {} ends the merge on both nodes and keeps their rows",
        args.a
    );
    let hint = match stopped.0.hint.as_str() {
        "" => next,
        hint => format!("{hint}; {next}"),
    };
    Failure::from(Fault {
        message,
        hint,
        ..*stopped.0
    })
}
