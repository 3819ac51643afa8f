//! Transactions that hold the settings of a database, where a switchover changes one.

use super::*;

/// What a session does that holds the settings of `database`, whatever is set for it.
fn changes_setting(database: &Database) -> String {
    let name = database.name();
    format!("BEGIN READ WRITE; ALTER DATABASE \"{name}\" SET work_mem = '5MB'")
}

/// Keeps the switchover at the step that stops writes.
fn busy(old: &Database) -> Result<Session> {
    let writes = "BEGIN; INSERT INTO parted (at) VALUES ('2026-07-07')";
    Session::sleeping(old, "busy", writes)
}

/// Waits until the sessions that begin from here on are not ended any more.
fn closed(old: &Database) -> Result<()> {
    let sql = "SELECT count(*) FROM steep_repl.write_stop WHERE state = 'closed' AND closed_at IS NOT NULL";
    wait::until_true("writes to be stopped", LIMIT, || {
        Ok(old.value::<u32>(sql)? == 1)
    })
}

/// The error names the session, and the statement that ends it.
fn names_holder(ended: &steep_tests::cluster::Output) -> Result<()> {
    for said in ["(holder)", "SELECT pg_terminate_backend("] {
        ensure!(ended.text().contains(said), "{said}: {ended}");
    }
    Ok(())
}

#[test]
fn who_holds_the_settings_before_the_decision_is_named_and_the_old_node_keeps_its_writes()
-> Result<()> {
    let cluster = ready()?;
    let [source, target] = both(&cluster);
    // From another database of the server, whose sessions stay.
    let elsewhere = cluster.node("node_a").server().database("postgres");
    let holder = Session::sleeping(&elsewhere, "holder", &changes_setting(&source))?;
    let ended = wait::until("servers to answer", LIMIT, || {
        let ended = cluster.cli(&switchover(&[]))?;
        Ok((ended.code != 6).then_some(ended))
    })?;
    names_holder(&ended.expect(1)?)?;
    ensure!(writable(&source)? && writable(&target)?);
    drop(holder);

    let limits = ["--terminate-after", "60s"];
    let writer = busy(&source)?;
    let running = begun(&cluster, &switchover(&limits), "stop_writes")?;
    let holder = Session::sleeping(&target, "holder", &changes_setting(&target))?;
    drop(writer);
    // It does not wait for the new node to be as before.
    names_holder(&running.finish(LIMIT)?.expect(1)?)?;
    ensure!(writable(&source)?);
    drop(holder);
    wait::until_true("the switchover to be undone", LIMIT, || {
        Ok(step(&cluster)? == "undone" && writable(&target)?)
    })?;
    assert_eq!(cluster.state("node_b")?, "synchronized");

    // Whoever keeps the old node from its writes is ended.
    let writer = busy(&source)?;
    let running = begun(&cluster, &switchover(&limits), "stop_writes")?;
    closed(&source)?;
    let holder = Session::sleeping(&elsewhere, "holder", &changes_setting(&source))?;
    running.interrupt();
    let ended = running.finish(LIMIT)?.expect(4)?;
    ensure!(ended.text().contains("interrupted, and undone"), "{ended}");
    ensure!(writable(&source)?);
    let left = "SELECT string_agg(application_name, '') FROM pg_stat_activity WHERE application_name IN ('holder', 'busy')";
    // It did not wait for the step to end, either.
    assert_eq!(elsewhere.sql(left)?, "busy");
    drop((writer, holder));
    Ok(())
}

