//! Completes the settings with environment, password file and libpq's defaults.
//!
//! The environment is a value; the only IO is reading the password file and checking for default files,
//! relative to that value.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::ValueEnum;
use steep_protocol::message::peer::Secret;

use super::parse::{Reason, Settings};
use super::passfile::{self, Wanted};
use super::{
    Address, Conninfo, Endpoint, Keepalive, Roots, SessionAttrs, SslMode, TlsSettings, word,
};
use crate::pg::idle::Idle;

/// Debian's and most distributions' directory, then PostgreSQL's own default.
const SOCKET_DIRS: [&str; 2] = ["/var/run/postgresql", "/tmp"];

const PORT: u16 = 5432;

/// More addresses are a mistake.
const ENDPOINTS_MAX: usize = 64;

/// Per address. libpq waits for ever, which would leave an agent hanging without a message.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Notices a dead network in 35 seconds; Linux's defaults take more than two hours.
const KEEPALIVE: Keepalive = Keepalive {
    idle: Duration::from_secs(15),
    interval: Duration::from_secs(5),
    count: 4,
};

#[derive(Debug, Clone, Default)]
pub(super) struct Environment {
    pub(super) vars: HashMap<String, String>,
    pub(super) home: Option<PathBuf>,
    pub(super) user: Option<String>,
}

impl Environment {
    pub(super) fn of_process() -> Self {
        let vars: HashMap<_, _> = std::env::vars_os()
            .filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)))
            .filter(|(key, _)| key.starts_with("PG"))
            .collect();
        Self {
            vars,
            home: std::env::home_dir(),
            user: os_user(),
        }
    }
}

/// The effective user's name, from `/etc/passwd`, else from the shell.
fn os_user() -> Option<String> {
    let uid = rustix::process::geteuid().as_raw().to_string();
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let entry = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == uid).then(|| name.to_owned())
    });
    entry
        .or_else(|| std::env::var("USER").ok())
        .or_else(|| std::env::var("LOGNAME").ok())
}

/// Settings take precedence over the environment.
struct Lookup<'a> {
    settings: &'a Settings,
    environment: &'a Environment,
}

impl<'a> Lookup<'a> {
    fn get(&self, key: &str, variable: &str) -> Option<&'a str> {
        let from_environment = || self.environment.vars.get(variable).map(String::as_str);
        self.settings
            .get(key)
            .or_else(from_environment)
            .filter(|value| !value.is_empty())
    }

    fn list(&self, key: &str, variable: &str) -> Vec<&'a str> {
        let values = self.get(key, variable).into_iter();
        values
            .flat_map(|value| value.split(',').map(str::trim))
            .collect()
    }

    fn seconds(&self, key: &str, variable: &str, default: Duration) -> Result<Duration, Reason> {
        let Some(value) = self.get(key, variable) else {
            return Ok(default);
        };
        let seconds: u32 = value
            .trim()
            .parse()
            .map_err(|_| format!("{key} is not a number of seconds"))?;
        Ok(Duration::from_secs(u64::from(seconds)))
    }

    fn existing_default(&self, name: &str) -> Option<PathBuf> {
        let home = self.environment.home.as_ref()?;
        let path = home.join(".postgresql").join(name);
        path.exists().then_some(path)
    }
}

pub(super) fn resolve(settings: &Settings, environment: &Environment) -> Result<Conninfo, Reason> {
    let lookup = Lookup {
        settings,
        environment,
    };
    let user = lookup
        .get("user", "PGUSER")
        .or(environment.user.as_deref())
        .ok_or("it names no user, and the operating system's is unknown: add user=")?
        .to_owned();
    let database = lookup.get("dbname", "PGDATABASE").unwrap_or(&user);
    let database = database.to_owned();
    if lookup.get("channel_binding", "PGCHANNELBINDING") == Some("require") {
        return Err("channel_binding=require is not supported: use sslmode=verify-full".into());
    }
    let endpoints = resolve_endpoints(&lookup, &user, &database)?;
    Ok(Conninfo {
        endpoints,
        user,
        database,
        tls: resolve_tls(&lookup)?,
        connect_timeout: resolve_timeout(&lookup)?,
        application_name: settings.get("application_name").map(str::to_owned),
        options: lookup.get("options", "PGOPTIONS").map(str::to_owned),
        session_attrs: resolve_attrs(&lookup)?,
        keepalive: resolve_keepalive(&lookup)?,
        passed_on: settings
            .passed_on()
            .map(|(key, value)| (key, value.to_owned()))
            .collect(),
        idle: Idle::default(),
    })
}

