//! Runs one round: the job's commands, the faults at their times, and the end.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use steep_tests::cluster::Running;
use steep_tests::wait;

use super::fault::{Fault, Phase, Side};
use super::judge::{self, End};
use super::ledger::Ledger;
use super::plan::{Method, Round, Strike};
use super::said::{self, Said};
use super::strike::Hit;
use super::watch::{self, Position};
use super::world::{SOURCE, TARGET, World};

/// Slow enough that faults fall into the copy.
const RATE: &str = "5MB";

/// Longer than any command, with all that strikes it.
const LIMIT: Duration = Duration::from_secs(300);

/// Rows that a cancel has to remove arrive within this time.
const COPIES: Duration = Duration::from_millis(1_500);

/// Between two requests to cancel.
const CANCEL_AGAIN: Duration = Duration::from_secs(5);

/// How often a pause looks whether it is interrupted.
const INTERRUPT: Duration = Duration::from_millis(200);

/// What became of a round.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) end: End,
    /// The faults that found what they strike.
    pub(super) struck: Vec<(Fault, Phase)>,
    pub(super) missed: usize,
    /// Of the faults that lasted long enough to be asked about.
    pub(super) said: Vec<Said>,
    pub(super) transactions: u64,
}

/// A round on its way.
struct Run<'a> {
    world: &'a mut World,
    round: &'a Round,
    ledger: Ledger,
    at: Position,
    struck: Vec<(Fault, Phase)>,
    missed: usize,
    said: Vec<Said>,
}

/// Runs the round to its end.
///
/// # Errors
/// The guarantee that did not hold.
pub(super) fn run(world: &mut World, round: &Round) -> Result<Outcome> {
    let mut run = Run {
        world,
        round,
        ledger: Ledger::default(),
        at: Position::default(),
        struck: Vec::new(),
        missed: 0,
        said: Vec::new(),
    };
    run.begin()?;
    for strike in &round.strikes {
        if !matches!(strike.phase, Phase::Storing | Phase::Cancelling) {
            run.strike(*strike)?;
        }
    }
    let (end, transactions) = judge::end(run.world, round, &mut run.ledger)?;
    Ok(Outcome {
        end,
        struck: run.struck,
        missed: run.missed,
        said: run.said,
        transactions,
    })
}

/// The command that makes these targets, and follows their jobs.
pub(super) fn job(world: &World, round: &Round, targets: &[&str]) -> Vec<String> {
    let method = round.method;
    let stored = world.dir.join("stored").display().to_string();
    let mut command = match method {
        Method::Stored => vec!["snapshot", "apply", "--input", &stored, "--target"],
        Method::TwoPhase => vec!["init", "--from", SOURCE, "--method", "two-phase"],
        Method::Live | Method::Several | Method::Again => vec!["init", "--from", SOURCE],
    };
    command.extend(targets);
    if method != Method::Stored {
        command.extend(["--large-table-threshold", "1MB"]);
    }
    if round.folds() {
        // One table after the other: some are complete when the snapshot is lost, others are not.
        command.extend(["--parallel", "1"]);
    }
    command.extend(["--max-rate", RATE, "--yes", "--json"]);
    command.into_iter().map(str::to_owned).collect()
}

impl Run<'_> {
    /// Starts the job, after what comes before it.
    fn begin(&mut self) -> Result<()> {
        match self.round.method {
            Method::Live | Method::TwoPhase | Method::Several => {}
            Method::Stored => self.store()?,
            Method::Again => self.cancel_first()?,
        }
        self.at = watch::now(self.world);
        let follower = self.start_job()?;
        self.world.follower = Some(follower);
        Ok(())
    }

    fn start_job(&self) -> Result<Running> {
        let command = job(self.world, self.round, self.round.method.targets());
        let words: Vec<&str> = command.iter().map(String::as_str).collect();
        self.world.cluster.cli_spawn(&words)
    }

    /// Stores a snapshot, which has to succeed whatever strikes it.
    fn store(&mut self) -> Result<()> {
        let output = self.world.dir.join("stored");
        let output = output.to_str().context("UTF-8")?;
        let generate = [
            "snapshot",
            "generate",
            "--source",
            SOURCE,
            "--output",
            output,
            "--max-rate",
            RATE,
            "--large-table-threshold",
            "1MB",
            "--json",
        ];
        let follower = self.world.cluster.cli_spawn(&generate)?;
        self.strike_in(Phase::Storing)?;
        let done = follower.finish(LIMIT)?;
        ensure!(done.code == 0, "the snapshot was not stored: {done}");
        Ok(())
    }

    /// Begins a job and cancels it in mid-copy; nothing may be left.
    fn cancel_first(&mut self) -> Result<()> {
        self.world.follower = Some(self.start_job()?);
        let begun = watch::reach(self.world, Phase::Cancelling, self.at)?;
        ensure!(begun.is_some(), "the job to cancel ended by itself");
        pause(COPIES)?;
        let cancel = ["init", "cancel", "--node", TARGET, "--yes"];
        let mut cancelling = Some(self.world.cluster.cli_spawn(&cancel)?);
        self.strike_in(Phase::Cancelling)?;
        let mut asked = Instant::now();
        wait::until_true("the cancel to end", LIMIT, || {
            let state = self.world.cluster.state(TARGET);
            if state.is_ok_and(|state| state == "uninitialized") {
                return Ok(true);
            }
            // The coordinator that died may not have stored the request.
            if asked.elapsed() > CANCEL_AGAIN {
                if let Some(running) = cancelling.take() {
                    running.kill()?;
                }
                cancelling = Some(self.world.cluster.cli_spawn(&cancel)?);
                asked = Instant::now();
            }
            Ok(false)
        })?;
        self.world.follower = None;
        judge::nothing_is_left(self.world, self.round.method, judge::Rows::Removed)?;
        // An agent needs some seconds to notice that its coordinator is another one.
        self.world.wait_agents()
    }

    fn strike_in(&mut self, phase: Phase) -> Result<()> {
        for strike in &self.round.strikes {
            if strike.phase == phase {
                self.strike(*strike)?;
            }
        }
        Ok(())
    }

    /// Waits for the strike's phase, strikes, and brings back what was taken away.
    fn strike(&mut self, strike: Strike) -> Result<()> {
        let Some(at) = watch::reach(self.world, strike.phase, self.at)? else {
            self.missed += 1;
            return Ok(());
        };
        self.at = at;
        self.ledger.look(self.world)?;
        pause(strike.delay)?;
        let struck = Instant::now();
        let hit = self.world.strike(strike.fault);
        if hit.with_context(|| format!("cannot {}", strike.fault))? == Hit::Missed {
            self.missed += 1;
            return Ok(());
        }
        self.struck.push((strike.fault, strike.phase));
        if strike.away >= said::LIMIT && strike.fault.holds_up() && !strike.fault.hides_status() {
            self.said.push(said::look(self.world, struck)?);
        }
        pause(strike.away.saturating_sub(struck.elapsed()))?;
        self.world
            .restore(strike.fault)
            .with_context(|| format!("cannot take back: {}", strike.fault))?;
        if matches!(
            strike.fault,
            Fault::KillBackend(Side::Source | Side::Target)
        ) {
            self.world.wait_servers()?;
        }
        Ok(())
    }
}

/// Sleeps, unless somebody wants to stop.
fn pause(time: Duration) -> Result<()> {
    let begun = Instant::now();
    while begun.elapsed() < time {
        ensure!(!wait::interrupted(), "interrupted");
        std::thread::sleep(time.saturating_sub(begun.elapsed()).min(INTERRUPT));
    }
    Ok(())
}
