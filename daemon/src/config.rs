//! Settings: command line, then environment, then file, then default.
//!
//! A daemon declares its settings as one struct of options ([`Settings`]). Each field is a flag, an
//! environment variable (`PREFIX_FIELD`) and a key of the TOML file with the same name. This module
//! does not know what a setting means.

use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use toml::Table;

use crate::traces::{self, Endpoint};

/// The longest accepted configuration file; a complete one has a few hundred bytes.
const FILE_MAX: u64 = 64 * 1024;

/// Keys of the file that all daemons share.
const SHARED: [&str; 2] = ["log-format", traces::SETTING];

/// A daemon's settings as given: every field is an `Option`, `None` if unset.
///
/// Use `#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]`, so that an unknown key
/// is an error that names it.
pub trait Settings: Args + Serialize + DeserializeOwned {
    /// The binary's name.
    const NAME: &'static str;
    /// Its description, in one sentence.
    const ABOUT: &'static str;
    /// The prefix of its environment variables, without the underscore.
    const PREFIX: &'static str;
    /// Settings that may contain a password, as named in the file.
    const SECRETS: &'static [&'static str];

    /// Fills in every default that can be shown.
    #[must_use]
    fn with_defaults(self) -> Self;

    /// Redacts a secret setting.
    #[must_use]
    fn redact(secret: &str) -> String;

    /// The error for a required setting that is missing. `name` as in the file.
    #[must_use]
    fn missing(name: &'static str) -> ConfigError {
        ConfigError::Missing {
            name,
            variable: variable(Self::PREFIX, name),
        }
    }
}

/// Invalid settings.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A required setting is missing.
    #[error(
        "--{name} is missing: give it as a flag, as {variable} in the environment, or in the file"
    )]
    Missing {
        /// The setting.
        name: &'static str,
        /// Its environment variable.
        variable: String,
    },
    /// A value is invalid.
    #[error("--{name} is not usable: {why}")]
    Invalid {
        /// The setting.
        name: &'static str,
        /// Why it is invalid.
        why: String,
    },
    /// The configuration file cannot be read.
    #[error("cannot read the configuration {}: {why}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        why: String,
    },
}

impl ConfigError {
    /// The error for an invalid value.
    #[must_use]
    pub fn invalid(name: &'static str, why: impl Into<String>) -> Self {
        let why = why.into();
        Self::Invalid { name, why }
    }
}

/// The format of the log on stderr.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// Text for people.
    Text,
}

/// The command line of every daemon.
#[derive(Debug, Parser)]
struct Line<S: Args> {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command<S>,
}

/// Options of every command, before or after it.
#[derive(Debug, Clone, Args)]
struct Common {
    /// Form of the log on stderr [default: text on a terminal, json otherwise]
    #[arg(long, global = true, value_name = "FORMAT")]
    log_format: Option<LogFormat>,
    /// Send traces to that OpenTelemetry collector, over OTLP/HTTP: http://HOST:4318
    #[arg(long, global = true, value_name = "URL")]
    otlp_endpoint: Option<String>,
    /// TOML file with these settings
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print the settings in force, secrets redacted, and exit
    #[arg(long, global = true)]
    print_config: bool,
}

/// Settings that every daemon has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub(crate) struct Shared {
    /// The format of the log.
    pub log_format: Option<LogFormat>,
    /// The collector of traces.
    pub otlp_endpoint: Option<String>,
}

impl Shared {
    /// The parsed collector URL.
    pub(crate) fn endpoint(&self) -> Result<Option<Endpoint>, ConfigError> {
        let text = self.otlp_endpoint.as_deref();
        let read = text.map(Endpoint::parse).transpose();
        read.map_err(|why| ConfigError::invalid(traces::SETTING, why))
    }
}

/// The commands of a daemon.
#[derive(Debug, Subcommand)]
enum Command<S: Args> {
    /// Run until told to stop
    Run(Box<S>),
}

/// What to do, from the command line.
#[derive(Debug)]
pub(crate) enum Invocation<S> {
    /// Run with these settings.
    Run(Box<S>, Shared),
    /// Print this text.
    Print(String),
}

