//! An object that cannot be created affects neither the rows nor the rest; status lists it until it
//! is created; and a cancel removes every kind of object.

use anyhow::{Result, ensure};
use serde_json::Value;
use steep_tests::cluster::Cluster;
use steep_tests::pg::Database;
use steep_tests::{compare, residue};

const MISSING: &str = include_str!("../src/sql/missing.sql");

/// Makes sessions fail at a statement with that text, whatever their role.
fn guard(database: &Database, text: &str) -> Result<()> {
    let sql = format!(
        "CREATE FUNCTION public.guard() RETURNS event_trigger LANGUAGE plpgsql AS $$
         BEGIN
             IF current_query() LIKE '%{text}%' THEN
                 RAISE EXCEPTION 'refused';
             END IF;
         END $$;
         CREATE EVENT TRIGGER guard ON ddl_command_start EXECUTE FUNCTION public.guard();
         ALTER EVENT TRIGGER guard ENABLE ALWAYS"
    );
    database.sql(&sql).map(drop)
}

const NO_GUARD: &str = "DROP EVENT TRIGGER guard; DROP FUNCTION public.guard()";

fn init<'a>(further: &[&'a str]) -> Vec<&'a str> {
    let init = ["init", "node_b", "--from", "node_a", "--yes", "--json"];
    let without = ["--exclude-table", "public.secret"];
    [&init[..], &without, further].concat()
}

/// The node's missing objects.
fn lacks(cluster: &Cluster) -> Result<Value> {
    let status = cluster.cli(&["status", "node_b", "--json"])?.expect(0)?;
    status.last_object()
}

fn rebuild(cluster: &Cluster, code: i32) -> Result<Value> {
    let rebuild = ["init", "rebuild", "--node", "node_b", "--json"];
    cluster.cli(&rebuild)?.expect(code)?.last_object()
}

/// Every policy, and whether row security is on.
fn policies(database: &Database) -> Result<String> {
    database.sql(
        "SELECT relrowsecurity, (SELECT count(*) FROM pg_policy WHERE polrelid = c.oid)
         FROM pg_class c WHERE oid = 'public.account'::regclass",
    )
}

#[test]
fn what_cannot_be_made_is_said_and_tried_again_and_costs_no_rows() -> Result<()> {
    let mut cluster = Cluster::pair()?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    source.sql(MISSING)?;

    // A replica cannot do without the index that finds its rows.
    guard(&target, "account_pkey")?;
    let failed = cluster.cli(&init(&[]))?.expect(1)?.text();
    for said in ["account_pkey", "event_triggers", "--resume"] {
        ensure!(failed.contains(said), "{said}: {failed}");
    }
    target.sql(NO_GUARD)?;

    let done = cluster.cli(&init(&["--resume"]))?.expect(0)?.text();
    for missing in [
        "account_mail_key",
        "absent_owner",
        "policy",
        "security label",
    ] {
        ensure!(done.contains(missing), "{missing}: {done}");
    }
    cluster.wait_drained("node_a")?;
    // Our statements are not logged as DDL of the source, and materialised views were filled in an
    // order that works.
    compare::rows_except(&source, &target, &["public.secret"])?.none()?;
    let built = "SELECT count(*) FROM pg_class WHERE relname IN ('account_pkey', 'account_owner')";
    assert_eq!(target.value::<u32>(built)?, 2);
    let enabled = "SELECT evtenabled FROM pg_event_trigger WHERE evtname = 'log_ddl'";
    assert_eq!(target.sql(enabled)?, "O");
    assert_eq!(
        policies(&target)?,
        "t|0",
        "all policies of a table, or none"
    );

    // Listed and retried across restarts.
    cluster.kill_coordinator()?;
    cluster.kill_agent("node_b")?;
    cluster.start_coordinator()?;
    cluster.start_agent("node_b")?;
    cluster.wait_online(&["node_a", "node_b"])?;
    let before = lacks(&cluster)?;
    assert_eq!(before["state"], "synchronized");
    ensure!(
        before["missing"]
            .to_string()
            .contains("CREATE UNIQUE INDEX account_mail_key")
    );
    let nothing = rebuild(&cluster, 1)?;
    assert_eq!(nothing["made"], 0, "{nothing}");
    assert_eq!(nothing["missing_objects"], before["missing_objects"]);

    // Removes the causes one by one.
    target.sql(
        // A person's DDL would be logged, but on this node only.
        "SET session_replication_role = replica;
         CREATE OR REPLACE FUNCTION public.mail_key(t text) RETURNS text LANGUAGE sql IMMUTABLE AS $$ SELECT t $$;
         CREATE ROLE absent_owner;
         CREATE TABLE public.secret (id integer PRIMARY KEY)",
    )?;
    let partly = rebuild(&cluster, 1)?;
    assert_eq!(partly["missing_objects"], 1, "{partly}");
    ensure!(partly.to_string().contains("security label"), "{partly}");
    assert_eq!(lacks(&cluster)?["missing_objects"], 1);
    assert_eq!(policies(&target)?, "t|2");
    let details =
        "SELECT obj_description('public.account_mail_key'::regclass), pg_get_userbyid(relowner)
        FROM pg_class WHERE oid = 'public.account'::regclass";
    assert_eq!(target.sql(details)?, "goes with its index|absent_owner");
    // Created by hand, or given up: nothing is missing any more.
    target.sql("DELETE FROM steep_repl.missing_objects")?;
    assert_eq!(rebuild(&cluster, 0)?["missing_objects"], 0);
    source.sql("DELETE FROM public.account WHERE id <= 10")?;
    cluster.wait_drained("node_a")?;
    compare::rows_except(&source, &target, &["public.secret"])?.none()
}

