//! The hand-over to replication (G1): a subscription on the job's slot, its origin at the slot's LSN or the
//! backup's, enabled last.
//!
//! The source's connection string is a secret, and `CREATE SUBSCRIPTION` takes no parameters, so the
//! statement is composed on the server ([`crate::pg::secret_sql`]). Such a block cannot create slots, so a
//! native copy too uses a slot that the source has created. PostgreSQL itself keeps the string in
//! `pg_subscription.subconninfo`, which only superusers can read.

use std::time::Duration;

use steep_protocol::message::agent::{
    EarlierEpoch, SubscriptionStart, SubscriptionStatus, WorkProgress, WorkUnit,
};
use steep_protocol::message::handover::Replication;
use steep_protocol::message::job::{ReplicationNames, SyncSlots};
use steep_protocol::message::lineage::ChangeOrigin;
use steep_protocol::message::peer::Secret;
use steep_protocol::{Fault, FaultKind, Identifier, Lsn, Phase, Retry};
use tokio::time::MissedTickBehavior;
use tokio_postgres::error::SqlState;

use super::keep_out;
use super::server_log::troubles;
use super::subscribed::{self, wiring, wiring_sql};
use crate::node::connection::Conn;
use crate::node::wal_writer::WalWriterAwake;
use crate::pg::secret_sql;
use crate::pg::{PgError, Session, literal};
use crate::task::Task;

/// Interval while a native copy runs.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Worker errors after which a job is given up. Workers restart after five seconds
/// (`wal_retrieve_retry_interval`), so this is some twenty seconds of errors only.
const ERRORS_MAX: i64 = 4;

/// How long a subscription may lack its worker, on servers that do not count errors.
const ABSENT_MAX: Duration = Duration::from_secs(60);

