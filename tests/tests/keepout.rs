//! Write access to a database gives nobody more rights: neither a schema `steep_repl` created
//! beforehand nor code in a table's constraints runs with more rights than its owner should have.
//! Nor does it change rows unnoticed while they are loaded.

use std::time::Duration;

use anyhow::{Context as _, Result};
use steep_tests::cluster::Cluster;
use steep_tests::pg::Database;
use steep_tests::{compare, residue, wait};

const LIMIT: Duration = Duration::from_secs(30);

/// The attacker's goal, which every piece of code below attempts.
const ATTACK: &str = "ALTER ROLE mallory SUPERUSER";

fn may_everything(database: &Database) -> Result<bool> {
    let sql = "SELECT rolsuper FROM pg_roles WHERE rolname = 'mallory'";
    Ok(database.sql(sql)? == "t")
}

/// The error that `nodes` shows for a node's PostgreSQL; `None` for a node that has not reported
/// yet.
fn postgres_error(cluster: &Cluster, node: &str) -> Result<Option<String>> {
    let view = cluster.node_view(node)?;
    Ok(view.map(|view| view["postgres_error"].as_str().unwrap_or("").to_owned()))
}

/// Waits until the node's agent refuses its database for that reason.
fn wait_refused(cluster: &Cluster, node: &str, reason: &str) -> Result<()> {
    wait::until_true(&format!("{node} to be refused: {reason}"), LIMIT, || {
        Ok(postgres_error(cluster, node)?.is_some_and(|error| error.contains(reason)))
    })
}

fn wait_accepted(cluster: &Cluster, node: &str) -> Result<()> {
    wait::until_true(&format!("{node} to be used again"), LIMIT, || {
        Ok(postgres_error(cluster, node)?.is_some_and(|error| error.is_empty()))
    })
}

/// Everything that an agent uses of the schema, created by a role that may create schemas.
fn plant(database: &Database) -> Result<()> {
    let name = database.sql("SELECT current_database()")?;
    database.sql(&format!(
        "CREATE ROLE mallory;
         GRANT CREATE ON DATABASE {name} TO mallory;
         SET ROLE mallory;
         CREATE SCHEMA steep_repl;
         GRANT ALL ON SCHEMA steep_repl TO PUBLIC;
         CREATE FUNCTION steep_repl.seize() RETURNS int LANGUAGE plpgsql AS
             'BEGIN {ATTACK}; RETURN 1; END';
         CREATE VIEW steep_repl.schema_version AS SELECT steep_repl.seize() AS version;
         CREATE VIEW steep_repl.init_slots AS SELECT '' AS slot_name, '' AS job, '' AS target_node,
             '' AS source_node, NULL::pg_lsn AS lsn, now() AS created_at, now() AS expires_at
             WHERE steep_repl.seize() = 1;
         CREATE VIEW steep_repl.nodes AS SELECT '' AS node_id, '' AS state WHERE steep_repl.seize() = 1;
         CREATE FUNCTION steep_repl.fingerprints(relations oid[])
             RETURNS TABLE (relation oid, fingerprint text, column_definitions jsonb) LANGUAGE plpgsql AS
             'BEGIN {ATTACK}; END';
         GRANT ALL ON ALL TABLES IN SCHEMA steep_repl TO PUBLIC"
    ))?;
    Ok(())
}

