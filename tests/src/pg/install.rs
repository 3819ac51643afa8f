//! Finds a PostgreSQL: only `STEEP_PG_BIN` if it is set, otherwise `PATH`, the usual directories
//! and earlier downloads. It prefers 18, and downloads it if there is none.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context as _, Result, bail};

use super::account::Account;
use super::package::{self, Package};
use crate::command;

/// Names the `bin` directory of the PostgreSQL to use.
pub const BIN_VARIABLE: &str = "STEEP_PG_BIN";

/// The oldest major version the product supports.
const OLDEST: u32 = 14;

/// The preferred major version.
const PREFERRED: u32 = 18;

/// Programs that the harness runs. A directory without some of them is a client-only or incomplete
/// installation.
const PROGRAMS: [&str; 6] = [
    "postgres",
    "initdb",
    "psql",
    "pg_dump",
    "pg_restore",
    "pgbench",
];

/// An installed PostgreSQL.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Installation {
    major: u32,
    minor: u32,
    bin: PathBuf,
}

impl Installation {
    /// The default installation for tests, see the module.
    ///
    /// # Errors
    /// `STEEP_PG_BIN` is not usable, or nothing was found and nothing could be downloaded.
    pub fn preferred() -> Result<Self> {
        static FOUND: OnceLock<Result<Installation, String>> = OnceLock::new();
        let found = FOUND.get_or_init(|| find_preferred().map_err(|error| format!("{error:#}")));
        found.clone().map_err(anyhow::Error::msg)
    }

    /// The newest minor version of that major version, downloaded if possible.
    ///
    /// # Errors
    /// There is none, and why none could be downloaded.
    pub fn of_major(major: u32) -> Result<Self> {
        if let Ok(preferred) = Self::preferred()
            && preferred.major == major
        {
            return Ok(preferred);
        }
        if let Some(found) = all()?.into_iter().rev().find(|found| found.major == major) {
            return Ok(found);
        }
        match Package::of_major(major) {
            Some(package) => package::install(&package),
            None => bail!("no PostgreSQL {major} on this machine, and no package of it is known"),
        }
    }

    /// Uses the `bin` directory.
    ///
    /// # Errors
    /// Programs are missing, the version is too old, or the servers' account cannot read it.
    pub fn within(bin: &Path) -> Result<Self> {
        for program in PROGRAMS {
            if !bin.join(program).is_file() {
                bail!("{} has no {program}", bin.display());
            }
        }
        if !Account::for_servers()?.can_read(&bin.join("postgres")) {
            bail!(
                "{} cannot be read by the account that servers run under",
                bin.display()
            );
        }
        let said = command::output(Command::new(bin.join("postgres")).arg("--version"))?;
        let (major, minor) = parse_version(&said)
            .with_context(|| format!("{} says its version is {said:?}", bin.display()))?;
        if major < OLDEST {
            bail!(
                "{} is PostgreSQL {major}; {OLDEST} is the oldest supported",
                bin.display()
            );
        }
        Ok(Self {
            major,
            minor,
            bin: bin.to_path_buf(),
        })
    }

    /// Its major version.
    #[must_use]
    pub fn major(&self) -> u32 {
        self.major
    }

    /// Its version, such as `18.6`.
    #[must_use]
    pub fn version(&self) -> String {
        format!("{}.{}", self.major, self.minor)
    }

    /// Its directory of programs.
    #[must_use]
    pub fn bin(&self) -> &Path {
        &self.bin
    }

    /// One of its programs.
    #[must_use]
    pub fn program(&self, name: &str) -> PathBuf {
        self.bin.join(name)
    }
}

/// Every usable installation on the machine, by version, oldest first.
///
/// # Errors
/// The target directory cannot be found.
pub fn all() -> Result<Vec<Installation>> {
    let mut bins = BTreeSet::new();
    if let Some(path) = std::env::var_os("PATH") {
        bins.extend(std::env::split_paths(&path));
    }
    bins.extend(children("/usr/lib/postgresql").map(|dir| dir.join("bin")));
    let redhat = children("/usr").filter(|dir| {
        dir.file_name()
            .and_then(OsStr::to_str)
            .is_some_and(|name| name.starts_with("pgsql-"))
    });
    bins.extend(redhat.map(|dir| dir.join("bin")));
    for home in package::homes()? {
        for dir in children(&home) {
            bins.extend(children(&dir).map(|inner| inner.join("pginstall/bin")));
            bins.insert(dir.join("bin"));
        }
    }
    let mut found: Vec<Installation> = bins
        .iter()
        .filter_map(|bin| Installation::within(bin).ok())
        .collect();
    found.sort();
    Ok(found)
}

fn find_preferred() -> Result<Installation> {
    if let Some(bin) = std::env::var_os(BIN_VARIABLE) {
        return Installation::within(Path::new(&bin))
            .with_context(|| format!("{BIN_VARIABLE} cannot be used"));
    }
    let found = all()?;
    if let Some(best) = found.iter().rev().find(|one| one.major == PREFERRED) {
        return Ok(best.clone());
    }
    let why = match Package::of_major(PREFERRED) {
        Some(package) => match package::install(&package) {
            Ok(installed) => return Ok(installed),
            Err(error) => error,
        },
        None => anyhow::anyhow!("no package of PostgreSQL {PREFERRED} is known"),
    };
    match found.last() {
        Some(other) => {
            eprintln!(
                "PostgreSQL {PREFERRED} could not be installed ({why:#}); using {} in {}",
                other.version(),
                other.bin.display()
            );
            Ok(other.clone())
        }
        None => Err(why.context(format!(
            "no PostgreSQL {OLDEST} or newer was found: install one, or set {BIN_VARIABLE} to its \
             bin directory"
        ))),
    }
}

fn children(dir: impl AsRef<Path>) -> impl Iterator<Item = PathBuf> {
    std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
}

/// `postgres (PostgreSQL) 18.6 (Debian …)` → 18, 6. A development version has no minor one.
fn parse_version(said: &str) -> Option<(u32, u32)> {
    let version = said.split_once(") ")?.1.split_whitespace().next()?;
    let mut numbers = version.split(|c: char| !c.is_ascii_digit());
    let major = numbers.next()?.parse().ok()?;
    let minor = numbers
        .next()
        .and_then(|text| text.parse().ok())
        .unwrap_or(0);
    Some((major, minor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_postgresql_says_them() {
        assert_eq!(parse_version("postgres (PostgreSQL) 18.6\n"), Some((18, 6)));
        assert_eq!(
            parse_version("postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)"),
            Some((15, 14))
        );
        assert_eq!(
            parse_version("postgres (PostgreSQL) 19devel"),
            Some((19, 0))
        );
        assert_eq!(parse_version("something else"), None);
    }

    #[test]
    fn a_directory_without_a_server_is_not_an_installation() {
        let error = Installation::within(Path::new("/usr/include")).unwrap_err();
        assert!(error.to_string().contains("has no postgres"), "{error}");
    }
}
