//! Tables join and leave the replication of a node that follows, while all its others go on.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use steep_tests::cluster::{Cluster, Output};
use steep_tests::load::{Intensity, Load};
use steep_tests::pg::{Database, Grouping};
use steep_tests::session::Session;
use steep_tests::{compare, sample, wait};

const LIMIT: Duration = Duration::from_secs(120);

/// A table with a name that no parser likes, as SQL and as a command line takes it.
const LATER: (&str, &str) = (
    r#""New ☃"."it's ""later"".""#,
    r#""New ☃"."it's ""later"".""#,
);

/// A table that is made after the init, with rows. Each transaction of the load writes to it.
fn made_later(source: &Database, rows: u32) -> Result<()> {
    let later = LATER.0;
    source.sql(&format!(
        r#"CREATE SCHEMA "New ☃";
        CREATE TYPE "New ☃".mood AS ENUM ('sad', 'ok');
        CREATE TABLE {later} (id serial PRIMARY KEY, body text, felt "New ☃".mood NOT NULL DEFAULT 'ok',
            tid int REFERENCES pgbench_tellers, CHECK (length(body) > 0));
        CREATE INDEX ON {later} (tid);
        COMMENT ON TABLE {later} IS 'it''s new';
        GRANT SELECT (body) ON {later} TO PUBLIC;
        ALTER TABLE {later} ENABLE ROW LEVEL SECURITY;
        CREATE POLICY told ON {later} FOR SELECT USING (felt = 'ok');
        CREATE TRIGGER same BEFORE UPDATE ON {later} FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger();
        INSERT INTO {later} (body, tid) SELECT repeat(md5(g::text), 8), 1 + g % 10 FROM generate_series(1, {rows}) AS g;
        CREATE FUNCTION "New ☃".writes() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            INSERT INTO {later} (body, tid) VALUES ('written ' || NEW.aid, NEW.tid);
            UPDATE {later} SET body = body || '.' WHERE id IN (NEW.aid % {rows}, NEW.aid % 7);
            DELETE FROM {later} WHERE id = NEW.aid % 1000 + 10;
            RETURN NULL; END $$;
        CREATE TRIGGER writes AFTER INSERT ON pgbench_history
            FOR EACH ROW EXECUTE FUNCTION "New ☃".writes()"#
    ))?;
    Ok(())
}

fn load(cluster: &Cluster) -> Result<Load> {
    let source = cluster.database("node_a");
    Load::start(&source, Intensity::LIGHT, Grouping::Shared)
}

/// Synchronized, and written to all the time.
fn following(cluster: Cluster) -> Result<(Cluster, Load)> {
    sample::create(&cluster.database("node_a"), 1)?;
    let load = load(&cluster)?;
    cluster.init(&[])?.expect(0)?;
    Ok((cluster, load))
}

fn tables(cluster: &Cluster, command: &str, further: &[&str]) -> Result<Output> {
    cluster.cli(&[&["tables", command, "--node", "node_b"], further].concat())
}

/// What a command has said to people.
fn said(output: &Output) -> String {
    format!("{}{}", output.stdout, output.stderr)
}

fn events(cluster: &Cluster, name: &str) -> Result<Vec<Value>> {
    let events = cluster.cli(&["events", "node_b", "--json"])?.expect(0)?;
    let named = |event: &&Value| event["event"] == name;
    Ok(events.objects().iter().filter(named).cloned().collect())
}

/// Follows by one slot, publication and subscription, and has the rows of all its tables.
fn follows_exactly(cluster: &Cluster, load: Load) -> Result<()> {
    load.stop()?;
    cluster.wait_drained("node_a")?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    compare::rows(&source, &target)?.none()?;
    one_of_each(cluster)?;
    assert_eq!(cluster.state("node_b")?, "synchronized");
    Ok(())
}

fn one_of_each(cluster: &Cluster) -> Result<()> {
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    for (database, what) in [
        (&source, "pg_replication_slots"),
        (&source, "pg_publication"),
        (&target, "pg_subscription"),
        (&target, "pg_replication_origin"),
    ] {
        let count: u32 = database.value(&format!("SELECT count(*) FROM {what}"))?;
        assert_eq!(count, 1, "{what}");
    }
    let ledger: u32 = target.value("SELECT count(*) FROM steep_repl.copy_ledger")?;
    assert_eq!(ledger, 0);
    Ok(())
}

