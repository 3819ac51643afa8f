//! The harness itself, without any process of the product.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result};
use steep_tests::hostile::{self, Large};
use steep_tests::load::{Intensity, Load};
use steep_tests::pg::{DATABASE, Database, Grouping, Installation, Options, Server};
use steep_tests::{compare, sample, usage};

fn server(name: &str) -> Result<Server> {
    Server::start(&Installation::preferred()?, Options::named(name))
}

/// PostgreSQL's own tools, for comparison.
fn dump_and_restore(from: &Database, to: &Database) -> Result<()> {
    let mut dump = from
        .client_of(to.installation(), "pg_dump")
        .stdout(Stdio::piped())
        .spawn()?;
    let pipe = dump.stdout.take().context("piped")?;
    let mut psql = to.client("psql");
    let restored = psql
        .args(["-X", "-q", "-v", "ON_ERROR_STOP=1"])
        .stdin(pipe)
        .output()?;
    assert!(dump.wait()?.success());
    assert!(
        restored.status.success(),
        "{}",
        String::from_utf8_lossy(&restored.stderr)
    );
    Ok(())
}

#[test]
fn a_crashed_server_recovers_and_a_dropped_one_is_gone() -> Result<()> {
    let mut server = server("crash")?;
    let database = server.database(DATABASE);
    database.sql("CREATE TABLE t AS SELECT generate_series(1, 10) AS i")?;
    server.crash()?;
    assert!(database.sql("SELECT 1").is_err());
    server.restart()?;
    assert_eq!(database.value::<u32>("SELECT count(*) FROM t")?, 10);
    let (pid, dir) = (server.pid().context("it runs")?, server.dir().to_path_buf());
    drop(server);
    assert!(!usage::is_alive(pid));
    assert_eq!(
        dir.exists(),
        std::env::var_os(steep_tests::scratch::KEEP_VARIABLE).is_some()
    );
    Ok(())
}

#[test]
fn replication_over_tcp_works_with_the_password_and_not_without() -> Result<()> {
    let server = server("password")?;
    let connect = |password: &str| -> Result<bool> {
        let mut psql = server.database("postgres").client("psql");
        psql.args(["-X", "-w", "-c", "IDENTIFY_SYSTEM"])
            .arg(format!(
                "{} replication=database",
                server.conninfo("postgres")
            ))
            .env("PGPASSWORD", password);
        Ok(psql.output()?.status.success())
    };
    assert!(connect(server.password())?);
    assert!(!connect("wrong")?);
    Ok(())
}

#[test]
fn a_copy_of_the_sample_is_equal_and_every_single_change_is_seen() -> Result<()> {
    let server = server("sample")?;
    let (left, right) = (server.create_database("a")?, server.create_database("b")?);
    sample::create(&left, 1)?;
    dump_and_restore(&left, &right)?;
    compare::rows(&left, &right)?.none()?;
    compare::schema(&left, &right)?.none()?;
    compare::sequences(&left, &right)?.none()?;

    let changes = [
        "UPDATE shop.product SET weight = weight + 1e-9 WHERE id = 7",
        "DELETE FROM shop.order_item WHERE order_id = 9",
        "INSERT INTO pgbench_history (tid) VALUES (NULL)",
        "UPDATE shop.\"order\" SET note = '' WHERE id = 3",
        "DROP TABLE pgbench_tellers",
    ];
    for change in changes {
        right.sql(&format!("BEGIN; {change}; COMMIT"))?;
        assert!(
            !compare::rows(&left, &right)?.is_empty(),
            "not seen: {change}"
        );
        left.sql(change)?;
        compare::rows(&left, &right)?.none()?;
    }
    right.sql("ALTER TABLE shop.product ALTER weight SET DEFAULT 1")?;
    assert_eq!(compare::schema(&left, &right)?.0.len(), 2);
    right.sql("SELECT nextval('shop.invoice_number')")?;
    assert_eq!(compare::sequences(&left, &right)?.0.len(), 2);
    Ok(())
}

#[test]
fn a_row_twice_is_not_a_row_once() -> Result<()> {
    let server = server("multiset")?;
    let (left, right) = (server.create_database("a")?, server.create_database("b")?);
    left.sql("CREATE TABLE t (i int); INSERT INTO t VALUES (1), (1), (2)")?;
    right.sql("CREATE TABLE t (i int); INSERT INTO t VALUES (2), (1), (2)")?;
    assert_eq!(compare::rows(&left, &right)?.0.len(), 1);
    Ok(())
}

#[test]
fn the_hostile_database_can_be_made_and_compared() -> Result<()> {
    let server = server("hostile")?;
    let (left, right) = (server.create_database("a")?, server.create_database("b")?);
    hostile::create_roles(&left)?;
    hostile::create(&left, &right, Large { megabytes: 1 })?;
    dump_and_restore(&left, &right)?;
    compare::rows(&left, &right)?.none()?;
    compare::schema(&left, &right)?.none()?;
    compare::sequences(&left, &right)?.none()?;
    assert!(compare::contents(&left)?.len() >= 35);
    Ok(())
}

#[test]
fn a_load_writes_until_it_is_stopped() -> Result<()> {
    let server = server("load")?;
    let database = server.database(DATABASE);
    sample::create(&database, 1)?;
    let load = Load::start(
        &database,
        Intensity {
            clients: 2,
            rate: None,
        },
        Grouping::Shared,
    )?;
    load.wait_for(500, Duration::from_secs(60))?;
    let done = load.stop()?;
    assert!(done.transactions >= 500, "{done:?}");
    let before = compare::contents(&database)?;
    assert_eq!(before, compare::contents(&database)?, "still written to");
    let log = std::fs::read_to_string(server.log())?;
    assert!(
        !log.contains("ERROR:"),
        "the load's own statements fail:\n{log}"
    );
    Ok(())
}

#[test]
fn another_major_version_is_found_or_fetched_and_runs() -> Result<()> {
    let installation = Installation::of_major(17)?;
    let server = Server::start(&installation, Options::named("seventeen"))?;
    let version: u32 = server
        .database("postgres")
        .value("SHOW server_version_num")?;
    assert_eq!(version / 10_000, 17);
    Ok(())
}
