//! Schemas: every change is named and nothing else; auto makes both sides match; fingerprints are
//! the same on every version.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use steep_tests::cluster::{Cluster, Output};
use steep_tests::pg::Installation;
use steep_tests::schema::{self, CHANGES, Random, SchemaChange};
use steep_tests::{compare, residue};

fn compared(cluster: &Cluster) -> Result<(i32, Value)> {
    let output = cluster.cli(&["schema", "compare", "node_a", "node_b", "--json"])?;
    ensure!([0, 3].contains(&output.code), "{output}");
    Ok((output.code, output.last_object()?))
}

/// Kind, name and type of every difference, by table.
fn differences(compared: &Value) -> Result<BTreeMap<String, BTreeSet<String>>> {
    let mut found = BTreeMap::new();
    for table in compared["comparisons"].as_array().context("comparisons")? {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let list = table["differences"].as_array().context("differences")?;
        let said = list.iter().map(|d| {
            let name = d["column_name"].as_str().or(d["object_name"].as_str());
            let (kind, change) = (text(&d["kind"]), text(&d["difference_type"]));
            format!("{kind} {} {change}", name.unwrap_or("-"))
        });
        let said: BTreeSet<String> = said.collect();
        ensure!(
            (text(&table["status"]) == "match") == said.is_empty(),
            "{table}"
        );
        if !said.is_empty() {
            found.insert(text(&table["table_name"]), said);
        }
    }
    Ok(found)
}

/// Kind, name and type of every difference outside of tables.
fn alone(compared: &Value) -> Result<BTreeSet<String>> {
    let list = compared["objects"].as_array().context("objects")?;
    let said = list.iter().map(|d| {
        let text = |key: &str| d[key].as_str().unwrap_or_default();
        let parts = ["kind", "object_name", "difference_type"].map(text);
        parts.join(" ")
    });
    Ok(said.collect())
}

/// Each kind of change once, then this many tables with two random ones.
const PAIRS: usize = 20;

/// The source's objects outside of tables, and the expected differences.
const ALONE: (&str, [&str; 5]) = (
    "CREATE TYPE \"Odd S\".\"a.b\" AS ENUM ('x'); CREATE DOMAIN \"Odd S\".dom AS text DEFAULT 'it''s \"json\"' CHECK (VALUE <> '\"json\"');
     CREATE TYPE \"Odd S\".pair AS (a \"Odd S\".\"a.b\"[], b text COLLATE \"C\"); CREATE SEQUENCE \"Odd S\".numbers START 5;
     CREATE TYPE \"Odd S\".span AS RANGE (SUBTYPE = float8, SUBTYPE_DIFF = float8mi);
     CREATE TABLE \"Odd S\".uses (a \"Odd S\".pair, b \"Odd S\".span, c \"Odd S\".dom PRIMARY KEY, d integer DEFAULT nextval('\"Odd S\".numbers'))",
    [
        "enum Odd S.\"a.b\" missing",
        "domain Odd S.dom missing",
        "composite Odd S.pair missing",
        "sequence Odd S.numbers missing",
        "range Odd S.span missing",
    ],
);

