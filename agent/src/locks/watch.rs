//! Looks at the server's locks while something of ours is at work there.

use std::sync::Arc;
use std::time::Duration;

use steep_protocol::NodeId;
use steep_protocol::message::agent::{LockConflict, LockRole};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_postgres::types::{ToSql, Type};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::LockRegistry;
use super::conflicts::{Conflicts, Row, purpose};
use super::statement::shown;
use crate::pg::{Conninfo, PgError, Session};

/// Whoever waits for us is reported within two seconds.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// A look that takes longer is abandoned.
const LOOK_TIMEOUT: Duration = Duration::from_secs(5);

/// Every session of ours, who waits for it and whom it waits for.
const CONFLICTS: &str = include_str!("conflicts.sql");

/// How much of the operator's `application_name` is kept, however long the purpose is.
const NAME_KEPT: usize = 24;

#[derive(Debug)]
pub(crate) struct LockWatch {
    pub(crate) node: NodeId,
    pub(crate) conninfo: Arc<Conninfo>,
    pub(crate) registry: Arc<LockRegistry>,
    pub(crate) seen: watch::Sender<Vec<LockConflict>>,
}

impl LockWatch {
    pub(crate) async fn run(self, cancel: CancellationToken) {
        let mut session = None;
        let mut conflicts = Conflicts::default();
        let mut tick = tokio::time::interval(LOOK_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = cancel.cancelled() => return,
                _ = tick.tick() => {}
            }
            if self.registry.is_attended() {
                let look = self.look(&mut session, &mut conflicts);
                match tokio::time::timeout(LOOK_TIMEOUT, look).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => {
                        // The observer reports a server that does not answer.
                        debug!(%error, "locks could not be read");
                        session = None;
                    }
                    Err(_) => session = None,
                }
            } else {
                conflicts = Conflicts::default();
                if let Some(idle) = Option::take(&mut session) {
                    Session::close(idle).await;
                }
            }
            let shown = conflicts.shown();
            self.seen.send_if_modified(|seen| {
                let news = *seen != shown;
                *seen = shown;
                news
            });
        }
    }

    async fn look(
        &self,
        session: &mut Option<Session>,
        conflicts: &mut Conflicts,
    ) -> Result<(), PgError> {
        let session = match session {
            Some(session) => session,
            None => session.insert(Session::connect(&self.conninfo, "locks").await?),
        };
        let rows = self.ask(session).await?;
        let now = Instant::now();
        conflicts.take(&rows, now);
        for row in &rows {
            self.note(row);
            let rule = self.registry.rule(row.job);
            if row.can_give_way() && rule.is_due(row.waited) {
                self.give_way(session, row).await?;
                conflicts.gave_way(row, now);
            }
        }
        Ok(())
    }

    fn note(&self, row: &Row) {
        if row.ours == "copy" {
            self.registry.note_suspect(row.oid, row.other());
        } else if let (LockRole::BlocksUs, Some(job)) = (row.role, row.job) {
            self.registry.note_waited(job, &row.ours, row.other());
        }
    }

    /// Ends the session. A cancel request would not reach one that waits for its client to read.
    async fn give_way(&self, session: &Session, row: &Row) -> Result<(), PgError> {
        self.registry.note_ended(row.own, row.other());
        if let Some(job) = row.job {
            self.registry.note_waited(job, &row.ours, row.other());
        }
        session
            .execute("SELECT pg_terminate_backend($1)", &[&row.own])
            .await?;
        warn!(event = "lock.gave_way", node_id = %self.node, job_id = row.job.map(tracing::field::display), table = %row.table, "{} of {} was ended: {} had waited for it for {:.0} s", row.ours, row.table, row.other(), row.waited);
        Ok(())
    }

    async fn ask(&self, session: &Session) -> Result<Vec<Row>, PgError> {
        let prefix = prefix(&self.conninfo);
        let awaited = self.registry.awaited();
        let oids: Vec<u32> = awaited.iter().map(|(_, oid, _)| *oid).collect();
        let mut rows = Vec::new();
        let of: [(&(dyn ToSql + Sync), Type); 2] =
            [(&prefix, Type::TEXT), (&oids, Type::OID_ARRAY)];
        for row in session.query_typed(CONFLICTS, &of).await? {
            let role: &str = row.try_get(0)?;
            let (ours, job) = purpose(row.try_get(6)?, &prefix);
            let queued: i64 = row.try_get(9)?;
            let application: &str = row.try_get(7)?;
            let found = Row {
                role: match role {
                    "blocked" => LockRole::BlockedByUs,
                    _ => LockRole::BlocksUs,
                },
                job,
                ours,
                own: row.try_get(5)?,
                pid: row.try_get(1)?,
                application: shown(application),
                statement: shown(row.try_get(8)?),
                table: row.try_get(3)?,
                oid: row.try_get(2)?,
                waited: row.try_get(4)?,
                queued: u32::try_from(queued).unwrap_or(u32::MAX),
            };
            if role != "awaited" {
                rows.push(found);
                continue;
            }
            for (job, _, since) in awaited.iter().filter(|(_, oid, _)| *oid == found.oid) {
                rows.push(Row {
                    job: Some(*job),
                    ours: "copy".to_owned(),
                    waited: since.elapsed().as_secs_f64(),
                    ..found.clone()
                });
            }
        }
        Ok(rows)
    }
}

/// The prefix of all our sessions' names on that server.
fn prefix(conninfo: &Conninfo) -> String {
    let mut name = conninfo.application_name("");
    name.truncate(name.trim_end().len());
    if name.len() > NAME_KEPT {
        let end = (0..=NAME_KEPT).rev().find(|at| name.is_char_boundary(*at));
        name.truncate(end.unwrap_or(0));
    }
    name
}
