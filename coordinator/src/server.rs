//! The coordinator's life: store, certificates, address; then the loop and everyone it serves; then
//! the way down.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use steep_certs::Credentials;
use steep_daemon::{http, say_panic};
use steep_protocol::close::CloseCode;
use steep_protocol::quic::{Endpoint, Incoming, Links, Role, Tuning};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::drive::{Driver, Handle};
use crate::metrics::Metrics;
use crate::registry::SessionId;
use crate::store::sqlite::SqliteStore;
use crate::{api, session};

/// How long peers get to hear that we are going.
const CLOSE_LIMIT: Duration = Duration::from_secs(2);

/// Connections at once: every agent of a large cluster and a crowd of operators.
const CONNECTIONS_MAX: usize = 1_024;

/// A coordinator that has taken its store and its addresses and has not begun to serve.
pub struct Server {
    endpoint: Arc<Endpoint>,
    health: Option<TcpListener>,
    driver: Driver<SqliteStore>,
    handle: Handle,
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
        let store = SqliteStore::open(&config.data_dir)?;
        let (driver, handle) = Driver::new(store, config.bounds)?;
        let driver = driver.drift_grace(config.drift_grace);
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
    let mut sessions = 0;
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            incoming = endpoint.accept(), if connections.len() < CONNECTIONS_MAX => {
                let Some(incoming) = incoming else {
                    break;
                };
                sessions += 1;
                let session = SessionId(sessions);
                let (handle, links, stop) = (handle.clone(), links.clone(), stop.clone());
                connections.spawn(serve(incoming, session, handle, links, stop));
            }
            Some(ended) = connections.join_next() => say_panic(ended),
        }
    }
    while let Some(ended) = connections.join_next().await {
        say_panic(ended);
    }
}

/// Greets a peer and serves it as what its certificate says it is (G7).
async fn serve(
    incoming: Incoming,
    session: SessionId,
    handle: Handle,
    links: Links,
    stop: CancellationToken,
) {
    let remote = incoming.remote();
    let greeted = tokio::select! {
        greeted = incoming.handshake() => greeted,
        () = stop.cancelled() => return,
    };
    let connection = match greeted {
        Ok(connection) => connection,
        Err(error) => {
            tracing::debug!(%remote, %error, "a connection did not come about");
            return;
        }
    };
    let peer = connection.peer().clone();
    let _watched = links.watch(&connection);
    match peer.role {
        Role::Agent => session::serve(connection, session, handle.agents, stop).await,
        Role::Operator => api::serve(connection, handle, stop).await,
        Role::Coordinator => {
            tracing::warn!(%remote, name = %peer.name, "another coordinator called and was refused");
            connection.close(CloseCode::Forbidden);
        }
    }
}
