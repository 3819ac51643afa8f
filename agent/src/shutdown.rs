//! The signals of a shutdown. [`crate::session`] sends them, as its `drain` decides; each task watches the
//! one it needs.

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Each signal implies those before it. Clones share them.
#[derive(Debug, Clone)]
pub(crate) struct Shutdown {
    /// No new work may start. Running work goes on.
    pub(crate) drain: CancellationToken,
    /// Running work must end at once.
    pub(crate) cut: CancellationToken,
    /// All tasks must end.
    pub(crate) halt: CancellationToken,
    /// Holds a token for each request of another agent that is being answered.
    pub(crate) answers: TaskTracker,
}

impl Default for Shutdown {
    fn default() -> Self {
        let halt = CancellationToken::new();
        let cut = halt.child_token();
        let answers = TaskTracker::new();
        // A closed tracker still gives out tokens, and can be waited for.
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
