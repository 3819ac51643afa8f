//! Slots prepared for a hand-over from a backup: created, read, taken, given back, dropped.
//!
//! A prepared slot is noted in this database's `steep_repl.init_slots` before it is created, since a
//! forgotten slot would fill the disk (G5). A note names its node, as a physical copy of this server
//! contains it and must not take it for its own. The coordinator judges whether a hand-over may begin.

use steep_protocol::message::handover::{
    NotedSlot, PreparedSlot, PreparedState, Replication, ServerSlot, SlotFacts, SlotName, Used,
};
use steep_protocol::message::job::TableFilter;
use steep_protocol::{ByteCount, Fault, FaultKind, NodeId, SnapshotId, TableName};
use tokio_postgres::error::SqlState;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::node::own_schema;
use crate::node::slot_notes::{forget, lsn, readable, time};
use crate::pg::{PgError, Session};
use crate::snapshot::listing::Listing;
use crate::snapshot::slot::{self, SlotGone};
use crate::snapshot::{plan, publication, published, published_oids};
use crate::task::Task;

/// How long the note of an unfinished slot is valid, in seconds, so that the rest of a crash expires.
const UNFINISHED_SECONDS: i64 = 3_600;

/// Creates publication and slot of the task's replication and notes them, valid for `expires_seconds`.
/// Waits for older transactions. On error, what was created is removed as far as the server can be reached.
pub(crate) async fn prepare(task: &Task, expires_seconds: u64) -> Result<PreparedSlot, Fault> {
    let fault = |error: PgError| error.to_fault(&task.node);
    let session = task.connect("prepare").await?;
    own_schema::install(&session).await.map_err(fault)?;
    clear_unfinished(&session, task).await?;
    note(&session, task).await?;
    let mut made = Made::Nothing;
    let outcome = make(&session, task, expires_seconds, &mut made).await;
    if outcome.is_err() {
        task.tidy_up(tidy(&session, task, made)).await;
    }
    session.give_back().await;
    outcome
}

/// Drops what an attempt of the same order left whose process died: its note has the order's id.
async fn clear_unfinished(session: &Session, task: &Task) -> Result<(), Fault> {
    let sql = "SELECT EXISTS (SELECT FROM steep_repl.init_slots \
         WHERE slot_name = $1 AND job = $2 AND source_node = $3 AND target_node IS NULL)";
    let job = task.replication.id.to_string();
    let values: [&(dyn tokio_postgres::types::ToSql + Sync); 3] =
        [&task.replication.slot.as_str(), &job, &task.node.as_str()];
    let cleared = async {
        if session.query_one(sql, &values).await?.try_get(0)? {
            tidy(session, task, Made::Slot).await?;
        }
        Ok(())
    };
    cleared
        .await
        .map_err(|error: PgError| error.to_fault(&task.node))
}

/// What an attempt may have created.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Made {
    Nothing,
    Slot,
}

/// Notes the slot before its creation. A note that came with a copy of another node is replaced.
async fn note(session: &Session, task: &Task) -> Result<(), Fault> {
    let fault = |error: PgError| error.to_fault(&task.node);
    let slot = task.replication.slot.as_str();
    let job = task.replication.id.to_string();
    let sql = "SELECT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $1)";
    let values: [&(dyn tokio_postgres::types::ToSql + Sync); 1] = [&slot];
    let asked = session.run(&task.cancel, session.query_one(sql, &values));
    let there: bool = asked.await.map_err(fault)?.get(0);
    let sql = "INSERT INTO steep_repl.init_slots AS i (slot_name, job, source_node, expires_at) \
         VALUES ($1, $2, $3, now() + $4::int8 * interval '1 second') \
         ON CONFLICT (slot_name) DO UPDATE SET job = excluded.job, target_node = NULL, lsn = NULL, \
             source_node = excluded.source_node, created_at = now(), expires_at = excluded.expires_at \
         WHERE i.source_node IS DISTINCT FROM excluded.source_node";
    let note: [&(dyn tokio_postgres::types::ToSql + Sync); 4] =
        [&slot, &job, &task.node.as_str(), &UNFINISHED_SECONDS];
    if !there
        && session
            .execute(sql, &note)
            .await
            .map_err(|error| task.fault(error))?
            > 0
    {
        return Ok(());
    }
    let text = format!("there is a replication slot {slot} already, or one is being made");
    Err(Fault::new(FaultKind::BadRequest, text)
        .on(&task.node)
        .hint("choose another name, or drop that slot if nobody needs it"))
}

