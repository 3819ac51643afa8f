//! The columns of what is replicated, looked at now and then: one query, one digest a replication, each
//! table's fingerprint computed once however many replications carry it.
//!
//! On a connection of its own, beside the observer's: reading expressions waits for tables that are
//! locked exclusively, and slots must be seen meanwhile. What cannot be read this time is what it was.

use std::sync::Arc;
use std::time::Duration;

use steep_protocol::message::agent::ReplicatedDigest;
use steep_protocol::message::job::ReplicationNames;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_postgres::types::Type;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::pg::{Conninfo, LOCK_MOMENT, OwnSchema, PgError, Session};

/// A look that takes longer is given up; ten thousand tables take about a second.
const LOOK_TIMEOUT: Duration = Duration::from_secs(60);

/// Looks that were asked for are this far apart: a subscription that keeps failing asks every few
/// seconds, and its columns do not change by that.
const ASKED_EVERY: Duration = Duration::from_secs(15);

/// The digests of every replication of ours here, each as `steep_repl.replicated_digest` computes one
/// (`extension/`): a test holds them together.
const DIGESTS: &str = include_str!("digests.sql");

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
        let mut may_be_asked = Instant::now();
        loop {
            // A request that comes too soon is kept by the `Notify` until its time.
            let asked = async {
                tokio::time::sleep_until(may_be_asked).await;
                self.now.notified().await;
            };
            tokio::select! {
                () = cancel.cancelled() => return,
                _ = tick.tick() => {}
                () = asked => may_be_asked = Instant::now() + ASKED_EVERY,
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
                // Of a table that is locked longer, the next look will tell.
                fresh.batch_execute(LOCK_MOMENT).await?;
                session.insert(fresh)
            }
        };
        let sql = "SELECT pg_catalog.to_regprocedure('steep_repl.fingerprints(oid[])') IS NOT NULL";
        // Looked at anew each time: nothing is called in a schema that is not to be trusted.
        let absent = session.own_schema().await? == OwnSchema::Absent;
        if absent || !session.query_typed(sql, &[]).await?[0].get::<_, bool>(0) {
            // Made with the first row that is mirrored.
            return Ok(Vec::new());
        }
        let rows = session
            .query_typed(DIGESTS, &[(&ReplicationNames::PREFIX, Type::TEXT)])
            .await?;
        let digest = |row: &tokio_postgres::Row| {
            let name: &str = row.get(0);
            let job = name.strip_prefix(ReplicationNames::PREFIX)?.parse().ok()?;
            let digest = row.get::<_, Option<String>>(1)?;
            Some(ReplicatedDigest { job, digest })
        };
        Ok(rows.iter().filter_map(digest).collect())
    }
}
