//! Keeps the server's WAL writer awake while rows are loaded and indexes are built.
//!
//! A load fills the WAL buffers faster than the WAL writer wakes (`wal_writer_delay`, 200 ms). The loading
//! backends then write the WAL themselves and wait for the disk. An asynchronous commit wakes the WAL
//! writer early (PostgreSQL manual, "Asynchronous Commit"), so this sends one whenever some WAL has
//! accumulated: a message that nobody reads, needs no transaction id and waits for nothing. Two COPYs of
//! 1.3 GB together took 9.0 to 11.1 s without it and 6.2 to 8.3 s with it (PostgreSQL 18, 2 processors).

use std::time::Duration;

use steep_protocol::{Fault, FaultKind};
use tokio::task::JoinSet;
use tracing::debug;

use super::connection::Conn;
use crate::task::Task;

/// WAL bytes between two messages: small beside the buffers (4 to 16 MiB by default), and as much as the
/// WAL writer thinks worth a write (`wal_writer_flush_after`, 1 MiB).
const STRIDE: u64 = 2 * 1024 * 1024;

/// More messages than this would cost something.
const PAUSE_MIN: Duration = Duration::from_millis(5);

/// Fewer would notice the start of a load late.
const PAUSE_MAX: Duration = Duration::from_millis(160);

/// Before reconnecting.
const AGAIN: Duration = Duration::from_secs(5);

/// Writes the message and returns the WAL position. Non-transactional, so it needs no transaction id.
const MESSAGE: &str =
    "SELECT (pg_logical_emit_message(false, 'steep_repl', '') - '0/0'::pg_lsn)::int8";

/// Keeps the WAL writer of the task's node awake while it lives, on a connection of its own.
///
/// Only a speed-up: errors here are ignored.
#[derive(Debug)]
pub(crate) struct WalWriterAwake {
    _runner: JoinSet<()>,
}

impl WalWriterAwake {
    pub(crate) fn beside(task: &Task) -> Self {
        let task = task.clone();
        let mut runner = JoinSet::new();
        runner.spawn(async move {
            while let Err(fault) = keep(&task).await
                && !matches!(fault.kind, FaultKind::Cancelled | FaultKind::Unauthorized)
            {
                debug!(error = %fault, "the WAL writer is not kept awake for a while");
                tokio::time::sleep(AGAIN).await;
            }
        });
        Self { _runner: runner }
    }
}

/// Sends messages until something fails.
async fn keep(task: &Task) -> Result<(), Fault> {
    let conn = Conn::to_catalog(task, "wal").await?;
    let statement = conn.run(conn.session.prepare(MESSAGE)).await;
    let statement = statement.map_err(|error| conn.fault(&error))?;
    let (mut pause, mut at) = (PAUSE_MIN, None);
    loop {
        let row = conn.run(conn.session.query_one(&statement, &[])).await;
        let row = row.map_err(|error| conn.fault(&error))?;
        let now = u64::try_from(row.get::<_, i64>(0)).unwrap_or(0);
        if let Some(before) = at.replace(now) {
            pause = next(pause, now.saturating_sub(before));
        }
        tokio::time::sleep(pause).await;
    }
}

/// The pause in which [`STRIDE`] would accumulate at the current rate. It grows step by step, as a load may
/// stop for a moment, and shrinks at once.
fn next(pause: Duration, grown: u64) -> Duration {
    let fitting = pause.mul_f64(STRIDE as f64 / grown.max(1) as f64);
    fitting.min(pause * 2).clamp(PAUSE_MIN, PAUSE_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The pause reached while WAL comes at `rate` bytes a second.
    fn settled(mut pause: Duration, rate: f64) -> Duration {
        for _ in 0..10 {
            pause = next(pause, (rate * pause.as_secs_f64()) as u64);
        }
        pause
    }

    #[test]
    fn messages_are_as_frequent_as_the_wal_is_fast() {
        let at = |rate| settled(PAUSE_MAX, rate).as_millis();
        assert_eq!(at(0.0), PAUSE_MAX.as_millis());
        assert_eq!(at(1e5), PAUSE_MAX.as_millis());
        assert_eq!(at(104_857_600.0), 20);
        assert_eq!(at(1e12), PAUSE_MIN.as_millis());
    }

    #[test]
    fn a_moment_without_wal_is_not_yet_the_end_of_a_load() {
        let pause = Duration::from_millis(20);
        assert_eq!(next(pause, 0), pause * 2);
        assert_eq!(next(pause, 8 * STRIDE), PAUSE_MIN);
    }
}