async fn make(
    session: &Session,
    task: &Task,
    expires_seconds: u64,
    made: &mut Made,
) -> Result<PreparedSlot, Fault> {
    let fault = |error: PgError| error.to_fault(&task.node);
    let replication = &task.replication;
    let listing = Listing::load(session).await.map_err(fault)?;
    let members = publication::members(&listing, &TableFilter::default());
    // Before the slot: what the slot decodes is published from its first byte.
    let name = replication.name();
    let created = publication::create(session, &task.cancel, &name, &members).await;
    created.map_err(fault)?;
    let created = slot::create_bare(task, session.conninfo(), session).await;
    let lsn = match created {
        Ok(lsn) => lsn,
        Err(error) => {
            // Cancelled or disconnected, it may exist.
            if !error.is(&SqlState::DUPLICATE_OBJECT) {
                *made = Made::Slot;
            }
            return Err(fault(error));
        }
    };
    *made = Made::Slot;
    let marked = published::mark(session, session, &replication.name()).await;
    marked.map_err(fault)?;
    let sql = "UPDATE steep_repl.init_slots SET lsn = $2::text::pg_lsn, created_at = now(), \
             expires_at = now() + $3::int8 * interval '1 second' \
         WHERE slot_name = $1 \
         RETURNING (extract(epoch FROM created_at) * 1000000)::int8, \
             (extract(epoch FROM expires_at) * 1000000)::int8";
    let seconds = i64::try_from(expires_seconds).unwrap_or(i64::MAX);
    let values: [&(dyn tokio_postgres::types::ToSql + Sync); 3] =
        [&replication.slot.as_str(), &lsn.to_string(), &seconds];
    let noted = session.run(&task.cancel, session.query_one(sql, &values));
    let row = noted.await.map_err(fault)?;
    info!(job_id = %task.job, slot = %replication.slot, %lsn, "slot prepared");
    Ok(PreparedSlot {
        replication: replication.clone(),
        lsn,
        created_at: time(&row, 0).map_err(fault)?,
        expires_at: time(&row, 1).map_err(fault)?,
        wal_held: ByteCount(0),
        // Known from the first observation on.
        wal_limit: None,
        state: PreparedState::Waiting,
    })
}

async fn tidy(session: &Session, task: &Task, made: Made) -> Result<(), PgError> {
    let replication = &task.replication;
    if made == Made::Slot {
        slot::drop_slot(session, &replication.slot, &CancellationToken::new()).await?;
    }
    let publication = replication.name().quoted();
    let sql = format!("DROP PUBLICATION IF EXISTS {publication}");
    session.batch_execute(&sql).await?;
    forget(session, replication).await
}

pub(crate) async fn slot_facts(task: &Task, filter: &TableFilter) -> Result<SlotFacts, Fault> {
    let gathered = async {
        let session = Session::connect(&task.conninfo, "preflight").await?;
        let facts = gather(task, &session, filter).await?;
        session.give_back().await;
        Ok(facts)
    };
    gathered.await.map_err(|error: PgError| task.fault(error))
}

