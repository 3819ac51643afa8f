//! The schema as SQL, by `pg_dump`, under the job's snapshot.
//!
//! PostgreSQL's own tool knows every object of every version; we choose the binary, the section and
//! what is left out. The password goes by the environment, which only its owner and root can read.

mod program;

use std::path::Path;
use std::process::{ExitStatus, Stdio};

use steep_protocol::message::job::TableFilter;
use steep_protocol::message::peer::SchemaSection;
use steep_protocol::{Fault, FaultKind, Identifier, NodeId, RowCount, TableName};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, ChildStdout, Command};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use program::pg_dump_major;

use super::selection::{ListFile, Selection};
use crate::chunk::{PartReader, ReadStep};
use crate::pg::Conninfo;

/// How much of `pg_dump`'s complaints is kept: its end, where the error is.
const COMPLAINTS_MAX: usize = 4 * 1024;

/// How long `pg_dump` waits for a lock that the snapshot's holder does not have already.
const LOCK_WAIT: &str = "10s";

/// Tables outside the filter that are named to `pg_dump`, which looks for each: the rest of them is
/// locked for a moment, and left out afterwards.
const OUTSIDE_MAX: usize = 200;

/// What a schema dump covers.
#[derive(Debug)]
pub(super) struct Scope {
    pub(super) filter: TableFilter,
    /// Excluded by what they are attached to.
    pub(super) excluded_with_root: Vec<TableName>,
    /// Tables and sequences of extensions with rows of users.
    pub(super) extension_tables: Vec<TableName>,
    /// What goes and comes with the tables; none where the filter chooses everything.
    pub(super) selection: Option<Selection>,
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
    /// What the child reads.
    _files: Option<ListFile>,
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
    let program = program::find(source.server_version)
        .await
        .map_err(|reason| {
            failed(reason).hint(
                "install the client programs of the source's PostgreSQL version beside its agent, \
             or name their directory in STEEP_PG_BIN",
            )
        })?;
    let mut dump = Command::new(&program.path);
    dump.args(arguments(section, source.snapshot, source.scope))
        .arg("--dbname")
        .arg(source.conninfo.libpq_without_password())
        .env("PGAPPNAME", "steep-repl schema")
        .env_remove("PGPASSWORD");
    if let Some(password) = source.conninfo.password() {
        dump.env("PGPASSWORD", password.expose());
    }
    let (command, files) = match (&source.scope.selection, section) {
        (None, _) | (Some(_), SchemaSection::ExtensionRows) => (dump, None),
        (Some(selection), SchemaSection::PreData | SchemaSection::PostData) => {
            let cut = cut(source.node, &program.path, dump, selection, &cancel).await?;
            (cut.0, Some(cut.1))
        }
    };
    let mut child = spawn(source.node, command, Stdio::piped())?;
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
            _files: files,
        }),
        cancel,
    })
}

fn spawn(node: &NodeId, mut command: Command, stdout: Stdio) -> Result<Child, Fault> {
    let child = command
        .stdin(Stdio::null())
        .stdout(stdout)
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn();
    child.map_err(|error| {
        let program = Path::new(command.as_std().get_program());
        let message = format!("cannot start {}: {error}", program.display());
        Fault::new(FaultKind::Failed, message).on(node)
    })
}

/// Dumps into an archive, and gives what makes SQL of the selected entries of it.
async fn cut(
    node: &NodeId,
    pg_dump: &Path,
    mut dump: Command,
    selection: &Selection,
    cancel: &CancellationToken,
) -> Result<(Command, ListFile), Fault> {
    let failed = |message: String| Fault::new(FaultKind::Failed, message).on(node);
    let on_disk = |error: std::io::Error| {
        failed(format!("cannot write a temporary file: {error}"))
            .hint("the agent needs a directory for temporary files: see TMPDIR")
    };
    let files = ListFile::new().map_err(on_disk)?;
    let archive = files.archive();
    dump.arg("--format=custom").arg("--file").arg(&archive);
    output(node, dump, cancel).await?;
    let restore = pg_dump.with_file_name("pg_restore");
    let mut list = Command::new(&restore);
    list.args(["--list", "--verbose"]).arg(&archive);
    let list = output(node, list, cancel).await?;
    let list = selection.cut(&String::from_utf8_lossy(&list));
    let list = files.write(&list).map_err(on_disk)?;
    let mut command = Command::new(&restore);
    command
        .args(["--file=-", "--no-tablespaces", "--use-list"])
        .arg(list)
        .arg(archive);
    Ok((command, files))
}

/// What a program prints, once it has succeeded.
async fn output(
    node: &NodeId,
    command: Command,
    cancel: &CancellationToken,
) -> Result<Vec<u8>, Fault> {
    let failed = |message: String| Fault::new(FaultKind::Failed, message).on(node);
    let program = command.as_std().get_program().to_owned();
    let program = Path::new(&program).display().to_string();
    let child = spawn(node, command, Stdio::piped())?;
    let output = tokio::select! {
        output = child.wait_with_output() => output,
        () = cancel.cancelled() => {
            return Err(Fault::new(FaultKind::Cancelled, "the schema dump was cancelled").on(node));
        }
    };
    let output = output.map_err(|error| failed(format!("{program} cannot be read: {error}")))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    Err(complained(node, &program, output.status, &output.stderr))
}

/// What a program that failed said last.
fn complained(node: &NodeId, program: &str, status: ExitStatus, stderr: &[u8]) -> Fault {
    let from = stderr.len().saturating_sub(COMPLAINTS_MAX);
    let text = String::from_utf8_lossy(&stderr[from..]).into_owned();
    let complaints = text.trim().lines().collect::<Vec<_>>().join("; ");
    let message = format!("{program} failed ({status}): {complaints}");
    Fault::new(FaultKind::Failed, message)
        .hint("the agent's role must be able to read the whole schema that is to be copied")
        .on(node)
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
        let program = "pg_dump";
        Err(complained(
            &self.node,
            program,
            status,
            complaints.as_bytes(),
        ))
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
    let schemas = scope.selection.as_ref().map_or(&[][..], Selection::schemas);
    if !schemas.is_empty() {
        // With schemas chosen, pg_dump leaves extensions out unless they are asked for.
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

#[cfg(test)]
mod tests {
    use super::*;
    use steep_protocol::message::job::TableFilter;

    #[test]
    fn names_reach_pg_dump_as_they_are() {
        let scope = Scope {
            filter: TableFilter {
                include_schemas: Vec::new(),
                exclude_tables: vec![TableName::new("s.t", "u?").unwrap()],
            },
            excluded_with_root: vec![TableName::new("s", "leaf").unwrap()],
            extension_tables: vec![TableName::new("e", "Conf").unwrap()],
            selection: Some(Selection::for_test(
                vec![Identifier::parse("A*b\"c").unwrap()],
                vec![TableName::new("A*b\"c", "outside").unwrap()],
            )),
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
