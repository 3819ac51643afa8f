//! The schema as SQL, by `pg_dump`, under the job's snapshot.
//!
//! PostgreSQL's own tool knows every object of every version; we choose the binary, the section and
//! what is left out. The password goes by the environment, which only its owner and root can read.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use steep_protocol::message::job::TableFilter;
use steep_protocol::message::peer::SchemaSection;
use steep_protocol::{Fault, FaultKind, Identifier, NodeId, RowCount, TableName};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, ChildStdout, Command};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::chunk::{PartReader, ReadStep};
use crate::pg::Conninfo;

/// How much of `pg_dump`'s complaints is kept: its end, where the error is.
const COMPLAINTS_MAX: usize = 4 * 1024;

/// How long `pg_dump` waits for a lock that the snapshot's holder does not have already.
const LOCK_WAIT: &str = "10s";

/// Where installations put their programs; a `*` stands for one directory's name.
const PLACES: [&str; 5] = [
    "/usr/lib/postgresql/*/bin",
    "/usr/pgsql-*/bin",
    "/usr/local/pgsql/bin",
    "/opt/homebrew/opt/postgresql@*/bin",
    "/Applications/Postgres.app/Contents/Versions/*/bin",
];

/// What a schema dump covers.
#[derive(Debug)]
pub(super) struct Scope {
    pub(super) filter: TableFilter,
    /// Excluded by what they are attached to.
    pub(super) excluded_with_root: Vec<TableName>,
    /// Tables and sequences of extensions with rows of users.
    pub(super) extension_tables: Vec<TableName>,
}

/// What is dumped.
#[derive(Debug, Clone, Copy)]
pub(super) struct DumpSource<'a> {
    pub(super) node: &'a NodeId,
    pub(super) conninfo: &'a Conninfo,
    pub(super) server_version: u32,
    pub(super) snapshot: Option<&'a str>,
    pub(super) scope: &'a Scope,
}

/// A dump under way: SQL text, UTF-8. Dropped before its end, it kills `pg_dump`.
#[derive(Debug)]
pub struct SchemaDump {
    node: NodeId,
    /// None where there is nothing to dump.
    running: Option<Running>,
    cancel: CancellationToken,
}

/// `pg_dump` at work.
#[derive(Debug)]
struct Running {
    child: Child,
    stdout: ChildStdout,
    complaints: JoinSet<String>,
}

/// Starts `pg_dump`.
pub(super) async fn start(
    source: DumpSource<'_>,
    section: SchemaSection,
    cancel: CancellationToken,
) -> Result<SchemaDump, Fault> {
    let failed = |message: String| Fault::new(FaultKind::Failed, message).on(source.node);
    if section == SchemaSection::ExtensionRows && source.scope.extension_tables.is_empty() {
        return Ok(SchemaDump {
            node: source.node.clone(),
            running: None,
            cancel,
        });
    }
    let program = find(source.server_version).await.map_err(|reason| {
        failed(reason).hint(
            "install the client programs of the source's PostgreSQL version beside its agent, \
             or name their directory in STEEP_PG_BIN",
        )
    })?;
    let mut command = Command::new(&program.path);
    command
        .args(arguments(section, source.snapshot, source.scope))
        .arg("--dbname")
        .arg(source.conninfo.libpq_without_password())
        .env("PGAPPNAME", "steep-repl schema")
        .env_remove("PGPASSWORD")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    if let Some(password) = source.conninfo.password() {
        command.env("PGPASSWORD", password.expose());
    }
    let mut child = command
        .spawn()
        .map_err(|error| failed(format!("cannot start {}: {error}", program.path.display())))?;
    let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
        return Err(failed("pg_dump was started without its pipes".to_owned()));
    };
    let mut complaints = JoinSet::new();
    complaints.spawn(last_of(stderr));
    Ok(SchemaDump {
        node: source.node.clone(),
        running: Some(Running {
            child,
            stdout,
            complaints,
        }),
        cancel,
    })
}

impl PartReader for SchemaDump {
    async fn read(&mut self, into: &mut Vec<u8>, limit: usize) -> Result<ReadStep, Fault> {
        let Some(running) = &mut self.running else {
            return Ok(ReadStep::End { rows: RowCount(0) });
        };
        let reading = async {
            while into.len() < limit {
                let room = (limit - into.len()) as u64;
                let read = (&mut running.stdout).take(room).read_buf(into).await;
                if read.map_err(|error| format!("pg_dump cannot be read: {error}"))? == 0 {
                    return Ok(Ended::Yes);
                }
            }
            Ok(Ended::No)
        };
        let ended: Result<Ended, String> = tokio::select! {
            ended = reading => ended,
            () = self.cancel.cancelled() => return Err(self.cancelled()),
        };
        match ended {
            Ok(Ended::No) => Ok(ReadStep::More),
            Ok(Ended::Yes) => self.finish().await,
            Err(message) => Err(Fault::new(FaultKind::Failed, message).on(&self.node)),
        }
    }
}

