//! Fetches a plan: workers take the next part, load it, and report it once it is committed.
//!
//! Workers pull from one queue, so a slow range does not idle the others. A part whose connection broke is
//! fetched again; the ledger says whether it was committed. Their number and the rate can change at any time:
//! more workers start at once, and of too many each ends after its part.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use steep_protocol::limits::WANTED_MAX;
use steep_protocol::message::agent::{CopyParts, PartDone, PartProgress};
use steep_protocol::message::peer::{CopyFormat, PartAs, Patience, TablePlan};
use steep_protocol::{Fault, FaultKind, NodeId, PartNo, Retry, TableName, TableNo};
use tokio::task::JoinSet;
use tracing::warn;

use super::connection::{Plan, SourceAgent};
use super::exchange::{Arriving, Exchange};
use super::queue::PartQueue;
use super::rows::Rows;
use super::span;
use super::workers::Workers;
use crate::budget::{Budget, Share};
use crate::deferred::named::{Named, build_named};
use crate::kept::{Store, Writer};
use crate::mutex::lock;
use crate::node::wal_writer::WalWriterAwake;
use crate::part::copy_in::{Begin, Commits, Loader};
use crate::part::formats::formats;
use crate::part::ledger::ledger;
use crate::pg::catalog::for_loading;
use crate::rate::Rate;
use crate::target::shadows;
use crate::task::{CopyTerms, Task};

/// After these tries, a part's fault becomes the job's.
const TRIES: u32 = 4;

/// Before a part is tried again; doubled each time.
const PAUSE: Duration = Duration::from_millis(250);

/// Shared by all workers of a job.
struct Shared {
    task: Task,
    source: SourceAgent,
    rows: Rows,
    request: CopyParts,
    plan: Plan,
    settings: Arc<[String]>,
    formats: HashMap<TableNo, CopyFormat>,
    /// Where rows go to, if not into the plan's tables.
    shadows: HashMap<TableNo, TableName>,
    rate: Rate,
    budget: Budget,
    queue: PartQueue,
    workers: Mutex<Workers>,
    /// Where other targets share the snapshot.
    exchange: Option<Exchange>,
}

/// A part that a worker has taken.
struct Taken {
    part: PartNo,
    /// What was got together with it: a shared snapshot's source chooses the part.
    got: Option<(Result<Arriving, Fault>, Share)>,
    /// The target that sent it in the last try.
    peer: Option<NodeId>,
}

/// Parts that a worker has committed, which a crash may still undo.
#[derive(Default)]
struct Unsynced {
    done: Vec<PartDone>,
    /// Those of a connection that was lost: the ledger says whether they are there.
    again: Vec<PartNo>,
}

impl Unsynced {
    fn report(&mut self, task: &Task) {
        for done in self.done.drain(..) {
            task.done(done);
        }
    }

    fn ask_again(&mut self) {
        self.again.extend(self.done.drain(..).map(|done| done.part));
    }
}

