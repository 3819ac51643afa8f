//! What an agent is told when it starts; how it is put together is `steep_daemon::config`'s.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};
use steep_daemon::config::{ConfigError, Settings, metrics_address};
use steep_protocol::address::{AGENT_PORT, COORDINATOR_PORT, check_address};
use steep_protocol::limits::WORKERS_MAX;
use steep_protocol::quic::{Congestion, Tuning};
use steep_protocol::units::{parse_duration, parse_size};
use steep_protocol::{ByteCount, NodeId};

use crate::budget;
use crate::pg::Conninfo;

/// Where an agent listens unless told otherwise: everywhere, on the contract's port.
const LISTEN: SocketAddr = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 7401);

/// Congestion control on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CongestionChoice {
    /// Keeps its rate on lossy, long paths.
    Bbr,
    /// Backs off at every loss.
    Cubic,
}

/// Settings as given, on the command line, in the environment or in a file.
#[derive(Debug, Clone, Default, Args, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Given {
    /// Name of this node, as in the agent's certificate
    #[arg(long)]
    pub node: Option<String>,
    /// The coordinator, HOST:PORT
    #[arg(long, value_name = "HOST:PORT")]
    pub coordinator: Option<String>,
    /// UDP address to listen on for other agents [default: `[::]:7401`]
    #[arg(long, value_name = "ADDR:PORT")]
    pub listen: Option<SocketAddr>,
    /// Where other agents reach this one [default: the listening address]
    #[arg(long, value_name = "HOST:PORT")]
    pub advertise: Option<String>,
    /// The database to replicate: a libpq connection string or URI
    #[arg(long, value_name = "CONNINFO")]
    pub postgres: Option<String>,
    /// How other PostgreSQL servers reach this one [default: as --postgres]
    #[arg(long, value_name = "CONNINFO")]
    pub replication_conninfo: Option<String>,
    /// Directory for parts kept for other targets [default: the one for temporary files]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// The cluster's CA certificate
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// This agent's certificate
    #[arg(long, value_name = "FILE")]
    pub cert: Option<PathBuf>,
    /// Its private key
    #[arg(long, value_name = "FILE")]
    pub key: Option<PathBuf>,
    /// Key file for stored snapshots that are encrypted, as `steep-repl snapshot keygen` makes it
    #[arg(long, value_name = "FILE")]
    pub snapshot_key: Option<PathBuf>,
    /// Serve GET /metrics and /healthz on that TCP address; a port alone means 127.0.0.1
    #[arg(long, value_name = "[ADDR:]PORT")]
    pub metrics: Option<String>,
    /// Workers at once, over all jobs [default: 16]
    #[arg(long, value_name = "N")]
    pub max_workers: Option<u8>,
    /// Mebibytes of memory for rows on their way; parts beyond it wait [default: 96]
    #[arg(long, value_name = "MIB")]
    pub memory_mib: Option<u32>,
    /// Memory for all index builds at once, such as 2GiB [default: a quarter of what is free on the server's
    /// machine, within its control group; elsewhere, the server's own setting]
    #[arg(long, value_name = "SIZE")]
    pub index_memory: Option<String>,
    /// Disk space for parts that other targets of a shared snapshot fetch here, such as 20GiB; 0 keeps none
    /// [default: a tenth of what is free in --data-dir, at most 32 GiB]
    #[arg(long, value_name = "SIZE")]
    pub store_size: Option<String>,
    /// How often the columns of replicated tables are compared with the source's [default: 60s]
    #[arg(long, value_name = "TIME")]
    pub schema_check_interval: Option<String>,
    /// How often the sequences of a node that follows are set to the source's; 0 for never [default: 60s]
    #[arg(long, value_name = "TIME")]
    pub sequence_interval: Option<String>,
    /// How long a snapshot of a job that nobody reads is held without a session with the coordinator; none for ever
    /// [default: 30m]
    #[arg(long, value_name = "DURATION|none")]
    pub snapshot_grace: Option<String>,
    /// Congestion control [default: bbr]
    #[arg(long)]
    pub congestion: Option<CongestionChoice>,
}

/// Settings in force.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub(crate) node: NodeId,
    pub(crate) coordinator: String,
    pub(crate) listen: SocketAddr,
    pub(crate) advertise: Option<String>,
    pub(crate) postgres: String,
    pub(crate) replication_conninfo: String,
    pub(crate) credentials: (PathBuf, PathBuf, PathBuf),
    pub(crate) snapshot_key: Option<PathBuf>,
    pub(crate) metrics: Option<SocketAddr>,
    pub(crate) max_workers: u8,
    /// Where snapshots are stored that are read before they are copied.
    pub(crate) spool: Option<String>,
    pub(crate) memory_mib: u32,
    pub(crate) index_memory: Option<ByteCount>,
    pub(crate) data_dir: Option<PathBuf>,
    /// `None` where it depends on the free space.
    pub(crate) store_size: Option<ByteCount>,
    pub(crate) schema_check_interval: Duration,
    /// 0 for never.
    pub(crate) sequence_interval_seconds: u32,
    /// `None` for ever.
    pub(crate) snapshot_grace: Option<Duration>,
    pub(crate) tuning: Tuning,
}

