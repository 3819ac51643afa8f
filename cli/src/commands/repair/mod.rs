//! `steep-repl repair`: compares, shows what would be written, asks, has it written page by page, compares again.

pub(super) mod plan;

use std::path::Path;

use jiff::Timestamp;
use steep_protocol::message::api::{ApiReply, Order};
use steep_protocol::message::repair::{
    PagePlace, RepairCounts, RepairReport, RepairSpec, RepairedTable,
};
use steep_protocol::message::verify::VerifyReport;
use steep_protocol::{Fault, FaultKind, TableName};

use self::plan::Plan;
use super::{Context, interrupted, verify as comparison};
use crate::args::RepairArgs;
use crate::client::Client;
use crate::failure::{self, Failure};
use crate::render::{repair, verify};
use crate::signals::{Interrupt, Signals};
use crate::terminal::{self, print, print_json, tell};

/// The longest file that is read: some hundred thousand rows.
pub(super) const FILE_MAX: u64 = 64 * 1024 * 1024;

/// Repairs a replica, or plans to.
pub(super) async fn run(args: RepairArgs, context: &Context) -> Result<u8, Failure> {
    let terminal = context.terminal;
    let existing = args.plan.as_deref().filter(|path| path.exists());
    let (plan, report) = match existing {
        Some(path) if args.dry_run => {
            let text = format!("{} is there already", path.display());
            let hint = "name a new file, or leave out --dry-run to write what this one lists";
            return Err(Failure::bad_request(text).hint(hint));
        }
        Some(path) => (read(path, &args)?, None),
        None if args.yes && !args.dry_run && args.plan.is_some() => return Err(missing(&args)),
        None => {
            let (plan, report) = compare(&args, context).await?;
            if let Some(path) = &args.plan {
                write(path, &plan)?;
            }
            (plan, Some(report))
        }
    };
    if !terminal.json {
        let tables = plan.tables();
        print(&repair::planned(
            report.as_ref(),
            &tables,
            (&args.a, &args.b),
            terminal.out,
        ));
    }
    // Nobody has looked at a plan that was made just now.
    let made = args.plan.is_some() && report.is_some();
    if args.dry_run || made || plan.rows() == 0 {
        if terminal.json {
            let path = args.plan.as_deref();
            print_json(&repair::planned_json(report.as_ref(), &plan.tables(), path));
        }
        if let Some(path) = args.plan.as_deref().filter(|_| made && !args.dry_run) {
            tell(&format!(
                "look at {}, then give the command again: it has exactly that written",
                path.display()
            ));
        }
        return match report {
            Some(report) => comparison::verdict(&report),
            None => Ok(failure::SUCCESS),
        };
    }
    confirm(&args, &plan, context).await?;
    let written = apply(&args, &plan, context).await?;
    if let Some(stopped) = written.stopped {
        match terminal.json {
            true => print_json(&repair::done_json(&written.tables, Some(&stopped.0), None)),
            false => print(&repair::done(&written.tables, terminal.out)),
        }
        return Err(stopped);
    }
    let report = verified(&args, &plan, report, context).await;
    if !terminal.json {
        print(&repair::done(&written.tables, terminal.out));
    }
    let report = match report {
        Ok(report) => report,
        Err(failure) => {
            if terminal.json {
                print_json(&repair::done_json(&written.tables, Some(&failure.0), None));
            }
            return Err(failure);
        }
    };
    match terminal.json {
        true => print_json(&repair::done_json(&written.tables, None, Some(&report))),
        false => print(&verify::report(&report, (&args.a, &args.b), terminal.out)),
    }
    comparison::verdict(&report)
}

/// There is no plan that could have been looked at.
fn missing(args: &RepairArgs) -> Failure {
    let path = args.plan.as_deref().unwrap_or(Path::new("")).display();
    let text = format!("there is no file {path}: nothing was changed");
    Failure::bad_request(text).hint(
        "check its name, or make it first: the same command with --dry-run in place of --yes; without --plan, --yes \
         compares the rows and writes what differs",
    )
}

/// What differs now.
async fn compare(args: &RepairArgs, context: &Context) -> Result<(Plan, VerifyReport), Failure> {
    let mut report = comparison::compared(args.spec(&context.settings), context).await?;
    let plan = report.plan.take().ok_or_else(|| {
        let text = "the replica's agent made no plan";
        let hint = "run the same version on the coordinator and on all agents";
        Failure::new(FaultKind::Failed, text).on(&args.b).hint(hint)
    })?;
    Ok((Plan::new((args.a.clone(), args.b.clone()), plan), report))
}

fn write(path: &Path, plan: &Plan) -> Result<(), Failure> {
    let lines = plan.to_lines(&Timestamp::now().to_string());
    steep_certs::write_key_file(path, lines.as_bytes())
        .map_err(|error| Failure::new(FaultKind::Failed, error.to_string()))
}

fn read(path: &Path, args: &RepairArgs) -> Result<Plan, Failure> {
    let failed = |text: String| Failure::bad_request(format!("{}: {text}", path.display()));
    let length = std::fs::metadata(path).map_err(|error| failed(error.to_string()))?;
    if length.len() > FILE_MAX {
        return Err(failed(format!("the file has more than {FILE_MAX} bytes")));
    }
    let text = std::fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
    let plan = Plan::parse(&text).map_err(|error| failed(error.to_string()))?;
    if (&plan.node_a, &plan.node_b) != (&args.a, &args.b) {
        let text = format!("the plan is for {} and {}", plan.node_a, plan.node_b);
        return Err(failed(text).hint("name these nodes, or another plan"));
    }
    if args.names_tables() {
        let text = "a plan that exists has its tables: --tables does not go with it";
        return Err(failed(text.to_owned()).hint("take the lines of other tables out of the file"));
    }
    Ok(plan)
}

