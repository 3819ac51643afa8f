//! The schema `steep_repl` as an extension: an upgrade gives the same as a new installation, a role
//! that may not upgrade it is told so, and the source's extension is not copied.

use std::time::Duration;

use anyhow::{Result, ensure};
use steep_tests::cluster::Cluster;
use steep_tests::pg::{Database, Installation};
use steep_tests::{compare, schema, wait};

const LIMIT: Duration = Duration::from_secs(10);

/// Rows as version 1.0 wrote them.
const ROWS: &str = "
    INSERT INTO steep_repl.nodes (node_id, state) VALUES ('node_x', 'synchronized');
    INSERT INTO steep_repl.init_progress (node_id, job, overall_percent, tables_total, tables_completed,
        rows_copied, bytes_copied) VALUES ('node_x', 'j', 50, 2, 1, 3, 4);
    INSERT INTO steep_repl.schema_fingerprints (schema_name, table_name, fingerprint, column_definitions)
        VALUES ('s', 't', 'f', '[]');
    INSERT INTO steep_repl.audit_log (node_id, event) VALUES ('node_x', 'e');";

/// Everything in the schema: columns, constraints, functions, privileges, comments.
const OBJECTS: &str = r"
    SELECT 'column', c.relname, a.attnum::text, concat_ws(' ', a.attname, format_type(a.atttypid, a.atttypmod),
        a.attnotnull, a.attidentity, pg_get_expr(d.adbin, d.adrelid), col_description(c.oid, a.attnum))
    FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
    LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
    WHERE c.relnamespace = 'steep_repl'::regnamespace AND c.relkind = 'r'
    UNION ALL SELECT 'relation', relname, relkind::text, concat_ws(' ', relacl, obj_description(oid, 'pg_class'))
    FROM pg_class WHERE relnamespace = 'steep_repl'::regnamespace
    UNION ALL SELECT 'constraint', conname, '', pg_get_constraintdef(oid)
    FROM pg_constraint WHERE connamespace = 'steep_repl'::regnamespace
    UNION ALL SELECT 'function', oid::regprocedure::text, '', concat_ws(' ', pg_get_functiondef(oid),
        proacl, obj_description(oid, 'pg_proc'))
    FROM pg_proc WHERE pronamespace = 'steep_repl'::regnamespace
    UNION ALL SELECT 'schema', nspname, '', concat_ws(' ', nspacl, obj_description(oid, 'pg_namespace'))
    FROM pg_namespace WHERE nspname = 'steep_repl'
    ORDER BY 1, 2, 3, 4";

/// Whether the preferred server supports extensions in other directories.
fn can_be_shared() -> Result<bool> {
    let major = Installation::preferred()?.major();
    if major < 18 {
        println!("NOT TESTED: PostgreSQL {major} has no extension_control_path");
    }
    Ok(major >= 18)
}

/// Lets that node's server find the extension's files.
fn share(cluster: &Cluster, node: &str) -> Result<()> {
    let database = cluster.database(node);
    let share = schema::share(cluster.node(node).server())?;
    database.sql(&format!(
        "ALTER SYSTEM SET extension_control_path = '$system:{share}'"
    ))?;
    database.sql("SELECT pg_reload_conf()")?;
    wait::until_true("the setting to hold", LIMIT, || {
        Ok(database
            .sql("SHOW extension_control_path")?
            .contains(&share))
    })
}

fn as_agents_made_it(database: &Database, scripts: &[&str]) -> Result<()> {
    database.sql("CREATE SCHEMA steep_repl")?;
    for script in scripts {
        database.sql(&schema::extension_script(script)?)?;
    }
    Ok(())
}

const EXTENSION: &str = "SELECT extversion FROM pg_extension WHERE extname = 'steep_repl'";

