//! The way down, as everything that works in the agent hears of it.
//!
//! Owns three signals and a count. [`crate::session::Control`] decides when each is given
//! (`session::drain`); who works looks at the one that concerns it.

use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Three signals, each of which implies those before it: a process that ends whatever runs takes up
/// nothing more either. Clones hear the same.
#[derive(Debug, Clone)]
pub struct Descent {
    drain: CancellationToken,
    cut: CancellationToken,
    halt: CancellationToken,
    answering: Arc<watch::Sender<usize>>,
}

impl Default for Descent {
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

impl Descent {
    /// Cancelled when nothing more is to be taken up. What is under way goes on.
    #[must_use]
    pub fn drain(&self) -> &CancellationToken {
        &self.drain
    }

    /// Cancelled when what is still under way is to end at once.
    #[must_use]
    pub fn cut(&self) -> &CancellationToken {
        &self.cut
    }

    /// Cancelled when everyone goes.
    #[must_use]
    pub fn halt(&self) -> &CancellationToken {
        &self.halt
    }

    /// Another agent is being answered, until the value goes.
    #[must_use]
    pub fn answering(&self) -> Answering {
        self.answering.send_modify(|count| *count += 1);
        Answering(Arc::clone(&self.answering))
    }

    /// How many answers to other agents are under way.
    #[must_use]
    pub fn answers(&self) -> watch::Receiver<usize> {
        self.answering.subscribe()
    }
}

/// An answer under way.
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
        let heard = |of: &Descent| {
            let signals = [of.drain(), of.cut(), of.halt()];
            signals.map(CancellationToken::is_cancelled)
        };
        let steps: [fn(&Descent) -> &CancellationToken; 3] =
            [Descent::drain, Descent::cut, Descent::halt];
        for (at, step) in steps.into_iter().enumerate() {
            let descent = Descent::default();
            step(&descent.clone()).cancel();
            let wanted: Vec<bool> = (0..3).map(|signal| signal <= at).collect();
            assert_eq!(heard(&descent).to_vec(), wanted);
        }
    }

    #[test]
    fn answers_are_counted_while_they_last() {
        let descent = Descent::default();
        let answers = descent.answers();
        let first = descent.answering();
        let second = descent.clone().answering();
        assert_eq!(*answers.borrow(), 2);
        drop((first, second));
        assert_eq!(*answers.borrow(), 0);
    }
}
