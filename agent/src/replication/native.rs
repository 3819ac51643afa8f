//! PostgreSQL's own copy: waited for, and given up where its workers keep failing.

use std::time::Duration;

use steep_protocol::message::agent::{WorkProgress, WorkUnit};
use steep_protocol::{Fault, FaultKind, Identifier, Phase, Retry};
use tokio::time::MissedTickBehavior;

use super::server_log::troubles;
use super::subscription::gone;
use super::{keep_out, subscribed};
use crate::node::connection::Conn;
use crate::node::wal_writer::WalWriterAwake;
use crate::task::Task;

/// Interval while a native copy runs.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Worker errors after which a job is given up. Workers restart after five seconds
/// (`wal_retrieve_retry_interval`), so this is some twenty seconds of errors only.
const ERRORS_MAX: i64 = 4;

/// How long a subscription may lack its worker, on servers that do not count errors.
const ABSENT_MAX: Duration = Duration::from_secs(60);

/// Waits until PostgreSQL's own copy has every table of the subscription ready. Fails where its workers
/// keep failing, or the subscription is gone or disabled.
pub(crate) async fn await_native_copy(task: &Task) -> Result<(), Fault> {
    let conn = Conn::to_catalog(task, "watch").await?;
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
