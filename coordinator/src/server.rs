//! The coordinator's life: store, certificates, address; then the loop and everyone it serves; then
//! the way down.

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

/// How long peers get to hear that we are going.
const CLOSE_LIMIT: Duration = Duration::from_secs(2);

/// Connections at once: every agent of a large cluster and a crowd of operators. An operator's
/// certificate may be used from many terminals, each with a question or a watcher.
const CONNECTIONS: ConnectionLimits = ConnectionLimits {
    total: 1_024,
    per_identity: 32,
};

/// A coordinator that has taken its store and its addresses and has not begun to serve.
pub struct Server {
    endpoint: Arc<Endpoint>,
    health: Option<TcpListener>,
    driver: Driver<SqliteStore>,
    handle: Handle,
}

/// Says where the store is that cannot be used, and what to do without it, where the error does not.
fn stored_in(directory: &Path, error: StoreError) -> anyhow::Error {
    match &error {
        StoreError::Corrupt { .. } | StoreError::Database(_) => anyhow!(
            "{error}, in --data-dir {}. If it cannot be mended, put a backup of that directory in its \
             place, or move it away and start without it: replicas are then taken up again as their \
             agents tell of them, and jobs that were at work are removed by steep-repl init cancel \
             --force-cleanup",
            directory.display()
        ),
        StoreError::TooNew { .. } => anyhow!("{error} (in --data-dir {})", directory.display()),
        StoreError::File { .. } | StoreError::Place { .. } | StoreError::InUse { .. } => {
            error.into()
        }
    }
}

impl Server {
    /// Takes what the configuration names.
    ///
    /// # Errors
    /// Where store, certificates or addresses cannot be used; the message says which and why.
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

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.endpoint.local_addr()
    }

    /// Where health and metrics are answered, if anywhere.
    #[must_use]
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.health.as_ref()?.local_addr().ok()
    }

    /// Serves until `shutdown`, then says goodbye to everyone.
    ///
    /// # Errors
    /// Where the store fails. Running transfers go on; started again, the coordinator goes on too.
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
                "the coordinator stops; transfers between agents go on, and so does the \
                 coordinator when it is started again",
            ),
            Some(Err(panic)) => Err(panic).context("the loop broke"),
            None => Ok(()),
        }
    }
}

/// Accepts connections; each is greeted and served in its own task.
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
                    tracing::debug!(%remote, %error, "a connection did not come about");
                }
                Some(Arrival::Refused { remote, role, name }) => {
                    if let Some(left_out) = throttle.pass("connections") {
                        tracing::warn!(%remote, %role, %name, left_out, "a connection was refused: this certificate has too many");
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
    /// Serves a peer as what its certificate says it is (G7).
    async fn serve(self, accepted: Accepted, stop: CancellationToken) {
        let Accepted { connection, place } = accepted;
        let peer = connection.peer().clone();
        let _watched = self.links.watch(&connection);
        match peer.role {
            Role::Agent => {
                // Until its session ends or has not begun in time, an agent's connection is in use.
                let _busy = place.busy();
                if !self.agents.admit(&peer.name, Instant::now()) {
                    if let Some(left_out) = self.throttle.pass("registrations") {
                        tracing::warn!(node_id = %peer.name, left_out, "an agent was refused: it registers again and again");
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
                    tracing::warn!(%remote, name = %peer.name, left_out, "another coordinator called and was refused");
                }
                connection.close(CloseCode::Forbidden);
            }
        }
    }
}