enum Ended {
    Yes,
    No,
}

impl SchemaDump {
    /// Output is over: a dump that failed has the same end, so its exit status decides.
    async fn finish(&mut self) -> Result<ReadStep, Fault> {
        let failed = |message: String| Fault::new(FaultKind::Failed, message).on(&self.node);
        let Some(running) = &mut self.running else {
            return Ok(ReadStep::End { rows: RowCount(0) });
        };
        let status = tokio::select! {
            status = running.child.wait() => status,
            () = self.cancel.cancelled() => return Err(self.cancelled()),
        };
        let status =
            status.map_err(|error| failed(format!("pg_dump cannot be waited for: {error}")))?;
        if status.success() {
            return Ok(ReadStep::End { rows: RowCount(0) });
        }
        let complaints = match running.complaints.join_next().await {
            Some(Ok(text)) => text,
            Some(Err(_)) | None => String::new(),
        };
        let complaints = complaints.trim().lines().collect::<Vec<_>>().join("; ");
        Err(failed(format!("pg_dump failed ({status}): {complaints}"))
            .hint("the agent's role must be able to read the whole schema that is to be copied"))
    }

    fn cancelled(&self) -> Fault {
        Fault::new(FaultKind::Cancelled, "the schema dump was cancelled").on(&self.node)
    }
}

/// The last [`COMPLAINTS_MAX`] bytes, however much there is.
async fn last_of(mut from: impl AsyncRead + Unpin) -> String {
    let mut kept = Vec::new();
    let mut block = [0; 1024];
    while let Ok(read @ 1..) = from.read(&mut block).await {
        kept.extend_from_slice(&block[..read]);
        let excess = kept.len().saturating_sub(COMPLAINTS_MAX);
        kept.drain(..excess);
    }
    String::from_utf8_lossy(&kept).into_owned()
}

fn arguments(section: SchemaSection, snapshot: Option<&str>, scope: &Scope) -> Vec<String> {
    if section == SchemaSection::ExtensionRows {
        return extension_arguments(snapshot, scope);
    }
    // Which materialised views are filled counts as data, though it is said after the data: only the
    // section names what is wanted there, and large objects, which are not replicated, are left out.
    let [section, what] = match section {
        SchemaSection::PreData => ["--section=pre-data", "--schema-only"],
        SchemaSection::PostData | SchemaSection::ExtensionRows => {
            ["--section=post-data", "--no-blobs"]
        }
    };
    let mut arguments: Vec<String> = [
        section,
        what,
        "--encoding=UTF8",
        "--no-password",
        // Of this server, not of its schema: tablespaces are directories here, and what replicates
        // from here or into it is not the replica's to do.
        "--no-tablespaces",
        "--no-publications",
        "--no-subscriptions",
        "--exclude-schema=steep_repl",
    ]
    .map(str::to_owned)
    .into();
    arguments.push(format!("--lock-wait-timeout={LOCK_WAIT}"));
    arguments.extend(snapshot.map(|snapshot| format!("--snapshot={snapshot}")));
    if !scope.filter.include_schemas.is_empty() {
        // With schemas chosen, pg_dump leaves extensions out unless they are asked for.
        arguments.push("--extension=*".to_owned());
    }
    for schema in &scope.filter.include_schemas {
        arguments.push(format!("--schema={}", pattern(schema)));
    }
    for table in scope
        .filter
        .exclude_tables
        .iter()
        .chain(&scope.excluded_with_root)
    {
        arguments.push(format!("--exclude-table={}", table_pattern(table)));
    }
    arguments
}

/// Rows as statements, since they are few and pass where statements do. What the extension has brought by
/// itself is not there twice.
fn extension_arguments(snapshot: Option<&str>, scope: &Scope) -> Vec<String> {
    let mut arguments: Vec<String> = [
        "--data-only",
        "--inserts",
        "--rows-per-insert=100",
        "--on-conflict-do-nothing",
        "--encoding=UTF8",
        "--no-password",
    ]
    .map(str::to_owned)
    .into();
    arguments.push(format!("--lock-wait-timeout={LOCK_WAIT}"));
    arguments.extend(snapshot.map(|snapshot| format!("--snapshot={snapshot}")));
    let tables = scope.extension_tables.iter();
    arguments.extend(tables.map(|table| format!("--table={}", table_pattern(table))));
    arguments
}

/// A name as a `pg_dump` pattern: in double quotes everything stands for itself (manual, section
/// "Patterns" of psql), which is how SQL quotes it.
fn pattern(name: &Identifier) -> String {
    name.quoted()
}

fn table_pattern(name: &TableName) -> String {
    name.quoted()
}

/// A `pg_dump` that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Program {
    path: PathBuf,
    major: u32,
}

/// The major version of the newest `pg_dump` there is, or why there is none: servers up to that
/// version can be dumped.
///
/// # Errors
/// A sentence for a person.
pub async fn pg_dump_major() -> Result<u32, String> {
    let newest = survey()
        .await
        .into_iter()
        .map(|program| program.major)
        .max();
    newest.ok_or_else(|| "there is no pg_dump beside this agent".to_owned())
}

