//! What an agent is told when it starts: flag, then environment, then file, then default.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::{Deserialize, Serialize};
use steep_protocol::NodeId;
use steep_protocol::limits::WORKERS_MAX;
use steep_protocol::quic::{Congestion, Traffic, Tuning};

/// Runs beside one PostgreSQL server and streams its tables to other agents.
#[derive(Debug, Parser)]
#[command(name = "steep-agent", version, about)]
pub struct Cli {
    /// What every command takes, before it or after it.
    #[command(flatten)]
    pub common: Common,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What every command takes.
#[derive(Debug, Clone, Default, Args)]
pub struct Common {
    /// Form of the log on stderr [default: text on a terminal, json otherwise]
    #[arg(
        long,
        global = true,
        env = "STEEP_AGENT_LOG_FORMAT",
        value_name = "FORMAT"
    )]
    pub log_format: Option<LogFormat>,
    /// TOML file with these settings
    #[arg(long, global = true, env = "STEEP_AGENT_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print the settings in force, secrets redacted, and exit
    #[arg(long, global = true)]
    pub print_config: bool,
}

impl Cli {
    /// The settings as given.
    #[must_use]
    pub fn given(self) -> Given {
        let Command::Run(given) = self.command;
        Given {
            log_format: self.common.log_format,
            config: self.common.config,
            print_config: self.common.print_config,
            ..*given
        }
    }
}

/// What an agent can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run until told to stop.
    Run(Box<Given>),
}

/// Form of the log on stderr.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

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
    #[arg(long, env = "STEEP_AGENT_NODE")]
    pub node: Option<String>,
    /// The coordinator, HOST:PORT
    #[arg(long, env = "STEEP_AGENT_COORDINATOR", value_name = "HOST:PORT")]
    pub coordinator: Option<String>,
    /// UDP address to listen on for other agents [default: `[::]:7401`]
    #[arg(long, env = "STEEP_AGENT_LISTEN", value_name = "ADDR:PORT")]
    pub listen: Option<SocketAddr>,
    /// Where other agents reach this one [default: the listening address]
    #[arg(long, env = "STEEP_AGENT_ADVERTISE", value_name = "HOST:PORT")]
    pub advertise: Option<String>,
    /// The database to replicate: a libpq connection string or URI
    #[arg(
        long,
        env = "STEEP_AGENT_POSTGRES",
        value_name = "CONNINFO",
        hide_env_values = true
    )]
    pub postgres: Option<String>,
    /// How other PostgreSQL servers reach this one [default: as --postgres]
    #[arg(
        long,
        env = "STEEP_AGENT_REPLICATION_CONNINFO",
        value_name = "CONNINFO",
        hide_env_values = true
    )]
    pub replication_conninfo: Option<String>,
    /// Directory for what must survive a restart
    #[arg(long, env = "STEEP_AGENT_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// The cluster's CA certificate
    #[arg(long, env = "STEEP_AGENT_CA", value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// This agent's certificate
    #[arg(long, env = "STEEP_AGENT_CERT", value_name = "FILE")]
    pub cert: Option<PathBuf>,
    /// Its private key
    #[arg(long, env = "STEEP_AGENT_KEY", value_name = "FILE")]
    pub key: Option<PathBuf>,
    /// Serve GET /healthz there
    #[arg(long, env = "STEEP_AGENT_METRICS", value_name = "ADDR:PORT")]
    pub metrics: Option<SocketAddr>,
    /// Workers at once, over all jobs [default: 16]
    #[arg(long, env = "STEEP_AGENT_MAX_WORKERS", value_name = "N")]
    pub max_workers: Option<u8>,
    /// Congestion control [default: bbr]
    #[arg(long, env = "STEEP_AGENT_CONGESTION")]
    pub congestion: Option<CongestionChoice>,
    /// Form of the log on stderr.
    #[arg(skip)]
    pub log_format: Option<LogFormat>,
    /// TOML file with these settings.
    #[arg(skip)]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// Print the settings in force and exit.
    #[arg(skip)]
    #[serde(skip)]
    pub print_config: bool,
}

/// Settings in force.
#[derive(Debug, Clone)]
pub struct Config {
    /// This node.
    pub node: NodeId,
    /// The coordinator's `HOST:PORT`.
    pub coordinator: String,
    /// Where to listen.
    pub listen: SocketAddr,
    /// Where peers reach us, if not there.
    pub advertise: Option<String>,
    /// The database.
    pub postgres: String,
    /// The same, for other servers.
    pub replication_conninfo: String,
    /// CA certificate, certificate, key.
    pub credentials: (PathBuf, PathBuf, PathBuf),
    /// Health endpoint.
    pub metrics: Option<SocketAddr>,
    /// Workers at once.
    pub max_workers: u8,
    /// The transport.
    pub tuning: Tuning,
    /// The log's form, where one was chosen.
    pub log_format: Option<LogFormat>,
}

/// The longest configuration file read.
const FILE_MAX: u64 = 1024 * 1024;

/// Settings that do not make a configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Something needed is nowhere.
    #[error("{0} is missing: give it as a flag, as {1} in the environment, or in the file")]
    Missing(&'static str, &'static str),
    /// Something given is not of its form.
    #[error("{what} is not usable: {why}")]
    Invalid {
        /// The setting.
        what: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// The file cannot be read.
    #[error("cannot read the configuration {path}: {why}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        why: String,
    },
}

