//! Starts the coordinator: store, certificates, addresses; serves connections; shuts down.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use steep_certs::Credentials;
use steep_daemon::{Throttle, http, say_panic};
use steep_protocol::close::CloseCode;
use steep_protocol::quic::{
    Accepted, Arrival, ConnectionLimits, Endpoint, Links, Listener, Role, Tuning,
};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::admission::Admission;
use crate::config::Config;
use crate::drive::{Driver, Handle};
use crate::metrics::Metrics;
use crate::registry::SessionId;
use crate::store::StoreError;
use crate::store::sqlite::SqliteStore;
use crate::{api, session};

/// How long peers have to receive the close.
const CLOSE_LIMIT: Duration = Duration::from_secs(2);

/// Concurrent connections: every agent of a large cluster and many operators. An operator may use one
/// certificate in many terminals.
const CONNECTIONS: ConnectionLimits = ConnectionLimits {
    total: 1_024,
    per_identity: 32,
};

/// A coordinator that has opened its store and bound its addresses but does not serve yet.
pub struct Server {
    endpoint: Arc<Endpoint>,
    health: Option<TcpListener>,
    driver: Driver<SqliteStore>,
    handle: Handle,
}

/// Adds to a store's error where the store is and what to do.
fn stored_in(directory: &Path, error: StoreError) -> anyhow::Error {
    match &error {
        StoreError::Corrupt { .. } | StoreError::Database(_) => anyhow!(
            "{error}, in --data-dir {}. If it cannot be repaired, restore that directory from a \
             backup, or move it away and start without it: the coordinator then learns of replicas \
             from their agents, and steep-repl init cancel --force-cleanup removes unfinished jobs",
            directory.display()
        ),
        StoreError::File { .. } | StoreError::Unopened { .. } => anyhow!(
            "{error}; give --data-dir a directory that this user can make and write to, on a disk with \
             room"
        ),
        StoreError::Place { .. }
        | StoreError::InUse { .. }
        | StoreError::TooNew { .. }
        | StoreError::Unusable { .. } => error.into(),
    }
}

impl Server {
    /// Opens the store, loads the certificates and binds the addresses.
    ///
    /// # Errors
    /// If store, certificates or addresses cannot be used; the message says which and why.
    pub async fn bind(config: &Config) -> anyhow::Result<Self> {
        let credentials = Credentials::load(&config.ca, &config.cert, &config.key)
            .context("the certificates cannot be used")?;
        let identity = credentials.identity();
        if identity.role != Role::Coordinator {
            bail!(
                "{} is the certificate of {} {}, not of a coordinator: issue one with steep-repl \
                 certs issue --role coordinator",
                config.cert.display(),
                identity.role,
                identity.name
            );
        }
        let (driver, handle) = SqliteStore::open(&config.data_dir)
            .and_then(|store| Driver::new(store, config.bounds))
            .map_err(|error| stored_in(&config.data_dir, error))?;
        let driver = driver
            .drift_grace(config.drift_grace)
            .unseen_grace(config.unseen_grace)
            .patience(config.patience);
        let health = match config.metrics {
            Some(address) => Some(http::bind(address).await?),
            None => None,
        };
        let endpoint = Endpoint::listen(config.listen, &credentials, Tuning::CONTROL)?;
        Ok(Self {
            endpoint: Arc::new(endpoint),
            health,
            driver,
            handle,
        })
    }

