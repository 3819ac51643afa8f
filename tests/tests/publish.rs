//! The effects of publishing tables on those who change their rows, and of a filter on a schema:
//! both are reported beforehand by name, and happen as reported.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use steep_tests::cluster::Cluster;
use steep_tests::compare;
use steep_tests::pg::Installation;

/// Findings of doctor as severity, code and text.
fn findings(cluster: &Cluster, target: &str, further: &[&str]) -> Result<Vec<[String; 3]>> {
    let mut arguments = vec!["doctor", target, "--from", "node_a", "--json"];
    arguments.extend(further);
    let output = cluster.cli(&arguments)?;
    let answer = output.last_object()?;
    let found = answer["findings"].as_array();
    let found = found.with_context(|| format!("no findings in {output}"))?;
    let text = |finding: &Value, key: &str| finding[key].as_str().unwrap_or_default().to_owned();
    Ok(found
        .iter()
        .map(|f| [text(f, "severity"), text(f, "code"), text(f, "what")])
        .collect())
}

/// Checks that there is exactly one finding with that code and severity, and that it contains all
/// of `names`.
fn named(found: &[[String; 3]], severity: &str, code: &str, names: &[&str]) -> Result<()> {
    let of_code = found.iter().filter(|f| f[0] == severity && f[1] == code);
    let fits = of_code.filter(|f| names.iter().all(|name| f[2].contains(name)));
    ensure!(
        fits.count() == 1,
        "no single {severity} {code} names {names:?}: {found:#?}"
    );
    Ok(())
}

fn silent_about(found: &[[String; 3]], name: &str) -> Result<()> {
    ensure!(
        !found.iter().any(|f| f[2].contains(name)),
        "{name} is named: {found:#?}"
    );
    Ok(())
}

#[test]
fn what_would_fail_on_18_is_refused_by_name_and_nothing_else_is() -> Result<()> {
    let cluster = Cluster::pair()?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    ensure!(source.installation().major() >= 18, "18 is preferred");
    source.sql(
        "CREATE TABLE full_stored (id int, v text, g int GENERATED ALWAYS AS (id * 2) STORED);
         ALTER TABLE full_stored REPLICA IDENTITY FULL;
         CREATE TABLE full_virtual (id int PRIMARY KEY, v text, g int GENERATED ALWAYS AS (id * 2) VIRTUAL);
         ALTER TABLE full_virtual REPLICA IDENTITY FULL;
         CREATE TABLE computed_key (id int, v text, g int GENERATED ALWAYS AS (id * 2) STORED PRIMARY KEY);
         CREATE TABLE deferred_key (id int PRIMARY KEY DEFERRABLE, v text, g int GENERATED ALWAYS AS (id) STORED);
         CREATE DOMAIN raw AS json;
         CREATE TYPE spot AS (at point, label text);
         CREATE TABLE holds (id int, v text, spots spot[]);
         ALTER TABLE holds REPLICA IDENTITY FULL;
         CREATE TABLE hides (id int PRIMARY KEY, v text, body raw[]);
         ALTER TABLE hides REPLICA IDENTITY FULL;
         CREATE TABLE sound (id int, v text, body jsonb, room int4range);
         ALTER TABLE sound REPLICA IDENTITY FULL;
         CREATE TABLE booking (room int4range, during daterange, v text,
             PRIMARY KEY (room, during WITHOUT OVERLAPS));
         INSERT INTO full_stored VALUES (1, 'a');
         INSERT INTO full_virtual VALUES (1, 'a');
         INSERT INTO computed_key VALUES (1, 'a');
         INSERT INTO deferred_key VALUES (1, 'a');
         INSERT INTO holds VALUES (1, 'a', ARRAY[ROW(point(1, 1), 'x')::spot]);
         INSERT INTO hides VALUES (1, 'a', ARRAY['{}'::raw]);
         INSERT INTO sound VALUES (1, 'a', '{}', '[1,2)');
         INSERT INTO booking VALUES ('[1,2)', '[2020-01-01,2021-01-01)', 'a')",
    )?;
    let found = findings(&cluster, "node_b", &[])?;
    let generated = "replica_identity_generated";
    named(&found, "error", generated, &["public.full_virtual"])?;
    named(&found, "error", generated, &["public.full_stored"])?;
    named(&found, "error", generated, &["public.computed_key"])?;
    named(
        &found,
        "warning",
        "no_replica_identity",
        &["public.deferred_key", "DEFERRABLE"],
    )?;
    named(
        &found,
        "warning",
        "replica_identity_equality",
        &["public.holds (column spots)"],
    )?;
    for quiet in ["public.hides", "public.sound", "public.booking"] {
        silent_about(&found, quiet)?;
    }
    let refused = cluster.init(&[])?.expect(1)?;
    ensure!(refused.text().contains("public.computed_key"), "{refused}");
    // Nothing is published yet, so nothing breaks.
    source.sql("UPDATE full_stored SET v = 'b'; UPDATE computed_key SET v = 'b'")?;

    // A name that matches nothing excludes nothing.
    let mistyped = findings(&cluster, "node_b", &["--exclude-table", "computed_keys"])?;
    named(
        &mistyped,
        "error",
        "filter_matches_nothing",
        &["public.computed_keys"],
    )?;
    cluster.init(&["--include-schema", "pulbic"])?.expect(1)?;

    // As the findings say.
    source.sql(
        "ALTER TABLE full_virtual REPLICA IDENTITY DEFAULT;
         ALTER TABLE full_stored ADD PRIMARY KEY (id), REPLICA IDENTITY DEFAULT;
         ALTER TABLE deferred_key DROP CONSTRAINT deferred_key_pkey, ADD PRIMARY KEY (id);
         ALTER TABLE holds ADD PRIMARY KEY (id)",
    )?;
    cluster
        .init(&["--exclude-table", "computed_key"])?
        .expect(0)?;
    source.sql(
        "UPDATE full_stored SET v = 'c'; UPDATE full_virtual SET v = 'c';
         UPDATE computed_key SET v = 'c'; UPDATE deferred_key SET v = 'c';
         UPDATE holds SET v = 'c'; UPDATE hides SET v = 'c';
         UPDATE sound SET v = 'c'; UPDATE booking SET v = 'c'",
    )?;
    cluster.wait_drained("node_a")?;
    compare::rows_except(&source, &target, &["public.computed_key"])?.none()
}

