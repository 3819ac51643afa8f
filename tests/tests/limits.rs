//! Limits of the operating system: what runs out is named, waited for, and costs no row.

use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use steep_tests::cluster::Cluster;
use steep_tests::limits::Limits;
use steep_tests::memory_group::MemoryGroup;
use steep_tests::pg::Database;
use steep_tests::small_disk::SmallDisk;
use steep_tests::{compare, sample, wait};

const LIMIT: Duration = Duration::from_secs(60);

/// More than an agent needs.
const ENOUGH: u64 = 1024;

const MEGABYTE: u64 = 1 << 20;

const GIGABYTE: u64 = 1 << 30;

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
    let begun = cluster.generated(&place, &["--detach"])?;
    let id = begun["snapshot_id"].as_str().context("an id")?;
    says(&cluster, "node_a", "inode")?;
    mounted.leave_inodes(10_000)?;
    wait::until_true("the snapshot to be complete", LIMIT, || {
        Ok(cluster.show_snapshot(id)?["state"] == "sealed")
    })?;
    cluster.cli(&["snapshot", "verify", id])?.expect(0)?;
    cluster.apply(&["node_b"], &place, &[])?.expect(0)?;
    compare::rows(&cluster.database("node_a"), &cluster.database("node_b"))?.none()
}

/// The least `--memory-mib` for rows.
const MEMORY_MIB: u64 = 16;

/// What an agent needs besides: its event loop, QUIC, and the `pg_dump` that it runs. The pages of its program belong
/// to whoever read them first.
const BASE_MIB: u64 = 6;

/// Tables of one row each of that size, which hardly packs.
fn large_rows(source: &Database, tables: u32, megabytes: u32) -> Result<()> {
    let sql = format!(
        "DO $$
         DECLARE noise text := (SELECT string_agg(md5(n::text), '') FROM generate_series(1, 31250) AS n);
         BEGIN
             FOR n IN 1..{tables} LOOP
                 EXECUTE format('CREATE TABLE large_%s (id integer PRIMARY KEY, body text STORAGE EXTERNAL)', n);
                 EXECUTE format('INSERT INTO large_%s VALUES (1, repeat($1, {megabytes}))', n) USING noise;
             END LOOP;
         END $$"
    );
    source.sql(&sql).map(drop)
}

/// Starts a node's agent anew, in that group.
fn restart_within(cluster: &mut Cluster, node: &str, group: &MemoryGroup) -> Result<()> {
    cluster.stop_agent(node)?;
    let limits = Limits::default().within(group);
    cluster.node_mut(node).set_limits(limits);
    cluster.start_agent(node)?;
    cluster.wait_online(&[node])
}

#[test]
fn eight_workers_copy_large_rows_with_the_memory_that_is_set_and_no_more() -> Result<()> {
    let (Some(at_source), Some(at_target)) = (MemoryGroup::make()?, MemoryGroup::make()?) else {
        return Ok(());
    };
    let groups = [("node_a", &at_source), ("node_b", &at_target)];
    let mut builder = Cluster::builder();
    for (node, _) in groups {
        builder = builder.agent_argument(node, &format!("--memory-mib={MEMORY_MIB}"));
    }
    let mut cluster = builder.start()?;
    for (node, group) in groups {
        group.limit((MEMORY_MIB + BASE_MIB) * MEGABYTE)?;
        restart_within(&mut cluster, node, group)?;
    }
    let source = cluster.database("node_a");
    large_rows(&source, 8, 20)?;
    let copying = cluster.init_spawn(&["--parallel", "8"])?;
    copying.finish(LIMIT * 2)?.expect(0)?;
    for (node, group) in groups {
        let (peak, killed) = (group.peak()?, group.killed()?);
        eprintln!("{node}: {peak} bytes at most");
        assert_eq!(killed, 0, "{node}");
        assert_eq!(group.times_at_limit()?, 0, "{node} had {peak} bytes");
    }
    compare::rows(&source, &cluster.database("node_b"))?.none()
}