    /// The address it listens on.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.endpoint.local_addr()
    }

    /// The address that serves health and metrics, if any.
    #[must_use]
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.health.as_ref()?.local_addr().ok()
    }

    /// Serves until `shutdown`, then closes all connections.
    ///
    /// # Errors
    /// If the store fails. Running transfers continue, and so do jobs after a restart.
    pub async fn run(self, shutdown: CancellationToken) -> anyhow::Result<()> {
        let Self {
            endpoint,
            health,
            driver,
            handle,
        } = self;
        let stop = shutdown.child_token();
        let links = Links::default();
        let mut tasks = JoinSet::new();
        if let Some(listener) = health {
            let metrics = Metrics::new(handle.asks.clone(), links.clone());
            tasks.spawn(http::serve(listener, metrics, stop.clone()));
        }
        tasks.spawn(accept(Arc::clone(&endpoint), handle, links, stop.clone()));
        let mut looping = JoinSet::new();
        looping.spawn(driver.run(stop.clone()));
        tracing::info!(event = "ready", addr = %endpoint.local_addr(), "coordinator ready");
        steep_daemon::ready();
        let ended = looping.join_next().await;
        stop.cancel();
        while let Some(ended) = tasks.join_next().await {
            say_panic(ended);
        }
        endpoint.close(CloseCode::ShuttingDown, CLOSE_LIMIT).await;
        match ended {
            Some(Ok(result)) => result.context(
                "the coordinator stops; transfers between agents continue, and jobs continue when it \
                 is started again",
            ),
            Some(Err(panic)) => Err(panic).context("the coordinator's loop panicked"),
            None => Ok(()),
        }
    }
}

/// Accepts connections and serves each in its own task.
async fn accept(endpoint: Arc<Endpoint>, handle: Handle, links: Links, stop: CancellationToken) {
    let mut connections = JoinSet::new();
    let mut listener = Listener::new(endpoint, CONNECTIONS);
    let throttle = Arc::new(Throttle::default());
    let agents = Arc::new(Admission::default());
    let mut sessions = 0;
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            arrival = listener.next() => match arrival {
                None => break,
                Some(Arrival::Accepted(accepted)) => {
                    sessions += 1;
                    let session = SessionId(sessions);
                    let guest = Guest {
                        session,
                        handle: handle.clone(),
                        links: links.clone(),
                        throttle: Arc::clone(&throttle),
                        agents: Arc::clone(&agents),
                    };
                    connections.spawn(guest.serve(accepted, stop.clone()));
                }
                Some(Arrival::Failed { remote, error }) => {
                    tracing::debug!(%remote, %error, "a connection could not be established");
                }
                Some(Arrival::Refused { remote, role, name }) => {
                    if let Some(left_out) = throttle.pass("connections") {
                        tracing::warn!(%remote, %role, %name, left_out, "a connection was refused: its certificate has too many connections");
                    }
                }
            },
            Some(ended) = connections.join_next() => say_panic(ended),
        }
    }
    while let Some(ended) = connections.join_next().await {
        say_panic(ended);
    }
}

/// What serving one connection needs.
struct Guest {
    session: SessionId,
    handle: Handle,
    links: Links,
    throttle: Arc<Throttle>,
    agents: Arc<Admission>,
}

impl Guest {
    /// Serves a peer by the role in its certificate (G7).
    async fn serve(self, accepted: Accepted, stop: CancellationToken) {
        let Accepted { connection, place } = accepted;
        let peer = connection.peer().clone();
        let _watched = self.links.watch(&connection);
        match peer.role {
            Role::Agent => {
                // The connection counts as busy until its session ends or fails to start in time.
                let _busy = place.busy();
                if !self.agents.admit(&peer.name, Instant::now()) {
                    if let Some(left_out) = self.throttle.pass("registrations") {
                        tracing::warn!(node_id = %peer.name, left_out, "an agent was refused: it registers too often");
                    }
                    return connection.close(CloseCode::TooMany);
                }
                session::serve(
                    connection,
                    self.session,
                    self.handle.agents,
                    &self.throttle,
                    stop,
                )
                .await;
            }
            Role::Operator => api::serve(connection, &place, self.handle, stop).await,
            Role::Coordinator => {
                if let Some(left_out) = self.throttle.pass("coordinator") {
                    let remote = connection.remote();
                    tracing::warn!(%remote, name = %peer.name, left_out, "a connection of another coordinator was refused");
                }
                connection.close(CloseCode::Forbidden);
            }
        }
    }
}