/// Of those not older than the server, the one named by `STEEP_PG_BIN`, else the nearest: what a newer
/// one writes, an older target may not understand.
async fn find(server_version: u32) -> Result<Program, String> {
    let server = server_version / 10_000;
    if let Some(program) = named().await.filter(|program| program.major >= server) {
        return Ok(program);
    }
    choose(&survey().await, server)
}

/// The one in `STEEP_PG_BIN`.
async fn named() -> Option<Program> {
    let dir = std::env::var_os("STEEP_PG_BIN").filter(|dir| !dir.is_empty())?;
    inspect(&Path::new(&dir).join("pg_dump")).await
}

/// All of them.
async fn survey() -> Vec<Program> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).chain(PLACES.iter().flat_map(|place| expand(place)));
    let mut seen: Vec<Program> = named().await.into_iter().collect();
    for dir in dirs {
        seen.extend(inspect(&dir.join("pg_dump")).await);
    }
    seen
}

fn choose(seen: &[Program], server: u32) -> Result<Program, String> {
    let fitting = seen.iter().filter(|program| program.major >= server);
    fitting
        .min_by_key(|program| program.major)
        .cloned()
        .ok_or_else(|| {
            let found: Vec<_> = seen
                .iter()
                .map(|program| program.major.to_string())
                .collect();
            let found = if found.is_empty() {
                "there is none".to_owned()
            } else {
                format!("found: {}", found.join(", "))
            };
            format!("a pg_dump of version {server} or newer is needed beside this agent; {found}")
        })
}

/// The directories that `place` stands for.
fn expand(place: &str) -> Vec<PathBuf> {
    let Some((before, after)) = place.split_once('*') else {
        return vec![PathBuf::from(place)];
    };
    let (parent, prefix) = before.rsplit_once('/').unwrap_or(("", before));
    let Ok(entries) = std::fs::read_dir(parent) else {
        return Vec::new();
    };
    entries
        .filter_map(Result::ok)
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
        .map(|entry| entry.path().join(after.trim_start_matches('/')))
        .collect()
}

/// Asks a program for its version; `None` where it is none or does not run.
async fn inspect(path: &Path) -> Option<Program> {
    if !path.is_file() {
        return None;
    }
    let output = Command::new(path)
        .arg("--version")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await;
    let output = output.ok().filter(|output| output.status.success())?;
    let major = major_of(&String::from_utf8_lossy(&output.stdout))?;
    Some(Program {
        path: path.to_owned(),
        major,
    })
}

/// `pg_dump (PostgreSQL) 18.6 (Debian …)`.
fn major_of(text: &str) -> Option<u32> {
    let version = text.split_whitespace().nth(2)?;
    let digits: String = version.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use steep_protocol::message::job::TableFilter;

    #[test]
    fn the_nearest_version_that_is_not_older_is_chosen() {
        let program = |major: u32| Program {
            path: PathBuf::from(major.to_string()),
            major,
        };
        let seen = [program(18), program(14), program(16), program(17)];
        assert_eq!(choose(&seen, 16), Ok(program(16)));
        assert_eq!(choose(&seen, 15), Ok(program(16)));
        let refused = choose(&seen, 19).unwrap_err();
        assert!(
            refused.contains("19") && refused.contains("14"),
            "{refused}"
        );
        assert!(choose(&[], 15).is_err());
    }

    #[test]
    fn versions_are_read_from_what_pg_dump_says() {
        assert_eq!(
            major_of("pg_dump (PostgreSQL) 18.6 (Debian 18.6-1)\n"),
            Some(18)
        );
        assert_eq!(major_of("pg_dump (PostgreSQL) 19devel"), Some(19));
        assert_eq!(major_of("something else"), None);
    }

    #[test]
    fn names_reach_pg_dump_as_they_are() {
        let scope = Scope {
            filter: TableFilter {
                include_schemas: vec![Identifier::parse("A*b\"c").unwrap()],
                exclude_tables: vec![TableName::new("s.t", "u?").unwrap()],
            },
            excluded_with_root: vec![TableName::new("s", "leaf").unwrap()],
            extension_tables: vec![TableName::new("e", "Conf").unwrap()],
        };
        let rows = super::arguments(SchemaSection::ExtensionRows, None, &scope);
        assert!(
            rows.contains(&"--table=\"e\".\"Conf\"".to_owned()),
            "{rows:?}"
        );
        let arguments = arguments(SchemaSection::PreData, Some("0-1"), &scope);
        for wanted in [
            "--section=pre-data",
            "--snapshot=0-1",
            "--schema=\"A*b\"\"c\"",
            "--exclude-table=\"s.t\".\"u?\"",
            "--exclude-table=\"s\".\"leaf\"",
            "--extension=*",
        ] {
            assert!(
                arguments.iter().any(|given| given == wanted),
                "{wanted} in {arguments:?}"
            );
        }
    }
}
