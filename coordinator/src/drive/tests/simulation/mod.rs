//! A deterministic simulation that looks for hangs and lost rows.
//!
//! The real loop with its real store runs against agents and PostgreSQL servers in memory ([`postgres`], [`source`],
//! [`target`]), which keep the rules that matter: snapshots that die with their session, slots and publications,
//! ledger rows that commit with their part. Everything that can go wrong ([`faults`]) is drawn from a seed, and a seed
//! replays. When the faults are over, every job must end by itself, and [`judge`] compares rows and looks for what is
//! left.
//!
//! `STEEP_SIM_SEED` is the first seed, `STEEP_SIM_COUNT` how many are run; a single one prints what happens.

mod agent;
mod dice;
mod disk;
mod faults;
mod fold;
mod judge;
mod observe;
mod postgres;
mod sessions;
mod source;
mod stored;
mod target;
mod world;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use steep_protocol::NodeState;
use steep_protocol::message::api::{InitRequest, Order};
use steep_protocol::message::job::{JobSpec, Method};

use self::dice::Dice;
use self::faults::Weather;
use self::judge::{Watch, ends, is_quiet, judge, unfinished};
use self::world::{Cluster, Trace};
use crate::job::retry::Patience;
use crate::job::{Job, Stage};
use crate::testing::spec;

/// Seeds of the default run.
const SEEDS: u64 = 400;

/// Milliseconds of a step while faults happen, and afterwards.
const STEP: i64 = 250;
const STEP_CALM: i64 = 500;

/// How long jobs may take once the faults are over: longer than any budget of theirs.
const QUIET_WITHIN: i64 = 3_600_000;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// What is asked for: one target or two, by one of the methods.
fn request(dice: &mut Dice) -> Vec<JobSpec> {
    let method = dice.pick(&[
        Method::Snapshot,
        Method::Snapshot,
        Method::TwoPhase,
        Method::Native,
    ]);
    let targets: &[&str] = if dice.chance(400) {
        &["b", "c"]
    } else {
        &["b"]
    };
    let specs = targets.iter().map(|target| JobSpec {
        method,
        ..spec("a", target)
    });
    specs.collect()
}

struct Run {
    cluster: Cluster,
    watch: Watch,
    specs: Vec<JobSpec>,
    /// What has happened to the coordinator's store.
    store: &'static str,
}

impl Run {
    fn new(seed: u64) -> Self {
        let mut dice = Dice::new(seed ^ 0x5EED);
        let specs = request(&mut dice);
        let patience = Patience {
            retry_for: Duration::from_secs(dice.pick(&[60, 600, 1_800])),
            keep_failed: dice.pick(&[None, Some(Duration::from_secs(900))]),
        };
        let mut cluster = Cluster::new(seed, &["a", "b", "c"], patience);
        cluster.weather = if dice.chance(500) {
            Weather::mild(&mut dice)
        } else {
            Weather::rough(&mut dice)
        };
        Self {
            cluster,
            watch: Watch::default(),
            specs,
            store: "",
        }
    }

    fn step(&mut self, millis: i64) -> Result<(), String> {
        self.cluster.step(millis);
        if let Some(how) = self.cluster.misrestored.take() {
            return Err(how);
        }
        self.watch.look(&mut self.cluster)
    }

    /// Lets everything come to its end.
    fn settle(&mut self) -> Result<(), String> {
        let until = self.cluster.now + QUIET_WITHIN;
        let mut quiet = 0;
        while quiet < 8 {
            self.step(STEP_CALM)?;
            quiet = if is_quiet(&self.cluster) {
                quiet + 1
            } else {
                0
            };
            if self.cluster.now > until {
                let what = unfinished(&self.cluster);
                return Err(format!("it hangs:\n{what}"));
            }
        }
        Ok(())
    }

    fn go(&mut self) -> Result<(), String> {
        while !self.cluster.nodes.iter().all(|n| n.agent.session.is_some()) {
            self.step(STEP)?;
        }
        let init = Order::Init(InitRequest::Copy(self.specs.clone()));
        match self.cluster.order(init) {
            Some(Ok(())) => {}
            other => return Err(format!("init is refused: {other:?}")),
        }
        let storm = self.cluster.weather;
        let window = self.cluster.dice.between(10_000, 90_000);
        let plain = matches!(&self.specs[..], [only] if only.method == Method::Snapshot);
        let mut adopted = None;
        while self.cluster.now < window && adopted.is_none() {
            let specs = self.specs.clone();
            self.cluster.strike(&specs);
            self.step(STEP)?;
            if plain && self.cluster.dice.chance(40) {
                adopted = self.lose_store();
            }
        }
        self.cluster.weather = Weather::calm();
        self.cluster.disk.light(disk::Fuse::Off);
        self.settle()?;
        let names: Vec<String> = self.specs.iter().map(|s| s.target.to_string()).collect();
        let targets: Vec<&str> = names.iter().map(String::as_str).collect();
        judge(&mut self.cluster, &targets)?;
        if let Some(before) = adopted {
            self.has_gone_on(&before)?;
        }
        if storm.is_mild() {
            self.has_outlived(&targets)?;
        }
        let kept = self.kept();
        if !kept.is_empty() {
            self.resume(kept, storm)?;
            judge(&mut self.cluster, &targets)?;
        }
        Ok(())
    }