/// Has a copy by one worker go on with eight, once the agent can have no more memory than it has.
fn starve(cluster: &Cluster, group: &MemoryGroup, target: &str) -> Result<()> {
    wait::until_true("the limit to be set", LIMIT, || group.limit(group.used()?))?;
    let adjust = [
        "init",
        "adjust",
        "--node",
        target,
        "--max-rate",
        "none",
        "--parallel",
        "8",
    ];
    cluster.cli(&adjust)?.expect(0)?;
    wait::until_true("the kernel to kill the agent", LIMIT, || {
        Ok(group.killed()? > 0)
    })
}

#[test]
fn an_agent_that_the_kernel_kills_for_want_of_memory_is_waited_for() -> Result<()> {
    let (Some(at_target), Some(at_source)) = (MemoryGroup::make()?, MemoryGroup::make()?) else {
        return Ok(());
    };
    let mut cluster = Cluster::builder().nodes(3).start()?;
    let source = cluster.database("node_a");
    large_rows(&source, 8, 4)?;
    let jobs = [
        ("node_b", &at_target, "node_b"),
        ("node_a", &at_source, "node_c"),
    ];
    for (starved, group, target) in jobs {
        restart_within(&mut cluster, starved, group)?;
        let init = [
            "init",
            target,
            "--from",
            "node_a",
            "--yes",
            "--max-rate",
            "1MB",
            "--parallel",
            "1",
        ];
        let following = cluster.cli_spawn(&init)?;
        cluster.wait_copying(target)?;
        starve(&cluster, group, target)?;
        wait::until_true("its job to wait for the agent", LIMIT, || {
            let view = cluster.node_view(target)?.context("a node")?;
            Ok(view["waiting"]["node_id"] == starved && view["waiting"]["what"] == "agent")
        })?;
        // It has ended already.
        cluster.kill_agent(starved)?;
        cluster.node_mut(starved).set_limits(Limits::default());
        cluster.start_agent(starved)?;
        following.finish(LIMIT)?.expect(0)?;
        compare::rows(&source, &cluster.database(target))?.none()?;
    }
    Ok(())
}

/// Far more than there are descriptors.
const TABLES: u32 = 1_000;

#[test]
fn many_tables_need_no_more_file_descriptors_than_few() -> Result<()> {
    let limits = Limits::default().files(256);
    let cluster = Cluster::builder().limits(limits).start()?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    sample::small_tables(&source, 1..=TABLES)?;
    cluster.init(&[])?.expect(0)?;
    compare::rows(&source, &target)?.none()?;
    assert_eq!(compare::contents(&target)?.len(), usize::try_from(TABLES)?);
    Ok(())
}

/// A cluster whose source's agent has its `--data-dir` on a disk of its own, if one can be mounted.
fn with_small_data_dir(nodes: usize) -> Result<Option<(Cluster, SmallDisk)>> {
    let mut cluster = Cluster::builder().nodes(nodes).start()?;
    cluster.stop_agent("node_a")?;
    let data = cluster.dir().join("agent-node_a");
    let Some(disk) = SmallDisk::mount(&data, 1024)? else {
        eprintln!("NOT TESTED: a data directory that is full needs the right to mount a disk");
        return Ok(None);
    };
    disk.leave_bytes(0)?;
    cluster.start_agent("node_a")?;
    cluster.wait_online(&["node_a"])?;
    Ok(Some((cluster, disk)))
}

/// Begins to copy slowly through a spool, while whatever stands in its way.
fn begin_spooled(cluster: &Cluster, target: &str) -> Result<()> {
    let init = [
        "init",
        target,
        "--from",
        "node_a",
        "--method",
        "two-phase",
        "--max-rate",
        "2MB",
        "--parallel",
        "1",
        "--yes",
        "--detach",
    ];
    cluster.cli(&init)?.expect(0)?;
    Ok(())
}

