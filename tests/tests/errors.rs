//! Every expected error: a clear message, the contract's exit code, and nothing left behind.

use std::time::Duration;

use anyhow::{Context as _, Result};
use steep_tests::cluster::{Cluster, DATABASE, Output};
use steep_tests::ports::Port;
use steep_tests::small_disk::SmallDisk;
use steep_tests::{compare, residue, sample, wait};

/// A waiting job says so, and continues once it can, within this time.
const WAIT_LIMIT: Duration = Duration::from_secs(60);

/// After a refusal, or after a failed job's cleanup.
fn nothing_is_left(cluster: &Cluster) -> Result<()> {
    residue::of_jobs(&cluster.database("node_a"))?.none()?;
    residue::of_everything(&cluster.database("node_b"))?.none()
}

/// Checks the exit code and that the output contains each word.
fn expect(output: Output, code: i32, words: &[&str]) -> Result<()> {
    let output = output.expect(code)?;
    let text = output.text().to_lowercase();
    for word in words {
        anyhow::ensure!(
            text.contains(&word.to_lowercase()),
            "{word:?} is not said: {output}"
        );
    }
    Ok(())
}

#[test]
fn what_makes_no_sense_is_refused_with_exit_code_2() -> Result<()> {
    let cluster = Cluster::pair()?;
    let itself = cluster.cli(&["init", "node_b", "--from", "node_b", "--yes"])?;
    expect(itself, 2, &["node_b", "itself"])?;
    for arguments in [
        ["init", "node_b", "--nonsense", "--yes"],
        ["init", "Not A Name", "--from", "node_a"],
        ["nodes", "--config", "/nonexistent.toml", "--json"],
    ] {
        cluster.cli(&arguments)?.expect(2)?;
    }
    assert_eq!(cluster.state("node_b")?, "uninitialized");
    nothing_is_left(&cluster)
}

#[test]
fn a_node_that_is_not_known_is_named() -> Result<()> {
    let cluster = Cluster::pair()?;
    for arguments in [
        ["init", "node_x", "--from", "node_a", "--yes"],
        ["init", "node_b", "--from", "node_x", "--yes"],
    ] {
        let output = cluster.cli(&arguments)?.expect(2)?;
        assert!(output.text().contains("node_x"), "{output}");
    }
    assert_eq!(cluster.state("node_b")?, "uninitialized");
    nothing_is_left(&cluster)
}

#[test]
fn an_agent_that_is_away_is_named_with_exit_code_6() -> Result<()> {
    for node in ["node_a", "node_b"] {
        let mut cluster = Cluster::pair()?;
        cluster.kill_agent(node)?;
        steep_tests::wait::until_true("the agent to be missed", Duration::from_secs(15), || {
            Ok(cluster
                .node_view(node)?
                .is_some_and(|view| view["agent_online"] == false))
        })?;
        expect(cluster.init(&[])?, 6, &[node, "agent"])?;
        nothing_is_left(&cluster)?;
    }
    Ok(())
}

#[test]
fn a_synchronized_node_is_not_initialised_again() -> Result<()> {
    let cluster = Cluster::pair()?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    sample::create(&source, 1)?;
    cluster.init(&[])?.expect(0)?;
    expect(cluster.init(&[])?, 1, &["node_b", "synchronized"])?;
    expect(cluster.init(&["--force"])?, 1, &["node_b", "synchronized"])?;
    assert_eq!(cluster.state("node_b")?, "synchronized");
    source.sql("UPDATE pgbench_tellers SET tbalance = 1")?;
    cluster.wait_drained("node_a")?;
    compare::rows(&source, &target)?.none()
}

#[test]
fn of_two_inits_at_once_one_runs_and_the_other_is_refused() -> Result<()> {
    let cluster = Cluster::pair()?;
    let source = cluster.database("node_a");
    sample::create(&source, 1)?;
    let first = cluster.init_spawn(&["--max-rate", "5MB"])?;
    let second = cluster.init_spawn(&["--max-rate", "5MB"])?;
    let limit = Duration::from_secs(60);
    let (first, second) = (first.finish(limit)?, second.finish(limit)?);
    let mut codes = [first.code, second.code];
    codes.sort_unstable();
    assert_eq!(codes, [0, 1], "{first}\n{second}");
    compare::rows(&source, &cluster.database("node_b"))?.none()
}

