//! Waits for a condition, with a time limit and a name for the error, until the user interrupts.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// The pauses between two looks, most of which start a process: short at first, then a twentieth of the time
/// waited, so that whoever waits long leaves the processors to those that work.
const POLL: Duration = Duration::from_millis(20);
const POLL_MAX: Duration = Duration::from_millis(200);

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

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
        if let Some(value) = look()? {
            return Ok(value);
        }
        if interrupted() {
            bail!("interrupted while waiting for {what}");
        }
        if begun.elapsed() > limit {
            bail!("waited {:.0} s for {what}", limit.as_secs_f64());
        }
        std::thread::sleep((begun.elapsed() / 20).clamp(POLL, POLL_MAX));
    }
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
