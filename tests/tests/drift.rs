//! Nodes that stop following: every cause is named, its repair is noticed, accepted differences
//! stay accepted, and what cannot be repaired is not taken for repaired. A cancel removes what auto
//! created, and nothing else.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use steep_tests::cluster::{CLI_LIMIT, Cluster};
use steep_tests::session::Session;
use steep_tests::{hostile, residue, schema, wait};

/// A drift is seen within this time if columns are checked every second.
const DRIFT_LIMIT: Duration = Duration::from_secs(30);

/// A failing subscription is reported, or a repaired one recognised, within this time.
const SUBSCRIPTION_LIMIT: Duration = Duration::from_secs(60);

fn watched() -> Result<Cluster> {
    Cluster::builder()
        // A failing subscription retries soon.
        .setting("node_b", "wal_retrieve_retry_interval", "1s")
        .agent_argument("node_a", "--schema-check-interval=1s")
        .agent_argument("node_b", "--schema-check-interval=1s")
        .coordinator_argument("--drift-grace=2s")
        .start()
}

fn reason(cluster: &Cluster) -> Result<String> {
    let view = cluster.node_view("node_b")?.context("node_b")?;
    let said = view["error_message"].as_str();
    Ok(said.unwrap_or_default().to_owned())
}

/// Waits until the reason contains all these words.
fn wait_reason(cluster: &Cluster, words: &[&str]) -> Result<()> {
    let mut said = String::new();
    let all = wait::until_true("the reason to be told", DRIFT_LIMIT, || {
        said = reason(cluster)?;
        Ok(words.iter().all(|word| said.contains(word)))
    });
    all.with_context(|| format!("{words:?} in {said:?}"))
}

fn wait_diverged(cluster: &Cluster, words: &[&str]) -> Result<()> {
    cluster.wait_state("node_b", &["diverged"], DRIFT_LIMIT)?;
    wait_reason(cluster, words)
}

fn wait_recovered(cluster: &Cluster) -> Result<()> {
    let state = cluster.wait_state("node_b", &["synchronized"], DRIFT_LIMIT);
    state
        .with_context(|| reason(cluster).unwrap_or_default())
        .map(drop)
}

fn events(cluster: &Cluster) -> Result<Vec<Value>> {
    let output = cluster.cli(&["events", "node_b", "--json"])?;
    Ok(output.expect(0)?.objects())
}

fn count(events: &[Value], event: &str, to: &str) -> usize {
    let same = |e: &&Value| e["event"] == event && (to.is_empty() || e["to"] == to);
    events.iter().filter(same).count()
}

/// A statement for the target's only subscription.
fn alter_subscription(what: &str) -> String {
    let name = "(SELECT subname FROM pg_subscription WHERE subname LIKE 'steep%')";
    format!("SELECT format('ALTER SUBSCRIPTION %I {what}', {name}) \\gexec")
}

#[test]
fn drift_is_named_and_its_repair_is_noticed() -> Result<()> {
    let cluster = watched()?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    hostile::create_roles(&source)?;
    hostile::create_roles(&target)?;
    hostile::create(&source, &target, hostile::Large { megabytes: 1 })?;
    source.sql("CREATE TABLE public.goes (id integer PRIMARY KEY)")?;
    cluster.init(&[])?.expect(0)?;
    // A replica made from its source has no difference from it, whatever it contains.
    cluster
        .cli(&["schema", "compare", "node_a", "node_b"])?
        .expect(0)?;
    // The agents' query for all replications gives the same digests as the SQL function.
    let asked = schema::digests()?;
    let said = "SELECT name, steep_repl.replicated_digest(name) FROM (SELECT pubname::text AS name FROM pg_publication
        WHERE pubname LIKE 'steep\\_repl\\_%' UNION SELECT subname::text FROM pg_subscription) AS n";
    let both = [source.sql(&asked)?, target.sql(&asked)?];
    assert_eq!(both, [source.sql(said)?, target.sql(said)?]);
    assert_eq!(both[0], both[1]);
    ensure!(both[0].len() > 64, "{both:?}");
    // Nobody replicates it.
    source.sql("CREATE TABLE later (id integer)")?;

    let table = schema::some_table(&target)?;
    target.sql(&format!("ALTER TABLE {table} ADD COLUMN drifted integer"))?;
    wait_diverged(&cluster, &["drifted", "extra"])?;
    // A second cause is reported beside the first, and disappears by itself.
    target.sql(&alter_subscription("DISABLE"))?;
    wait_reason(&cluster, &["drifted", "disabled"])?;
    target.sql(&format!("ALTER TABLE {table} DROP COLUMN drifted"))?;
    wait::until_true("the reason to be the other", DRIFT_LIMIT, || {
        Ok(!reason(&cluster)?.contains("drifted"))
    })?;
    target.sql(&alter_subscription("ENABLE"))?;
    wait_recovered(&cluster)?;
    // A table that the source no longer has.
    source.sql("DROP TABLE public.goes")?;
    wait_diverged(&cluster, &["table public.goes is on node_b only"])?;
    target.sql("DROP TABLE public.goes")?;
    wait_recovered(&cluster)?;

    let events = events(&cluster)?;
    assert_eq!(count(&events, "init.state_change", "diverged"), 2);
    assert_eq!(count(&events, "init.state_change", "synchronized"), 3);
    assert_eq!(count(&events, "schema.mismatch_detected", ""), 2);
    let named = |word: &str| {
        let mut events = events.iter().filter(|e| e["event"] != "table.appeared");
        events.any(|e| e.to_string().contains(word))
    };
    assert!(!named("public.later"), "nobody replicates it");
    Ok(())
}

