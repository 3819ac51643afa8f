//! Identities: nodes are told apart by their databases, not by their names; whose changes reach
//! whom; and nodes that are gone.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use steep_tests::cluster::Cluster;
use steep_tests::load::{Intensity, Load};
use steep_tests::pg::Grouping;
use steep_tests::ports::Port;
use steep_tests::process::{Process, READY_LIMIT, tail};
use steep_tests::{compare, residue, sample, wait};

/// Any job here ends within this time on a busy machine.
const JOB_LIMIT: Duration = Duration::from_secs(90);

/// For what is noticed within seconds.
const NOTICE_LIMIT: Duration = Duration::from_secs(60);

const TABLE: &str = "
    CREATE TABLE kept (id integer PRIMARY KEY, body text);
    INSERT INTO kept SELECT n, 'early' FROM generate_series(1, 1000) AS n;";

/// Our slots.
const OURS: &str =
    "SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE 'steep\\_repl\\_%'";

/// Replication created by hand.
fn subscribe(cluster: &Cluster, from: &str, to: &str, name: &str, options: &str) -> Result<()> {
    let (server, database) = (cluster.node(from).server(), cluster.database(from));
    let conninfo = server.conninfo(database.name());
    let conninfo = format!("{conninfo} password='{}'", server.password()).replace('\'', "''");
    cluster
        .database(from)
        .sql(&format!("CREATE PUBLICATION {name} FOR TABLE kept"))?;
    let sql = format!(
        "CREATE SUBSCRIPTION {name} CONNECTION '{conninfo}' PUBLICATION {name} WITH ({options})"
    );
    cluster.database(to).sql(&sql).map(drop)
}

#[test]
fn a_cascade_carries_every_change_and_no_database_is_copied_onto_whom_it_comes_from() -> Result<()>
{
    let mut cluster = Cluster::builder().nodes(4).start()?;
    let source = cluster.database("node_a");
    sample::create(&source, 1)?;
    let writing = Load::start(&source, Intensity::LIGHT, Grouping::Shared)?;
    cluster.init(&[])?.expect(0)?;
    let from_b = ["init", "node_c", "--from", "node_b", "--yes", "--json"];
    cluster.cli(&from_b)?.expect(0)?;
    writing.wait_for(50, NOTICE_LIMIT)?;
    writing.stop()?;
    cluster.wait_drained("node_a")?;
    cluster.wait_drained("node_b")?;
    compare::rows(&source, &cluster.database("node_b"))?.none()?;
    compare::rows(&source, &cluster.database("node_c"))?.none()?;

    // The agent of node_d now uses node_a's database: one database with two names.
    let first = cluster.node("node_a").server();
    let (conninfo, password) = (first.conninfo(source.name()), first.password().to_owned());
    cluster.stop_agent("node_d")?;
    cluster.node_mut("node_d").set_elsewhere(conninfo, password);
    cluster.start_agent("node_d")?;
    cluster.wait_online(&["node_d"])?;
    wait::until_true("two names are told", NOTICE_LIMIT, || {
        let view = cluster.node_view("node_d")?.context("node_d")?;
        Ok(view["warnings"].to_string().contains("same database"))
    })?;
    let rows = source.value::<i64>("SELECT count(*) FROM pgbench_accounts")?;
    for from in ["node_b", "node_c"] {
        let wanted = [
            "init", "node_d", "--from", from, "--force", "--yes", "--json",
        ];
        let refused = cluster.cli(&wanted)?.expect(1)?.text();
        ensure!(refused.contains("follows node_a"), "{refused}");
    }
    let same = ["node_d", "--from", "node_a"];
    let same = cluster.findings(&same)?;
    ensure!(
        same.iter().any(|(code, _)| code == "same_database"),
        "{same:?}"
    );
    let after = source.value::<i64>("SELECT count(*) FROM pgbench_accounts")?;
    ensure!(rows == after, "{rows} rows became {after}");
    Ok(())
}