async fn gather(
    task: &Task,
    session: &Session,
    filter: &TableFilter,
) -> Result<SlotFacts, PgError> {
    let replication = &task.replication;
    let mut facts = SlotFacts::default();
    if readable(session).await? {
        let sql = "SELECT lsn::text, (extract(epoch FROM expires_at) * 1000000)::int8, \
                 expires_at <= now(), target_node \
             FROM steep_repl.init_slots WHERE slot_name = $1 AND job = $2 AND source_node = $3 \
                 AND lsn IS NOT NULL AND expires_at IS NOT NULL";
        let job = replication.id.to_string();
        let values: [&(dyn tokio_postgres::types::ToSql + Sync); 3] =
            [&replication.slot.as_str(), &job, &task.node.as_str()];
        if let Some(row) = session.query_opt(sql, &values).await? {
            let target = row.try_get::<_, Option<&str>>(3)?;
            facts.noted = Some(NotedSlot {
                lsn: lsn(&row, 0)?.unwrap_or_default(),
                expires_at: time(&row, 1)?,
                expired: row.try_get(2)?,
                target: target.and_then(|target| NodeId::parse(target).ok()),
            });
        }
    }
    facts.slot = server_slot(session, &replication.slot).await?;
    let sql = "SELECT (CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() \
         ELSE pg_current_wal_insert_lsn() END)::text";
    let row = session.query_one(sql, &[]).await?;
    facts.wal_end = lsn(&row, 0)?.unwrap_or_default();
    let sql = "SELECT EXISTS (SELECT FROM pg_publication WHERE pubname = $1)";
    let name = replication.name();
    let row = session.query_one(sql, &[&name.as_str()]).await?;
    facts.published = row.try_get(0)?;
    let listing = Listing::load(session).await?;
    let members = published_oids(session, &name).await?;
    let wanted = plan::names(&listing, filter);
    let carried = publication::published(&listing, &members, wanted.clone());
    let missing = wanted.iter().filter(|name| !carried.contains(name));
    facts.unpublished = missing.map(TableName::to_string).collect();
    Ok(facts)
}

async fn server_slot(session: &Session, slot: &SlotName) -> Result<Option<ServerSlot>, PgError> {
    // As JSON, since only PostgreSQL 17 and newer have a column for the reason.
    let sql = "SELECT plugin::text, database IS NOT DISTINCT FROM current_database(), active, \
             coalesce(wal_status, ''), to_jsonb(s) ->> 'invalidation_reason', \
             restart_lsn::text, confirmed_flush_lsn::text \
         FROM pg_replication_slots s WHERE slot_name = $1";
    let row = session.query_opt(sql, &[&slot.as_str()]).await?;
    row.map(|row| {
        Ok(ServerSlot {
            plugin: row.try_get(0)?,
            own_database: row.try_get(1)?,
            active: row.try_get(2)?,
            wal_status: row.try_get(3)?,
            invalidated: row.try_get(4)?,
            restart: lsn(&row, 5)?,
            confirmed: lsn(&row, 6)?,
        })
    })
    .transpose()
}

/// Assigns the task's slot to `target`. Idempotent. Fails where the slot is another's, has expired or is
/// gone.
pub(crate) async fn take(task: &Task, target: &NodeId) -> Result<(), Fault> {
    let sql = "UPDATE steep_repl.init_slots SET target_node = $4 \
         WHERE slot_name = $1 AND job = $2 AND source_node = $3 AND lsn IS NOT NULL \
             AND (target_node = $4 OR target_node IS NULL AND expires_at > now()) \
             AND EXISTS (SELECT FROM pg_replication_slots s WHERE s.slot_name = $1)";
    let taken = change(task, target, sql).await?;
    if taken > 0 {
        let session = task.connect("handover").await?;
        let renewed = published::renew(&session, task).await;
        session.give_back().await;
        return renewed.map_err(|error| task.fault(error))?;
    }
    let slot = &task.replication.slot;
    let text = format!("the prepared slot {slot} has been dropped or taken meanwhile");
    Err(Fault::new(FaultKind::Failed, text)
        .on(&task.node)
        .hint("prepare another one, and take a backup after that"))
}

