//! The publications of a job with several epochs: each names its own tables, and in the end they become one.
//!
//! A first epoch that shared its snapshot with other targets shares the publication too, so it gets one of its own. Its
//! slot's changes from before that are decoded for the shared one (`replication/subscription`).
//!
//! A table changes its publication in a transaction that has it locked against writers, so every change is
//! decoded for exactly one of the two: what was written before, for the old one; what comes after, for the new.

use std::collections::{BTreeSet, HashSet};
use std::time::{Duration, Instant};

use backon::Retryable as _;
use steep_protocol::message::agent::OpenSource;
use steep_protocol::message::job::TableFilter;
use steep_protocol::{Fault, Identifier, TableName};
use tokio_util::sync::CancellationToken;

use super::listing::Listing;
use super::{plan, publication, published, published_oids};
use crate::pg::{PgError, Session, catalog, lock_timeout};
use crate::task::Task;

/// Tables that are locked together, for some milliseconds.
const BATCH: usize = 100;

/// How long to look for a moment in which nobody writes to a table.
const MOVING_LIMIT: Duration = Duration::from_secs(5);

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(20);

/// The tables that a later epoch takes: those that are left, as far as they are still there.
pub(crate) fn unfinished(listing: &Listing, request: &OpenSource) -> Vec<TableName> {
    let left: HashSet<&TableName> = request.unfinished.iter().collect();
    let mut names = plan::names(listing, &request.filter);
    names.retain(|name| left.contains(name));
    names
}

/// Takes the tables that a new epoch copies out of the publications of the earlier ones, which from then on name their
/// tables one by one. Idempotent.
pub(crate) async fn narrow(
    session: &Session,
    task: &Task,
    request: &OpenSource,
) -> Result<(), Fault> {
    let fault = |error: PgError| error.to_fault(&task.node);
    for epoch in &request.earlier {
        let replication = &epoch.replication;
        let name = replication.name();
        let whose = match replication.shared() {
            Some(shared) if !exists(session, &name).await.map_err(fault)? => {
                // What others share is not altered, so it must still be what the tables were copied by.
                let made = Task {
                    replication: shared.clone(),
                    ..task.clone()
                };
                published::prove(session, &made).await.map_err(fault)??;
                Whose::Shared(shared.name())
            }
            Some(_) | None => Whose::Own,
        };
        let set = set_complete(session, &task.cancel, (&name, &whose), &request.unfinished);
        set.await.map_err(fault)?;
    }
    Ok(())
}

/// Which publication names the tables of an earlier epoch so far.
enum Whose {
    Own,
    Shared(Identifier),
}

/// Lets an earlier epoch's publication name the tables of the one so far, except those that leave.
async fn set_complete(
    session: &Session,
    cancel: &CancellationToken,
    (name, whose): (&Identifier, &Whose),
    leaving: &[TableName],
) -> Result<(), PgError> {
    let leaving: HashSet<&TableName> = leaving.iter().collect();
    let listing = Listing::load(session).await?;
    let so_far = match whose {
        Whose::Own => name,
        Whose::Shared(shared) => shared,
    };
    let mut leaves = leaves(session, &listing, so_far).await?;
    leaves.retain(|leaf| !leaving.contains(leaf));
    match whose {
        Whose::Own => set_members(session, cancel, name, &leaves).await?,
        Whose::Shared(_) => publication::create(session, cancel, name, &leaves).await?,
    }
    published::mark(session, session, name).await
}

async fn exists(session: &Session, name: &Identifier) -> Result<bool, PgError> {
    let sql = "SELECT EXISTS (SELECT FROM pg_publication WHERE pubname = $1)";
    Ok(session
        .query_one(sql, &[&name.as_str()])
        .await?
        .try_get(0)?)
}

/// Whether the publication names any table.
pub(crate) async fn has_tables(session: &Session, name: &Identifier) -> Result<bool, PgError> {
    Ok(!published_oids(session, name).await?.is_empty())
}

/// Moves the tables of one publication to another, as far as each can be locked without waiting. Returns those that
/// are left. Idempotent.
pub(crate) async fn move_tables(
    session: &Session,
    cancel: &CancellationToken,
    (from, into): (&Identifier, &Identifier),
) -> Result<Vec<TableName>, PgError> {
    let tables = members(session, from).await?;
    let mut busy: Vec<&[TableName]> = Vec::new();
    for batch in tables.chunks(BATCH) {
        if !try_move(session, cancel, (from, into), batch).await? {
            busy.extend(batch.chunks(1));
        }
    }
    let until = Instant::now() + MOVING_LIMIT;
    while !busy.is_empty() && Instant::now() < until {
        tokio::select! {
            () = tokio::time::sleep(PAUSE) => {}
            () = cancel.cancelled() => return Err(PgError::Cancelled),
        }
        let mut still = Vec::new();
        for table in busy {
            if !try_move(session, cancel, (from, into), table).await? {
                still.push(table);
            }
        }
        busy = still;
    }
    for name in [from, into] {
        published::mark(session, session, name).await?;
    }
    Ok(busy.into_iter().flatten().cloned().collect())
}

