//! Dialling a coordinator that went away: how long to go on, and how long to wait between.

use std::time::Duration;

use steep_protocol::FaultKind;
use tokio::time::Instant;

use crate::failure::Failure;

/// How long a coordinator that went away is dialled again before a command gives up.
const DIAL_FOR: Duration = Duration::from_secs(60);

/// Between two attempts.
pub(crate) const PAUSE: Duration = Duration::from_secs(1);

/// One absence of the coordinator.
#[derive(Debug)]
pub(crate) struct Redial {
    deadline: Instant,
    why: Failure,
}

impl Redial {
    /// It begins now, for that reason.
    pub(crate) fn begin(why: Failure) -> Self {
        Self {
            deadline: Instant::now() + DIAL_FOR,
            why,
        }
    }

    /// Why it began.
    pub(crate) fn why(self) -> Failure {
        self.why
    }

    /// An attempt failed: wait and try again, unless that is no use or the time is over.
    ///
    /// # Errors
    /// The attempt's own [`Failure`], with a next step.
    pub(crate) fn failed(&mut self, failure: Failure) -> Result<&Self, Failure> {
        if is_worth_trying(&failure) && Instant::now() < self.deadline {
            return Ok(self);
        }
        Err(failure.hint(
            "the jobs go on as far as they can: see `steep-repl status` once the coordinator is back",
        ))
    }

    /// Waits until the next attempt. Cancel-safe.
    pub(crate) async fn wait(&self) {
        tokio::time::sleep(PAUSE).await;
    }
}

/// Whether dialling once more may bring something else: not where we were refused.
pub(crate) fn is_worth_trying(failure: &Failure) -> bool {
    failure.0.kind == FaultKind::Unreachable
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_absence_is_waited_for_a_minute_and_a_refusal_not_at_all() {
        let away = || Failure::new(FaultKind::Unreachable, "nobody answers");
        let mut redial = Redial::begin(away());
        let mut attempts = 0;
        while let Ok(again) = redial.failed(away()) {
            again.wait().await;
            attempts += 1;
        }
        assert_eq!(attempts, 60);
        let mut redial = Redial::begin(away());
        let refused = Failure::new(FaultKind::Unauthorized, "not an operator");
        assert!(redial.failed(refused).is_err());
        assert_eq!(redial.why().0.message, "nobody answers");
    }
}
