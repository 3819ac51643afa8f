//! The address of the coordinator, the certificates, and defaults of flags. A flag wins over the
//! environment, that over the configuration file, and that over the default.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use clap::ValueEnum as _;
use serde::{Deserialize, Serialize, Serializer};
use steep_protocol::address::{COORDINATOR_PORT, check_address};
use steep_protocol::limits::{WORKERS_DEFAULT, WORKERS_MAX};
use steep_protocol::message::job::YieldToDdl;

use crate::args::{Global, LogFormat, SchemaChoice};
use crate::failure::Failure;

/// The size limit of the configuration file, in bytes.
const FILE_MAX: u64 = 64 * 1024;

/// Variables of the environment.
pub(crate) mod variable {
    /// `HOST:PORT`.
    pub(crate) const COORDINATOR: &str = "STEEP_REPL_COORDINATOR";
    /// A directory with `ca.pem`, `operator.pem` and `operator.key`.
    pub(crate) const CERTS: &str = "STEEP_REPL_CERTS";
    /// The configuration file.
    pub(crate) const CONFIG: &str = "STEEP_REPL_CONFIG";
    /// The default of `--parallel`.
    pub(crate) const PARALLEL: &str = "STEEP_REPL_PARALLEL";
    /// The default of `--schema-sync`.
    pub(crate) const SCHEMA_SYNC: &str = "STEEP_REPL_SCHEMA_SYNC";
    /// The default of `--yield-to-ddl`.
    pub(crate) const YIELD_TO_DDL: &str = "STEEP_REPL_YIELD_TO_DDL";
    /// The default of `snapshot verify --snapshot-key`.
    pub(crate) const SNAPSHOT_KEY: &str = "STEEP_REPL_SNAPSHOT_KEY";
}

/// The keys of the configuration file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileSettings {
    coordinator: Option<String>,
    certs: Option<PathBuf>,
    ca: Option<PathBuf>,
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
    parallel: Option<u8>,
    #[serde(alias = "schema-sync")]
    schema_sync: Option<SchemaChoice>,
    #[serde(alias = "yield-to-ddl")]
    yield_to_ddl: Option<String>,
    #[serde(alias = "snapshot-key")]
    snapshot_key: Option<PathBuf>,
    #[serde(alias = "log-format")]
    log_format: Option<LogFormat>,
}

/// The settings in force. They hold no secret.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Settings {
    /// Where the coordinator listens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) coordinator: Option<String>,
    /// The CA's certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ca: Option<PathBuf>,
    /// The operator's certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cert: Option<PathBuf>,
    /// Its key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) key: Option<PathBuf>,
    /// The default of `--parallel`.
    pub(crate) parallel: u8,
    /// The default of `--schema-sync`.
    pub(crate) schema_sync: SchemaChoice,
    /// The default of `--yield-to-ddl`.
    #[serde(serialize_with = "as_text")]
    pub(crate) yield_to_ddl: YieldToDdl,
    /// The default of `snapshot verify --snapshot-key`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) snapshot_key: Option<PathBuf>,
    /// Form of the log; `None`: text on a terminal, JSON otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) log_format: Option<LogFormat>,
}

fn as_text<S: Serializer>(value: &YieldToDdl, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

/// What a connection to the coordinator needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Access {
    /// `HOST:PORT`.
    pub(crate) coordinator: String,
    /// The CA's certificate.
    pub(crate) ca: PathBuf,
    /// The operator's certificate.
    pub(crate) cert: PathBuf,
    /// Its key.
    pub(crate) key: PathBuf,
}

