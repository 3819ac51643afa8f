//! An owner of tables gains nothing when their rows are compared and repaired: his code does not run as the agent's role, and
//! what he has chosen does not hide a difference.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use steep_tests::cluster::{Cluster, Output};
use steep_tests::pg::Database;

/// What his code writes to the server's log if it has more rights than he.
const SEIZED: &str = "seized by a superuser";

/// His tables, without code in them.
const TABLES: &str = "
    GRANT CREATE ON DATABASE app TO mallory; SET ROLE mallory; CREATE SCHEMA shop;
    CREATE FUNCTION shop.seize() RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN
        IF (SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user) THEN
            RAISE LOG 'seized by a superuser'; END IF;
        RETURN true; END $$;
    CREATE TYPE shop.size AS ENUM ('s', 'm');
    CREATE FUNCTION shop.text_of(shop.size) RETURNS json LANGUAGE plpgsql IMMUTABLE AS
        $$ BEGIN PERFORM shop.seize(); RETURN '1'; END $$;
    CREATE CAST (shop.size AS json) WITH FUNCTION shop.text_of(shop.size);
    CREATE DOMAIN shop.code AS text; CREATE DOMAIN shop.word AS text;
    CREATE OPERATOR shop.@@@ (LEFTARG = tsquery, RIGHTARG = text, FUNCTION = pg_catalog.ts_rewrite);
    CREATE TABLE shop.by_index (id int PRIMARY KEY, v text); CREATE TABLE shop.by_statistics (LIKE shop.by_index INCLUDING ALL);
    CREATE TABLE shop.by_check (LIKE shop.by_index INCLUDING ALL); CREATE TABLE shop.by_cast (LIKE shop.by_index INCLUDING ALL);
    CREATE TABLE shop.by_json (LIKE shop.by_index INCLUDING ALL); CREATE TABLE shop.by_operator (LIKE shop.by_index INCLUDING ALL);
    CREATE TABLE shop.by_partition (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
    CREATE TABLE shop.part PARTITION OF shop.by_partition DEFAULT;
    CREATE TABLE shop.by_domain (id int PRIMARY KEY, v shop.code);
    CREATE TABLE shop.innocent (id int PRIMARY KEY, v text CHECK (lower(v) ~ '^v' AND coalesce(v, 'v') <> ''),
        size shop.size DEFAULT 's' CHECK (size IN ('s', 'm')), data jsonb DEFAULT '{}' CHECK (NOT data ? 'x'), twice int GENERATED ALWAYS AS (id * 2) STORED);
    CREATE INDEX ON shop.innocent (lower(v), (data ->> 'a')) WHERE size = 's'";

const BY: [&str; 7] = [
    "by_index",
    "by_statistics",
    "by_check",
    "by_cast",
    "by_json",
    "by_operator",
    "by_partition",
];

/// His code: it is run by whoever reads or writes these rows.
const CODE: &str = "
    SET ROLE mallory;
    CREATE INDEX ON shop.by_index ((shop.seize()));
    CREATE STATISTICS shop.told ON (shop.seize()), v FROM shop.by_statistics;
    ALTER TABLE shop.by_check ADD CHECK (shop.seize()) NOT VALID;
    ALTER DOMAIN shop.word ADD CHECK (shop.seize()) NOT VALID;
    ALTER TABLE shop.by_cast ADD CHECK (v::shop.word IS NOT NULL) NOT VALID;
    ALTER TABLE shop.by_json ADD CHECK (to_jsonb('s'::shop.size) IS NOT NULL) NOT VALID;
    ALTER TABLE shop.by_operator ADD CHECK ('a'::tsquery OPERATOR(shop.@@@)
        'SELECT ''a''::tsquery, ''b''::tsquery WHERE shop.seize()' IS NOT NULL) NOT VALID;
    CREATE INDEX ON shop.part ((shop.seize()))";

fn rows(database: &Database) -> Result<()> {
    for table in BY.into_iter().chain(["by_domain", "innocent"]) {
        let rows = "SELECT n, 'v' || n FROM generate_series(1, 100) n";
        database.sql(&format!("INSERT INTO shop.{table} (id, v) {rows}"))?;
    }
    Ok(())
}

fn nothing_was_seized(cluster: &Cluster) -> Result<()> {
    for node in ["node_a", "node_b"] {
        let log = std::fs::read_to_string(cluster.node(node).server().log())?;
        ensure!(!log.contains(SEIZED), "the code ran on {node}: {log}");
    }
    Ok(())
}

fn on_both(cluster: &Cluster, sql: &str) -> Result<()> {
    for node in ["node_a", "node_b"] {
        cluster.database(node).sql(sql)?;
    }
    Ok(())
}

fn verify(cluster: &Cluster, further: &[&str]) -> Result<Output> {
    let mut arguments = vec!["verify", "node_a", "node_b", "--json"];
    arguments.extend(further);
    cluster.cli(&arguments)
}

/// The result by table.
fn tables(output: &Output) -> Result<BTreeMap<String, Value>> {
    let report = output.last_object()?;
    let tables = report["tables"].as_array().context("tables")?;
    let name = |table: &Value| table["table"].as_str().unwrap_or("-").to_owned();
    Ok(tables.iter().map(|t| (name(t), t.clone())).collect())
}

#[test]
fn the_code_of_a_tables_owner_does_not_run_while_its_rows_are_compared_and_repaired() -> Result<()>
{
    let cluster = Cluster::pair()?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    on_both(&cluster, "CREATE ROLE mallory")?;
    let name = source.name();
    source.sql(&TABLES.replace("DATABASE app", &format!("DATABASE {name}")))?;
    rows(&source)?;
    cluster.init(&[])?.expect(0)?;

    // Without his code, all rows are compared and repaired.
    target.sql("SET session_replication_role = replica; UPDATE shop.innocent SET v = 'v0' WHERE id = 7;
        UPDATE shop.by_domain SET v = 'v0' WHERE id = 7; UPDATE shop.by_index SET v = 'v0' WHERE id = 7")?;
    let plan = cluster.dir().join("plan.jsonl");
    let plan = plan.to_string_lossy();
    let repair = |further: &[&str]| {
        let arguments = ["repair", "node_a", "node_b", "--plan", &plan];
        cluster.cli(&[&arguments[..], further].concat())
    };
    repair(&["--dry-run"])?.expect(3)?;

    // It comes after the plan: rows with the domain can be read but not written.
    on_both(&cluster, CODE)?;
    target.sql("SET ROLE mallory; ALTER DOMAIN shop.code ADD CHECK (shop.seize()) NOT VALID")?;
    let repaired = repair(&["--yes"])?;
    let said = repaired.stdout;
    for table in ["by_domain", "by_index"] {
        ensure!(
            said.contains(&format!(
                "shop.seize() of mallory by the {}",
                if table == "by_index" {
                    "index"
                } else {
                    "type of the column v"
                }
            )),
            "{said}"
        );
    }
    ensure!(
        target.sql("SELECT v FROM shop.innocent WHERE id = 7")? == "v7",
        "{said}"
    );
    ensure!(
        target.sql("SELECT v FROM shop.by_domain WHERE id = 7")? == "v0",
        "{said}"
    );
    nothing_was_seized(&cluster)?;

    let compared = verify(&cluster, &[])?.expect(3)?;
    let compared = tables(&compared)?;
    for table in BY {
        let problem = compared[table]["error"].to_string();
        ensure!(
            problem.contains("code of ordinary roles"),
            "{table}: {}",
            compared[table]
        );
    }
    ensure!(
        compared["innocent"]["equal"] == true,
        "{}",
        compared["innocent"]
    );
    ensure!(
        compared["by_domain"]["different"] == 1,
        "{}",
        compared["by_domain"]
    );
    cluster.cli(&["analyze-overlap", "node_a", "node_b"])?;
    nothing_was_seized(&cluster)
}

#[test]
fn rows_chosen_for_equal_sums_keys_that_are_none_and_tables_of_the_system_hide_nothing()
-> Result<()> {
    let cluster = Cluster::pair()?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    let chosen: Vec<_> = include_str!("../src/sql/chosen_rows.txt")
        .lines()
        .filter_map(|line| line.split_once(' '))
        .collect();
    let values: Vec<String> = chosen
        .iter()
        .map(|(id, v)| format!("({id}, '{v}')"))
        .collect();
    on_both(&cluster, "CREATE TABLE chosen (id int PRIMARY KEY, v text)")?;
    target.sql(&format!("INSERT INTO chosen VALUES {}", values.join(", ")))?;
    let plain: Vec<String> = chosen
        .iter()
        .map(|(id, _)| format!("({id}, 'aaaaa')"))
        .collect();
    source.sql(&format!("INSERT INTO chosen VALUES {}", plain.join(", ")))?;
    // As they would have been with the seeds that everybody could know.
    let sums = "SELECT sum(hashtextextended(ROW(id, v)::text, 1)), sum(hashtextextended(ROW(id, v)::text, 2)) FROM chosen";
    assert_eq!(source.sql(sums)?, target.sql(sums)?);

    on_both(
        &cluster,
        "CREATE TABLE maybe (k text UNIQUE, v text); INSERT INTO maybe VALUES ('1', 'a'), (NULL, 'x'), (NULL, 'y')",
    )?;
    if source.value::<u32>("SHOW server_version_num")? >= 180_000 {
        on_both(
            &cluster,
            "ALTER TABLE maybe ADD CONSTRAINT c NOT NULL k NOT VALID",
        )?;
    }
    target.sql("DELETE FROM maybe WHERE v = 'y'")?;
    // Not every PostgreSQL is built with ICU.
    let collation =
        "CREATE COLLATION ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false)";
    let icu = on_both(&cluster, collation).is_ok();
    if icu {
        on_both(&cluster, "CREATE TABLE cased (k text COLLATE ci NOT NULL, v text); CREATE UNIQUE INDEX ON cased (k COLLATE \"C\");
            INSERT INTO cased VALUES ('a', 'lower'), ('A', 'UPPER'), ('b', 'b')")?;
        target.sql("DELETE FROM cased WHERE v = 'UPPER'")?;
    }
    let compared = verify(&cluster, &[])?.expect(3)?;
    let compared = tables(&compared)?;
    assert_eq!(
        compared["chosen"]["different"], 256,
        "{}",
        compared["chosen"]
    );
    assert_eq!(compared["maybe"]["missing"], 1, "{}", compared["maybe"]);
    if icu {
        assert_eq!(compared["cased"]["missing"], 1, "{}", compared["cased"]);
    }

    for table in [
        "pg_catalog.pg_authid",
        "steep_repl.nodes",
        "information_schema.sql_parts",
    ] {
        let refused = verify(&cluster, &["--tables", table, "--show-values"])?.expect(2)?;
        ensure!(refused.stderr.contains("is not compared"), "{refused}");
    }
    Ok(())
}
