//! The consistent point, and the order in which it comes to be.
//!
//! ```text
//! publication → slot + exported snapshot → holder imports it → tables as of the snapshot
//!             → the same list again, now → plan
//! ```
//! Publication before slot: what the slot decodes is published from its first byte. The holder keeps the
//! snapshot and no lock: each part locks its own table while it is read, and asks first whether the table
//! is what the snapshot saw (`table_state`). The second list shows what changed between slot and plan;
//! then everything is made anew.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use steep_protocol::message::agent::{Export, OpenSource, RowsAs, TableSummary};
use steep_protocol::message::job::TableFilter;
use steep_protocol::message::peer::{CtidRange, PartAs, SchemaSection, TablePlan};
use steep_protocol::{
    ByteCount, Epoch, Fault, FaultKind, JobId, Lsn, NodeId, PartNo, Retry, RowCount, TableName,
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::catalog::{self, Catalog};
use super::listing::{self, Listing};
use super::plan::{self, Plan, Splitting};
use super::pool::Pool;
use super::sharing::Sharing;
use super::table_state::TableState;
use super::types::Types;
use super::{epochs, joining, publication, published, slot};
use crate::dump::{self, SchemaDump, Scope};
use crate::locks::{Attended, LockRegistry, WaitsFor};
use crate::mutex::lock;
use crate::pg::catalog::read_extension_tables;
use crate::pg::{Conninfo, PgError, Session};
use crate::stored::spool::Spool;
use crate::task::Task;

/// Attempts, each from the start, where DDL comes between slot and plan.
const ATTEMPTS: u32 = 3;

/// A job's slot, snapshot and plan, shared by everything that reads.
///
/// Holds one session, and one more per worker while parts are read. Dropping it ends them; the slot stays.
#[derive(Debug)]
pub(crate) struct OpenSnapshot {
    node: NodeId,
    job: JobId,
    epoch: Epoch,
    restarts: u8,
    conninfo: Conninfo,
    server_version: u32,
    encoding: String,
    lsn: Lsn,
    opened_at: Timestamp,
    plan: Plan,
    /// By table number.
    states: Vec<Option<TableState>>,
    scope: Scope,
    /// A dump of which one section was asked for.
    dumped: tokio::sync::Mutex<Option<dump::Whole>>,
    locks: Arc<LockRegistry>,
    held: Mutex<Option<Held>>,
    read: Mutex<BTreeMap<PartAs, (RowCount, ByteCount)>>,
    sharing: Arc<Sharing>,
    spool: Arc<Spool>,
}

/// What keeps the snapshot alive, and who reads it.
#[derive(Debug)]
struct Held {
    holder: Session,
    export: String,
    pool: Arc<Pool>,
    _attended: Attended,
}

/// Creates publication, slot, snapshot and plan, after removing those of an earlier attempt. Waits, and
/// says so, for transactions older than the slot. On error, what was created is removed as far as the
/// server can be reached.
pub(crate) async fn open(
    task: &Task,
    request: OpenSource,
    locks: Arc<LockRegistry>,
) -> Result<OpenSnapshot, Fault> {
    let opened = try_open(task, &request, &locks).await;
    if let Err(fault) = &opened {
        debug!(job_id = %task.job, error = %fault, "removing what the attempt created");
        let tidy = Task {
            cancel: CancellationToken::new(),
            ..task.clone()
        };
        task.tidy_up(slot::cleanup(&tidy, None)).await;
    }
    opened
}

async fn try_open(
    task: &Task,
    request: &OpenSource,
    locks: &Arc<LockRegistry>,
) -> Result<OpenSnapshot, Fault> {
    let fault = |error: PgError| error.to_fault(&task.node);
    let admin = Session::connect_impatient(&task.conninfo, &format!("open {}", task.job))
        .await
        .map_err(fault)?;
    epochs::narrow(&admin, task, request).await?;
    if let Some(followed) = &request.followed {
        joining::check(&admin, task, followed, &request.filter).await?;
    }
    for attempt in 1..=ATTEMPTS {
        slot::remove(&admin, task, &task.cancel).await?;
        match attempt_open(task, request, locks, &admin).await? {
            Attempt::Open(open) => {
                admin.give_back().await;
                return Ok(*open);
            }
            Attempt::Changed(table) => {
                warn!(job_id = %task.job, attempt, near = ?table, "a table changed while the snapshot was taken");
            }
        }
    }
    let message = "tables keep being changed by DDL while their snapshot is being taken";
    Err(Fault::new(FaultKind::Failed, message)
        .hint("pause migrations and other DDL on the source, then run init again")
        .retry(Retry::Backoff)
        .on(&task.node))
}

enum Attempt {
    Open(Box<OpenSnapshot>),
    /// This table changed after the snapshot was taken.
    Changed(TableName),
}

async fn attempt_open(
    task: &Task,
    request: &OpenSource,
    locks: &Arc<LockRegistry>,
    admin: &Session,
) -> Result<Attempt, Fault> {
    let fault = |error: PgError| error.to_fault(&task.node);
    let name = task.replication.name();
    let before = Listing::load(admin).await.map_err(fault)?;
    let members = match request.epoch {
        Epoch(0) => publication::members(&before, &request.filter),
        Epoch(_) => epochs::unfinished(&before, request),
    };
    let published = publication::create(admin, &task.cancel, &name, &members).await;
    published.map_err(fault)?;

    let (lsn, held) = match request.export {
        Export::Slot
        | Export::Shared { .. }
        | Export::Stored(_)
        | Export::Template { .. }
        | Export::Files(_) => {
            let created = slot::create_bare(task, admin.conninfo(), admin).await;
            created.map_err(fault)?;
            (Lsn(0), None)
        }
        Export::SlotAndSnapshot => {
            let made = slot::create(task, admin.conninfo(), admin)
                .await
                .map_err(fault)?;
            let held = hold(task, locks, admin.conninfo(), &made.snapshot)
                .await
                .map_err(fault)?;
            // The holder exports the snapshot itself now: the walsender can go.
            made.connection.close().await;
            (made.lsn, Some(held))
        }
    };
    let opened_at = Timestamp::now();
    let at = held.as_ref().map_or(admin, |held| &held.holder);
    published::mark(admin, at, &name).await.map_err(fault)?;
    let export = held.as_ref().map(|held| held.export.as_str());
    let catalog = catalog::read(admin, export, &name, request);
    let Catalog {
        listing,
        names,
        selection,
        mut states,
    } = catalog.await.map_err(fault)?;
    if held.is_some() {
        let now = Listing::load(admin).await.map_err(fault)?;
        let changed = names
            .iter()
            .find(|n| now.relations.get(*n) != listing.relations.get(*n));
        if let Some(table) = changed {
            return Ok(Attempt::Changed(table.clone()));
        }
    }
    let plan = make_plan(task, request, admin, &listing, &names).await?;
    let of_extensions = read_extension_tables(admin).await;
    let of_extensions = of_extensions.map_err(fault)?;
    info!(job_id = %task.job, %lsn, tables = plan.tables.len(), parts = plan.parts, "source opened");
    let oids = names.iter().filter_map(|name| listing.relations.get(name));
    Ok(Attempt::Open(Box::new(OpenSnapshot {
        node: task.node.clone(),
        job: task.job,
        epoch: request.epoch,
        restarts: request.restarts,
        conninfo: admin.conninfo().clone(),
        server_version: admin.server_version(),
        encoding: admin.server_encoding().to_owned(),
        lsn,
        opened_at,
        plan,
        states: oids.map(|relation| states.remove(&relation.oid)).collect(),
        scope: Scope {
            excluded_with_root: listing.excluded_with_root(&request.filter),
            filter: request.filter.clone(),
            extension_tables: of_extensions
                .into_iter()
                .map(|table| table.name)
                .filter(|name| request.filter.admits(name))
                .collect(),
            selection,
        },
        dumped: tokio::sync::Mutex::default(),
        locks: Arc::clone(locks),
        held: Mutex::new(held),
        read: Mutex::new(BTreeMap::new()),
        sharing: Arc::new(Sharing::new(request.parallel)),
        spool: Arc::default(),
    })))
}

/// Imports the slot's snapshot into a session of our own and exports it from there. That session reads no
/// table, not even a catalog, as it would hold the lock to the end.
async fn hold(
    task: &Task,
    locks: &Arc<LockRegistry>,
    conninfo: &Conninfo,
    snapshot: &str,
) -> Result<Held, PgError> {
    let holder = Session::connect(conninfo, "snapshot").await?;
    holder
        .run(
            &task.cancel,
            holder.batch_execute(&catalog::import(snapshot)),
        )
        .await?;
    let exported = holder.query_one("SELECT pg_export_snapshot()", &[]);
    let export = holder.run(&task.cancel, exported).await?.try_get(0)?;
    let pool = Arc::new(Pool::new(conninfo.clone(), task.job));
    Ok(Held {
        holder,
        export,
        pool,
        _attended: locks.attend(),
    })
}

async fn make_plan(
    task: &Task,
    request: &OpenSource,
    session: &Session,
    listing: &Listing,
    names: &[TableName],
) -> Result<Plan, Fault> {
    let fault = |error: PgError| error.to_fault(&task.node);
    let sizes = listing::sizes(session, &catalog::oids(listing, names))
        .await
        .map_err(fault)?;
    let splitting = Splitting {
        parallel: request.parallel,
        large_table_threshold: request.large_table_threshold,
    };
    let types = match request.rows_as {
        RowsAs::TypesAllow => Types::load(session).await.map_err(fault)?,
        RowsAs::Text => Types::default(),
    };
    plan::make(listing, names, &sizes, &types, splitting)
        .map_err(|error| Fault::new(FaultKind::BadRequest, error.to_string()).on(&task.node))
}

impl OpenSnapshot {
    /// The slot's consistent point; 0/0 without a slot.
    pub(crate) fn lsn(&self) -> Lsn {
        self.lsn
    }

    /// Which of its job's snapshots it is.
    pub(crate) fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Whether this is the snapshot that the request asks for.
    pub(crate) fn is_of(&self, request: &OpenSource) -> bool {
        (self.epoch, self.restarts) == (request.epoch, request.restarts)
    }

    /// When the consistent point was taken.
    pub(crate) fn opened_at(&self) -> Timestamp {
        self.opened_at
    }

    pub(crate) fn filter(&self) -> &TableFilter {
        &self.scope.filter
    }

    /// The database's encoding, that of COPY data.
    pub(crate) fn encoding(&self) -> &str {
        &self.encoding
    }

    /// By number.
    pub(crate) fn tables(&self) -> &[TablePlan] {
        &self.plan.tables
    }

    /// By number.
    pub(crate) fn summaries(&self) -> Vec<TableSummary> {
        self.plan.summaries.clone()
    }

    pub(crate) fn parts(&self) -> u32 {
        self.plan.parts
    }

    /// Starts a dump of a schema section under the snapshot. Fails where no `pg_dump` is new enough.
    pub(crate) async fn schema(
        self: &Arc<Self>,
        section: SchemaSection,
        cancel: CancellationToken,
    ) -> Result<SchemaDump, Fault> {
        let export = {
            let held = lock(&self.held);
            held.as_ref().map(|held| held.export.clone())
        };
        let source = dump::DumpSource {
            node: &self.node,
            job: self.job,
            locks: &self.locks,
            conninfo: &self.conninfo,
            server_version: self.server_version,
            snapshot: export.as_deref(),
            scope: &self.scope,
        };
        dump::start(source, section, &self.dumped, cancel).await
    }

    /// Ends the snapshot; parts being read fail. The slot stays. Idempotent.
    pub(crate) async fn close(&self) {
        let held = lock(&self.held).take();
        if let Some(held) = held {
            held.pool.close().await;
            held.holder.close().await;
        }
    }

    /// Parts, rows and bytes that were read to their end at least once, in the formats that `target` reads.
    pub(crate) fn totals(&self, target: &NodeId) -> (u32, RowCount, ByteCount) {
        let mut parts = BTreeMap::new();
        for (read, counted) in lock(&self.read).iter() {
            let format = self.sharing.format(target, read.part);
            if format.is_none_or(|format| format == read.format) {
                parts.insert(read.part, *counted);
            }
        }
        let rows = parts.values().map(|(rows, _)| *rows).sum();
        let bytes = parts.values().map(|(_, bytes)| *bytes).sum();
        (u32::try_from(parts.len()).unwrap_or(u32::MAX), rows, bytes)
    }

    /// The targets that share it.
    pub(crate) fn sharing(&self) -> &Arc<Sharing> {
        &self.sharing
    }

    /// Where its parts are besides PostgreSQL.
    pub(crate) fn spool(&self) -> &Arc<Spool> {
        &self.spool
    }

    pub(crate) fn node(&self) -> &NodeId {
        &self.node
    }

    /// How long nobody has read a part under it; `None` where it is closed.
    pub(crate) fn idle_for(&self) -> Option<Duration> {
        lock(&self.held).as_ref().map(|held| held.pool.idle_for())
    }

    /// Whether the session that holds the snapshot ended by itself.
    pub(crate) fn is_broken(&self) -> bool {
        let held = lock(&self.held);
        held.as_ref().is_some_and(|held| held.holder.is_closed())
    }

    /// Whether the session that holds the snapshot has ended.
    pub(crate) fn is_lost(&self) -> bool {
        let held = lock(&self.held);
        held.as_ref().is_none_or(|held| held.holder.is_closed())
    }

    /// The pool to read with and the snapshot to import.
    pub(crate) fn readable(&self) -> Result<(Arc<Pool>, String), Fault> {
        let held = lock(&self.held);
        match held.as_ref() {
            Some(held) => Ok((Arc::clone(&held.pool), held.export.clone())),
            None => Err(
                Fault::new(FaultKind::Failed, "the job's snapshot is closed")
                    .hint("run init again")
                    .retry(Retry::Backoff)
                    .on(&self.node),
            ),
        }
    }

    pub(crate) fn state_of(&self, table: &TablePlan) -> Result<&TableState, Fault> {
        let state = self.states.get(table.no.0 as usize);
        state.and_then(Option::as_ref).ok_or_else(|| {
            let text = format!("the plan has no table {}", table.name);
            Fault::new(FaultKind::BadRequest, text).on(&self.node)
        })
    }

    /// A part waits for the table while the guard lives.
    pub(crate) fn wait_for(&self, table: u32) -> WaitsFor {
        self.locks.wait_for(self.job, table)
    }

    pub(crate) fn suspect(&self, table: u32) -> Option<String> {
        self.locks.suspect(table)
    }

    pub(crate) fn ended_for(&self, pid: i32) -> Option<String> {
        self.locks.ended_for(pid)
    }

    pub(crate) fn locate(&self, part: PartNo) -> Result<(&TablePlan, CtidRange), Fault> {
        let tables = &self.plan.tables;
        let after = tables.partition_point(|table| table.first_part <= part);
        let table = after.checked_sub(1).and_then(|at| tables.get(at));
        let range = table.and_then(|table| {
            let at = (part.0 - table.first_part.0) as usize;
            Some((table, *table.ranges.get(at)?))
        });
        range.ok_or_else(|| {
            let text = format!("the plan has no part {part}");
            Fault::new(FaultKind::BadRequest, text).on(&self.node)
        })
    }

    /// Counts a part that was read to its end, once.
    pub(crate) fn count(&self, part: PartAs, rows: RowCount, bytes: ByteCount) {
        lock(&self.read).insert(part, (rows, bytes));
    }
}
