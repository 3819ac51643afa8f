//! A replica's rows are repaired exactly while both sides are written to: only rows that differ are written, nothing flows
//! back, and whatever stops a repair, the next one ends it.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use steep_tests::cluster::{Cluster, Output};
use steep_tests::damage::{DAMAGE, DAMAGED, KINDS};
use steep_tests::load::{Intensity, Load};
use steep_tests::pg::{Database, Grouping};
use steep_tests::{sample, wait};

/// Everything ends within this time.
const LIMIT: Duration = Duration::from_secs(60);

/// Transactions a second, while rows are repaired.
const LOAD: Intensity = Intensity {
    clients: 4,
    rate: Some(300),
};

fn repair(cluster: &Cluster, further: &[&str]) -> Result<Output> {
    let mut arguments = vec!["repair", "node_a", "node_b"];
    arguments.extend(further);
    cluster.cli(&arguments)
}

/// A replica and its source, in step.
fn pair(tables: &str) -> Result<Cluster> {
    let cluster = Cluster::pair()?;
    sample::create(&cluster.database("node_a"), 1)?;
    cluster.database("node_a").sql(tables)?;
    cluster.init(&[])?.expect(0)?;
    Ok(cluster)
}

fn in_step(cluster: &Cluster) -> Result<()> {
    let compared = cluster.cli(&["verify", "node_a", "node_b"])?;
    compared.expect(0).map(drop)
}

/// The result by table.
fn tables(report: &Value) -> Result<BTreeMap<String, Value>> {
    let tables = report["tables"].as_array().context("tables")?;
    let named = |table: &Value| {
        (
            table["table"].as_str().unwrap_or("-").to_owned(),
            table.clone(),
        )
    };
    Ok(tables.iter().map(named).collect())
}

fn count(database: &Database, sql: &str) -> Result<u64> {
    database.value(sql)
}

fn plan_path(cluster: &Cluster, name: &str) -> PathBuf {
    cluster.dir().join(name)
}

#[test]
fn what_differs_is_written_under_load_and_nothing_flows_back() -> Result<()> {
    let cluster = pair(KINDS)?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    // What other subscribers of the replica get, and a node that wants only changes made there.
    target.sql("CREATE PUBLICATION watched FOR ALL TABLES")?;
    let load = Load::start(&source, LOAD, Grouping::Shared)?;
    in_step(&cluster)?;
    target.sql(DAMAGE)?;
    target.sql("SELECT pg_create_logical_replication_slot('watched', 'pgoutput')")?;

    let path = plan_path(&cluster, "plan.jsonl");
    let file = path.to_string_lossy().into_owned();
    let planned = repair(&cluster, &["--dry-run", "--plan", &file, "--json"])?;
    let planned = planned.expect(3)?.last_object()?;
    let of_all = tables(&planned)?;
    for (table, rows) in DAMAGED {
        assert_eq!(of_all[table]["planned"], rows, "{}", of_all[table]);
    }
    let rows: u64 = DAMAGED.iter().map(|(_, rows)| rows).sum();
    assert_eq!(planned["rows"], rows, "{planned}");
    assert_eq!(fs::metadata(&path)?.permissions().mode() & 0o777, 0o600);
    let plan = fs::read_to_string(&path)?;
    assert_eq!(plan.lines().count() as u64, rows + 1, "{plan}");
    ensure!(!plan.contains("v200") && !plan.contains("other"), "{plan}");
    // It is not written over.
    let again = repair(&cluster, &["--dry-run", "--plan", &file])?.expect(2)?;
    ensure!(again.stderr.contains("is there already"), "{again}");
    // Nobody can be asked here.
    let asked = repair(&cluster, &["--plan", &file])?.expect(2)?;
    ensure!(asked.stderr.contains("--yes"), "{asked}");

    let written = repair(&cluster, &["--plan", &file, "--yes", "--json"])?;
    let written = written.expect(0)?.last_object()?;
    assert_eq!(
        [
            &written["repaired"],
            &written["changed"],
            &written["failed"]
        ],
        [rows, 0, 0],
        "{written}"
    );
    ensure!(written["equal"] == true, "{written}");
    in_step(&cluster)?;
    // Rows that are repaired are left alone.
    let again = repair(&cluster, &["--plan", &file, "--yes", "--json"])?;
    let again = again.expect(0)?.last_object()?;
    assert_eq!(
        [&again["repaired"], &again["equal_already"]],
        [0, rows],
        "{again}"
    );
    drop(load);

    nothing_flows_back(&target)?;
    let said = cluster.cli(&["events", "node_b", "--json"])?.expect(0)?;
    ensure!(
        said.stdout.contains("repair.planned") && said.stdout.contains("repair.completed"),
        "{said}"
    );
    let audit = cluster.cli(&["events", "node_b", "--audit", "--json"])?;
    let audit = audit.expect(0)?;
    ensure!(audit.stdout.contains("\"repair\""), "{audit}");
    let left = count(
        &target,
        "SELECT count(*) FROM pg_replication_origin WHERE roname LIKE 'steep_repl_repair%'",
    )?;
    assert_eq!(left, 0, "the origin of repairs is removed");
    Ok(())
}