/// A second process with a node's name and certificate, on its own port.
fn impostor(cluster: &Cluster, node: &str) -> Result<Process> {
    let (server, certs) = (cluster.node(node).server(), cluster.dir().join("certs"));
    let port = Port::take()?;
    let mut command = Command::new(cluster.binaries().agent());
    command
        .args(["run", "--log-format", "json", "--node", node])
        .args(["--coordinator", &cluster.coordinator_address()])
        .args(["--listen", &port.address(), "--advertise", &port.address()])
        .args([
            "--postgres",
            &server.conninfo(cluster.database(node).name()),
        ])
        .arg("--data-dir")
        .arg(cluster.dir().join("impostor"))
        .arg("--ca")
        .arg(certs.join("ca.pem"))
        .arg("--cert")
        .arg(certs.join(format!("{node}.pem")))
        .arg("--key")
        .arg(certs.join(format!("{node}.key")))
        .env("PGPASSWORD", server.password())
        .env("HOME", cluster.dir());
    let log = cluster.dir().join("impostor.log");
    Process::spawn("impostor", &mut command, &log, Grouping::Shared)
}

#[test]
fn a_second_agent_of_one_name_is_turned_away_and_says_why() -> Result<()> {
    let mut cluster = Cluster::pair()?;
    let second = impostor(&cluster, "node_b")?;
    let log = second.log().to_path_buf();
    let status = second.end()?;
    ensure!(!status.success(), "it ended with {status}");
    let said = tail(&log, 5);
    ensure!(
        said.contains("another process is the agent of node_b"),
        "{said}"
    );
    ensure!(!said.contains("a part of the agent"), "{said}");
    let coordinator = cluster.coordinator().context("the coordinator runs")?;
    let rejected = coordinator.events("agent.rejected")?;
    ensure!(rejected.len() == 1, "{rejected:?}");
    ensure!(
        coordinator.events("agent.lost")?.is_empty(),
        "the first has lost its place"
    );
    // A killed one is replaced at once, without waiting for its timeout.
    cluster.kill_agent("node_b")?;
    cluster.start_agent("node_b")?;
    cluster.wait_online(&["node_b"])?;
    let coordinator = cluster.coordinator().context("the coordinator runs")?;
    ensure!(
        coordinator.events("agent.rejected")?.len() == 1,
        "it was turned away"
    );
    ends_without_a_coordinator(&mut cluster)
}

/// Whether the coordinator has stopped or was never reached: an agent told to stop ends well.
fn ends_without_a_coordinator(cluster: &mut Cluster) -> Result<()> {
    ensure!(cluster.stop_coordinator()?.success());
    ensure!(cluster.stop_agent("node_b")?.code() == Some(0));
    let log = cluster.dir().join("agent-node_b.log");
    let said = std::fs::read_to_string(log)?;
    ensure!(!said.contains("superseded"), "{said}");
    let mut alone = impostor(cluster, "node_b")?;
    alone.wait_for_event("ready", READY_LIMIT)?;
    let log = alone.log().to_path_buf();
    let status = alone.terminate()?;
    ensure!(status.code() == Some(0), "{status}: {}", tail(&log, 5));
    Ok(())
}

#[test]
fn a_replication_conninfo_that_leads_elsewhere_is_found_before_anything_is_copied() -> Result<()> {
    let mut cluster = Cluster::pair()?;
    cluster.database("node_a").sql(TABLE)?;
    let pair = ["node_b", "--from", "node_a"];
    cluster.stop_agent("node_a")?;
    let node = cluster.node_mut("node_a");
    node.set_replication_database(Some("postgres"));
    cluster.start_agent("node_a")?;
    cluster.wait_online(&["node_a"])?;
    let found = cluster.findings(&pair)?;
    let (_, what) = found
        .iter()
        .find(|(code, _)| code == "replication_conninfo")
        .with_context(|| format!("{found:?}"))?;
    ensure!(what.contains("leads to database postgres"), "{what}");
    let refused = cluster.init(&[])?.expect(1)?.text();
    ensure!(refused.contains("--replication-conninfo"), "{refused}");

    cluster.stop_agent("node_a")?;
    let node = cluster.node_mut("node_a");
    node.set_replication_database(None);
    cluster.start_agent("node_a")?;
    cluster.wait_online(&["node_a"])?;
    cluster.init(&[])?.expect(0)?;
    Ok(())
}

