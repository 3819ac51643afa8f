//! The hand-over to replication (G1): a subscription on the job's slot, its origin at the slot's LSN or the
//! backup's, enabled last.
//!
//! The source's connection string is a secret, and `CREATE SUBSCRIPTION` takes no parameters, so the
//! statement is composed on the server ([`crate::pg::secret_sql`]). Such a block cannot create slots, so a
//! native copy too uses a slot that the source has created. PostgreSQL itself keeps the string in
//! `pg_subscription.subconninfo`, which only superusers can read.

use steep_protocol::message::agent::{EarlierEpoch, SubscriptionStart, SubscriptionStatus};
use steep_protocol::message::handover::Replication;
use steep_protocol::message::job::{ReplicationNames, SyncSlots};
use steep_protocol::message::lineage::ChangeOrigin;
use steep_protocol::message::peer::Secret;
use steep_protocol::{Fault, FaultKind, Identifier, Lsn, Retry};
use tokio_postgres::error::SqlState;

use super::keep_out;
use super::subscribed::{self, wiring, wiring_sql};
use crate::node::connection::Conn;
use crate::pg::secret_sql;
use crate::pg::{PgError, Session, literal};
use crate::task::Task;

pub(super) struct Found {
    pub(super) oid: u32,
    pub(super) enabled: bool,
}

pub(super) async fn find(conn: &Conn, name: &Identifier) -> Result<Option<Found>, Fault> {
    let sql = "SELECT s.oid, s.subenabled FROM pg_subscription s
        JOIN pg_database d ON d.oid = s.subdbid
        WHERE d.datname = current_database() AND s.subname = $1";
    let rows = conn.rows(sql, &[&name.as_str()]).await?;
    Ok(rows.first().map(|row| Found {
        oid: row.get(0),
        enabled: row.get(1),
    }))
}

/// Creates the job's subscription, and one for each earlier epoch, and enables them. Repeated, goes on where it was:
/// an enabled one only gets the present connection string, since its origin has moved. Returns the slots of its own
/// copy, if it copies.
pub(crate) async fn subscribe(
    task: &Task,
    source: &Secret,
    (start, origin): (SubscriptionStart, ChangeOrigin),
    earlier: &[EarlierEpoch],
) -> Result<Option<SyncSlots>, Fault> {
    let conn = Conn::to_catalog(task, "subscribe").await?;
    let own = (task.replication.clone(), start);
    let at_slot = |e: &EarlierEpoch| (e.replication.clone(), SubscriptionStart::AtSlot(e.lsn));
    let all: Vec<_> = earlier.iter().map(at_slot).chain([own]).collect();
    let mut waiting = Vec::new();
    let mut sync_slots = None;
    for (replication, start) in &all {
        let found = made(&conn, source, (*start, origin), replication).await?;
        if *start == SubscriptionStart::NativeCopy {
            sync_slots = Some(self::sync_slots(&conn, &found).await?);
        }
        if !found.enabled {
            waiting.push(replication.name());
        }
    }
    if !waiting.is_empty() && start != SubscriptionStart::NativeCopy {
        keep_out::lift(&conn, task.job).await?;
        keep_out::held(&conn, task.job).await?;
    }
    for name in waiting {
        enable(&conn, &name).await?;
    }
    conn.give_back().await;
    Ok(sync_slots)
}

/// The subscription, at its position, created if it is not there.
async fn made(
    conn: &Conn,
    source: &Secret,
    (start, origin): (SubscriptionStart, ChangeOrigin),
    replication: &Replication,
) -> Result<Found, Fault> {
    let name = replication.name();
    let found = match find(conn, &name).await? {
        Some(found) => {
            reconnect(conn, source, &name).await?;
            found
        }
        None => {
            create(conn, source, (start, origin), replication).await?;
            let made = find(conn, &name).await?;
            made.ok_or_else(|| conn.own(Fault::new(FaultKind::Failed, gone(&name))))?
        }
    };
    match start {
        _ if found.enabled => {}
        SubscriptionStart::AtSlot(lsn) => advance(conn, found.oid, lsn, Position::Told).await?,
        SubscriptionStart::AtOrigin(lsn) => {
            drop_copied_publication(conn, &name).await;
            advance(conn, found.oid, lsn, Position::Decides).await?;
        }
        SubscriptionStart::NativeCopy => {}
    }
    Ok(found)
}

/// Marks the subscription as complete, and starts it.
pub(super) async fn enable(conn: &Conn, name: &Identifier) -> Result<(), Fault> {
    let marked = subscribed::mark(conn, name).await;
    marked.map_err(|error| conn.fault(&error))?;
    let enable = format!("ALTER SUBSCRIPTION {} ENABLE", name.quoted());
    conn.execute(&enable).await
}

async fn sync_slots(conn: &Conn, subscription: &Found) -> Result<SyncSlots, Fault> {
    let sql = "SELECT system_identifier FROM pg_control_system()";
    let system: i64 = conn.row(sql, &[]).await?.get(0);
    Ok(SyncSlots {
        subscription: subscription.oid,
        // Unsigned, as PostgreSQL shows it.
        system: system.cast_unsigned(),
    })
}

