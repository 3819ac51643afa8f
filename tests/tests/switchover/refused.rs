//! What speaks against a switchover, and writers who will not stop.

use super::*;

#[test]
fn a_writer_who_overrides_the_stop_ends_the_switchover_and_nobody_loses_a_row() -> Result<()> {
    let cluster = ready()?;
    let [source, target] = both(&cluster);
    let busy = Session::sleeping(
        &source,
        "busy",
        "BEGIN; INSERT INTO parted (at) VALUES ('2026-07-07')",
    )?;
    let limit = ["--terminate-after", "6s"];
    let running = begun(&cluster, &switchover(&limit), "stop_writes")?;
    wait::until_true("writes to be stopped", LIMIT, || Ok(!writable(&source)?))?;
    // It began after the stop, so it is not ended, and writes all the same.
    let stubborn = Session::sleeping(
        &source,
        "stubborn",
        "BEGIN READ WRITE; INSERT INTO parted (at) VALUES ('2026-08-08')",
    )?;
    let ended = running.finish(LIMIT)?.expect(1)?;
    ensure!(ended.text().contains("somebody still writes"), "{ended}");
    ensure!(writable(&source)? && writable(&target)?);
    drop((busy, stubborn));
    assert_eq!(cluster.state("node_b")?, "synchronized");

    // What is committed that way before the decision arrives.
    let override_it =
        "SET default_transaction_read_only = off; INSERT INTO parted (at) VALUES ('2026-09-09')";
    let busy = Session::sleeping(
        &source,
        "busy",
        "BEGIN; INSERT INTO parted (at) VALUES ('2026-07-07')",
    )?;
    let limit = ["--terminate-after", "6s"];
    let running = begun(&cluster, &switchover(&limit), "stop_writes")?;
    wait::until_true("writes to be stopped", LIMIT, || Ok(!writable(&source)?))?;
    source.sql(override_it)?;
    running.finish(LIMIT)?.expect(0)?;
    drop(busy);
    let count = "SELECT count(*) FROM parted WHERE at = '2026-09-09'";
    assert_eq!(target.sql(count)?, "1");
    Ok(())
}

#[test]
fn what_speaks_against_it_is_said_before_anything_changes() -> Result<()> {
    let cluster = ready()?;
    let [source, target] = both(&cluster);
    source.sql(
        "CREATE ROLE \"We\"\"ird\" LOGIN; GRANT SELECT ON \"Work\" TO \"We\"\"ird\";
         ALTER ROLE \"We\"\"ird\" SET default_transaction_read_only = off;
         CREATE TABLE later (id int PRIMARY KEY)",
    )?;
    let plan = cluster
        .cli(&switchover(&["--dry-run"]))?
        .expect(1)?
        .last_object()?;
    let findings = plan["findings"].as_array().context("findings")?;
    let of = |code: &str| findings.iter().find(|found| found["code"] == code);
    for (code, said) in [
        ("roles_missing", "We\"ird"),
        ("roles_that_write", "We\"ird"),
        ("not_replicated", "later"),
    ] {
        let found = of(code).with_context(|| format!("{code}: {plan}"))?;
        ensure!(
            found["what"].as_str().unwrap_or_default().contains(said),
            "{found}"
        );
        assert_eq!(found["severity"], "error", "{found}");
    }
    let refused = cluster.cli(&switchover(&[]))?.expect(1)?;
    ensure!(refused.text().contains("nothing was changed"), "{refused}");
    source.sql("ALTER ROLE \"We\"\"ird\" RESET default_transaction_read_only")?;
    ensure!(writable(&source)? && writable(&target)?);
    completed(&cluster, &switchover(&["--force"]))?;
    ensure!(!writable(&source)? && writable(&target)?);

    for (arguments, code, said) in [
        (
            vec!["switchover", "--from", "node_a", "--to", "node_a", "--yes"],
            2,
            "two nodes",
        ),
        (
            vec!["switchover", "--from", "node_a", "--to", "node_x", "--yes"],
            2,
            "no node is called",
        ),
        (
            vec!["switchover", "--from", "node_b", "--to", "node_a", "--yes"],
            1,
            "does not follow",
        ),
    ] {
        let refused = cluster.cli(&arguments)?.expect(code)?;
        ensure!(refused.text().contains(said), "{refused}");
    }
    Ok(())
}

#[test]
fn an_agent_without_superuser_rights_names_the_grants_that_it_lacks() -> Result<()> {
    let Some(mut cluster) = Cluster::of_owners("keeper")? else {
        return Ok(());
    };
    let [source, target] = both(&cluster);
    source.sql("SET ROLE keeper; CREATE TABLE item (id bigserial PRIMARY KEY); INSERT INTO item DEFAULT VALUES")?;
    target.sql("GRANT pg_create_subscription TO keeper; GRANT SET ON PARAMETER session_replication_role TO keeper")?;
    cluster.start_coordinator()?;
    cluster.start_agent("node_a")?;
    cluster.start_agent("node_b")?;
    cluster.wait_online(&["node_a", "node_b"])?;
    cluster.init(&[])?.expect(0)?;
    let plan = cluster
        .cli(&switchover(&["--dry-run"]))?
        .expect(1)?
        .last_object()?;
    let fixes = plan["findings"].to_string();
    ensure!(
        fixes.contains("GRANT pg_read_all_stats, pg_signal_backend TO \\\"keeper\\\""),
        "{fixes}"
    );
    let plan = cluster
        .cli(&switchover(&["--dry-run", "--reverse"]))?
        .expect(1)?;
    let fixes = plan.last_object()?["findings"].to_string();
    for grant in [
        "GRANT pg_create_subscription TO",
        "pg_replication_origin_advance(text, pg_lsn)",
    ] {
        ensure!(fixes.contains(grant), "{grant}: {fixes}");
    }
    for database in [&source, &target] {
        database.sql("GRANT pg_read_all_stats, pg_signal_backend TO keeper")?;
    }
    completed(&cluster, &switchover(&[]))?;
    target.sql("SET ROLE keeper; INSERT INTO item DEFAULT VALUES")?;
    ensure!(!writable(&source)? && writable(&target)?);
    Ok(())
}

#[test]
fn rows_that_differ_once_writes_are_stopped_undo_it_and_tables_that_are_too_large_are_named()
-> Result<()> {
    let cluster = ready()?;
    let [source, target] = both(&cluster);
    source.sql(
        "INSERT INTO \"Fr\"\"ück\".\"a;b\" (body) SELECT 'more' FROM generate_series(1, 20000);
         ANALYZE \"Fr\"\"ück\".\"a;b\"",
    )?;
    target.sql("INSERT INTO \"Work\" (writer, n) VALUES (-1, -1)")?;
    let ended = wait::until("servers to answer", LIMIT, || {
        let ended = cluster.cli(&switchover(&[]))?;
        Ok((ended.code != 6).then_some(ended))
    })?;
    let ended = ended.expect(3)?;
    let said = "public.Work has 1 rows there and 0 on node_a";
    ensure!(ended.text().contains(said), "{ended}");
    ensure!(writable(&source)? && writable(&target)?);
    target.sql("DELETE FROM \"Work\"")?;
    let done = completed(&cluster, &switchover(&[]))?;
    println!("{done}");
    assert_eq!(done["tables_compared"], 2, "{done}");
    let others = &done["tables_not_compared"];
    assert_eq!(others["count"], 1, "{done}");
    ensure!(others["names"][0].to_string().contains("a;b"), "{done}");
    Ok(())
}
