//! A process of the product. Tests wait for its log events, and its log is shown if a test fails.

use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::pg::Grouping;
use crate::wait;

/// A daemon is ready well within this time, or something is wrong.
pub const READY_LIMIT: Duration = Duration::from_secs(20);

/// Longer than the daemons' own deadline for draining, which is half a minute at most.
const STOP_LIMIT: Duration = Duration::from_secs(45);

/// A running process, ended when dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    /// Where this run's part of the log begins.
    log_from: usize,
    grouping: Grouping,
    released: bool,
}

impl Process {
    /// Starts `command` with its output appended to `log`.
    ///
    /// # Errors
    /// It cannot be run.
    pub fn spawn(
        name: &str,
        command: &mut Command,
        log: &Path,
        grouping: Grouping,
    ) -> Result<Self> {
        let log_from = fs::metadata(log).map_or(0, |meta| meta.len());
        let file = File::options().create(true).append(true).open(log)?;
        wait::watch(log);
        if grouping == Grouping::Own {
            command.process_group(0);
        }
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("cannot run {name}"))?;
        Ok(Self {
            name: name.to_owned(),
            child,
            log: log.to_path_buf(),
            log_from: usize::try_from(log_from)?,
            grouping,
            released: false,
        })
    }

    /// Waits for a log line of this run with that `event`.
    ///
    /// # Errors
    /// The process ended, or the line did not come; with the end of the log.
    pub fn wait_for_event(&mut self, event: &str, limit: Duration) -> Result<Value> {
        let what = format!("the event {event:?} of {}", self.name);
        let outcome = wait::until(&what, limit, || {
            // Checked before the log is read: lines from before its end still count.
            let ended = self.child.try_wait()?;
            if let Some(found) = self.events(event)?.into_iter().next() {
                return Ok(Some(found));
            }
            match ended {
                Some(status) => bail!("{} ended ({status}) before {event:?}", self.name),
                None => Ok(None),
            }
        });
        outcome.with_context(|| format!("end of {}:\n{}", self.log.display(), tail(&self.log, 20)))
    }

    /// Every line of this run with that `event`.
    ///
    /// # Errors
    /// The log cannot be read.
    pub fn events(&self, event: &str) -> Result<Vec<Value>> {
        let log = fs::read(&self.log)?;
        let text = String::from_utf8_lossy(log.get(self.log_from..).unwrap_or_default());
        let named = |line: &Value| line.get("event").and_then(Value::as_str) == Some(event);
        Ok(text
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .filter(named)
            .collect())
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its log.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Kills it, like a crash.
    ///
    /// # Errors
    /// It cannot be waited for.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Sends SIGTERM and waits for its end.
    ///
    /// # Errors
    /// It does not end.
    pub fn terminate(self) -> Result<ExitStatus> {
        self.signal(Signal::TERM);
        self.end()
    }

    /// Waits for the end of a process that was told to stop.
    ///
    /// # Errors
    /// It does not end.
    pub fn end(mut self) -> Result<ExitStatus> {
        self.ended_within(STOP_LIMIT)?
            .with_context(|| format!("{} did not end on SIGTERM", self.name))
    }

    /// Sends a signal; SIGSTOP and SIGCONT simulate a hang.
    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = i32::try_from(self.pid()).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, signal);
        }
    }

    /// Keeps the process running when dropped; returns its id.
    #[must_use]
    pub fn release(&mut self) -> u32 {
        self.released = true;
        self.pid()
    }

    fn ended_within(&mut self, limit: Duration) -> Result<Option<ExitStatus>> {
        let begun = Instant::now();
        // Not wait::until: the process must stop even after the user has interrupted everything
        // else.
        while begun.elapsed() < limit {
            if let Some(status) = self.child.try_wait()? {
                return Ok(Some(status));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(None)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.released {
            return;
        }
        // The output of a test is shown only if it fails.
        if self.grouping == Grouping::Shared {
            eprintln!("--- {}: end of {} ---", self.name, self.log.display());
            eprintln!("{}", tail(&self.log, 40));
        }
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// The last lines of a file; empty if there is none.
#[must_use]
pub fn tail(path: &Path, lines: usize) -> String {
    let content = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&content);
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, log: &Path) -> Process {
        Process::spawn(
            "sh",
            Command::new("sh").args(["-c", script]),
            log,
            Grouping::Shared,
        )
        .unwrap()
    }

    #[test]
    fn an_event_is_seen_and_an_end_without_it_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let ready = r#"echo '{"event":"ready","listen":"x"}' >&2; sleep 60"#;
        let mut process = shell(ready, &log);
        let event = process.wait_for_event("ready", READY_LIMIT).unwrap();
        assert_eq!(event["listen"], "x");
        process.kill().unwrap();

        let mut process = shell("echo trouble >&2; exit 1", &log);
        let error = process.wait_for_event("ready", READY_LIMIT).unwrap_err();
        assert!(format!("{error:#}").contains("trouble"), "{error:#}");
    }

    #[test]
    fn a_tail_is_the_last_lines() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "a\nb\nc\n").unwrap();
        assert_eq!(tail(&file, 2), "b\nc");
        assert_eq!(tail(Path::new("/nonexistent"), 2), "");
    }
}
