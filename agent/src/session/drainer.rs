//! Runs the shutdown: waits for the events that bring the next stage of [`super::drain`].

use std::time::Instant;

use steep_daemon::Stop;

use super::drain::{HURRY_MAX, Load, Stage, Told, WAY_DOWN_MAX};
use crate::shutdown::Shutdown;

#[derive(Debug)]
pub(super) struct Drainer {
    stop: Stop,
    shutdown: Shutdown,
    stage: Stage,
    began: Instant,
    ended: Option<Instant>,
    /// Commands that were interrupted.
    pub(super) interrupted: usize,
}

impl Drainer {
    pub(super) fn new(stop: Stop, shutdown: Shutdown) -> Self {
        Self {
            stop,
            shutdown,
            stage: Stage::Up,
            began: Instant::now(),
            ended: None,
            interrupted: 0,
        }
    }

    /// Waits for the next stage and sends its signal. `held` counts snapshots that the coordinator has yet
    /// to close.
    ///
    /// Cancel-safe: once a stage is due, the next call returns it.
    pub(super) async fn turn(&mut self, commands: usize, held: usize) -> Stage {
        loop {
            let load = Load {
                at_work: commands + self.answers(),
                held,
                ended: self.ended,
            };
            let now = Instant::now();
            let told = self.told();
            let next = self.stage.next(told, load, now);
            if next != self.stage {
                self.reach(next, now);
                return next;
            }
            let signal = match told {
                Told::Nothing => self.stop.asked(),
                Told::Stop | Told::Hurry => self.stop.hurried(),
            };
            let due = next.due(load);
            tokio::select! {
                () = signal.cancelled(), if told != Told::Hurry => {}
                () = self.shutdown.answers.wait(), if self.answers() > 0 => {}
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
                self.shutdown.drain.cancel();
            }
            Stage::Cut { .. } => self.shutdown.cut.cancel(),
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

    pub(super) fn is_down(&self) -> bool {
        self.stage != Stage::Up
    }

    pub(super) fn is_over(&self) -> bool {
        self.stage == Stage::Over
    }

    /// A command ended and the coordinator will get its outcome.
    pub(super) fn ended(&mut self) {
        if self.is_down() {
            self.ended = Some(Instant::now());
        }
    }

    pub(super) fn answers(&self) -> usize {
        self.shutdown.answers.len()
    }

    /// Since the shutdown began.
    pub(super) fn millis(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// Returns when the shutdown has outlasted its stages, because a task ignores its signal.
pub(crate) async fn overdue(stop: &Stop) {
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

/// Sleeps until `due`; for ever without one.
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

    fn drainer() -> (Drainer, Stop, Shutdown) {
        let (stop, shutdown) = (Stop::default(), Shutdown::default());
        (Drainer::new(stop.clone(), shutdown.clone()), stop, shutdown)
    }

    #[tokio::test]
    async fn an_answer_under_way_is_waited_for() {
        let (mut drainer, stop, shutdown) = drainer();
        let answer = shutdown.answers.token();
        stop.tell();
        let stage = drainer.turn(0, 0).await;
        assert!(matches!(stage, Stage::Draining { .. }), "{stage:?}");
        assert!(shutdown.drain.is_cancelled() && !shutdown.cut.is_cancelled());
        let waited = tokio::time::timeout(Duration::from_millis(20), drainer.turn(0, 0));
        assert!(waited.await.is_err(), "it is under way");
        drop(answer);
        assert_eq!(drainer.turn(0, 0).await, Stage::Over);
    }

    #[tokio::test]
    async fn a_second_signal_cuts_off_what_runs() {
        let (mut drainer, stop, shutdown) = drainer();
        stop.tell();
        drainer.turn(1, 0).await;
        stop.tell();
        let stage = drainer.turn(1, 0).await;
        assert!(matches!(stage, Stage::Cut { .. }), "{stage:?}");
        assert!(shutdown.cut.is_cancelled() && !shutdown.halt.is_cancelled());
        assert_eq!(drainer.turn(0, 1).await, Stage::Over);
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
