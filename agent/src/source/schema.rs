//! The schema as SQL, by `pg_dump`, under the job's snapshot.
//!
//! PostgreSQL's own tool knows every object of every version; we choose the binary, the section and
//! what is left out. The password goes by the environment, which only its owner and root can read.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use steep_protocol::message::job::TableFilter;
use steep_protocol::message::peer::SchemaSection;
use steep_protocol::{Fault, FaultKind, Identifier, JobId, NodeId, RowCount, TableName};
use tokio::fs::File;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncSeekExt};
use tokio::process::Command;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::chunk::{PartReader, ReadStep};
use crate::locks::LockBook;
use crate::pg::Conninfo;

/// How much of `pg_dump`'s complaints is kept: its end, where the error is.
const COMPLAINTS_MAX: usize = 4 * 1024;

/// How long `pg_dump` waits for a lock while it holds those of other tables; then it begins again.
const LOCK_WAIT: &str = "2s";

/// Between two dumps that somebody's lock was in the way of.
const LOCKED_PAUSE: Duration = Duration::from_secs(1);

/// Names `pg_dump`'s session.
const PURPOSE: &str = "schema";

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
    pub(super) job: JobId,
    pub(super) locks: &'a Arc<LockBook>,
    pub(super) conninfo: &'a Conninfo,
    pub(super) server_version: u32,
    pub(super) snapshot: Option<&'a str>,
    pub(super) scope: &'a Scope,
}

/// A dump: SQL text, UTF-8, complete. `pg_dump` is over and its locks are gone before the first byte is
/// read: whoever reads makes tables meanwhile, and takes long.
#[derive(Debug)]
pub struct SchemaDump {
    node: NodeId,
    /// None where there is nothing to dump.
    text: Option<File>,
    cancel: CancellationToken,
}

/// Runs `pg_dump`, again where somebody's lock was in its way or it was in somebody's.
pub(super) async fn start(
    source: DumpSource<'_>,
    section: SchemaSection,
    cancel: CancellationToken,
) -> Result<SchemaDump, Fault> {
    let failed = |message: String| Fault::new(FaultKind::Failed, message).on(source.node);
    if section == SchemaSection::ExtensionRows && source.scope.extension_tables.is_empty() {
        return Ok(SchemaDump {
            node: source.node.clone(),
            text: None,
            cancel,
        });
    }
    let program = find(source.server_version).await.map_err(|reason| {
        failed(reason).hint(
            "install the client programs of the source's PostgreSQL version beside its agent, \
             or name their directory in STEEP_PG_BIN",
        )
    })?;
    // The watch names whoever is in the way, and whom the dump is in the way of.
    let _attended = source.locks.attend();
    source.locks.hindered(source.job, PURPOSE);
    loop {
        let run = run(&source, &program, section);
        let ended = tokio::select! {
            ended = run => ended.map_err(failed)?,
            () = cancel.cancelled() => return Err(cancelled(source.node)),
        };
        let complaints = match ended {
            Ok(text) => {
                return Ok(SchemaDump {
                    node: source.node.clone(),
                    text: Some(text),
                    cancel,
                });
            }
            Err(complaints) => complaints,
        };
        let Some(who) = source.locks.hindered(source.job, PURPOSE) else {
            let hint = hint(source.node, &complaints);
            return Err(failed(complaints).hint(hint));
        };
        info!(job_id = %source.job, "the schema is dumped again: a lock of {who} was in the way");
        tokio::select! {
            () = tokio::time::sleep(LOCKED_PAUSE) => {}
            () = cancel.cancelled() => return Err(cancelled(source.node)),
        }
    }
}

/// One dump into a file without a name, or why there is none. Dropped, it kills `pg_dump`.
async fn run(
    source: &DumpSource<'_>,
    program: &Program,
    section: SchemaSection,
) -> Result<Result<File, String>, String> {
    let unusable = |error: io::Error| format!("no file for the schema can be made: {error}");
    let file = tempfile::tempfile().map_err(unusable)?;
    let mut command = Command::new(&program.path);
    command
        .args(arguments(section, source.snapshot, source.scope))
        .arg("--dbname")
        .arg(
            source
                .conninfo
                .libpq_for(&format!("{PURPOSE} {}", source.job)),
        )
        .env_remove("PGPASSWORD")
        .stdin(Stdio::null())
        .stdout(file.try_clone().map_err(unusable)?)
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    if let Some(password) = source.conninfo.password() {
        command.env("PGPASSWORD", password.expose());
    }
    let started = command.spawn();
    let mut child =
        started.map_err(|error| format!("cannot start {}: {error}", program.path.display()))?;
    let complaints = match child.stderr.take() {
        Some(stderr) => last_of(stderr).await,
        None => String::new(),
    };
    let status = child.wait().await;
    let status = status.map_err(|error| format!("pg_dump cannot be waited for: {error}"))?;
    if !status.success() {
        let complaints = complaints.trim().lines().collect::<Vec<_>>().join("; ");
        return Ok(Err(format!("pg_dump failed ({status}): {complaints}")));
    }
    let mut text = File::from_std(file);
    text.rewind().await.map_err(unusable)?;
    Ok(Ok(text))
}

/// What to do about a dump that failed. PostgreSQL's own words may be of any language; names of settings
/// are not.
fn hint(node: &NodeId, complaints: &str) -> String {
    if complaints.contains("max_locks_per_transaction") {
        return format!(
            "the lock table is full: on {node}, ALTER SYSTEM SET max_locks_per_transaction to a higher \
             number (doctor says which), restart its PostgreSQL, then run init again"
        );
    }
    "the agent's role must be able to read the whole schema that is to be copied; where a table was \
     dropped or altered meanwhile, run init again"
        .to_owned()
}

fn cancelled(node: &NodeId) -> Fault {
    Fault::new(FaultKind::Cancelled, "the schema dump was cancelled").on(node)
}

impl PartReader for SchemaDump {
    async fn read(&mut self, into: &mut Vec<u8>, limit: usize) -> Result<ReadStep, Fault> {
        let Some(file) = &mut self.text else {
            return Ok(ReadStep::End { rows: RowCount(0) });
        };
        while into.len() < limit {
            let room = (limit - into.len()) as u64;
            let mut text = (&mut *file).take(room);
            let read = tokio::select! {
                read = text.read_buf(into) => read,
                () = self.cancel.cancelled() => return Err(cancelled(&self.node)),
            };
            let read = read.map_err(|error| {
                let text = format!("the schema that was dumped cannot be read: {error}");
                Fault::new(FaultKind::Failed, text).on(&self.node)
            })?;
            if read == 0 {
                return Ok(ReadStep::End { rows: RowCount(0) });
            }
        }
        Ok(ReadStep::More)
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
    fn a_full_lock_table_is_told_from_a_right_that_is_missing_in_any_language() {
        let node = NodeId::parse("node_a").unwrap();
        let full = "FEHLER: gemeinsamer Speicher; Sie müssen max_locks_per_transaction erhöhen";
        assert!(
            hint(&node, full).contains("on node_a, ALTER SYSTEM SET max_locks_per_transaction")
        );
        assert!(hint(&node, "permission denied").contains("read the whole schema"));
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
