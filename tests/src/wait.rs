//! Waits for a condition, with a time limit and a name for the error, until the user interrupts.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// The least time between two looks, and between two looks at the logs.
const POLL: Duration = Duration::from_millis(20);

/// The most time between two looks.
const POLL_MAX: Duration = Duration::from_millis(500);

/// Where nothing is logged, a look is repeated after this many times what it took: most looks start a
/// process, and whoever waits leaves the processors to those that work.
const REST: u32 = 8;

/// The same after something was logged.
const REST_LOGGED: u32 = 2;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Logs of the processes that tests wait for.
static LOGS: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// Makes every wait of this process look again soon after a line was added to that log.
pub(crate) fn watch(log: &Path) {
    logs().insert(log.to_path_buf());
}

fn logs() -> MutexGuard<'static, BTreeSet<PathBuf>> {
    LOGS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Grows with every line.
fn logged() -> u64 {
    let size = |log: &PathBuf| fs::metadata(log).map_or(0, |meta| meta.len());
    logs().iter().map(size).sum()
}

/// Makes every wait of this process fail, now and from now on.
pub fn interrupt() {
    INTERRUPTED.store(true, Ordering::SeqCst);
}

/// Whether [`interrupt`] was called since the last [`resume`].
#[must_use]
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::SeqCst)
}

/// Cancels an interruption that somebody else has handled.
pub fn resume() {
    INTERRUPTED.store(false, Ordering::SeqCst);
}

/// Calls `look` until it returns a value.
///
/// # Errors
/// An error of `look`; `limit` has passed; the process was interrupted.
pub fn until<T>(
    what: &str,
    limit: Duration,
    mut look: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let begun = Instant::now();
    loop {
        let (before, looked) = (logged(), Instant::now());
        if let Some(value) = look()? {
            return Ok(value);
        }
        let took = looked.elapsed();
        if interrupted() {
            bail!("interrupted while waiting for {what}");
        }
        if begun.elapsed() > limit {
            bail!("waited {:.0} s for {what}", limit.as_secs_f64());
        }
        rest(took, before);
    }
}

/// Sleeps between two looks, of which the last one `took` that long and saw logs of `before` bytes.
fn rest(took: Duration, before: u64) {
    let begun = Instant::now();
    loop {
        std::thread::sleep(POLL);
        if interrupted() || is_rested(begun.elapsed(), took, || logged() != before) {
            return;
        }
    }
}

fn is_rested(rested: Duration, took: Duration, has_logged: impl FnOnce() -> bool) -> bool {
    let enough = |times| rested >= (took * times).clamp(POLL, POLL_MAX);
    enough(REST) || enough(REST_LOGGED) && has_logged()
}

/// [`until`] for a plain condition.
///
/// # Errors
/// As [`until`].
pub fn until_true(
    what: &str,
    limit: Duration,
    mut look: impl FnMut() -> Result<bool>,
) -> Result<()> {
    until(what, limit, || Ok(look()?.then_some(())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_waits_rests_longer_after_a_long_look_and_less_once_something_is_logged() {
        let rested = |rested, took, has_logged| {
            let millis = Duration::from_millis;
            is_rested(millis(rested), millis(took), || has_logged)
        };
        assert!(rested(20, 1, false));
        assert!(!rested(200, 50, false));
        assert!(rested(200, 50, true));
        assert!(!rested(80, 50, true));
        assert!(rested(400, 50, false));
        assert!(rested(500, 700, false), "never longer than the longest");
    }

    #[test]
    fn a_line_in_a_watched_log_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        watch(&log);
        let before = logged();
        fs::write(&log, "{}\n").unwrap();
        assert_ne!(logged(), before);
    }
}
