//! Rows of two nodes are compared exactly: nothing differs under load, what was planted is found with its key,
//! and whoever stops the command stops the queries.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use steep_tests::cluster::{Cluster, Output};
use steep_tests::load::{Intensity, Load};
use steep_tests::pg::{Database, Grouping};
use steep_tests::{sample, wait};

/// Everything ends within this time.
const LIMIT: Duration = Duration::from_secs(60);

/// Transactions a second, while rows are compared.
const LOAD: Intensity = Intensity {
    clients: 4,
    rate: Some(300),
};

fn verify(cluster: &Cluster, further: &[&str]) -> Result<Output> {
    let mut arguments = vec!["verify", "node_a", "node_b"];
    arguments.extend(further);
    cluster.cli(&arguments)
}

/// The result by table, as `schema.table`.
fn tables(report: &Value) -> Result<BTreeMap<String, Value>> {
    let tables = report["tables"].as_array().context("tables")?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let named = |table: &Value| {
        (
            format!("{}.{}", text(&table["schema"]), text(&table["table"])),
            table.clone(),
        )
    };
    Ok(tables.iter().map(named).collect())
}

/// Missing, extra, different.
fn counts(table: &Value) -> [u64; 3] {
    ["missing", "extra", "different"].map(|key| table[key].as_u64().unwrap_or(u64::MAX))
}

/// Kind and key of every example.
fn examples(table: &Value) -> BTreeSet<String> {
    let examples = table["examples"].as_array().into_iter().flatten();
    examples
        .map(|e| format!("{} {}", e["kind"].as_str().unwrap_or("-"), e["key"]))
        .collect()
}

fn set<const N: usize>(texts: [&str; N]) -> BTreeSet<String> {
    texts.map(str::to_owned).into()
}

/// Sessions that compare rows on that server.
fn sessions(database: &Database) -> Result<u32> {
    database.value(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'steep-repl verify%'",
    )
}

const TABLES: &str = "
    CREATE SCHEMA app;
    CREATE TABLE app.item (id integer PRIMARY KEY, name text, note text);
    INSERT INTO app.item SELECT n, 'name ' || n, repeat('x', n % 50) FROM generate_series(1, 40000) n;
    CREATE TABLE app.log (at timestamptz, line text);
    INSERT INTO app.log SELECT '2024-01-01'::timestamptz + n * interval '1 s', 'line ' || n % 500
        FROM generate_series(1, 20000) n;
    INSERT INTO app.log SELECT at, line FROM app.log LIMIT 100;
    CREATE SCHEMA \"Odd S'\"; CREATE TABLE \"Odd S'\".\"T \"\"x\"\"; --\" (\"k'\"\"; \\\" text PRIMARY KEY, \"select\" text);
    INSERT INTO \"Odd S'\".\"T \"\"x\"\"; --\" VALUES ('it''s', 'a'), (E'back\\\\slash \"q\"', 'b'), ('ünï {1,2}', NULL), ('', '')";

const PLANTED: &str = "
    DELETE FROM app.item WHERE id IN (1, 20000, 39999);
    INSERT INTO app.item VALUES (-7, 'new', NULL);
    UPDATE app.item SET name = NULL WHERE id = 100;
    UPDATE app.item SET note = note || ' ' WHERE id = 30000;
    DELETE FROM app.log WHERE ctid IN (SELECT ctid FROM app.log WHERE line = 'line 77' LIMIT 2);
    INSERT INTO app.log VALUES ('2024-01-01', 'not there');
    UPDATE \"Odd S'\".\"T \"\"x\"\"; --\" SET \"select\" = 'c' WHERE \"select\" = 'b';
    DELETE FROM \"Odd S'\".\"T \"\"x\"\"; --\" WHERE \"select\" IS NULL";