#[test]
fn a_node_that_nobody_can_look_at_is_not_synchronized_and_can_be_given_up() -> Result<()> {
    let grace = "--unseen-grace=5s";
    let mut cluster = Cluster::builder()
        .nodes(3)
        .coordinator_argument(grace)
        .start()?;
    let source = cluster.database("node_a");
    source.sql(TABLE)?;
    cluster.init(&[])?.expect(0)?;
    let third = ["init", "node_c", "--from", "node_a", "--yes", "--json"];
    cluster.cli(&third)?.expect(0)?;
    // Only PostgreSQL is away, and comes back.
    cluster.node_mut("node_b").server_mut().stop()?;
    cluster.wait_state("node_b", &["diverged"], NOTICE_LIMIT)?;
    let view = cluster.node_view("node_b")?.context("node_b")?;
    ensure!(view["unseen_since"].is_string(), "{view}");
    ensure!(
        view["error_message"]
            .to_string()
            .contains("node_b has been unreachable since"),
        "{view}"
    );
    cluster.node_mut("node_b").server_mut().restart()?;
    cluster.wait_state("node_b", &["synchronized"], JOB_LIMIT)?;
    // It is gone for good, while its agent runs.
    cluster.node_mut("node_b").server_mut().stop()?;
    cluster.wait_state("node_b", &["diverged"], NOTICE_LIMIT)?;
    ensure!(source.value::<u32>(OURS)? == 2, "each has its slot");
    let clean = [
        "init",
        "cancel",
        "--node",
        "node_b",
        "--force-cleanup",
        "--yes",
        "--json",
    ];
    let given_up = cluster.cli(&clean)?.expect(0)?.last_object()?;
    ensure!(
        given_up["left"].to_string().contains("on node_b"),
        "{given_up}"
    );
    cluster.wait_state("node_b", &["uninitialized"], NOTICE_LIMIT)?;
    ensure!(
        source.value::<u32>(OURS)? == 1,
        "the slot of node_b is left"
    );
    // The whole machine is gone.
    let remove = ["nodes", "remove", "node_c", "--yes", "--json"];
    cluster.cli(&remove)?.expect(1)?;
    cluster.kill_agent("node_c")?;
    cluster.node_mut("node_c").server_mut().stop()?;
    cluster.wait_state("node_c", &["diverged"], NOTICE_LIMIT)?;
    let removed = cluster.cli(&remove)?.expect(0)?.last_object()?;
    ensure!(
        removed["left"].to_string().contains("on node_c"),
        "{removed}"
    );
    ensure!(cluster.node_view("node_c")?.is_none(), "it is still known");
    residue::of_jobs(&source)?.none()
}

#[test]
fn subscriptions_made_by_anybody_are_seen_and_stop_an_init_that_would_meet_them() -> Result<()> {
    let cluster = Cluster::pair()?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    source.sql(TABLE)?;
    target.sql(TABLE)?;
    // The source follows the target: emptying one would empty the other.
    subscribe(
        &cluster,
        "node_b",
        "node_a",
        "backwards",
        "copy_data = false",
    )?;
    let refused = cluster.init(&["--force"])?.expect(1)?.text();
    ensure!(
        refused.contains("node_a follows node_b by subscription backwards"),
        "{refused}"
    );
    ensure!(
        source.value::<i64>("SELECT count(*) FROM kept")? == 1000,
        "rows are gone"
    );
    ensure!(
        target.value::<i64>("SELECT count(*) FROM kept")? == 1000,
        "rows are gone"
    );
    source.sql("DROP SUBSCRIPTION backwards")?;
    // A foreign subscription writes to the target's table.
    subscribe(
        &cluster,
        "node_a",
        "node_b",
        "forwards",
        "copy_data = false",
    )?;
    let refused = cluster.init(&["--force"])?.expect(1)?.text();
    ensure!(
        refused.contains("subscription forwards writes to 1 table"),
        "{refused}"
    );
    target.sql("DROP SUBSCRIPTION forwards")?;
    cluster.init(&["--force"])?.expect(0)?;
    compare::rows(&source, &target)?.none()
}
