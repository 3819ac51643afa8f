//! An ordinary connection: tokio-postgres' client, its connection task, our settings.

use std::future::Future;
use std::ops::Deref;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Connection, NoTls, Row, SimpleQueryMessage};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::conninfo::Conninfo;
use super::dial::{self, Route, Stream};
use super::idle::Idle;
use super::literal::literal;
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
    /// A cancel request may still be on its way, or code of others has run.
    for_one_use: AtomicBool,
    /// Where it waits when it is done.
    idle: Idle,
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
    /// in `search_path`, fixed output formats, and the replica role where the role may set it. Takes an idle session if
    /// there is one.
    pub(crate) async fn connect(conninfo: &Conninfo, purpose: &str) -> Result<Self, PgError> {
        while let Some(session) = conninfo.idle.take() {
            match session.renew(&conninfo.application_name(purpose)).await {
                Ok(()) => return Ok(session),
                // A login says the same, if it still holds.
                Err(error) => debug!(%error, "an idle session cannot be used again"),
            }
        }
        Self::connect_anew(conninfo, purpose).await
    }

    /// [`Session::connect`], always with a login.
    pub(crate) async fn connect_anew(conninfo: &Conninfo, purpose: &str) -> Result<Self, PgError> {
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
        let session = Self {
            client,
            version,
            encoding,
            here: conninfo.pinned(&route.endpoint),
            route,
            repeated: Repeated::default(),
            for_one_use: AtomicBool::new(false),
            idle: conninfo.idle.clone(),
            tasks,
        };
        session.set_up().await?;
        Ok(session)
    }

    async fn set_up(&self) -> Result<(), PgError> {
        let statements = settings::statements(self.version);
        self.client.batch_execute(&statements).await?;
        self.own_schema().await?;
        // Not every operating system supports it; without it, a lost agent's statement runs to its end.
        if let Err(error) = self.client.batch_execute(settings::CHECK_CLIENT).await {
            debug!(error = %PgError::from(error), "the server cannot watch for lost clients");
        }
        Ok(())
    }

    /// Makes an idle session what a login makes of a new one.
    async fn renew(&self, name: &str) -> Result<(), PgError> {
        let name = format!("SET application_name = {}", literal(name));
        self.client.batch_execute(&name).await?;
        self.set_up().await
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
        self.for_one_use.store(true, Ordering::Relaxed);
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
        self.for_one_use.store(true, Ordering::Relaxed);
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

    /// Keeps it for whoever connects next within moments. Disconnects where a cancel request might hit the next one's
    /// statement, or code of others could have left an object or a role behind.
    pub(crate) async fn give_back(self) {
        let reusable = !self.for_one_use.load(Ordering::Relaxed) && self.rest().await;
        if !reusable {
            return self.close().await;
        }
        self.idle.clone().keep(self).await;
    }

    /// Gives up settings and name. Returns whether that went well, outside of any transaction.
    async fn rest(&self) -> bool {
        let name = literal(&self.here.application_name("idle"));
        let rows = self.client.simple_query(&settings::rest(&name)).await;
        let first = rows.as_deref().ok().and_then(|rows| {
            rows.iter().find_map(|message| match message {
                SimpleQueryMessage::Row(row) => row.get(0),
                _ => None,
            })
        });
        first == Some("t")
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
