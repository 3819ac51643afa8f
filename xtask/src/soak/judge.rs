//! The end of a round: whether every guarantee held.

use std::fmt;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use steep_tests::logs::Documented;
use steep_tests::{compare, residue, wait};

use super::ledger::Ledger;
use super::load;
use super::plan::{Method, Round};
use super::rounds;
use super::watch::{self, Position};
use super::world::{SOURCE, World};

/// A job whose faults are over ends within this time, or it hangs.
const END_LIMIT: Duration = Duration::from_secs(300);

/// Cleanups, and changes of a node's state.
const LIMIT: Duration = Duration::from_secs(90);

/// The follower learns of the end within this time.
const FOLLOWER_LIMIT: Duration = Duration::from_secs(90);

/// How often a failed job is resumed.
const RESUMES_MAX: u32 = 2;

/// Lines of a target's server that only a change that came twice, or a copy without a row, can cause.
const CONFLICTS: [&str; 3] = [
    "conflict detected on relation",
    "duplicate key value",
    "PANIC:",
];

/// How the jobs of a round ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum End {
    Synchronized,
    /// Failed with a cause, and synchronized after `--resume`.
    Resumed,
    /// The preflight, which waits for ten seconds only, refused it; synchronized by the next `init`.
    Refused,
}

/// What a target has after its last job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rows {
    Kept,
    Removed,
}

/// Waits for the end of all jobs and checks everything. Returns the transactions written, too.
///
/// # Errors
/// The guarantee that did not hold.
pub(super) fn end(world: &mut World, round: &Round, ledger: &mut Ledger) -> Result<(End, u64)> {
    let method = round.method;
    let mut end = End::Synchronized;
    for target in method.targets() {
        end = end.max(synchronized(world, target, round, ledger)?);
    }
    followed(world, end)?;
    let load = world.load.take().context("the load runs")?;
    let transactions = load.stop()?;
    world.cluster.wait_drained(SOURCE)?;
    let source = world.cluster.database(SOURCE);
    load::check_sums(&source).context("on the source")?;
    for target in method.targets() {
        let database = world.cluster.database(target);
        compare::rows(&source, &database)?
            .none()
            .with_context(|| format!("{SOURCE} and {target} differ"))?;
        load::check_sums(&database).with_context(|| format!("on {target}"))?;
        let count = "SELECT count(*) FROM pg_subscription";
        ensure!(
            database.value::<u32>(count)? == 1,
            "{target} has several subscriptions"
        );
        let state = world.cluster.state(target)?;
        ensure!(
            state == "synchronized",
            "{target} is {state} after all of it"
        );
    }
    Ledger::tables(world)?;
    logs(world, method)?;
    unsubscribe(world, method)?;
    nothing_is_left(world, method, Rows::Kept)?;
    Ok((end, transactions))
}

/// Waits until that target is synchronized; resumes a job that failed.
fn synchronized(world: &World, target: &str, round: &Round, ledger: &mut Ledger) -> Result<End> {
    let mut end = End::Synchronized;
    for _ in 0..=RESUMES_MAX {
        let view = wait_end(world, target, ledger)?;
        if view["state"] == "synchronized" {
            return Ok(end);
        }
        let cause = view["error_message"].as_str().unwrap_or_default();
        ensure!(!cause.is_empty(), "{target} failed without a cause: {view}");
        eprintln!("  {target} failed: {cause}");
        let command = if view["kept_until"].is_null() {
            let phase = last_phase(world, target);
            ensure!(
                phase == "preflight",
                "{target} failed in phase {phase} and keeps nothing to resume from: {view}"
            );
            end = End::Refused;
            rounds::job(world, round, &[target])
        } else {
            end = end.max(End::Resumed);
            let resume = [
                "init", target, "--from", SOURCE, "--yes", "--json", "--resume",
            ];
            resume.map(str::to_owned).to_vec()
        };
        let words: Vec<&str> = command.iter().map(String::as_str).collect();
        // How it ends is seen below.
        world.cluster.cli(&words)?;
    }
    bail!("{target} failed again after {RESUMES_MAX} attempts to resume it")
}

/// The node once its job has ended. A node may be diverged for as long as nobody could look at it.
fn wait_end(world: &World, target: &str, ledger: &mut Ledger) -> Result<Value> {
    let mut view = Value::Null;
    let mut looked = Instant::now();
    let ended = wait::until(
        &format!("the end of the job of {target}"),
        END_LIMIT,
        || {
            if looked.elapsed() > Duration::from_secs(1) {
                ledger.look(world)?;
                looked = Instant::now();
            }
            view = world.cluster.node_view(target)?.unwrap_or_default();
            // A coordinator that has lost its store knows the replica and not its job.
            let ended = view["state"] == "synchronized"
                || view["state"] == "failed" && view["init_started_at"].is_string();
            Ok(ended.then(|| view.clone()))
        },
    );
    ended.with_context(|| format!("it is {view}"))
}

