//! Hosts in containers are cut off, come back with another address, are paused, and lose power during a
//! job and after it: the job says what it waits for, goes on by itself, and ends synchronized and equal.

mod boxes;
mod engine;

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use steep_tests::load::{Intensity, Load};
use steep_tests::pg::{Database, Grouping};
use steep_tests::{compare, sample, wait};

use crate::boxes::{Address, Boxes};

/// For a job of a minute with troubles on a busy machine.
const END_LIMIT: Duration = Duration::from_secs(240);

/// The copy takes long enough at this rate for what happens to hosts to fall into it.
const RATE: &str = "400kB";

/// Shorter than a connection lives without an answer, which is 8 s.
const SHORT: Duration = Duration::from_secs(5);

/// Longer.
const LONG: Duration = Duration::from_secs(10);

const LIGHT: Intensity = Intensity {
    clients: 2,
    rate: Some(50),
};

fn load(database: &Database) -> Result<Load> {
    Load::start(database, LIGHT, Grouping::Shared)
}

/// Starts a job whose copy takes a while, and returns once rows arrive.
fn copying(boxes: &Boxes) -> Result<()> {
    boxes.cli(&[
        "init",
        "node_b",
        "--from",
        "node_a",
        "--yes",
        "--detach",
        "--max-rate",
        RATE,
    ])?;
    boxes.wait_state("node_b", &["copying"], END_LIMIT)?;
    rows_go_on(boxes)
}

fn bytes_copied(boxes: &Boxes) -> Result<u64> {
    let progress = boxes.cli(&["init", "progress", "--node", "node_b", "--json"])?;
    let progress: serde_json::Value = serde_json::from_str(&progress)?;
    Ok(progress["bytes_copied"].as_u64().unwrap_or_default())
}

/// Waits until more rows arrive, which must not be all: the next fault is for a copy too.
fn rows_go_on(boxes: &Boxes) -> Result<()> {
    let before = bytes_copied(boxes)?;
    wait::until_true("rows to go on arriving", END_LIMIT, || {
        let view = boxes.view("node_b")?;
        let ended = ["failed", "synchronized", "catching_up"].map(serde_json::Value::from);
        ensure!(
            !ended.contains(&view["state"]),
            "the copy has ended: {view}"
        );
        Ok(bytes_copied(boxes)? > before)
    })
}

fn ends_synchronized(boxes: &Boxes, node: &str) -> Result<()> {
    let state = boxes.wait_state(node, &["failed", "synchronized"], END_LIMIT)?;
    ensure!(state == "synchronized", "{:?}", boxes.view(node));
    Ok(())
}

/// All that was written arrives.
fn caught_up(boxes: &Boxes, targets: usize) -> Result<()> {
    let source = boxes.database("node_a");
    let fence = source.sql(
        "SELECT pg_logical_emit_message(true, 'steep-tests', 'fence');
         SELECT pg_current_wal_flush_lsn();",
    )?;
    let fence = fence.lines().last().context("a position")?.to_owned();
    let passed = format!(
        "SELECT count(*) FILTER (WHERE confirmed_flush_lsn >= '{fence}')
         FROM pg_replication_slots WHERE slot_name LIKE 'steep\\_repl\\_%'
             AND slot_name NOT LIKE '%\\_template'"
    );
    wait::until_true("all changes to be applied", END_LIMIT, || {
        Ok(source.value::<usize>(&passed)? == targets)
    })
}

/// All that was written arrives, and nothing else.
fn equal(boxes: &Boxes, targets: &[&str]) -> Result<()> {
    caught_up(boxes, targets.len())?;
    let source = boxes.database("node_a");
    for target in targets {
        let target = boxes.database(target);
        compare::rows(&source, &target)?.none()?;
        compare::schema(&source, &target)?.none()?;
    }
    boxes.check_logs()
}

/// What lasts that long is what is tested.
fn lasts(duration: Duration) {
    std::thread::sleep(duration);
}

#[test]
fn three_of_a_source_and_two_targets_replicate_and_catch_up_after_the_source_was_cut_off()
-> Result<()> {
    let name =
        "three_of_a_source_and_two_targets_replicate_and_catch_up_after_the_source_was_cut_off";
    engine::with_engine(name, || {
        let boxes = Boxes::start(&["node_a", "node_b", "node_c"])?;
        let source = boxes.database("node_a");
        sample::create(&source, 1)?;
        let writes = load(&source)?;
        boxes.cli(&["init", "node_b", "node_c", "--from", "node_a", "--yes"])?;
        for target in ["node_b", "node_c"] {
            ends_synchronized(&boxes, target)?;
        }
        writes.stop()?;
        equal(&boxes, &["node_b", "node_c"])?;

        let writes = load(&source)?;
        boxes.cut_off("node_a", Address::Same, || {
            lasts(LONG);
            writes.wait_for(1, END_LIMIT)
        })?;
        // The subscriptions may be connecting when they are cut off again.
        boxes.cut_off("node_a", Address::Other, || writes.wait_for(100, END_LIMIT))?;
        writes.wait_for(100, END_LIMIT)?;
        writes.stop()?;
        equal(&boxes, &["node_b", "node_c"])?;
        for target in ["node_b", "node_c"] {
            ends_synchronized(&boxes, target)?;
        }
        Ok(())
    })
}

#[test]
fn a_target_that_is_cut_off_moved_or_without_power_in_mid_copy_goes_on() -> Result<()> {
    let name = "a_target_that_is_cut_off_moved_or_without_power_in_mid_copy_goes_on";
    engine::with_engine(name, || {
        let boxes = Boxes::start(&["node_a", "node_b"])?;
        let source = boxes.database("node_a");
        sample::create(&source, 2)?;
        let writes = load(&source)?;
        copying(&boxes)?;
        boxes.cut_off("node_b", Address::Same, || {
            lasts(SHORT);
            Ok(())
        })?;
        rows_go_on(&boxes)?;
        boxes.cut_off("node_b", Address::Other, || {
            // It is said once the connection has been idle for too long.
            boxes.waits_for("node_b", "node_b")
        })?;
        rows_go_on(&boxes)?;
        boxes.kill("node_b")?;
        boxes.waits_for("node_b", "node_b")?;
        boxes.start_again("node_b")?;
        ends_synchronized(&boxes, "node_b")?;
        writes.stop()?;
        equal(&boxes, &["node_b"])
    })
}

#[test]
fn a_source_and_a_coordinator_that_are_paused_or_without_power_in_mid_copy_cost_no_row()
-> Result<()> {
    let name =
        "a_source_and_a_coordinator_that_are_paused_or_without_power_in_mid_copy_cost_no_row";
    engine::with_engine(name, || {
        let boxes = Boxes::start(&["node_a", "node_b"])?;
        let source = boxes.database("node_a");
        sample::create(&source, 2)?;
        copying(&boxes)?;
        // Early, since the tables that are not complete are copied again.
        boxes.kill("node_a")?;
        boxes.waits_for("node_b", "node_a")?;
        boxes.start_again("node_a")?;
        let writes = load(&source)?;
        boxes.wait_state("node_b", &["copying"], END_LIMIT)?;
        rows_go_on(&boxes)?;
        boxes.paused("node_a", || {
            lasts(SHORT);
            Ok(())
        })?;
        rows_go_on(&boxes)?;
        boxes.paused("node_a", || boxes.waits_for("node_b", "node_a"))?;
        rows_go_on(&boxes)?;
        boxes.kill("coordinator")?;
        boxes.start_again("coordinator")?;
        ends_synchronized(&boxes, "node_b")?;
        writes.stop()?;
        equal(&boxes, &["node_b"])
    })
}