#[test]
fn what_auto_left_as_it_was_is_no_drift_and_what_comes_after_it_is() -> Result<()> {
    let cluster = watched()?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    let parted = "CREATE TABLE parted (id integer PRIMARY KEY) PARTITION BY RANGE (id);
        CREATE TABLE first PARTITION OF parted FOR VALUES FROM (0) TO (10);";
    let second = "CREATE TABLE second PARTITION OF parted FOR VALUES FROM (10) TO (20)";
    source.sql(&format!(
        "{parted} CREATE TABLE t (id integer PRIMARY KEY, a integer, b integer);
         CREATE TABLE apart (id integer PRIMARY KEY)"
    ))?;
    target.sql(&format!(
        "{parted} CREATE TABLE t (id integer PRIMARY KEY, b integer, a integer)"
    ))?;
    // Stored fingerprints of tables left out by a job stay.
    cluster
        .cli(&["schema", "capture", "--node", "node_b", "--peer", "node_a"])?
        .expect(0)?;
    let stored = "SELECT string_agg(table_name || fingerprint, ',' ORDER BY 1)
        FROM steep_repl.schema_fingerprints WHERE node_id = 'node_a'";
    let captured = target.sql(stored)?;
    let arguments = ["--schema-sync", "auto", "--exclude-table", "public.apart"];
    let shown = cluster.init(&arguments)?.expect(0)?;
    assert_eq!(shown.objects()[0]["event"], "init.plan", "{shown}");
    assert_eq!(target.sql(stored)?, captured);

    let compared = || -> Result<usize> {
        let agent = cluster.node("node_b").agent().context("an agent")?;
        let done = agent.events("command.completed")?;
        Ok(done
            .iter()
            .filter(|e| e["command"] == "compare_replicated")
            .count())
    };
    let wait_judged = |what: &str, before: usize| {
        wait::until_true(what, DRIFT_LIMIT, || Ok(compared()? >= before + 2))
    };
    wait_judged("the order of columns to be seen twice", 0)?;
    // On both ends, one after the other.
    let before = compared()?;
    for database in [&source, &target] {
        database.sql("ALTER TABLE t ADD COLUMN c integer")?;
    }
    wait_judged("the new columns to be seen twice", before)?;
    assert_eq!(
        count(&events(&cluster)?, "init.state_change", "diverged"),
        0
    );

    target.sql("ALTER TABLE t ALTER COLUMN c TYPE bigint")?;
    wait_diverged(&cluster, &["column c of public.t differs (type_change)"])?;
    ensure!(
        !reason(&cluster)?.contains("order"),
        "{}",
        reason(&cluster)?
    );
    // The same for changes on the source. A new partition is in the publication at once, and in the
    // subscription after a refresh.
    let add = "ALTER TABLE t ADD COLUMN d integer";
    source.sql(&format!("{add}; {second}"))?;
    let words = [
        "column c of public.t differs (type_change)",
        "column d of public.t is missing on node_b",
        "table public.second is missing on node_b",
    ];
    wait_reason(&cluster, &words)?;
    target.sql(&format!(
        "ALTER TABLE t ALTER COLUMN c TYPE integer; {add}; {second}"
    ))?;
    target.sql(&alter_subscription(
        "REFRESH PUBLICATION WITH (copy_data = false)",
    ))?;
    wait_recovered(&cluster)?;
    source.sql("INSERT INTO parted VALUES (11)")?;
    cluster.wait_drained("node_a")?;
    assert_eq!(target.sql("SELECT id FROM second")?, "11");
    assert_eq!(target.sql(stored)?, captured, "a look stores nothing");
    Ok(())
}

