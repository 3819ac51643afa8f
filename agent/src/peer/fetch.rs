//! Fetches a plan: workers take the next part, load it, and report it once it is committed.
//!
//! Workers pull from one queue, so a slow range does not idle the others. A part whose connection broke is
//! fetched again; the ledger says whether it was committed. Their number and the rate can change at any time:
//! more workers start at once, and of too many each ends after its part.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use steep_protocol::message::agent::{CopyParts, PartDone, PartProgress};
use steep_protocol::message::peer::{CopyFormat, TablePlan};
use steep_protocol::{Fault, FaultKind, PartNo, Retry, TableNo};
use tokio::task::JoinSet;
use tracing::warn;

use super::connection::{Plan, SourceAgent};
use super::span;
use super::workers::Workers;
use crate::budget::Budget;
use crate::deferred::named::{Named, build_named};
use crate::mutex::lock;
use crate::node::wal_writer::WalWriterAwake;
use crate::part::copy_in::{Begin, Loader};
use crate::part::formats::formats;
use crate::part::ledger::ledger;
use crate::pg::catalog::for_loading;
use crate::rate::Rate;
use crate::task::{CopyTerms, Task};

/// After these tries, a part's fault becomes the job's.
const TRIES: u32 = 4;

/// Before a part is tried again; doubled each time.
const PAUSE: Duration = Duration::from_millis(250);

/// Shared by all workers of a job.
struct Shared {
    task: Task,
    source: SourceAgent,
    request: CopyParts,
    plan: Plan,
    settings: Arc<[String]>,
    formats: HashMap<TableNo, CopyFormat>,
    rate: Rate,
    budget: Budget,
    queue: Mutex<VecDeque<PartNo>>,
    workers: Mutex<Workers>,
}

/// Fetches the parts. Returns once all are committed, or, during a shutdown, those that have begun.
///
/// Dropping the future rolls back unfinished parts; committed ones stay in the ledger. Fails with the first
/// fault that a retry does not fix, and with `Cancelled` where the task is or where parts are left to the
/// agent's next process.
pub(crate) async fn copy(
    task: &Task,
    source: SourceAgent,
    request: CopyParts,
    budget: Budget,
) -> Result<(), Fault> {
    let plan = source.plan().await?;
    let settings = for_loading(&source.settings().await?).into();
    let formats = formats(task, &plan.tables).await?;
    let there = ledger(task).await?;
    let done: HashSet<PartNo> = there.iter().map(|d| d.part).collect();
    for part in there {
        task.done(part);
    }
    let queue: VecDeque<PartNo> = request
        .order
        .iter()
        .copied()
        .filter(|p| !done.contains(p))
        .collect();
    let _awake = (!queue.is_empty()).then(|| WalWriterAwake::beside(task));
    let shared = Arc::new(Shared {
        task: task.clone(),
        source,
        rate: Rate::new(request.max_rate),
        request,
        plan,
        settings,
        formats,
        budget,
        queue: Mutex::new(queue),
        workers: Mutex::default(),
    });
    let mut terms = task.terms.clone();
    let mut running = JoinSet::new();
    loop {
        let CopyTerms { parallel, max_rate } = *terms.borrow_and_update();
        shared.rate.set(max_rate);
        let parts = shared.queue().len();
        let new = lock(&shared.workers).hire(parallel, parts);
        for _ in 0..new {
            let shared = Arc::clone(&shared);
            running.spawn(async move { shared.work().await });
        }
        tokio::select! {
            () = task.cancel.cancelled() => {
                running.shutdown().await;
                return Err(Fault::new(FaultKind::Cancelled, "cancelled").on(&task.node));
            }
            Ok(()) = terms.changed() => {}
            ended = running.join_next() => match ended {
                None => return shared.left(),
                Some(Ok(Ok(()))) => {}
                Some(Ok(Err(fault))) => {
                    running.shutdown().await;
                    return Err(fault);
                }
                Some(Err(error)) => {
                    running.shutdown().await;
                    return Err(Fault::new(FaultKind::Failed, format!("a worker broke: {error}")));
                }
            },
        }
    }
}

