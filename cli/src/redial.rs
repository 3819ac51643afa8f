//! Reconnecting to the coordinator: how long to try, and how long to wait between attempts.

use std::time::Duration;

use steep_protocol::FaultKind;
use tokio::time::Instant;

use crate::failure::Failure;

/// How long a command tries to reconnect before it gives up: as long as a restart of the coordinator's machine may take.
const DIAL_FOR: Duration = Duration::from_secs(600);

/// The pause between two attempts.
pub(crate) const PAUSE: Duration = Duration::from_secs(1);

/// The attempts after one loss of the connection.
#[derive(Debug)]
pub(crate) struct Redial {
    deadline: Instant,
    why: Failure,
}

impl Redial {
    /// Starts now. `why` is the reason for the loss.
    pub(crate) fn begin(why: Failure) -> Self {
        Self {
            deadline: Instant::now() + DIAL_FOR,
            why,
        }
    }

    /// The reason for the loss.
    pub(crate) fn why(self) -> Failure {
        self.why
    }

    /// Records a failed attempt. Fails if another one is pointless or the time is over.
    ///
    /// # Errors
    /// The [`Failure`] of the attempt, with a hint.
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

/// Whether another attempt may succeed. A refusal is final.
pub(crate) fn is_worth_trying(failure: &Failure) -> bool {
    failure.0.kind == FaultKind::Unreachable
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_absence_is_waited_for_ten_minutes_and_a_refusal_not_at_all() {
        let away = || Failure::new(FaultKind::Unreachable, "nobody answers");
        let mut redial = Redial::begin(away());
        let mut attempts = 0;
        while let Ok(again) = redial.failed(away()) {
            again.wait().await;
            attempts += 1;
        }
        assert_eq!(attempts, 600);
        let mut redial = Redial::begin(away());
        let refused = Failure::new(FaultKind::Unauthorized, "not an operator");
        assert!(redial.failed(refused).is_err());
        assert_eq!(redial.why().0.message, "nobody answers");
    }
}