    /// The store is lost with a job that can go on without it.
    fn lose_store(&mut self) -> Option<Job> {
        let job = self.cluster.adoptable()?;
        let back = self.cluster.now + self.cluster.dice.between(100, 8_000);
        self.cluster.note(|| "the store is lost".to_owned());
        self.cluster.lose_store(back);
        self.store = ", store lost,";
        Some(job)
    }

    /// A job whose coordinator has lost its store ends as if nothing had happened, under its first snapshot.
    fn has_gone_on(&self, before: &Job) -> Result<(), String> {
        let driver = self.cluster.driver.as_ref().unwrap();
        let record = &driver.nodes[&before.spec.target];
        let replication = before.replication().id;
        let same = record.job == Some(before.id) && record.replication() == Some(replication);
        match record.state == NodeState::Synchronized && same {
            true => Ok(()),
            false => Err(format!(
                "job {} does not go on after its store is lost: {} {:?}",
                before.id, record.state, record.error_message
            )),
        }
    }

    /// Short outages end no job, but in the preflight, whose operator waits for it, or where they happen too often.
    fn has_outlived(&self, targets: &[&str]) -> Result<(), String> {
        let excused = ["preflight", "in a row", "already"];
        for end in ends(&self.cluster, targets) {
            let lives = end.starts_with("synchronized") || end.starts_with("diverged");
            if !lives && !excused.iter().any(|why| end.contains(why)) {
                return Err(format!(
                    "nothing was broken for good, but a target is {end}"
                ));
            }
        }
        Ok(())
    }

    fn kept(&self) -> Vec<JobSpec> {
        let jobs = self.cluster.jobs().into_values();
        let kept = jobs.filter(|job| matches!(job.stage, Stage::Kept(_)));
        kept.map(|job| job.spec).collect()
    }

    /// Failed jobs that say so can be resumed, or are cleaned up when their time is over.
    fn resume(&mut self, kept: Vec<JobSpec>, storm: Weather) -> Result<(), String> {
        for spec in &kept {
            let order = Order::Init(InitRequest::Resume(vec![spec.clone()]));
            match self.cluster.order(order) {
                Some(Ok(())) => {}
                other => return Err(format!("a kept job cannot be resumed: {other:?}")),
            }
        }
        self.settle()?;
        for spec in &kept {
            let driver = self.cluster.driver.as_ref().unwrap();
            let record = &driver.nodes[&spec.target];
            if record.state != NodeState::Synchronized {
                return Err(format!(
                    "a resumed job ends {} although nothing fails any more: {:?} (after {storm:?})",
                    record.state, record.error_message
                ));
            }
        }
        Ok(())
    }
}

/// Runs a seed. Returns how its targets ended.
fn simulate(seed: u64, trace: Trace) -> Result<Vec<String>, String> {
    let mut run = Run::new(seed);
    run.cluster.trace = trace;
    let outcome = catch_unwind(AssertUnwindSafe(|| run.go()));
    let outcome = outcome.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Err(format!("panicked: {}", text.unwrap_or_default()))
    });
    match outcome {
        Ok(()) => {
            let names: Vec<String> = run.specs.iter().map(|s| s.target.to_string()).collect();
            let targets: Vec<&str> = names.iter().map(String::as_str).collect();
            let method = run.specs[0].method.name();
            let ends = ends(&run.cluster, &targets);
            Ok(ends
                .iter()
                .map(|end| format!("{method}{} {end}", run.store))
                .collect())
        }
        Err(why) => Err(why),
    }
}

#[test]
fn every_job_ends_by_itself_with_every_row_once_and_nothing_left() {
    let first = number("STEEP_SIM_SEED").unwrap_or(1);
    let count = number("STEEP_SIM_COUNT").unwrap_or(SEEDS);
    let trace = match count {
        1 => Trace::Aloud,
        _ => Trace::Silent,
    };
    let mut failures = Vec::new();
    let mut ended: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for seed in first..first + count {
        match simulate(seed, trace) {
            Ok(ends) => {
                for end in ends {
                    ended.entry(end).or_default().push(seed);
                }
            }
            Err(why) => {
                println!("seed {seed}: {why}");
                failures.push(seed);
            }
        }
    }
    for (end, seeds) in ended {
        println!("{:>6} {end} (seed {})", seeds.len(), seeds[0]);
    }
    assert!(
        failures.is_empty(),
        "{} of {count} seeds failed: {failures:?}; replay one with STEEP_SIM_SEED and STEEP_SIM_COUNT=1",
        failures.len()
    );
}