#[test]
fn a_schema_made_by_somebody_else_is_refused_before_anything_in_it_runs() -> Result<()> {
    let mut cluster = Cluster::builder().start_servers()?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    for database in [&source, &target] {
        plant(database)?;
    }
    source.sql("CREATE TABLE t (id integer PRIMARY KEY); INSERT INTO t VALUES (1)")?;
    cluster.start_coordinator()?;
    for node in ["node_a", "node_b"] {
        cluster.start_agent(node)?;
        wait_refused(&cluster, node, "it belongs to mallory")?;
    }
    for command in [
        &["doctor", "node_b", "--from", "node_a"][..],
        &["init", "node_b", "--from", "node_a", "--yes"],
        &["init", "prepare", "--node", "node_a", "--slot", "monday"],
        &["schema", "capture", "--node", "node_a"],
    ] {
        let said = cluster.cli(command)?.expect(1)?.text();
        assert!(
            said.contains("it belongs to mallory"),
            "{command:?}: {said}"
        );
    }
    for database in [&source, &target] {
        assert!(!may_everything(database)?);
        database.sql("DROP SCHEMA steep_repl CASCADE")?;
    }
    for node in ["node_a", "node_b"] {
        wait_accepted(&cluster, node)?;
    }
    cluster.init(&[])?.expect(0)?;
    compare::rows(&source, &target)?.none()?;

    // A sound schema may become unsound while sessions are open.
    for (harm, mend, reason) in [
        (
            "GRANT ALL ON SCHEMA steep_repl TO mallory",
            "REVOKE ALL ON SCHEMA steep_repl FROM mallory",
            "objects can be made in it by mallory",
        ),
        (
            "GRANT TRIGGER ON steep_repl.nodes TO PUBLIC",
            "REVOKE TRIGGER ON steep_repl.nodes FROM PUBLIC",
            "triggers can be made on its table nodes by PUBLIC",
        ),
        (
            "ALTER FUNCTION steep_repl.user_tables() OWNER TO mallory",
            "ALTER FUNCTION steep_repl.user_tables() OWNER TO CURRENT_USER",
            "its function user_tables belongs to mallory",
        ),
        (
            "CREATE FUNCTION public.seize() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
             ALTER FUNCTION public.seize() OWNER TO mallory;
             CREATE TRIGGER seize BEFORE INSERT ON steep_repl.audit_log FOR EACH ROW EXECUTE FUNCTION public.seize()",
            "DROP FUNCTION public.seize() CASCADE",
            "a trigger on its table audit_log calls a function of mallory",
        ),
    ] {
        source.sql(harm)?;
        wait_refused(&cluster, "node_a", reason)?;
        source.sql(mend)?;
        wait_accepted(&cluster, "node_a")?;
    }
    Ok(())
}

/// A function in a check that attacks as soon as a role with enough rights loads rows.
fn set_trap(database: &Database) -> Result<()> {
    database.sql(&format!(
        "SET ROLE mallory;
         CREATE SCHEMA shop;
         CREATE FUNCTION shop.fine(integer) RETURNS boolean LANGUAGE sql AS 'SELECT true';
         CREATE TABLE shop.sale (id integer PRIMARY KEY, price integer CHECK (shop.fine(price)));
         INSERT INTO shop.sale SELECT n, n FROM generate_series(1, 1000) n;
         CREATE FUNCTION shop.rank(integer) RETURNS integer LANGUAGE plpgsql IMMUTABLE AS 'BEGIN RETURN $1; END';
         CREATE FUNCTION shop.sold(integer) RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS 'BEGIN RETURN true; END';
         CREATE INDEX sale_rank ON shop.sale (shop.rank(price)) WHERE shop.sold(price);
         CREATE OR REPLACE FUNCTION shop.fine(integer) RETURNS boolean LANGUAGE plpgsql AS '
         BEGIN
             BEGIN RESET ROLE; {ATTACK}; EXCEPTION WHEN OTHERS THEN NULL; END;
             RETURN true;
         END'"
    ))?;
    Ok(())
}

/// The agents' roles follow the README: no superusers, but members of the tables' owners.
#[test]
fn the_code_of_a_tables_owner_gains_nothing_while_rows_are_loaded() -> Result<()> {
    let Some(mut cluster) = Cluster::of_owners("steep")? else {
        return Ok(());
    };
    for node in ["node_a", "node_b"] {
        cluster.database(node).sql(
            "CREATE ROLE mallory; GRANT mallory TO steep; GRANT CREATE ON DATABASE app TO mallory",
        )?;
    }
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    target.sql("GRANT pg_create_subscription TO steep")?;
    target.sql("GRANT SET ON PARAMETER session_replication_role TO steep")?;
    set_trap(&source)?;
    cluster.start_coordinator()?;
    cluster.start_agent("node_a")?;
    cluster.start_agent("node_b")?;
    cluster.wait_online(&["node_a", "node_b"])?;
    let doctor = ["doctor", "node_b", "--from", "node_a", "--json"];
    let said = cluster.cli(&doctor)?.expect(0)?.text();
    assert!(!said.contains("owner_code"), "{said}");
    cluster.init(&[])?.expect(0)?;
    compare::rows(&source, &target)?.none()?;
    for database in [&source, &target] {
        assert!(!may_everything(database)?);
    }
    // A superuser would run it, which a finding reports by name.
    target.sql("ALTER ROLE steep SUPERUSER")?;
    let said = cluster.cli(&doctor)?.text();
    for word in [
        "owner_code",
        "SUPERUSER",
        "shop.fine(integer) of mallory by a check of shop.sale",
    ] {
        assert!(said.contains(word), "{word} is not in {said}");
    }
    // It would be dropped before rows are loaded. An invalid one stays, and is kept up to date.
    assert!(!said.contains("sale_rank"), "{said}");
    target.sql(
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'shop.sale_rank'::regclass",
    )?;
    let said = cluster.cli(&doctor)?.text();
    for function in ["shop.rank(integer)", "shop.sold(integer)"] {
        let called = format!("{function} of mallory by the index sale_rank of shop.sale");
        assert!(said.contains(&called), "{called} is not in {said}");
    }
    Ok(())
}

