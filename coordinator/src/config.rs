//! The coordinator's settings. `steep_daemon::config` reads and merges them.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde::{Deserialize, Serialize};
use steep_daemon::config::{ConfigError, Settings, metrics_address};
use steep_protocol::units::{parse_duration, parse_size};

use crate::drive::{DRIFT_GRACE, UNSEEN_GRACE};
use crate::job::health::Bounds;
use crate::job::retry::Patience;

/// The default listen address: all interfaces, on the documented port.
const LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::UNSPECIFIED), 7400);

/// [`health::WAL_HELD_MAX`] as text.
///
/// [`health::WAL_HELD_MAX`]: crate::job::health::WAL_HELD_MAX
const MAX_WAL_HELD: &str = "256GiB";

/// [`health::SNAPSHOT_AGE_MAX`] as text.
///
/// [`health::SNAPSHOT_AGE_MAX`]: crate::job::health::SNAPSHOT_AGE_MAX
const MAX_SNAPSHOT_AGE: &str = "48h";

/// [`retry::RETRY_FOR`] as text.
///
/// [`retry::RETRY_FOR`]: crate::job::retry::RETRY_FOR
const RETRY_FOR: &str = "30m";

/// [`retry::KEEP_FAILED`] as text.
///
/// [`retry::KEEP_FAILED`]: crate::job::retry::KEEP_FAILED
const KEEP_FAILED: &str = "24h";

/// Settings from the command line, the environment and a file.
#[derive(Debug, Clone, Default, PartialEq, Args, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Given {
    /// UDP address to listen on [default: 0.0.0.0:7400]
    #[arg(long, value_name = "ADDR:PORT")]
    pub listen: Option<SocketAddr>,
    /// Directory for the coordinator's store; created if missing
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// The cluster's CA certificate
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// The coordinator's certificate
    #[arg(long, value_name = "FILE")]
    pub cert: Option<PathBuf>,
    /// Its private key
    #[arg(long, value_name = "FILE")]
    pub key: Option<PathBuf>,
    /// Serve GET /metrics and /healthz on that TCP address; a port alone means 127.0.0.1
    #[arg(long, value_name = "[ADDR:]PORT")]
    pub metrics: Option<String>,
    /// WAL that a job's slot may hold back on its source before the job is stopped; none for no limit
    /// [default: 256GiB]
    #[arg(long, value_name = "SIZE|none")]
    pub max_wal_held: Option<String>,
    /// Age of a job's snapshot on its source at which the job is stopped; none for no limit
    /// [default: 48h]
    #[arg(long, value_name = "DURATION|none")]
    pub max_snapshot_age: Option<String>,
    /// How long a job retries after a temporary error, without progress, before it fails
    /// [default: 30m]
    #[arg(long, value_name = "TIME")]
    pub retry_for: Option<String>,
    /// How long a failed job keeps its rows and slot for init --resume; none to clean up at once
    /// [default: 24h]
    #[arg(long, value_name = "TIME|none")]
    pub keep_failed: Option<String>,
    /// How long columns must differ from the source's before a node is DIVERGED: longer than a schema
    /// change on both ends takes [default: 60s]
    #[arg(long, value_name = "TIME")]
    pub drift_grace: Option<String>,
    /// How long a node's agent or PostgreSQL may be unreachable before the node is DIVERGED
    /// [default: 60s]
    #[arg(long, value_name = "TIME")]
    pub unseen_grace: Option<String>,
}

/// The effective settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The listen address.
    pub listen: SocketAddr,
    /// The store's directory.
    pub data_dir: PathBuf,
    /// The cluster's CA certificate.
    pub ca: PathBuf,
    /// The coordinator's certificate.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The address of metrics and health, if any.
    pub metrics: Option<SocketAddr>,
    /// Limits on a job's load on its source.
    pub bounds: Bounds,
    /// How long jobs retry, and keep rows and slot after a failure.
    pub patience: Patience,
    /// How long columns must differ before a node is diverged.
    pub drift_grace: Duration,
    /// How long a node may be unreachable before it is diverged.
    pub unseen_grace: Duration,
}

impl Settings for Given {
    const NAME: &'static str = "steep-coordinator";
    const ABOUT: &'static str = "Holds the state of every node and job of the cluster; agents and \
                                 operators connect to it";
    const PREFIX: &'static str = "STEEP_COORDINATOR";
    /// The key is a path.
    const SECRETS: &'static [&'static str] = &[];

    fn with_defaults(self) -> Self {
        Self {
            listen: self.listen.or(Some(LISTEN)),
            max_wal_held: self.max_wal_held.or_else(|| Some(MAX_WAL_HELD.to_owned())),
            max_snapshot_age: self
                .max_snapshot_age
                .or_else(|| Some(MAX_SNAPSHOT_AGE.to_owned())),
            retry_for: self.retry_for.or_else(|| Some(RETRY_FOR.to_owned())),
            keep_failed: self.keep_failed.or_else(|| Some(KEEP_FAILED.to_owned())),
            drift_grace: self.drift_grace.or_else(|| Some(seconds(DRIFT_GRACE))),
            unseen_grace: self.unseen_grace.or_else(|| Some(seconds(UNSEEN_GRACE))),
            ..self
        }
    }

    fn redact(secret: &str) -> String {
        "*".repeat(secret.len().min(3))
    }
}

impl TryFrom<Given> for Config {
    type Error = ConfigError;