impl Settings for Given {
    const NAME: &'static str = "steep-agent";
    const ABOUT: &'static str =
        "Runs beside one PostgreSQL server and streams its tables to other agents";
    const PREFIX: &'static str = "STEEP_AGENT";
    const SECRETS: &'static [&'static str] = &["postgres", "replication-conninfo"];

    fn with_defaults(self) -> Self {
        Self {
            listen: self.listen.or(Some(LISTEN)),
            max_workers: self.max_workers.or(Some(WORKERS_MAX)),
            memory_mib: self.memory_mib.or(Some(budget::DEFAULT_MIB)),
            congestion: self.congestion.or(Some(CongestionChoice::Bbr)),
            replication_conninfo: self.replication_conninfo.or_else(|| self.postgres.clone()),
            schema_check_interval: self
                .schema_check_interval
                .or_else(|| Some(format!("{}s", SCHEMA_CHECK_INTERVAL.as_secs()))),
            snapshot_grace: self
                .snapshot_grace
                .or_else(|| Some(SNAPSHOT_GRACE.to_owned())),
            sequence_interval: self
                .sequence_interval
                .or_else(|| Some(format!("{SEQUENCE_INTERVAL}s"))),
            ..self
        }
    }

    fn redact(conninfo: &str) -> String {
        Conninfo::parse(conninfo).map_or_else(|_| "(unreadable)".to_owned(), |c| c.redacted())
    }
}

impl TryFrom<Given> for Config {
    type Error = ConfigError;

    fn try_from(given: Given) -> Result<Self, ConfigError> {
        let missing = Given::missing;
        let node = given.node.ok_or_else(|| missing("node"))?;
        let node = NodeId::parse(&node).map_err(|e| ConfigError::invalid("node", e.to_string()))?;
        let max_workers = given.max_workers.unwrap_or(WORKERS_MAX);
        if max_workers == 0 {
            let why = "at least one worker is needed";
            return Err(ConfigError::invalid("max-workers", why));
        }
        let memory_mib = given.memory_mib.unwrap_or(budget::DEFAULT_MIB);
        if memory_mib < budget::LEAST_MIB {
            let why = format!("at least {} are needed", budget::LEAST_MIB);
            return Err(ConfigError::invalid("memory-mib", why));
        }
        let postgres = given.postgres.ok_or_else(|| missing("postgres"))?;
        let congestion = match given.congestion {
            Some(CongestionChoice::Cubic) => Congestion::Cubic,
            Some(CongestionChoice::Bbr) | None => Congestion::Bbr,
        };
        let coordinator = given.coordinator.ok_or_else(|| missing("coordinator"))?;
        check_address(&coordinator, COORDINATOR_PORT)
            .map_err(|why| ConfigError::invalid("coordinator", why))?;
        if let Some(advertise) = &given.advertise {
            check_address(advertise, AGENT_PORT)
                .map_err(|why| ConfigError::invalid("advertise", why))?;
        }
        Ok(Self {
            node,
            coordinator,
            listen: given.listen.unwrap_or(LISTEN),
            advertise: given.advertise,
            replication_conninfo: given
                .replication_conninfo
                .unwrap_or_else(|| postgres.clone()),
            postgres,
            credentials: (
                given.ca.ok_or_else(|| missing("ca"))?,
                given.cert.ok_or_else(|| missing("cert"))?,
                given.key.ok_or_else(|| missing("key"))?,
            ),
            spool: given.data_dir.as_deref().map(spool).transpose()?,
            snapshot_key: given.snapshot_key,
            metrics: given.metrics.as_deref().map(metrics_address).transpose()?,
            max_workers,
            memory_mib,
            index_memory: given
                .index_memory
                .map(|text| {
                    parse_size(&text).map_err(|why| ConfigError::invalid("index-memory", why))
                })
                .transpose()?,
            data_dir: given.data_dir,
            store_size: given.store_size.as_deref().map(store_size).transpose()?,
            schema_check_interval: interval(given.schema_check_interval.as_deref())?,
            snapshot_grace: snapshot_grace(given.snapshot_grace.as_deref())?,
            sequence_interval_seconds: sequence_interval(given.sequence_interval.as_deref())?,
            tuning: Tuning {
                congestion,
                ..Tuning::BULK
            },
        })
    }
}

/// The spool in the agent's directory, as an absolute path.
fn spool(data_dir: &Path) -> Result<String, ConfigError> {
    let invalid = |why: String| ConfigError::invalid("data-dir", why);
    let path = std::path::absolute(data_dir).map_err(|error| invalid(error.to_string()))?;
    let path = path.join("spool").into_os_string().into_string();
    path.map_err(|_| invalid("its name must be UTF-8".to_owned()))
}

