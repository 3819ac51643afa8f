//! Points in time.

use std::time::Duration;

use jiff::Timestamp;

/// `now` plus `wait`, capped at [`Timestamp::MAX`].
#[must_use]
pub(crate) fn after(now: Timestamp, wait: Duration) -> Timestamp {
    jiff::SignedDuration::try_from(wait)
        .ok()
        .and_then(|wait| now.checked_add(wait).ok())
        .unwrap_or(Timestamp::MAX)
}
