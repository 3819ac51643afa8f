//! A target with existing partitioned tables loads them without their indexes and has all of them
//! again afterwards: attached, named, valid and commented on as before.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use steep_tests::cluster::Cluster;
use steep_tests::pg::{Database, Installation};
use steep_tests::{compare, partitioned, residue, sample, wait};

/// Everything ends within this time.
const LIMIT: Duration = Duration::from_secs(60);

/// Indexes of that table, quoted as needed, including invalid ones.
fn indexes_of(database: &Database, table: &str) -> Result<u32> {
    database.value(&format!(
        "SELECT count(*) FROM pg_index WHERE indrelid = '{table}'::regclass"
    ))
}

/// The same for a table of [`partitioned`].
fn indexes_on(database: &Database, table: &str) -> Result<u32> {
    indexes_of(database, &format!("\"Parted S\".{table}"))
}

/// What must be equal before and after.
fn all_of(database: &Database) -> Result<(String, Vec<String>)> {
    Ok((compare::dump(database)?, partitioned::catalog(database)?))
}

fn same(before: &(String, Vec<String>), after: &(String, Vec<String>)) -> Result<()> {
    for line in &before.1 {
        ensure!(after.1.contains(line), "gone: {line}");
    }
    for line in &after.1 {
        ensure!(before.1.contains(line), "new: {line}");
    }
    ensure!(before.0 == after.0, "{}\n--- became\n{}", before.0, after.0);
    Ok(())
}

/// Later changes on the source arrive on the target.
fn changes_arrive(cluster: &Cluster) -> Result<()> {
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    partitioned::change(&source)?;
    cluster.wait_drained("node_a")?;
    compare::rows(&source, &target)?.none()
}

fn pair_of(installation: &Installation) -> Result<Cluster> {
    Cluster::builder()
        .postgres("node_a", installation)
        .postgres("node_b", installation)
        .start()
}