fn store_size(given: &str) -> Result<ByteCount, ConfigError> {
    match given.trim() {
        "0" => Ok(ByteCount(0)),
        text => parse_size(text).map_err(|why| ConfigError::invalid("store-size", why)),
    }
}

/// Once a minute: a query that takes ten thousand tables a second costs little then, and drift is seen
/// before an operator would.
const SCHEMA_CHECK_INTERVAL: Duration = Duration::from_secs(60);

fn interval(given: Option<&str>) -> Result<Duration, ConfigError> {
    given.map_or(Ok(SCHEMA_CHECK_INTERVAL), |text| {
        parse_duration(text).map_err(|why| ConfigError::invalid("schema-check-interval", why))
    })
}

/// As long as a job retries by itself.
const SNAPSHOT_GRACE: &str = "30m";

fn snapshot_grace(given: Option<&str>) -> Result<Option<Duration>, ConfigError> {
    match given.unwrap_or(SNAPSHOT_GRACE).trim() {
        "none" => Ok(None),
        text => match parse_duration(text) {
            Ok(grace) => Ok(Some(grace)),
            Err(why) => Err(ConfigError::invalid("snapshot-grace", why)),
        },
    }
}

/// Seconds: one statement on each side then, and at most the values of a minute are not known to the target.
const SEQUENCE_INTERVAL: u32 = 60;

fn sequence_interval(given: Option<&str>) -> Result<u32, ConfigError> {
    let invalid = |why: String| ConfigError::invalid("sequence-interval", why);
    match given.map(str::trim) {
        None => Ok(SEQUENCE_INTERVAL),
        Some("0") => Ok(0),
        Some(text) => {
            let interval = parse_duration(text).map_err(invalid)?;
            u32::try_from(interval.as_secs()).map_err(|_| invalid("it is too long".to_owned()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn enough() -> Given {
        Given {
            node: Some("a".into()),
            coordinator: Some("h:7400".into()),
            postgres: Some("dbname=x password=hunter2".into()),
            ca: Some("ca.pem".into()),
            cert: Some("a.pem".into()),
            key: Some("a.key".into()),
            ..Given::default()
        }
    }

    #[test]
    fn defaults_are_the_contracts() {
        let config = Config::try_from(enough()).unwrap();
        assert_eq!(config.listen.to_string(), "[::]:7401");
        assert_eq!((config.max_workers, config.metrics), (WORKERS_MAX, None));
        assert_eq!(config.replication_conninfo, config.postgres);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let refused = |given: Given| Config::try_from(given).unwrap_err().to_string();
        let postgres = refused(Given {
            postgres: None,
            ..enough()
        });
        assert!(postgres.contains("--postgres"), "{postgres}");
        assert!(postgres.contains("STEEP_AGENT_POSTGRES"), "{postgres}");
        let workers = refused(Given {
            max_workers: Some(0),
            ..enough()
        });
        assert!(workers.contains("--max-workers"), "{workers}");
        let port = refused(Given {
            coordinator: Some("h".to_owned()),
            ..enough()
        });
        assert!(port.contains("write HOST:7400"), "{port}");
        let memory = refused(Given {
            memory_mib: Some(1),
            ..enough()
        });
        assert!(memory.contains("--memory-mib"), "{memory}");
    }

    #[test]
    fn an_interval_is_a_time_of_a_second_or_more() {
        assert_eq!(interval(None).unwrap(), SCHEMA_CHECK_INTERVAL);
        assert_eq!(interval(Some("5m")).unwrap(), Duration::from_secs(300));
        for bad in ["", "60", "0s", "-5s", "500ms", "soon"] {
            assert!(interval(Some(bad)).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn sequences_follow_every_so_often_or_never() {
        assert_eq!(
            snapshot_grace(None).unwrap(),
            Some(Duration::from_secs(1800))
        );
        assert_eq!(snapshot_grace(Some("none")).unwrap(), None);
        assert!(snapshot_grace(Some("-1")).is_err());
        assert_eq!(sequence_interval(None).unwrap(), 60);
        assert_eq!(sequence_interval(Some("0")).unwrap(), 0);
        assert_eq!(sequence_interval(Some("5m")).unwrap(), 300);
        for bad in ["", "60", "0s", "often"] {
            assert!(sequence_interval(Some(bad)).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn a_store_has_a_size_or_is_none() {
        assert_eq!(store_size("0").unwrap(), ByteCount(0));
        assert_eq!(store_size("1GiB").unwrap(), ByteCount(1 << 30));
        for bad in ["", "-1", "0GB", "much"] {
            assert!(store_size(bad).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn a_connection_string_is_shown_without_its_password() {
        for conninfo in ["dbname=x password=hunter2", "password='hunter2"] {
            assert!(!Given::redact(conninfo).contains("hunter2"), "{conninfo}");
        }
    }
}
