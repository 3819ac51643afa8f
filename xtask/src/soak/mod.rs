//! `cargo xtask soak`: a hunt for what loses rows. Round after round, a job runs under a write load while
//! faults drawn from a seed strike it; then both sides are compared. The first guarantee that does not hold
//! ends it, with all traces kept and the command that repeats the round.
//!
//! In the order of a round: [`fault`] and [`plan`] (pure) say what happens when; [`world`] starts a cluster
//! with a network that can fail, [`load`] writes to it; [`rounds`] runs the job; [`watch`] finds its phases,
//! [`strike`] applies faults; [`said`], [`ledger`] and [`judge`] check; [`table`] counts.

mod fault;
mod judge;
mod ledger;
mod load;
mod plan;
mod rounds;
mod said;
mod strike;
mod table;
mod watch;
mod world;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use steep_tests::paths::Binaries;
use steep_tests::wait;

use crate::{cargo, units};
use plan::Round;
use rounds::Outcome;
use said::Said;
use table::Table;
use world::World;

/// Options of the hunt.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// How long rounds are begun
    #[arg(long, default_value_t = 30, value_name = "N")]
    minutes: u64,
    /// What the rounds are drawn from
    #[arg(long, default_value_t = 1, value_name = "S")]
    seed: u64,
    /// Only rounds whose method, faults or phases contain this; may be repeated
    #[arg(long, value_name = "WORD")]
    only: Vec<String>,
    /// Only the round of that number
    #[arg(long, value_name = "N")]
    round: Option<u32>,
    /// The first round
    #[arg(long, default_value_t = 0, value_name = "N", conflicts_with = "round")]
    from: u32,
    /// Print the rounds and run none
    #[arg(long)]
    list: bool,
    /// Run the release build
    #[arg(long)]
    release: bool,
    /// Run what is built beside this program
    #[arg(long, conflicts_with = "release")]
    no_build: bool,
}

/// How many rounds `--list` prints.
const LISTED: usize = 50;

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let rounds = arguments.rounds();
    if arguments.list {
        for round in rounds.take(LISTED) {
            println!("{:>4}  {round}", round.number);
        }
        return Ok(());
    }
    let binaries = arguments.binaries()?;
    let begun = Instant::now();
    let mut table = Table::default();
    let mut ended = Ok(());
    for round in rounds {
        if begun.elapsed() > Duration::from_secs(arguments.minutes * 60) || wait::interrupted() {
            break;
        }
        match one(&round, &binaries) {
            Ok(outcome) => table.add(&outcome),
            // Nothing was found: somebody wanted to stop.
            Err(_) if wait::interrupted() => break,
            Err(error) => {
                ended = Err(error);
                break;
            }
        }
    }
    println!();
    for line in table.lines() {
        println!("{line}");
    }
    println!(
        "seed {}, {}",
        arguments.seed,
        units::duration(begun.elapsed())
    );
    ended
}

impl Arguments {
    fn binaries(&self) -> Result<Binaries> {
        if self.no_build {
            return Binaries::beside_me();
        }
        println!("Building");
        if self.release {
            return cargo::release_binaries();
        }
        cargo::run(cargo::command().args(["build", "--workspace", "--quiet"]))?;
        Binaries::beside_me()
    }

    fn rounds(&self) -> impl Iterator<Item = Round> {
        let (from, to) = match self.round {
            Some(number) => (number, number),
            None => (self.from, u32::MAX),
        };
        let all = (from..=to).map(|number| Round::draw(self.seed, number));
        all.filter(|round| self.only.iter().all(|word| round.matches(word)))
    }
}

/// Runs a round and prints its line.
fn one(round: &Round, binaries: &Binaries) -> Result<Outcome> {
    println!("{:>4}  {round}", round.number);
    let begun = Instant::now();
    let mut kept: Option<PathBuf> = None;
    let outcome = World::start(round, binaries)
        .context("cannot start")
        .and_then(|mut world| {
            kept = Some(world.dir.clone());
            rounds::run(&mut world, round)
        });
    match outcome {
        Ok(outcome) => {
            let took = units::duration(begun.elapsed());
            let (end, missed) = (outcome.end, outcome.missed);
            println!("      {end}, {took}, {missed} of the faults found nothing");
            for said in &outcome.said {
                if let Said::Silent(view) = said {
                    println!("      15 s without a word about the wait: {view}");
                }
            }
            if let Some(dir) = kept {
                world::remove(&dir)?;
            }
            Ok(outcome)
        }
        Err(error) if wait::interrupted() => {
            if let Some(dir) = kept {
                world::remove(&dir)?;
            }
            Err(error)
        }
        Err(error) => {
            let traces = kept.map_or_else(|| "nowhere".to_owned(), |dir| dir.display().to_string());
            println!("      VIOLATED after {}", units::duration(begun.elapsed()));
            println!("      logs and data: {traces}");
            println!(
                "      again: cargo xtask soak --seed {} --round {}",
                round.seed, round.number
            );
            bail!("round {} ({round}): {error:#}", round.number)
        }
    }
}