const KINDS: &str = include_str!("../src/sql/kinds.sql");

#[test]
fn every_kind_of_object_is_copied_taken_back_and_copied_again() -> Result<()> {
    let cluster = Cluster::pair()?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    source.sql(KINDS)?;
    guard(&target, "ALTER SUBSCRIPTION%ENABLE")?;
    let before = compare::dump(&target)?;
    for _ in 0..2 {
        // By then everything exists except what comes last.
        cluster.init(&[])?.expect(1)?;
        let cancel = ["init", "cancel", "--node", "node_b", "--yes"];
        cluster.cli(&cancel)?.expect(0)?;
        residue::of_everything(&target)?.none()?;
        let after = compare::dump(&target)?;
        ensure!(before == after, "{before}\n--- became\n{after}");
    }
    target.sql(NO_GUARD)?;
    let done = cluster.init(&[])?.expect(0)?.text();
    ensure!(!done.contains("object_missing"), "{done}");
    compare::schema(&source, &target)?.none()?;
    compare::rows(&source, &target)?.none()
}

#[test]
fn materialised_views_of_a_target_that_had_its_tables_are_filled() -> Result<()> {
    let cluster = Cluster::pair()?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    // The first depends on the last in a way that no catalog records.
    let schema = "
        CREATE TABLE public.t (id integer PRIMARY KEY);
        CREATE MATERIALIZED VIEW public.z_inner AS SELECT count(*) AS n FROM public.t WITH NO DATA;
        CREATE FUNCTION public.inner_count() RETURNS bigint LANGUAGE plpgsql STABLE AS $$
            BEGIN RETURN (SELECT n FROM public.z_inner); END $$;
        CREATE MATERIALIZED VIEW public.a_outer AS SELECT public.inner_count() AS n WITH NO DATA;
        CREATE MATERIALIZED VIEW public.unfilled AS SELECT id FROM public.t WITH NO DATA";
    source.sql(schema)?;
    target.sql(schema)?;
    source.sql(
        "INSERT INTO public.t SELECT generate_series(1, 100);
         REFRESH MATERIALIZED VIEW public.z_inner;
         REFRESH MATERIALIZED VIEW public.a_outer",
    )?;
    cluster.init(&[])?.expect(0)?;
    compare::rows(&source, &target)?.none()
}
