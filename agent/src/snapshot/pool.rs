//! Connections for COPY: few, warm, and holding nothing between two parts.
//!
//! A part is one simple query: begin, import the snapshot, lock the table without waiting, ask whether it
//! is what the plan saw, COPY, commit. So an idle connection has no transaction and no lock, a part of an
//! empty table costs one round trip, and locks do not pile up over ten thousand tables.

use std::sync::{Arc, Mutex, PoisonError};

use steep_protocol::JobId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::pg::raw::{Mode, RawConnection};
use crate::pg::{Conninfo, PgError};

/// Range scans over the ctid, and nothing else: a sequential scan would read the whole table once
/// per range, parallel workers would take what the operator did not give, and compiling a plan that
/// only moves rows costs more than it brings.
const SETTINGS: &str = "SET max_parallel_workers_per_gather = 0; SET enable_seqscan = off; \
     SET enable_tidscan = on; SET jit = off";

/// Connections to one server, at most so many at once.
#[derive(Debug)]
pub(crate) struct Pool {
    conninfo: Conninfo,
    /// Names its sessions.
    purpose: String,
    permits: Arc<Semaphore>,
    idle: Mutex<Vec<RawConnection>>,
    /// Cancel requests for COPYs that nobody reads any more.
    cancelling: Mutex<JoinSet<()>>,
}

/// A connection out of the pool. Dropped, it is cancelled and closed; [`Lease::give_back`] keeps it.
#[derive(Debug)]
pub(crate) struct Lease {
    pool: Arc<Pool>,
    connection: Option<RawConnection>,
    origin: Origin,
    _permit: OwnedSemaphorePermit,
}

/// Where a lease's connection is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// Made for it.
    New,
    /// Used before; the server may have closed it since.
    Reused,
}

impl Pool {
    pub(crate) fn new(conninfo: Conninfo, job: JobId, size: u8) -> Self {
        Self {
            conninfo,
            purpose: format!("copy {job}"),
            permits: Arc::new(Semaphore::new(usize::from(size.max(1)))),
            idle: Mutex::new(Vec::new()),
            cancelling: Mutex::new(JoinSet::new()),
        }
    }

    /// A connection, once one is free.
    pub(crate) async fn take(
        self: &Arc<Self>,
        cancel: &CancellationToken,
    ) -> Result<Lease, PgError> {
        let permits = Arc::clone(&self.permits);
        let permit = tokio::select! {
            permit = permits.acquire_owned() => permit.map_err(|_| PgError::Closed)?,
            () = cancel.cancelled() => return Err(PgError::Cancelled),
        };
        let idle = self
            .idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop();
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

    /// No more connections; idle ones are closed. Those at work end with their COPY.
    pub(crate) async fn close(&self) {
        self.permits.close();
        let idle = std::mem::take(&mut *self.idle.lock().unwrap_or_else(PoisonError::into_inner));
        for connection in idle {
            connection.close().await;
        }
    }

    /// Cancels and closes in the background: a `Drop` cannot wait.
    fn abandon(&self, connection: RawConnection) {
        // Outside of a runtime, the closed socket alone must do: PostgreSQL notices when it writes.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        let mut cancelling = self
            .cancelling
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        while cancelling.try_join_next().is_some() {}
        let canceller = connection.canceller();
        cancelling.spawn_on(
            async move {
                if let Err(error) = canceller.cancel().await {
                    debug!(%error, "a COPY could not be cancelled");
                }
                // Closed only now: until then the server has somebody to tell, and its process id is
                // not another's.
                drop(connection);
            },
            &runtime,
        );
    }
}

impl Lease {
    /// The connection. Present until the lease ends.
    pub(crate) fn connection(&mut self) -> Result<&mut RawConnection, PgError> {
        self.connection.as_mut().ok_or(PgError::Closed)
    }

    /// Where it is from.
    pub(crate) fn origin(&self) -> Origin {
        self.origin
    }

    /// Replaces a connection that turned out to be closed.
    pub(crate) async fn renew(&mut self, cancel: &CancellationToken) -> Result<(), PgError> {
        self.connection = None;
        self.connection = Some(self.pool.connect(cancel).await?);
        self.origin = Origin::New;
        Ok(())
    }

    /// The connection is between two statements and may be used for the next part.
    pub(crate) fn give_back(mut self) {
        if let Some(connection) = self.connection.take()
            && !self.pool.permits.is_closed()
        {
            let mut idle = self
                .pool
                .idle
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            idle.push(connection);
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            self.pool.abandon(connection);
        }
    }
}
