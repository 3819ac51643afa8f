//! The schema as SQL, by `pg_dump` under the job's snapshot.
//!
//! PostgreSQL's own tool knows every object of every version; this chooses the program and what is left out.
//! The password goes through the environment, which only its owner and root can read.

pub(crate) mod selection;

mod program;
mod whole;

use std::io;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use steep_protocol::message::facts::FilterFacts;
use steep_protocol::message::job::TableFilter;
use steep_protocol::message::peer::SchemaSection;
use steep_protocol::{Fault, FaultKind, Identifier, JobId, NodeId, Retry, RowCount, TableName};
use tokio::fs::File;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncSeekExt};
use tokio::process::Command;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;
use tracing::info;

use self::program::Program;
pub(crate) use program::pg_dump_major;
pub(crate) use whole::Whole;

use self::selection::{ListFile, Selection};
use crate::chunk::{PartReader, ReadStep};
use crate::locks::LockRegistry;
use crate::pg::catalog::Partitions;
use crate::pg::{Conninfo, PgError, Session};

/// How much of `pg_dump`'s messages is kept: the end, where the error is.
const COMPLAINTS_MAX: usize = 4 * 1024;

/// How long `pg_dump` waits for a lock while it holds others; then it starts again.
const LOCK_WAIT: &str = "2s";

/// Before a dump that met a lock starts again.
const LOCKED_PAUSE: Duration = Duration::from_secs(1);

/// Names `pg_dump`'s session.
const PURPOSE: &str = "schema";

/// Tables outside the filter that are excluded by name, which costs `pg_dump` a lookup each: the others are
/// locked for a moment and cut out afterwards.
const OUTSIDE_MAX: usize = 200;

#[derive(Debug)]
pub(crate) struct Scope {
    pub(crate) filter: TableFilter,
    /// Excluded by what they are attached to.
    pub(crate) excluded_with_root: Vec<TableName>,
    /// Tables and sequences of extensions with user data.
    pub(crate) extension_tables: Vec<TableName>,
    /// `None` where the filter chooses everything.
    pub(crate) selection: Option<Selection>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct DumpSource<'a> {
    pub(crate) node: &'a NodeId,
    pub(crate) job: JobId,
    pub(crate) locks: &'a Arc<LockRegistry>,
    pub(crate) conninfo: &'a Conninfo,
    pub(crate) server_version: u32,
    pub(crate) snapshot: Option<&'a str>,
    pub(crate) scope: &'a Scope,
}

/// A complete dump as SQL text. `pg_dump` has ended and released its locks before the first byte is read,
/// since the reader creates tables meanwhile and takes long.
#[derive(Debug)]
pub(crate) struct SchemaDump {
    node: NodeId,
    /// `None` where there is nothing to dump.
    text: Option<File>,
    cancel: CancellationToken,
}

/// Runs `pg_dump`, again where a lock was in its way or it was in somebody's. Both sections of the schema come
/// from one run, whose result is `kept` for the second one.
pub(crate) async fn start(
    source: DumpSource<'_>,
    section: SchemaSection,
    kept: &Mutex<Option<Whole>>,
    cancel: CancellationToken,
) -> Result<SchemaDump, Fault> {
    let dumping = async {
        if section == SchemaSection::ExtensionRows {
            if source.scope.extension_tables.is_empty() {
                return Ok(None);
            }
            let arguments = extension_arguments(source.snapshot, source.scope);
            let (text, _) = insist(&source, &arguments, None).await?;
            return Ok(Some(text));
        }
        let failed = |message: String| Fault::new(FaultKind::Failed, message).on(source.node);
        let mut kept = kept.lock().await;
        let whole = match &*kept {
            Some(whole) => whole,
            None => {
                let arguments = arguments(source.snapshot, source.scope);
                let files = ListFile::new().map_err(|error| failed(unusable(error)))?;
                let archive = files.archive();
                let (_, program) = insist(&source, &arguments, Some(&archive)).await?;
                kept.insert(Whole::new(files, &program))
            }
        };
        let text = whole
            .section(section, source.scope.selection.as_ref())
            .await;
        if section == SchemaSection::PostData {
            *kept = None;
        }
        text.and_then(|text| text).map(Some).map_err(failed)
    };
    let text = tokio::select! {
        text = dumping => text?,
        () = cancel.cancelled() => return Err(cancelled(source.node)),
    };
    Ok(SchemaDump {
        node: source.node.clone(),
        text,
        cancel,
    })
}