#[test]
fn rows_on_the_target_are_kept_unless_force_is_given() -> Result<()> {
    let cluster = Cluster::pair()?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    for database in [&source, &target] {
        database.sql(
            "CREATE TABLE t (id integer PRIMARY KEY, body text);
             CREATE TABLE u (id integer PRIMARY KEY, t_id integer REFERENCES t)",
        )?;
    }
    source.sql("INSERT INTO t SELECT n, 'source' FROM generate_series(1, 100) AS n")?;
    target.sql("INSERT INTO t VALUES (1, 'mine'); INSERT INTO u VALUES (1, 1)")?;
    expect(cluster.init(&[])?, 1, &["node_b", "--force"])?;
    assert_eq!(target.sql("SELECT body FROM t")?, "mine");
    assert_eq!(target.value::<u32>("SELECT count(*) FROM u")?, 1);
    residue::of_jobs(&source)?.none()?;
    residue::of_jobs(&target)?.none()?;

    // The job waits for a reader mostly outside of the lock's queue, so that others do not wait
    // behind it.
    target.sql("BEGIN; LOCK TABLE t IN ACCESS SHARE MODE; PREPARE TRANSACTION 'reader'")?;
    let forced = cluster.init_spawn(&["--force"])?;
    wait::until_true("the lock to be said", WAIT_LIMIT, || {
        let waiting = cluster.progress("node_b")?["waiting"]["reason"].to_string();
        Ok(waiting.contains("lock timeout"))
    })?;
    assert_eq!(target.sql("SELECT body FROM t")?, "mine");
    target.sql("ROLLBACK PREPARED 'reader'")?;
    forced.finish(WAIT_LIMIT)?.expect(0)?;
    compare::rows(&source, &target)?.none()?;
    compare::schema(&source, &target)?.none()
}

#[test]
fn a_wrong_password_is_said_with_exit_code_6_and_without_the_password() -> Result<()> {
    for node in ["node_a", "node_b"] {
        let mut cluster = Cluster::pair()?;
        sample::create(&cluster.database("node_a"), 1)?;
        cluster.kill_agent(node)?;
        cluster
            .node_mut(node)
            .set_password(Some("not-the-password".to_owned()));
        cluster.start_agent(node)?;
        cluster.wait_online(&["node_a", "node_b"])?;
        let output = cluster.init(&[])?;
        assert!(!output.text().contains("not-the-password"), "{output}");
        expect(output, 6, &[node, "password"])?;
        nothing_is_left(&cluster)?;
        let log = std::fs::read_to_string(cluster.dir().join(format!("agent-{node}.log")))?;
        assert!(!log.contains("not-the-password"));
    }
    Ok(())
}

#[test]
fn a_postgresql_that_is_down_is_named_with_exit_code_6() -> Result<()> {
    for node in ["node_a", "node_b"] {
        let mut cluster = Cluster::pair()?;
        sample::create(&cluster.database("node_a"), 1)?;
        cluster.node_mut(node).server_mut().stop()?;
        expect(cluster.init(&[])?, 6, &[node])?;
        assert_ne!(cluster.state("node_b")?, "synchronized");
        cluster.node_mut(node).server_mut().restart()?;
        nothing_is_left(&cluster)?;
        cluster.init(&[])?.expect(0)?;
        compare::rows(&cluster.database("node_a"), &cluster.database("node_b"))?.none()?;
    }
    Ok(())
}

#[test]
fn agents_that_do_not_reach_each_other_are_told_apart_from_the_rest() -> Result<()> {
    let mut cluster = Cluster::pair()?;
    sample::create(&cluster.database("node_a"), 1)?;
    // Reserved, so that nothing else starts to listen there.
    let nobody = Port::take()?;
    cluster.kill_agent("node_a")?;
    cluster
        .node_mut("node_a")
        .set_advertise(Some(nobody.address()));
    cluster.start_agent("node_a")?;
    cluster.wait_online(&["node_a", "node_b"])?;
    let output = cluster.init(&[])?;
    assert!(output.took < Duration::from_secs(30), "{output}");
    expect(output, 6, &["UDP", &nobody.address()])?;
    nothing_is_left(&cluster)
}

#[test]
fn a_source_that_cannot_replicate_is_refused_with_what_to_change() -> Result<()> {
    let cluster = Cluster::builder()
        .setting("node_a", "wal_level", "replica")
        .start()?;
    sample::create(&cluster.database("node_a"), 1)?;
    let doctor = cluster.cli(&["doctor", "node_b", "--from", "node_a"])?;
    expect(doctor, 1, &["wal_level", "logical", "node_a"])?;
    expect(cluster.init(&[])?, 1, &["wal_level"])?;
    nothing_is_left(&cluster)
}

