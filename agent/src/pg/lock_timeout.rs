//! Statements on a source stay in a lock queue for a moment only, then leave it and come back: later
//! requests wait behind a queued one, and behind every lock that its transaction holds.

use std::time::Duration;

use backon::ConstantBuilder;

/// The longest stay in a lock queue.
pub(crate) const SHORT_LOCK_TIMEOUT: &str = "SET lock_timeout = '1s'";

/// The time away from the queue.
const PAUSE: Duration = Duration::from_millis(500);

/// Retries of a question that somebody waits for.
const QUESTIONS: usize = 5;

/// Retries for a job's work; the job's own limits end it.
pub(crate) fn always() -> ConstantBuilder {
    let constant = ConstantBuilder::new().with_delay(PAUSE);
    constant.without_max_times()
}

/// Retries for a question that somebody waits for.
pub(crate) fn a_few_times() -> ConstantBuilder {
    always().with_max_times(QUESTIONS)
}

#[cfg(test)]
mod tests {
    use backon::Retryable as _;

    use super::*;
    use crate::pg::PgError;

    /// Attempts at work that finds its lock free the 100th time.
    async fn tried(code: &str, again: ConstantBuilder) -> u32 {
        let mut tries = 0;
        let work = || {
            tries += 1;
            let refused = PgError::refused(code, "canceling statement due to lock timeout");
            std::future::ready(if tries == 100 { Ok(()) } else { Err(refused) })
        };
        let _ = work.retry(again).when(PgError::is_locked).await;
        tries
    }

    #[tokio::test(start_paused = true)]
    async fn a_question_gives_up_and_work_does_not() {
        assert_eq!(tried("55P03", a_few_times()).await, 1 + QUESTIONS as u32);
        assert_eq!(tried("55P03", always()).await, 100);
        assert_eq!(tried("42P01", always()).await, 1);
    }
}