impl Given {
    /// These settings, and below them those of the file they name.
    ///
    /// # Errors
    /// [`ConfigError::File`] where the file cannot be read or has a setting that does not exist.
    pub fn with_file(self) -> Result<Self, ConfigError> {
        let Some(path) = self.config.clone() else {
            return Ok(self);
        };
        let file = read_file(&path)?;
        Ok(Self {
            node: self.node.or(file.node),
            coordinator: self.coordinator.or(file.coordinator),
            listen: self.listen.or(file.listen),
            advertise: self.advertise.or(file.advertise),
            postgres: self.postgres.or(file.postgres),
            replication_conninfo: self.replication_conninfo.or(file.replication_conninfo),
            data_dir: self.data_dir.or(file.data_dir),
            ca: self.ca.or(file.ca),
            cert: self.cert.or(file.cert),
            key: self.key.or(file.key),
            metrics: self.metrics.or(file.metrics),
            max_workers: self.max_workers.or(file.max_workers),
            congestion: self.congestion.or(file.congestion),
            log_format: self.log_format.or(file.log_format),
            config: self.config,
            print_config: self.print_config,
        })
    }

    /// The settings as a file would hold them, connection strings redacted by `redact`.
    #[must_use]
    pub fn shown(&self, redact: impl Fn(&str) -> String) -> String {
        let mut shown = self.clone();
        shown.postgres = self.postgres.as_deref().map(&redact);
        shown.replication_conninfo = self.replication_conninfo.as_deref().map(&redact);
        toml::to_string(&shown).unwrap_or_else(|e| format!("# cannot be shown: {e}\n"))
    }
}

impl TryFrom<Given> for Config {
    type Error = ConfigError;

    fn try_from(given: Given) -> Result<Self, ConfigError> {
        let missing = ConfigError::Missing;
        let node = given.node.ok_or(missing("--node", "STEEP_AGENT_NODE"))?;
        let node = NodeId::parse(&node).map_err(|e| ConfigError::Invalid {
            what: "--node",
            why: e.to_string(),
        })?;
        let max_workers = given.max_workers.unwrap_or(WORKERS_MAX);
        if max_workers == 0 {
            let why = "at least one worker is needed".to_owned();
            return Err(ConfigError::Invalid {
                what: "--max-workers",
                why,
            });
        }
        let postgres = given
            .postgres
            .ok_or(missing("--postgres", "STEEP_AGENT_POSTGRES"))?;
        let congestion = match given.congestion {
            Some(CongestionChoice::Cubic) => Congestion::Cubic,
            Some(CongestionChoice::Bbr) | None => Congestion::Bbr,
        };
        Ok(Self {
            node,
            coordinator: given
                .coordinator
                .ok_or(missing("--coordinator", "STEEP_AGENT_COORDINATOR"))?,
            listen: given
                .listen
                .unwrap_or_else(|| SocketAddr::from(([0u16; 8], 7401))),
            advertise: given.advertise,
            replication_conninfo: given
                .replication_conninfo
                .unwrap_or_else(|| postgres.clone()),
            postgres,
            credentials: (
                given.ca.ok_or(missing("--ca", "STEEP_AGENT_CA"))?,
                given.cert.ok_or(missing("--cert", "STEEP_AGENT_CERT"))?,
                given.key.ok_or(missing("--key", "STEEP_AGENT_KEY"))?,
            ),
            metrics: given.metrics,
            max_workers,
            tuning: Tuning {
                traffic: Traffic::Bulk,
                congestion,
            },
            log_format: given.log_format,
        })
    }
}

fn read_file(path: &Path) -> Result<Given, ConfigError> {
    let fail = |why: String| ConfigError::File {
        path: path.to_owned(),
        why,
    };
    let length = std::fs::metadata(path)
        .map_err(|e| fail(e.to_string()))?
        .len();
    if length > FILE_MAX {
        return Err(fail(format!(
            "{length} bytes is too long for a configuration"
        )));
    }
    let text = std::fs::read_to_string(path).map_err(|e| fail(e.to_string()))?;
    toml::from_str(&text).map_err(|e| fail(e.message().to_owned()))
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
    fn a_flag_wins_over_the_file_and_the_file_over_the_default() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.toml");
        std::fs::write(&path, "node = \"file\"\nlisten = \"127.0.0.1:1\"\n").unwrap();
        let given = Given {
            config: Some(path),
            ..enough()
        }
        .with_file()
        .unwrap();
        let config = Config::try_from(given).unwrap();
        assert_eq!(config.node.as_str(), "a");
        assert_eq!(config.listen.to_string(), "127.0.0.1:1");
        assert_eq!(config.max_workers, WORKERS_MAX);
    }

    #[test]
    fn a_setting_that_does_not_exist_is_an_error_that_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.toml");
        std::fs::write(&path, "nodde = \"x\"\n").unwrap();
        let error = Given {
            config: Some(path),
            ..enough()
        }
        .with_file()
        .unwrap_err();
        assert!(error.to_string().contains("nodde"), "{error}");
    }

    #[test]
    fn what_is_missing_is_named_with_its_flag_and_variable() {
        let error = Config::try_from(Given {
            postgres: None,
            ..enough()
        })
        .unwrap_err();
        assert!(error.to_string().contains("--postgres"), "{error}");
        assert!(
            error.to_string().contains("STEEP_AGENT_POSTGRES"),
            "{error}"
        );
    }

    #[test]
    fn settings_are_shown_without_connection_strings() {
        let shown = enough().shown(|_| "host=…".to_owned());
        assert!(!shown.contains("hunter2"), "{shown}");
        assert!(shown.contains("coordinator = \"h:7400\""), "{shown}");
    }
}
