//! Limits of the operating system: what runs out is named, waited for, and costs no row.

use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use steep_tests::cluster::Cluster;
use steep_tests::small_disk::SmallDisk;
use steep_tests::{compare, sample, wait};

const LIMIT: Duration = Duration::from_secs(60);

/// More than an agent needs.
const ENOUGH: u64 = 1024;

/// Limits how many files and sockets an agent has open; those that it has stay.
fn limit_files(cluster: &Cluster, node: &str, most: u64) -> Result<()> {
    let agent = cluster.node(node).agent().context("an agent")?.pid();
    let limit = Rlimit {
        current: Some(most),
        maximum: Some(ENOUGH),
    };
    prlimit(
        Pid::from_raw(i32::try_from(agent)?),
        Resource::Nofile,
        limit,
    )?;
    Ok(())
}

/// Waits until the node's status or events have that text.
fn says(cluster: &Cluster, node: &str, text: &str) -> Result<()> {
    wait::until_true(&format!("{node} to say {text:?}"), LIMIT, || {
        let status = cluster.cli(&["status", node])?.text();
        let events = cluster.cli(&["events", node])?.text();
        Ok(status.contains(text) || events.contains(text))
    })
}

#[test]
fn an_agent_without_file_descriptors_says_so_and_goes_on_once_it_has_some() -> Result<()> {
    let cluster = Cluster::builder().nodes(3).start()?;
    let source = cluster.database("node_a");
    sample::create(&source, 1)?;
    for (limited, target) in [("node_b", "node_b"), ("node_a", "node_c")] {
        let init = [
            "init",
            target,
            "--from",
            "node_a",
            "--yes",
            "--max-rate",
            "3MB",
        ];
        let following = cluster.cli_spawn(&init)?;
        cluster.wait_copying(target)?;
        limit_files(&cluster, limited, 5)?;
        says(&cluster, target, "Too many open files")?;
        limit_files(&cluster, limited, ENOUGH)?;
        following.finish(LIMIT)?.expect(0)?;
        compare::rows(&source, &cluster.database(target))?.none()?;
    }
    Ok(())
}

#[test]
fn a_disk_without_inodes_is_said_and_a_snapshot_is_completed_once_it_has_some() -> Result<()> {
    let cluster = Cluster::pair()?;
    sample::create(&cluster.database("node_a"), 1)?;
    let disk = cluster.dir().join("small");
    let Some(mounted) = SmallDisk::mount(&disk, 200)? else {
        eprintln!("NOT TESTED: a disk without inodes needs the right to mount one");
        return Ok(());
    };
    mounted.leave_inodes(8)?;
    let place = disk.join("space/stored");
    let place = place.to_str().context("UTF-8")?;
    let generate = [
        "snapshot", "generate", "--source", "node_a", "--json", "--output", place, "--detach",
    ];
    let begun = cluster.cli(&generate)?.expect(0)?.last_object()?;
    let id = begun["snapshot_id"].as_str().context("an id")?;
    says(&cluster, "node_a", "inode")?;
    mounted.leave_inodes(10_000)?;
    wait::until_true("the snapshot to be complete", LIMIT, || {
        let shown = cluster
            .cli(&["snapshot", "show", id, "--json"])?
            .expect(0)?;
        Ok(shown.last_object()?["state"] == "sealed")
    })?;
    cluster.cli(&["snapshot", "verify", id])?.expect(0)?;
    let apply = [
        "snapshot", "apply", "--target", "node_b", "--yes", "--input", place,
    ];
    cluster.cli(&apply)?.expect(0)?;
    compare::rows(&cluster.database("node_a"), &cluster.database("node_b"))?.none()
}
