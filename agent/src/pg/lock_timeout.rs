//! Statements on a source stand in a lock queue for a moment only, then leave it and come back: whoever
//! comes after a request that waits may have to wait behind it, and behind every lock that its
//! transaction holds.

use std::time::Duration;

use backon::ConstantBuilder;

/// How long a request for a lock may stand in the queue.
pub(crate) const SHORT_LOCK_TIMEOUT: &str = "SET lock_timeout = '1s'";

/// How long it stays away from the queue.
const PAUSE: Duration = Duration::from_millis(500);

/// How often a question is asked again.
const QUESTIONS: usize = 5;

/// Retries for work of a job, which the job's own limits end.
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

    /// How often work that finds its lock free at the 100th attempt is tried.
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