/// A variable of the environment; empty counts as unset.
pub(crate) fn from_process(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

impl Settings {
    /// Merges flags, environment and file.
    ///
    /// # Errors
    /// [`Failure`] if the file or a variable is invalid.
    pub(crate) fn load(
        flags: &Global,
        environment: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, Failure> {
        let file = read_file(flags, &environment)?;
        let parallel = match environment(variable::PARALLEL) {
            Some(text) => Some(parse_parallel(&text, variable::PARALLEL)?),
            None => file.parallel,
        };
        if let Some(parallel) = parallel {
            parse_parallel(&parallel.to_string(), "parallel in the configuration file")?;
        }
        let certs = environment(variable::CERTS).map(PathBuf::from);
        let pick = |flag: &Option<PathBuf>, name: &str, in_file: &Option<PathBuf>| {
            flag.clone()
                .or_else(|| certs.as_ref().map(|dir| dir.join(name)))
                .or_else(|| in_file.clone())
                .or_else(|| file.certs.as_ref().map(|dir| dir.join(name)))
        };
        Ok(Self {
            coordinator: flags
                .coordinator
                .clone()
                .or_else(|| environment(variable::COORDINATOR))
                .or(file.coordinator),
            ca: pick(&flags.ca, "ca.pem", &file.ca),
            cert: pick(&flags.cert, "operator.pem", &file.cert),
            key: pick(&flags.key, "operator.key", &file.key),
            parallel: parallel.unwrap_or(WORKERS_DEFAULT),
            schema_sync: match environment(variable::SCHEMA_SYNC) {
                Some(text) => parse_schema_sync(&text)?,
                None => file.schema_sync.unwrap_or_default(),
            },
            yield_to_ddl: match environment(variable::YIELD_TO_DDL) {
                Some(text) => parse_yield(&text, variable::YIELD_TO_DDL)?,
                None => match file.yield_to_ddl {
                    Some(text) => parse_yield(&text, "yield_to_ddl in the configuration file")?,
                    None => YieldToDdl::default(),
                },
            },
            snapshot_key: environment(variable::SNAPSHOT_KEY)
                .map(PathBuf::from)
                .or(file.snapshot_key),
            log_format: flags.log_format.or(file.log_format),
        })
    }

    /// What a connection to the coordinator needs.
    ///
    /// # Errors
    /// [`Failure`] that names what is missing.
    pub(crate) fn access(&self) -> Result<Access, Failure> {
        let missing = |what: &str, hint: &str| {
            Failure::bad_request(format!("no {what} is given")).hint(hint.to_owned())
        };
        let certs = "give --ca, --cert and --key, or set STEEP_REPL_CERTS to a directory with \
                     ca.pem, operator.pem and operator.key";
        let file =
            |path: &Option<PathBuf>, what: &str| path.clone().ok_or_else(|| missing(what, certs));
        let coordinator = self.coordinator.clone().ok_or_else(|| {
            missing(
                "coordinator",
                "give --coordinator HOST:7400 or set STEEP_REPL_COORDINATOR",
            )
        })?;
        check_address(&coordinator, COORDINATOR_PORT).map_err(|why| {
            Failure::bad_request(format!("the coordinator's address {coordinator:?}: {why}"))
        })?;
        Ok(Access {
            coordinator,
            ca: file(&self.ca, "CA certificate")?,
            cert: file(&self.cert, "operator certificate")?,
            key: file(&self.key, "private key")?,
        })
    }

    /// The settings as a configuration file; those without a value as comments.
    pub(crate) fn to_toml(&self) -> String {
        let mut text = toml::to_string(self).expect("strings, paths of text and a number are TOML");
        let unset = [
            (self.coordinator.is_none(), "coordinator is not set"),
            (self.ca.is_none(), "ca is not set"),
            (self.cert.is_none(), "cert is not set"),
            (self.key.is_none(), "key is not set"),
            (
                self.log_format.is_none(),
                "log_format is not set: text on a terminal, json otherwise",
            ),
        ];
        for (_, comment) in unset.iter().filter(|(is_unset, _)| *is_unset) {
            text.push_str(&format!("# {comment}\n"));
        }
        text
    }
}

fn parse_parallel(text: &str, whose: &str) -> Result<u8, Failure> {
    text.parse()
        .ok()
        .filter(|n| (1..=WORKERS_MAX).contains(n))
        .ok_or_else(|| {
            Failure::bad_request(format!(
                "{whose} is {text:?}: it must be a number from 1 to {WORKERS_MAX}"
            ))
        })
}

fn parse_yield(text: &str, whose: &str) -> Result<YieldToDdl, Failure> {
    YieldToDdl::parse(text)
        .map_err(|why| Failure::bad_request(format!("{whose} is {text:?}: {why}")))
}

fn parse_schema_sync(text: &str) -> Result<SchemaChoice, Failure> {
    SchemaChoice::from_str(text, false).map_err(|_| {
        let name = variable::SCHEMA_SYNC;
        Failure::bad_request(format!(
            "{name} is {text:?}: it must be strict, auto or manual"
        ))
    })
}

/// Reads the named file, which must exist, or the default file, if it exists.
fn read_file(
    flags: &Global,
    environment: &impl Fn(&str) -> Option<String>,
) -> Result<FileSettings, Failure> {
    let named = flags
        .config
        .clone()
        .or_else(|| environment(variable::CONFIG).map(PathBuf::from));
    let path = match &named {
        Some(path) => path.clone(),
        None => match environment("HOME") {
            Some(home) => Path::new(&home).join(".config/steep-repl/config.toml"),
            None => return Ok(FileSettings::default()),
        },
    };
    let text = match read_bounded(&path) {
        Ok(text) => text,
        Err(error) if named.is_none() && error.kind() == io::ErrorKind::NotFound => {
            return Ok(FileSettings::default());
        }
        Err(error) => {
            return Err(Failure::bad_request(format!(
                "the configuration file {} cannot be read: {error}",
                path.display()
            )));
        }
    };
    toml::from_str(&text).map_err(|error| {
        Failure::bad_request(format!(
            "the configuration file {} is not valid: {}",
            path.display(),
            error.to_string().trim_end()
        ))
        .hint("it may set coordinator, certs, ca, cert, key, parallel, schema_sync, yield_to_ddl and log_format")
    })
}

fn read_bounded(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?
        .take(FILE_MAX + 1)
        .read_to_string(&mut text)?;
    if text.len() as u64 > FILE_MAX {
        return Err(io::Error::other(format!(
            "it is longer than {FILE_MAX} bytes"
        )));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn load(flags: &Global, variables: &[(&str, &str)]) -> Result<Settings, Failure> {
        let variables: HashMap<_, _> = variables.iter().copied().collect();
        Settings::load(flags, |name| variables.get(name).map(|v| (*v).to_owned()))
    }

    fn config(text: &str) -> (tempfile::TempDir, String) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        std::fs::write(&path, text).unwrap();
        let path = path.to_str().unwrap().to_owned();
        (dir, path)
    }

    #[test]
    fn a_flag_wins_over_the_environment_and_that_over_the_file() {
        let (_dir, path) =
            config("coordinator = 'file:1'\nparallel = 3\ncerts = '/file'\nkey = '/k'");
        let settings = load(&Global::default(), &[(variable::CONFIG, &path)]).unwrap();
        assert_eq!(settings.coordinator.as_deref(), Some("file:1"));
        assert_eq!(settings.parallel, 3);
        assert_eq!(settings.ca, Some("/file/ca.pem".into()));
        assert_eq!(settings.key, Some("/k".into()));

        let all = [
            (variable::CONFIG, path.as_str()),
            (variable::COORDINATOR, "env:2"),
            (variable::PARALLEL, "5"),
            (variable::CERTS, "/env"),
        ];
        let settings = load(&Global::default(), &all).unwrap();
        assert_eq!(settings.coordinator.as_deref(), Some("env:2"));
        assert_eq!(settings.parallel, 5);
        assert_eq!(settings.cert, Some("/env/operator.pem".into()));
        assert_eq!(settings.key, Some("/env/operator.key".into()));

        let flags = Global {
            coordinator: Some("flag:3".to_owned()),
            cert: Some("/flag.pem".into()),
            ..Global::default()
        };
        let settings = load(&flags, &all).unwrap();
        assert_eq!(settings.coordinator.as_deref(), Some("flag:3"));
        assert_eq!(settings.cert, Some("/flag.pem".into()));
        assert_eq!(settings.ca, Some("/env/ca.pem".into()));
    }

    #[test]
    fn the_mode_for_schemas_comes_from_the_environment_or_the_file() {
        let (_dir, path) = config("schema_sync = 'auto'");
        let of_file = load(&Global::default(), &[(variable::CONFIG, &path)]).unwrap();
        assert_eq!(of_file.schema_sync, SchemaChoice::Auto);
        let both = [
            (variable::CONFIG, path.as_str()),
            (variable::SCHEMA_SYNC, "manual"),
        ];
        let settings = load(&Global::default(), &both).unwrap();
        assert_eq!(settings.schema_sync, SchemaChoice::Manual);
        assert!(load(&Global::default(), &[(variable::SCHEMA_SYNC, "loose")]).is_err());
    }

    #[test]
    fn the_default_file_may_be_missing_and_a_named_one_may_not() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().to_str().unwrap();
        let settings = load(&Global::default(), &[("HOME", home)]).unwrap();
        assert_eq!(
            settings,
            Settings {
                parallel: 4,
                ..Settings::default()
            }
        );
        let gone = format!("{home}/gone.toml");
        let failure = load(&Global::default(), &[(variable::CONFIG, &gone)]).unwrap_err();
        assert!(failure.to_string().contains("gone.toml"), "{failure}");

        let default = dir.path().join(".config/steep-repl");
        std::fs::create_dir_all(&default).unwrap();
        std::fs::write(default.join("config.toml"), "parallel = 9").unwrap();
        assert_eq!(
            load(&Global::default(), &[("HOME", home)])
                .unwrap()
                .parallel,
            9
        );
    }

    #[test]
    fn what_is_not_a_setting_is_a_bad_request() {
        for text in [
            "coordinatr = 'x'",
            "parallel = 17",
            "parallel = 'x'",
            "[[",
            "parallel = 0",
        ] {
            let (_dir, path) = config(text);
            let failure = load(&Global::default(), &[(variable::CONFIG, &path)]).unwrap_err();
            assert_eq!(failure.exit_code(), 2, "{text}");
        }
        for parallel in ["0", "17", "four"] {
            let failure = load(&Global::default(), &[(variable::PARALLEL, parallel)]).unwrap_err();
            assert!(
                failure.to_string().contains(variable::PARALLEL),
                "{failure}"
            );
        }
        let (_dir, path) = config(&"#".repeat(70_000));
        assert!(load(&Global::default(), &[(variable::CONFIG, &path)]).is_err());
    }

    #[test]
    fn what_is_missing_is_named_with_the_way_to_give_it() {
        let mut settings = Settings::default();
        let failure = settings.access().unwrap_err();
        assert!(failure.0.hint.contains("--coordinator"), "{failure}");
        settings.coordinator = Some("h:7400".to_owned());
        let failure = settings.access().unwrap_err();
        assert!(failure.0.hint.contains("STEEP_REPL_CERTS"), "{failure}");
    }

    #[test]
    fn printed_settings_are_a_configuration_file() {
        let settings = Settings {
            coordinator: Some("h:7400".to_owned()),
            ca: Some("/c/ca.pem".into()),
            parallel: 4,
            ..Settings::default()
        };
        let text = settings.to_toml();
        assert!(text.contains("schema_sync = \"strict\""), "{text}");
        assert!(text.contains("yield_to_ddl = \"10s\""), "{text}");
        assert!(text.contains("# cert is not set"), "{text}");
        let (_dir, path) = config(&text);
        assert_eq!(
            load(&Global::default(), &[(variable::CONFIG, &path)]).unwrap(),
            settings
        );
    }
}