#[test]
fn nothing_differs_under_load_and_what_was_planted_is_found() -> Result<()> {
    let cluster = Cluster::pair()?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    sample::create(&source, 1)?;
    source.sql(TABLES)?;
    cluster.init(&[])?.expect(0)?;
    let load = Load::start(&source, LOAD, Grouping::Shared)?;

    for further in [&["--json"][..], &["--json", "--parallel", "1"]] {
        let report = verify(&cluster, further)?.expect(0)?.last_object()?;
        ensure!(
            report["relation"] == "replicates" && report["equal"] == true,
            "{report}"
        );
        let compared = tables(&report)?;
        ensure!(compared.contains_key("public.pgbench_accounts"), "{report}");
        for (name, table) in &compared {
            ensure!(
                counts(table) == [0, 0, 0] && table["equal"] == true,
                "{name}: {table}"
            );
        }
        assert_eq!(compared["app.item"]["rows_a"], 40_000);
    }
    // The same from the other side: the source is compared with its replica.
    let reversed = cluster
        .cli(&["verify", "node_b", "node_a", "--json"])?
        .expect(0)?;
    assert_eq!(reversed.last_object()?["relation"], "replicates");

    target.sql(PLANTED)?;
    let report = verify(&cluster, &["--json"])?.expect(3)?.last_object()?;
    let compared = tables(&report)?;
    for (name, table) in &compared {
        let planted = name.starts_with("app.") || name.starts_with("Odd");
        ensure!(planted || table["equal"] == true, "{name}: {table}");
    }
    let item = &compared["app.item"];
    assert_eq!(counts(item), [3, 1, 2], "{item}");
    let found = [
        r#"missing {"id":"1"}"#,
        r#"missing {"id":"20000"}"#,
        r#"missing {"id":"39999"}"#,
        r#"extra {"id":"-7"}"#,
        r#"different {"id":"100"}"#,
        r#"different {"id":"30000"}"#,
    ];
    assert_eq!(examples(item), set(found));
    assert_eq!(
        counts(&compared["app.log"]),
        [2, 1, 0],
        "{}",
        compared["app.log"]
    );
    let odd = &compared["Odd S'.T \"x\"; --"];
    assert_eq!(counts(odd), [1, 0, 1], "{odd}");
    let keys = [
        r#"different {"k'\"; \\":"back\\slash \"q\""}"#,
        r#"missing {"k'\"; \\":"ünï {1,2}"}"#,
    ];
    assert_eq!(examples(odd), set(keys));

    // Values are shown only on demand.
    let only = &["--tables", "app.item"];
    let text = verify(&cluster, only)?.expect(3)?.stdout;
    ensure!(text.contains("different  id = '100': name\n"), "{text}");
    ensure!(!text.contains("name 100"), "{text}");
    let text = verify(&cluster, &[only[0], only[1], "--show-values"])?
        .expect(3)?
        .stdout;
    ensure!(
        text.contains("id = '100': name = 'name 100' on node_a, NULL on node_b"),
        "{text}"
    );

    let said = cluster.cli(&["events", "node_b", "--json"])?.expect(0)?;
    ensure!(said.stdout.contains("verify.completed"), "{said}");

    stopped(&cluster, &source, &target)?;
    drop(load);
    Ok(())
}

/// Ctrl-C ends the sessions on both servers.
fn stopped(cluster: &Cluster, source: &Database, target: &Database) -> Result<()> {
    let slow = [
        "verify",
        "node_a",
        "node_b",
        "--max-rate",
        "100kB",
        "--json",
    ];
    let running = cluster.cli_spawn(&slow)?;
    for database in [source, target] {
        wait::until_true(
            "a comparison at work",
            LIMIT,
            || Ok(sessions(database)? > 0),
        )?;
    }
    running.interrupt();
    running.finish(LIMIT)?.expect(4)?;
    for database in [source, target] {
        wait::until_true("the end of its sessions", LIMIT, || {
            Ok(sessions(database)? == 0)
        })?;
    }
    Ok(())
}