/// The large table is copied first, by the only worker: meanwhile the small one belongs to its owner.
const TABLES: &str = "
    CREATE TABLE small (id integer PRIMARY KEY, body text);
    CREATE TABLE large (id integer PRIMARY KEY, body text);
    INSERT INTO small SELECT n, 'early' FROM generate_series(1, 100) AS n;
    INSERT INTO large SELECT n, repeat(md5(n::text), 30) FROM generate_series(1, 10000) AS n;
    CREATE INDEX small_body ON small (body)";

const SLOWLY: [&str; 5] = ["--detach", "--parallel", "1", "--max-rate", "4MB"];

/// The job fails, and says these words.
fn fails(cluster: &Cluster, words: &[&str]) -> Result<()> {
    cluster.wait_state("node_b", &["failed"], LIMIT)?;
    let view = cluster.node_view("node_b")?.context("node_b is known")?;
    let report = cluster.cli(&["status", "node_b", "--last-report", "--json"])?;
    let said = format!("{view}\n{}", report.text());
    for word in words {
        assert!(said.contains(word), "{word} is not in {said}");
    }
    Ok(())
}

#[test]
fn an_owner_who_changes_rows_or_lets_others_write_while_they_are_loaded_is_noticed() -> Result<()> {
    let cluster = Cluster::pair()?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    source.sql(TABLES)?;

    // What was put back as it was has been away all the same.
    let unguarded = ["target_changed", "steep_repl_keep_out", "public.small"];
    cluster.init(&SLOWLY)?.expect(0)?;
    cluster.wait_copying("node_b")?;
    assert!(
        target
            .sql("INSERT INTO small VALUES (777, 'foreign')")
            .is_err()
    );
    target.sql(
        "ALTER TABLE small DISABLE TRIGGER steep_repl_keep_out;
         INSERT INTO small VALUES (777, 'foreign');
         ALTER TABLE small ENABLE TRIGGER steep_repl_keep_out",
    )?;
    fails(&cluster, &unguarded)?;
    residue::of_jobs(&source)?.none()?;
    residue::of_everything(&target)?.none()?;

    // Later still, while indexes are built.
    target.sql(
        "CREATE FUNCTION public.again() RETURNS event_trigger LANGUAGE plpgsql AS $$
         DECLARE made text;
         BEGIN
             SELECT pg_get_triggerdef(oid) INTO made FROM pg_trigger
                 WHERE tgname = 'steep_repl_keep_out' AND tgrelid = 'public.small'::regclass;
             DROP TRIGGER steep_repl_keep_out ON public.small;
             EXECUTE replace(made, 'TRIGGER steep_repl_keep_out', 'TRIGGER another');
         END $$;
         CREATE EVENT TRIGGER again ON ddl_command_start WHEN TAG IN ('CREATE INDEX')
             EXECUTE FUNCTION public.again();
         ALTER EVENT TRIGGER again ENABLE ALWAYS",
    )?;
    cluster.init(&["--detach"])?.expect(0)?;
    fails(&cluster, &unguarded)?;
    residue::of_everything(&target)?.none()?;
    target.sql("DROP EVENT TRIGGER again")?;

    cluster.init(&SLOWLY)?.expect(0)?;
    cluster.wait_copying("node_b")?;
    target.sql(
        "CREATE FUNCTION meddle() RETURNS trigger LANGUAGE plpgsql AS
             'BEGIN NEW.body := ''meddled''; RETURN NEW; END';
         CREATE TRIGGER meddle BEFORE INSERT ON small FOR EACH ROW EXECUTE FUNCTION meddle();
         ALTER TABLE small ENABLE ALWAYS TRIGGER meddle",
    )?;
    fails(
        &cluster,
        &[
            "public.small",
            "triggers that fire for replicated rows were enabled on it meanwhile: meddle",
            "nothing is loaded",
        ],
    )?;
    assert_eq!(target.value::<u32>("SELECT count(*) FROM small")?, 0);
    target.sql("ALTER TABLE small DISABLE TRIGGER meddle")?;
    cluster.init(&["--resume"])?.expect(0)?;
    compare::rows(&source, &target)?.none()?;
    let agent = cluster.node("node_b").agent().context("an agent")?;
    let failed = agent.events("command.failed")?;
    let failed: Vec<&str> = failed
        .iter()
        .filter_map(|e| e["command"].as_str())
        .collect();
    assert_eq!(failed, ["build_indexes", "subscribe", "copy"]);
    let notes = "SELECT count(*) FROM steep_repl.guards";
    assert_eq!(target.value::<u32>(notes)?, 0);
    Ok(())
}