/// A physical copy of the source contains the prepared publication, which is useless here and harmless
/// where it cannot be dropped.
async fn drop_copied_publication(conn: &Conn, name: &Identifier) {
    let sql = format!("DROP PUBLICATION IF EXISTS {}", name.quoted());
    if let Err(error) = conn.attempt(&sql).await {
        tracing::debug!(%error, "the publication of the copied source is left");
    }
}

pub(super) fn gone(name: &Identifier) -> String {
    format!("subscription {name} is not there")
}

pub(super) async fn create(
    conn: &Conn,
    source: &Secret,
    (start, origin): (SubscriptionStart, ChangeOrigin),
    replication: &Replication,
) -> Result<(), Fault> {
    let version = conn.session.server_version();
    let copy_data = match start {
        SubscriptionStart::AtSlot(_) | SubscriptionStart::AtOrigin(_) => "false",
        SubscriptionStart::NativeCopy => "true",
    };
    let mut options = format!("create_slot = false, enabled = false, copy_data = {copy_data}");
    options.push_str(&format!(
        ", slot_name = {}",
        literal(replication.slot.as_str())
    ));
    options.push_str(match (version, origin) {
        (160_000.., ChangeOrigin::Any) => ", streaming = parallel, origin = any",
        (160_000.., ChangeOrigin::None) => ", streaming = parallel, origin = none",
        (_, ChangeOrigin::Any) => ", streaming = on",
        (_, ChangeOrigin::None) => return Err(conn.own(origin_unknown())),
    });
    let quoted = replication.name().quoted();
    let statement =
        format!("CREATE SUBSCRIPTION {quoted} CONNECTION %L PUBLICATION {quoted} WITH ({options})");
    // Its own publication says which tables it applies changes of. Decoding looks in the catalog of the past, where
    // only the shared one is known: what that has of other tables, the apply worker skips.
    let then = replication
        .shared()
        .map(|shared| publication(replication, &shared));
    let outcome = in_a_block(conn, (&statement, then.as_deref()), source).await;
    match outcome {
        Ok(()) => Ok(()),
        // Another try of the same command came first.
        Err(error) if error.is(&SqlState::DUPLICATE_OBJECT) => Ok(()),
        Err(error) => Err(refused(conn, &error)),
    }
}

/// Without the option, changes would return to where they were made.
fn origin_unknown() -> Fault {
    let text = "changes of this node would come back to it: subscriptions know where a change was \
                made only since PostgreSQL 16";
    Fault::new(FaultKind::Failed, text).hint("upgrade both servers to PostgreSQL 16 or newer")
}

/// Gives an existing subscription the present connection string, which may have been mended since. Its worker
/// restarts only if the string differs.
async fn reconnect(conn: &Conn, source: &Secret, name: &Identifier) -> Result<(), Fault> {
    let statement = format!("ALTER SUBSCRIPTION {} CONNECTION %L", name.quoted());
    let altered = in_a_block(conn, (&statement, None), source).await;
    altered.map_err(|error| {
        let mut fault = conn.fault(&error);
        let text = "the subscription cannot be given its connection string";
        fault.message = format!("{text}: {}", fault.message);
        fault
    })
}

/// Has the subscription's slot decoded for that publication. The tables that it applies changes of stay.
fn publication(subscription: &Replication, publication: &Replication) -> String {
    format!(
        "ALTER SUBSCRIPTION {} SET PUBLICATION {} WITH (refresh = false)",
        subscription.name().quoted(),
        publication.name().quoted()
    )
}

/// Has the subscription's slot decoded for its own publication from `position` on. It stands still, and has everything
/// from before that.
pub(super) async fn use_own_publication(
    conn: &Conn,
    replication: &Replication,
    position: Lsn,
) -> Result<(), Fault> {
    let name = replication.name();
    let found = find(conn, &name).await?;
    let found = found.ok_or_else(|| conn.own(Fault::new(FaultKind::Failed, gone(&name))))?;
    advance(conn, found.oid, position, Position::Decides).await?;
    conn.execute(&publication(replication, replication)).await?;
    enable(conn, &name).await
}

/// Runs a statement without the connection string in any text, and then another one, in one transaction.
pub(super) async fn in_a_block(
    conn: &Conn,
    (statement, then): (&str, Option<&str>),
    source: &Secret,
) -> Result<(), PgError> {
    let work = async {
        conn.session.batch_execute("BEGIN").await?;
        let done = secret_sql::execute(&conn.session, statement, source.expose()).await?;
        if let (Ok(()), Some(then)) = (&done, then) {
            conn.session.batch_execute(then).await?;
        }
        Ok(done)
    };
    let outcome = conn.run(work).await;
    let end = if matches!(outcome, Ok(Ok(()))) {
        "COMMIT"
    } else {
        "ROLLBACK"
    };
    let ended = conn.session.batch_execute(end).await;
    if let Err(refusal) = outcome? {
        return Err(PgError::refused(&refusal.code, &refusal.message));
    }
    Ok(ended?)
}