/// What `pg_dump` prints, if it does not write an `archive`. Repeats it while a lock is in its way, or it is in
/// somebody's.
async fn insist(
    source: &DumpSource<'_>,
    arguments: &[String],
    archive: Option<&Path>,
) -> Result<(File, Program), Fault> {
    let failed = |message: String| Fault::new(FaultKind::Failed, message).on(source.node);
    let program = program::find(source.server_version)
        .await
        .map_err(|reason| {
            failed(reason).hint(
                "install the client programs of the source's PostgreSQL version beside its agent, \
             or name their directory in STEEP_PG_BIN",
            )
        })?;
    // The watch reports who is in the way, and in whose way the dump is.
    let _attended = source.locks.attend();
    source.locks.hindered(source.job, PURPOSE);
    loop {
        let dump = command(source, &program, arguments, archive);
        let complaints = match printed(dump).await.map_err(failed)? {
            Ok(text) => return Ok((text, program)),
            Err(complaints) => complaints,
        };
        let Some(who) = source.locks.hindered(source.job, PURPOSE) else {
            let hint = hint(source.node, &complaints);
            let retry = retry(&complaints);
            return Err(failed(complaints).hint(hint).retry(retry));
        };
        info!(job_id = %source.job, "the schema is dumped again: a lock of {who} was in the way");
        tokio::time::sleep(LOCKED_PAUSE).await;
    }
}

fn command(
    source: &DumpSource<'_>,
    program: &Program,
    arguments: &[String],
    archive: Option<&Path>,
) -> Command {
    let purpose = format!("{PURPOSE} {}", source.job);
    let mut dump = Command::new(&program.path);
    dump.args(arguments)
        .arg("--dbname")
        .arg(source.conninfo.libpq_for(&purpose))
        .env_remove("PGPASSWORD");
    if let Some(archive) = archive {
        dump.arg("--format=custom").arg("--file").arg(archive);
    }
    if let Some(password) = source.conninfo.password() {
        dump.env("PGPASSWORD", password.expose());
    }
    dump
}

fn unusable(error: io::Error) -> String {
    format!("no file for the schema can be made (see TMPDIR): {error}")
}

/// A program's output, or its error messages where it failed.
async fn printed(mut command: Command) -> Result<Result<File, String>, String> {
    let name = Path::new(command.as_std().get_program())
        .display()
        .to_string();
    let file = tempfile::tempfile().map_err(unusable)?;
    let started = command
        .stdin(Stdio::null())
        .stdout(file.try_clone().map_err(unusable)?)
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn();
    let mut child = started.map_err(|error| format!("cannot start {name}: {error}"))?;
    let complaints = match child.stderr.take() {
        Some(stderr) => last_of(stderr).await,
        None => String::new(),
    };
    let status = child.wait().await;
    let status = status.map_err(|error| format!("{name} cannot be waited for: {error}"))?;
    if !status.success() {
        let complaints = complaints.trim().lines().collect::<Vec<_>>().join("; ");
        let why = if complaints.is_empty() {
            "no message"
        } else {
            &complaints
        };
        return Ok(Err(format!("{name} failed ({status}): {why}")));
    }
    let mut text = File::from_std(file);
    text.rewind().await.map_err(unusable)?;
    Ok(Ok(text))
}

/// In the status of a program that was killed, by the kernel for want of memory or by hand.
const KILLED: &str = "signal: 9";

/// Whether a failed dump may succeed later: the server was away, or the snapshot with it, or there was no
/// memory. `pg_dump` gives no SQLSTATE.
fn retry(complaints: &str) -> Retry {
    const PASSING: [&str; 4] = ["connection", "the database system is", "snapshot", KILLED];
    match PASSING.iter().any(|sign| complaints.contains(sign)) {
        true => Retry::Backoff,
        false => Retry::Never,
    }
}