#[test]
fn what_is_upgraded_is_what_is_made_anew_and_its_rows_are_kept() -> Result<()> {
    if !can_be_shared()? {
        return Ok(());
    }
    let cluster = Cluster::builder().nodes(1).start_servers()?;
    share(&cluster, "node_a")?;
    let server = cluster.node("node_a").server();
    let [upgraded, fresh, plain] = ["upgraded", "fresh", "plain"];
    let upgraded = server.create_database(upgraded)?;
    let fresh = server.create_database(fresh)?;
    let plain = server.create_database(plain)?;
    upgraded.sql("CREATE EXTENSION steep_repl VERSION '1.0'")?;
    upgraded.sql(ROWS)?;
    upgraded.sql("ALTER EXTENSION steep_repl UPDATE")?;
    fresh.sql("CREATE EXTENSION steep_repl")?;
    let scripts = [
        "steep_repl--1.0.sql",
        "steep_repl--1.0--1.1.sql",
        "steep_repl--1.1--1.2.sql",
        "steep_repl--1.2--1.3.sql",
        "steep_repl--1.3--1.4.sql",
        "steep_repl--1.4--1.5.sql",
        "steep_repl--1.5--1.6.sql",
        "steep_repl--1.6--1.7.sql",
        "steep_repl--1.7--1.8.sql",
    ];
    as_agents_made_it(&plain, &scripts)?;

    assert_eq!(upgraded.sql(EXTENSION)?, fresh.sql(EXTENSION)?);
    let wanted = fresh.rows(OBJECTS)?;
    ensure!(wanted.len() > 100, "{} objects", wanted.len());
    assert_eq!(upgraded.rows(OBJECTS)?, wanted);
    assert_eq!(plain.rows(OBJECTS)?, wanted);
    let kept = "SELECT (SELECT count(*) FROM steep_repl.nodes), (SELECT bytes_total FROM steep_repl.init_progress),
        (SELECT node_id FROM steep_repl.schema_fingerprints), (SELECT event FROM steep_repl.audit_log)";
    assert_eq!(upgraded.sql(kept)?, "1|0||e");
    // Others have no access to it.
    let granted = "SELECT count(*) FROM pg_proc WHERE pronamespace = 'steep_repl'::regnamespace
        AND has_function_privilege('public', oid, 'EXECUTE')";
    for database in [&upgraded, &fresh, &plain] {
        assert_eq!(database.value::<u32>(granted)?, 0);
    }
    Ok(())
}

#[test]
fn agents_upgrade_what_is_there_and_an_extension_of_the_sources_is_not_copied() -> Result<()> {
    if !can_be_shared()? {
        return Ok(());
    }
    let mut cluster = Cluster::builder().nodes(3).start_servers()?;
    for node in ["node_a", "node_c"] {
        share(&cluster, node)?;
    }
    let nodes = ["node_a", "node_b", "node_c"];
    let [source, plain, extended] = nodes.map(|node| cluster.database(node));
    source.sql("CREATE EXTENSION steep_repl VERSION '1.0'")?;
    as_agents_made_it(&plain, &["steep_repl--1.0.sql"])?;
    plain.sql(ROWS)?;
    extended.sql("CREATE EXTENSION steep_repl")?;
    cluster.start_coordinator()?;
    for node in nodes {
        cluster.start_agent(node)?;
    }
    cluster.wait_online(&nodes)?;
    for database in [&source, &plain] {
        wait::until_true("the schema to be of this version", LIMIT, || {
            Ok(database.sql("SELECT max(version) FROM steep_repl.schema_version")? == "8")
        })?;
    }
    assert_eq!(source.sql(EXTENSION)?, "1.8");
    source.sql("CREATE TABLE t (id integer PRIMARY KEY); INSERT INTO t VALUES (1)")?;
    // Both targets read the dump of a source with the extension.
    let init = ["init", "node_c", "--from", "node_a", "--yes", "--json"];
    cluster.init(&[])?.expect(0)?;
    cluster.cli(&init)?.expect(0)?;
    for (target, extension) in [(&plain, ""), (&extended, "1.8")] {
        compare::rows(&source, target)?.none()?;
        assert_eq!(target.sql(EXTENSION)?, extension);
        let stored = "SELECT count(*) FROM steep_repl.schema_fingerprints WHERE node_id = 'node_a'";
        assert_eq!(target.value::<u32>(stored)?, 1);
    }
    let kept = "SELECT count(*) FROM steep_repl.audit_log WHERE event = 'e'";
    assert_eq!(plain.value::<u32>(kept)?, 1);
    for target in ["node_b", "node_c"] {
        cluster
            .cli(&["schema", "compare", "node_a", target])?
            .expect(0)?;
    }
    Ok(())
}

#[test]
fn who_does_not_own_an_old_extension_is_told_so() -> Result<()> {
    if !can_be_shared()? {
        return Ok(());
    }
    let mut cluster = Cluster::builder().nodes(1).start_servers()?;
    share(&cluster, "node_a")?;
    let node = cluster.node_mut("node_a");
    node.set_role("keeper");
    let password = node.server().password().replace('\'', "''");
    let database = node.database();
    database.sql(&format!(
        "CREATE EXTENSION steep_repl VERSION '1.0';
         CREATE ROLE keeper LOGIN PASSWORD '{password}';
         GRANT USAGE ON SCHEMA steep_repl TO keeper;
         GRANT SELECT ON steep_repl.schema_version TO keeper"
    ))?;
    cluster.start_coordinator()?;
    cluster.start_agent("node_a")?;
    cluster.wait_online(&["node_a"])?;
    let refused = cluster.cli(&["schema", "capture", "--node", "node_a"])?;
    let refused = refused.expect(1)?.text();
    ensure!(
        refused.contains("extension steep_repl cannot be updated to version 1.8"),
        "{refused}"
    );
    assert_eq!(database.sql(EXTENSION)?, "1.0");
    // The node cannot update its own tables, but everything else works.
    assert_eq!(cluster.state("node_a")?, "uninitialized");
    Ok(())
}
