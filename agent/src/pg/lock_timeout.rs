//! Statements on a source stand in a lock queue for a moment only, then leave it and come back: whoever
//! comes after a request that waits may have to wait behind it, and behind every lock that its
//! transaction holds.

use std::time::Duration;

use tokio_postgres::error::SqlState;
use tokio_util::sync::CancellationToken;

use super::PgError;

/// How long a request for a lock may stand in the queue.
pub(crate) const SHORT_LOCK_TIMEOUT: &str = "SET lock_timeout = '1s'";

/// How long it stays away from the queue.
const PAUSE: Duration = Duration::from_millis(500);

/// How often a question is asked again.
const QUESTIONS: u8 = 5;

/// Whether a statement that did not get a lock within [`SHORT_LOCK_TIMEOUT`] is run again.
#[derive(Debug)]
pub(crate) struct Again {
    /// `None` where the job's own limits end it.
    left: Option<u8>,
}

impl Again {
    /// For work of a job.
    pub(crate) fn endless() -> Self {
        Self { left: None }
    }

    /// For a question that somebody waits for.
    pub(crate) fn few() -> Self {
        Self {
            left: Some(QUESTIONS),
        }
    }

    /// Waits until the statement may be run again.
    ///
    /// # Errors
    /// `error` where it is not one of a lock or there were too many, or [`PgError::Cancelled`].
    pub(crate) async fn after(
        &mut self,
        error: PgError,
        cancel: &CancellationToken,
    ) -> Result<(), PgError> {
        if !error.is(&SqlState::LOCK_NOT_AVAILABLE) || self.left == Some(0) {
            return Err(error);
        }
        self.left = self.left.map(|left| left - 1);
        tokio::select! {
            () = tokio::time::sleep(PAUSE) => Ok(()),
            () = cancel.cancelled() => Err(PgError::Cancelled),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn locked() -> PgError {
        PgError::refused("55P03", "canceling statement due to lock timeout")
    }

    #[tokio::test(start_paused = true)]
    async fn a_question_gives_up_and_work_does_not() {
        let cancel = CancellationToken::new();
        let mut question = Again::few();
        for _ in 0..QUESTIONS {
            assert!(question.after(locked(), &cancel).await.is_ok());
        }
        let gave_up = question.after(locked(), &cancel).await;
        assert!(gave_up.is_err_and(|e| e.is(&SqlState::LOCK_NOT_AVAILABLE)));
        let mut work = Again::endless();
        for _ in 0..100 {
            assert!(work.after(locked(), &cancel).await.is_ok());
        }
        let other = PgError::refused("42P01", "no such table");
        assert!(work.after(other, &cancel).await.is_err());
        cancel.cancel();
        let cancelled = work.after(locked(), &cancel).await;
        assert!(matches!(cancelled, Err(PgError::Cancelled)));
    }
}