/// Asks on a terminal, unless that is settled.
async fn confirm(args: &RepairArgs, plan: &Plan, context: &Context) -> Result<(), Failure> {
    if args.yes {
        return Ok(());
    }
    if !context.terminal.interactive {
        let text = "nobody can be asked whether to write to it: nothing was changed";
        let failure = Failure::bad_request(text).on(&args.b);
        return Err(failure.hint("repeat the command with --yes"));
    }
    let mut signals = Signals::catch()?;
    let question = format!("Write {} rows to {}?", plan.rows(), args.b);
    let confirmed = tokio::select! {
        confirmed = terminal::confirm(&question) => confirmed,
        _ = signals.next() => false,
    };
    match confirmed {
        true => Ok(()),
        false => Err(Failure::new(FaultKind::Cancelled, "nothing was changed").on(&args.b)),
    }
}

/// What was written.
#[derive(Debug, Default)]
pub(super) struct Written {
    pub(super) tables: Vec<RepairedTable>,
    /// Why that is not all.
    pub(super) stopped: Option<Failure>,
}

impl Written {
    pub(super) fn add(&mut self, report: RepairReport) {
        for table in report.tables {
            match self
                .tables
                .iter_mut()
                .find(|known| known.name == table.name)
            {
                Some(known) => {
                    known.counts.add(&table.counts);
                    known.reason = known.reason.take().or(table.reason);
                }
                None => self.tables.push(table),
            }
        }
        self.stopped = report.stopped.map(Failure::from);
    }

    pub(super) fn counts(&self) -> RepairCounts {
        let mut all = RepairCounts::default();
        for table in &self.tables {
            all.add(&table.counts);
        }
        all
    }
}

/// Has the plan written, page by page. A signal stops it after the page that is being written, a second one at once.
async fn apply(args: &RepairArgs, plan: &Plan, context: &Context) -> Result<Written, Failure> {
    let mut signals = Signals::catch()?;
    let client = tokio::select! {
        client = context.client() => client?,
        interrupt = signals.next() => return Err(interrupted(interrupt)),
    };
    let pages = plan.pages();
    let count = u32::try_from(pages.len()).unwrap_or(u32::MAX);
    let mut written = Written::default();
    for (page, rows) in (1..).zip(pages) {
        let spec = RepairSpec {
            node_a: args.a.clone(),
            node_b: args.b.clone(),
            plan: rows,
            max_rate: args.max_rate(),
            place: PagePlace {
                page,
                pages: count,
                before: written.counts(),
            },
        };
        let (outcome, signal) = order(&client, Order::Repair(Box::new(spec)), &mut signals).await;
        match outcome {
            Ok(report) => written.add(report),
            Err(failure) => written.stopped = Some(failure),
        }
        if let Some(signal) = signal.filter(|_| page < count) {
            written.stopped.get_or_insert(interrupted(signal));
        }
        if let Some(stopped) = written.stopped.take() {
            let text = repair::so_far(&stopped.0.message, &written.counts(), plan.rows());
            let message = Fault {
                message: text,
                ..*stopped.0
            };
            written.stopped = Some(Failure::from(message));
            break;
        }
        if !context.terminal.json && page < count {
            tell(&repair::line(page, count));
        }
    }
    client.close().await;
    Ok(written)
}

/// Has a page written. Returns the first signal that came meanwhile.
pub(super) async fn order(
    client: &Client,
    order: Order,
    signals: &mut Signals,
) -> (Result<RepairReport, Failure>, Option<Interrupt>) {
    let mut asked = std::pin::pin!(client.ask_all(order));
    let first = tokio::select! {
        replies = &mut asked => return (repaired(replies), None),
        first = signals.next() => first,
    };
    tell("stopping after the rows that are being written; again to stop waiting for them");
    tokio::select! {
        replies = &mut asked => (repaired(replies), Some(first)),
        second = signals.next() => (Err(interrupted(second)), Some(second)),
    }
}

fn repaired(replies: Result<Vec<ApiReply>, Failure>) -> Result<RepairReport, Failure> {
    let report = replies?.into_iter().find_map(|reply| match reply {
        ApiReply::Repaired(report) => Some(*report),
        _ => None,
    });
    let text = "the coordinator did not say what was written";
    report.ok_or_else(|| Failure::new(FaultKind::Failed, text))
}

/// Compares the tables that were to be repaired again. What is known of others stays.
async fn verified(
    args: &RepairArgs,
    plan: &Plan,
    before: Option<VerifyReport>,
    context: &Context,
) -> Result<VerifyReport, Failure> {
    let tables: Vec<TableName> = plan.tables().into_keys().cloned().collect();
    let spec = args.verification(tables, &context.settings);
    let after = comparison::compared(spec, context).await?;
    let Some(mut report) = before else {
        return Ok(after);
    };
    for table in after.tables {
        match report
            .tables
            .iter_mut()
            .find(|known| known.name == table.name)
        {
            Some(known) => *known = table,
            None => report.tables.push(table),
        }
    }
    report.relation = after.relation;
    Ok(report)
}
