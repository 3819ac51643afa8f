//! What is true beside this agent, looked at about every second on one connection of its own.

use std::sync::Arc;
use std::time::Duration;

use steep_protocol::NodeId;
use steep_protocol::message::agent::{MirrorRow, Observed};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::pg::{Conninfo, PgError, Session};
use crate::sink::{self, schema};
use crate::source;

/// Between two looks.
const EVERY: Duration = Duration::from_secs(1);

/// A look that takes longer is as good as a server that cannot be asked.
const LOOK_TIMEOUT: Duration = Duration::from_secs(5);

/// Looks at the server until cancelled; also keeps this node's row in its `steep_repl` tables, since
/// both want one quiet connection.
#[derive(Debug)]
pub struct Observer {
    /// This node.
    pub node: NodeId,
    /// Its database.
    pub conninfo: Arc<Conninfo>,
    /// Where observations go; the newest replaces the last.
    pub seen: watch::Sender<Observed>,
    /// Rows to mirror.
    pub mirror: mpsc::Receiver<MirrorRow>,
}

impl Observer {
    /// Runs until cancelled. Errors are observations, not ends.
    pub async fn run(mut self, cancel: CancellationToken) {
        let mut session = None;
        let mut tick = tokio::time::interval(EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut complained = false;
        loop {
            let row = tokio::select! {
                () = cancel.cancelled() => return,
                _ = tick.tick() => None,
                row = self.mirror.recv() => match row {
                    Some(row) => Some(self.newest(row)),
                    None => return,
                },
            };
            let look = self.look(&mut session, row.as_ref());
            let result = match tokio::time::timeout(LOOK_TIMEOUT, look).await {
                Ok(Ok(observed)) => Ok(observed),
                Ok(Err(error)) => Err(error.to_fault(&self.node).message),
                Err(_) => Err("PostgreSQL did not answer within 5 s".to_owned()),
            };
            let observed = result.unwrap_or_else(|why| {
                session = None;
                if !std::mem::replace(&mut complained, true) {
                    warn!(error = %why, "PostgreSQL cannot be asked");
                }
                Observed {
                    postgres: Some(Err(why)),
                    ..Observed::default()
                }
            });
            if matches!(observed.postgres, Some(Ok(_))) && std::mem::take(&mut complained) {
                debug!("PostgreSQL answers again");
            }
            self.seen.send_replace(observed);
        }
    }

    /// Rows replace one another; only the last one waiting matters.
    fn newest(&mut self, row: MirrorRow) -> MirrorRow {
        let mut newest = row;
        while let Ok(row) = self.mirror.try_recv() {
            newest = row;
        }
        newest
    }

    async fn look(
        &self,
        session: &mut Option<Session>,
        row: Option<&MirrorRow>,
    ) -> Result<Observed, PgError> {
        let session = match session {
            Some(session) => session,
            None => session.insert(Session::connect(&self.conninfo, "observer").await?),
        };
        if let Some(row) = row {
            schema::install(session).await?;
            schema::mirror(session, &self.node, row).await?;
        }
        Ok(Observed {
            postgres: Some(Ok(session.server_version())),
            slots: source::slot_statuses(session).await?,
            subscriptions: sink::subscription_statuses(session).await?,
        })
    }
}
