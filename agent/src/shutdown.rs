//! The signals of a shutdown.
//!
//! Owns three signals and a count. [`crate::session::Control`] sends them (`session::drain` says when);
//! each task watches the one that concerns it.

use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Three signals, each of which implies those before it: an agent that cuts off its work starts no more
/// either. Clones share them.
#[derive(Debug, Clone)]
pub struct Shutdown {
    drain: CancellationToken,
    cut: CancellationToken,
    halt: CancellationToken,
    answering: Arc<watch::Sender<usize>>,
}

impl Default for Shutdown {
    fn default() -> Self {
        let halt = CancellationToken::new();
        let cut = halt.child_token();
        Self {
            drain: cut.child_token(),
            cut,
            halt,
            answering: Arc::default(),
        }
    }
}

impl Shutdown {
    /// Cancelled when no new work may start. Running work goes on.
    #[must_use]
    pub fn drain(&self) -> &CancellationToken {
        &self.drain
    }

    /// Cancelled when running work must end at once.
    #[must_use]
    pub fn cut(&self) -> &CancellationToken {
        &self.cut
    }

    /// Cancelled when all tasks must end.
    #[must_use]
    pub fn halt(&self) -> &CancellationToken {
        &self.halt
    }

    /// Counts a request of another agent as being answered until the guard is dropped.
    #[must_use]
    pub fn answering(&self) -> Answering {
        self.answering.send_modify(|count| *count += 1);
        Answering(Arc::clone(&self.answering))
    }

    /// How many requests of other agents are being answered.
    #[must_use]
    pub fn answers(&self) -> watch::Receiver<usize> {
        self.answering.subscribe()
    }
}

/// A request being answered.
#[derive(Debug)]
pub struct Answering(Arc<watch::Sender<usize>>);

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_signal_implies_those_before_it() {
        let heard = |of: &Shutdown| {
            let signals = [of.drain(), of.cut(), of.halt()];
            signals.map(CancellationToken::is_cancelled)
        };
        let steps: [fn(&Shutdown) -> &CancellationToken; 3] =
            [Shutdown::drain, Shutdown::cut, Shutdown::halt];
        for (at, step) in steps.into_iter().enumerate() {
            let shutdown = Shutdown::default();
            step(&shutdown.clone()).cancel();
            let wanted: Vec<bool> = (0..3).map(|signal| signal <= at).collect();
            assert_eq!(heard(&shutdown).to_vec(), wanted);
        }
    }

    #[test]
    fn answers_are_counted_while_they_last() {
        let shutdown = Shutdown::default();
        let answers = shutdown.answers();
        let first = shutdown.answering();
        let second = shutdown.clone().answering();
        assert_eq!(*answers.borrow(), 2);
        drop((first, second));
        assert_eq!(*answers.borrow(), 0);
    }
}
