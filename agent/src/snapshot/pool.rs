//! Connections for COPY: few, reused, and idle without transaction or lock between two parts.
//!
//! A part is one simple query: begin, import the snapshot, lock the table with NOWAIT, ask whether it is
//! what the plan saw, COPY, commit. So a part of an empty table costs one round trip, and locks do not
//! accumulate over ten thousand tables.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use steep_protocol::JobId;
use steep_protocol::limits::WORKERS_MAX;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::mutex::lock;
use crate::pg::raw::{Mode, RawConnection};
use crate::pg::{Conninfo, PgError};

/// Forces ctid range scans: a sequential scan would read the whole table per range, and parallel workers would
/// take more than the operator gave.
const SETTINGS: &str = "SET max_parallel_workers_per_gather = 0; SET enable_seqscan = off; \
     SET enable_tidscan = on";

/// Connections to one server. As many as a job may have workers at most: how many it has can change.
#[derive(Debug)]
pub(crate) struct Pool {
    conninfo: Conninfo,
    purpose: String,
    permits: Arc<Semaphore>,
    idle: Mutex<Vec<RawConnection>>,
    /// When a connection was last taken or returned.
    used: Mutex<Instant>,
    /// Cancel requests for abandoned COPYs.
    cancelling: Mutex<JoinSet<()>>,
}

/// A connection of the pool. Dropping it cancels and closes; [`Lease::give_back`] keeps it.
#[derive(Debug)]
pub(crate) struct Lease {
    pool: Arc<Pool>,
    connection: Option<RawConnection>,
    origin: Origin,
    _permit: OwnedSemaphorePermit,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    New,
    /// The server may have closed it since.
    Reused,
}

impl Pool {
    pub(crate) fn new(conninfo: Conninfo, job: JobId) -> Self {
        Self {
            conninfo,
            purpose: format!("copy {job}"),
            permits: Arc::new(Semaphore::new(usize::from(WORKERS_MAX))),
            idle: Mutex::new(Vec::new()),
            used: Mutex::new(Instant::now()),
            cancelling: Mutex::new(JoinSet::new()),
        }
    }

    /// How long nobody has read by it.
    pub(crate) fn idle_for(&self) -> Duration {
        match self.permits.available_permits() < usize::from(WORKERS_MAX) {
            true => Duration::ZERO,
            false => lock(&self.used).elapsed(),
        }
    }

    /// Waits for a free connection.
    pub(crate) async fn take(
        self: &Arc<Self>,
        cancel: &CancellationToken,
    ) -> Result<Lease, PgError> {
        let permits = Arc::clone(&self.permits);
        let permit = tokio::select! {
            permit = permits.acquire_owned() => permit.map_err(|_| PgError::Closed)?,
            () = cancel.cancelled() => return Err(PgError::Cancelled),
        };
        let idle = lock(&self.idle).pop();
        let (connection, origin) = match idle {
            Some(connection) => (connection, Origin::Reused),
            None => (self.connect(cancel).await?, Origin::New),
        };
        Ok(Lease {
            pool: Arc::clone(self),
            connection: Some(connection),
            origin,
            _permit: permit,
        })
    }

    async fn connect(&self, cancel: &CancellationToken) -> Result<RawConnection, PgError> {
        let connecting = async {
            let mut connection =
                RawConnection::connect(&self.conninfo, &self.purpose, Mode::CopyOut).await?;
            connection.query(SETTINGS).await?;
            Ok(connection)
        };
        tokio::select! {
            connection = connecting => connection,
            () = cancel.cancelled() => Err(PgError::Cancelled),
        }
    }

    /// Closes idle connections; the others end with their COPY.
    pub(crate) async fn close(&self) {
        self.permits.close();
        let idle = std::mem::take(&mut *lock(&self.idle));
        for connection in idle {
            connection.close().await;
        }
    }

    /// Cancels and closes in the background, as `Drop` cannot wait.
    fn abandon(&self, connection: RawConnection) {
        // Without a runtime the socket just closes, which PostgreSQL notices when it writes.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        let mut cancelling = lock(&self.cancelling);
        while cancelling.try_join_next().is_some() {}
        let canceller = connection.canceller();
        cancelling.spawn_on(
            async move {
                if let Err(error) = canceller.cancel().await {
                    debug!(%error, "a COPY could not be cancelled");
                }
                // Closed only now: until the cancel request has been handled, the process id must not
                // become another's.
                drop(connection);
            },
            &runtime,
        );
    }
}

impl Lease {
    /// Present until the lease ends.
    pub(crate) fn connection(&mut self) -> Result<&mut RawConnection, PgError> {
        self.connection.as_mut().ok_or(PgError::Closed)
    }

    pub(crate) fn origin(&self) -> Origin {
        self.origin
    }

    /// Replaces a connection that the server has closed.
    pub(crate) async fn renew(&mut self, cancel: &CancellationToken) -> Result<(), PgError> {
        self.connection = None;
        self.connection = Some(self.pool.connect(cancel).await?);
        self.origin = Origin::New;
        Ok(())
    }

    /// Returns a connection that is between two statements.
    pub(crate) fn give_back(mut self) {
        if let Some(connection) = self.connection.take()
            && !self.pool.permits.is_closed()
        {
            let mut idle = lock(&self.pool.idle);
            idle.push(connection);
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        *lock(&self.pool.used) = Instant::now();
        if let Some(connection) = self.connection.take() {
            self.pool.abandon(connection);
        }
    }
}
