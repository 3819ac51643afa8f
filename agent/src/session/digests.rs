//! Digests of the replicated columns, read now and then by one query: one digest per replication, each
//! table's fingerprint computed once however many replications carry it.
//!
//! Uses a connection of its own: reading expressions waits for exclusively locked tables, and the observer
//! must not. On error, the previous value stays.

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

/// A look that takes longer is abandoned; ten thousand tables take about a second.
const LOOK_TIMEOUT: Duration = Duration::from_secs(60);

/// Minimum interval between requested looks: a failing subscription asks every few seconds, which does not
/// change its columns.
const ASKED_EVERY: Duration = Duration::from_secs(15);

/// The digest of every replication of ours here, as `steep_repl.replicated_digest` (`extension/`) computes
/// it; a test compares the two.
const DIGESTS: &str = include_str!("digests.sql");

#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Looked {
    pub(crate) digests: Vec<ReplicatedDigest>,
    /// Which tables they carry, as far as that has changed.
    pub(crate) carried: Carried,
    /// What is known of the errors of failing subscriptions.
    pub(crate) troubles: Vec<(JobId, String)>,
}

#[derive(Debug)]
pub(crate) struct DigestWatcher {
    pub(crate) conninfo: Arc<Conninfo>,
    pub(crate) every: Duration,
    pub(crate) seen: watch::Sender<Looked>,
    pub(crate) now: Arc<Notify>,
}

impl DigestWatcher {
    pub(crate) async fn run(self, cancel: CancellationToken) {
        let mut session = None;
        let mut tick = tokio::time::interval(self.every);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut may_be_asked = Instant::now();
        let mut looks = 0;
        loop {
            // The `Notify` keeps an early request until its time.
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
                    // The observer reports a server that does not answer.
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

/// Our subscriptions with errors; versions before 15 do not count them.
async fn failing(session: &Session) -> Result<Vec<JobId>, PgError> {
    let all = subscription_statuses(session).await?;
    let failing = all.iter().filter(|s| s.apply_errors > 0 || !s.running);
    Ok(failing.map(|s| s.job).collect())
}

async fn digests(session: &Session) -> Result<Vec<ReplicatedDigest>, PgError> {
    let sql = "SELECT pg_catalog.to_regprocedure('steep_repl.fingerprints(oid[])') IS NOT NULL";
    // Checked each time: nothing is called in an untrusted schema.
    let absent = session.own_schema().await? == OwnSchema::Absent;
    if absent || !session.query_typed(sql, &[]).await?[0].get::<_, bool>(0) {
        // The schema is created with the first mirrored row.
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