/// Makes the task's slot for `target` by copying a snapshot's template, at the same position. Noted first.
/// Idempotent. Fails where the template is gone.
pub(crate) async fn copy_template(
    task: &Task,
    target: &NodeId,
    snapshot: SnapshotId,
) -> Result<(), Fault> {
    let template = Replication::template(snapshot).slot;
    let session = task.connect("handover").await?;
    let copied = async {
        let slot = task.replication.slot.as_str();
        let there = "SELECT EXISTS (SELECT FROM steep_repl.init_slots i \
                 JOIN pg_replication_slots s USING (slot_name) \
                 WHERE i.slot_name = $1 AND i.target_node = $2)";
        let there = session.query_one(there, &[&slot, &target.as_str()]).await?;
        if there.try_get(0)? {
            return Ok(true);
        }
        let sql = "INSERT INTO steep_repl.init_slots AS i \
                 (slot_name, job, source_node, target_node, lsn, expires_at) \
             SELECT $1, job, source_node, $2, lsn, expires_at FROM steep_repl.init_slots \
             WHERE slot_name = $3 AND job = $4 AND source_node = $5 AND lsn IS NOT NULL \
                 AND EXISTS (SELECT FROM pg_replication_slots s WHERE s.slot_name = $3) \
             ON CONFLICT (slot_name) DO UPDATE SET target_node = excluded.target_node";
        let job = task.replication.id.to_string();
        let values: [&(dyn tokio_postgres::types::ToSql + Sync); 5] = [
            &slot,
            &target.as_str(),
            &template.as_str(),
            &job,
            &task.node.as_str(),
        ];
        if session.execute(sql, &values).await? == 0 {
            return Ok(false);
        }
        let sql = "SELECT pg_copy_logical_replication_slot($1::name, $2::name) \
             WHERE NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $2)";
        let values: [&(dyn tokio_postgres::types::ToSql + Sync); 2] = [&template.as_str(), &slot];
        session
            .run(&task.cancel, session.query(sql, &values))
            .await?;
        Ok(true)
    };
    let copied = copied.await;
    session.give_back().await;
    if copied.map_err(|error: PgError| task.fault(error))? {
        return Ok(());
    }
    let text =
        format!("the slot {template} of snapshot {snapshot} has expired or was dropped meanwhile");
    Err(Fault::new(FaultKind::Failed, text)
        .on(&task.node)
        .hint(
            "generate another snapshot: steep-repl snapshot generate; or load this one without replication: \
             steep-repl snapshot apply --no-subscribe",
        ))
}

/// The target does not use the task's slot after all. If changes may have been applied from it, only a
/// backup taken from here on can use it. Idempotent.
pub(crate) async fn give_back(task: &Task, target: &NodeId, used: Used) -> Result<(), Fault> {
    let lsn = match used {
        Used::No => "lsn",
        Used::Perhaps => "greatest(lsn, pg_current_wal_insert_lsn())",
    };
    let sql = format!(
        "UPDATE steep_repl.init_slots SET target_node = NULL, lsn = {lsn} \
         WHERE slot_name = $1 AND job = $2 AND source_node = $3 AND target_node = $4"
    );
    change(task, target, &sql).await.map(drop)
}

async fn change(task: &Task, target: &NodeId, sql: &str) -> Result<u64, Fault> {
    let changed = async {
        let session = Session::connect(&task.conninfo, "handover").await?;
        if !readable(&session).await? {
            session.give_back().await;
            return Ok(0);
        }
        let job = task.replication.id.to_string();
        let slot = task.replication.slot.as_str();
        let values: [&(dyn tokio_postgres::types::ToSql + Sync); 4] =
            [&slot, &job, &task.node.as_str(), &target.as_str()];
        let changed = session
            .run(&task.cancel, session.execute(sql, &values))
            .await?;
        session.give_back().await;
        Ok(changed)
    };
    changed.await.map_err(|error: PgError| task.fault(error))
}

/// Drops the task's prepared slot on an operator's request. Fails where a node uses it, or the server does
/// not release it.
pub(crate) async fn drop_prepared(task: &Task) -> Result<(), Fault> {
    let fault = |error: PgError| error.to_fault(&task.node);
    let session = task.connect("prepare").await?;
    let dropped = drop_unused(
        &session,
        &task.node,
        &task.replication,
        Unwanted::ByOperator,
    );
    let dropped = dropped.await.map_err(fault)?;
    let kept = match dropped {
        Dropped::Yes => None,
        Dropped::No => Some(kept(&session, task).await.map_err(fault)?),
    };
    session.give_back().await;
    kept.map_or(Ok(()), Err)
}

