//! Sequences of a node that follows are kept up with the source's.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use steep_tests::cluster::Cluster;
use steep_tests::pg::Database;
use steep_tests::session::Session;
use steep_tests::{scrape, wait};

const LIMIT: Duration = Duration::from_secs(60);

const SHAPE: &str = "CREATE TABLE item (id serial PRIMARY KEY, body text);
    CREATE TABLE private (id serial PRIMARY KEY);
    CREATE TABLE told (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY);
    CREATE TABLE parted (id serial, at date, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
    CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
    CREATE SEQUENCE down INCREMENT -1;
    CREATE SEQUENCE ahead;
    CREATE SEQUENCE small;
    SELECT format('CREATE SEQUENCE many_%s', n) FROM generate_series(1, 1000) AS n \\gexec";

const WRITES: &str = "INSERT INTO item (body) SELECT 'row' FROM generate_series(1, 100);
    INSERT INTO told DEFAULT VALUES; INSERT INTO private DEFAULT VALUES;
    INSERT INTO parted (at) VALUES ('2026-02-01');
    SELECT nextval('down'), nextval('down'), nextval('ahead');
    SELECT nextval('small') FROM generate_series(1, 20);
    SELECT nextval(format('many_%s', n)) FROM generate_series(1, 1000) AS n";

fn last(database: &Database, sequence: &str) -> Result<String> {
    database.sql(&format!(
        "SELECT coalesce(pg_sequence_last_value('{sequence}'), 0)"
    ))
}

/// Statements of a server's log with that word, in order: their milliseconds.
fn statements(cluster: &Cluster, node: &str, word: &str) -> Result<Vec<f64>> {
    let log = fs::read_to_string(cluster.node(node).server().log())?;
    let mut found = Vec::new();
    let mut took = None;
    for line in log.lines() {
        if let Some((_, rest)) = line.split_once("duration: ") {
            let ms = rest.split(' ').next().and_then(|ms| ms.parse::<f64>().ok());
            took = ms.filter(|_| rest.contains("execute"));
        }
        if line.contains(word)
            && let Some(ms) = took.take()
        {
            found.push(ms);
        }
    }
    Ok(found)
}

#[test]
fn sequences_follow_forward_only_at_the_cost_of_one_statement() -> Result<()> {
    let cluster = Cluster::builder()
        .agent_argument("node_b", "--sequence-interval=1s")
        .setting("node_a", "log_min_duration_statement", "0")
        .setting("node_b", "log_min_duration_statement", "0")
        .start()?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    source.sql(SHAPE)?;
    target.sql("CREATE TABLE private (id serial PRIMARY KEY)")?;
    cluster
        .init(&["--exclude-table", "public.private", "--schema-sync", "auto"])?
        .expect(0)?;
    target.sql("SELECT setval('ahead', 5000)")?;
    source.sql(WRITES)?;
    wait::until_true("the sequences to follow", LIMIT, || {
        Ok(last(&target, "many_1000")? == "1" && last(&target, "item_id_seq")? == "100")
    })?;
    for (sequence, value) in [
        ("told_id_seq", "1"),
        ("down", "-2"),
        ("ahead", "5000"),
        ("parted_id_seq", "1"),
        ("private_id_seq", "0"),
    ] {
        assert_eq!(last(&target, sequence)?, value, "{sequence}");
    }
    // An application of the target's own may be ahead, also of a sequence that it sets before its first use.
    target.sql("SELECT setval('many_7', 900, true), setval('many_8', 800, false)")?;
    source.sql("SELECT nextval('many_7'), nextval('many_8'), nextval('many_9')")?;
    wait::until_true("the next round", LIMIT, || {
        Ok(last(&target, "many_9")? == "2")
    })?;
    assert_eq!(last(&target, "many_7")?, "900");
    assert_eq!(target.sql("SELECT nextval('many_8')")?, "800");

    let view = || cluster.node_view("node_b")?.context("node_b");
    let followed = view()?["sequences"]["followed"].as_u64();
    assert!(followed >= Some(1_006), "{followed:?}");
    let page = scrape::scrape(&cluster.coordinator_address())?;
    let labels = [("node", "node_b"), ("source", "node_a")];
    let at = page.value("steep_coordinator_sequences_set_timestamp_seconds", &labels);
    assert!(at > Some(1.7e9), "{at:?}");
    let status = cluster.cli(&["status", "node_b"])?.expect(0)?.text();
    ensure!(status.contains("set to the source's at"), "{status}");

    // A failure is told once, in status too, and its end.
    target.sql("ALTER SEQUENCE small MAXVALUE 25")?;
    source.sql("SELECT nextval('small') FROM generate_series(1, 20)")?;
    let warned = |view: &serde_json::Value| view["warnings"].to_string().contains("public.small");
    wait::until_true("the warning", LIMIT, || Ok(warned(&view()?)))?;
    target.sql("ALTER SEQUENCE small NO MAXVALUE")?;
    wait::until_true("the end of the warning", LIMIT, || Ok(!warned(&view()?)))?;
    assert_eq!(last(&target, "small")?, "40");
    let events = cluster.cli(&["events", "--json"])?.expect(0)?.objects();
    let count = |name: &str| events.iter().filter(|e| e["event"] == name).count();
    assert_eq!((count("sequences.not_set"), count("sequences.set")), (1, 1));

    let (reads, sets) = (
        statements(&cluster, "node_a", "WITH published")?,
        statements(&cluster, "node_b", "WHEN setval(c.oid")?,
    );
    println!("source: {reads:?} ms, target: {sets:?} ms");
    ensure!(
        reads.len() > 2 && reads.len().abs_diff(sets.len()) <= 1,
        "{reads:?} and {sets:?}"
    );
    Ok(())
}

#[test]
fn a_sequence_that_somebody_has_locked_is_named_and_the_others_follow() -> Result<()> {
    let cluster = Cluster::builder()
        .agent_argument("node_b", "--sequence-interval=1s")
        .start()?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    source.sql("CREATE TABLE item (id int PRIMARY KEY); CREATE SEQUENCE one; CREATE SEQUENCE two; SELECT nextval('one')")?;
    cluster.init(&[])?.expect(0)?;
    let warnings = || -> Result<String> {
        let view = cluster.node_view("node_b")?.context("node_b")?;
        Ok(view["warnings"].to_string())
    };
    let alter = "BEGIN; ALTER SEQUENCE one INCREMENT 2";
    for (place, held) in [("on this node", &target), ("on the source", &source)] {
        let holder = Session::sleeping(held, "holder", alter)?;
        let value = source.sql("SELECT nextval('two')")?;
        wait::until_true("the other sequence to follow", LIMIT, || {
            Ok(last(&target, "two")? == value)
        })?;
        let said = format!("{place}, somebody has locked public.one by process ");
        wait::until_true("the warning", LIMIT, || {
            let warnings = warnings()?;
            Ok(warnings.contains(&said) && warnings.contains("(holder)"))
        })?;
        drop(holder);
        let value = source.sql("SELECT nextval('one')")?;
        wait::until_true("the sequence to follow", LIMIT, || {
            Ok(last(&target, "one")? == value && !warnings()?.contains("public.one"))
        })?;
    }
    Ok(())
}

#[test]
fn sequences_that_others_have_made_on_the_target_are_left_alone_with_a_warning() -> Result<()> {
    let cluster = Cluster::builder()
        .agent_argument("node_b", "--sequence-interval=1s")
        .start()?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    source.sql("CREATE TABLE item (id serial PRIMARY KEY)")?;
    cluster.init(&[])?.expect(0)?;
    source.sql(
        "CREATE ROLE app; CREATE ROLE missing;
         CREATE SEQUENCE theirs; ALTER SEQUENCE theirs OWNER TO app; CREATE SEQUENCE attached; ALTER SEQUENCE attached OWNER TO app; CREATE SEQUENCE shared; ALTER SEQUENCE shared OWNER TO app;
         CREATE SEQUENCE agents; ALTER SEQUENCE agents OWNER TO missing",
    )?;
    target.sql(
        "CREATE ROLE app; CREATE ROLE stranger; CREATE TABLE own (id int);
         CREATE SEQUENCE theirs; ALTER SEQUENCE theirs OWNER TO stranger; CREATE SEQUENCE attached OWNED BY own.id;
         CREATE SEQUENCE shared; ALTER SEQUENCE shared OWNER TO app; CREATE SEQUENCE agents;
         ALTER TABLE item OWNER TO stranger",
    )?;
    let next =
        "SELECT nextval('theirs'), nextval('attached'), nextval('shared'), nextval('agents')";
    source.sql(next)?;
    source.sql("INSERT INTO item DEFAULT VALUES; SELECT nextval('shared')")?;
    wait::until_true("the sequences to follow", LIMIT, || {
        let at = |sequence| last(&target, sequence);
        Ok(at("shared")? == "2" && at("agents")? == "1" && at("item_id_seq")? == "1")
    })?;
    let view = wait::until("the warning", LIMIT, || {
        let view = cluster.node_view("node_b")?.context("node_b")?;
        let warned = view["warnings"].to_string().contains("others have made");
        Ok(warned.then_some(view))
    })?;
    let warnings = view["warnings"].to_string();
    for (sequence, named) in [
        ("theirs", true),
        ("attached", true),
        ("shared", false),
        ("agents", false),
    ] {
        assert_eq!(
            warnings.contains(&format!("public.{sequence}")),
            named,
            "{warnings}"
        );
    }
    assert_eq!(target.sql(next)?, "1|1|3|2");
    Ok(())
}
