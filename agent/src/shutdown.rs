//! The signals of a shutdown. [`crate::session`] sends them, its `drain` says when; each task watches the
//! one that concerns it.

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Three signals, each of which implies those before it: an agent that cuts off its work starts no more
/// either. Clones share them.
#[derive(Debug, Clone)]
pub(crate) struct Shutdown {
    /// Cancelled when no new work may start. Running work goes on.
    pub(crate) drain: CancellationToken,
    /// Cancelled when running work must end at once.
    pub(crate) cut: CancellationToken,
    /// Cancelled when all tasks must end.
    pub(crate) halt: CancellationToken,
    /// Requests of other agents that are being answered, each by a token.
    pub(crate) answers: TaskTracker,
}

impl Default for Shutdown {
    fn default() -> Self {
        let halt = CancellationToken::new();
        let cut = halt.child_token();
        let answers = TaskTracker::new();
        // Requests are answered until the end; closed, the tracker can be waited for.
        answers.close();
        Self {
            drain: cut.child_token(),
            cut,
            halt,
            answers,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_signal_implies_those_before_it() {
        let signals = |of: &Shutdown| [of.drain.clone(), of.cut.clone(), of.halt.clone()];
        for at in 0..3 {
            let shutdown = Shutdown::default();
            signals(&shutdown.clone())[at].cancel();
            let heard = signals(&shutdown).map(|signal| signal.is_cancelled());
            assert_eq!(heard, [0, 1, 2].map(|signal| signal <= at));
        }
    }
}