fn load_and_compare(major: u32) -> Result<()> {
    let installation = match Installation::of_major(major) {
        Ok(found) => found,
        Err(error) if major < 17 => {
            eprintln!("NOT TESTED: PostgreSQL {major} is not on this machine: {error:#}");
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    let cluster = pair_of(&installation)?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    partitioned::create(&source)?;
    partitioned::create(&target)?;
    partitioned::fill(&source, 6000)?;
    // Rows to be replaced.
    partitioned::fill(&target, 1000)?;
    let before = all_of(&target)?;

    let following = cluster.init_spawn(&["--force", "--max-rate", "2MB"])?;
    cluster.wait_copying("node_b")?;
    for gone in [
        "\"Root t\"",
        "\"Eu\"",
        "eu_low",
        "us",
        "asia",
        "other",
        "visit",
        "visit_1",
        "item",
    ] {
        assert_eq!(indexes_on(&target, gone)?, 0, "{gone}");
    }
    if major >= 17 {
        assert_eq!(
            indexes_on(&target, "booking_1")?,
            1,
            "an exclusion constraint"
        );
    }
    assert_eq!(indexes_on(&target, "counted_1")?, 1, "the key is needed");
    assert_eq!(indexes_on(&target, "below_1")?, 1, "a constraint below");
    assert_eq!(indexes_on(&target, "no_partitions")?, 1);
    if major >= 18 {
        let half = "a foreign key to it is in several states";
        assert_eq!(indexes_on(&target, "half")?, 1, "{half}");
    }
    // Before 18, a partitioned table's foreign key and the key it references stay.
    let referred = u32::from(major < 18);
    assert_eq!(indexes_on(&target, "country")?, referred);
    assert_eq!(indexes_on(&target, "tree_1")?, referred);
    following.finish(LIMIT)?.expect(0)?;

    same(&before, &all_of(&target)?)?;
    compare::rows(&source, &target)?.none()?;
    changes_arrive(&cluster)
}

#[test]
fn a_schema_of_partitions_is_the_same_after_a_load_on_18() -> Result<()> {
    load_and_compare(18)
}

#[test]
fn a_schema_of_partitions_is_the_same_after_a_load_on_17() -> Result<()> {
    load_and_compare(17)
}

#[test]
fn a_schema_of_partitions_is_the_same_after_a_load_on_15() -> Result<()> {
    load_and_compare(15)
}

/// Releases of 17 refuse to attach what they have created under an exclusion constraint themselves,
/// in their own dumps too.
fn make_and_load(major: u32) -> Result<()> {
    let installation = Installation::of_major(major)?;
    let cluster = pair_of(&installation)?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    partitioned::create(&source)?;
    partitioned::fill(&source, 2000)?;
    cluster.init(&[])?.expect(0)?;
    let report = cluster.cli(&["status", "node_b", "--last-report", "--json"])?;
    let told = report.expect(0)?.text().contains("index_not_attached");
    let valid = "SELECT indisvalid FROM pg_index
        WHERE indexrelid = '\"Parted S\".no_overlap'::regclass";
    assert_eq!(target.value::<String>(valid)? == "t", !told);
    changes_arrive(&cluster)
}

#[test]
fn a_schema_of_partitions_is_made_on_17() -> Result<()> {
    make_and_load(17)
}

#[test]
fn a_schema_of_partitions_is_made_on_18() -> Result<()> {
    make_and_load(18)
}

/// What dies between the drop of the indexes and their return.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dies {
    Nothing,
    Agent,
    Server,
    Coordinator,
}

/// Kills it, and starts it again.
fn die(cluster: &mut Cluster, what: Dies) -> Result<()> {
    match what {
        Dies::Nothing => return Ok(()),
        Dies::Agent => {
            cluster.kill_agent("node_b")?;
            cluster.start_agent("node_b")?;
        }
        Dies::Server => {
            cluster.node_mut("node_b").server_mut().crash()?;
            cluster.node_mut("node_b").server_mut().restart()?;
        }
        Dies::Coordinator => {
            cluster.kill_coordinator()?;
            cluster.start_coordinator()?;
        }
    }
    cluster.wait_online(&["node_a", "node_b"])?;
    Ok(())
}

#[test]
fn cancel_and_death_in_the_middle_bring_every_index_back() -> Result<()> {
    let mut cluster = Cluster::pair()?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    for database in [&source, &target] {
        partitioned::create(database)?;
        partitioned::create_plain(database)?;
    }
    partitioned::fill(&source, 20_000)?;
    partitioned::fill_plain(&source)?;
    let before = all_of(&target)?;

    for dies in [Dies::Nothing, Dies::Agent, Dies::Server, Dies::Coordinator] {
        cluster
            .init(&["--max-rate", "1MB", "--detach"])?
            .expect(0)?;
        cluster.wait_copying("node_b")?;
        assert_eq!(indexes_on(&target, "us")?, 0);
        assert_eq!(indexes_on(&target, "everything")?, 0);
        die(&mut cluster, dies)?;
        cluster
            .cli(&["init", "cancel", "--node", "node_b", "--yes"])?
            .expect(0)?;
        residue::of_jobs(&source)?.none()?;
        residue::of_jobs(&target)?.none()?;
        for table in ["\"Root t\"", "everything"] {
            let rows = format!("SELECT count(*) FROM \"Parted S\".{table}");
            assert_eq!(target.value::<u32>(&rows)?, 0, "{dies:?}: {table}");
        }
        same(&before, &all_of(&target)?).with_context(|| format!("{dies:?}"))?;
    }
    // A crash in the next run, which comes to its end.
    cluster
        .init(&["--max-rate", "3MB", "--detach"])?
        .expect(0)?;
    cluster.wait_copying("node_b")?;
    die(&mut cluster, Dies::Server)?;
    cluster.wait_state("node_b", &["synchronized"], LIMIT)?;
    same(&before, &all_of(&target)?)
}

#[test]
fn death_while_indexes_are_built_loses_none() -> Result<()> {
    let mut cluster = Cluster::builder()
        .setting("node_b", "cluster_name", sample::SLOW)
        .start()?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    for database in [&source, &target] {
        partitioned::create(database)?;
        sample::slowly(database)?;
        database.sql(
            "SET search_path = \"Parted S\", public;
             CREATE INDEX slow ON \"Root t\" (public.slowly(code)) WHERE region = 'asia'",
        )?;
    }
    partitioned::fill(&source, 4000)?;
    let before = all_of(&target)?;
    let following = cluster.init_spawn(&[])?;
    cluster.wait_phase("node_b", "indexes")?;
    let done = "SELECT count(*) FROM steep_repl.deferred_objects WHERE state = 'done'";
    wait::until_true("some to be built", LIMIT, || {
        Ok(target.value::<u32>(done)? > 10)
    })?;
    cluster.kill_agent("node_b")?;
    cluster.start_agent("node_b")?;
    cluster.wait_online(&["node_a", "node_b"])?;
    cluster
        .cli(&["init", "cancel", "--node", "node_b", "--yes"])?
        .expect(0)?;
    following.finish(LIMIT)?;
    residue::of_jobs(&source)?.none()?;
    residue::of_jobs(&target)?.none()?;
    same(&before, &all_of(&target)?)
}

#[test]
fn rows_that_are_kept_have_their_indexes_too() -> Result<()> {
    let mut cluster = Cluster::pair()?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    for database in [&source, &target] {
        partitioned::create(database)?;
        partitioned::create_plain(database)?;
    }
    partitioned::fill(&source, 20_000)?;
    partitioned::fill_plain(&source)?;
    let indexes = |database: &Database| -> Result<Vec<String>> {
        let mut all = partitioned::catalog(database)?;
        all.retain(|line| line.starts_with("index "));
        Ok(all)
    };
    let before = indexes(&target)?;
    let following = cluster.init_spawn(&["--max-rate", "1MB"])?;
    cluster.wait_copying("node_b")?;
    cluster.wait_committed("node_b", LIMIT)?;
    die(&mut cluster, Dies::Server)?;
    cluster
        .cli(&["init", "cancel", "--node", "node_b", "--keep-data", "--yes"])?
        .expect(0)?;
    following.finish(LIMIT)?;
    assert_eq!(indexes(&target)?, before);
    // Referenced rows may be missing: then the constraint exists but is not validated.
    let foreign = "SELECT count(*) FROM pg_constraint WHERE contype = 'f' AND conparentid = 0";
    assert_eq!(target.sql(foreign)?, source.sql(foreign)?);
    Ok(())
}

#[test]
fn a_partition_that_is_left_out_keeps_the_indexes_above_it() -> Result<()> {
    let cluster = Cluster::pair()?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    partitioned::create(&source)?;
    partitioned::create(&target)?;
    partitioned::fill(&source, 6000)?;
    target.sql(
        "INSERT INTO \"Parted S\".other (id, region, code) SELECT n, 'mine', n FROM generate_series(1, 100) AS n",
    )?;
    let before = all_of(&target)?;
    let kept = compare::contents(&target)?["\"Parted S\".other"].clone();
    let own = |table: &str| indexes_on(&target, table);
    let (us, low, other) = (own("us")?, own("eu_low")?, own("other")?);

    let left_out = ["--exclude-table", "\"Parted S\".other"];
    let slowly = ["--schema-sync", "manual", "--max-rate", "2MB"];
    let following = cluster.init_spawn(&[&left_out[..], &slowly[..]].concat())?;
    cluster.wait_copying("node_b")?;
    assert_eq!(own("other")?, other);
    assert_eq!(own("us")?, us - 1, "only its own, attached to none");
    assert_eq!(own("eu_low")?, low - 1, "that of Eu's own tree");
    assert_eq!(own("visit_1")?, 0);
    following.finish(LIMIT)?.expect(0)?;
    same(&before, &all_of(&target)?)?;
    assert_eq!(compare::contents(&target)?["\"Parted S\".other"], kept);
    compare::rows_except(&source, &target, &["\"Parted S\".other"])?.none()
}

/// Each lock of a transaction takes an entry in the server's lock table. A partitioned index with
/// more partitions than entries stays, and the rows arrive nevertheless.
#[test]
fn more_partitions_than_the_lock_table_has_places_keep_their_indexes() -> Result<()> {
    let cluster = Cluster::builder()
        .setting("node_b", "max_locks_per_transaction", "10")
        .setting("node_b", "max_connections", "30")
        .setting("node_b", "max_worker_processes", "10")
        .setting("node_b", "max_logical_replication_workers", "6")
        .setting("node_b", "max_wal_senders", "4")
        .start()?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    for database in [&source, &target] {
        database.sql(
            "CREATE TABLE wide (id integer PRIMARY KEY, body text) PARTITION BY RANGE (id);
             CREATE TABLE narrow (id integer PRIMARY KEY, body text) PARTITION BY RANGE (id);
             CREATE TABLE narrow_0 PARTITION OF narrow DEFAULT;
             SELECT format('CREATE TABLE wide_%s PARTITION OF wide FOR VALUES FROM (%s) TO (%s)',
                 part, part * 10, part * 10 + 10)
             FROM generate_series(0, 799) AS part \\gexec",
        )?;
    }
    source.sql(
        "INSERT INTO wide SELECT n, 'b' || n FROM generate_series(0, 7999) AS n;
         INSERT INTO narrow SELECT n, repeat('b', 1000) FROM generate_series(0, 5999) AS n",
    )?;
    let before = all_of(&target)?;
    let following = cluster.init_spawn(&["--max-rate", "2MB"])?;
    cluster.wait_copying("node_b")?;
    for (table, left) in [("wide_7", 1), ("narrow_0", 0)] {
        assert_eq!(indexes_of(&target, table)?, left, "{table}");
    }
    following.finish(2 * LIMIT)?.expect(0)?;
    same(&before, &all_of(&target)?)?;
    source.sql("UPDATE wide SET body = 'new' WHERE id % 100 = 0")?;
    cluster.wait_drained("node_a")?;
    compare::rows(&source, &target)?.none()
}
