//! The columns of what is replicated, looked at now and then: one query, one digest a replication.
//!
//! On a connection of its own, beside the observer's: reading expressions waits for tables that are
//! locked exclusively, and slots must be seen meanwhile. What cannot be read this time is what it was.

use std::sync::Arc;
use std::time::Duration;

use steep_protocol::message::agent::ReplicatedDigest;
use steep_protocol::message::job::ReplicationNames;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::pg::{Conninfo, PgError, Session};

/// A look that takes longer is given up; ten thousand tables take about a second.
const LOOK_TIMEOUT: Duration = Duration::from_secs(60);

/// Of a table that is locked longer than this, the next look will tell.
const PATIENCE: &str = "SET lock_timeout = '5s'";

/// Looks at the columns until cancelled.
#[derive(Debug)]
pub struct DigestWatcher {
    /// The database.
    pub conninfo: Arc<Conninfo>,
    /// Between two looks.
    pub every: Duration,
    /// Where digests go; the newest replace the last.
    pub seen: watch::Sender<Vec<ReplicatedDigest>>,
    /// Asks for a look now.
    pub now: Arc<Notify>,
}

impl DigestWatcher {
    /// Runs until cancelled.
    pub async fn run(self, cancel: CancellationToken) {
        let mut session = None;
        let mut tick = tokio::time::interval(self.every);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = cancel.cancelled() => return,
                _ = tick.tick() => {}
                () = self.now.notified() => {}
            }
            let looking = tokio::time::timeout(LOOK_TIMEOUT, self.look(&mut session));
            let looked = tokio::select! {
                () = cancel.cancelled() => return,
                looked = looking => looked,
            };
            match looked {
                Ok(Ok(digests)) => {
                    self.seen.send_if_modified(|seen| {
                        let news = *seen != digests;
                        *seen = digests;
                        news
                    });
                }
                Ok(Err(error)) => {
                    // The observer tells where PostgreSQL cannot be asked at all.
                    debug!(%error, "the columns of replicated tables could not be read");
                    session = None;
                }
                Err(_) => session = None,
            }
        }
    }

    async fn look(&self, session: &mut Option<Session>) -> Result<Vec<ReplicatedDigest>, PgError> {
        let session = match session {
            Some(session) => session,
            None => {
                let fresh = Session::connect(&self.conninfo, "digests").await?;
                fresh.batch_execute(PATIENCE).await?;
                session.insert(fresh)
            }
        };
        let sql =
            "SELECT pg_catalog.to_regprocedure('steep_repl.replicated_digest(text)') IS NOT NULL";
        if !session.query_typed(sql, &[]).await?[0].get::<_, bool>(0) {
            // Made with the first row that is mirrored.
            return Ok(Vec::new());
        }
        let sql = format!(
            "SELECT n.name, steep_repl.replicated_digest(n.name) FROM (
                SELECT s.subname::text AS name FROM pg_subscription s
                JOIN pg_database d ON d.oid = s.subdbid AND d.datname = current_database()
                UNION SELECT p.pubname::text FROM pg_publication p) AS n
             WHERE starts_with(n.name, '{}') ORDER BY n.name",
            ReplicationNames::PREFIX
        );
        let rows = session.query_typed(&sql, &[]).await?;
        let digest = |row: &tokio_postgres::Row| {
            let name: &str = row.get(0);
            let job = name.strip_prefix(ReplicationNames::PREFIX)?.parse().ok()?;
            let digest = row.get::<_, Option<String>>(1)?;
            Some(ReplicatedDigest { job, digest })
        };
        Ok(rows.iter().filter_map(digest).collect())
    }
}
