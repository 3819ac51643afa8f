//! Points in time.

use std::time::Duration;

use jiff::Timestamp;

/// A point in time that much later; the end of time where it overflows.
#[must_use]
pub(crate) fn after(now: Timestamp, wait: Duration) -> Timestamp {
    jiff::SignedDuration::try_from(wait)
        .ok()
        .and_then(|wait| now.checked_add(wait).ok())
        .unwrap_or(Timestamp::MAX)
}
