//! Runs the CLI like a user.

use std::fmt;
use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::Cluster;
use crate::process::tail;
use crate::wait;

/// The result of a CLI command.
#[derive(Debug, Clone)]
pub struct Output {
    /// The arguments, for error messages.
    pub arguments: String,
    /// The exit code; -1 if a signal ended it.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// Its running time.
    pub took: Duration,
}

impl Output {
    /// Checks the exit code.
    ///
    /// # Errors
    /// Another exit code, with all output of the command.
    pub fn expect(self, code: i32) -> Result<Self> {
        if self.code == code {
            Ok(self)
        } else {
            bail!("expected exit code {code} from {self}")
        }
    }

    /// Every JSON object on standard output, including those inside one outer list.
    #[must_use]
    pub fn objects(&self) -> Vec<Value> {
        // Accepts one document over several lines as well as one a line.
        let documents = serde_json::Deserializer::from_str(&self.stdout).into_iter::<Value>();
        documents
            .map_while(Result::ok)
            .flat_map(|value| match value {
                Value::Array(values) => values,
                // `nodes --json` is one object with a list in it.
                Value::Object(ref object) => match object.get("nodes") {
                    Some(Value::Array(nodes)) => nodes.clone(),
                    _ => vec![value],
                },
                other => vec![other],
            })
            .collect()
    }

    /// The last JSON object on standard output.
    ///
    /// # Errors
    /// There is none.
    pub fn last_object(&self) -> Result<Value> {
        self.objects()
            .pop()
            .with_context(|| format!("no JSON from {self}"))
    }

    /// Standard output and standard error.
    #[must_use]
    pub fn text(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "steep-repl {} (exit code {}, {:.1} s)\n--- stdout\n{}\n--- stderr\n{}",
            self.arguments,
            self.code,
            self.took.as_secs_f64(),
            shown(&self.stdout),
            shown(&self.stderr)
        )
    }
}

/// The last lines, truncated: a stream of progress is long, and its end says what happened.
fn shown(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let last = lines[lines.len().saturating_sub(12)..].iter();
    let cut: Vec<String> = last.map(|line| line.chars().take(600).collect()).collect();
    cut.join("\n")
}

/// A running CLI command, killed when dropped.
#[derive(Debug)]
pub struct Running {
    arguments: String,
    child: Child,
    begun: Instant,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Running {
    /// Sends Ctrl-C.
    pub fn interrupt(&self) {
        self.signal(Signal::INT);
    }

    /// Sends a signal; SIGSTOP and SIGCONT simulate a hang.
    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, signal);
        }
    }

    /// Kills it; a job that it started goes on.
    ///
    /// # Errors
    /// It cannot be waited for.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Whether it still runs.
    ///
    /// # Errors
    /// Its status cannot be read.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Its standard output so far.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn stdout_so_far(&self) -> Result<String> {
        Ok(String::from_utf8_lossy(&std::fs::read(&self.stdout)?).into_owned())
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// It does not end within `limit`.
    pub fn finish(mut self, limit: Duration) -> Result<Output> {
        let what = format!("the end of steep-repl {}", self.arguments);
        let ended = wait::until(&what, limit, || Ok(self.child.try_wait()?));
        let took = self.begun.elapsed();
        let read = |path: &PathBuf| -> Result<String> {
            Ok(String::from_utf8_lossy(&std::fs::read(path)?).into_owned())
        };
        let status = ended.with_context(|| {
            format!(
                "it printed:\n{}\n{}",
                tail(&self.stdout, 20),
                tail(&self.stderr, 20)
            )
        })?;
        Ok(Output {
            arguments: self.arguments.clone(),
            code: status.code().unwrap_or(-1),
            stdout: read(&self.stdout)?,
            stderr: read(&self.stderr)?,
            took,
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Longer than any command of a test, including the largest initialisation.
pub const CLI_LIMIT: Duration = Duration::from_secs(300);

impl Cluster {
    /// Runs the CLI to the end.
    ///
    /// # Errors
    /// It cannot be run, or does not end within [`CLI_LIMIT`].
    pub fn cli(&self, arguments: &[&str]) -> Result<Output> {
        self.cli_spawn(arguments)?.finish(CLI_LIMIT)
    }

    /// Starts the CLI.
    ///
    /// # Errors
    /// It cannot be run.
    pub fn cli_spawn(&self, arguments: &[&str]) -> Result<Running> {
        // Files instead of pipes: a command with much output must not wait for a test that waits
        // for it.
        let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let stdout = self.dir.join(format!("cli-{number}.out"));
        let stderr = self.dir.join(format!("cli-{number}.err"));
        let child = self
            .cli_command(arguments)
            .stdin(Stdio::null())
            .stdout(File::create(&stdout)?)
            .stderr(File::create(&stderr)?)
            .spawn()
            .context("cannot run steep-repl")?;
        Ok(Running {
            arguments: arguments.join(" "),
            child,
            begun: Instant::now(),
            stdout,
            stderr,
        })
    }

    /// The CLI with its environment, for the caller to run.
    #[must_use]
    pub fn cli_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.binaries.cli());
        command.args(arguments).current_dir(&self.dir);
        for (name, value) in self.cli_environment() {
            command.env(name, value);
        }
        command
            .env("HOME", &self.dir)
            .env_remove("STEEP_REPL_PARALLEL");
        command
    }

    /// The environment that a shell needs for this cluster.
    #[must_use]
    pub fn cli_environment(&self) -> Vec<(&'static str, String)> {
        vec![
            ("STEEP_REPL_COORDINATOR", self.coordinator_address()),
            ("STEEP_REPL_CERTS", self.certs().display().to_string()),
        ]
    }
}

static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