fn last_phase(world: &World, target: &str) -> String {
    let lines = watch::lines(&world.coordinator_log(), Position::default());
    let failed = lines.iter().rev().map(|(line, _)| line);
    failed
        .filter(|line| line["event"] == "init.failed" && line["node_id"] == target)
        .find_map(|line| line["phase"].as_str().map(str::to_owned))
        .unwrap_or_default()
}

/// The command that follows the job, if it was not ended, reports the same end.
fn followed(world: &mut World, end: End) -> Result<()> {
    let Some(follower) = world.follower.take() else {
        return Ok(());
    };
    let done = follower.finish(FOLLOWER_LIMIT)?;
    ensure!(
        done.code == 0 || end != End::Synchronized,
        "the command that follows the job did not see its end: {done}"
    );
    Ok(())
}

/// Reads every log.
fn logs(world: &World, method: Method) -> Result<()> {
    Documented::read()?
        .check_all(&world.dir)
        .context("a log differs from docs/logs.md")?;
    for entry in fs::read_dir(&world.dir)? {
        let path = entry?.path();
        if path
            .extension()
            .is_some_and(|end| end == "log" || end == "err")
        {
            let text = String::from_utf8_lossy(&fs::read(&path)?).into_owned();
            let panic = text.lines().find(|line| line.contains("panicked at"));
            ensure!(panic.is_none(), "{}: {panic:?}", path.display());
        }
    }
    for target in method.targets() {
        let log = world.cluster.node(target).server().log();
        let text = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
        let told = |line: &&str| CONFLICTS.iter().any(|conflict| line.contains(conflict));
        if let Some(line) = text.lines().find(told) {
            bail!("{}: {line}", log.display());
        }
    }
    Ok(())
}

/// Ends the replication of every target: a node whose subscription is disabled can be cancelled.
fn unsubscribe(world: &World, method: Method) -> Result<()> {
    for target in method.targets() {
        world.cluster.database(target).sql(
            "SELECT format('ALTER SUBSCRIPTION %I DISABLE', subname) FROM pg_subscription \\gexec",
        )?;
    }
    for target in method.targets() {
        world
            .cluster
            .wait_state(target, &["diverged"], LIMIT)
            .context("its subscription is disabled")?;
        let cancel = ["init", "cancel", "--node", target, "--yes"];
        let mut done = world.cluster.cli(&cancel)?;
        // The replica's job is forgotten with the store that had it.
        if done.code != 0 && done.text().contains("--force-cleanup") {
            done = world
                .cluster
                .cli(&[&cancel[..], &["--force-cleanup"]].concat())?;
        }
        // The silence of an agent that came back elsewhere may just have been noticed: then it cleans up later.
        if done.code != 0 && !done.text().contains("cleanup on") {
            bail!("{done}");
        }
        world
            .cluster
            .wait_state(target, &["uninitialized"], LIMIT)
            .context("its cancel ends by itself")?;
    }
    if method == Method::Stored {
        let listed = world.cluster.cli(&["snapshot", "list", "--json"])?;
        let listed = listed.expect(0)?.last_object()?;
        for snapshot in listed["snapshots"].as_array().into_iter().flatten() {
            let id = snapshot["snapshot_id"].as_str().unwrap_or_default();
            world
                .cluster
                .cli(&["snapshot", "delete", id, "--yes"])?
                .expect(0)?;
        }
    }
    Ok(())
}

/// Checks that no server has anything of a job any more. A snapshot that jobs share is removed after them.
///
/// # Errors
/// What is left.
pub(super) fn nothing_is_left(world: &World, method: Method, rows: Rows) -> Result<()> {
    let mut left = Vec::new();
    let gone = wait::until_true("everything to be removed", LIMIT, || {
        left.clear();
        left.extend(residue::of_jobs(&world.cluster.database(SOURCE))?.0);
        for target in method.targets() {
            let target = world.cluster.database(target);
            left.extend(match rows {
                Rows::Kept => residue::of_jobs(&target)?.0,
                Rows::Removed => residue::of_everything(&target)?.0,
            });
        }
        let spool = world.dir.join(format!("agent-{SOURCE}")).join("spool");
        let files = fs::read_dir(spool).into_iter().flatten().flatten();
        left.extend(files.map(|file| format!("{}", file.path().display())));
        Ok(left.is_empty())
    });
    gone.with_context(|| format!("left over: {}", left.join(", ")))
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Synchronized => "synchronized",
            Self::Resumed => "failed, resumed, synchronized",
            Self::Refused => "refused by the preflight, then synchronized",
        })
    }
}