#[test]
fn a_different_schema_stops_strict_mode_with_exit_code_3_before_anything_changes() -> Result<()> {
    let cluster = Cluster::pair()?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    source.sql("CREATE TABLE t (id integer PRIMARY KEY, body text, more numeric)")?;
    target.sql("CREATE TABLE t (id bigint PRIMARY KEY, body text)")?;
    let before = compare::schema(&source, &target)?;
    expect(
        cluster.init(&[])?,
        3,
        &["t", "id", "more", "integer", "bigint"],
    )?;
    assert_eq!(compare::schema(&source, &target)?, before);
    residue::of_jobs(&source)?.none()?;
    residue::of_jobs(&target)?.none()
}

#[test]
fn a_full_disk_on_the_target_fails_the_job_and_leaves_nothing() -> Result<()> {
    let cluster = Cluster::pair()?;
    let disk = cluster.node("node_b").server().dir().join("small");
    let Some(_mounted) = SmallDisk::mount(&disk, 60)? else {
        eprintln!("NOT TESTED: a disk that is full needs the right to mount one");
        return Ok(());
    };
    sample::pgbench(&cluster.database("node_a"), 10)?;
    let maintenance = cluster.node("node_b").server().database("postgres");
    maintenance.sql(&format!(
        "CREATE TABLESPACE small LOCATION '{}'",
        disk.join("space").display()
    ))?;
    cluster
        .node("node_b")
        .server()
        .database("postgres")
        .sql(&format!(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{DATABASE}'"
        ))?;
    maintenance.sql(&format!("ALTER DATABASE {DATABASE} SET TABLESPACE small"))?;

    expect(cluster.init(&[])?, 1, &["node_b", "space"])?;
    assert_eq!(cluster.state("node_b")?, "failed");
    cluster
        .cli(&["init", "cancel", "--node", "node_b", "--yes"])?
        .expect(0)?;
    nothing_is_left(&cluster)
}

#[test]
fn a_full_disk_of_the_coordinator_is_said_and_waited_for_and_stops_no_rows() -> Result<()> {
    let mut cluster = Cluster::pair()?;
    sample::create(&cluster.database("node_a"), 2)?;
    cluster.stop_coordinator()?;
    let data = cluster.dir().join("coordinator");
    let Some(_mounted) = SmallDisk::mount(&data, 8)? else {
        eprintln!("NOT TESTED: a disk that is full needs the right to mount one");
        return Ok(());
    };
    cluster.start_coordinator()?;
    cluster.wait_online(&["node_a", "node_b"])?;
    let following = cluster.init_spawn(&["--max-rate", "2MB"])?;
    cluster.wait_copying("node_b")?;
    let filler = data.join("filler");
    // The last write fails, when there is no room left.
    drop(std::fs::write(&filler, vec![0; 16 << 20]));
    let refused = wait::until("the coordinator to say it", WAIT_LIMIT, || {
        let output = cluster.cli(&["nodes"])?;
        Ok((output.code != 0).then_some(output))
    })?;
    expect(refused, 1, &["disk is full", "--data-dir"])?;
    let target = cluster.database("node_b");
    let size = || target.value::<u64>("SELECT pg_database_size(current_database())");
    let before = size()?;
    wait::until_true("rows to go on arriving", WAIT_LIMIT, || {
        Ok(size()? > before + 500_000)
    })?;
    std::fs::remove_file(filler)?;
    following.finish(WAIT_LIMIT)?.expect(0)?;
    assert_eq!(cluster.state("node_b")?, "synchronized");
    let coordinator = cluster.coordinator().context("it runs")?;
    for event in ["store.full", "store.writable"] {
        anyhow::ensure!(!coordinator.events(event)?.is_empty(), "{event}");
    }
    compare::rows(&cluster.database("node_a"), &target)?.none()
}

#[test]
fn without_a_coordinator_or_the_right_certificate_the_exit_code_is_6() -> Result<()> {
    let mut cluster = Cluster::pair()?;
    let certs = cluster.dir().join("certs");
    let agents = |file: &str| certs.join(format!("node_a.{file}")).display().to_string();
    let (cert, key) = (agents("pem"), agents("key"));
    cluster
        .cli(&["nodes", "--cert", &cert, "--key", &key])?
        .expect(6)?;
    cluster.stop_coordinator()?;
    let output = cluster.cli(&["nodes"])?;
    assert!(output.took < Duration::from_secs(30), "{output}");
    expect(output, 6, &["coordinator"])
}
