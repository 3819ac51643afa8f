//! Tables of a node get their rows again while it goes on following: readers see the old rows, then the new ones, and
//! whoever dies in between, both sides are equal in the end.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use steep_tests::cluster::{Cluster, Output};
use steep_tests::damage::{DAMAGE, KINDS};
use steep_tests::load::{Intensity, Load};
use steep_tests::pg::{Database, Grouping};
use steep_tests::session::Session;
use steep_tests::{compare, sample, wait};

const LIMIT: Duration = Duration::from_secs(120);

/// Accounts whose sum no transaction of the source changes, with everything that hangs on a table.
const ACCOUNTS: &str = "
    CREATE TABLE app.account (id integer PRIMARY KEY, cents bigint NOT NULL, note text DEFAULT repeat('-', 500),
        owner integer REFERENCES app.parent);
    INSERT INTO app.account (id, cents, owner) SELECT n, 1000, n % 300 + 1 FROM generate_series(1, 20000) n;
    CREATE INDEX ON app.account (cents);
    CREATE VIEW app.total AS SELECT count(*) AS accounts, sum(cents) AS cents FROM app.account;
    CREATE TABLE app.entry (account integer REFERENCES app.account, n integer);
    INSERT INTO app.entry SELECT n, n FROM generate_series(1, 300) n;
    GRANT SELECT (id, cents) ON app.account TO teller;
    CREATE FUNCTION app.transfer() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        UPDATE app.account SET cents = cents - 1 WHERE id = NEW.aid % 19000 + 1;
        UPDATE app.account SET cents = cents + 1 WHERE id = (NEW.aid + 7) % 19000 + 1;
        RETURN NULL; END $$;
    CREATE TRIGGER transfer AFTER INSERT ON pgbench_history FOR EACH ROW EXECUTE FUNCTION app.transfer();
    CREATE TABLE app.folded (k text PRIMARY KEY, v text);
    DO $$ BEGIN
        CREATE COLLATION app.fold (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
        ALTER TABLE app.folded ALTER k TYPE text COLLATE app.fold;
    EXCEPTION WHEN feature_not_supported OR invalid_parameter_value THEN NULL; END $$;
    INSERT INTO app.folded SELECT 'Key' || n, 'v' || n FROM generate_series(1, 300) n";

/// On both servers.
const ROLE: &str =
    "DO $$ BEGIN CREATE ROLE teller; EXCEPTION WHEN duplicate_object THEN NULL; END $$";

/// On the replica: its sum is another, and so is one row of each of the rest.
const MORE_DAMAGE: &str = "SET session_replication_role = replica;
    UPDATE app.account SET cents = cents + 500 WHERE id = 20000; UPDATE app.account SET note = 'other' WHERE id % 3 = 0;
    UPDATE app.folded SET k = 'KEY17' WHERE k = 'Key17'; DELETE FROM app.entry WHERE n = 5;
    INSERT INTO app.log VALUES ('foreign'), ('v3'); DELETE FROM app.log WHERE v = 'v8'";

const SUM: u64 = 20_000 * 1_000;

/// Every table with damaged rows.
const DAMAGED: &str = "app.account,app.entry,app.folded,app.log,app.by_text,app.by_uuid,app.by_two,app.by_number,\
     app.by_bytes,app.by_time,app.wide,app.parted,app.parent,app.child";

/// Synchronized, written to all the time, and damaged.
fn damaged() -> Result<(Cluster, Load)> {
    let cluster = Cluster::builder()
        .setting("node_b", "wal_retrieve_retry_interval", "1s")
        .start()?;
    let source = cluster.database("node_a");
    sample::create(&source, 1)?;
    // Odd names have a table of their own.
    source.sql(KINDS)?;
    for node in ["node_a", "node_b"] {
        cluster.database(node).sql(ROLE)?;
    }
    source.sql(ACCOUNTS)?;
    let load = Load::start(&source, Intensity::LIGHT, Grouping::Shared)?;
    cluster.init(&[])?.expect(0)?;
    let target = cluster.database("node_b");
    target.sql(DAMAGE)?;
    target.sql(MORE_DAMAGE)?;
    Ok((cluster, load))
}

fn reinit(cluster: &Cluster, further: &[&str]) -> Result<Output> {
    cluster.cli(&[&["reinit", "--node", "node_b"], further].concat())
}

/// Starts to copy the accounts again, slowly, and returns once rows arrive.
fn reinit_slowly(cluster: &Cluster, tables: &str) -> Result<()> {
    let slowly = [
        "--parallel",
        "1",
        "--max-rate",
        "200kB",
        "--detach",
        "--yes",
    ];
    reinit(cluster, &[&["--tables", tables], &slowly[..]].concat())?.expect(0)?;
    cluster.wait_phase("node_b", "copy")
}

fn at_full_speed(cluster: &Cluster) -> Result<()> {
    let adjust = ["init", "adjust", "--node", "node_b", "--max-rate", "none"];
    cluster.cli(&adjust)?.expect(0).map(drop)
}

/// What a command has said to people.
fn said(output: &Output) -> String {
    format!("{}{}", output.stdout, output.stderr)
}

fn events(cluster: &Cluster, name: &str) -> Result<Vec<Value>> {
    let events = cluster.cli(&["events", "node_b", "--json"])?.expect(0)?;
    let named = |event: &&Value| event["event"] == name;
    Ok(events.objects().iter().filter(named).cloned().collect())
}

/// One slot, publication, subscription and origin, and nothing else of a job.
fn nothing_left(cluster: &Cluster) -> Result<()> {
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    for (database, what, wanted) in [
        (&source, "pg_replication_slots", 1),
        (&source, "pg_publication", 1),
        (&target, "pg_subscription", 1),
        (&target, "pg_replication_origin", 1),
        (&target, "steep_repl.copy_ledger", 0),
        (&target, "steep_repl.jobs", 0),
        (&target, "steep_repl.reinits", 0),
        (
            &target,
            "pg_class WHERE relname LIKE 'reinit\\_%' AND relkind = 'r'",
            0,
        ),
    ] {
        let count: u32 = database.value(&format!("SELECT count(*) FROM {what}"))?;
        assert_eq!(count, wanted, "{what}");
    }
    Ok(())
}

/// Follows exactly in all tables but those named.
fn follows_exactly(cluster: &Cluster, load: Load, except: &[&str]) -> Result<()> {
    cluster.wait_state("node_b", &["synchronized"], LIMIT)?;
    nothing_left(cluster)?;
    load.wait_for(20, LIMIT)?;
    load.stop()?;
    cluster.wait_drained("node_a")?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    compare::rows_except(&source, &target, except)?.none()
}

/// The name that `DAMAGE` damages and that a list with commas cannot have.
const ODD: &str = r#""Odd S'"."T ""x""; --""#;

/// What hangs on the table, and which one it is.
fn identity(target: &Database) -> Result<String> {
    target.sql(
        "SELECT c.oid, c.relacl, (SELECT array_agg(attacl::text) FROM pg_attribute WHERE attrelid = c.oid),
            (SELECT array_agg(oid ORDER BY oid) FROM pg_constraint WHERE conrelid = c.oid OR confrelid = c.oid),
            (SELECT array_agg(indexrelid ORDER BY indexrelid) FROM pg_index WHERE indrelid = c.oid),
            pg_get_viewdef('app.total'::regclass)
         FROM pg_class c WHERE c.oid = 'app.account'::regclass",
    )
}

/// Reads all the time until told to end. Each reading has all accounts, and the sum of the old rows or that of the new
/// ones, never the old one after the new. Returns how often each was read.
fn read(target: &Database, end: &AtomicBool) -> Result<[u32; 2]> {
    let mut seen = [0; 2];
    while !end.load(Ordering::Relaxed) {
        let read = target.sql("SELECT accounts, cents FROM app.total")?;
        let old = format!("20000|{}", SUM + 500);
        let new = format!("20000|{SUM}");
        ensure!(read == old || read == new, "a reader saw {read}");
        ensure!(read == new || seen[1] == 0, "the old rows came back");
        seen[usize::from(read == new)] += 1;
    }
    Ok(seen)
}

#[test]
fn readers_see_the_old_rows_and_then_the_new_ones_at_once_while_all_others_go_on() -> Result<()> {
    let (cluster, load) = damaged()?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    let before = identity(&target)?;
    // A transaction that reads all the while does not hold the new rows up.
    let old = "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT * FROM app.total";
    let reader = Session::sleeping(&target, "reader", old)?;
    let end = AtomicBool::new(false);
    let seen = thread::scope(|scope| -> Result<[u32; 2]> {
        let reading = scope.spawn(|| read(&target, &end));
        let work = || -> Result<()> {
            reinit_slowly(&cluster, DAMAGED)?;
            assert_eq!(cluster.state("node_b")?, "reinitializing");
            source.sql("UPDATE pgbench_branches SET filler = 'meanwhile'")?;
            wait::until_true("the other tables to go on", LIMIT, || {
                let got = "SELECT count(*) FROM pgbench_branches WHERE filler = 'meanwhile'";
                Ok(target.value::<u32>(got)? == 1)
            })?;
            assert_eq!(cluster.state("node_b")?, "reinitializing");
            at_full_speed(&cluster)?;
            cluster.wait_state("node_b", &["synchronized"], LIMIT)?;
            Ok(())
        };
        let done = work();
        end.store(true, Ordering::Relaxed);
        let seen = reading
            .join()
            .map_err(|_| anyhow::anyhow!("the reader broke"))?;
        done.and(seen)
    })?;
    ensure!(seen[0] > 0 && seen[1] > 0, "read {seen:?}");
    drop(reader);
    assert_eq!(identity(&target)?, before);
    assert_eq!(events(&cluster, "reinit.completed")?.len(), 1);
    follows_exactly(&cluster, load, &[ODD])?;
    // Folded: what is written from now on arrives by the replication that went on.
    source.sql(
        "UPDATE app.account SET cents = 7 WHERE id = 1; INSERT INTO app.log VALUES ('later')",
    )?;
    cluster.wait_drained("node_a")?;
    compare::rows_except(&source, &target, &[ODD])?.none()?;
    compare::schema(&source, &target)?.none()
}

#[test]
fn a_whole_node_is_copied_again_and_the_last_line_says_so() -> Result<()> {
    let (cluster, load) = damaged()?;
    let end = reinit(&cluster, &["--schema", "Odd S'", "--yes", "--json"])?;
    let end = end.expect(0)?.last_object()?;
    assert_eq!(
        (end["event"].as_str(), end["state"].as_str()),
        (Some("reinit.completed"), Some("synchronized"))
    );
    assert_eq!(end["rows_copied"], 300, "{end}");
    reinit(&cluster, &["--full", "--yes"])?.expect(0)?;
    follows_exactly(&cluster, load, &[])
}

/// The tables wait for a writer on the node, by the processes that run now.
fn swaps_in_vain(cluster: &Cluster) -> Result<()> {
    wait::until_true("the swap to wait for a writer", LIMIT, || {
        let waiting = &cluster.progress("node_b")?["waiting"];
        let reason = waiting["reason"].as_str().unwrap_or_default();
        Ok(reason.contains("somebody on this server writes"))
    })
}

#[test]
fn tables_are_reinitialised_exactly_whoever_dies_in_whatever_phase() -> Result<()> {
    let (mut cluster, load) = damaged()?;
    reinit_slowly(&cluster, DAMAGED)?;
    for node in ["node_b", "node_a"] {
        cluster.kill_agent(node)?;
        cluster.kill_coordinator()?;
        cluster.start_coordinator()?;
        cluster.start_agent(node)?;
        cluster.wait_online(&["node_a", "node_b"])?;
        cluster.wait_phase("node_b", "copy")?;
    }
    // One that has written before the tables leave the replication, and commits long after.
    let source = cluster.database("node_a");
    let holder = Session::sleeping(&source, "holder", "SELECT pg_advisory_lock(77)")?;
    let crossing = "BEGIN; UPDATE app.account SET note = 'crossing' WHERE id > 19950;
        SELECT pg_advisory_xact_lock(77); COMMIT";
    let crossing = Session::start(&source, "crossing", crossing)?;
    wait::until_true("the writer to wait", LIMIT, || {
        let waits = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'crossing' AND wait_event = 'advisory'";
        Ok(source.value::<u32>(waits)? == 1)
    })?;
    // A writer on the node keeps the new rows out; meanwhile everybody dies.
    let open =
        "SET session_replication_role = replica; BEGIN; UPDATE app.parent SET v = v WHERE k = 1";
    let writer = Session::sleeping(&cluster.database("node_b"), "writer", open)?;
    at_full_speed(&cluster)?;
    swaps_in_vain(&cluster)?;
    for node in ["node_b", "node_a"] {
        cluster.kill_agent(node)?;
        cluster.start_agent(node)?;
        swaps_in_vain(&cluster)?;
    }
    cluster.kill_coordinator()?;
    cluster.start_coordinator()?;
    swaps_in_vain(&cluster)?;
    let late = cluster
        .cli(&["init", "cancel", "--node", "node_b", "--yes"])?
        .expect(1)?;
    ensure!(said(&late).contains("too late to cancel"), "{late}");
    drop(writer);
    // The writer on the source keeps them from joining.
    cluster.wait_phase("node_b", "catch_up")?;
    cluster.kill_agent("node_a")?;
    cluster.kill_coordinator()?;
    cluster.start_coordinator()?;
    cluster.start_agent("node_a")?;
    cluster.kill_agent("node_b")?;
    cluster.start_agent("node_b")?;
    cluster.wait_phase("node_b", "catch_up")?;
    drop(holder);
    crossing.succeeds()?;
    cluster.wait_state("node_b", &["synchronized"], LIMIT)?;
    assert_eq!(events(&cluster, "reinit.completed")?.len(), 1);
    follows_exactly(&cluster, load, &[ODD])
}

#[test]
fn a_cancel_in_mid_copy_gives_the_old_rows_back_and_leaves_nothing() -> Result<()> {
    let (cluster, load) = damaged()?;
    let target = cluster.database("node_b");
    reinit_slowly(&cluster, "app.account")?;
    // Nobody but its owner reads what is not in place yet.
    let shadow = "SELECT 'steep_repl.' || relname FROM pg_class WHERE relname LIKE 'reinit\\_%' AND relkind = 'r'";
    let shadow = target.sql(shadow)?;
    target.sql("CREATE ROLE reads_all; GRANT pg_read_all_data TO reads_all")?;
    let read = format!("SET ROLE reads_all; SET row_security = on; SELECT count(*) FROM {shadow}");
    ensure!(target.sql(&read)?.ends_with('0'), "{shadow} can be read");
    cluster
        .cli(&["init", "cancel", "--node", "node_b", "--yes"])?
        .expect(0)?;
    cluster.wait_state("node_b", &["synchronized"], LIMIT)?;
    nothing_left(&cluster)?;
    // Of those that the load does not write.
    let other = "SELECT count(*) FROM app.account WHERE note = 'other' AND id > 19000";
    assert_eq!(target.value::<u32>(other)?, 333, "the old rows are gone");
    // They are followed as before.
    cluster
        .database("node_a")
        .sql("UPDATE app.account SET note = 'told' WHERE id = 3")?;
    cluster.wait_drained("node_a")?;
    let told = "SELECT count(*) FROM app.account WHERE note = 'told'";
    assert_eq!(target.value::<u32>(told)?, 1);
    reinit(&cluster, &["--tables", DAMAGED, "--yes"])?.expect(0)?;
    follows_exactly(&cluster, load, &[ODD])
}

#[test]
fn what_is_given_up_during_the_swap_is_unfollowed_says_so_and_can_be_added_again() -> Result<()> {
    let (cluster, load) = damaged()?;
    let open =
        "SET session_replication_role = replica; BEGIN; UPDATE app.parent SET v = v WHERE k = 1";
    let writer = Session::sleeping(&cluster.database("node_b"), "writer", open)?;
    reinit(&cluster, &["--tables", "app.parent", "--yes", "--detach"])?.expect(0)?;
    swaps_in_vain(&cluster)?;
    let give_up = [
        "init",
        "cancel",
        "--node",
        "node_b",
        "--force-cleanup",
        "--yes",
    ];
    cluster.cli(&give_up)?.expect(0)?;
    drop(writer);
    cluster.wait_state("node_b", &["synchronized"], LIMIT)?;
    let ended = events(&cluster, "init.cancelled")?;
    let text = ended.last().context("no event")?.to_string();
    ensure!(text.contains("no longer follows"), "{text}");
    nothing_left(&cluster)?;
    let add = ["tables", "add", "--node", "node_b", "app.parent", "--force"];
    cluster.cli(&add)?.expect(0)?;
    let rest = DAMAGED.replace("app.parent,", "");
    reinit(&cluster, &["--tables", &rest, "--yes"])?.expect(0)?;
    follows_exactly(&cluster, load, &[ODD])
}

#[test]
fn a_node_that_diverged_for_its_rows_is_synchronized_once_a_comparison_finds_them_equal()
-> Result<()> {
    let (cluster, load) = damaged()?;
    let every = [
        "verify",
        "node_a",
        "node_b",
        "--tables",
        "app.account",
        "--every",
        "24h",
    ];
    cluster.cli(&every)?.expect(0)?;
    cluster.wait_state("node_b", &["diverged"], LIMIT)?;
    reinit(&cluster, &["--tables", DAMAGED, "--yes"])?.expect(0)?;
    wait::until_true("a comparison that finds the rows equal", LIMIT, || {
        Ok(events(&cluster, "verify.completed")?.len() > 1)
    })?;
    follows_exactly(&cluster, load, &[ODD])
}

#[test]
fn a_node_whose_subscription_fails_at_a_table_follows_again_with_that_table_anew() -> Result<()> {
    let (cluster, load) = damaged()?;
    cluster
        .database("node_b")
        .sql("INSERT INTO app.account VALUES (90000, 1)")?;
    cluster.database("node_a").sql(
        "INSERT INTO app.account VALUES (90000, 0); UPDATE app.account SET note = 'after' WHERE id = 90000",
    )?;
    cluster.wait_state("node_b", &["diverged"], LIMIT)?;
    reinit(&cluster, &["--tables", DAMAGED, "--yes"])?.expect(0)?;
    follows_exactly(&cluster, load, &[ODD])
}

#[test]
fn what_cannot_be_reinitialised_is_refused_and_nothing_is_changed() -> Result<()> {
    let (cluster, load) = damaged()?;
    let source = cluster.database("node_a");
    let refused = |further: &[&str], code: i32, why: &str| -> Result<()> {
        let output = reinit(&cluster, further)?.expect(code)?;
        ensure!(said(&output).contains(why), "{further:?}: {output}");
        cluster.wait_state("node_b", &["synchronized"], LIMIT)?;
        nothing_left(&cluster)
    };
    refused(&["--full"], 2, "--yes")?;
    refused(&["--yes"], 2, "--tables")?;
    refused(
        &["--tables", "app.log", "--full", "--yes"],
        2,
        "cannot be used",
    )?;
    refused(&["--schema", "nowhere", "--yes"], 2, "follows no table")?;
    refused(&["--tables", "app.logs", "--yes"], 1, "app.log")?;
    let other = ["--tables", "app.log", "--source", "node_b", "--yes"];
    refused(&other, 2, "follows node_a")?;
    source.sql("CREATE TABLE app.late (id integer PRIMARY KEY)")?;
    cluster
        .database("node_b")
        .sql("CREATE TABLE app.late (id integer PRIMARY KEY)")?;
    refused(&["--tables", "app.late", "--yes"], 2, "tables add")?;
    source.sql("DROP TABLE app.late")?;
    cluster.database("node_b").sql("DROP TABLE app.late")?;
    // Two at once: the second is told.
    reinit_slowly(&cluster, "app.account")?;
    let second = reinit(&cluster, &["--tables", "app.log", "--yes"])?.expect(1)?;
    ensure!(said(&second).contains("is running"), "{second}");
    at_full_speed(&cluster)?;
    cluster.wait_state("node_b", &["synchronized"], LIMIT)?;
    reinit(&cluster, &["--tables", DAMAGED, "--yes"])?.expect(0)?;
    follows_exactly(&cluster, load, &[ODD])
}