#[test]
fn a_table_that_is_added_is_copied_exactly_while_all_others_go_on() -> Result<()> {
    let (cluster, load) = following(Cluster::pair()?)?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    made_later(&source, 10_000)?;
    let listed = tables(&cluster, "list", &["--json"])?
        .expect(0)?
        .last_object()?;
    assert_eq!(listed["not_followed"], 1, "{listed}");
    assert_eq!(listed["tables"][0]["schema"], "New ☃");
    let end = tables(&cluster, "add", &[LATER.1, "--json"])?
        .expect(0)?
        .last_object()?;
    assert_eq!(
        (end["event"].as_str(), end["state"].as_str()),
        (Some("tables.added"), Some("synchronized"))
    );
    ensure!(end["rows_copied"].as_u64() > Some(9_000), "{end}");
    let state = events(&cluster, "init.state_change")?;
    let last = state
        .iter()
        .rev()
        .take(2)
        .map(|e| e["to"].as_str())
        .collect::<Vec<_>>();
    assert_eq!(last, [Some("synchronized"), Some("reinitializing")]);
    follows_exactly(&cluster, load)?;
    // What writes to it was created on a table that is not new.
    source.sql(r#"DROP FUNCTION "New ☃".writes CASCADE"#)?;
    compare::schema(&source, &target)?.none()?;
    // It is one of its tables for good.
    let listed = tables(&cluster, "list", &["--json"])?
        .expect(0)?
        .last_object()?;
    assert_eq!(listed["not_followed"], 0, "{listed}");
    let again = tables(&cluster, "add", &[LATER.1])?.expect(1)?;
    ensure!(said(&again).contains("already"), "{again}");
    assert_eq!(cluster.state("node_b")?, "synchronized");
    source.sql(&format!(
        "UPDATE {} SET body = 'again' WHERE id < 2000",
        LATER.0
    ))?;
    cluster.wait_drained("node_a")?;
    compare::rows(&source, &target)?.none()
}

/// Starts to add the table, slowly, and returns once rows arrive.
fn adding_slowly(cluster: &Cluster) -> Result<()> {
    let slowly = [
        LATER.1,
        "--parallel",
        "1",
        "--max-rate",
        "100kB",
        "--detach",
    ];
    tables(cluster, "add", &slowly)?.expect(0)?;
    cluster.wait_phase("node_b", "copy")
}

#[test]
fn a_table_is_added_exactly_whoever_dies_in_whatever_phase() -> Result<()> {
    let (mut cluster, load) = following(Cluster::pair()?)?;
    made_later(&cluster.database("node_a"), 10_000)?;
    adding_slowly(&cluster)?;
    for node in ["node_b", "node_a"] {
        cluster.kill_agent(node)?;
        cluster.kill_coordinator()?;
        cluster.start_coordinator()?;
        cluster.start_agent(node)?;
        cluster.wait_online(&["node_a", "node_b"])?;
        cluster.wait_phase("node_b", "copy")?;
    }
    // A writer that stays open keeps the table from joining; meanwhile everybody dies.
    let open = format!("BEGIN; UPDATE {} SET body = body WHERE id = 5", LATER.0);
    let writer = Session::sleeping(&cluster.database("node_a"), "writer", &open)?;
    cluster.cli(&["init", "adjust", "--node", "node_b", "--max-rate", "none"])?;
    joins_in_vain(&cluster)?;
    for node in ["node_b", "node_a"] {
        cluster.kill_agent(node)?;
        cluster.start_agent(node)?;
        joins_in_vain(&cluster)?;
    }
    cluster.kill_coordinator()?;
    cluster.start_coordinator()?;
    joins_in_vain(&cluster)?;
    drop(writer);
    cluster.wait_state("node_b", &["synchronized"], LIMIT)?;
    assert_eq!(events(&cluster, "tables.added")?.len(), 1);
    follows_exactly(&cluster, load)
}

/// The job has tried to let the table join, by the processes that run now.
fn joins_in_vain(cluster: &Cluster) -> Result<()> {
    wait::until_true("the table to wait for its writer", LIMIT, || {
        let waiting = &cluster.progress("node_b")?["waiting"];
        let reason = waiting["reason"].as_str().unwrap_or_default();
        Ok(reason.contains("nobody writes to"))
    })
}

/// Nothing is left of the table, and the node follows in all others.
fn is_as_before(cluster: &Cluster) -> Result<()> {
    cluster.wait_state("node_b", &["synchronized"], LIMIT)?;
    let target = cluster.database("node_b");
    let left = r#"SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname LIKE 'New%'"#;
    assert_eq!(target.value::<u32>(left)?, 0, "tables are left");
    let types = "SELECT count(*) FROM pg_type WHERE typname = 'mood'";
    assert_eq!(target.value::<u32>(types)?, 0, "types are left");
    one_of_each(cluster)?;
    cluster.wait_drained("node_a")?;
    Ok(())
}

#[test]
fn a_cancel_in_mid_copy_and_one_while_it_joins_leave_the_node_as_it_was() -> Result<()> {
    let (cluster, load) = following(Cluster::pair()?)?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    made_later(&source, 10_000)?;
    let cancel = ["init", "cancel", "--node", "node_b", "--yes"];
    adding_slowly(&cluster)?;
    assert_eq!(cluster.state("node_b")?, "reinitializing");
    cluster.cli(&cancel)?.expect(0)?;
    is_as_before(&cluster)?;

    adding_slowly(&cluster)?;
    let open = format!("BEGIN; UPDATE {} SET body = body WHERE id = 5", LATER.0);
    let writer = Session::sleeping(&source, "writer", &open)?;
    cluster.cli(&["init", "adjust", "--node", "node_b", "--max-rate", "none"])?;
    joins_in_vain(&cluster)?;
    cluster.cli(&cancel)?.expect(0)?;
    drop(writer);
    is_as_before(&cluster)?;

    load.stop()?;
    cluster.wait_drained("node_a")?;
    compare::rows_except(&source, &target, &[LATER.0])?.none()?;
    // And once more, to the end.
    let load = self::load(&cluster)?;
    tables(&cluster, "add", &[LATER.1])?.expect(0)?;
    follows_exactly(&cluster, load)
}

#[test]
fn a_table_that_cannot_be_added_costs_the_node_nothing_and_says_why() -> Result<()> {
    let (cluster, load) = following(Cluster::pair()?)?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    source.sql(
        "CREATE TABLE other (id int PRIMARY KEY, body text); INSERT INTO other VALUES (1, 'a')",
    )?;
    target.sql("CREATE TABLE other (id int PRIMARY KEY, body int)")?;
    let differs = tables(&cluster, "add", &["public.other"])?.expect(3)?;
    ensure!(said(&differs).contains("column body"), "{differs}");
    target.sql("DROP TABLE other; CREATE TABLE other (id int PRIMARY KEY, body text); INSERT INTO other VALUES (7, 'b')")?;
    let full = tables(&cluster, "add", &["public.other"])?.expect(1)?;
    ensure!(said(&full).contains("--force"), "{full}");
    let unknown = tables(&cluster, "add", &["public.others"])?.expect(1)?;
    ensure!(said(&unknown).contains("public.other"), "{unknown}");
    let view = cluster.node_view("node_b")?.context("node_b")?;
    ensure!(
        view["error_message"]
            .as_str()
            .is_some_and(|why| why.contains("others")),
        "{view}"
    );
    assert_eq!(view["state"], "synchronized");
    assert_eq!(target.value::<u32>("SELECT count(*) FROM other")?, 1);
    // Two at once: the second is told.
    let first = cluster.cli_spawn(&[
        "tables",
        "add",
        "--node",
        "node_b",
        "public.other",
        "--force",
    ])?;
    cluster.wait_state("node_b", &["reinitializing"], LIMIT)?;
    let second = tables(&cluster, "drop", &["public.pgbench_branches", "--yes"])?.expect(1)?;
    ensure!(said(&second).contains("is running"), "{second}");
    first.finish(LIMIT)?.expect(0)?;
    follows_exactly(&cluster, load)
}

#[test]
fn a_table_that_is_dropped_keeps_its_rows_and_costs_the_others_no_change() -> Result<()> {
    let (cluster, load) = following(Cluster::pair()?)?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    let end = tables(
        &cluster,
        "drop",
        &["public.pgbench_tellers", "--yes", "--json"],
    )?;
    assert_eq!(end.expect(0)?.last_object()?["event"], "tables.dropped");
    let rows = target.value::<u32>("SELECT count(*) FROM pgbench_tellers")?;
    ensure!(rows > 0, "its rows are gone");
    load.stop()?;
    cluster.wait_drained("node_a")?;
    source.sql("DELETE FROM pgbench_tellers; UPDATE pgbench_branches SET bbalance = 7")?;
    cluster.wait_drained("node_a")?;
    compare::rows_except(&source, &target, &["public.pgbench_tellers"])?.none()?;
    assert_eq!(
        target.value::<u32>("SELECT count(*) FROM pgbench_tellers")?,
        rows
    );
    one_of_each(&cluster)?;
    assert_eq!(cluster.state("node_b")?, "synchronized");
    // It comes back with the rows that the source has now.
    source.sql("INSERT INTO pgbench_tellers VALUES (1, 1, 5, 'new')")?;
    let back = tables(&cluster, "add", &["public.pgbench_tellers", "--force"])?;
    back.expect(0)?;
    let load = self::load(&cluster)?;
    follows_exactly(&cluster, load)
}

/// Agents look at schemas once a second.
fn watched() -> Result<Cluster> {
    Cluster::builder()
        .agent_argument("node_a", "--schema-check-interval=1s")
        .agent_argument("node_b", "--schema-check-interval=1s")
        .setting("node_b", "wal_retrieve_retry_interval", "1s")
        .start()
}

#[test]
fn a_new_table_is_told_until_it_is_gone_and_followed_by_itself_where_that_is_the_policy()
-> Result<()> {
    let (cluster, load) = following(watched()?)?;
    let source = cluster.database("node_a");
    let told = || -> Result<bool> {
        let status = cluster.cli(&["nodes", "--json"])?.expect(0)?.stdout;
        Ok(status.contains("public.brief"))
    };
    source.sql("CREATE TABLE brief (id int PRIMARY KEY)")?;
    wait::until_true("the table to be told", LIMIT, told)?;
    assert_eq!(events(&cluster, "table.appeared")?.len(), 1);
    source.sql("DROP TABLE brief")?;
    wait::until_true("the table to be forgotten", LIMIT, || Ok(!told()?))?;

    tables(&cluster, "policy", &["add"])?.expect(0)?;
    made_later(&source, 1_000)?;
    wait::until_true("the table to be followed", LIMIT, || {
        Ok(!events(&cluster, "tables.added")?.is_empty())
    })?;
    follows_exactly(&cluster, load)
}

#[test]
fn a_partition_that_came_later_is_added_with_the_rows_it_had_and_got() -> Result<()> {
    let cluster = watched()?;
    let source = cluster.database("node_a");
    source.sql(
        "CREATE TABLE parted (id int PRIMARY KEY, body text) PARTITION BY RANGE (id);
         CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (0) TO (1000);
         INSERT INTO parted SELECT g, 'x' FROM generate_series(1, 500) AS g",
    )?;
    let (cluster, load) = following(cluster)?;
    source.sql(
        "CREATE TABLE parted_2 (LIKE parted INCLUDING ALL);
         INSERT INTO parted_2 SELECT g, 'y' FROM generate_series(1000, 1499) AS g;
         ALTER TABLE parted ATTACH PARTITION parted_2 FOR VALUES FROM (1000) TO (2000);
         INSERT INTO parted SELECT g, 'late' FROM generate_series(1500, 1999) AS g;
         UPDATE parted SET body = body || 'z' WHERE id > 400",
    )?;
    cluster.wait_state("node_b", &["diverged"], LIMIT)?;
    tables(&cluster, "add", &["public.parted_2"])?.expect(0)?;
    source.sql("UPDATE parted SET body = body || '!' WHERE id % 3 = 0")?;
    // Later partitions belong to it again.
    let named = "SELECT count(*) FROM pg_publication_rel r JOIN pg_class c ON c.oid = r.prrelid WHERE c.relname = 'parted'";
    assert_eq!(source.value::<u32>(named)?, 1);
    follows_exactly(&cluster, load)
}
