//! What is said of the tables that a node follows, and of orders that name others.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use steep_tests::cluster::{Cluster, Output};
use steep_tests::session::Session;
use steep_tests::wait;

const LIMIT: Duration = Duration::from_secs(90);

/// Agents look at schemas once a second.
fn watched() -> Result<Cluster> {
    let cluster = Cluster::builder()
        .agent_argument("node_a", "--schema-check-interval=1s")
        .agent_argument("node_b", "--schema-check-interval=1s")
        .start()?;
    cluster.database("node_a").sql(
        "CREATE TABLE kept (id int PRIMARY KEY);
         CREATE TABLE gone (id int PRIMARY KEY);
         CREATE TABLE never (id int PRIMARY KEY);
         CREATE TABLE parted (id int PRIMARY KEY) PARTITION BY RANGE (id);
         CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (0) TO (1000)",
    )?;
    cluster
        .init(&["--exclude-table", "public.never"])?
        .expect(0)?;
    Ok(cluster)
}

fn tables(cluster: &Cluster, command: &str, further: &[&str]) -> Result<Output> {
    cluster.cli(&[&["tables", command, "--node", "node_b"], further].concat())
}

/// The state of a table in the list.
fn listed(cluster: &Cluster, table: &str) -> Result<String> {
    let list = tables(cluster, "list", &["--json"])?
        .expect(0)?
        .last_object()?;
    let all = list["tables"].as_array().context("tables")?;
    let found = all.iter().find(|one| one["table"] == table);
    let state = found.map(|one| one["state"].as_str().unwrap_or_default().to_owned());
    Ok(state.unwrap_or_else(|| "not listed".to_owned()))
}

fn view(cluster: &Cluster) -> Result<Value> {
    cluster.node_view("node_b")?.context("node_b")
}

/// Whether operators are told that the node does not follow that table.
fn is_told(cluster: &Cluster, table: &str) -> Result<bool> {
    Ok(view(cluster)?["warnings"].to_string().contains(table))
}

#[test]
fn tables_are_listed_as_what_they_are_and_only_followed_ones_are_dropped() -> Result<()> {
    let cluster = watched()?;
    let source = cluster.database("node_a");
    for (named, said) in [
        ("public.nosuch", "public.nosuch (there is no such table)"),
        ("public.never", "public.never"),
    ] {
        let refused = tables(&cluster, "drop", &["public.kept", named, "--yes"])?.expect(1)?;
        ensure!(refused.text().contains(said), "{refused}");
        ensure!(!refused.text().contains("public.kept,"), "{refused}");
    }
    assert_eq!(listed(&cluster, "kept")?, "followed");
    assert_eq!(listed(&cluster, "never")?, "left_out");
    tables(&cluster, "drop", &["public.gone", "--yes"])?.expect(0)?;
    assert_eq!(listed(&cluster, "gone")?, "left_out");
    let again = tables(&cluster, "drop", &["public.gone", "--yes"])?.expect(1)?;
    ensure!(again.text().contains("public.gone"), "{again}");

    source.sql("CREATE TABLE parted_2 PARTITION OF parted FOR VALUES FROM (1000) TO (2000)")?;
    wait::until_true("the partition to be listed as not followed", LIMIT, || {
        Ok(listed(&cluster, "parted_2")? == "not_followed")
    })?;
    assert_eq!(listed(&cluster, "parted_1")?, "followed");
    // A partitioned table stands for its partitions.
    tables(&cluster, "drop", &["public.parted", "--yes"])?.expect(0)?;
    assert_eq!(listed(&cluster, "parted_1")?, "left_out");
    Ok(())
}

#[test]
fn an_addition_makes_what_its_tables_need_and_forgets_no_other_new_table() -> Result<()> {
    let cluster = watched()?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    source.sql(
        "CREATE TYPE unrelated AS ENUM ('a');
         CREATE SCHEMA types; CREATE TYPE types.mood AS ENUM ('sad', 'ok');
         CREATE DOMAIN types.moods AS types.mood[];
         CREATE TYPE pair AS (one types.moods, other int4range);
         CREATE TABLE one (id int PRIMARY KEY, pairs pair[], felt types.mood DEFAULT 'ok');
         CREATE TABLE other (id int PRIMARY KEY);
         INSERT INTO one VALUES (1, ARRAY[ROW(ARRAY['sad', 'ok'], '[1,2]')]::pair[])",
    )?;
    // One of its types is there already.
    target.sql("CREATE SCHEMA types; CREATE TYPE types.mood AS ENUM ('sad', 'ok')")?;
    wait::until_true("both tables to be told", LIMIT, || {
        Ok(is_told(&cluster, "public.one")? && is_told(&cluster, "public.other")?)
    })?;
    tables(&cluster, "add", &["public.one"])?.expect(0)?;
    let made = "SELECT string_agg(typname, ' ' ORDER BY typname) FROM pg_type t JOIN pg_namespace n ON n.oid = typnamespace
        WHERE n.nspname IN ('public', 'types') AND typtype IN ('e', 'd')";
    assert_eq!(target.sql(made)?, "mood moods");
    assert_eq!(target.sql("SELECT count(*) FROM one")?, "1");
    wait::until_true("the table that is added not to be told", LIMIT, || {
        Ok(!is_told(&cluster, "public.one")?)
    })?;
    // Looks have come since the publication was marked anew.
    source.sql("CREATE TABLE third (id int PRIMARY KEY)")?;
    wait::until_true("the third table to be told", LIMIT, || {
        is_told(&cluster, "public.third")
    })?;
    ensure!(is_told(&cluster, "public.other")?, "{}", view(&cluster)?);
    Ok(())
}

