//! Measures the delay of updates: the intervals between updates of a job's progress, and the time
//! from a part's commit to a watcher's line.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use steep_tests::cluster::{CLI_LIMIT, Cluster, Running};
use steep_tests::paths::Binaries;
use steep_tests::pg::Grouping;
use steep_tests::{sample, wait};

/// Slow enough for some hundred updates and several parts.
const RATE: &str = "3MB";

/// Runs one job and prints both.
pub(super) fn run(binaries: Binaries) -> Result<()> {
    let cluster = Cluster::builder()
        .grouping(Grouping::Own)
        .binaries(binaries)
        .start()?;
    sample::create(&cluster.database("node_a"), 2)?;
    let watching = cluster.cli_spawn(&["watch", "--json"])?;
    let mut init = cluster.init_spawn(&["--max-rate", RATE])?;
    let target = cluster.database("node_b");
    let ledger = "SELECT count(to_regclass('steep_repl.copy_ledger'))";
    let committed = "SELECT coalesce(sum(rows), 0)::bigint FROM steep_repl.copy_ledger
                     WHERE finished_at IS NOT NULL";
    let (mut updates, mut delays) = (Vec::new(), Vec::new());
    let mut commit: Option<(u64, Instant)> = None;
    wait::until_true("the end of the job", CLI_LIMIT, || {
        let ended = !init.is_running()?;
        let seen = init.stdout_so_far()?.matches("\"overall_percent\"").count();
        updates.resize(seen.max(updates.len()), Instant::now());
        let told = rows_told(&watching)?;
        match commit {
            Some((rows, at)) if told >= rows => {
                delays.push(at.elapsed());
                commit = None;
            }
            None if target.value::<u32>(ledger)? > 0 => {
                let rows = target.value(committed)?;
                commit = (rows > told).then(|| (rows, Instant::now()));
            }
            _ => {}
        }
        Ok(ended)
    })?;
    init.finish(CLI_LIMIT)?.expect(0)?;
    let pauses = updates.windows(2).map(|pair| pair[1] - pair[0]).collect();
    print("between updates of progress", pauses)?;
    print("from a commit to the watcher", delays)
}

/// The rows that a watcher has received so far.
fn rows_told(watching: &Running) -> Result<u64> {
    let text = watching.stdout_so_far()?;
    let views = text
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let rows = views.filter(|view| view["overall_percent"].is_number());
    let rows = rows.filter_map(|view| view["rows_copied"].as_u64());
    Ok(rows.max().unwrap_or(0))
}

fn print(what: &str, mut times: Vec<Duration>) -> Result<()> {
    times.sort_unstable();
    let longest = times.last().with_context(|| format!("no time {what}"))?;
    let median = times[times.len() / 2];
    println!("{what:<30} median {median:>8.0?}, longest {longest:>8.0?}");
    Ok(())
}
