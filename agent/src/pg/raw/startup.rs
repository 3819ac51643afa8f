//! From an open stream to a connection that is ready for queries: startup and authentication (PostgreSQL
//! manual, section "Start-up").

use bytes::BytesMut;
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, ScramSha256};
use postgres_protocol::message::backend::{AuthenticationSaslBody, Message};
use postgres_protocol::message::frontend;
use tokio_postgres::fallible_iterator::FallibleIterator;

use super::{Conninfo, Mode, PgError, RawConnection, Route, server_error};

impl RawConnection {
    pub(super) async fn start(
        &mut self,
        conninfo: &Conninfo,
        route: &Route,
        purpose: &str,
        mode: Mode,
    ) -> Result<(), PgError> {
        let application_name = conninfo.application_name(purpose);
        let mut parameters = vec![
            ("user", conninfo.user.as_str()),
            ("database", conninfo.database.as_str()),
            ("application_name", application_name.as_str()),
            // The encoding of our SQL. A COPY in another one sets it for itself.
            ("client_encoding", "UTF8"),
        ];
        match mode {
            Mode::Plain | Mode::CopyOut => {}
            Mode::Replication => parameters.push(("replication", "database")),
        }
        if let Some(options) = &conninfo.options {
            parameters.push(("options", options));
        }
        let mut request = BytesMut::new();
        frontend::startup_message(parameters, &mut request)?;
        self.send(&request).await?;
        self.authenticate(conninfo, route).await?;
        loop {
            match self.message().await? {
                Message::BackendKeyData(body) => {
                    self.cancel.process_id = body.process_id();
                    self.cancel.secret_key = body.secret_key();
                }
                Message::ReadyForQuery(_) => return Ok(()),
                Message::ErrorResponse(body) => return Err(server_error(&body)?),
                _ => return Err(unexpected()),
            }
        }
    }

    async fn authenticate(&mut self, conninfo: &Conninfo, route: &Route) -> Result<(), PgError> {
        let refused = |reason: &str| PgError::Login {
            place: route.endpoint.to_string(),
            reason: reason.into(),
        };
        let password = || {
            route
                .endpoint
                .password()
                .map(str::as_bytes)
                .ok_or_else(|| refused("the server wants a password and none was given"))
        };
        loop {
            let mut answer = BytesMut::new();
            match self.message().await? {
                Message::AuthenticationOk => return Ok(()),
                Message::AuthenticationCleartextPassword => {
                    frontend::password_message(password()?, &mut answer)?;
                    self.send(&answer).await?;
                }
                Message::AuthenticationMd5Password(body) => {
                    let hash = md5_hash(conninfo.user.as_bytes(), password()?, body.salt());
                    frontend::password_message(hash.as_bytes(), &mut answer)?;
                    self.send(&answer).await?;
                }
                Message::AuthenticationSasl(body) => {
                    if !offers_scram(&body)? {
                        return Err(refused("the server offers no SASL mechanism that we know"));
                    }
                    self.scram(password()?).await?;
                }
                Message::ErrorResponse(body) => return Err(server_error(&body)?),
                _ => {
                    return Err(refused(
                        "the server wants a kind of authentication that is not supported here: \
                         use scram-sha-256, md5, password, cert, peer or trust",
                    ));
                }
            }
        }
    }

    /// SCRAM-SHA-256 (RFC 7677), without channel binding.
    async fn scram(&mut self, password: &[u8]) -> Result<(), PgError> {
        let mut scram = ScramSha256::new(password, ChannelBinding::unsupported());
        let mut answer = BytesMut::new();
        frontend::sasl_initial_response(SCRAM_SHA_256, scram.message(), &mut answer)?;
        self.send(&answer).await?;
        match self.message().await? {
            Message::AuthenticationSaslContinue(body) => scram.update(body.data())?,
            Message::ErrorResponse(body) => return Err(server_error(&body)?),
            _ => return Err(unexpected()),
        }
        answer.clear();
        frontend::sasl_response(scram.message(), &mut answer)?;
        self.send(&answer).await?;
        match self.message().await? {
            // Proves that the server knows the password too.
            Message::AuthenticationSaslFinal(body) => Ok(scram.finish(body.data())?),
            Message::ErrorResponse(body) => Err(server_error(&body)?),
            _ => Err(unexpected()),
        }
    }
}

fn offers_scram(body: &AuthenticationSaslBody) -> Result<bool, PgError> {
    Ok(body
        .mechanisms()
        .any(|mechanism| Ok(mechanism == SCRAM_SHA_256))?)
}

fn unexpected() -> PgError {
    PgError::Protocol("a message that does not belong to a login".to_owned())
}
