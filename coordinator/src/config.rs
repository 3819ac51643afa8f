//! What the coordinator is told when it starts: flag, then environment, then file, then default.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::{Deserialize, Serialize};

/// Where the coordinator listens unless told otherwise: everywhere, on the contract's port.
const LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::UNSPECIFIED), 7400);

/// The longest configuration file read; a full one has a few hundred bytes.
const FILE_MAX: u64 = 64 * 1024;

/// Holds the state of every node and job of the cluster; agents and operators connect to it.
#[derive(Debug, Parser)]
#[command(name = "steep-coordinator", version, about)]
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
        env = "STEEP_COORDINATOR_LOG_FORMAT",
        value_name = "FORMAT"
    )]
    pub log_format: Option<LogFormat>,
    /// TOML file with these settings
    #[arg(
        long,
        global = true,
        env = "STEEP_COORDINATOR_CONFIG",
        value_name = "FILE"
    )]
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

/// What a coordinator can do.
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

/// Settings as given, on the command line, in the environment or in a file.
#[derive(Debug, Clone, Default, PartialEq, Args, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Given {
    /// UDP address to listen on [default: 0.0.0.0:7400]
    #[arg(long, env = "STEEP_COORDINATOR_LISTEN", value_name = "ADDR:PORT")]
    pub listen: Option<SocketAddr>,
    /// Directory for the coordinator's store; made if it is not there
    #[arg(long, env = "STEEP_COORDINATOR_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// The cluster's CA certificate
    #[arg(long, env = "STEEP_COORDINATOR_CA", value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// The coordinator's certificate
    #[arg(long, env = "STEEP_COORDINATOR_CERT", value_name = "FILE")]
    pub cert: Option<PathBuf>,
    /// Its private key
    #[arg(long, env = "STEEP_COORDINATOR_KEY", value_name = "FILE")]
    pub key: Option<PathBuf>,
    /// Serve GET /healthz on that TCP address; a port alone means 127.0.0.1
    #[arg(long, env = "STEEP_COORDINATOR_METRICS", value_name = "[ADDR:]PORT")]
    pub metrics: Option<String>,
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
    /// The health endpoint, where one is wanted.
    pub metrics: Option<SocketAddr>,
    /// The log's form, where one was chosen.
    pub log_format: Option<LogFormat>,
}

/// Settings that do not make a configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Something needed is nowhere.
    #[error("{0} is missing: give it as a flag, as {1} in the environment, or in the file")]
    Missing(&'static str, &'static str),
    /// Something given is not of its form.
    #[error("{what} {given:?} is not usable: {rule}")]
    Invalid {
        /// The setting.
        what: &'static str,
        /// What was given.
        given: String,
        /// What would be usable.
        rule: &'static str,
    },
    /// The file cannot be read.
    #[error("cannot read the configuration {}: {why}", path.display())]
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
        let Some(path) = &self.config else {
            return Ok(self);
        };
        let file = read_file(path)?;
        Ok(Self {
            listen: self.listen.or(file.listen),
            data_dir: self.data_dir.or(file.data_dir),
            ca: self.ca.or(file.ca),
            cert: self.cert.or(file.cert),
            key: self.key.or(file.key),
            metrics: self.metrics.or(file.metrics),
            log_format: self.log_format.or(file.log_format),
            config: self.config,
            print_config: self.print_config,
        })
    }

    /// The settings in force, as a file would hold them. Nothing in them is secret: the key is a
    /// path.
    #[must_use]
    pub fn shown(&self) -> String {
        let shown = Self {
            listen: self.listen.or(Some(LISTEN)),
            ..self.clone()
        };
        toml::to_string(&shown).unwrap_or_else(|e| format!("# cannot be shown: {e}\n"))
    }
}

impl TryFrom<Given> for Config {
    type Error = ConfigError;

    fn try_from(given: Given) -> Result<Self, ConfigError> {
        let missing = ConfigError::Missing;
        Ok(Self {
            listen: given.listen.unwrap_or(LISTEN),
            data_dir: given
                .data_dir
                .ok_or(missing("--data-dir", "STEEP_COORDINATOR_DATA_DIR"))?,
            ca: given.ca.ok_or(missing("--ca", "STEEP_COORDINATOR_CA"))?,
            cert: given
                .cert
                .ok_or(missing("--cert", "STEEP_COORDINATOR_CERT"))?,
            key: given.key.ok_or(missing("--key", "STEEP_COORDINATOR_KEY"))?,
            metrics: given.metrics.as_deref().map(metrics_address).transpose()?,
            log_format: given.log_format,
        })
    }
}

/// `ADDR:PORT`, or a port on loopback: nothing listens unauthenticated beyond this machine unless
/// someone says so (G7).
fn metrics_address(text: &str) -> Result<SocketAddr, ConfigError> {
    let port = || {
        let port = text.strip_prefix(':').unwrap_or(text).parse().ok()?;
        Some(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
    };
    text.parse()
        .ok()
        .or_else(port)
        .ok_or_else(|| ConfigError::Invalid {
            what: "--metrics",
            given: text.chars().take(80).collect(),
            rule: "use ADDR:PORT, or a port alone for 127.0.0.1",
        })
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
            "{length} bytes are too many for a configuration"
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
            data_dir: Some("data".into()),
            ca: Some("ca.pem".into()),
            cert: Some("c.pem".into()),
            key: Some("c.key".into()),
            ..Given::default()
        }
    }

    #[test]
    fn a_flag_wins_over_the_file_and_the_file_over_the_default() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("c.toml");
        std::fs::write(
            &path,
            "ca = \"file.pem\"\nlisten = \"127.0.0.1:1\"\nmetrics = \"9\"\n",
        )
        .unwrap();
        let given = Given {
            config: Some(path),
            ..enough()
        };
        let config = Config::try_from(given.with_file().unwrap()).unwrap();
        assert_eq!(config.ca, Path::new("ca.pem"));
        assert_eq!(config.listen, "127.0.0.1:1".parse().unwrap());
        assert_eq!(config.metrics, Some("127.0.0.1:9".parse().unwrap()));
        let config = Config::try_from(enough()).unwrap();
        assert_eq!((config.listen, config.metrics), (LISTEN, None));
    }

    #[test]
    fn what_is_printed_reads_back_as_a_file() {
        let given = Given {
            log_format: Some(LogFormat::Json),
            ..enough()
        };
        let back: Given = toml::from_str(&given.shown()).unwrap();
        assert_eq!(back.listen, Some(LISTEN));
        assert_eq!((back.ca, back.log_format), (given.ca, given.log_format));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let error = Config::try_from(Given {
            key: None,
            ..enough()
        })
        .unwrap_err();
        assert!(
            error.to_string().contains("STEEP_COORDINATOR_KEY"),
            "{error}"
        );
        let error = Config::try_from(Given {
            metrics: Some("here".to_owned()),
            ..enough()
        })
        .unwrap_err();
        assert!(error.to_string().contains("--metrics"), "{error}");
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("c.toml");
        std::fs::write(&path, "lissten = \"127.0.0.1:1\"\n").unwrap();
        let given = Given {
            config: Some(path),
            ..enough()
        };
        let error = given.with_file().unwrap_err();
        assert!(error.to_string().contains("lissten"), "{error}");
    }
}