const PARTITIONED: &str = "
    CREATE TABLE root (id integer, body text) PARTITION BY RANGE (id);
    CREATE TABLE root_1 PARTITION OF root FOR VALUES FROM (0) TO (100000);
    INSERT INTO root SELECT n, 'early' FROM generate_series(1, 100) AS n;
    CREATE TABLE parent (id integer PRIMARY KEY, body text);
    INSERT INTO parent SELECT n, 'early' FROM generate_series(1, 100) AS n";

#[test]
fn an_owner_who_rewrites_rows_or_attaches_others_while_they_are_loaded_is_noticed() -> Result<()> {
    let cluster = Cluster::pair()?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    source.sql(TABLES)?;
    source.sql(PARTITIONED)?;
    let rewrite = "ALTER TABLE public.small ALTER body TYPE text USING 'evil' || body";
    let altered = ["target_changed", "altered columns", "public.small"];
    for (statement, words) in [
        (rewrite, altered),
        (
            "CREATE TABLE foreign_rows (id integer, body text);
             INSERT INTO foreign_rows VALUES (200000, 'foreign');
             ALTER TABLE root ATTACH PARTITION foreign_rows FOR VALUES FROM (200000) TO (300000)",
            ["target_changed", "attached or detached", "public.root"],
        ),
        (
            "CREATE TABLE foreign_child (id integer NOT NULL, body text);
             INSERT INTO foreign_child VALUES (200000, 'foreign');
             ALTER TABLE foreign_child INHERIT parent",
            ["target_changed", "attached or detached", "public.parent"],
        ),
    ] {
        cluster.init(&SLOWLY)?.expect(0)?;
        cluster.wait_copying("node_b")?;
        target.sql(statement)?;
        fails(&cluster, &words)?;
        residue::of_jobs(&source)?.none()?;
        assert_eq!(target.sql("SELECT to_regclass('public.small')")?, "");
        target.sql("DROP TABLE IF EXISTS foreign_rows, foreign_child CASCADE")?;
        residue::of_everything(&target)?.none()?;
    }

    // Later still, while indexes are built.
    target.sql(&format!(
        "CREATE FUNCTION public.again() RETURNS event_trigger LANGUAGE plpgsql AS $$
         BEGIN {rewrite}; END $$;
         CREATE EVENT TRIGGER again ON ddl_command_start WHEN TAG IN ('CREATE INDEX')
             EXECUTE FUNCTION public.again();
         ALTER EVENT TRIGGER again ENABLE ALWAYS"
    ))?;
    cluster.init(&["--detach"])?.expect(0)?;
    fails(&cluster, &altered)?;
    residue::of_everything(&target)?.none()?;
    target.sql("DROP EVENT TRIGGER again")?;

    // A partition manager makes empty ones.
    cluster.init(&SLOWLY)?.expect(0)?;
    cluster.wait_copying("node_b")?;
    target.sql("CREATE TABLE root_2 PARTITION OF root FOR VALUES FROM (100000) TO (200000)")?;
    cluster
        .cli(&["init", "adjust", "--node", "node_b", "--max-rate", "none"])?
        .expect(0)?;
    cluster.wait_state("node_b", &["synchronized"], LIMIT)?;
    compare::rows_except(&source, &target, &["public.root_2"])?.none()?;
    let agent = cluster.node("node_b").agent().context("an agent")?;
    let failed = agent.events("command.failed")?;
    let failed: Vec<&str> = failed
        .iter()
        .filter_map(|e| e["command"].as_str())
        .collect();
    // On a busy machine the copy may be over before the statement.
    let looks = ["build_indexes", "subscribe"];
    assert!(
        failed.iter().all(|command| looks.contains(command)),
        "{failed:?}"
    );
    assert_eq!((failed.len(), failed.last()), (4, Some(&"subscribe")));
    Ok(())
}