/// Reads the command line, the environment, and the file that either names.
pub(crate) fn read<S: Settings>(
    line: impl IntoIterator<Item = OsString>,
) -> Result<Invocation<S>, ReadError> {
    let matches = command::<S>().try_get_matches_from(line)?;
    let Line { common, command } = Line::<S>::from_arg_matches(&matches)?;
    let Command::Run(given) = command;
    let mut table = match &common.config {
        Some(path) => read_file::<S>(path)?,
        None => Table::new(),
    };
    let from_file = shared_of(&mut table)?;
    let shared = Shared {
        log_format: common.log_format.or(from_file.log_format),
        otlp_endpoint: common.otlp_endpoint.or(from_file.otlp_endpoint),
    };
    shared.endpoint()?;
    // Command line and environment override the file, key by key.
    table.extend(to_table(&*given));
    let settings = from_table::<S>(table).map_err(|why| ConfigError::invalid("config", why))?;
    let settings = settings.with_defaults();
    if common.print_config {
        return Ok(Invocation::Print(shown(&settings, &shared)));
    }
    Ok(Invocation::Run(Box::new(settings), shared))
}

/// Removes the shared settings from a file's table.
fn shared_of(table: &mut Table) -> Result<Shared, ConfigError> {
    let mut shared = Shared::default();
    for name in SHARED {
        let Some(value) = table.remove(name) else {
            continue;
        };
        let own = Table::from_iter([(name.to_owned(), value)]);
        let own: Shared = from_table(own).map_err(|why| ConfigError::invalid(name, why))?;
        shared.log_format = shared.log_format.or(own.log_format);
        shared.otlp_endpoint = shared.otlp_endpoint.or(own.otlp_endpoint);
    }
    Ok(shared)
}