#[test]
fn what_an_older_source_does_not_send_and_another_build_lacks_is_named() -> Result<()> {
    let (Ok(old), Ok(new)) = (Installation::of_major(15), Installation::of_major(18)) else {
        eprintln!("NOT TESTED: PostgreSQL 15 is not on this machine");
        return Ok(());
    };
    let builder = Cluster::builder().nodes(3);
    let builder = builder.postgres("node_a", &new).postgres("node_b", &old);
    let cluster = builder.postgres("node_c", &new).start()?;
    let source = cluster.database("node_a");
    source.sql(
        "CREATE TABLE timed (room int4range, during daterange, PRIMARY KEY (room, during WITHOUT OVERLAPS));
         CREATE TABLE lazy (id int PRIMARY KEY, g int GENERATED ALWAYS AS (id * 2) VIRTUAL);
         CREATE TABLE trusted (id int PRIMARY KEY, CONSTRAINT trusted_check CHECK (id > 0) NOT ENFORCED);
         CREATE TABLE parent (id int); CREATE TABLE child (NOT NULL id) INHERITS (parent);
         CREATE TABLE fine (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY) PARTITION BY LIST (id)",
    )?;
    let found = findings(&cluster, "node_b", &[])?;
    named(
        &found,
        "error",
        "target_version",
        &["WITHOUT OVERLAPS", "public.timed"],
    )?;
    named(
        &found,
        "error",
        "target_version",
        &["public.trusted (trusted_check)"],
    )?;
    named(&found, "error", "virtual_columns", &["public.lazy (g)"])?;
    named(
        &found,
        "error",
        "target_version",
        &["public.child (child_id_not_null)"],
    )?;
    silent_about(&found, "public.fine")?;
    for quiet in ["public.timed", "public.lazy", "public.trusted"] {
        silent_about(&findings(&cluster, "node_c", &[])?, quiet)?;
    }

    let arguments = ["doctor", "node_c", "--from", "node_b", "--json"];
    cluster.database("node_b").sql(
        "CREATE TABLE computed_key (id int, g int GENERATED ALWAYS AS (id * 2) STORED PRIMARY KEY);
         CREATE TABLE full_stored (id int, g int GENERATED ALWAYS AS (id * 2) STORED);
         ALTER TABLE full_stored REPLICA IDENTITY FULL;
         INSERT INTO computed_key VALUES (1); INSERT INTO full_stored VALUES (1)",
    )?;
    let said = cluster.cli(&arguments)?;
    ensure!(
        said.text().contains("replica_identity_not_sent")
            && said.text().contains("public.computed_key")
            && !said.text().contains("public.full_stored"),
        "{said}"
    );
    // Features that this build of the target lacks are named as well.
    let lacks = |sql: &str| cluster.database("node_c").sql(sql).is_err();
    for (code, sql) in [
        (
            "lz4",
            "CREATE TABLE packed (id int PRIMARY KEY, v text COMPRESSION lz4)",
        ),
        (
            "icu",
            "CREATE COLLATION by_icu (provider = icu, locale = 'und')",
        ),
    ] {
        cluster.database("node_b").sql(sql)?;
        let said = cluster.cli(&arguments)?;
        let expected = lacks(sql);
        cluster
            .database("node_c")
            .sql("DROP TABLE IF EXISTS packed; DROP COLLATION IF EXISTS by_icu")?;
        ensure!(
            said.text().contains(&format!("\"{code}\"")) == expected,
            "{code}: {said}"
        );
    }
    Ok(())
}