/// Lets a publication that names every table by itself name partitioned tables as a whole, as one that was made for
/// this filter does, so that later partitions belong to it. Does nothing where that would publish anything else.
pub(crate) async fn widen(
    session: &Session,
    cancel: &CancellationToken,
    name: &Identifier,
    filter: &TableFilter,
) -> Result<(), PgError> {
    let listing = Listing::load(session).await?;
    let now = leaves(session, &listing, name).await?;
    let wide = publication::members(&listing, filter);
    let known = wide.iter().filter_map(|name| listing.relations.get(name));
    if below(&listing, &known.map(|relation| relation.oid).collect()) != now {
        return Ok(());
    }
    set_members(session, cancel, name, &wide).await?;
    published::mark(session, session, name).await?;
    // A partition that was attached before the mark has no rows on the target.
    let after = Listing::load(session).await?;
    if leaves(session, &after, name).await? != now {
        set_members(session, cancel, name, &now).await?;
        published::mark(session, session, name).await?;
    }
    Ok(())
}

/// The tables with rows that a publication covers.
pub(super) async fn leaves(
    session: &Session,
    listing: &Listing,
    name: &Identifier,
) -> Result<Vec<TableName>, PgError> {
    Ok(below(listing, &published_oids(session, name).await?))
}

/// The tables with rows that a publication of `members` covers.
pub(super) fn below(listing: &Listing, members: &HashSet<u32>) -> Vec<TableName> {
    let all = plan::names(listing, &TableFilter::default());
    publication::published(listing, members, all)
}

/// The tables that a publication names.
pub(super) async fn members(
    session: &Session,
    name: &Identifier,
) -> Result<Vec<TableName>, PgError> {
    let sql = "SELECT n.nspname::text, c.relname::text FROM pg_publication_rel r \
         JOIN pg_publication p ON p.oid = r.prpubid JOIN pg_class c ON c.oid = r.prrelid \
         JOIN pg_namespace n ON n.oid = c.relnamespace WHERE p.pubname = $1 ORDER BY 1, 2";
    let rows = session.query(sql, &[&name.as_str()]).await?;
    rows.iter().map(|row| catalog::table_name(row, 0)).collect()
}

/// Lets the publication name exactly these tables.
pub(super) async fn set_members(
    session: &Session,
    cancel: &CancellationToken,
    name: &Identifier,
    wanted: &[TableName],
) -> Result<(), PgError> {
    let now: BTreeSet<TableName> = members(session, name).await?.into_iter().collect();
    let wanted: BTreeSet<TableName> = wanted.iter().cloned().collect();
    let (out, new): (Vec<_>, Vec<_>) = (
        now.difference(&wanted).collect(),
        wanted.difference(&now).collect(),
    );
    let publication = name.quoted();
    let mut changes = Vec::new();
    if !out.is_empty() {
        changes.push(format!(
            "ALTER PUBLICATION {publication} DROP TABLE {}",
            only(&out)
        ));
    }
    if !new.is_empty() {
        changes.push(format!(
            "ALTER PUBLICATION {publication} ADD TABLE {}",
            only(&new)
        ));
    }
    if changes.is_empty() {
        return Ok(());
    }
    let sql = format!(
        "BEGIN; SET LOCAL lock_timeout = '1s'; {}; COMMIT",
        changes.join("; ")
    );
    let attempt = || transact(session, cancel, &sql);
    let attempts = attempt.retry(lock_timeout::always());
    attempts.when(PgError::is_locked).await
}

/// Whether the tables could be locked, and so were moved.
async fn try_move(
    session: &Session,
    cancel: &CancellationToken,
    (from, into): (&Identifier, &Identifier),
    tables: &[TableName],
) -> Result<bool, PgError> {
    let tables = only(&tables.iter().collect::<Vec<_>>());
    // Whoever has written to a table and not ended holds a lock that conflicts with this one.
    let sql = format!(
        "BEGIN; SET LOCAL lock_timeout = '100ms'; LOCK TABLE {tables} IN SHARE ROW EXCLUSIVE MODE NOWAIT; \
         ALTER PUBLICATION {from} DROP TABLE {tables}; ALTER PUBLICATION {into} ADD TABLE {tables}; COMMIT",
        from = from.quoted(),
        into = into.quoted(),
    );
    match transact(session, cancel, &sql).await {
        Ok(()) => Ok(true),
        Err(error) if error.is_locked() => Ok(false),
        Err(error) => Err(error),
    }
}

async fn transact(session: &Session, cancel: &CancellationToken, sql: &str) -> Result<(), PgError> {
    let done = session.run(cancel, session.batch_execute(sql)).await;
    if done.is_err() {
        session.batch_execute("ROLLBACK").await?;
    }
    done
}

fn only(tables: &[&TableName]) -> String {
    let named = tables
        .iter()
        .map(|table| format!("ONLY {}", table.quoted()));
    named.collect::<Vec<_>>().join(", ")
}
