//! Reads everything under an open snapshot into an archive.
//!
//! Workers pull parts from one queue, largest first, each on a thread of its own, as parts on their way to a
//! peer are read. The schema is dumped meanwhile. Then the source's transaction ends, and the manifest is
//! written last.

use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use steep_archive::chunk::{Packer, codec_bytes};
use steep_archive::{
    Archive, Contents, Error, Identity, Keys, Location, Manifest, PlannedTable, Source, Writing,
};
use steep_protocol::encryption::{Encrypt, Encryption};
use steep_protocol::limits::CHUNK_RAW_MAX;
use steep_protocol::message::agent::{WorkProgress, WorkUnit};
use steep_protocol::message::peer::{CopyFormat, SchemaSection, TablePlan};
use steep_protocol::message::snapshot::{SealedSnapshot, StoreSnapshot};
use steep_protocol::{Fault, FaultKind, Identifier, NodeId, PartNo, Phase, SnapshotId};
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::spool::Filler;
use super::{fault, locate, record, room};
use crate::budget::Budget;
use crate::chunk::{PartReader, ReadStep};
use crate::dump::SchemaDump;
use crate::mutex::lock;
use crate::part::copy_out::read_part;
use crate::pg::Session;
use crate::rate::Rate;
use crate::replication::sequences::sequences;
use crate::snapshot::OpenSnapshot;
use crate::snapshot::stored::{StoredSnapshot, append_rows};
use crate::task::Task;

/// How often progress is reported.
const TELL_EVERY: Duration = Duration::from_millis(250);

/// How often the slot's note is renewed while rows are read.
const RENEW_EVERY: Duration = Duration::from_secs(600);

/// Stores the snapshot, closes it, and records it. Repeated after a failure it keeps the parts that it has
/// written, as long as the snapshot lives and with it the memory of them. A spool leaves some of its disk free.
///
/// Fails where the snapshot is lost, or with the store's fault: of a full or busy one, `Retry::Backoff`.
pub(crate) async fn store(
    task: &Task,
    open: &Arc<OpenSnapshot>,
    (request, keys): (StoreSnapshot, &Keys),
    limits: (Budget, Option<PathBuf>),
) -> Result<SealedSnapshot, Fault> {
    let location = locate(&request.store.location, &task.node)?;
    let failed = |error: Error| fault(&error, &task.node);
    let snapshot = SnapshotId(task.replication.id.0);
    let identity = Identity {
        snapshot_id: snapshot,
        node_id: task.node.clone(),
        lsn: open.lsn(),
        codec: request.store.codec,
        encryption: encryption(task, &request.store.encrypt, keys)?,
    };
    let session = task.connect("snapshot").await?;
    let finished = open.spool().finished();
    let archive = match Archive::create(&location, identity, keys, finished).await {
        Ok(writing) => write(task, open, (&request, writing), (&session, limits)).await?,
        // Only its record is missing.
        Err(Error::Complete { found, .. }) if found == Some(snapshot) => {
            let archive = Archive::open(&location, keys).await.map_err(failed)?;
            if !finished.is_sealed_by(archive.manifest()) {
                return Err(another_writer(&location, &task.node));
            }
            archive
        }
        Err(error) => return Err(failed(error)),
    };
    let stored = StoredSnapshot::of(archive.clone(), open.sharing());
    let stored = stored.map_err(|why| Fault::new(FaultKind::Failed, why).on(&task.node))?;
    open.spool().seal(stored);
    // Nothing more is read under the snapshot: the source's transaction ends.
    open.close().await;
    let of = (&location, archive.manifest());
    let sealed = seal(task, &session, of, &request).await;
    session.give_back().await;
    sealed
}

/// A manifest with this snapshot's id that the agent has not written.
fn another_writer(location: &Location, node: &NodeId) -> Fault {
    let text = format!(
        "{location} holds a complete snapshot with the id of the one that is being made, and this agent did not write it"
    );
    Fault::new(FaultKind::Failed, text)
        .on(node)
        .hint("find out who else can write there, and generate the snapshot in a place that only the agent can write to")
}

