//! The columns of what is replicated, looked at now and then: one query, one digest a replication, each
//! table's fingerprint computed once however many replications carry it.
//!
//! On a connection of its own, beside the observer's: reading expressions waits for tables that are
//! locked exclusively, and slots must be seen meanwhile. What cannot be read this time is what it was.

use std::sync::Arc;
use std::time::Duration;

use steep_protocol::JobId;
use steep_protocol::message::agent::{Carried, ReplicatedDigest};
use steep_protocol::message::job::ReplicationNames;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_postgres::types::Type;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::pg::{Conninfo, OwnSchema, PgError, Session};
use crate::replication::server_log::troubles;
use crate::replication::subscribed::subscribed;
use crate::replication::subscription::subscription_statuses;
use crate::snapshot::published::published;

/// A look that takes longer is given up; ten thousand tables take about a second.
const LOOK_TIMEOUT: Duration = Duration::from_secs(60);

/// Looks that were asked for are this far apart: a subscription that keeps failing asks every few
/// seconds, and its columns do not change by that.
const ASKED_EVERY: Duration = Duration::from_secs(15);

/// The digests of every replication of ours here, each as `steep_repl.replicated_digest` computes one
/// (`extension/`): a test holds them together.
const DIGESTS: &str = include_str!("digests.sql");

/// What a look has found.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Looked {
    /// Of every replication of ours.
    pub(crate) digests: Vec<ReplicatedDigest>,
    /// Which tables they carry, as far as that has changed.
    pub(crate) carried: Carried,
    /// What is known of the errors of those subscriptions that have failed.
    pub(crate) troubles: Vec<(JobId, String)>,
}

/// Looks at the columns until cancelled.
#[derive(Debug)]
pub(crate) struct DigestWatcher {
    /// The database.
    pub(crate) conninfo: Arc<Conninfo>,
    /// Between two looks.
    pub(crate) every: Duration,
    /// Where digests go; the newest replace the last.
    pub(crate) seen: watch::Sender<Looked>,
    /// Asks for a look now.
    pub(crate) now: Arc<Notify>,
}

impl DigestWatcher {
    /// Runs until cancelled.
    pub(crate) async fn run(self, cancel: CancellationToken) {
        let mut session = None;
        let mut tick = tokio::time::interval(self.every);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut may_be_asked = Instant::now();
        let mut looks = 0;
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
                Ok(Ok(mut looked)) => {
                    looks += 1;
                    looked.carried.look = looks;
                    self.seen.send_replace(looked);
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

    async fn look(&self, session: &mut Option<Session>) -> Result<Looked, PgError> {
        let session = match session {
            Some(session) => session,
            None => {
                // A table that is locked for longer is read the next time.
                let fresh = Session::connect_impatient(&self.conninfo, "digests").await?;
                session.insert(fresh)
            }
        };
        let carried = Carried {
            look: 0,
            published: published(session).await?,
            subscribed: subscribed(session).await?,
        };
        let failing = failing(session).await?;
        Ok(Looked {
            digests: digests(session).await?,
            carried,
            troubles: troubles(session, &failing).await?,
        })
    }
}

/// Subscriptions of ours that have met errors; before 15 nobody counts them.
async fn failing(session: &Session) -> Result<Vec<JobId>, PgError> {
    let all = subscription_statuses(session).await?;
    let failing = all.iter().filter(|s| s.apply_errors > 0 || !s.running);
    Ok(failing.map(|s| s.job).collect())
}

async fn digests(session: &Session) -> Result<Vec<ReplicatedDigest>, PgError> {
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