/// Begins a switchover and has `hold` done on the new node once the old one is at the decision.
fn decided_while<T>(
    cluster: &Cluster,
    [old, new]: [&Database; 2],
    arguments: &[&str],
    hold: impl FnOnce() -> Result<T>,
) -> Result<(Running, T)> {
    let writer = busy(old)?;
    let running = begun(cluster, arguments, "stop_writes")?;
    closed(old)?;
    let entered = |step: &str| {
        let said = format!("\"step\":\"{step}\"");
        wait::until_true(&format!("the step {step}"), LIMIT, || {
            Ok(running.stdout_so_far()?.replace(": ", ":").contains(&said))
        })
    };
    // A row that is committed after everything was applied, and that the new node cannot apply.
    let table = "\"Fr\"\"ück\".\"a;b\"";
    let locks = format!("BEGIN READ WRITE; LOCK TABLE {table} IN SHARE MODE");
    let apply = Session::sleeping(new, "apply", &locks)?;
    let gate = Session::sleeping(old, "gate", "SELECT pg_advisory_lock(1)")?;
    let late = format!(
        "BEGIN READ WRITE; LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE; INSERT INTO {table} (body) VALUES ('late'); \
         SELECT pg_advisory_lock(1); COMMIT"
    );
    let late = Session::start(old, "late", &late)?;
    let waits = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted";
    wait::until_true("the late writer", LIMIT, || {
        Ok(old.value::<u32>(waits)? == 1)
    })?;
    drop(writer);
    entered("sequences")?;
    drop(gate);
    late.succeeds()?;
    entered("decide")?;
    let held = hold()?;
    drop(apply);
    Ok((running, held))
}

#[test]
fn who_holds_the_settings_of_the_new_node_after_the_decision_is_ended_or_named_in_status()
-> Result<()> {
    let cluster = Cluster::builder()
        .setting("node_b", "max_prepared_transactions", "5")
        .start()?;
    let [source, target] = both(&cluster);
    source.sql(application::TABLE)?;
    source.sql(SHAPE)?;
    cluster.init(&[])?.expect(0)?;
    let limits = ["--terminate-after", "60s", "--reverse"];

    // Nobody can end a prepared transaction without deciding it.
    let prepare = format!("{}; PREPARE TRANSACTION 'held'", changes_setting(&target));
    let hold = || target.sql(&prepare);
    let there = switchover(&limits);
    let (running, _) = decided_while(&cluster, [&source, &target], &there, hold)?;
    let named = "the prepared transaction held";
    wait::until_true("status to name the transaction", LIMIT, || {
        let status = cluster.cli(&["status", "node_b"])?.expect(0)?.text();
        Ok(status.contains(named))
    })?;
    let hindrance = view(&cluster)?["hindrance"].to_string();
    ensure!(hindrance.contains(named), "{hindrance}");
    ensure!(!writable(&source)?);
    target.sql("SET default_transaction_read_only = off; ROLLBACK PREPARED 'held'")?;
    let done = running.finish(LIMIT)?.expect(0)?.last_object()?;
    assert_eq!(
        (&done["writable"], &done["hindrance"]),
        (&Value::from("node_b"), &Value::Null)
    );
    ensure!(writable(&target)?);

    let hold = || Session::sleeping(&source, "holder", &changes_setting(&source));
    let home = back(&limits);
    let (running, holder) = decided_while(&cluster, [&target, &source], &home, hold)?;
    let done = running.finish(LIMIT)?.expect(0)?.last_object()?;
    assert_eq!(done["writable"], "node_a", "{done}");
    println!("writes were stopped for {} s", done["stopped_seconds"]);
    ensure!(writable(&source)? && !writable(&target)?);
    let left = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'holder'";
    assert_eq!(source.sql(left)?, "0");
    drop(holder);
    let late = "SELECT count(*) FROM \"Fr\"\"ück\".\"a;b\" WHERE body = 'late'";
    assert_eq!(source.sql(late)?, "2");
    Ok(())
}

#[test]
fn who_has_locked_a_sequence_of_the_new_node_is_named_before_the_decision() -> Result<()> {
    let cluster = ready()?;
    let [source, target] = both(&cluster);
    let alter = "BEGIN; ALTER SEQUENCE \"Ticket\" INCREMENT 2";
    let holder = Session::sleeping(&target, "holder", alter)?;
    source.sql("SELECT nextval('\"Ticket\"')")?;
    let ended = wait::until("servers to answer", LIMIT, || {
        let ended = cluster.cli(&switchover(&[]))?;
        Ok((ended.code != 6).then_some(ended))
    })?;
    let ended = ended.expect(1)?;
    for said in ["somebody has locked public.Ticket by process", "(holder)"] {
        ensure!(ended.text().contains(said), "{said}: {ended}");
    }
    ensure!(writable(&source)? && writable(&target)?);
    drop(holder);
    completed(&cluster, &switchover(&[]))?;
    assert_eq!(target.sql("SELECT nextval('\"Ticket\"')")?, "9");
    Ok(())
}