/// Why the task's slot was not dropped.
async fn kept(session: &Session, task: &Task) -> Result<Fault, PgError> {
    let slot = &task.replication.slot;
    let sql = "SELECT i.target_node, s.active_pid FROM steep_repl.init_slots i \
         LEFT JOIN pg_replication_slots s ON s.slot_name = i.slot_name \
         WHERE i.slot_name = $1 AND i.job = $2 AND i.source_node = $3";
    let job = task.replication.id.to_string();
    let values: [&(dyn tokio_postgres::types::ToSql + Sync); 3] =
        [&slot.as_str(), &job, &task.node.as_str()];
    let Some(row) = session.query_opt(sql, &values).await? else {
        return Ok(not_dropped(task, None, None));
    };
    Ok(not_dropped(task, Some(row.try_get(0)?), row.try_get(1)?))
}

/// `target` is the node that has the slot, if its note is there; `pid` the session that uses it.
fn not_dropped(task: &Task, target: Option<Option<String>>, pid: Option<i32>) -> Fault {
    let slot = &task.replication.slot;
    let node = &task.node;
    let (text, hint) = match (target, pid) {
        (None, _) => (
            format!("the slot {slot} is not prepared here"),
            format!("see which are: steep-repl status {node}"),
        ),
        (Some(Some(target)), _) => (
            format!("{target} uses the slot {slot}"),
            format!(
                "while {target} is a replica it needs the slot; to end that, run steep-repl init cancel --node {target}"
            ),
        ),
        (Some(None), Some(pid)) => (
            format!(
                "no node has the slot {slot}, but the session with process id {pid} reads from it"
            ),
            format!(
                "end what reads from it, or on the server: SELECT pg_terminate_backend({pid}); then drop the slot again"
            ),
        ),
        (Some(None), None) => (
            format!("the slot {slot} was in use a moment ago"),
            "run the command again".to_owned(),
        ),
    };
    Fault::new(FaultKind::Failed, text).on(node).hint(hint)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unwanted {
    Expired,
    ByOperator,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dropped {
    Yes,
    /// A target has it, its note is gone, or it is in use.
    No,
}

/// Drops slot, publication and note, unless a target has the slot. Locks the note meanwhile, so that nobody
/// takes it.
pub(crate) async fn drop_unused(
    session: &Session,
    node: &NodeId,
    replication: &Replication,
    why: Unwanted,
) -> Result<Dropped, PgError> {
    session.batch_execute("BEGIN").await?;
    let outcome = drop_noted(session, node, replication, why).await;
    let end = match outcome {
        Ok(Dropped::Yes) => "COMMIT",
        Ok(Dropped::No) | Err(_) => "ROLLBACK",
    };
    session.batch_execute(end).await?;
    outcome
}

async fn drop_noted(
    session: &Session,
    node: &NodeId,
    replication: &Replication,
    why: Unwanted,
) -> Result<Dropped, PgError> {
    let due = match why {
        Unwanted::Expired => "expires_at <= now()",
        // Also what an attempt left whose process died.
        Unwanted::ByOperator => "true",
    };
    let sql = format!(
        "SELECT 1 FROM steep_repl.init_slots WHERE slot_name = $1 AND job = $2 \
             AND source_node = $3 AND target_node IS NULL AND {due} FOR UPDATE"
    );
    let (slot, job) = (&replication.slot, replication.id.to_string());
    let values: [&(dyn tokio_postgres::types::ToSql + Sync); 3] =
        [&slot.as_str(), &job, &node.as_str()];
    if session.query_opt(&sql, &values).await?.is_none() {
        return Ok(Dropped::No);
    }
    if slot::drop_slot(session, slot, &CancellationToken::new()).await? == SlotGone::StillInUse {
        return Ok(Dropped::No);
    }
    slot::drop_publication(session, replication).await?;
    forget(session, replication).await?;
    Ok(Dropped::Yes)
}
