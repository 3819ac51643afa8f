//! The way back: what it needs is looked at before, and what becomes of it is said afterwards.

use super::*;

/// A session that keeps the switchover at the step that stops writes.
fn busy(source: &Database) -> Result<Session> {
    let writes = "BEGIN; INSERT INTO parted (at) VALUES ('2026-07-07')";
    Session::sleeping(source, "busy", writes)
}

/// Slots and publications of ours.
fn left(database: &Database) -> Result<String> {
    database.sql(
        "SELECT coalesce(string_agg(name, ', '), '') FROM (SELECT slot_name::text AS name FROM pg_replication_slots
         UNION ALL SELECT pubname::text FROM pg_publication) AS all_of_them",
    )
}

#[test]
fn a_server_that_the_old_one_does_not_reach_is_named_before_anything_changes() -> Result<()> {
    let mut cluster = ready()?;
    let [source, target] = both(&cluster);
    cluster.stop_agent("node_b")?;
    cluster.node_mut("node_b").set_replication_port(1);
    cluster.start_agent("node_b")?;
    cluster.wait_online(&["node_a", "node_b"])?;
    let refused = wait::until("servers to answer", LIMIT, || {
        let refused = cluster.cli(&switchover(&["--reverse"]))?;
        Ok((refused.code != 6).then_some(refused))
    })?;
    let said = refused.expect(1)?.objects();
    let plan = said.iter().find(|one| one["event"] == "switchover.plan");
    let plan = plan.context("switchover.plan")?;
    let findings = plan["findings"].as_array().context("findings")?;
    let link = findings.iter().find(|found| found["code"] == "server_link");
    let link = link.with_context(|| plan.to_string())?;
    assert_eq!(
        (&link["node"], &link["severity"]),
        (&Value::from("node_a"), &Value::from("error"))
    );
    ensure!(writable(&source)? && writable(&target)?);
    assert_eq!(left(&target)?, "");
    // Without a way back, nobody has to reach it.
    let plan = cluster.cli(&switchover(&["--dry-run"]))?.expect(0)?;
    ensure!(!plan.stdout.contains("server_link"), "{plan}");
    Ok(())
}

/// Moves writes while the way back is made impossible. Returns the command's end.
fn without_way_back(cluster: &Cluster) -> Result<steep_tests::cluster::Output> {
    let [source, target] = both(cluster);
    let busy = busy(&source)?;
    let limits = ["--reverse", "--terminate-after", "20s"];
    let running = begun(cluster, &switchover(&limits), "stop_writes")?;
    target.sql(
        "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name LIKE 'steep\\_switchover%'",
    )?;
    drop(busy);
    let ended = running.finish(LIMIT)?.expect(1)?;
    ensure!(ended.text().contains("the way back is not"), "{ended}");
    let said = ended.objects();
    let mut said = said.iter();
    let done = said.find(|one| one["event"] == "switchover.completed");
    let done = done.with_context(|| ended.text())?;
    assert_eq!(done["writable"], "node_b", "{done}");
    ensure!(done["error_message"].is_string(), "{done}");
    ensure!(!writable(&source)? && writable(&target)?);
    Ok(ended)
}

#[test]
fn a_way_back_that_fails_is_an_error_and_its_cancel_leaves_nothing_on_the_new_node() -> Result<()> {
    let cluster = ready()?;
    let target = cluster.database("node_b");
    without_way_back(&cluster)?;
    let status = cluster.cli(&["status", "node_a"])?.expect(0)?.text();
    ensure!(status.contains("there is no way back"), "{status}");
    let cancel = ["init", "cancel", "--node", "node_a", "--yes"];
    cluster.cli(&cancel)?.expect(0)?;
    wait::until_true(
        "nothing to be left",
        LIMIT,
        || Ok(left(&target)?.is_empty()),
    )?;
    assert_eq!(cluster.state("node_a")?, "uninitialized");
    Ok(())
}

#[test]
fn an_agent_that_dies_while_it_makes_the_slot_makes_it_again() -> Result<()> {
    let mut cluster = ready()?;
    let [source, target] = both(&cluster);
    // A new slot waits for transactions that are older.
    let old = Session::sleeping(&target, "old", "BEGIN; CREATE TABLE brief (id int)")?;
    let running = begun(&cluster, &switchover(&["--reverse"]), "prepare_way_back")?;
    wait::until_true("the slot to be made", LIMIT, || {
        Ok(left(&target)?.contains("steep_switchover_"))
    })?;
    cluster.kill_agent("node_b")?;
    ensure!(writable(&source)?);
    drop(old);
    cluster.start_agent("node_b")?;
    let done = running.finish(LIMIT)?.expect(0)?.last_object()?;
    assert_eq!(done["writable"], "node_b", "{done}");
    assert_eq!(cluster.state("node_a")?, "synchronized");
    Ok(())
}

#[test]
fn what_was_set_for_a_database_is_as_before_once_it_takes_writes_or_the_switchover_is_undone()
-> Result<()> {
    let cluster = ready()?;
    let [source, target] = both(&cluster);
    let set = |database: &Database, value: &str| {
        let sql = "SELECT format('ALTER DATABASE %I SET default_transaction_read_only = ', current_database())";
        database.sql(&format!("{}{value}", database.sql(sql)?))
    };
    let setting = |database: &Database| {
        database.sql(
            "SELECT coalesce(string_agg(e, ','), '') FROM pg_db_role_setting s, unnest(s.setconfig) AS e
             WHERE s.setrole = 0 AND e LIKE 'default_transaction_read_only=%' AND s.setdatabase = (
                 SELECT d.oid FROM pg_database d WHERE d.datname = current_database())",
        )
    };
    set(&source, "off")?;
    // A replica that was protected by hand.
    set(&target, "'on'")?;
    let busy = busy(&source)?;
    let running = begun(
        &cluster,
        &switchover(&["--terminate-after", "20s"]),
        "stop_writes",
    )?;
    running.interrupt();
    let ended = running.finish(LIMIT)?.expect(4)?;
    ensure!(ended.text().contains("interrupted, and undone"), "{ended}");
    drop(busy);
    assert_eq!(setting(&source)?, "default_transaction_read_only=off");
    assert_eq!(setting(&target)?, "default_transaction_read_only=on");

    completed(&cluster, &switchover(&["--reverse"]))?;
    ensure!(!writable(&source)? && writable(&target)?);
    completed(&cluster, &back(&[]))?;
    assert_eq!(setting(&source)?, "default_transaction_read_only=off");
    ensure!(writable(&source)? && !writable(&target)?);
    Ok(())
}