/// The tables in `app` are written by the repair alone: a subscriber gets its changes, and none where it wants only those
/// that were made on this server.
fn nothing_flows_back(target: &Database) -> Result<()> {
    let major: u32 = target.value("SELECT current_setting('server_version_num')::int / 10000")?;
    if major < 16 {
        println!("NOT TESTED: origin = none before PostgreSQL 16");
        return Ok(());
    }
    let relation = "SELECT oid FROM pg_class WHERE oid = 'app.by_uuid'::regclass";
    let changes = |origin: &str| {
        // An INSERT or DELETE message begins with its kind and the relation's oid.
        let sql = format!(
            "SELECT count(*) FROM pg_logical_slot_peek_binary_changes('watched', NULL, NULL, 'proto_version', '1',
                 'publication_names', 'watched', 'origin', '{origin}') AS c
             WHERE get_byte(c.data, 0) IN (ascii('I'), ascii('U'), ascii('D'))
             AND ('x' || encode(substr(c.data, 2, 4), 'hex'))::bit(32)::int = ({relation})::int"
        );
        count(target, &sql)
    };
    assert_eq!(changes("none")?, 0, "nothing flows back");
    // Inserted, deleted, and replaced by a deletion and an insertion.
    assert_eq!(
        changes("any")?,
        4,
        "other subscribers get what was repaired"
    );
    Ok(())
}

const ITEMS: &str = "
    CREATE SCHEMA app;
    CREATE TABLE app.item (id integer PRIMARY KEY, v text);
    INSERT INTO app.item SELECT n, 'v' || n FROM generate_series(1, 30000) n;
    CREATE TABLE app.log (v text); ALTER TABLE app.log REPLICA IDENTITY FULL;
    INSERT INTO app.log SELECT 'v' || n FROM generate_series(1, 300) n";

