//! A database of a running server, used through `psql`.

use std::path::PathBuf;
use std::process::Command;
use std::str::FromStr;

use anyhow::{Context as _, Result};

use super::install::Installation;
use crate::command;

/// Separates columns in psql's output: the ASCII separator, which no test prints.
const COLUMN: char = '\u{1f}';

/// Ends rows: the only character that no value can contain.
const ROW: char = '\0';

/// How to connect to a database, by the server's socket as its superuser. Cheap to clone; invalid
/// once the server is gone.
#[derive(Debug, Clone)]
pub struct Database {
    pub(super) installation: Installation,
    pub(super) socket_dir: PathBuf,
    pub(super) port: u16,
    pub(super) name: String,
}

impl Database {
    /// A database of a server that somebody else runs, such as a container, by its socket here.
    #[must_use]
    pub fn at(installation: &Installation, socket_dir: PathBuf, port: u16, name: &str) -> Self {
        Self {
            installation: installation.clone(),
            socket_dir,
            port,
            name: name.to_owned(),
        }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The directory of its server's socket.
    #[must_use]
    pub fn socket_dir(&self) -> &std::path::Path {
        &self.socket_dir
    }

    /// The port of its server.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The PostgreSQL that serves it.
    #[must_use]
    pub fn installation(&self) -> &Installation {
        &self.installation
    }

    /// A client program of the server's version, with this database in its environment.
    #[must_use]
    pub fn client(&self, program: &str) -> Command {
        self.client_of(&self.installation, program)
    }

    /// A client program of another version, with this database in its environment.
    #[must_use]
    pub fn client_of(&self, installation: &Installation, program: &str) -> Command {
        let mut command = Command::new(installation.program(program));
        command
            .env("PGHOST", &self.socket_dir)
            .env("PGPORT", self.port.to_string())
            .env("PGUSER", super::server::SUPERUSER)
            .env("PGDATABASE", &self.name)
            .env("PGAPPNAME", "steep-tests")
            .env_remove("PGSERVICE")
            .env_remove("PGOPTIONS");
        command
    }

    /// Runs SQL, including several statements and psql's own commands; returns the output, one row
    /// a line, columns separated by `|`.
    ///
    /// # Errors
    /// The first error, at which it stops.
    pub fn sql(&self, sql: &str) -> Result<String> {
        let printed = command::output_with_input(&mut self.psql(), sql)?;
        Ok(printed.trim_end_matches('\n').to_owned())
    }

    /// [`Database::sql`] with psql variables set.
    ///
    /// # Errors
    /// As [`Database::sql`].
    pub fn sql_with(&self, sql: &str, variables: &[(&str, String)]) -> Result<String> {
        let mut psql = self.psql();
        for (name, value) in variables {
            psql.arg("-v").arg(format!("{name}={value}"));
        }
        command::output_with_input(&mut psql, sql)
    }

    /// The rows of one query, as text.
    ///
    /// # Errors
    /// As [`Database::sql`].
    pub fn rows(&self, sql: &str) -> Result<Vec<Vec<String>>> {
        let mut psql = self.psql();
        psql.args(["-0", "-F", &COLUMN.to_string()]);
        let printed = command::output_with_input(&mut psql, sql)?;
        let row = |row: &str| row.split(COLUMN).map(str::to_owned).collect();
        Ok(printed.split_terminator(ROW).map(row).collect())
    }

    /// Whether it has no user tables.
    ///
    /// # Errors
    /// psql fails.
    pub fn is_empty(&self) -> Result<bool> {
        let tables = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'";
        Ok(self.value::<u32>(tables)? == 0)
    }

    /// The single value of a query.
    ///
    /// # Errors
    /// As [`Database::sql`], or the value has another type.
    pub fn value<T: FromStr>(&self, sql: &str) -> Result<T> {
        let text = self.sql(sql)?;
        text.parse()
            .ok()
            .with_context(|| format!("{sql} gave {text:?}"))
    }

    fn psql(&self) -> Command {
        let mut psql = self.client("psql");
        psql.args(["-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-f", "-"]);
        psql
    }
}