fn refused(conn: &Conn, error: &PgError) -> Fault {
    let mut fault = conn.fault(error);
    let Some(code) = error.sqlstate() else {
        return fault;
    };
    fault.message = format!("the subscription cannot be created: {}", fault.message);
    if *code == SqlState::CONNECTION_FAILURE
        || *code == SqlState::SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION
    {
        fault.kind = FaultKind::Unreachable;
        fault.retry = Retry::Backoff;
        return fault.hint(
            "this server must reach the source's PostgreSQL: check --replication-conninfo of the source's agent, its pg_hba.conf and the network",
        );
    }
    if *code == SqlState::INSUFFICIENT_PRIVILEGE {
        return fault.hint(
            "let the agent connect as a superuser, or grant its role pg_create_subscription (PostgreSQL 16 and newer)",
        );
    }
    fault
}

/// What an origin's position is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Position {
    /// For display, since the source sends nothing from before its slot's position anyway:
    /// `pg_stat_subscription` and the origin are right from the start, and nothing is sent twice after a
    /// slot was moved by hand. A role that may not set it goes without.
    Told,
    /// For correctness: the slot begins before the end of the rows.
    Decides,
}

/// Sets the position where the subscription's changes begin.
pub(super) async fn advance(
    conn: &Conn,
    oid: u32,
    lsn: Lsn,
    position: Position,
) -> Result<(), Fault> {
    let origin = literal(&format!("pg_{oid}"));
    let sql = format!(
        "SELECT pg_replication_origin_advance({origin}, '{lsn}')
         WHERE coalesce(pg_replication_origin_progress({origin}, false), '0/0') < '{lsn}'"
    );
    match conn.attempt(&sql).await {
        Ok(()) => Ok(()),
        Err(error) if error.is(&SqlState::INSUFFICIENT_PRIVILEGE) && position == Position::Told => {
            tracing::debug!(%error, "the origin is left where it is");
            Ok(())
        }
        Err(error) => Err(conn.fault(&error)),
    }
}

/// Our subscriptions in this database.
pub(crate) async fn subscription_statuses(
    session: &Session,
) -> Result<Vec<SubscriptionStatus>, PgError> {
    let errors = match session.server_version() {
        150_000.. => {
            "(SELECT apply_error_count FROM pg_stat_subscription_stats t WHERE t.subid = s.oid)"
        }
        _ => "0::int8",
    };
    let sql = format!(
        "SELECT s.subname::text, s.subenabled,
            EXISTS (SELECT FROM pg_stat_subscription w
                WHERE w.subid = s.oid AND w.pid IS NOT NULL AND w.relid IS NULL),
            coalesce({errors}, 0)::int8, {}
         FROM pg_subscription s JOIN pg_database d ON d.oid = s.subdbid
         WHERE d.datname = current_database() AND starts_with(s.subname::text, '{}')
         ORDER BY s.subname",
        wiring_sql(session.server_version()),
        ReplicationNames::PREFIX
    );
    let rows = session.query_typed(&sql, &[]).await?;
    let status = |row: &tokio_postgres::Row| {
        let name: &str = row.get(0);
        let job = name.strip_prefix(ReplicationNames::PREFIX)?.parse().ok()?;
        Some(SubscriptionStatus {
            job,
            enabled: row.get(1),
            running: row.get(2),
            apply_errors: u64::try_from(row.get::<_, i64>(3)).unwrap_or(0),
            wiring: wiring(row.get(4)),
            mark: row.get(5),
            altered_by: u64::try_from(row.get::<_, i64>(6)).unwrap_or(0),
            trouble: None,
        })
    };
    Ok(rows.iter().filter_map(status).collect())
}

/// Drops the job's subscription and what it leaves, without the source, which may be dead: its slot is the
/// source's to remove.
pub(crate) async fn unsubscribe(conn: &Conn, name: &Identifier) -> Result<(), Fault> {
    let Some(found) = find(conn, name).await? else {
        return Ok(());
    };
    let quoted = name.quoted();
    for sql in [
        format!("ALTER SUBSCRIPTION {quoted} DISABLE"),
        format!("ALTER SUBSCRIPTION {quoted} SET (slot_name = NONE)"),
        format!("DROP SUBSCRIPTION IF EXISTS {quoted}"),
    ] {
        conn.execute(&sql).await?;
    }
    let origin = literal(&format!("pg_{}", found.oid));
    let left = format!(
        "SELECT pg_replication_origin_drop(roname) FROM pg_replication_origin WHERE roname = {origin}"
    );
    match conn.attempt(&left).await {
        Err(error) if !error.is(&SqlState::INSUFFICIENT_PRIVILEGE) => Err(conn.fault(&error)),
        _ => Ok(()),
    }
}