/// Fetches the parts. Returns once all are committed, or, during a shutdown, those that have begun.
///
/// Dropping the future rolls back unfinished parts; committed ones stay in the ledger. Fails with the first
/// fault that a retry does not fix, and with `Cancelled` where the task is or where parts are left to the
/// agent's next process.
pub(crate) async fn copy(
    task: &Task,
    (source, rows): (SourceAgent, Rows),
    request: CopyParts,
    budget: Budget,
    store: &Arc<Store>,
) -> Result<(), Fault> {
    let plan = rows.plan().await?;
    let settings = for_loading(&source.settings().await?).into();
    let formats = formats(task, &plan.tables).await?;
    let shadows = shadows(task, &plan.tables).await?;
    let there = ledger(task, request.epoch).await?;
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
    let sharing = request.shared.as_ref().map(|shared| {
        let of = (&request, shared);
        Exchange::begin(&source, store, of, plan.lsn)
    });
    let (exchange, announcing) = sharing.unzip();
    let shared = Arc::new(Shared {
        task: task.clone(),
        source,
        rows,
        rate: Rate::new(request.max_rate),
        request,
        plan,
        settings,
        formats,
        shadows,
        budget,
        queue: PartQueue::new(queue),
        workers: Mutex::default(),
        exchange,
    });
    let mut terms = task.terms.clone();
    let mut running = JoinSet::new();
    loop {
        let CopyTerms { parallel, max_rate } = *terms.borrow_and_update();
        shared.rate.set(max_rate);
        let parts = shared.queue.len();
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
                None => break,
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
    let left = shared.left();
    drop(shared);
    if let Some(announcing) = announcing {
        announcing.end().await;
    }
    left
}

impl Shared {
    async fn work(&self) -> Result<(), Fault> {
        let mut loader = None;
        let mut unsynced = Unsynced::default();
        while let Some(mut taken) = self.next(&mut loader, &mut unsynced).await? {
            let part = taken.part;
            let mut tries = 1;
            let mut named = 0;
            let mut span = span::load(&self.task.node, self.task.job, self.request.epoch, part);
            if let Ok(table) = self.table(part) {
                span.text("table", &table.name);
            }
            loop {
                let fault = match self.load(&mut loader, &mut taken).await {
                    Ok(done) => {
                        span::committed(&mut span, done.clone());
                        unsynced.done.push(done);
                        if loader.as_ref().is_some_and(Loader::is_synced) {
                            unsynced.report(&self.task);
                        }
                        break;
                    }
                    Err(fault) => fault,
                };
                unsynced.ask_again();
                if build_named(&self.task, &fault, named).await? == Named::Built {
                    named += 1;
                    continue;
                }
                // The source does not name a target again that did not deliver a part.
                let by_peer = taken.peer.is_some() && fault.kind != FaultKind::Cancelled;
                if !by_peer && (fault.retry == Retry::Never || tries == TRIES) {
                    span::failed(&mut span, &fault);
                    return Err(self.name_part(fault, part));
                }
                let table = self.table(part).ok().map(|table| &table.name);
                let from = taken.peer.as_ref().unwrap_or(self.source.source());
                warn!(event = "part.retried", node_id = %self.task.node, source_node = %from, job_id = %self.task.job, table = table.map(tracing::field::display), part = part.0, error = %fault, "part failed, trying again");
                self.task.retried();
                loader = None;
                if by_peer {
                    continue;
                }
                tokio::time::sleep(PAUSE * 2u32.pow(tries - 1)).await;
                tries += 1;
                span.number("retries", u64::from(tries - 1));
            }
        }
        Ok(())
    }

    /// One part, from request to commit.
    async fn load(
        &self,
        loader: &mut Option<Loader>,
        taken: &mut Taken,
    ) -> Result<PartDone, Fault> {
        let part = taken.part;
        let table = self.table(part)?;
        let epoch = self.request.epoch;
        let format = self.with_format(part).format;
        let failed = taken.peer.take();
        let loader = match loader {
            Some(loader) => loader,
            None => {
                let settings = Arc::clone(&self.settings);
                let commits = match self.exchange {
                    Some(_) => Commits::Each,
                    None => Commits::Together,
                };
                let connecting =
                    Loader::connect(&self.task, &self.plan.encoding, settings, commits);
                loader.insert(connecting.await?)
            }
        };
        let (got, _share) = match taken.got.take() {
            Some((got, share)) => (Some(got), share),
            None => (None, self.share().await),
        };
        // The source starts its COPY while the target begins its transaction.
        let (arriving, begun) = tokio::join!(
            async {
                match got {
                    Some(got) => got,
                    None => self.get(part, failed).await,
                }
            },
            loader.begin(epoch, (table, self.into(table)), part, format),
        );
        Ok(match begun? {
            Begin::Done(done) => done,
            Begin::Load(writer) => {
                let report = |bytes, wire| self.task.part(PartProgress { part, bytes, wire });
                let Arriving { incoming, peer, .. } = arriving?;
                taken.peer = peer;
                let sent = incoming.pour(writer, &self.rate, report).await?;
                let done = PartDone {
                    part,
                    rows: sent.rows,
                    bytes: sent.bytes,
                    wire: sent.wire,
                };
                self.task.loaded(&done);
                done
            }
        })
    }

    /// A worker's next part. Before it may have to wait for one, or ends, all it has committed is safe and
    /// reported.
    async fn next(
        &self,
        loader: &mut Option<Loader>,
        unsynced: &mut Unsynced,
    ) -> Result<Option<Taken>, Fault> {
        let mut last = false;
        loop {
            if let Some(part) = unsynced.again.pop() {
                return Ok(Some(Taken {
                    part,
                    got: None,
                    peer: None,
                }));
            }
            let waits = self.exchange.is_some() || self.queue.len() == 0;
            if last || waits || self.task.drain.is_cancelled() {
                self.sync(loader, unsynced).await?;
            }
            if !unsynced.again.is_empty() {
                continue;
            }
            if last {
                return Ok(None);
            }
            match self.take().await {
                Some(taken) => return Ok(Some(taken)),
                None => last = true,
            }
        }
    }

    /// Reports what is committed once no crash can undo it.
    async fn sync(
        &self,
        loader: &mut Option<Loader>,
        unsynced: &mut Unsynced,
    ) -> Result<(), Fault> {
        let synced = match loader {
            Some(loader) => loader.sync().await,
            None => Ok(()),
        };
        match synced {
            Ok(()) => unsynced.report(&self.task),
            Err(fault) if fault.retry == Retry::Never => return Err(fault),
            Err(_) => {
                *loader = None;
                unsynced.ask_again();
            }
        }
        Ok(())
    }

    /// Gets a part that was taken before.
    async fn get(&self, part: PartNo, failed: Option<NodeId>) -> Result<Arriving, Fault> {
        let wanted = self.with_format(part);
        let Some(exchange) = &self.exchange else {
            let (epoch, compression) = (self.request.epoch, self.request.compression);
            let node = &self.task.node;
            let incoming = (self.rows).part((epoch, part), wanted.format, compression, node);
            return Ok(Arriving {
                part: wanted,
                incoming: incoming.await?,
                peer: None,
            });
        };
        let mut slice = self.queue.chosen(part);
        let with_format = |part| self.with_format(part);
        let got = exchange.get(&mut slice, with_format, failed, Patience::Some);
        got.await?.ok_or_else(|| {
            let text = format!("part {part} is on its way to other targets");
            Fault::new(FaultKind::Failed, text).retry(Retry::Backoff)
        })
    }

    /// A worker's next part; `None` where it must end, as during a shutdown.
    async fn take(&self) -> Option<Taken> {
        if !lock(&self.workers).goes_on() {
            return None;
        }
        let taken = tokio::select! {
            biased;
            () = self.task.drain.cancelled() => None,
            taken = self.choose() => taken,
        };
        self.task.waiting(self.queue.len());
        if taken.is_none() {
            lock(&self.workers).leaves();
        }
        taken
    }

    /// The next part, or one of the next ones that a shared snapshot's source chooses.
    async fn choose(&self) -> Option<Taken> {
        let Some(exchange) = &self.exchange else {
            return self.queue.take().map(|part| Taken {
                part,
                got: None,
                peer: None,
            });
        };
        let mut patience = Patience::None;
        loop {
            let mut slice = self.queue.slice(WANTED_MAX, self.wanted()).await?;
            let share = self.share().await;
            let with_format = |part| self.with_format(part);
            let got = match exchange.get(&mut slice, with_format, None, patience).await {
                Ok(Some(arriving)) => Ok(arriving),
                Ok(None) => {
                    slice.put_back();
                    patience = Patience::Some;
                    continue;
                }
                Err(fault) => Err(fault),
            };
            let part = match &got {
                Ok(arriving) => arriving.part.part,
                // The next try asks for this one.
                Err(_) => *slice.parts().first()?,
            };
            slice.choose(part);
            return Some(Taken {
                part,
                got: Some((got, share)),
                peer: None,
            });
        }
    }

    fn wanted(&self) -> usize {
        lock(&self.workers).wanted()
    }

    /// A part's share of the memory.
    async fn share(&self) -> Share {
        let kept = self.exchange.as_ref().map_or(0, |_| Writer::MEMORY);
        let further = self.rows.memory(self.request.compression) + kept;
        self.budget.room_for(further).await
    }

    fn with_format(&self, part: PartNo) -> PartAs {
        let table = self.table(part).ok();
        let format = table.and_then(|table| self.formats.get(&table.no).copied());
        let format = format.unwrap_or(CopyFormat::Text);
        PartAs { part, format }
    }

    /// Fails where parts are left after all workers have ended.
    fn left(&self) -> Result<(), Fault> {
        match self.queue.len() {
            0 => Ok(()),
            parts => {
                let text = format!("the agent is being stopped, and {parts} parts are left");
                Err(Fault::new(FaultKind::Cancelled, text).on(&self.task.node))
            }
        }
    }

    fn into<'a>(&'a self, table: &'a TablePlan) -> &'a TableName {
        self.shadows.get(&table.no).unwrap_or(&table.name)
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