impl Shared {
    async fn work(&self) -> Result<(), Fault> {
        let mut loader = None;
        while let Some(part) = self.take() {
            let mut tries = 1;
            let mut named = 0;
            let mut span = span::load(&self.task.node, self.task.job, self.request.epoch, part);
            if let Ok(table) = self.table(part) {
                span.text("table", &table.name);
            }
            loop {
                let fault = match self.load(&mut loader, part).await {
                    Ok(done) => {
                        span::committed(&mut span, done);
                        break;
                    }
                    Err(fault) => fault,
                };
                if build_named(&self.task, &fault, named).await? == Named::Built {
                    named += 1;
                    continue;
                }
                if fault.retry == Retry::Never || tries == TRIES {
                    span::failed(&mut span, &fault);
                    return Err(self.name_part(fault, part));
                }
                let table = self.table(part).ok().map(|table| &table.name);
                warn!(event = "part.retried", node_id = %self.task.node, source_node = %self.source.source(), job_id = %self.task.job, table = table.map(tracing::field::display), part = part.0, error = %fault, "part failed, trying again");
                self.task.retried();
                loader = None;
                tokio::time::sleep(PAUSE * 2u32.pow(tries - 1)).await;
                tries += 1;
                span.number("retries", u64::from(tries - 1));
            }
        }
        Ok(())
    }

    /// One part, from request to commit.
    async fn load(&self, loader: &mut Option<Loader>, part: PartNo) -> Result<PartDone, Fault> {
        let table = self.table(part)?;
        let epoch = self.request.epoch;
        let format = self
            .formats
            .get(&table.no)
            .copied()
            .unwrap_or(CopyFormat::Text);
        let loader = match loader {
            Some(loader) => loader,
            None => {
                let settings = Arc::clone(&self.settings);
                loader.insert(Loader::connect(&self.task, &self.plan.encoding, settings).await?)
            }
        };
        let _share = self.budget.part(self.request.compression).await;
        // The source starts its COPY while the target begins its transaction.
        let (incoming, begun) = tokio::join!(
            self.source
                .part(epoch, part, format, self.request.compression),
            loader.begin(epoch, table, part, format),
        );
        let done = match begun? {
            Begin::Done(done) => done,
            Begin::Load(writer) => {
                let report = |bytes, wire| self.task.part(PartProgress { part, bytes, wire });
                let sent = incoming?.pour(writer, &self.rate, report).await?;
                PartDone {
                    part,
                    rows: sent.rows,
                    bytes: sent.bytes,
                    wire: sent.wire,
                }
            }
        };
        self.task.done(done.clone());
        Ok(done)
    }

    /// A worker's next part; `None` where it must end, as during a shutdown.
    fn take(&self) -> Option<PartNo> {
        if self.task.drain.is_cancelled() {
            return None;
        }
        if !lock(&self.workers).goes_on() {
            return None;
        }
        let mut queue = self.queue();
        let part = queue.pop_front();
        self.task.waiting(queue.len());
        if part.is_none() {
            lock(&self.workers).leaves();
        }
        part
    }

    /// Fails where parts are left after all workers have ended.
    fn left(&self) -> Result<(), Fault> {
        match self.queue().len() {
            0 => Ok(()),
            parts => {
                let text = format!("the agent is being stopped, and {parts} parts are left");
                Err(Fault::new(FaultKind::Cancelled, text).on(&self.task.node))
            }
        }
    }

    fn queue(&self) -> std::sync::MutexGuard<'_, VecDeque<PartNo>> {
        lock(&self.queue)
    }

    /// The last table whose first part is not after `part`.
    fn table(&self, part: PartNo) -> Result<&TablePlan, Fault> {
        let tables = &self.plan.tables;
        let after = tables.partition_point(|t| t.first_part <= part);
        after
            .checked_sub(1)
            .map(|at| &tables[at])
            .filter(|t| ((part.0 - t.first_part.0) as usize) < t.ranges.len())
            .ok_or_else(|| {
                Fault::new(
                    FaultKind::Failed,
                    format!("part {part} is not in the source's plan"),
                )
            })
    }

    fn name_part(&self, mut fault: Fault, part: PartNo) -> Fault {
        if let Ok(table) = self.table(part)
            && fault.kind != FaultKind::Cancelled
        {
            fault.message = format!("copying {}: {}", table.name, fault.message);
            fault = fault.at(&table.name);
        }
        fault
    }
}
