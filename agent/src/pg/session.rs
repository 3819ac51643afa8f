//! An ordinary connection: tokio-postgres' client, its connection task, our settings.

use std::future::Future;
use std::ops::Deref;
use std::pin::pin;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Connection, NoTls, Row};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::conninfo::Conninfo;
use super::dial::{self, Route, Stream};
use super::repeated::Repeated;
use super::settings::UserViews;
use super::transport::Reads;
use super::{OwnSchema, PgError, guard, settings};

/// How long a cancelled statement may take to end. PostgreSQL checks often, so after this the server is
/// taken to be dead and the connection is dropped.
const CANCEL_GRACE: Duration = Duration::from_secs(10);

/// A cancel request may reach the server between two statements, so it is repeated.
const CANCEL_AGAIN: Duration = Duration::from_millis(500);

const CLOSE_GRACE: Duration = Duration::from_secs(1);

/// Dropping it closes the connection at once; the server then rolls back.
#[derive(Debug)]
pub(crate) struct Session {
    client: Client,
    version: u32,
    encoding: String,
    here: Conninfo,
    route: Route,
    repeated: Repeated,
    tasks: JoinSet<()>,
}

impl Deref for Session {
    type Target = Client;
    fn deref(&self) -> &Client {
        &self.client
    }
}

impl Session {
    /// Connects as `steep-repl <purpose>` with our settings: no timeouts of the server's, no user schemas
    /// in `search_path`, fixed output formats, and the replica role where the role may set it.
    pub(crate) async fn connect(conninfo: &Conninfo, purpose: &str) -> Result<Self, PgError> {
        let login = |stream, route| Self::login(conninfo, stream, route, purpose);
        dial::connect(conninfo, Reads::Eager, login).await
    }

    /// [`Session::connect`] with [`SHORT_LOCK_TIMEOUT`](super::SHORT_LOCK_TIMEOUT).
    pub(crate) async fn connect_impatient(
        conninfo: &Conninfo,
        purpose: &str,
    ) -> Result<Self, PgError> {
        let session = Self::connect(conninfo, purpose).await?;
        session.batch_execute(super::SHORT_LOCK_TIMEOUT).await?;
        Ok(session)
    }

    async fn login(
        conninfo: &Conninfo,
        stream: Stream,
        route: Route,
        purpose: &str,
    ) -> Result<Self, PgError> {
        let mut config = tokio_postgres::Config::new();
        config
            .user(&conninfo.user)
            .dbname(&conninfo.database)
            .application_name(conninfo.application_name(purpose))
            .ssl_mode(tokio_postgres::config::SslMode::Disable);
        if let Some(options) = &conninfo.options {
            config.options(options);
        }
        if let Some(password) = route.endpoint.password() {
            config.password(password);
        }
        let (client, connection) = config
            .connect_raw(stream, NoTls)
            .await
            .map_err(|error| login_error(error, &route))?;
        dial::check_kind(conninfo.session_attrs, &route, |name| {
            connection.parameter(name)
        })?;
        let version = settings::version_num(connection.parameter("server_version").unwrap_or(""))?;
        let encoding = connection
            .parameter("server_encoding")
            .unwrap_or("UTF8")
            .to_owned();
        let mut tasks = JoinSet::new();
        tasks.spawn(drive(connection));
        client.batch_execute(&settings::statements(version)).await?;
        if let Some(refuse) = settings::user_views(version, UserViews::Refused) {
            client.batch_execute(&refuse).await?;
        }
        guard::look(&client).await?;
        client.batch_execute(settings::replica(version)).await?;
        // Not every operating system supports it; without it, a lost agent's statement runs to its end.
        if let Err(error) = client.batch_execute(settings::CHECK_CLIENT).await {
            debug!(error = %PgError::from(error), "the server cannot watch for lost clients");
        }
        let here = conninfo.pinned(&route.endpoint);
        Ok(Self {
            client,
            version,
            encoding,
            here,
            route,
            repeated: Repeated::default(),
            tasks,
        })
    }