/// Schemas, tables and dependants of every kind.
const DEPENDANTS: &str = "
    CREATE SCHEMA app; CREATE SCHEMA util; CREATE SCHEMA other; CREATE SCHEMA ext;
    CREATE EXTENSION hstore SCHEMA ext;
    CREATE TYPE util.mood AS ENUM ('good', 'bad');
    CREATE TYPE util.pair AS (a int, b util.mood);
    CREATE DOMAIN util.positive AS int CHECK (VALUE > 0);
    CREATE FUNCTION util.twice(int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT $1 * 2';
    COMMENT ON FUNCTION util.twice(int) IS 'twice as much';
    CREATE FUNCTION util.touch() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
    CREATE COLLATION util.plain (locale = 'C');
    CREATE SEQUENCE util.numbers;
    CREATE FUNCTION util.unneeded() RETURNS int LANGUAGE sql AS 'SELECT 1';
    CREATE TABLE util.settings (id int PRIMARY KEY, v text);
    CREATE TABLE other.customer (id int PRIMARY KEY, name text);
    CREATE TABLE app.orders (id util.positive PRIMARY KEY DEFAULT nextval('util.numbers'),
        m util.mood, p util.pair, name text COLLATE util.plain, h ext.hstore,
        g int GENERATED ALWAYS AS (util.twice(3)) STORED,
        customer int REFERENCES other.customer, before int REFERENCES app.orders (id));
    CREATE INDEX by_twice ON app.orders (util.twice(before));
    CREATE TRIGGER touched BEFORE UPDATE ON app.orders FOR EACH ROW EXECUTE FUNCTION util.touch();
    CREATE VIEW app.named AS SELECT o.id, c.name FROM app.orders o JOIN other.customer c ON c.id = o.customer;
    COMMENT ON VIEW app.named IS 'with names'; COMMENT ON COLUMN app.named.name IS 'of the customer';
    GRANT SELECT ON app.named TO PUBLIC;
    CREATE MATERIALIZED VIEW app.totals AS SELECT name, count(*) AS n FROM app.named GROUP BY name;
    CREATE UNIQUE INDEX totals_name ON app.totals (name);
    CREATE FUNCTION app.customers() RETURNS bigint LANGUAGE sql BEGIN ATOMIC SELECT count(*) FROM other.customer; END;
    CREATE FUNCTION app.same(other.customer) RETURNS other.customer LANGUAGE sql AS 'SELECT $1';
    CREATE VIEW app.good AS SELECT id FROM app.orders WHERE m = 'good';
    CREATE TABLE other.events (id int, at int) PARTITION BY LIST (at);
    CREATE INDEX ON other.events (id);
    CREATE TABLE app.events_1 PARTITION OF other.events FOR VALUES IN (1);
    ALTER TABLE app.events_1 REPLICA IDENTITY FULL;
    INSERT INTO other.customer SELECT n, 'c' || n FROM generate_series(1, 20) n;
    INSERT INTO app.orders (m, p, name, customer, before)
        SELECT 'good', ROW(n, 'bad'::util.mood)::util.pair, 'n', n, CASE WHEN n > 1 THEN 1 END FROM generate_series(1, 20) n;
    INSERT INTO other.events SELECT n, 1 FROM generate_series(1, 20) n;
    REFRESH MATERIALIZED VIEW app.totals;";

fn objects_of(database: &steep_tests::pg::Database) -> Result<BTreeSet<String>> {
    let printed = database.sql(
        "SELECT c.oid::regclass::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
             WHERE c.relkind IN ('r', 'p', 'v', 'm', 'S') AND n.nspname IN ('app', 'util', 'other')
         UNION ALL SELECT p.oid::regprocedure::text FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
             WHERE n.nspname IN ('app', 'util', 'other')",
    )?;
    Ok(printed.lines().map(str::to_owned).collect())
}

#[test]
fn what_depends_on_a_filtered_table_goes_and_what_is_needed_comes() -> Result<()> {
    let cluster = Cluster::builder().nodes(3).start()?;
    let source = cluster.database("node_a");
    source.sql(DEPENDANTS)?;

    let included = ["--include-schema", "app"];
    let found = findings(&cluster, "node_b", &included)?;
    let gone = [
        "view app.named",
        "materialized view app.totals",
        "function app.customers()",
        "function app.same(other.customer)",
        "orders_customer_fkey",
    ];
    named(&found, "warning", "filter_leaves_out", &gone)?;
    let needed = [
        "util.mood",
        "util.pair",
        "util.positive",
        "util.twice(integer)",
    ];
    named(&found, "info", "filter_brings_along", &needed)?;
    silent_about(&found, "util.unneeded")?;
    cluster.init(&included)?.expect(0)?;
    let target = cluster.database("node_b");
    let wanted = ["app.orders", "app.events_1", "app.good", "util.numbers"];
    let wanted = wanted
        .into_iter()
        .chain(["util.twice(integer)", "util.touch()"]);
    assert_eq!(objects_of(&target)?, wanted.map(str::to_owned).collect());
    assert_eq!(
        target.sql("SELECT obj_description('util.twice(int)'::regprocedure)")?,
        "twice as much"
    );
    source.sql(
        "UPDATE app.orders SET m = 'bad' WHERE id < 5; INSERT INTO other.events VALUES (99, 1)",
    )?;
    cluster.wait_drained("node_a")?;
    let content =
        "SELECT count(*), sum(id), sum(g), count(*) FILTER (WHERE m = 'bad') FROM app.orders
        UNION ALL SELECT count(*), sum(id), 0, 0 FROM app.events_1";
    assert_eq!(source.sql(content)?, target.sql(content)?);

    // A child cannot exist without its parent.
    source.sql("CREATE TABLE app.special (LIKE other.customer) INHERITS (other.customer)")?;
    let excluded = ["--exclude-table", "other.customer"];
    let found = findings(&cluster, "node_c", &excluded)?;
    named(&found, "error", "filter_splits", &["app.special"])?;
    source.sql("DROP TABLE app.special")?;
    let arguments = ["init", "node_c", "--from", "node_a", "--yes"];
    cluster
        .cli(&[arguments.as_slice(), &excluded].concat())?
        .expect(0)?;
    let target = cluster.database("node_c");
    let mut wanted = objects_of(&source)?;
    for gone in [
        "app.named",
        "app.totals",
        "other.customer",
        "app.customers()",
        "app.same(other.customer)",
    ] {
        ensure!(wanted.remove(gone), "{gone} is not on the source");
    }
    assert_eq!(objects_of(&target)?, wanted);
    compare::rows_except(&source, &target, &["other.customer", "app.totals"])?.none()
}