/// What to do about a failed dump. PostgreSQL's messages may be in any language, but not names of settings.
fn hint(node: &NodeId, complaints: &str) -> String {
    if complaints.contains("max_locks_per_transaction") {
        return format!(
            "the lock table is full: on {node}, ALTER SYSTEM SET max_locks_per_transaction to a higher \
             number (doctor says which), restart its PostgreSQL, then run init again"
        );
    }
    if complaints.contains(KILLED) {
        return format!(
            "pg_dump was killed, most often by the kernel for want of memory (see its log on {node}): the limit of \
             the agent's service must leave room for pg_dump, some 30 MB and more for thousands of tables"
        );
    }
    if retry(complaints) != Retry::Never {
        return format!(
            "see whether the PostgreSQL of {node} runs and accepts connections, and its log"
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

/// The last [`COMPLAINTS_MAX`] bytes.
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

/// Which materialised views are filled counts as data, though it comes after the data: only the sections
/// select it there. They also leave out rows, and with `--no-blobs` large objects, which are not replicated.
fn arguments(snapshot: Option<&str>, scope: &Scope) -> Vec<String> {
    let mut arguments: Vec<String> = [
        "--section=pre-data",
        "--section=post-data",
        "--no-blobs",
        "--encoding=UTF8",
        "--no-password",
        // Properties of the server, not the schema: tablespaces are directories, and publications and
        // subscriptions are not the replica's.
        "--no-tablespaces",
        "--no-publications",
        "--no-subscriptions",
        "--exclude-schema=steep_repl",
    ]
    .map(str::to_owned)
    .into();
    arguments.push(format!("--lock-wait-timeout={LOCK_WAIT}"));
    arguments.extend(snapshot.map(|snapshot| format!("--snapshot={snapshot}")));
    let schemas = scope.selection.as_ref().map_or(&[][..], Selection::schemas);
    if !schemas.is_empty() {
        // With chosen schemas, pg_dump leaves extensions out unless asked.
        arguments.push("--extension=*".to_owned());
    }
    for schema in schemas {
        arguments.push(format!("--schema={}", pattern(schema)));
    }
    let outside = scope.selection.as_ref().map_or(&[][..], Selection::outside);
    for table in scope
        .filter
        .exclude_tables
        .iter()
        .chain(&scope.excluded_with_root)
        .chain(outside.iter().take(OUTSIDE_MAX))
    {
        arguments.push(format!("--exclude-table={}", table_pattern(table)));
    }
    arguments
}

/// As INSERTs, since the rows are few and go where statements go. Rows that the extension itself brings are
/// left out.
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

/// A name as a `pg_dump` pattern: inside double quotes everything is literal (psql manual, "Patterns"),
/// which is how SQL quotes it.
fn pattern(name: &Identifier) -> String {
    name.quoted()
}

fn table_pattern(name: &TableName) -> String {
    name.quoted()
}

/// What a filter makes of the schema; `None` where it chooses everything.
pub(crate) async fn filter_facts(
    session: &Session,
    filter: &TableFilter,
) -> Result<FilterFacts, PgError> {
    let partitions = Partitions::load(session).await?;
    match Selection::load(session, filter, &partitions).await? {
        Some(selection) => selection.facts(session).await,
        None => Ok(FilterFacts::default()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use steep_protocol::message::job::TableFilter;

    #[test]
    fn a_server_that_is_stopped_is_named_and_not_the_rights_of_a_role() {
        let node = NodeId::parse("node_a").unwrap();
        let stopped =
            "pg_dump: error: connection to server at \"h\", port 1 failed: Connection refused";
        let told = hint(&node, stopped);
        assert!(told.contains("node_a runs"), "{told}");
        let refused = hint(&node, "pg_dump: error: permission denied for table t");
        assert!(refused.contains("role"), "{refused}");
    }

    #[tokio::test]
    async fn a_dump_that_is_killed_is_said_to_lack_memory_and_is_repeated() {
        let mut killed = Command::new("sh");
        killed.args(["-c", "kill -9 $$"]);
        let complaints = printed(killed).await.unwrap().unwrap_err();
        let told = hint(&NodeId::parse("node_a").unwrap(), &complaints);
        assert!(told.contains("memory"), "{complaints}: {told}");
        assert_eq!(retry(&complaints), Retry::Backoff);
    }

    #[test]
    fn names_reach_pg_dump_as_they_are() {
        let scope = Scope {
            filter: TableFilter {
                include_schemas: Vec::new(),
                exclude_tables: vec![TableName::new("s.t", "u?").unwrap()],
                ..TableFilter::default()
            },
            excluded_with_root: vec![TableName::new("s", "leaf").unwrap()],
            extension_tables: vec![TableName::new("e", "Conf").unwrap()],
            selection: Some(Selection::for_test(
                vec![Identifier::parse("A*b\"c").unwrap()],
                vec![TableName::new("A*b\"c", "outside").unwrap()],
            )),
        };
        let rows = extension_arguments(None, &scope);
        assert!(
            rows.contains(&"--table=\"e\".\"Conf\"".to_owned()),
            "{rows:?}"
        );
        let arguments = arguments(Some("0-1"), &scope);
        for wanted in [
            "--section=pre-data",
            "--snapshot=0-1",
            "--schema=\"A*b\"\"c\"",
            "--exclude-table=\"s.t\".\"u?\"",
            "--exclude-table=\"s\".\"leaf\"",
            "--exclude-table=\"A*b\"\"c\".\"outside\"",
            "--extension=*",
        ] {
            assert!(
                arguments.iter().any(|given| given == wanted),
                "{wanted} in {arguments:?}"
            );
        }
    }
}