pub(super) struct Found {
    pub(super) oid: u32,
    enabled: bool,
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
    let conn = Conn::open(task, "subscribe").await?;
    let own = (task.replication.clone(), start);
    let at_slot = |e: &EarlierEpoch| (e.replication(), SubscriptionStart::AtSlot(e.lsn));
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

fn gone(name: &Identifier) -> String {
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
    let outcome = in_a_block(conn, &statement, source).await;
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
    let altered = in_a_block(conn, &statement, source).await;
    altered.map_err(|error| {
        let mut fault = conn.fault(&error);
        let text = "the subscription cannot be given its connection string";
        fault.message = format!("{text}: {}", fault.message);
        fault
    })
}

/// Runs it without the connection string in any text.
async fn in_a_block(conn: &Conn, statement: &str, source: &Secret) -> Result<(), PgError> {
    let work = async {
        conn.session.batch_execute("BEGIN").await?;
        secret_sql::execute(&conn.session, statement, source.expose()).await
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

/// Waits until PostgreSQL's own copy has every table of the subscription ready. Fails where its workers
/// keep failing, or the subscription is gone or disabled.
pub(crate) async fn await_native_copy(task: &Task) -> Result<(), Fault> {
    let conn = Conn::open(task, "watch").await?;
    let _awake = WalWriterAwake::beside(task);
    let name = task.replication.name();
    let mut looks = tokio::time::interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut present = tokio::time::Instant::now();
    let mut trouble = Trouble::default();
    loop {
        tokio::select! {
            _ = looks.tick() => {}
            () = task.cancel.cancelled() => {
                return Err(conn.own(Fault::new(FaultKind::Cancelled, "cancelled")));
            }
        }
        let now = native(&conn, &name).await?;
        task.work(
            Phase::Copy,
            WorkProgress {
                done: now.ready,
                total: now.tables,
                unit: WorkUnit::Items,
                current: now.current,
                workers: now.workers,
            },
        );
        if now.ready == now.tables {
            keep_out::lift(&conn, task.job).await?;
            keep_out::held(&conn, task.job).await?;
            // What is added from here on is not part of this copy.
            let marked = subscribed::mark(&conn, &name).await;
            return marked.map_err(|error| conn.fault(&error));
        }
        if now.running {
            present = tokio::time::Instant::now();
        }
        let failing = trouble.is_lasting(now.ready, now.errors);
        if failing || present.elapsed() > ABSENT_MAX {
            return Err(stuck(&conn, task, &now.failing).await);
        }
    }
}

/// Worker errors since a table last became ready: occasional network errors do not stop a copy.
#[derive(Debug, Default)]
struct Trouble {
    ready: Option<u64>,
    errors: i64,
}

impl Trouble {
    /// Whether there are too many errors for the tables that became ready.
    fn is_lasting(&mut self, ready: u64, errors: i64) -> bool {
        if self.ready.is_none_or(|before| ready > before) {
            *self = Self {
                ready: Some(ready),
                errors,
            };
        }
        errors - self.errors >= ERRORS_MAX
    }
}

/// A retryable fault: PostgreSQL goes on trying, and the source may return or somebody may fix the cause.
async fn stuck(conn: &Conn, task: &Task, tables: &[String]) -> Fault {
    let mut what = "PostgreSQL's own copy keeps failing".to_owned();
    if !tables.is_empty() {
        what.push_str(&format!(", tables not ready: {}", tables.join(", ")));
    }
    let troubles = troubles(&conn.session, &[task.replication.id]).await;
    let trouble = troubles.ok().and_then(|told| told.into_iter().next());
    if let Some((_, trouble)) = trouble {
        what.push_str(&format!("; {trouble}"));
    }
    conn.own(Fault::new(FaultKind::Failed, what))
        .hint(
            "the reason is in this server's log (logical replication worker); also see the source's",
        )
        .retry(Retry::Backoff)
}

/// Progress of a native copy.
struct Native {
    tables: u64,
    ready: u64,
    workers: u8,
    current: Option<String>,
    running: bool,
    errors: i64,
    failing: Vec<String>,
}

async fn native(conn: &Conn, name: &Identifier) -> Result<Native, Fault> {
    let errors = match conn.session.server_version() {
        150_000.. => {
            "(SELECT apply_error_count + sync_error_count FROM pg_stat_subscription_stats t
              WHERE t.subid = s.oid)"
        }
        _ => "0::int8",
    };
    let sql = format!(
        "SELECT count(r.srrelid), count(*) FILTER (WHERE r.srsubstate = 'r'),
            EXISTS (SELECT FROM pg_stat_subscription w WHERE w.subid = s.oid AND w.pid IS NOT NULL),
            coalesce({errors}, 0)::int8,
            (array_agg(r.srrelid::regclass::text ORDER BY r.srrelid)
                FILTER (WHERE r.srsubstate <> 'r'))[1:10],
            s.subenabled
         FROM pg_subscription s JOIN pg_database d ON d.oid = s.subdbid
         LEFT JOIN pg_subscription_rel r ON r.srsubid = s.oid
         WHERE s.subname = $1 AND d.datname = current_database()
         GROUP BY s.oid, s.subenabled"
    );
    let rows = conn.rows(&sql, &[&name.as_str()]).await?;
    let missing = || conn.own(Fault::new(FaultKind::Failed, gone(name)));
    let row = rows.first().ok_or_else(missing)?;
    if !row.get::<_, bool>(5) {
        let fault = Fault::new(
            FaultKind::Failed,
            format!("subscription {name} is disabled"),
        );
        return Err(conn
            .own(fault)
            .hint("see this server's log for why, then run the command again"));
    }
    let count = |at: usize| u64::try_from(row.get::<_, i64>(at)).unwrap_or(0);
    let (current, workers) = copying(conn).await?;
    Ok(Native {
        tables: count(0),
        ready: count(1),
        running: row.get(2),
        errors: row.get(3),
        failing: row.get::<_, Option<Vec<String>>>(4).unwrap_or_default(),
        current,
        workers,
    })
}

/// The table with the most bytes being copied, and the number of copying workers.
async fn copying(conn: &Conn) -> Result<(Option<String>, u8), Fault> {
    let sql = "SELECT p.relid::regclass::text, pg_size_pretty(p.bytes_processed)
        FROM pg_stat_progress_copy p JOIN pg_stat_subscription w USING (pid)
        WHERE p.datname = current_database() ORDER BY p.bytes_processed DESC";
    let rows = conn.rows(sql, &[]).await?;
    let label =
        |row: &tokio_postgres::Row| format!("{}, {}", row.get::<_, &str>(0), row.get::<_, &str>(1));
    let workers = u8::try_from(rows.len()).unwrap_or(u8::MAX);
    Ok((rows.first().map(label), workers))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_count_from_the_last_table_that_was_made_ready() {
        let mut trouble = Trouble::default();
        // Errors from before the first look do not count.
        assert!(!trouble.is_lasting(0, 9));
        assert!(!trouble.is_lasting(0, 9 + ERRORS_MAX - 1));
        assert!(!trouble.is_lasting(1, 9 + ERRORS_MAX));
        assert!(!trouble.is_lasting(1, 9 + 2 * ERRORS_MAX - 1));
        assert!(trouble.is_lasting(1, 9 + 2 * ERRORS_MAX));
    }
}
