//! A node restored from a backup: prepared, restored and completed; exact under write load, and
//! refused where it could not be.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use steep_tests::cluster::{Cluster, DRAIN_LIMIT, Output};
use steep_tests::load::{Intensity, Load};
use steep_tests::pg::{Database, Grouping};
use steep_tests::{compare, residue, sample, wait};

const LIMIT: Duration = Duration::from_secs(30);

fn prepare(cluster: &Cluster, slot: &str, further: &[&str]) -> Result<Output> {
    let mut arguments = vec![
        "init", "prepare", "--node", "node_a", "--slot", slot, "--json",
    ];
    arguments.extend(further);
    cluster.cli(&arguments)
}

fn complete_arguments<'a>(lsn: &'a str, further: &[&'a str]) -> Vec<&'a str> {
    let mut arguments = vec!["init", "complete", "--node", "node_b", "--source", "node_a"];
    arguments.extend(["--source-lsn", lsn, "--json"]);
    arguments.extend(further);
    arguments
}

fn complete(cluster: &Cluster, lsn: &str, further: &[&str]) -> Result<Output> {
    cluster.cli(&complete_arguments(lsn, further))
}

/// The prepared slots that `status` shows for the source.
fn prepared(cluster: &Cluster) -> Result<Vec<Value>> {
    let status = cluster.cli(&["status", "node_a", "--json"])?.expect(0)?;
    let slots = status.last_object()?["prepared_slots"].clone();
    Ok(slots.as_array().context("prepared_slots")?.clone())
}

fn wait_prepared(cluster: &Cluster, what: &str, is: impl Fn(&Value) -> bool) -> Result<()> {
    wait::until_true(what, LIMIT, || Ok(prepared(cluster)?.iter().any(&is)))
}

/// Waits until the slot's subscriber has confirmed everything written so far.
fn wait_drained(source: &Database, slot: &str) -> Result<()> {
    let fence = source.sql(
        "SELECT pg_logical_emit_message(true, 'steep-tests', 'fence');
         SELECT pg_current_wal_flush_lsn();",
    )?;
    let fence = fence.lines().last().context("no position")?.to_owned();
    let passed = format!(
        "SELECT confirmed_flush_lsn >= '{fence}' FROM pg_replication_slots WHERE slot_name = '{slot}'"
    );
    wait::until_true("changes to be applied", DRAIN_LIMIT, || {
        Ok(source.sql(&passed)? == "t")
    })
}

fn end_of_wal(source: &Database) -> Result<String> {
    source.sql("SELECT pg_current_wal_lsn()")
}

/// Whether a refusal has a finding with that code.
fn said(output: &Output, code: &str) -> bool {
    output.text().contains(code)
}

#[test]
fn a_physical_copy_completed_under_write_load_holds_exactly_the_sources_rows() -> Result<()> {
    let mut cluster = Cluster::pair()?;
    let source = cluster.database("node_a");
    sample::create(&source, 2)?;
    let made = prepare(&cluster, "monday", &["--expires", "2h"])?.expect(0)?;
    let made = made.last_object()?;
    assert_eq!(
        (&made["slot"], &made["event"]),
        (&"monday".into(), &"init.prepared".into())
    );
    for key in ["consistent_point", "expires_at", "next"] {
        assert!(made[key].is_string(), "{made}");
    }
    let again = prepare(&cluster, "monday", &[])?.expect(2)?;
    ensure!(again.text().contains("already"), "{again}");
    let intensity = Intensity {
        clients: 4,
        rate: Some(1_000),
    };
    let load = Load::start(&source, intensity, Grouping::Shared)?;
    load.wait_for(500, LIMIT)?;
    wait_prepared(&cluster, "WAL that is held to be shown", |slot| {
        slot["state"] == "waiting" && slot["wal_held_bytes"].as_u64() > Some(0)
    })?;

    let lsn = cluster.restore_copy("node_a", "node_b")?;
    load.wait_for(500, LIMIT)?;
    let checked = complete(&cluster, &lsn, &["--dry-run"])?.expect(0)?;
    ensure!(!said(&checked, "\"error\""), "{checked}");
    let end = complete(&cluster, &lsn, &[])?.expect(0)?.last_object()?;
    assert_eq!(
        (&end["event"], &end["state"]),
        (&"init.completed".into(), &"synchronized".into())
    );
    assert_eq!(
        (&end["rows_copied"], &end["method"]),
        (&0.into(), &"backup".into())
    );
    load.wait_for(500, LIMIT)?;
    load.stop()?;
    wait_drained(&source, "monday")?;
    let target = cluster.database("node_b");
    compare::rows(&source, &target)?.none()?;

    let events = cluster
        .cli(&["events", "node_b", "--json"])?
        .expect(0)?
        .objects();
    let changes = events.iter().filter(|e| e["event"] == "init.state_change");
    let states: Vec<&str> = changes.filter_map(|e| e["to"].as_str()).collect();
    assert_eq!(
        states,
        ["preparing", "copying", "catching_up", "synchronized"]
    );
    let entries = cluster
        .cli(&["events", "--audit", "--json"])?
        .expect(0)?
        .text();
    ensure!(
        entries.contains("\"init.prepare\"") && entries.contains("\"init.complete\""),
        "{entries}"
    );
    wait_prepared(&cluster, "the slot to be the node's", |slot| {
        slot["state"] == "taken" && slot["target_node"] == "node_b"
    })?;
    let twice = complete(&cluster, &lsn, &["--slot", "monday"])?.expect(1)?;
    ensure!(twice.text().contains("already synchronized"), "{twice}");

    // Cancelling leaves nothing: the slot had become the node's own.
    let name = target.sql("SELECT subname FROM pg_subscription")?;
    target.sql(&format!(
        "ALTER SUBSCRIPTION {name} DISABLE; ALTER SUBSCRIPTION {name} SET (slot_name = NONE);
         DROP SUBSCRIPTION {name}"
    ))?;
    cluster.wait_state("node_b", &["diverged"], LIMIT)?;
    cluster
        .cli(&["init", "cancel", "--node", "node_b", "--yes", "--keep-data"])?
        .expect(0)?;
    for database in [&source, &target] {
        residue::of_jobs(database)?.none()?;
    }
    assert_eq!(
        source.sql("SELECT count(*) FROM steep_repl.init_slots")?,
        "0"
    );
    Ok(())
}

/// A backup of a source without writers.
fn dump(source: &Database, target: &Database) -> Result<String> {
    restore(source, target, &[])?;
    end_of_wal(source)
}

/// A backup under the snapshot of a slot that lives as long as its connection: consistent at the
/// slot's position under any load.
fn dump_under_load(source: &Database, target: &Database) -> Result<String> {
    let mut session = source
        .client("psql")
        .args(["-X", "-A", "-t", "-d"])
        .arg(format!("dbname={} replication=database", source.name()))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut input = session.stdin.take().context("psql's input")?;
    writeln!(
        input,
        "CREATE_REPLICATION_SLOT dump TEMPORARY LOGICAL pgoutput;"
    )?;
    let mut said = String::new();
    BufReader::new(session.stdout.take().context("psql's output")?).read_line(&mut said)?;
    let fields: Vec<&str> = said.trim().split('|').collect();
    let [_, lsn, snapshot, _] = fields[..] else {
        anyhow::bail!("psql said {said:?}");
    };
    restore(source, target, &["--snapshot", snapshot])?;
    drop(input);
    session.wait()?;
    Ok(lsn.to_owned())
}

fn restore(source: &Database, target: &Database, further: &[&str]) -> Result<()> {
    let mut dump = source.client("pg_dump");
    let dump = dump
        .args([
            "--no-publications",
            "--no-subscriptions",
            "--exclude-schema=steep_repl",
        ])
        .args(further)
        .stderr(Stdio::inherit())
        .output()?;
    ensure!(dump.status.success(), "pg_dump failed");
    target.sql(&String::from_utf8(dump.stdout)?).map(drop)
}

#[test]
fn a_dump_under_a_slots_snapshot_is_completed_exactly_while_others_write() -> Result<()> {
    let cluster = Cluster::pair()?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    sample::create(&source, 1)?;
    prepare(&cluster, "dumped", &[])?.expect(0)?;
    let intensity = Intensity {
        clients: 4,
        rate: Some(500),
    };
    let load = Load::start(&source, intensity, Grouping::Shared)?;
    load.wait_for(200, LIMIT)?;
    let lsn = dump_under_load(&source, &target)?;
    complete(&cluster, &lsn, &[])?.expect(0)?;
    load.wait_for(200, LIMIT)?;
    load.stop()?;
    wait_drained(&source, "dumped")?;
    compare::rows(&source, &target)?.none()?;
    compare::schema(&source, &target)?.none()?;
    Ok(())
}

const SHOP: &str =
    "CREATE TABLE goods (id integer GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, name text);
    INSERT INTO goods (name) SELECT 'goods ' || n FROM generate_series(1, 100) n";

#[test]
fn each_mode_does_with_a_difference_what_it_says() -> Result<()> {
    let cluster = Cluster::pair()?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    source.sql(SHOP)?;
    prepare(&cluster, "modes", &[])?.expect(0)?;
    let lsn = dump(&source, &target)?;
    source.sql("ALTER TABLE goods ADD COLUMN price integer DEFAULT 7")?;
    target.sql("ALTER TABLE goods ADD COLUMN own text; UPDATE goods SET own = 'mine'")?;
    let columns = "SELECT string_agg(attname, ',' ORDER BY attnum) FROM pg_attribute
        WHERE attrelid = 'goods'::regclass AND attnum > 0 AND NOT attisdropped";

    let strict = complete(&cluster, &lsn, &[])?.expect(3)?;
    ensure!(
        said(&strict, "column price") && said(&strict, "column own"),
        "{strict}"
    );
    let manual = complete(&cluster, &lsn, &["--schema-sync", "manual"])?.expect(3)?;
    ensure!(said(&manual, "nobody can be asked"), "{manual}");
    let auto = complete(&cluster, &lsn, &["--schema-sync", "auto"])?.expect(1)?;
    ensure!(
        said(&auto, "DROP COLUMN") && said(&auto, "--force"),
        "{auto}"
    );
    // Nothing was changed, and the slot still waits.
    assert_eq!(target.sql(columns)?, "id,name,own");
    residue::of_jobs(&target)?.none()?;
    ensure!(
        prepared(&cluster)?
            .iter()
            .any(|slot| slot["state"] == "waiting")
    );

    let forced = ["--schema-sync", "auto", "--force"];
    let end = complete(&cluster, &lsn, &forced)?.expect(0)?;
    ensure!(said(&end, "schema_sync_applied"), "{end}");
    assert_eq!(target.sql(columns)?, "id,name,price");
    compare::sequences(&source, &target)?.none()?;
    source.sql("UPDATE goods SET price = id; INSERT INTO goods (name) VALUES ('late')")?;
    wait_drained(&source, "modes")?;
    compare::rows(&source, &target)?.none()?;
    Ok(())
}

#[test]
fn a_confirmed_or_unchecked_schema_is_taken_as_it_is_and_is_no_drift() -> Result<()> {
    let cluster = Cluster::builder().nodes(3).start()?;
    let source = cluster.database("node_a");
    source.sql(SHOP)?;
    for (node, slot, further) in [
        (
            "node_b",
            "manual",
            &["--schema-sync", "manual", "--yes"][..],
        ),
        ("node_c", "unchecked", &["--skip-schema-check"][..]),
    ] {
        let target = cluster.database(node);
        prepare(&cluster, slot, &[])?.expect(0)?;
        let lsn = dump(&source, &target)?;
        target.sql("CREATE INDEX more ON goods (name); ALTER TABLE goods ADD COLUMN own text")?;
        let mut arguments = complete_arguments(&lsn, further);
        arguments[3] = node;
        arguments.extend(["--slot", slot]);
        let end = cluster.cli(&arguments)?.expect(0)?.last_object()?;
        let warned = match further {
            ["--skip-schema-check"] => "unchecked_schema",
            _ => "schema_mismatch",
        };
        ensure!(end["warnings"].to_string().contains(warned), "{end}");
        source.sql("INSERT INTO goods (name) VALUES ('late')")?;
        wait_drained(&source, slot)?;
        assert_eq!(
            target.sql("SELECT count(*) FROM goods")?,
            source.sql("SELECT count(*) FROM goods")?
        );
        assert_eq!(cluster.state(node)?, "synchronized");
    }
    Ok(())
}

/// A foreign reader of a slot.
fn read_slot(source: &Database, slot: &str) -> Result<std::process::Child> {
    let publication = source.sql("SELECT pubname FROM pg_publication")?;
    let mut reader: Command = source.client("pg_recvlogical");
    reader
        .args([
            "--dbname",
            source.name(),
            "--slot",
            slot,
            "--start",
            "--file",
            "/dev/null",
        ])
        .args(["-o", "proto_version=1", "-o"])
        .arg(format!("publication_names={publication}"))
        .stderr(Stdio::null());
    let reader = reader.spawn()?;
    let active = format!("SELECT active FROM pg_replication_slots WHERE slot_name = '{slot}'");
    wait::until_true("the slot to be read", LIMIT, || {
        Ok(source.sql(&active)? == "t")
    })?;
    Ok(reader)
}

#[test]
fn a_slot_or_position_that_would_lose_changes_is_refused() -> Result<()> {
    let cluster = Cluster::pair()?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    source.sql(SHOP)?;
    let early = end_of_wal(&source)?;
    let none = complete(&cluster, &early, &[])?.expect(2)?;
    ensure!(none.text().contains("init prepare"), "{none}");
    let point = prepare(&cluster, "reader", &[])?.expect(0)?.last_object()?;
    let lsn = dump(&source, &target)?;
    let refused = |lsn: &str, code: &str| -> Result<()> {
        let output = complete(&cluster, lsn, &["--slot", "reader"])?.expect(1)?;
        ensure!(said(&output, code), "{code} is not said: {output}");
        residue::of_jobs(&target)?.none()
    };
    refused(&early, "source_lsn_behind")?;
    refused("FFFFFFFF/0", "source_lsn_ahead")?;
    let point = point["consistent_point"].as_str().context("a position")?;
    ensure!(
        point > early.as_str() || point.len() > early.len(),
        "{early} {point}"
    );

    let mut reader = read_slot(&source, "reader")?;
    refused(&lsn, "prepared_slot_active")?;
    reader.kill()?;
    reader.wait()?;

    for database in [&source, &target] {
        database.sql("CREATE TABLE new (id integer PRIMARY KEY)")?;
    }
    refused(&lsn, "not_prepared")?;
    for database in [&source, &target] {
        database.sql("DROP TABLE new")?;
    }

    // With two slots, one must be named; one of them loses its WAL, then both are gone.
    prepare(&cluster, "other", &["--expires", "3s"])?.expect(0)?;
    let two = complete(&cluster, &lsn, &[])?.expect(2)?;
    ensure!(two.text().contains("--slot"), "{two}");
    wait::until_true("the other slot to expire", LIMIT, || {
        let events = cluster.cli(&["events", "node_a", "--json"])?.expect(0)?;
        Ok(said(&events, "init.slot_expired"))
    })?;
    let left =
        "SELECT (SELECT count(*) FROM pg_replication_slots), (SELECT count(*) FROM pg_publication),
        (SELECT count(*) FROM steep_repl.init_slots)";
    assert_eq!(source.sql(left)?, "1|1|1");
    let expired = complete(&cluster, &lsn, &["--slot", "other"])?.expect(2)?;
    ensure!(expired.text().contains("expired is dropped"), "{expired}");

    source.sql("ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'")?;
    source.sql("SELECT pg_reload_conf()")?;
    let lost = "SELECT wal_status = 'lost' FROM pg_replication_slots";
    wait::until_true("the slot to lose its WAL", LIMIT, || {
        source.sql(
            "INSERT INTO goods (name) SELECT repeat('x', 100) FROM generate_series(1, 1000)",
        )?;
        source.sql("SELECT pg_switch_wal()")?;
        source.sql("CHECKPOINT")?;
        Ok(source.sql(lost)? == "t")
    })?;
    refused(&end_of_wal(&source)?, "prepared_slot_lost")?;
    wait_prepared(&cluster, "the loss to be shown", |slot| {
        slot["state"] == "lost"
    })?;
    source.sql("SELECT pg_drop_replication_slot('reader')")?;
    refused(&lsn, "prepared_slot_missing")?;
    cluster
        .cli(&[
            "init", "prepare", "--node", "node_a", "--slot", "reader", "--drop",
        ])?
        .expect(0)?;
    residue::of_jobs(&source)?.none()?;
    Ok(())
}

#[test]
fn a_cancel_or_timeout_in_the_middle_gives_the_slot_back_for_a_newer_backup() -> Result<()> {
    let cluster = Cluster::pair()?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    source.sql(SHOP)?;
    prepare(&cluster, "patient", &[])?.expect(0)?;
    let lsn = dump(&source, &target)?;
    source.sql("INSERT INTO goods (name) VALUES ('late')")?;
    // This lock holds up the catch-up.
    target.sql("BEGIN; LOCK TABLE goods IN EXCLUSIVE MODE; PREPARE TRANSACTION 'held'")?;
    let following = cluster.cli_spawn(&complete_arguments(&lsn, &[]))?;
    cluster.wait_phase("node_b", "catch_up")?;
    cluster
        .cli(&["init", "cancel", "--node", "node_b", "--yes"])?
        .expect(0)?;
    following.finish(LIMIT)?.expect(4)?;
    assert_eq!(cluster.state("node_b")?, "uninitialized");
    let subscriptions = "SELECT (SELECT count(*) FROM pg_subscription), (SELECT count(*) FROM pg_replication_origin)";
    assert_eq!(target.sql(subscriptions)?, "0|0");
    // Rows and slot belong to the operator; changes may have been applied, so the old backup cannot
    // be used.
    assert_eq!(target.sql("SELECT count(*) FROM goods")?, "100");
    wait_prepared(&cluster, "the slot to wait again", |slot| {
        slot["state"] == "waiting"
    })?;
    let old = complete(&cluster, &lsn, &[])?.expect(1)?;
    ensure!(said(&old, "source_lsn_behind"), "{old}");

    let newer = end_of_wal(&source)?;
    source.sql("INSERT INTO goods (name) VALUES ('later')")?;
    let late = complete(&cluster, &newer, &["--timeout", "3s"])?.expect(5)?;
    ensure!(said(&late, "time limit of 3 s"), "{late}");
    cluster
        .cli(&["init", "cancel", "--node", "node_b", "--yes"])?
        .expect(0)?;
    target.sql("ROLLBACK PREPARED 'held'")?;
    target.sql("DROP TABLE goods")?;
    let newest = dump(&source, &target)?;
    complete(&cluster, &newest, &[])?.expect(0)?;
    source.sql("DELETE FROM goods WHERE id < 10")?;
    wait_drained(&source, "patient")?;
    compare::rows(&source, &target)?.none()?;
    Ok(())
}
