//! State of a demonstration kept by `--keep`: one directory per user, and a list of processes to
//! stop.

use std::fs;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use steep_tests::cluster::Cluster;
use steep_tests::usage;

use super::psql;

/// Within this time daemons drain and servers write a checkpoint.
const STOP_LIMIT: Duration = Duration::from_secs(45);

/// Creates the directory of a kept demonstration.
pub(super) fn directory() -> Result<PathBuf> {
    let dir = path();
    if dir.exists() {
        bail!(
            "a demonstration is kept in {}: stop it with cargo xtask demo --stop",
            dir.display()
        );
    }
    // The servers' account may enter it, but nobody may list it.
    fs::DirBuilder::new()
        .mode(0o711)
        .create(&dir)
        .with_context(|| format!("cannot create {}", dir.display()))?;
    Ok(dir)
}

/// Keeps the cluster running, and prints how to use and stop it.
pub(super) fn leave(cluster: &mut Cluster) -> Result<()> {
    let processes: Vec<Value> = cluster
        .release()
        .into_iter()
        .map(|(name, pid)| Ok(json!({"name": name, "pid": pid, "begun": usage::begun(pid)?})))
        .collect::<Result<_>>()?;
    fs::write(list(), serde_json::to_string_pretty(&processes)?)?;
    println!("Everything is still running. To use it:\n");
    for (name, value) in cluster.cli_environment() {
        println!("  export {name}={value}");
    }
    println!("  export PATH={}:$PATH", cluster.binaries().dir().display());
    println!("  steep-repl nodes");
    println!("  steep-repl events node_b\n");
    for node in ["node_a", "node_b"] {
        println!("  {}", psql(cluster, node));
    }
    println!("\nLogs are in {}.", cluster.dir().display());
    println!("To stop it and remove it: cargo xtask demo --stop");
    Ok(())
}

/// Stops and removes what was kept. A directory without a list, from a demonstration that failed
/// midway, is removed too.
pub(super) fn stop() -> Result<()> {
    let dir = path();
    let Ok(meta) = fs::symlink_metadata(&dir) else {
        println!("Nothing is kept.");
        return Ok(());
    };
    if meta.uid() != rustix::process::getuid().as_raw() || !meta.is_dir() {
        bail!("{} belongs to somebody else", dir.display());
    }
    let text = fs::read_to_string(list()).unwrap_or_else(|_| "[]".to_owned());
    let processes: Vec<Value> = serde_json::from_str(&text).context("the list of processes")?;
    // In the order of the list: the coordinator, then each agent before its server.
    for process in &processes {
        let pid = process["pid"]
            .as_u64()
            .and_then(|pid| u32::try_from(pid).ok());
        let name = process["name"].as_str().unwrap_or("a process");
        if let Some(pid) = pid
            && usage::begun(pid).ok() == process["begun"].as_u64()
        {
            println!("Stopping {name}");
            stop_process(pid);
        }
    }
    fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))?;
    println!("Stopped and removed.");
    Ok(())
}

/// SIGINT is a fast shutdown for PostgreSQL and a drain for the daemons.
fn stop_process(pid: u32) {
    let Some(target) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
        return;
    };
    for signal in [Signal::INT, Signal::KILL] {
        let _ = kill_process(target, signal);
        let begun = Instant::now();
        while begun.elapsed() < STOP_LIMIT {
            if !usage::is_alive(pid) {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn path() -> PathBuf {
    let uid = rustix::process::getuid().as_raw();
    PathBuf::from("/tmp").join(format!("steep-repl-demo-{uid}"))
}

fn list() -> PathBuf {
    path().join("processes.json")
}