/// How the files are encrypted. The coordinator has shown to whom: another key would be a surprise.
fn encryption(task: &Task, wanted: &Encrypt, keys: &Keys) -> Result<Option<Encryption>, Fault> {
    let own = keys.facts().map(|facts| &facts.encrypts);
    let (text, hint) = match (wanted, own) {
        (Encrypt::No, _) => return Ok(None),
        (Encrypt::ToAgentsKey, Some(own)) => return Ok(Some(own.clone())),
        (Encrypt::Like(wanted), Some(own)) if wanted == own => return Ok(Some(own.clone())),
        (Encrypt::Like(wanted), Some(own)) => (
            format!(
                "the agent's key was changed: it encrypts to {}, and the snapshot was begun for {}",
                own.recipients, wanted.recipients
            ),
            "run steep-repl snapshot generate again",
        ),
        (Encrypt::ToAgentsKey | Encrypt::Like(_), None) => (
            "the agent has no key to encrypt a snapshot with".to_owned(),
            "start it with --snapshot-key FILE; steep-repl snapshot keygen --output FILE makes one",
        ),
    };
    let fault = Fault::new(FaultKind::KeyMissing, text).on(&task.node);
    Err(fault.hint(hint))
}

/// Writes all of it. Targets that share the snapshot load from it meanwhile.
async fn write(
    task: &Task,
    open: &Arc<OpenSnapshot>,
    (request, writing): (&StoreSnapshot, Writing),
    (session, (budget, spool)): (&Session, (Budget, Option<PathBuf>)),
) -> Result<Archive, Fault> {
    let failed = |error: Error| fault(&error, &task.node);
    let kept = writing.kept(usize::from(request.parallel)).await;
    let kept = kept.map_err(failed)?;
    let kept_bytes = kept.iter().map(|part| part.bytes.0).sum();
    let kept: Vec<PartNo> = kept.iter().map(|part| part.no).collect();
    let shared = Arc::new(Shared {
        task: task.clone(),
        open: Arc::clone(open),
        filler: open.spool().fill(writing.clone(), order(open, &kept)),
        rate: Rate::new(request.store.max_rate),
        writing: writing.clone(),
        budget,
        spool,
        bytes: AtomicU64::new(kept_bytes),
        expected: open
            .summaries()
            .iter()
            .map(|table| table.bytes_estimate.0)
            .sum(),
        workers: AtomicUsize::new(0),
        current: Mutex::default(),
    });
    tokio::try_join!(
        shared.read_all(usize::from(request.parallel), session),
        store_schema(&shared)
    )?;
    let values = sequences(task, open.filter()).await?;
    writing.sequences(&values).await.map_err(failed)?;
    let contents = contents(task, open, session).await?;
    let manifest = writing.finish(contents).await.map_err(failed)?;
    writing.sealed(manifest).map_err(failed)
}

async fn seal(
    task: &Task,
    session: &Session,
    (location, manifest): (&Location, &Manifest),
    request: &StoreSnapshot,
) -> Result<SealedSnapshot, Fault> {
    let with = (request.expires_seconds, request.order.as_deref());
    let recorded = record::sealed(session, task, (location, manifest), with).await;
    let expires_at = recorded.map_err(|error| task.fault(error))?;
    let totals = &manifest.totals;
    let sum = manifest.checksum.ok_or_else(|| {
        let text = "the manifest was written without a checksum";
        Fault::new(FaultKind::Failed, text).on(&task.node)
    })?;
    info!(snapshot = %manifest.snapshot_id, %location, rows = totals.rows.0, bytes = totals.bytes.0, stored = totals.stored_bytes.0, "snapshot stored");
    Ok(SealedSnapshot {
        tables: totals.tables,
        parts: totals.parts,
        rows: totals.rows.0,
        bytes: totals.bytes.0,
        stored_bytes: totals.stored_bytes.0,
        manifest: sum,
        expires_at,
    })
}

