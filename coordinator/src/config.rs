//! What the coordinator is told when it starts; how it is put together is `steep_daemon::config`'s.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use jiff::SignedDuration;
use serde::{Deserialize, Serialize};
use steep_daemon::config::{ConfigError, Settings, metrics_address};

use crate::drive::DRIFT_GRACE;

/// Where the coordinator listens unless told otherwise: everywhere, on the contract's port.
const LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::UNSPECIFIED), 7400);

/// Settings as given, on the command line, in the environment or in a file.
#[derive(Debug, Clone, Default, PartialEq, Args, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Given {
    /// UDP address to listen on [default: 0.0.0.0:7400]
    #[arg(long, value_name = "ADDR:PORT")]
    pub listen: Option<SocketAddr>,
    /// Directory for the coordinator's store; made if it is not there
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
    /// How long columns must differ from the source's before a node is DIVERGED: longer than a change
    /// takes that is made on both ends [default: 60s]
    #[arg(long, value_name = "TIME")]
    pub drift_grace: Option<String>,
}

/// Settings in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Where to listen.
    pub listen: SocketAddr,
    /// The store's directory.
    pub data_dir: PathBuf,
    /// The cluster's CA certificate.
    pub ca: PathBuf,
    /// The coordinator's certificate.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// Metrics and health, where they are wanted.
    pub metrics: Option<SocketAddr>,
    /// How long columns must differ.
    pub drift_grace: Duration,
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
        Ok(Self {
            listen: given.listen.unwrap_or(LISTEN),
            data_dir: given.data_dir.ok_or_else(|| missing("data-dir"))?,
            ca: given.ca.ok_or_else(|| missing("ca"))?,
            cert: given.cert.ok_or_else(|| missing("cert"))?,
            key: given.key.ok_or_else(|| missing("key"))?,
            metrics: given.metrics.as_deref().map(metrics_address).transpose()?,
            drift_grace: grace(given.drift_grace.as_deref())?,
        })
    }
}

fn grace(given: Option<&str>) -> Result<Duration, ConfigError> {
    let Some(text) = given else {
        return Ok(DRIFT_GRACE);
    };
    let span = text.parse::<SignedDuration>().ok();
    let grace = span.and_then(|span| Duration::try_from(span).ok());
    grace.ok_or_else(|| ConfigError::Invalid {
        name: "drift-grace",
        why: format!("{text:?} is not a time, such as 60s or 5m"),
    })
}

#[cfg(test)]
mod tests {
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
    }

    #[test]
    fn a_grace_is_a_time() {
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