    /// As [`Client::query_typed`]; what is asked again is planned once.
    pub(crate) async fn query_typed(
        &self,
        sql: &str,
        parameters: &[(&(dyn ToSql + Sync), Type)],
    ) -> Result<Vec<Row>, tokio_postgres::Error> {
        let types: Vec<Type> = parameters.iter().map(|(_, of)| of.clone()).collect();
        match self.repeated.prepared(&self.client, sql, &types).await? {
            Some(statement) => {
                let values: Vec<_> = parameters.iter().map(|(value, _)| *value).collect();
                self.client.query(&statement, &values).await
            }
            None => self.client.query_typed(sql, parameters).await,
        }
    }

    /// Checks the schema `steep_repl` again, as sessions that live long do before they use it.
    pub(crate) async fn own_schema(&self) -> Result<OwnSchema, PgError> {
        let rows = self.query_typed(guard::LOOK, &[]).await?;
        guard::read(&rows)
    }

    /// Allows reading user views and foreign tables, which functions in constraints and materialised views
    /// may do.
    pub(crate) async fn read_user_views(&self) -> Result<(), PgError> {
        if let Some(allow) = settings::user_views(self.version, UserViews::Read) {
            self.client.batch_execute(&allow).await?;
        }
        Ok(())
    }

    /// `server_version_num`: 180006 for 18.6.
    pub(crate) fn server_version(&self) -> u32 {
        self.version
    }

    pub(crate) fn server_encoding(&self) -> &str {
        &self.encoding
    }

    /// Reaches this very server again, where the original names several.
    pub(crate) fn conninfo(&self) -> &Conninfo {
        &self.here
    }

    /// Runs `work`, statements of this session. When `cancel` comes first, sends a cancel request, waits
    /// for the statement's end and returns [`PgError::Cancelled`]. After that the session may be used
    /// again, in a transaction only for ROLLBACK.
    pub(crate) async fn run<T>(
        &self,
        cancel: &CancellationToken,
        work: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, PgError> {
        if cancel.is_cancelled() {
            return Err(PgError::Cancelled);
        }
        let mut work = pin!(work);
        tokio::select! {
            biased;
            result = &mut work => return result.map_err(PgError::from),
            () = cancel.cancelled() => {}
        }
        let stopped = async {
            loop {
                let request = async {
                    if let Err(error) = self.cancel_request().await {
                        debug!(%error, "cancel request failed");
                    }
                    tokio::time::sleep(CANCEL_AGAIN).await;
                };
                tokio::select! {
                    biased;
                    _ = &mut work => return,
                    () = request => {}
                }
            }
        };
        if tokio::time::timeout(CANCEL_GRACE, stopped).await.is_err() {
            debug!("a cancelled statement did not end in time");
        }
        Err(PgError::Cancelled)
    }

    async fn cancel_request(&self) -> Result<(), PgError> {
        let token = self.client.cancel_token();
        let mut stream = dial::open(&self.here, &self.route, Reads::Eager).await?;
        token.cancel_query_raw(&mut stream, NoTls).await?;
        dial::until_closed(&mut stream).await;
        Ok(())
    }

    /// Disconnects properly, so that the server does not log a lost client.
    pub(crate) async fn close(self) {
        let Self {
            client, mut tasks, ..
        } = self;
        drop(client);
        if tokio::time::timeout(CLOSE_GRACE, tasks.join_next())
            .await
            .is_err()
        {
            debug!("a connection did not close in time");
        }
    }
}

async fn drive(connection: Connection<Stream, tokio_postgres::tls::NoTlsStream>) {
    if let Err(error) = connection.await {
        debug!(error = %PgError::from(error), "connection to PostgreSQL ended");
    }
}

/// The driver says only by text that a password is missing.
fn login_error(error: tokio_postgres::Error, route: &Route) -> PgError {
    let place = route.endpoint.to_string();
    match PgError::from(error) {
        PgError::Driver(reason) if reason.contains("password missing") => PgError::Login {
            place,
            reason: "the server wants a password and none was given".into(),
        },
        PgError::Driver(reason) => PgError::Login { place, reason },
        other => other,
    }
}