#[test]
fn random_changes_are_named_exactly_and_auto_takes_them_back() -> Result<()> {
    let cluster = Cluster::pair()?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    let mut random = Random::seeded();
    let mut groups: Vec<Vec<&SchemaChange>> = CHANGES.iter().map(|change| vec![change]).collect();
    while groups.len() < CHANGES.len() + PAIRS {
        let mut two = [0, 0].map(|_| random.below(CHANGES.len()));
        two.sort_unstable();
        let [one, other] = two.map(|at| &CHANGES[at]);
        if one.goes_with(other) {
            groups.push(vec![one, other]);
        }
    }
    let mut expected = BTreeMap::new();
    let mut changes = String::new();
    for (number, group) in groups.iter().enumerate() {
        let table = format!("T {number} \"x\"");
        let mut names = BTreeSet::new();
        for change in group {
            changes.push_str(&change.sql(number));
            names.extend(change.expected(number));
        }
        if !names.is_empty() {
            expected.insert(table, names);
        }
    }
    for database in [&source, &target] {
        database.sql(&schema::tables(groups.len()))?;
    }
    assert_eq!(compared(&cluster)?.0, 0);
    let nowhere = [
        "schema",
        "compare",
        "node_a",
        "node_b",
        "--schemas",
        "nosuch",
    ];
    let refused = cluster.cli(&nowhere)?.expect(1)?.text();
    assert!(refused.contains("schema nosuch"), "{refused}");
    // The changed tables have rows, which are removed before the changes are reverted.
    target.sql(&schema::rows(groups.len()))?;
    target.sql(&changes)?;
    source.sql(ALONE.0)?;
    expected.insert(
        "uses".to_owned(),
        BTreeSet::from(["table - missing".to_owned()]),
    );
    let (code, said) = compared(&cluster)?;
    assert_eq!(code, 3);
    assert_eq!(differences(&said)?, expected, "seed {}", random.seed());
    let missing = |said: &Value| -> Result<BTreeSet<String>> {
        let all = alone(said)?.into_iter();
        Ok(all.filter(|d| !d.ends_with(" extra")).collect())
    };
    assert_eq!(missing(&said)?, ALONE.1.map(str::to_owned).into());

    // What strict would stop at is listed, and nothing is changed.
    let refused = cluster.init(&["--force"])?.expect(3)?;
    ensure!(refused.text().contains("schema_mismatch"), "{refused}");
    residue::of_jobs(&source)?.none()?;
    assert_eq!(differences(&compared(&cluster)?.1)?, expected);

    source.sql(&schema::rows(groups.len()))?;
    cluster
        .init(&["--schema-sync", "auto", "--force"])?
        .expect(0)?;
    let said = compared(&cluster)?.1;
    assert_eq!(missing(&said)?, BTreeSet::new());
    let left = differences(&said)?;
    let order = |names: &BTreeSet<String>| names.iter().all(|n| n.ends_with(" order_change"));
    ensure!(
        left.values().all(order),
        "seed {}: {left:#?}",
        random.seed()
    );
    // Rows as text are equal only if columns have the same order.
    let moved: Vec<String> = left.keys().map(|table| schema::quoted(table)).collect();
    let moved: Vec<&str> = moved.iter().map(String::as_str).collect();
    compare::rows_except(&source, &target, &moved)?.none()?;
    for table in moved {
        let sql = format!("SELECT id, n, doubled, note, tags, kind, amount FROM {table}");
        assert_eq!(source.sql(&sql)?, target.sql(&sql)?, "{table}");
    }
    Ok(())
}