    fn try_from(given: Given) -> Result<Self, ConfigError> {
        let missing = Given::missing;
        let (bounds, patience) = (bounds(&given)?, patience(&given)?);
        Ok(Self {
            listen: given.listen.unwrap_or(LISTEN),
            data_dir: given.data_dir.ok_or_else(|| missing("data-dir"))?,
            ca: given.ca.ok_or_else(|| missing("ca"))?,
            cert: given.cert.ok_or_else(|| missing("cert"))?,
            key: given.key.ok_or_else(|| missing("key"))?,
            metrics: given.metrics.as_deref().map(metrics_address).transpose()?,
            bounds,
            patience,
            drift_grace: grace("drift-grace", given.drift_grace.as_deref(), DRIFT_GRACE)?,
            unseen_grace: grace("unseen-grace", given.unseen_grace.as_deref(), UNSEEN_GRACE)?,
        })
    }
}

fn bounds(given: &Given) -> Result<Bounds, ConfigError> {
    let wal_held = given.max_wal_held.as_deref().unwrap_or(MAX_WAL_HELD);
    let age = given
        .max_snapshot_age
        .as_deref()
        .unwrap_or(MAX_SNAPSHOT_AGE);
    Ok(Bounds {
        wal_held: limit("max-wal-held", wal_held, parse_size)?,
        snapshot_age: limit("max-snapshot-age", age, parse_duration)?,
    })
}

fn patience(given: &Given) -> Result<Patience, ConfigError> {
    let retry = given.retry_for.as_deref().unwrap_or(RETRY_FOR);
    let keep = given.keep_failed.as_deref().unwrap_or(KEEP_FAILED);
    Ok(Patience {
        retry_for: parse_duration(retry).map_err(|why| ConfigError::invalid("retry-for", why))?,
        keep_failed: limit("keep-failed", keep, parse_duration)?,
    })
}

/// A limit; `none` or `0` for no limit.
fn limit<T>(
    name: &'static str,
    text: &str,
    parse: fn(&str) -> Result<T, String>,
) -> Result<Option<T>, ConfigError> {
    if matches!(text.trim(), "none" | "0") {
        return Ok(None);
    }
    parse(text)
        .map(Some)
        .map_err(|why| ConfigError::invalid(name, format!("{why}, or none")))
}

fn seconds(duration: Duration) -> String {
    format!("{}s", duration.as_secs())
}

fn grace(
    name: &'static str,
    given: Option<&str>,
    usual: Duration,
) -> Result<Duration, ConfigError> {
    given.map_or(Ok(usual), |text| {
        parse_duration(text).map_err(|why| ConfigError::invalid(name, why))
    })
}

#[cfg(test)]
mod tests {
    use steep_protocol::ByteCount;

    use super::*;

    fn enough() -> Given {
        Given {
            data_dir: Some("data".into()),
            ca: Some("ca.pem".into()),
            cert: Some("c.pem".into()),
            key: Some("c.key".into()),
            ..Given::default()
        }
    }

    #[test]
    fn defaults_are_the_contracts() {
        let config = Config::try_from(enough()).unwrap();
        assert_eq!((config.listen, config.metrics), (LISTEN, None));
        assert_eq!(config.bounds, Bounds::default());
        let shown = Given::default().with_defaults();
        assert_eq!(bounds(&shown).unwrap(), Bounds::default());
        assert_eq!(config.patience, Patience::default());
        assert_eq!(patience(&shown).unwrap(), Patience::default());
    }

    #[test]
    fn what_failed_is_kept_as_long_as_is_said_or_not_at_all() {
        let read = |retry: &str, keep: &str| {
            patience(&Given {
                retry_for: Some(retry.to_owned()),
                keep_failed: Some(keep.to_owned()),
                ..Given::default()
            })
        };
        let short = read("90s", "2h").unwrap();
        assert_eq!(short.retry_for, Duration::from_secs(90));
        assert_eq!(short.keep_failed, Some(Duration::from_secs(7_200)));
        for none in ["none", "0"] {
            assert_eq!(read("90s", none).unwrap().keep_failed, None);
        }
        assert!(
            read("long", "1h")
                .unwrap_err()
                .to_string()
                .contains("retry-for")
        );
    }

    #[test]
    fn bounds_are_read_as_people_write_them_and_can_be_taken_away() {
        let read = |wal: &str, age: &str| {
            bounds(&Given {
                max_wal_held: Some(wal.to_owned()),
                max_snapshot_age: Some(age.to_owned()),
                ..Given::default()
            })
        };
        let small = Bounds {
            wal_held: Some(ByteCount(50_000_000)),
            snapshot_age: Some(Duration::from_secs(5_400)),
        };
        assert_eq!(read("50MB", "1h30m").unwrap(), small);
        let none = Bounds {
            wal_held: None,
            snapshot_age: None,
        };
        assert_eq!(read("none", "0").unwrap(), none);
        for (wal, age, name) in [
            ("much", "1h", "max-wal-held"),
            ("1GB", "3", "max-snapshot-age"),
        ] {
            let refused = read(wal, age).unwrap_err().to_string();
            assert!(refused.contains(name), "{refused}");
        }
    }

    #[test]
    fn a_grace_is_a_time() {
        let grace = |text| grace("drift-grace", text, DRIFT_GRACE);
        assert_eq!(grace(None).unwrap(), DRIFT_GRACE);
        assert_eq!(grace(Some("5m")).unwrap(), Duration::from_secs(300));
        for bad in ["", "60", "-5s", "soon"] {
            assert!(grace(Some(bad)).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let refused = |given: Given| Config::try_from(given).unwrap_err().to_string();
        let key = refused(Given {
            key: None,
            ..enough()
        });
        assert!(key.contains("STEEP_COORDINATOR_KEY"), "{key}");
        let metrics = refused(Given {
            metrics: Some("here".to_owned()),
            ..enough()
        });
        assert!(metrics.contains("--metrics"), "{metrics}");
    }
}