/// The parts that are not kept, those of the largest tables first.
fn order(open: &OpenSnapshot, kept: &[PartNo]) -> VecDeque<PartNo> {
    let mut weighed: Vec<(u64, PartNo)> = Vec::new();
    for summary in open.summaries() {
        let weight = summary.bytes_estimate.0 / u64::from(summary.parts.max(1));
        let numbers = summary.first_part.0..summary.first_part.0 + summary.parts;
        weighed.extend(numbers.map(|no| (weight, PartNo(no))));
    }
    weighed.sort_by_key(|(weight, no)| (std::cmp::Reverse(*weight), *no));
    let kept: std::collections::HashSet<&PartNo> = kept.iter().collect();
    let left = weighed.into_iter().map(|(_, no)| no);
    left.filter(|no| !kept.contains(no)).collect()
}

/// What the workers share.
struct Shared {
    task: Task,
    open: Arc<OpenSnapshot>,
    filler: Filler,
    rate: Rate,
    writing: Writing,
    budget: Budget,
    /// Its directory, if it is written into the spool.
    spool: Option<PathBuf>,
    /// COPY bytes so far.
    bytes: AtomicU64,
    /// Estimated COPY bytes in all.
    expected: u64,
    workers: AtomicUsize,
    /// By worker.
    current: Mutex<HashMap<usize, String>>,
}

impl Shared {
    async fn read_all(self: &Arc<Self>, parallel: usize, session: &Session) -> Result<(), Fault> {
        let stop = self.task.cancel.child_token();
        // Threads are not aborted: without this they would read on after a failure beside them.
        let _stopped = stop.clone().drop_guard();
        let workers = parallel.clamp(1, self.filler.left().max(1));
        let mut running = JoinSet::new();
        for number in 0..workers {
            let (shared, stop) = (Arc::clone(self), stop.clone());
            let runtime = Handle::current();
            running.spawn_blocking(move || runtime.block_on(shared.work(number, stop)));
        }
        let mut tell = interval(TELL_EVERY);
        tell.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut renew = interval(RENEW_EVERY);
        let mut outcome = Ok(());
        loop {
            tokio::select! {
                ended = running.join_next() => match ended {
                    None => return outcome,
                    Some(Ok(Ok(()))) => {}
                    Some(Ok(Err(fault))) => {
                        stop.cancel();
                        // The first one is the cause of the others.
                        outcome = outcome.and(Err(fault));
                    }
                    Some(Err(error)) => {
                        stop.cancel();
                        let text = format!("a worker broke: {error}");
                        outcome = outcome.and(Err(Fault::new(FaultKind::Failed, text)));
                    }
                },
                _ = tell.tick() => {
                    if let Some(spool) = &self.spool {
                        room::check(spool, &self.task.node)?;
                    }
                    self.tell();
                }
                _ = renew.tick() => {
                    let renewed = record::renew(session, &self.task).await;
                    renewed.map_err(|error| self.task.fault(error))?;
                }
            }
        }
    }

    fn tell(&self) {
        let done = self.bytes.load(Ordering::Relaxed);
        let work = WorkProgress {
            done,
            total: done.max(self.expected),
            unit: WorkUnit::Bytes,
            current: lock(&self.current).values().next().cloned(),
            workers: u8::try_from(self.workers.load(Ordering::Relaxed)).unwrap_or(u8::MAX),
        };
        self.task.work(Phase::Copy, work);
    }

    async fn work(&self, number: usize, stop: CancellationToken) -> Result<(), Fault> {
        self.workers.fetch_add(1, Ordering::Relaxed);
        let mut outcome = Ok(());
        while outcome.is_ok()
            && !stop.is_cancelled()
            && let Some(part) = self.filler.take()
        {
            if let Ok((table, _)) = self.open.locate(part) {
                lock(&self.current).insert(number, table.name.to_string());
            }
            outcome = self.read(part, stop.clone()).await;
        }
        lock(&self.current).remove(&number);
        self.workers.fetch_sub(1, Ordering::Relaxed);
        outcome
    }