#[test]
fn a_plan_is_shown_by_a_dry_run_and_refused_where_it_loses_data() -> Result<()> {
    let cluster = Cluster::pair()?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    source.sql(
        "CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
         CREATE TABLE t (id integer PRIMARY KEY, kind mood DEFAULT 'ok');
         CREATE TABLE parted (id integer, at date, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
         CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM ('2020-01-01') TO ('2021-01-01');
         CREATE TABLE child (id integer PRIMARY KEY, t_id integer REFERENCES t);
         INSERT INTO t VALUES (1, 'happy'); INSERT INTO parted VALUES (1, '2020-02-02');
         INSERT INTO child VALUES (1, 1)",
    )?;
    target.sql(
        "CREATE TYPE mood AS ENUM ('sad', 'happy');
         CREATE TABLE t (id integer PRIMARY KEY, kind mood, mine text);
         INSERT INTO t VALUES (7, 'sad', 'dear')",
    )?;
    let before = compare::schema(&source, &target)?;
    let plan = cluster.init(&["--schema-sync", "auto", "--dry-run"])?;
    let said = plan.expect(1)?.last_object()?;
    assert_eq!(said["event"], "init.plan");
    let statements: Vec<&str> = said["statements"]
        .as_array()
        .context("statements")?
        .iter()
        .filter_map(|s| s["what"].as_str())
        .collect();
    for wanted in [
        "CREATE TABLE \"public\".\"parted_1\" PARTITION OF \"public\".\"parted\"",
        "DROP COLUMN \"mine\" would lose the values of column mine of public.t",
        "FOREIGN KEY",
    ] {
        ensure!(
            statements.iter().any(|s| s.contains(wanted)),
            "{wanted}: {statements:#?}"
        );
    }
    let refused = cluster.init(&["--schema-sync", "auto"])?.expect(1)?;
    ensure!(refused.text().contains("--force"), "{refused}");
    assert_eq!(compare::schema(&source, &target)?, before);
    assert_eq!(target.sql("SELECT mine FROM t")?, "dear");
    residue::of_jobs(&target)?.none()?;

    // A new label cannot be used in the transaction that adds it, which the plan knows beforehand.
    let failed = cluster
        .init(&["--schema-sync", "auto", "--force"])?
        .expect(1)?;
    ensure!(failed.text().contains("ADD VALUE"), "{failed}");
    assert_eq!(compare::schema(&source, &target)?, before);
    target.sql("ALTER TYPE mood ADD VALUE 'ok' AFTER 'sad'")?;
    // Nor can a type of a missing extension.
    source.sql("CREATE EXTENSION hstore; CREATE TABLE h (id integer PRIMARY KEY, a hstore[])")?;
    let failed = cluster
        .init(&["--schema-sync", "auto", "--force"])?
        .expect(1)?;
    ensure!(
        failed.text().contains("extension hstore is missing"),
        "{failed}"
    );
    target.sql("CREATE EXTENSION hstore")?;
    cluster
        .init(&["--schema-sync", "auto", "--force"])?
        .expect(0)?;
    assert_eq!(compared(&cluster)?.0, 0);
    compare::rows(&source, &target)?.none()?;
    let events = cluster
        .cli(&["events", "node_b", "--json"])?
        .expect(0)?
        .objects();
    let applied: Vec<&Value> = events
        .iter()
        .filter(|e| e["event"] == "schema.sync_applied")
        .collect();
    assert_eq!(applied.len(), 1, "one event of one plan");
    let statements = applied[0]["statements"].to_string();
    let statements: u32 = statements.trim_matches('"').parse()?;
    assert!(statements > 5, "{statements} statements");
    Ok(())
}

#[test]
fn rows_below_what_auto_alters_count_and_rows_to_be_replaced_stand_in_no_way() -> Result<()> {
    let cluster = Cluster::builder()
        .setting("node_b", "max_prepared_transactions", "1")
        .start()?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    let parted = |columns: &str| {
        format!(
            "CREATE TABLE parted (id integer, {columns}) PARTITION BY LIST (id);
             CREATE TABLE parted_1 PARTITION OF parted FOR VALUES IN (1);
             CREATE TABLE parent ({columns});"
        )
    };
    source.sql(&parted("body text"))?;
    target.sql(&parted("body text, mine text"))?;
    target.sql(
        "CREATE TABLE own PARTITION OF parted FOR VALUES IN (2);
         CREATE TABLE child () INHERITS (parent);
         INSERT INTO parted VALUES (2, 'b', 'dear'); INSERT INTO child VALUES ('b', 'dear')",
    )?;
    // None of the tables to be copied has rows.
    let auto = ["--schema-sync", "auto"];
    let plan = cluster.init(&[auto[0], auto[1], "--dry-run"])?.expect(1)?;
    for table in ["parted", "parent"] {
        let loss = format!("would lose the values of column mine of public.{table}");
        ensure!(plan.text().contains(&loss), "{plan}");
    }
    cluster.init(&auto)?.expect(1)?;
    // Nor if the partition is on both sides and excluded.
    source.sql("CREATE TABLE own PARTITION OF parted FOR VALUES IN (2)")?;
    let without = ["--exclude-table", "public.own"];
    let refused = cluster.init(&[auto, without].concat())?.expect(1)?;
    ensure!(
        refused.text().contains("column mine of public.parted"),
        "{refused}"
    );
    let dear = "SELECT mine FROM parted UNION ALL SELECT mine FROM parent";
    assert_eq!(target.sql(dear)?, "dear\ndear");

    target.sql("DROP TABLE own, child")?;
    source.sql(
        "CREATE TABLE other (id integer PRIMARY KEY);
         CREATE TABLE t (id integer PRIMARY KEY, n integer NOT NULL UNIQUE CHECK (n > 0),
             o integer NOT NULL REFERENCES other);
         INSERT INTO other VALUES (1); INSERT INTO t VALUES (1, 1, 1)",
    )?;
    target.sql(
        "CREATE TABLE other (id integer PRIMARY KEY);
         CREATE TABLE t (id integer PRIMARY KEY, n text, mine text);
         INSERT INTO t VALUES (1, 'no number', 'x'), (2, NULL, 'x')",
    )?;
    cluster.init(&auto)?.expect(1)?;
    // A session that holds a table for longer than the limit is named.
    target.sql("BEGIN; LOCK TABLE t IN ACCESS SHARE MODE; PREPARE TRANSACTION 'mine'")?;
    let stuck = cluster.init(&[auto[0], auto[1], "--force"])?.expect(1)?;
    ensure!(
        stuck.text().contains("a prepared transaction on public.t"),
        "{stuck}"
    );
    target.sql("ROLLBACK PREPARED 'mine'")?;
    assert_eq!(target.sql("SELECT count(*) FROM t WHERE mine = 'x'")?, "2");
    cluster.init(&[auto[0], auto[1], "--force"])?.expect(0)?;
    assert_eq!(compared(&cluster)?.0, 0);
    compare::rows(&source, &target)?.none()
}

#[test]
fn manual_wants_a_word_and_the_environment_sets_the_mode() -> Result<()> {
    let cluster = Cluster::pair()?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    source.sql("CREATE TABLE t (id integer PRIMARY KEY, body text DEFAULT 'a')")?;
    target.sql("CREATE TABLE t (id integer PRIMARY KEY, body text DEFAULT 'b')")?;
    source.sql("INSERT INTO t VALUES (1)")?;
    let mut asking = cluster.cli_command(&["init", "node_b", "--from", "node_a"]);
    let output = asking.env("STEEP_REPL_SCHEMA_SYNC", "manual").output()?;
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{text}");
    assert!(
        text.contains("--yes") && text.contains("default_change"),
        "{text}"
    );
    cluster.init(&["--schema-sync", "manual"])?.expect(0)?;
    assert_eq!(target.sql("SELECT body FROM t")?, "a");
    Ok(())
}

#[test]
fn a_schema_is_exported_compared_with_its_file_and_captured_with_a_peers() -> Result<()> {
    let cluster = Cluster::pair()?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    for database in [&source, &target] {
        database.sql(&schema::tables(3))?;
    }
    let file = cluster.dir().join("node_a.json").display().to_string();
    let run = |arguments: &[&str]| -> Result<Output> { cluster.cli(arguments) };
    run(&["schema", "export", "--node", "node_a", "--output", &file])?.expect(0)?;
    run(&["schema", "compare", "node_a", &file])?.expect(0)?;
    run(&["schema", "capture", "--node", "node_b", "--peer", "node_a"])?.expect(0)?;
    let peers = "SELECT status, count(*) FROM steep_repl.compare_fingerprints('node_a') GROUP BY 1";
    assert_eq!(target.sql(peers)?, "match|3");
    let stored = "SELECT count(*) FROM steep_repl.schema_fingerprints WHERE node_id = ''";
    assert_eq!(target.value::<u32>(stored)?, 3);

    source.sql("ALTER TABLE \"Odd S\".\"T 1 \"\"x\"\"\" DROP COLUMN tags")?;
    let changed = run(&["schema", "compare", &file, "node_a", "--json"])?.expect(3)?;
    assert_eq!(changed.last_object()?["mismatch_count"], 1);
    let shown = run(&[
        "schema",
        "diff",
        "node_a",
        "node_b",
        "\"Odd S\".\"T 1 \"\"x\"\"\"",
    ])?;
    let shown = shown.expect(3)?.stdout;
    ensure!(
        shown.contains("> \"tags\" text[]") && !shown.contains('\u{1b}'),
        "{shown}"
    );
    run(&["schema", "diff", "node_a", "node_b", "\"Odd S\".nothing"])?.expect(1)?;
    run(&["schema", "compare", "node_a", "/nonexistent.json"])?.expect(2)?;
    run(&[
        "schema",
        "compare",
        "node_a",
        "node_b",
        "--schemas",
        "public",
    ])?
    .expect(0)?;
    // The command line and SQL give the same fingerprint.
    let sql = "SELECT steep_repl.compute_fingerprint('Odd S', 'T 2 \"x\"')";
    let tables = compared(&cluster)?.1;
    let table = tables["comparisons"]
        .as_array()
        .context("comparisons")?
        .iter();
    let table = table
        .clone()
        .find(|t| t["table_name"] == "T 2 \"x\"")
        .context("T 2")?;
    assert_eq!(table["local_fingerprint"], source.sql(sql)?);
    Ok(())
}

#[test]
fn fingerprints_and_definitions_are_the_same_on_every_version() -> Result<()> {
    let mut builder = Cluster::builder();
    let mut nodes = vec!["node_a", "node_b"];
    for (node, major) in [("node_a", 18), ("node_b", 17)] {
        builder = builder.postgres(node, &Installation::of_major(major)?);
    }
    match Installation::of_major(15) {
        Ok(found) => {
            nodes.push("node_c");
            builder = builder.nodes(3).postgres("node_c", &found);
        }
        Err(error) => eprintln!("NOT TESTED: PostgreSQL 15 is not on this machine: {error:#}"),
    }
    let cluster = builder.start()?;
    for node in &nodes {
        let database = cluster.database(node);
        // Session settings must not matter.
        database.sql("ALTER DATABASE app SET datestyle = 'German'; ALTER DATABASE app SET timezone = 'Asia/Tokyo'")?;
        database.sql(&schema::tables(2))?;
        database.sql(schema::EVERYTHING)?;
    }
    for node in &nodes[1..] {
        let output = cluster.cli(&["schema", "compare", "node_a", node, "--json"])?;
        let said = output.expect(0).context(*node)?.last_object()?;
        assert_eq!(said["mismatch_count"], 0);
    }
    let all = |node: &str| {
        cluster.database(node).sql(
            "SELECT u.schema_name, u.table_name, f.fingerprint FROM steep_repl.user_tables() u
             JOIN steep_repl.fingerprints(ARRAY(SELECT relation FROM steep_repl.user_tables())) f
             USING (relation) ORDER BY 1, 2",
        )
    };
    let first = all("node_a")?;
    assert!(first.lines().count() > 4, "{first}");
    for node in &nodes[1..] {
        assert_eq!(all(node)?, first, "{node}");
    }

    // What the oldest version has, the newest can be changed to.
    let oldest = nodes[nodes.len() - 1];
    cluster
        .database("node_a")
        .sql("DROP SCHEMA every CASCADE")?;
    let arguments = [
        "init",
        "node_a",
        "--from",
        oldest,
        "--schema-sync",
        "auto",
        "--yes",
    ];
    cluster.cli(&arguments)?.expect(0)?;
    // A publication belongs to a server, and has lost its tables.
    let publish = "ALTER PUBLICATION few SET TABLE every.kinds, every.parent";
    cluster.database("node_a").sql(publish)?;
    let output = cluster.cli(&["schema", "compare", "node_a", oldest, "--json"])?;
    assert_eq!(output.last_object()?["mismatch_count"], 0, "{output}");
    Ok(())
}
