//! Where PostgreSQL is and as whom we connect: one value, resolved once.
//!
//! `parse` (pure) reads libpq's notations, `resolve` adds environment and defaults (given as a value),
//! `passfile` looks up passwords. The result needs no environment. The password is a [`Secret`], which
//! `Debug` and `Display` leave out.
//!
//! `tokio_postgres::Config` (0.7.18) cannot read these strings: it rejects `sslrootcert`, `sslcert`,
//! `sslkey`, `passfile`, `keepalives_count` and the values `allow` and `verify-*` of `sslmode`, and uses
//! neither environment nor password file. The same string must also be usable for a subscription.

mod parse;
mod passfile;
mod resolve;

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::ValueEnum;
use steep_protocol::message::peer::Secret;

use super::PgError;
use super::idle::Idle;
use resolve::Environment;

/// The bytes that PostgreSQL keeps of an `application_name` (NAMEDATALEN - 1).
const APPLICATION_NAME_MAX: usize = 63;

/// A database, possibly at one of several addresses.
#[derive(Clone)]
pub(crate) struct Conninfo {
    pub(super) endpoints: Vec<Endpoint>,
    pub(super) user: String,
    pub(super) database: String,
    pub(super) tls: TlsSettings,
    pub(super) connect_timeout: Duration,
    pub(super) application_name: Option<String>,
    pub(super) options: Option<String>,
    pub(super) session_attrs: SessionAttrs,
    pub(super) keepalive: Option<Keepalive>,
    passed_on: Vec<(&'static str, String)>,
    pub(super) idle: Idle,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Endpoint {
    pub(super) address: Address,
    pub(super) port: u16,
    password: Option<Secret>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Address {
    Socket(PathBuf),
    /// Certificates are checked against `name`; `addr`, if given, is dialled.
    Host {
        name: Option<String>,
        addr: Option<IpAddr>,
    },
}

/// PostgreSQL manual, section "SSL Support", table of `sslmode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(super) enum SslMode {
    Disable,
    Allow,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TlsSettings {
    pub(super) mode: SslMode,
    pub(super) roots: Option<Roots>,
    pub(super) client: Option<(PathBuf, PathBuf)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Roots {
    File(PathBuf),
    System,
}

/// `target_session_attrs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum SessionAttrs {
    Any,
    ReadWrite,
    ReadOnly,
    Primary,
    Standby,
    PreferStandby,
}

/// TCP keepalive; 0 leaves the operating system's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Keepalive {
    pub(super) idle: Duration,
    pub(super) interval: Duration,
    pub(super) count: u32,
}

/// A server that does not confirm what an apply worker has sent is given up after this time: the worker ignores
/// `connect_timeout`, and keepalives do not count while data wait for a confirmation.
const SUBSCRIPTION_TIMEOUT: Duration = Duration::from_secs(30);

const USER_TIMEOUT: &str = "tcp_user_timeout";

impl Conninfo {
    /// Reads a libpq keyword/value string or URI; the environment (`PGHOST`, …), the password file and
    /// libpq's defaults complete it. Errors never repeat values.
    pub(crate) fn parse(text: &str) -> Result<Self, PgError> {
        parse::parse(text)
            .and_then(|settings| resolve::resolve(&settings, &Environment::of_process()))
            .map_err(PgError::Conninfo)
    }

    /// As [`Conninfo::parse`] for another agent's string, which is complete: this process' environment and
    /// password file belong to another server.
    pub(crate) fn parse_alone(text: &str) -> Result<Self, PgError> {
        parse::parse(text)
            .and_then(|settings| resolve::resolve(&settings, &Environment::default()))
            .map_err(PgError::Conninfo)
    }

    /// Host, port, user and database, for logs.
    pub(crate) fn redacted(&self) -> String {
        let place: Vec<_> = self.endpoints.iter().map(ToString::to_string).collect();
        format!(
            "{} user={} dbname={}",
            place.join(" or "),
            self.user,
            self.database
        )
    }

    /// The connection in libpq's keyword/value form with its password, for `CREATE SUBSCRIPTION`.
    pub(crate) fn libpq(&self) -> Secret {
        let mut text = self.libpq_without_password();
        if !self.passed_on.iter().any(|(key, _)| *key == USER_TIMEOUT) {
            let limit = SUBSCRIPTION_TIMEOUT.as_millis();
            text.push_str(&format!(" {USER_TIMEOUT}='{limit}'"));
        }
        if let Some(password) = self.password() {
            text.push_str(&format!(" password={}", quote(password.expose())));
        }
        Secret::new(text)
    }

    /// As [`Conninfo::libpq`] without the password, for a command line.
    pub(crate) fn libpq_without_password(&self) -> String {
        let mut pairs = self.libpq_address();
        pairs.push(("user", self.user.clone()));
        pairs.push(("dbname", self.database.clone()));
        pairs.push(("sslmode", word(self.tls.mode)));
        match &self.tls.roots {
            Some(Roots::File(path)) => pairs.push(("sslrootcert", text(path))),
            Some(Roots::System) => pairs.push(("sslrootcert", "system".to_owned())),
            None => {}
        }
        if let Some((cert, key)) = &self.tls.client {
            pairs.push(("sslcert", text(cert)));
            pairs.push(("sslkey", text(key)));
        }
        let timeout = self.connect_timeout.as_secs().to_string();
        pairs.push(("connect_timeout", timeout));
        let name = self.application_name.clone();
        pairs.extend(name.map(|name| ("application_name", name)));
        pairs.extend(self.options.clone().map(|options| ("options", options)));
        if self.session_attrs != SessionAttrs::Any {
            pairs.push(("target_session_attrs", word(self.session_attrs)));
        }
        pairs.extend(self.libpq_keepalive());
        pairs.extend(self.passed_on.iter().cloned());
        let pairs: Vec<_> = pairs
            .iter()
            .map(|(key, value)| format!("{key}={}", quote(value)))
            .collect();
        pairs.join(" ")
    }

    /// [`Conninfo::libpq_without_password`] with an `application_name` for that purpose.
    pub(crate) fn libpq_for(&self, purpose: &str) -> String {
        let named = Self {
            application_name: Some(self.application_name(purpose)),
            ..self.clone()
        };
        named.libpq_without_password()
    }

    /// The password for the first address, for a child's `PGPASSWORD`.
    pub(crate) fn password(&self) -> Option<Secret> {
        self.endpoints
            .first()
            .and_then(|endpoint| endpoint.password.clone())
    }

    /// The same at that address alone, for connections that must reach the same server as an earlier one.
    pub(super) fn pinned(&self, endpoint: &Endpoint) -> Self {
        Self {
            endpoints: vec![endpoint.clone()],
            // Those of the original may be at another address.
            idle: Idle::default(),
            ..self.clone()
        }
    }

    /// `steep-repl <purpose>`, or the operator's name in place of `steep-repl`, shortened if needed: the
    /// purpose names the job, by which sessions are found again.
    pub(crate) fn application_name(&self, purpose: &str) -> String {
        let mut name = self.application_name.as_deref().unwrap_or("steep-repl");
        let room = APPLICATION_NAME_MAX.saturating_sub(purpose.len() + 1);
        if name.len() > room {
            let end = (0..=room).rev().find(|at| name.is_char_boundary(*at));
            name = &name[..end.unwrap_or(0)];
        }
        format!("{name} {purpose}")
    }

    fn libpq_address(&self) -> Vec<(&'static str, String)> {
        let list = |of: &dyn Fn(&Endpoint) -> String| {
            self.endpoints.iter().map(of).collect::<Vec<_>>().join(",")
        };
        let mut pairs = Vec::new();
        let host = list(&|endpoint| match &endpoint.address {
            Address::Socket(dir) => text(dir),
            Address::Host { name, .. } => name.clone().unwrap_or_default(),
        });
        if self
            .endpoints
            .iter()
            .any(|endpoint| !matches!(&endpoint.address, Address::Host { name: None, .. }))
        {
            pairs.push(("host", host));
        }
        let addr = list(&|endpoint| match &endpoint.address {
            Address::Host {
                addr: Some(addr), ..
            } => addr.to_string(),
            Address::Host { addr: None, .. } | Address::Socket(_) => String::new(),
        });
        if addr.bytes().any(|byte| byte != b',') {
            pairs.push(("hostaddr", addr));
        }
        pairs.push(("port", list(&|endpoint| endpoint.port.to_string())));
        pairs
    }

    fn libpq_keepalive(&self) -> Vec<(&'static str, String)> {
        let Some(keepalive) = self.keepalive else {
            return vec![("keepalives", "0".to_owned())];
        };
        vec![
            ("keepalives_idle", keepalive.idle.as_secs().to_string()),
            (
                "keepalives_interval",
                keepalive.interval.as_secs().to_string(),
            ),
            ("keepalives_count", keepalive.count.to_string()),
        ]
    }
}

impl Endpoint {
    pub(super) fn password(&self) -> Option<&str> {
        self.password.as_ref().map(Secret::expose)
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.address {
            Address::Socket(dir) => {
                write!(f, "socket {}", socket_path(dir, self.port).display())
            }
            Address::Host {
                name: Some(name), ..
            } => write!(f, "{name}:{}", self.port),
            Address::Host {
                name: None,
                addr: Some(addr),
            } => write!(f, "{addr}:{}", self.port),
            Address::Host {
                name: None,
                addr: None,
            } => write!(f, "port {}", self.port),
        }
    }
}

impl fmt::Debug for Conninfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Conninfo({})", self.redacted())
    }
}

impl fmt::Display for Conninfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.redacted())
    }
}

pub(super) fn socket_path(dir: &Path, port: u16) -> PathBuf {
    dir.join(format!(".s.PGSQL.{port}"))
}

/// As libpq writes it.
pub(super) fn word(of: impl ValueEnum) -> String {
    let value = of.to_possible_value();
    value.map_or_else(String::new, |value| value.get_name().to_owned())
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// In single quotes, for the keyword/value form.
fn quote(value: &str) -> String {
    format!("'{}'", value.replace('\\', r"\\").replace('\'', r"\'"))
}