    async fn read(&self, part: PartNo, stop: CancellationToken) -> Result<(), Fault> {
        let node = &self.task.node;
        let failed = |error: Error| fault(&error, node);
        let codec = self.writing.codec();
        let memory = codec_bytes(codec) + self.writing.part_memory();
        let _share = self.budget.room_for(memory).await;
        let mut rows = read_part(&self.open, part, CopyFormat::Text, stop.clone()).await?;
        let mut file = self.writing.part(part).await.map_err(failed)?;
        let mut packer = Packer::stored(codec);
        let mut raw = Vec::with_capacity(CHUNK_RAW_MAX);
        loop {
            let before = raw.len();
            let limit = before.saturating_add(self.rate.piece()).min(CHUNK_RAW_MAX);
            let step = rows.read(&mut raw, limit).await?;
            let read = raw.len() - before;
            tokio::select! {
                biased;
                () = stop.cancelled() => {
                    return Err(Fault::new(FaultKind::Cancelled, "cancelled").on(node));
                }
                () = self.rate.admit_all(read) => {}
            }
            self.bytes.fetch_add(read as u64, Ordering::Relaxed);
            let full = raw.len() == CHUNK_RAW_MAX || step != ReadStep::More;
            if full && !raw.is_empty() {
                let packed = packer.pack(&mut raw);
                let (head, payload) = packed
                    .map_err(|error| Fault::new(FaultKind::Failed, error.to_string()).on(node))?;
                file.chunk(head, &payload).await.map_err(failed)?;
                raw.clear();
                raw.reserve_exact(CHUNK_RAW_MAX);
            }
            if let ReadStep::End { rows } = step {
                file.finish(rows).await.map_err(failed)?;
                self.filler.written();
                return Ok(());
            }
        }
    }
}

async fn store_schema(shared: &Shared) -> Result<(), Fault> {
    let (open, cancel) = (&shared.open, &shared.task.cancel);
    let dump = async |section| text(open.schema(section, cancel.clone()).await?).await;
    let mut pre_data = dump(SchemaSection::PreData).await?;
    let rows = dump(SchemaSection::ExtensionRows).await?;
    append_rows(&mut pre_data, &rows);
    let post_data = dump(SchemaSection::PostData).await?;
    let written = shared.writing.schema(&pre_data, &post_data).await;
    written.map_err(|error| fault(&error, &shared.task.node))
}

/// All of a dump. A schema of ten thousand tables has some ten megabytes.
async fn text(mut dump: SchemaDump) -> Result<Vec<u8>, Fault> {
    let mut all = Vec::new();
    loop {
        let limit = all.len() + CHUNK_RAW_MAX;
        if let ReadStep::End { .. } = dump.read(&mut all, limit).await? {
            return Ok(all);
        }
    }
}

async fn contents(task: &Task, open: &OpenSnapshot, session: &Session) -> Result<Contents, Fault> {
    let bad = |error: &dyn std::fmt::Display| {
        Fault::new(FaultKind::Failed, error.to_string()).on(&task.node)
    };
    let sql = "SELECT system_identifier::text, current_database()::text FROM pg_control_system()";
    let asked = session.run(&task.cancel, session.query_one(sql, &[])).await;
    let row = asked.map_err(|error| task.fault(error))?;
    let database: String = row.get(1);
    let filter = open.filter();
    Ok(Contents {
        created_at: open.opened_at(),
        source: Source {
            node_id: task.node.clone(),
            system_identifier: row.get(0),
            server_version: session.server_version(),
            database: Identifier::parse(database).map_err(|e| bad(&e))?,
            encoding: open.encoding().to_owned(),
        },
        slot_name: Identifier::parse(task.replication.slot.as_str()).map_err(|e| bad(&e))?,
        publication: task.replication.name(),
        include_schemas: filter.include_schemas.clone(),
        exclude_tables: filter.exclude_tables.clone(),
        tables: open.tables().iter().map(planned).collect(),
    })
}

fn planned(table: &TablePlan) -> PlannedTable {
    let first = table.first_part.0;
    let parts = u32::try_from(table.ranges.len()).unwrap_or(u32::MAX);
    PlannedTable {
        name: table.name.clone(),
        columns: table
            .columns
            .iter()
            .map(|column| column.name.clone())
            .collect(),
        parts: (first..first + parts).map(PartNo).collect(),
    }
}