#[test]
fn a_diverged_node_stays_so_when_an_addition_is_cancelled_or_fails() -> Result<()> {
    let cluster = watched()?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    source.sql(
        "CREATE TABLE later (id int PRIMARY KEY, body text);
         INSERT INTO later SELECT n, repeat('x', 300) FROM generate_series(1, 20000) n",
    )?;
    let subscription = target.sql("SELECT subname FROM pg_subscription")?;
    target.sql(&format!("ALTER SUBSCRIPTION {subscription} DISABLE"))?;
    cluster.wait_state("node_b", &["diverged"], LIMIT)?;
    let slowly = [
        "public.later",
        "--parallel",
        "1",
        "--max-rate",
        "100kB",
        "--detach",
    ];
    tables(&cluster, "add", &slowly)?.expect(0)?;
    cluster.wait_phase("node_b", "copy")?;
    let cancelled = cluster.cli(&["init", "cancel", "--node", "node_b", "--yes"])?;
    let cancelled = cancelled.expect(0)?;
    ensure!(
        cancelled.stdout.contains("node_b is diverged"),
        "{cancelled}"
    );
    target.sql("CREATE TABLE later (id int PRIMARY KEY, body int)")?;
    tables(&cluster, "add", &["public.later"])?.expect(3)?;
    assert_eq!(cluster.state("node_b")?, "diverged");
    let message = view(&cluster)?["error_message"].to_string();
    ensure!(message.contains("disabled"), "{message}");
    let events = cluster
        .cli(&["events", "node_b", "--json"])?
        .expect(0)?
        .objects();
    let states: Vec<&str> = events
        .iter()
        .filter(|event| event["event"] == "init.state_change")
        .filter_map(|event| event["to"].as_str())
        .collect();
    let since = states
        .iter()
        .position(|to| *to == "diverged")
        .context("diverged")?;
    ensure!(!states[since..].contains(&"synchronized"), "{states:?}");
    Ok(())
}

#[test]
fn what_is_added_by_hand_is_not_added_again_by_the_policy() -> Result<()> {
    let cluster = watched()?;
    let source = cluster.database("node_a");
    tables(&cluster, "policy", &["add"])?.expect(0)?;
    source.sql("CREATE TABLE later (id int PRIMARY KEY)")?;
    wait::until_true("the table to be told", LIMIT, || {
        is_told(&cluster, "public.later")
    })?;
    // The policy's own time passes while somebody keeps the table from joining.
    let writer = Session::sleeping(&source, "writer", "BEGIN; INSERT INTO later VALUES (1)")?;
    let adding = cluster.cli_spawn(&["tables", "add", "--node", "node_b", "public.later"])?;
    cluster.wait_state("node_b", &["reinitializing"], LIMIT)?;
    std::thread::sleep(Duration::from_secs(12));
    drop(writer);
    adding.finish(LIMIT)?.expect(0)?;
    // The next look at the source has come.
    source.sql("CREATE TABLE brief (id int PRIMARY KEY)")?;
    wait::until_true("the other table to be told", LIMIT, || {
        is_told(&cluster, "public.brief")
    })?;
    let view = view(&cluster)?;
    assert_eq!(view["state"], "synchronized", "{view}");
    ensure!(view["error_message"].is_null(), "{view}");
    Ok(())
}

#[test]
fn code_of_owners_is_not_run_by_a_policy_and_keeps_no_other_table_out() -> Result<()> {
    let cluster = watched()?;
    let source = cluster.database("node_a");
    for node in ["node_a", "node_b"] {
        cluster.database(node).sql(
            "CREATE ROLE mallory;
             CREATE FUNCTION fine(id int) RETURNS boolean IMMUTABLE LANGUAGE sql AS 'SELECT true';
             ALTER FUNCTION fine OWNER TO mallory",
        )?;
    }
    tables(&cluster, "policy", &["add"])?.expect(0)?;
    source.sql(
        "CREATE TABLE a_risk (id int PRIMARY KEY CHECK (fine(id))); ALTER TABLE a_risk OWNER TO mallory;
         CREATE TABLE plain (id int PRIMARY KEY)",
    )?;
    wait::until_true("the other table to be followed", LIMIT, || {
        Ok(listed(&cluster, "plain")? == "followed")
    })?;
    assert_eq!(listed(&cluster, "a_risk")?, "not_followed");
    let events = cluster.cli(&["events", "node_b", "--json"])?.expect(0)?;
    let why = "fine(integer) of mallory by a check of public.a_risk";
    ensure!(events.text().contains(why), "{events}");
    let there = "SELECT to_regclass('a_risk') IS NULL";
    assert_eq!(cluster.database("node_b").sql(there)?, "t");
    // Nor are rows given to whoever has made a table of the name.
    source.sql("CREATE TABLE aimed (id int PRIMARY KEY)")?;
    let target = cluster.database("node_b");
    target.sql("CREATE TABLE aimed (id int PRIMARY KEY); ALTER TABLE aimed OWNER TO mallory")?;
    wait::until_true("it to be refused", LIMIT, || {
        let events = cluster.cli(&["events", "node_b", "--json"])?.expect(0)?;
        Ok(events
            .text()
            .contains("public.aimed is here already and belongs to mallory"))
    })?;
    target.sql("DROP TABLE aimed")?;
    // Whoever asks for it is warned.
    tables(&cluster, "policy", &["report"])?.expect(0)?;
    cluster.wait_state("node_b", &["synchronized"], LIMIT)?;
    let added = tables(&cluster, "add", &["public.a_risk"])?.expect(0)?;
    ensure!(added.text().contains(why), "{added}");
    assert_eq!(listed(&cluster, "a_risk")?, "followed");
    Ok(())
}
