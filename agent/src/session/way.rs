//! The way down, being gone: waits for what brings the next stage of [`super::drain`].

use std::time::Instant;

use steep_daemon::Stop;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::drain::{HURRY_MAX, Load, Stage, Told, WAY_DOWN_MAX};
use crate::descent::Descent;

/// How far the way down is, and what it depends on.
#[derive(Debug)]
pub(super) struct Way {
    stop: Stop,
    descent: Descent,
    answers: watch::Receiver<usize>,
    stage: Stage,
    /// When it began.
    began: Instant,
    /// When a command ended last.
    ended: Option<Instant>,
    /// Commands that did not come to their end.
    interrupted: usize,
}

impl Way {
    /// A way that begins when somebody says so.
    pub(super) fn new(stop: Stop, descent: Descent) -> Self {
        Self {
            stop,
            answers: descent.answers(),
            descent,
            stage: Stage::Up,
            began: Instant::now(),
            ended: None,
            interrupted: 0,
        }
    }

    /// Waits until another stage is reached, given so many commands at work and so many snapshots that
    /// the coordinator will have closed. Tells everyone whom the stage concerns.
    ///
    /// Cancel-safe: a stage that is reached is returned at once.
    pub(super) async fn turn(&mut self, commands: usize, held: usize) -> Stage {
        loop {
            let load = Load {
                at_work: commands + *self.answers.borrow_and_update(),
                held,
                ended: self.ended,
            };
            let now = Instant::now();
            let next = self.stage.next(self.told(), load, now);
            if next != self.stage {
                self.reach(next, now);
                return next;
            }
            let signal = match self.told() {
                Told::Nothing => Some(self.stop.asked()),
                Told::Stop => Some(self.stop.hurried()),
                Told::Hurry => None,
            };
            let due = next.due(load);
            tokio::select! {
                () = cancelled(signal) => {}
                // We hold a sender ourselves.
                _ = self.answers.changed() => {}
                () = until(due) => {}
            }
        }
    }

    fn reach(&mut self, stage: Stage, now: Instant) {
        self.stage = stage;
        match stage {
            Stage::Up | Stage::Over => {}
            Stage::Draining { .. } => {
                self.began = now;
                self.descent.drain().cancel();
            }
            Stage::Cut { .. } => self.descent.cut().cancel(),
        }
    }

    fn told(&self) -> Told {
        if self.stop.hurried().is_cancelled() {
            Told::Hurry
        } else if self.stop.asked().is_cancelled() {
            Told::Stop
        } else {
            Told::Nothing
        }
    }

    /// Whether the agent is on its way down.
    pub(super) fn is_down(&self) -> bool {
        self.stage != Stage::Up
    }

    /// Whether it has come to the end of it.
    pub(super) fn is_over(&self) -> bool {
        self.stage == Stage::Over
    }

    /// A command has ended, of which the coordinator will be told.
    pub(super) fn ended(&mut self) {
        if self.is_down() {
            self.ended = Some(Instant::now());
        }
    }

    /// A command did not come to its end.
    pub(super) fn interrupted(&mut self) {
        self.interrupted += 1;
    }

    /// How many did not.
    pub(super) fn interruptions(&self) -> usize {
        self.interrupted
    }

    /// Answers to other agents that are under way.
    pub(super) fn answers(&self) -> usize {
        *self.answers.borrow()
    }

    /// Milliseconds since it began.
    pub(super) fn millis(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// Until the way down has taken longer than it can: somebody who does not listen holds it up.
pub async fn overdue(stop: &Stop) {
    stop.asked().cancelled().await;
    let hurried = async {
        stop.hurried().cancelled().await;
        tokio::time::sleep(HURRY_MAX).await;
    };
    tokio::select! {
        () = tokio::time::sleep(WAY_DOWN_MAX) => {}
        () = hurried => {}
    }
}

async fn cancelled(signal: Option<&CancellationToken>) {
    match signal {
        Some(signal) => signal.cancelled().await,
        None => std::future::pending().await,
    }
}

/// Until that moment; for ever where there is none.
pub(super) async fn until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn way() -> (Way, Stop, Descent) {
        let (stop, descent) = (Stop::default(), Descent::default());
        (Way::new(stop.clone(), descent.clone()), stop, descent)
    }

    #[tokio::test]
    async fn an_answer_under_way_is_waited_for() {
        let (mut way, stop, descent) = way();
        let answer = descent.answering();
        stop.tell();
        let stage = way.turn(0, 0).await;
        assert!(matches!(stage, Stage::Draining { .. }), "{stage:?}");
        assert!(descent.drain().is_cancelled() && !descent.cut().is_cancelled());
        let waited = tokio::time::timeout(Duration::from_millis(20), way.turn(0, 0));
        assert!(waited.await.is_err(), "it is under way");
        drop(answer);
        assert_eq!(way.turn(0, 0).await, Stage::Over);
    }

    #[tokio::test]
    async fn a_second_signal_cuts_off_what_runs() {
        let (mut way, stop, descent) = way();
        stop.tell();
        way.turn(1, 0).await;
        stop.tell();
        let stage = way.turn(1, 0).await;
        assert!(matches!(stage, Stage::Cut { .. }), "{stage:?}");
        assert!(descent.cut().is_cancelled() && !descent.halt().is_cancelled());
        assert_eq!(way.turn(0, 1).await, Stage::Over);
    }

    #[tokio::test(start_paused = true)]
    async fn a_way_down_that_is_held_up_is_overdue_and_sooner_when_hurried() {
        let stop = Stop::default();
        stop.tell();
        let begun = tokio::time::Instant::now();
        overdue(&stop).await;
        assert_eq!(begun.elapsed(), WAY_DOWN_MAX);
        stop.tell();
        let begun = tokio::time::Instant::now();
        overdue(&stop).await;
        assert_eq!(begun.elapsed(), HURRY_MAX);
    }
}