fn resolve_endpoints(
    lookup: &Lookup<'_>,
    user: &str,
    database: &str,
) -> Result<Vec<Endpoint>, Reason> {
    let given = lookup.get("password", "PGPASSWORD").map(Secret::new);
    let passfile = match given {
        Some(_) => None,
        None => passfile_text(lookup),
    };
    let endpoints = resolve_addresses(lookup)?
        .into_iter()
        .map(|(address, port)| {
            let host = match &address {
                Address::Socket(dir) if SOCKET_DIRS.iter().any(|known| Path::new(known) == dir) => {
                    "localhost".to_owned()
                }
                Address::Socket(dir) => super::text(dir),
                Address::Host {
                    name: Some(name), ..
                } => name.clone(),
                Address::Host { name: None, addr } => {
                    addr.map(|a| a.to_string()).unwrap_or_default()
                }
            };
            let from_file = || {
                let wanted = Wanted {
                    host: &host,
                    port,
                    database,
                    user,
                };
                passfile
                    .as_deref()
                    .and_then(|text| passfile::find(text, wanted))
            };
            let password = given.clone().or_else(from_file);
            Endpoint {
                address,
                port,
                password,
            }
        });
    Ok(endpoints.collect())
}

fn resolve_addresses(lookup: &Lookup<'_>) -> Result<Vec<(Address, u16)>, Reason> {
    let hosts = lookup.list("host", "PGHOST");
    let addrs = lookup.list("hostaddr", "PGHOSTADDR");
    let ports = lookup.list("port", "PGPORT");
    if !hosts.is_empty() && !addrs.is_empty() && hosts.len() != addrs.len() {
        return Err("host and hostaddr have different numbers of entries".into());
    }
    let count = hosts.len().max(addrs.len());
    if count > ENDPOINTS_MAX {
        return Err(format!("it names more than {ENDPOINTS_MAX} hosts"));
    }
    if ports.len() > 1 && ports.len() != count {
        return Err("host and port have different numbers of entries".into());
    }
    let port = |n: usize| match ports.get(n).or(ports.first()) {
        None | Some(&"") => Ok(PORT),
        Some(text) => match text.parse::<u16>() {
            Ok(port) if port > 0 => Ok(port),
            _ => Err("port is not a number from 1 to 65535".to_owned()),
        },
    };
    if count == 0 {
        let port = port(0)?;
        return Ok(default_addresses().map(|address| (address, port)).collect());
    }
    let mut addresses = Vec::new();
    for n in 0..count {
        let port = port(n)?;
        let name = hosts.get(n).copied().filter(|name| !name.is_empty());
        let addr = match addrs.get(n).copied().filter(|addr| !addr.is_empty()) {
            Some(addr) => Some(
                addr.parse::<IpAddr>()
                    .map_err(|_| "hostaddr is not an IP address".to_owned())?,
            ),
            None => None,
        };
        match (name, addr) {
            (None, None) => addresses.extend(default_addresses().map(|address| (address, port))),
            (Some(dir), None) if dir.starts_with('/') => {
                addresses.push((Address::Socket(dir.into()), port));
            }
            (Some(name), None) if name.starts_with('@') => {
                return Err(
                    "abstract sockets are not supported: give the socket's directory".into(),
                );
            }
            (name, addr) => {
                addresses.push((
                    Address::Host {
                        name: name.map(str::to_owned),
                        addr,
                    },
                    port,
                ));
            }
        }
    }
    Ok(addresses)
}

/// Sockets first, then TCP.
fn default_addresses() -> impl Iterator<Item = Address> {
    let sockets = SOCKET_DIRS
        .iter()
        .map(|dir| Address::Socket(PathBuf::from(dir)));
    let tcp = Address::Host {
        name: Some("localhost".to_owned()),
        addr: None,
    };
    sockets.chain(std::iter::once(tcp))
}