/// The same tables in another form on either side: what of them differs is planted below.
const FORMS_A: &str = "
    CREATE SCHEMA app;
    CREATE TABLE app.moved (id integer PRIMARY KEY, a text, b bytea);
    CREATE TABLE app.computed (id integer PRIMARY KEY, n integer, twice integer GENERATED ALWAYS AS (n * 2) STORED);
    CREATE TABLE app.parted (id integer PRIMARY KEY, at date NOT NULL, body text) PARTITION BY HASH (id);
    CREATE TABLE app.parted_0 PARTITION OF app.parted FOR VALUES WITH (MODULUS 3, REMAINDER 0);
    CREATE TABLE app.parted_1 PARTITION OF app.parted FOR VALUES WITH (MODULUS 3, REMAINDER 1);
    CREATE TABLE app.parted_2 PARTITION OF app.parted FOR VALUES WITH (MODULUS 3, REMAINDER 2);
    CREATE TABLE app.parted_once (id integer PRIMARY KEY, at date, body text);
    CREATE TABLE app.words (k text COLLATE \"C\" PRIMARY KEY, v integer);
    CREATE TABLE app.only_a (id integer PRIMARY KEY);
    CREATE TABLE app.columns (id integer PRIMARY KEY, old text)";

const FORMS_B: &str = "
    CREATE SCHEMA app;
    CREATE TABLE app.moved (gone integer, b bytea, id bigint PRIMARY KEY, a varchar(2000));
    ALTER TABLE app.moved DROP COLUMN gone;
    CREATE TABLE app.computed (id integer PRIMARY KEY, twice integer GENERATED ALWAYS AS (n * 3) STORED, n integer);
    CREATE TABLE app.parted (id integer, at date, body text, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
    CREATE TABLE app.parted_old PARTITION OF app.parted FOR VALUES FROM (MINVALUE) TO ('2024-02-01');
    CREATE TABLE app.parted_new PARTITION OF app.parted FOR VALUES FROM ('2024-02-01') TO (MAXVALUE) PARTITION BY LIST (id);
    CREATE TABLE app.parted_rest PARTITION OF app.parted_new DEFAULT;
    CREATE TABLE app.parted_once (id integer, at date, body text, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
    CREATE TABLE app.parted_once_all PARTITION OF app.parted_once DEFAULT;
    CREATE TABLE app.words (k text COLLATE \"pg_c_utf8\" PRIMARY KEY, v integer);
    CREATE TABLE app.only_b (id integer PRIMARY KEY);
    CREATE TABLE app.columns (id integer PRIMARY KEY, new text)";

const ROWS: &str = "
    INSERT INTO app.moved (id, a, b) SELECT n, repeat('ä', n % 1000), decode(repeat('ff00', n), 'hex')
        FROM generate_series(1, 500) n;
    INSERT INTO app.computed (id, n) SELECT n, n FROM generate_series(1, 100) n;
    INSERT INTO app.parted SELECT n, date '2024-01-01' + n % 90, 'body ' || n FROM generate_series(1, 3000) n;
    INSERT INTO app.parted_once SELECT * FROM app.parted;
    INSERT INTO app.words SELECT chr(65 + n % 26) || chr(97 + n % 23) || CASE n % 3 WHEN 0 THEN '-' ELSE '' END || n, n
        FROM generate_series(1, 3000) n;
    CREATE TABLE app.nothing (); INSERT INTO app.nothing SELECT FROM generate_series(1, 1000);
    CREATE TABLE app.empty (id integer PRIMARY KEY);
    CREATE TYPE app.colour AS ENUM ('red', 'green', 'blue');
    CREATE DOMAIN app.code AS text CHECK (value <> '');
    CREATE TABLE app.by_uuid (k uuid PRIMARY KEY, v text);
    INSERT INTO app.by_uuid SELECT md5(n::text)::uuid, 'v' || n FROM generate_series(1, 300) n;
    CREATE TABLE app.by_two (k integer, l text, v text, PRIMARY KEY (l, k));
    INSERT INTO app.by_two SELECT n % 20, 'l' || n, 'v' || n FROM generate_series(1, 300) n;
    CREATE TABLE app.by_number (k numeric PRIMARY KEY, v text);
    INSERT INTO app.by_number SELECT n / 8.0, 'v' || n FROM generate_series(1, 300) n;
    CREATE TABLE app.by_bytes (k bytea PRIMARY KEY, v text);
    INSERT INTO app.by_bytes SELECT sha256(n::text::bytea), 'v' || n FROM generate_series(1, 300) n;
    CREATE TABLE app.by_time (k timestamptz PRIMARY KEY, v text);
    INSERT INTO app.by_time SELECT timestamptz '2024-03-01 00:00:00.000001+00' + n * interval '37 min', 'v' || n
        FROM generate_series(1, 300) n;
    CREATE TABLE app.by_enum (k app.colour, l app.code, v text, PRIMARY KEY (k, l));
    INSERT INTO app.by_enum SELECT (enum_range(NULL::app.colour))[1 + n % 3], 'l' || n, 'v' || n
        FROM generate_series(1, 300) n;
    CREATE TABLE app.by_array (k integer[] PRIMARY KEY, v text);
    INSERT INTO app.by_array SELECT ARRAY[n, n + 1], 'v' || n FROM generate_series(1, 300) n;
    CREATE TABLE app.kinds (id integer PRIMARY KEY, f float8, r real, t timestamptz, d date, i interval, j jsonb,
        m money, a text[], o regclass);
    INSERT INTO app.kinds SELECT n, n / 3.0, n / 7.0, timestamptz '2024-01-01 UTC' + n * interval '1 min',
        date '2024-01-01' + n, n * interval '1 h 2 s', jsonb_build_object('n', n), n::numeric::money,
        ARRAY['a', NULL, n::text], 'app.empty' FROM generate_series(1, 200) n;
    ANALYZE";

/// One row is changed, one is missing and one is extra in each table with keys of another type.
const PLANTED_FORMS: &str = "
    UPDATE app.parted SET body = '' WHERE id = 5;
    DELETE FROM app.parted WHERE id = 2999;
    UPDATE app.words SET v = -1 WHERE v = 1500;
    UPDATE app.by_number SET k = 1.0 WHERE k = 1.000;
    DO $$
    DECLARE t text;
    BEGIN
        FOREACH t IN ARRAY ARRAY['by_uuid', 'by_two', 'by_number', 'by_bytes', 'by_time', 'by_enum', 'by_array'] LOOP
            EXECUTE format('UPDATE app.%I SET v = ''other'' WHERE v = ''v17''', t);
            EXECUTE format('DELETE FROM app.%I WHERE v = ''v200''', t);
        END LOOP;
    END $$;
    INSERT INTO app.by_uuid VALUES ('00000000-0000-0000-0000-000000000001', 'new');
    INSERT INTO app.by_two VALUES (1, 'new', 'new');
    INSERT INTO app.by_number VALUES (1e30, 'new');
    INSERT INTO app.by_bytes VALUES ('\\x00', 'new');
    INSERT INTO app.by_time VALUES ('2023-12-31 23:59:59.5+00', 'new');
    INSERT INTO app.by_enum VALUES ('blue', 'new', 'new');
    INSERT INTO app.by_array VALUES ('{0}', 'new')";

#[test]
fn tables_of_another_form_are_compared_by_the_names_of_their_columns() -> Result<()> {
    let cluster = Cluster::builder()
        .setting("node_b", "timezone", "Asia/Tokyo")
        .setting("node_b", "datestyle", "German")
        .setting("node_b", "intervalstyle", "iso_8601")
        .setting("node_b", "bytea_output", "escape")
        .setting("node_b", "extra_float_digits", "0")
        .start()?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    source.sql(FORMS_A)?;
    target.sql(FORMS_B)?;
    source.sql(ROWS)?;
    target.sql(ROWS)?;
    let compared = |code: i32| -> Result<BTreeMap<String, Value>> {
        let report = verify(&cluster, &["--json"])?.expect(code)?.last_object()?;
        ensure!(report["relation"] == "unrelated", "{report}");
        tables(&report)
    };
    let problems = ["app.only_a", "app.only_b", "app.columns"];
    let before = compared(3)?;
    for (name, table) in &before {
        let equal = !problems.contains(&name.as_str());
        ensure!(
            (table["equal"] == equal) && counts(table) == [0, 0, 0],
            "{name}: {table}"
        );
    }
    let problem = |name: &str| before[name]["problem"].as_str().unwrap_or("-").to_owned();
    assert_eq!(problems.map(problem), ["only_on_a", "only_on_b", "columns"]);
    assert_eq!(
        before["app.columns"]["columns_only_a"],
        serde_json::json!(["old"])
    );
    assert_eq!(before["app.nothing"]["rows_b"], 1_000);
    assert_eq!(before["app.moved"]["rows_b"], 500);

    target.sql(PLANTED_FORMS)?;
    let after = compared(3)?;
    assert_eq!(counts(&after["app.parted"]), [1, 0, 1]);
    let places = [
        r#"different {"id":"5","at":"2024-01-06"}"#,
        r#"missing {"id":"2999","at":"2024-01-30"}"#,
    ];
    assert_eq!(examples(&after["app.parted"]), set(places));
    assert_eq!(
        counts(&after["app.words"]),
        [0, 0, 1],
        "{}",
        after["app.words"]
    );
    for table in ["by_uuid", "by_two", "by_bytes", "by_time", "by_enum"] {
        let table = &after[&format!("app.{table}")];
        assert_eq!(counts(table), [1, 1, 1], "{table}");
    }
    // 1.0 and 1.000 are one key, and not the same row.
    assert_eq!(
        counts(&after["app.by_number"]),
        [1, 1, 2],
        "{}",
        after["app.by_number"]
    );
    // Arrays are no keys here: a row that changed is one missing and one extra.
    assert_eq!(
        counts(&after["app.by_array"]),
        [2, 2, 0],
        "{}",
        after["app.by_array"]
    );
    let equal = [
        "app.moved",
        "app.computed",
        "app.kinds",
        "app.nothing",
        "app.empty",
        "app.parted_once",
    ];
    for name in equal {
        ensure!(after[name]["equal"] == true, "{name}: {}", after[name]);
    }

    let unknown = verify(&cluster, &["--tables", "app.moved,nosuch"])?
        .expect(2)?
        .stderr;
    ensure!(unknown.contains("public.nosuch"), "{unknown}");
    Ok(())
}

#[test]
fn who_alters_a_table_waits_for_a_statement_and_the_comparison_goes_on() -> Result<()> {
    let cluster = Cluster::pair()?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    source.sql(
        "CREATE SCHEMA app;
         CREATE TABLE app.item (id integer PRIMARY KEY, name text, note text);
         INSERT INTO app.item SELECT n, 'name ' || n, repeat('x', 200) FROM generate_series(1, 300000) n;
         CREATE TABLE app.line (id integer PRIMARY KEY, body text);
         INSERT INTO app.line SELECT n, repeat('y', 200) FROM generate_series(1, 100000) n;
         CREATE TABLE app.zz_gone (id integer PRIMARY KEY)",
    )?;
    cluster.init(&[])?.expect(0)?;
    let running = cluster.cli_spawn(&[
        "verify",
        "node_a",
        "node_b",
        "--parallel",
        "1",
        "--max-rate",
        "15MB",
        "--json",
    ])?;
    let reading =
        "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'steep-repl verify%'
        AND query LIKE '%FROM ONLY \"app\".\"item\"%'";
    wait::until_true("the first table to be read", LIMIT, || {
        let sessions: u32 = source.value(reading)?;
        Ok(sessions > 0)
    })?;
    for database in [&source, &target] {
        database.sql("SET lock_timeout = '15s'; ALTER TABLE app.item DROP COLUMN note; DROP TABLE app.zz_gone")?;
    }
    source.sql("SET lock_timeout = '15s'; TRUNCATE app.line")?;

    let ended = running.finish(LIMIT)?.expect(1)?;
    ensure!(ended.stderr.contains("not read: app.zz_gone"), "{ended}");
    let report = ended.objects().into_iter().next().context("a report")?;
    let compared = tables(&report)?;
    for name in ["app.item", "app.line"] {
        ensure!(
            compared[name]["equal"] == true,
            "{name}: {}",
            compared[name]
        );
    }
    let gone = &compared["app.zz_gone"];
    ensure!(
        gone["problem"] == "unreadable" && gone["equal"] == false,
        "{gone}"
    );
    let why = gone["error"]["message"].as_str().unwrap_or_default();
    ensure!(why.contains("was dropped"), "{gone}");
    Ok(())
}