/// Ends a copy fast, compares, and waits until nothing is left of a spool.
fn end_spooled(cluster: &Cluster, target: &str) -> Result<()> {
    let adjust = ["init", "adjust", "--node", target, "--max-rate", "none"];
    cluster.cli(&adjust)?.expect(0)?;
    cluster.wait_state(target, &["synchronized"], LIMIT)?;
    compare::rows(&cluster.database("node_a"), &cluster.database(target))?.none()?;
    let spool = cluster.dir().join("agent-node_a").join("spool");
    wait::until_true("the spool to be empty", LIMIT, || {
        let left = std::fs::read_dir(&spool).map(|mut all| all.next().is_some());
        Ok(!left.unwrap_or_default())
    })
}

fn wait_sealed(cluster: &Cluster) -> Result<()> {
    wait::until_true("the spool to be complete", LIMIT, || {
        let list = cluster.cli(&["snapshot", "list", "--json"])?.expect(0)?;
        Ok(list.stdout.contains("\"sealed\""))
    })
}

#[test]
fn a_data_directory_without_room_is_said_and_its_spool_is_used_once_it_has_some() -> Result<()> {
    let Some((cluster, disk)) = with_small_data_dir(3)? else {
        return Ok(());
    };
    sample::create(&cluster.database("node_a"), 2)?;
    begin_spooled(&cluster, "node_b")?;
    says(&cluster, "node_b", "no room for a spool on node_a")?;
    says(&cluster, "node_b", "snapshot.not_spooled")?;
    cluster.wait_copying("node_b")?;
    end_spooled(&cluster, "node_b")?;

    disk.leave_bytes(GIGABYTE)?;
    begin_spooled(&cluster, "node_c")?;
    wait_sealed(&cluster)?;
    end_spooled(&cluster, "node_c")
}

/// Begins to copy slowly, fills the disk once there are rows in a spool on it, and returns when the job says so.
fn fill_under_spool(cluster: &Cluster, disk: &SmallDisk, target: &str) -> Result<()> {
    disk.leave_bytes(GIGABYTE)?;
    begin_spooled(cluster, target)?;
    wait::until_true("rows in a spool", LIMIT, || Ok(disk.used()? > MEGABYTE / 4))?;
    disk.leave_bytes(0)?;
    says(cluster, target, "the spool on node_a could not be filled")
}

#[test]
fn a_data_directory_that_fills_up_under_a_spool_stops_no_rows_and_is_used_again() -> Result<()> {
    let Some((cluster, disk)) = with_small_data_dir(2)? else {
        return Ok(());
    };
    sample::create(&cluster.database("node_a"), 4)?;
    fill_under_spool(&cluster, &disk, "node_b")?;
    let copied = || -> Result<_> { Ok(cluster.progress("node_b")?["bytes_copied"].as_u64()) };
    let before = copied()?;
    wait::until_true("rows to arrive meanwhile", LIMIT, || Ok(copied()? > before))?;

    disk.leave_bytes(GIGABYTE)?;
    wait_sealed(&cluster)?;
    assert_eq!(cluster.state("node_b")?, "copying");
    end_spooled(&cluster, "node_b")
}

#[test]
fn a_job_whose_snapshot_ends_while_its_spool_is_full_takes_another_one() -> Result<()> {
    let Some((mut cluster, disk)) = with_small_data_dir(2)? else {
        return Ok(());
    };
    sample::create(&cluster.database("node_a"), 2)?;
    fill_under_spool(&cluster, &disk, "node_b")?;
    cluster.kill_agent("node_a")?;
    wait::until_true("the job to wait for the agent", LIMIT, || {
        let view = cluster.node_view("node_b")?.context("a node")?;
        Ok(view["waiting"]["node_id"] == "node_a")
    })?;
    cluster.start_agent("node_a")?;
    let coordinator = cluster.coordinator().context("it runs")?;
    wait::until_true("the loss to be said", LIMIT, || {
        Ok(!coordinator.events("snapshot.lost")?.is_empty())
    })?;
    end_spooled(&cluster, "node_b")
}