fn passfile_text(lookup: &Lookup<'_>) -> Option<String> {
    let path = match lookup.get("passfile", "PGPASSFILE") {
        Some(path) => PathBuf::from(path),
        None => lookup.environment.home.as_ref()?.join(".pgpass"),
    };
    passfile::load(&path)
}

fn resolve_tls(lookup: &Lookup<'_>) -> Result<TlsSettings, Reason> {
    let roots = match lookup.get("sslrootcert", "PGSSLROOTCERT") {
        Some("system") => Some(Roots::System),
        Some(path) => Some(Roots::File(path.into())),
        None => lookup.existing_default("root.crt").map(Roots::File),
    };
    let mode = match lookup.get("sslmode", "PGSSLMODE") {
        Some(text) => choice("sslmode", text)?,
        None if roots == Some(Roots::System) => SslMode::VerifyFull,
        None => SslMode::Prefer,
    };
    match (mode, &roots) {
        (SslMode::VerifyCa | SslMode::VerifyFull, None) => {
            return Err(format!(
                "sslmode={} needs sslrootcert=FILE or sslrootcert=system",
                word(mode)
            ));
        }
        (SslMode::VerifyFull, Some(Roots::System)) => {}
        // Anybody can have a certificate of some public authority: only the name counts.
        (_, Some(Roots::System)) => {
            return Err("sslrootcert=system makes sense only with sslmode=verify-full".into());
        }
        _ => {}
    }
    let cert = lookup.get("sslcert", "PGSSLCERT").map(PathBuf::from);
    let cert = cert.or_else(|| lookup.existing_default("postgresql.crt"));
    let key = lookup.get("sslkey", "PGSSLKEY").map(PathBuf::from);
    let key = key.or_else(|| lookup.existing_default("postgresql.key"));
    let client = match (cert, key) {
        (Some(cert), Some(key)) => Some((cert, key)),
        (Some(_), None) => return Err("sslcert is given and sslkey is not".into()),
        (None, _) => None,
    };
    Ok(TlsSettings {
        mode,
        roots,
        client,
    })
}

fn resolve_timeout(lookup: &Lookup<'_>) -> Result<Duration, Reason> {
    let timeout = lookup.seconds("connect_timeout", "PGCONNECT_TIMEOUT", CONNECT_TIMEOUT)?;
    // 0 means "for ever" in libpq, which nobody watches here.
    Ok(if timeout.is_zero() {
        CONNECT_TIMEOUT
    } else {
        timeout
    })
}

fn resolve_attrs(lookup: &Lookup<'_>) -> Result<SessionAttrs, Reason> {
    let Some(text) = lookup.get("target_session_attrs", "PGTARGETSESSIONATTRS") else {
        return Ok(SessionAttrs::Any);
    };
    choice("target_session_attrs", text)
}

fn choice<T: ValueEnum>(key: &str, text: &str) -> Result<T, Reason> {
    let all = T::value_variants();
    let found = all.iter().find(|value| word((*value).clone()) == text);
    found.cloned().ok_or_else(|| {
        let all: Vec<_> = all.iter().cloned().map(word).collect();
        format!("{key} is none of {}", all.join(", "))
    })
}

fn resolve_keepalive(lookup: &Lookup<'_>) -> Result<Option<Keepalive>, Reason> {
    // libpq has no environment variables for these.
    const NONE: &str = "";
    if lookup.get("keepalives", NONE) == Some("0") {
        return Ok(None);
    }
    let count = match lookup.get("keepalives_count", NONE) {
        Some(text) => text
            .parse()
            .map_err(|_| "keepalives_count is not a number".to_owned())?,
        None => KEEPALIVE.count,
    };
    Ok(Some(Keepalive {
        idle: lookup.seconds("keepalives_idle", NONE, KEEPALIVE.idle)?,
        interval: lookup.seconds("keepalives_interval", NONE, KEEPALIVE.interval)?,
        count,
    }))
}

#[cfg(test)]
mod tests;