/// The command line or the settings are invalid.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    /// Invalid arguments, or a request for help.
    #[error(transparent)]
    Line(#[from] clap::Error),
    /// Invalid settings.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

/// The command line, with an environment variable for each argument.
fn command<S: Settings>() -> clap::Command {
    let named = |arg: clap::Arg| {
        let id = arg.get_id().to_string();
        // These are actions, not settings.
        if id == "print_config" || id == "help" || id == "version" {
            return arg;
        }
        let secret = S::SECRETS.contains(&id.replace('_', "-").as_str());
        arg.env(variable(S::PREFIX, &id)).hide_env_values(secret)
    };
    Line::<S>::command()
        .name(S::NAME)
        .about(S::ABOUT)
        .version(env!("CARGO_PKG_VERSION"))
        .mut_args(named)
        .mut_subcommand("run", |run| run.mut_args(named))
}

fn variable(prefix: &str, name: &str) -> String {
    format!("{prefix}_{}", name.replace('-', "_").to_uppercase())
}

fn read_file<S: Settings>(path: &Path) -> Result<Table, ConfigError> {
    let fail = |why: String| ConfigError::File {
        path: path.to_owned(),
        why,
    };
    let file = std::fs::metadata(path).map_err(|e| fail(e.to_string()))?;
    let length = file.len();
    if length > FILE_MAX {
        return Err(fail(format!(
            "{length} bytes are too many for a configuration file"
        )));
    }
    let text = std::fs::read_to_string(path).map_err(|e| fail(e.to_string()))?;
    // Only the message: the full error shows the line, which may contain a password.
    let table = toml::from_str(&text).map_err(|e| fail(e.message().to_owned()))?;
    let table = crate::keys::hyphened(table).map_err(fail)?;
    let mut own = table.clone();
    own.retain(|name, _| !SHARED.contains(&name));
    from_table::<S>(own).map_err(fail)?;
    Ok(table)
}

fn from_table<S: DeserializeOwned>(table: Table) -> Result<S, String> {
    table.try_into().map_err(|e| e.message().to_owned())
}

fn to_table<S: Serialize>(settings: &S) -> Table {
    Table::try_from(settings).expect("settings are options of plain values")
}

/// The settings as a configuration file; those without a value as comments.
fn shown<S: Settings>(settings: &S, shared: &Shared) -> String {
    let mut table = to_table(settings);
    for name in S::SECRETS {
        if let Some(toml::Value::String(secret)) = table.get_mut(*name) {
            *secret = S::redact(secret);
        }
    }
    table.extend(to_table(shared));
    let mut text = toml::to_string(&table).expect("a table of plain values has a text form");
    let line = Line::<S>::command();
    let run = line.find_subcommand("run").into_iter();
    for arg in run.chain([&line]).flat_map(clap::Command::get_arguments) {
        let name = arg.get_id().as_str().replace('_', "-");
        if !table.contains_key(&name) && name != "config" && name != "print-config" {
            let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
            text.push_str(&format!("# {name} is not set: {help}\n"));
        }
    }
    text
}

/// Parses the address for metrics and health: `ADDR:PORT`, or a port on loopback, since nothing
/// unauthenticated listens beyond this machine by default (G7).
///
/// # Errors
/// [`ConfigError::Invalid`] if the text is neither.
pub fn metrics_address(text: &str) -> Result<SocketAddr, ConfigError> {
    let port = || {
        let port = text.strip_prefix(':').unwrap_or(text).parse().ok()?;
        Some(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
    };
    text.parse().ok().or_else(port).ok_or_else(|| {
        let given: String = text.chars().take(80).collect();
        ConfigError::invalid(
            "metrics",
            format!("{given:?} is neither ADDR:PORT nor a port, which would mean 127.0.0.1"),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Clone, Default, Args, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
    struct Sample {
        /// Where to
        #[arg(long)]
        data_dir: Option<PathBuf>,
        /// How many
        #[arg(long)]
        count: Option<u8>,
        /// Whom to ask
        #[arg(long)]
        conninfo: Option<String>,
    }

    impl Settings for Sample {
        const NAME: &'static str = "sample";
        const ABOUT: &'static str = "Only a test";
        const PREFIX: &'static str = "STEEP_DAEMON_TEST";
        const SECRETS: &'static [&'static str] = &["conninfo"];

        fn with_defaults(self) -> Self {
            Self {
                count: self.count.or(Some(7)),
                ..self
            }
        }

        fn redact(_: &str) -> String {
            "host=…".to_owned()
        }
    }

    fn line<'a>(words: &[&'a str], file: Option<&'a Path>) -> Vec<OsString> {
        let mut line: Vec<OsString> = ["sample", "run"].map(Into::into).to_vec();
        line.extend(words.iter().map(OsString::from));
        if let Some(file) = file {
            line.push("--config".into());
            line.push(file.into());
        }
        line
    }

    fn run(words: &[&str], file: Option<&Path>) -> Result<(Sample, Option<LogFormat>), ReadError> {
        let (settings, shared) = run_shared(words, file)?;
        Ok((settings, shared.log_format))
    }

    fn run_shared(words: &[&str], file: Option<&Path>) -> Result<(Sample, Shared), ReadError> {
        match read::<Sample>(line(words, file))? {
            Invocation::Run(settings, shared) => Ok((*settings, shared)),
            Invocation::Print(text) => panic!("printed {text}"),
        }
    }

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file
    }

    #[test]
    fn a_flag_wins_over_the_file_and_the_file_over_the_default() {
        let file = file("data-dir = \"file\"\nconninfo = \"file\"\nlog-format = \"json\"\n");
        let (settings, format) = run(&["--conninfo", "flag"], Some(file.path())).unwrap();
        assert_eq!(settings.data_dir.as_deref(), Some(Path::new("file")));
        assert_eq!(settings.conninfo.as_deref(), Some("flag"));
        assert_eq!(settings.count, Some(7));
        assert_eq!(format, Some(LogFormat::Json));
        let (_, format) = run(&["--log-format", "text"], Some(file.path())).unwrap();
        assert_eq!(format, Some(LogFormat::Text));
    }

    #[test]
    fn traces_have_their_endpoint_from_flag_or_file_and_a_bad_one_is_named() {
        let file = file("otlp-endpoint = \"http://file:4318\"\ncount = 3\n");
        let endpoint = |words: &[&str], file| run_shared(words, file).unwrap().1.otlp_endpoint;
        assert_eq!(endpoint(&[], None), None);
        assert_eq!(
            endpoint(&[], Some(file.path())).as_deref(),
            Some("http://file:4318")
        );
        let words = ["--otlp-endpoint", "http://flag:4318"];
        let flag = endpoint(&words, Some(file.path()));
        assert_eq!(flag.as_deref(), Some("http://flag:4318"));
        std::fs::write(file.path(), "otlp-endpoint = 7\n").unwrap();
        for (words, file) in [
            (&["--otlp-endpoint", "https://h"][..], None),
            (&[][..], Some(file.path())),
        ] {
            let error = run(words, file).unwrap_err().to_string();
            assert!(error.contains("--otlp-endpoint"), "{error}");
        }
    }

    #[test]
    fn every_setting_has_its_variable_and_help_shows_no_secret() {
        let command = command::<Sample>();
        let run = command.find_subcommand("run").unwrap();
        let variable = |name: &str| {
            let arg = run.get_arguments().find(|a| a.get_id() == name).unwrap();
            (
                arg.get_env().unwrap().to_owned(),
                arg.is_hide_env_values_set(),
            )
        };
        assert_eq!(
            variable("data_dir"),
            ("STEEP_DAEMON_TEST_DATA_DIR".into(), false)
        );
        assert_eq!(
            variable("conninfo"),
            ("STEEP_DAEMON_TEST_CONNINFO".into(), true)
        );
        let common = |name: &str| {
            command
                .get_arguments()
                .find(|a| a.get_id() == name)
                .unwrap()
        };
        assert_eq!(
            common("config").get_env().unwrap(),
            "STEEP_DAEMON_TEST_CONFIG"
        );
        assert_eq!(
            common("otlp_endpoint").get_env().unwrap(),
            "STEEP_DAEMON_TEST_OTLP_ENDPOINT"
        );
        assert_eq!(common("print_config").get_env(), None);
        command.clone().debug_assert();
    }

    #[test]
    fn a_setting_that_does_not_exist_is_an_error_that_names_it() {
        let file = file("coun = 3\n");
        let error = run(&[], Some(file.path())).unwrap_err().to_string();
        assert!(error.contains("coun"), "{error}");
        let error = Sample::missing("data-dir").to_string();
        assert!(error.contains("--data-dir"), "{error}");
        assert!(error.contains("STEEP_DAEMON_TEST_DATA_DIR"), "{error}");
    }

    #[test]
    fn a_broken_file_is_not_quoted() {
        let file = file("conninfo = \"password=hunter2\n");
        let error = run(&[], Some(file.path())).unwrap_err().to_string();
        assert!(!error.contains("hunter2"), "{error}");
        std::fs::write(file.path(), vec![b'#'; 100_000]).unwrap();
        let error = run(&[], Some(file.path())).unwrap_err().to_string();
        assert!(error.contains("too many"), "{error}");
    }

    #[test]
    fn what_is_printed_reads_back_and_holds_no_secret() {
        let words = [
            "--conninfo",
            "password=hunter2",
            "--log-format",
            "json",
            "--otlp-endpoint",
            "http://h:4318",
            "--print-config",
        ];
        let Ok(Invocation::Print(text)) = read::<Sample>(line(&words, None)) else {
            panic!("nothing was printed");
        };
        assert!(!text.contains("hunter2"), "{text}");
        assert!(text.contains("otlp-endpoint = \"http://h:4318\""), "{text}");
        assert!(text.contains("# data-dir is not set: Where to"), "{text}");
        let file = file(&text);
        let (settings, format) = run(&[], Some(file.path())).unwrap();
        assert_eq!((settings.count, format), (Some(7), Some(LogFormat::Json)));
    }

    #[test]
    fn a_port_alone_is_on_this_machine() {
        let address = |text: &str| metrics_address(text).unwrap().to_string();
        assert_eq!(address("9400"), "127.0.0.1:9400");
        assert_eq!(address(":9400"), "127.0.0.1:9400");
        assert_eq!(address("[::]:9400"), "[::]:9400");
        let error = metrics_address("here").unwrap_err().to_string();
        assert!(error.contains("--metrics"), "{error}");
    }
}