#[test]
fn a_subscription_that_keeps_failing_recovers_and_a_slot_made_again_does_not() -> Result<()> {
    let cluster = watched()?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    source.sql("CREATE TABLE t (id integer PRIMARY KEY, body text)")?;
    cluster.init(&[])?.expect(0)?;
    target.sql("INSERT INTO t VALUES (1, 'in the way')")?;
    source.sql("INSERT INTO t VALUES (1, 'replicated')")?;
    cluster.wait_state("node_b", &["diverged"], SUBSCRIPTION_LIMIT)?;
    wait_reason(&cluster, &["keeps failing"])?;
    target.sql("DELETE FROM t")?;
    cluster.wait_state("node_b", &["synchronized"], SUBSCRIPTION_LIMIT)?;
    assert_eq!(target.sql("SELECT body FROM t")?, "replicated");

    let slot = source.sql("SELECT slot_name FROM pg_replication_slots")?;
    wait::until_true("the slot to be dropped", DRIFT_LIMIT, || {
        source.sql(
            "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active",
        )?;
        // Fails while the walsender still runs.
        let drop = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots";
        let _ = source.sql(drop);
        Ok(source.sql("SELECT count(*) FROM pg_replication_slots")? == "0")
    })?;
    wait_diverged(&cluster, &["slot on node_a is gone"])?;
    source.sql("INSERT INTO t VALUES (2, 'missing')")?;
    source.sql(&format!(
        "SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')"
    ))?;
    source.sql("INSERT INTO t VALUES (3, 'after')")?;
    wait::until_true("replication to go on", SUBSCRIPTION_LIMIT, || {
        Ok(target.sql("SELECT string_agg(id::text, ',' ORDER BY id) FROM t")? == "1,3")
    })?;
    // Slot and subscription look sound to both agents, yet the row in between is missing.
    wait::until_true("the slot to be seen", DRIFT_LIMIT, || {
        let view = cluster.node_view("node_b")?.context("node_b")?;
        Ok(view["lag_bytes"].is_number())
    })?;
    assert_eq!(cluster.state("node_b")?, "diverged");
    wait_reason(&cluster, &["initialised anew"])?;
    cluster
        .cli(&["init", "cancel", "--node", "node_b", "--yes"])?
        .expect(0)?;
    assert_eq!(cluster.state("node_b")?, "uninitialized");
    Ok(())
}

#[test]
fn what_auto_has_made_goes_with_its_job_and_nothing_else_does() -> Result<()> {
    let cluster = Cluster::pair()?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    source.sql(
        "CREATE TYPE mood AS ENUM ('sad', 'ok');
         CREATE TYPE unused AS ENUM ('x');
         CREATE TABLE t (id integer PRIMARY KEY, kind mood);
         CREATE TABLE made (id integer PRIMARY KEY, body text, u unused);
         CREATE TABLE child (id integer PRIMARY KEY, made_id integer REFERENCES made);
         INSERT INTO made SELECT n, repeat('x', 500) FROM generate_series(1, 40000) n",
    )?;
    target.sql(
        "CREATE TABLE t (id integer PRIMARY KEY, kind text);
         CREATE TABLE child (id integer PRIMARY KEY, made_id integer);
         INSERT INTO t VALUES (1, 'ok')",
    )?;
    // Strict exits with its own code whatever else is wrong: here the target has rows.
    cluster.init(&[])?.expect(3)?;
    cluster
        .cli(&["doctor", "node_b", "--from", "node_a"])?
        .expect(3)?;
    target.sql("DELETE FROM t")?;

    let lock = Session::sleeping(
        &target,
        "reader",
        "BEGIN; LOCK TABLE t IN ACCESS SHARE MODE",
    )?;
    let arguments = ["--schema-sync", "auto", "--max-rate", "1MB"];
    let job = cluster.init_spawn(&arguments)?;
    wait::until_true("the plan to wait for the lock", DRIFT_LIMIT, || {
        let waiting =
            "SELECT count(*) FROM pg_locks WHERE relation = 't'::regclass AND NOT granted";
        Ok(target.sql(waiting)? != "0")
    })?;
    // Others work in the meantime.
    target.sql("CREATE TABLE others (id integer); CREATE TYPE theirs AS ENUM ('y')")?;
    drop(lock);
    cluster.wait_copying("node_b")?;
    assert_eq!(target.sql("SELECT to_regclass('made') IS NOT NULL")?, "t");
    target.sql("CREATE VIEW of_others AS SELECT * FROM child")?;
    cluster
        .cli(&["init", "cancel", "--node", "node_b", "--yes"])?
        .expect(0)?;
    job.finish(CLI_LIMIT)?.expect(4)?;

    let there = "SELECT string_agg(name || '=' || (oid IS NOT NULL), ' ' ORDER BY name) FROM (
        SELECT name, to_regclass(name)::oid AS oid
            FROM unnest('{t,child,made,others,of_others}'::text[]) AS r (name)
        UNION ALL SELECT name, to_regtype(name)::oid
            FROM unnest('{mood,unused,theirs}'::text[]) AS r (name)) AS x";
    assert_eq!(
        target.sql(there)?,
        "child=true made=false mood=true of_others=true others=true t=true theirs=true unused=false"
    );
    // The type that an existing column was changed to is in use.
    let kind = "SELECT atttypid::regtype FROM pg_attribute WHERE attrelid = 't'::regclass AND attname = 'kind'";
    assert_eq!(target.sql(kind)?, "mood");
    residue::of_jobs(&target)?.none()?;
    assert_eq!(count(&events(&cluster)?, "schema.sync_applied", ""), 1);
    Ok(())
}