#[test]
fn a_row_that_changed_since_the_plan_stays_as_it_is() -> Result<()> {
    let cluster = pair(ITEMS)?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    target.sql(
        "DELETE FROM app.item WHERE id IN (1, 2, 3); UPDATE app.item SET v = 'other' WHERE id IN (11, 12, 13);
         INSERT INTO app.item VALUES (-1, 'new'), (-2, 'new'), (-3, 'new')",
    )?;
    let path = plan_path(&cluster, "plan.jsonl")
        .to_string_lossy()
        .into_owned();
    repair(&cluster, &["--dry-run", "--plan", &path])?.expect(3)?;
    // Lines may be taken out.
    let plan = fs::read_to_string(&path)?;
    let fewer: Vec<&str> = plan
        .lines()
        .filter(|line| !line.contains(r#"{"id":"3"}"#))
        .collect();
    assert_eq!(fewer.len(), 9, "{plan}");
    fs::write(&path, fewer.join("\n"))?;
    // On the source, whose changes the replica applies, and on the replica.
    source
        .sql("UPDATE app.item SET v = 'newer' WHERE id = 11; DELETE FROM app.item WHERE id = 1")?;
    target.sql("UPDATE app.item SET v = 'newest' WHERE id IN (12, -2); INSERT INTO app.item VALUES (2, 'mine')")?;
    cluster.wait_drained("node_a")?;
    let written = repair(&cluster, &["--plan", &path, "--yes", "--json"])?;
    let written = written.expect(3)?.last_object()?;
    // Rows 1 and 11 are equal meanwhile.
    assert_eq!(
        ["repaired", "equal_already", "changed", "failed"].map(|key| written[key].as_u64()),
        [Some(3), Some(2), Some(3), Some(0)],
        "{written}"
    );
    let rows = target.sql("SELECT string_agg(id || v, ' ' ORDER BY id) FROM app.item WHERE id < 14 AND id NOT BETWEEN 4 AND 10")?;
    assert_eq!(rows, "-2newest 2mine 11newer 12newest 13v13");
    // Without a plan, what differs now is written.
    repair(&cluster, &["--yes"])?.expect(0)?;
    in_step(&cluster)
}

#[test]
fn a_plan_for_others_and_what_cannot_be_repaired_are_refused_by_name() -> Result<()> {
    let cluster = pair(ITEMS)?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    let back = cluster
        .cli(&["repair", "node_b", "node_a", "--yes"])?
        .expect(2)?;
    ensure!(
        back.stderr.contains("steep-repl repair node_a node_b"),
        "{back}"
    );
    repair(&cluster, &["--yes"])?.expect(0)?;

    target.sql("DELETE FROM app.item WHERE id = 1; INSERT INTO app.log VALUES ('mine')")?;
    let path = plan_path(&cluster, "plan.jsonl")
        .to_string_lossy()
        .into_owned();
    let planned = repair(&cluster, &["--dry-run", "--plan", &path])?.expect(3)?;
    ensure!(
        planned.stdout.contains("refused: no key is unique on both"),
        "{planned}"
    );
    let plan = fs::read_to_string(&path)?;
    let other = plan.replacen("\"system_identifier\":\"", "\"system_identifier\":\"1", 1);
    fs::write(&path, other)?;
    let refused = repair(&cluster, &["--plan", &path, "--yes"])?.expect(2)?;
    ensure!(refused.stderr.contains("another database"), "{refused}");
    fs::write(&path, "{\"other\":1}\n")?;
    let refused = repair(&cluster, &["--plan", &path, "--yes"])?.expect(2)?;
    ensure!(
        refused.stderr.contains("line 1: this is not a plan"),
        "{refused}"
    );
    fs::write(&path, plan.replace(r#":"node_a""#, r#":"node_c""#))?;
    let refused = repair(&cluster, &["--plan", &path, "--yes"])?.expect(2)?;
    ensure!(
        refused.stderr.contains("the plan is for node_c"),
        "{refused}"
    );

    // Rows of a table that is not replicated are the replica's own.
    source.sql("CREATE TABLE app.own (id integer PRIMARY KEY)")?;
    target.sql("CREATE TABLE app.own (id integer PRIMARY KEY); INSERT INTO app.own VALUES (1)")?;
    let own = repair(&cluster, &["--tables", "app.own", "--yes"])?.expect(2)?;
    ensure!(own.stderr.contains("does not replicate app.own"), "{own}");

    // Code of a table's owner does not run as the agent's role.
    target.sql(
        "CREATE FUNCTION app.fire() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
         CREATE TRIGGER fire BEFORE INSERT ON app.item FOR EACH ROW EXECUTE FUNCTION app.fire();
         ALTER TABLE app.item ENABLE ALWAYS TRIGGER fire",
    )?;
    let only = ["--tables", "app.item", "--yes"];
    let refused = repair(&cluster, &only)?.expect(3)?;
    ensure!(
        refused.stdout.contains("trigger fire of app.item"),
        "{refused}"
    );
    target.sql("ALTER TABLE app.item DISABLE TRIGGER fire")?;
    repair(&cluster, &only)?.expect(0)?;

    // A row that another unique key refuses.
    source.sql("INSERT INTO app.item VALUES (40000, 'one'), (40001, 'two')")?;
    cluster.wait_drained("node_a")?;
    target.sql("DELETE FROM app.item WHERE id IN (40000, 40001); CREATE UNIQUE INDEX ON app.item (v) WHERE id > 30000;
        INSERT INTO app.item VALUES (50000, 'three')")?;
    source.sql("UPDATE app.item SET v = 'three' WHERE id = 40000")?;
    cluster.wait_drained("node_a")?;
    let path = plan_path(&cluster, "unique.jsonl")
        .to_string_lossy()
        .into_owned();
    repair(
        &cluster,
        &["--tables", "app.item", "--dry-run", "--plan", &path],
    )?
    .expect(3)?;
    let plan = fs::read_to_string(&path)?;
    let fewer: Vec<&str> = plan
        .lines()
        .filter(|line| !line.contains("50000"))
        .collect();
    fs::write(&path, fewer.join("\n"))?;
    let written = repair(&cluster, &["--plan", &path, "--yes", "--json"])?
        .expect(3)?
        .last_object()?;
    assert_eq!(
        ["repaired", "failed"].map(|key| written[key].as_u64()),
        [Some(1), Some(1)],
        "{written}"
    );
    let reason = written["tables"][0]["reason"].as_str().unwrap_or_default();
    ensure!(
        reason.contains("23505") && !reason.contains("three"),
        "{written}"
    );
    repair(&cluster, &only)?.expect(0)?;
    partly_replicated(&cluster, &source, &target)
}

/// Nothing is written where only some rows are replicated.
fn partly_replicated(cluster: &Cluster, source: &Database, target: &Database) -> Result<()> {
    if source.value::<u32>("SELECT current_setting('server_version_num')::int / 10000")? >= 15 {
        let publication: String = source.value("SELECT pubname FROM pg_publication LIMIT 1")?;
        source.sql(&format!(
            "CREATE TABLE app.part (id integer PRIMARY KEY); INSERT INTO app.part VALUES (1), (2);
             ALTER PUBLICATION {publication} ADD TABLE app.part WHERE (id > 1)"
        ))?;
        target.sql(&format!(
            "CREATE TABLE app.part (id integer PRIMARY KEY); INSERT INTO app.part VALUES (2);
             ALTER SUBSCRIPTION {publication} REFRESH PUBLICATION WITH (copy_data = false)"
        ))?;
        let part = repair(cluster, &["--tables", "app.part", "--yes"])?.expect(2)?;
        ensure!(
            part.stderr.contains("does not replicate app.part"),
            "{part}"
        );
    }
    Ok(())
}

#[test]
fn a_repair_that_is_killed_or_stopped_is_ended_by_the_next() -> Result<()> {
    let mut cluster = pair(ITEMS)?;
    let target = cluster.database("node_b");
    let damage = "DELETE FROM app.item WHERE id % 3 = 0 AND id <= 12000;
         UPDATE app.item SET v = 'other' WHERE id % 3 = 1 AND id <= 12000";
    let differing = "SELECT count(*) FROM app.item WHERE v <> 'v' || id";
    for node in ["node_b", "node_a"] {
        target.sql(damage)?;
        let slow = ["repair", "node_a", "node_b", "--yes", "--max-rate", "8MB"];
        let running = cluster.cli_spawn(&slow)?;
        let before = count(&target, differing)?;
        wait::until_true("rows that are repaired", 2 * LIMIT, || {
            Ok(count(&target, differing)? < before)
        })?;
        cluster.kill_agent(node)?;
        let ended = running.finish(LIMIT)?;
        ensure!(ended.code != 0, "{ended}");
        ensure!(ended.stderr.contains("repaired so far"), "{ended}");
        ensure!(
            count(&target, differing)? > 0,
            "it was stopped in the middle"
        );
        cluster.start_agent(node)?;
        cluster.wait_online(&["node_a", "node_b"])?;
        cluster.wait_drained("node_a")?;
        repair(&cluster, &["--yes"])?.expect(0)?;
        in_step(&cluster)?;
    }
    // Ctrl-C ends it between two pages, and says what is written.
    target.sql(damage)?;
    let slow = [
        "repair",
        "node_a",
        "node_b",
        "--yes",
        "--max-rate",
        "8MB",
        "--json",
    ];
    let running = cluster.cli_spawn(&slow)?;
    let before = count(&target, differing)?;
    wait::until_true("rows that are repaired", 2 * LIMIT, || {
        Ok(count(&target, differing)? < before)
    })?;
    running.interrupt();
    let ended = running.finish(LIMIT)?.expect(4)?;
    let said = ended.objects();
    let written = said.first().context("what was written")?;
    let repaired = written["repaired"].as_u64().unwrap_or(0);
    let left = count(
        &target,
        "SELECT count(*) FROM generate_series(1, 30000) n LEFT JOIN app.item i ON i.id = n
        WHERE i.v IS DISTINCT FROM 'v' || n",
    )?;
    ensure!(
        repaired > 0 && repaired + left == 8_000,
        "{repaired} {left} {ended}"
    );
    repair(&cluster, &["--yes"])?.expect(0)?;
    in_step(&cluster)
}

#[test]
fn rows_that_are_compared_regularly_make_a_node_diverged_until_they_are_repaired() -> Result<()> {
    let mut cluster = pair(ITEMS)?;
    let target = cluster.database("node_b");
    let every = ["verify", "node_a", "node_b", "--every", "1d"];
    cluster.cli(&every)?.expect(0)?;
    let result = |cluster: &Cluster| -> Result<Value> {
        let node = cluster.node_view("node_b")?.context("node_b is known")?;
        Ok(node["verify"]["equal"].clone())
    };
    wait::until_true("the first comparison", LIMIT, || {
        Ok(result(&cluster)? == true)
    })?;
    target.sql("DELETE FROM app.item WHERE id = 7")?;
    // Whoever compares: the result counts.
    cluster.cli(&["verify", "node_a", "node_b"])?.expect(3)?;
    cluster.wait_state("node_b", &["diverged"], LIMIT)?;
    cluster.kill_coordinator()?;
    cluster.start_coordinator()?;
    cluster.wait_online(&["node_a", "node_b"])?;
    let status = cluster.cli(&["status", "node_b"])?.expect(0)?;
    ensure!(
        status.stdout.contains("steep-repl repair node_a node_b"),
        "{status}"
    );
    ensure!(status.stdout.contains("other rows in app.item"), "{status}");
    repair(&cluster, &["--yes"])?.expect(0)?;
    cluster.wait_state("node_b", &["synchronized"], LIMIT)?;
    cluster
        .cli(&["verify", "node_a", "node_b", "--every", "off"])?
        .expect(0)?;
    let node = cluster.node_view("node_b")?.context("node_b is known")?;
    ensure!(node["verify"].is_null(), "{node}");
    Ok(())
}
