//! The audit log: operators' requests, in the coordinator's store and on the nodes concerned.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result};
use steep_tests::cluster::Cluster;
use steep_tests::pg::Database;
use steep_tests::{sample, schema, wait};

const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn who_did_what_is_in_the_store_and_on_both_nodes() -> Result<()> {
    let cluster = Cluster::pair()?;
    sample::create(&cluster.database("node_a"), 1)?;
    let serial = {
        let file = cluster.dir().join("certs/operator.pem");
        let file = file.to_str().context("a path")?;
        let shown = cluster.cli(&["certs", "show", file, "--json"])?.expect(0)?;
        shown.last_object()?["serial"].clone()
    };
    cluster.init(&["--parallel", "3"])?.expect(0)?;
    cluster.init(&[])?.expect(1)?;

    let trail = cluster
        .cli(&["events", "--audit", "--json"])?
        .expect(0)?
        .objects();
    assert_eq!(trail.len(), 2, "{trail:?}");
    let (first, second) = (&trail[0], &trail[1]);
    assert_eq!(first["operator"], "operator");
    assert_eq!(first["certificate"], serial);
    assert_eq!(first["address"], "127.0.0.1");
    assert_eq!(
        (&first["action"], &first["node_id"]),
        (&"init".into(), &"node_b".into())
    );
    assert_eq!(first["arguments"]["parallel"], "3");
    assert!(first["refused"].is_null() && first["job_id"].is_string());
    assert!(
        second["refused"]
            .as_str()
            .is_some_and(|why| why.contains("already"))
    );
    let text = cluster
        .cli(&["events", "node_a", "--audit"])?
        .expect(0)?
        .stdout;
    assert!(
        text.contains("operator") && text.contains("parallel=3"),
        "{text}"
    );

    for node in ["node_a", "node_b"] {
        let database = cluster.database(node);
        let written = "SELECT count(*) FROM steep_repl.audit_log WHERE event = 'operator.init' \
             AND detail ->> 'operator' = 'operator' AND detail -> 'arguments' ->> 'parallel' = '3'";
        wait::until_true("the audit log to be written", LIMIT, || {
            Ok(database.value::<u32>(written)? == 1)
        })?;
        let refused = "SELECT count(*) FROM steep_repl.audit_log WHERE event LIKE 'operator.%'";
        assert_eq!(database.value::<u32>(refused)?, 1, "{node}");
    }
    let progress = "SELECT rows_copied > 100000 AND bytes_total >= bytes_copied AND wire_bytes > 0
         FROM steep_repl.init_progress";
    assert_eq!(cluster.database("node_b").sql(progress)?.trim(), "t");
    Ok(())
}

/// Where a server looks for extensions.
fn find_extensions(of: &Database, at: &str) -> Result<()> {
    of.sql(&format!("ALTER SYSTEM SET extension_control_path = '{at}'"))?;
    of.sql("SELECT pg_reload_conf()")?;
    wait::until_true("the setting to hold", LIMIT, || {
        Ok(of.sql("SHOW extension_control_path")?.trim() == at)
    })
}

#[test]
fn an_audit_entry_that_a_node_cannot_write_yet_is_written_when_it_can() -> Result<()> {
    let mut cluster = Cluster::builder().start_servers()?;
    cluster
        .database("node_a")
        .sql("CREATE TABLE t (id integer PRIMARY KEY)")?;
    let target = cluster.database("node_b");
    // An extension of the previous version without its update script.
    let share = schema::share(cluster.node("node_b").server())?;
    find_extensions(&target, &format!("$system:{share}"))?;
    target.sql("CREATE EXTENSION steep_repl VERSION '1.0'")?;
    find_extensions(&target, "$system")?;
    cluster.start_coordinator()?;
    for node in ["node_a", "node_b"] {
        cluster.start_agent(node)?;
    }
    cluster.wait_online(&["node_a", "node_b"])?;
    let init = cluster.init(&[])?;
    let written = "SELECT count(*) FROM steep_repl.audit_log WHERE event = 'operator.init'";
    wait::until_true("the source to have it", LIMIT, || {
        Ok(cluster.database("node_a").value::<u32>(written)? == 1)
    })?;
    wait::until_true("the target to have tried", LIMIT, || {
        let log = fs::read_to_string(cluster.dir().join("agent-node_b.log"))?;
        Ok(log.contains("this node's own tables are not kept"))
    })?;
    assert_eq!(target.value::<u32>(written)?, 0, "{init}");

    find_extensions(&target, &format!("$system:{share}"))?;
    // A new session resends entries that were not acknowledged.
    cluster.stop_agent("node_b")?;
    cluster.start_agent("node_b")?;
    wait::until_true("the target to have it", LIMIT, || {
        Ok(target.value::<u32>(written)? == 1)
    })
}
