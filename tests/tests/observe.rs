//! Metrics and logs: docs describe what real processes serve and log.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use steep_tests::cluster::Cluster;
use steep_tests::logs::{self, Documented, Program, quoted, rows};
use steep_tests::scrape::{self, Scrape};
use steep_tests::served::{Seen, Served};
use steep_tests::{sample, wait};
use yaml_rust2::{Yaml, YamlLoader};

/// A table per worker, copied slowly enough to be observed.
const LIMIT: Duration = Duration::from_secs(60);

fn doc(name: &str) -> Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../docs")
        .join(name);
    fs::read_to_string(&path).with_context(|| path.display().to_string())
}

#[test]
fn pages_dashboard_and_alerts_name_what_real_processes_serve() -> Result<()> {
    let cluster = Cluster::pair()?;
    sample::create(&cluster.database("node_a"), 2)?;
    let endpoints = [
        cluster.coordinator_address(),
        cluster.node("node_a").agent_address(),
        cluster.node("node_b").agent_address(),
    ];
    for address in &endpoints {
        let (status, body) = scrape::get(address, "/healthz")?;
        assert!(
            status.contains(" 200 ") && body == "ok\n",
            "{status}: {body}"
        );
    }
    let mut served = Served::default();
    let mut busy = None;
    // Slow enough that the time left is known long before the end.
    let mut init = cluster.init_spawn(&["--max-rate", "3MB", "--compress", "lz4"])?;
    wait::until_true("the end of the init", LIMIT, || {
        for address in &endpoints {
            let scrape = scrape::scrape(address)?;
            served.add(&scrape)?;
            let copying = scrape.value("steep_coordinator_jobs", &[("phase", "copy")]);
            if copying == Some(1.0) {
                busy = Some(scrape);
            }
        }
        Ok(!init.is_running()?)
    })?;
    let end = init.finish(LIMIT)?.expect(0)?.last_object()?;

    let busy = busy.context("no scrape fell into the copy")?;
    let of_b = |name: &str| busy.value(name, &[("node", "node_b")]);
    assert!(of_b("steep_coordinator_job_bytes") > Some(0.0));
    assert!(of_b("steep_coordinator_job_expected_bytes") >= of_b("steep_coordinator_job_bytes"));
    let [coordinator, source, target] = endpoints.each_ref().map(|address| scrape::scrape(address));
    let (coordinator, source, target) = (coordinator?, source?, target?);
    for scrape in [&coordinator, &source, &target] {
        served.add(scrape)?;
    }
    same_numbers(&end, &coordinator, &source, &target);
    scrape_snapshots(&cluster, &endpoints[0], &mut served)?;

    let mut documented = Seen::new();
    for row in rows(&doc("metrics.md")?) {
        let [name, kind, _, labels, _] = &row[..] else {
            continue;
        };
        let name = quoted(name).pop().context("a name")?;
        let labels = quoted(labels).into_iter().collect();
        documented.insert(name, (kind.clone(), labels));
    }
    assert_eq!(
        documented, served.metrics,
        "docs/metrics.md against what is served"
    );
    let dashboard: Value = serde_json::from_str(&doc("grafana-dashboard.json")?)?;
    let alerts = YamlLoader::load_from_str(&doc("alerts.yml")?)?;
    for (what, texts) in [
        ("grafana-dashboard.json", panels(&dashboard)),
        ("alerts.yml", rules(&alerts[0])?),
    ] {
        assert!(texts.len() > 10, "{what} has {} expressions", texts.len());
        for (expression, text) in texts {
            served
                .check(&expression, &text)
                .with_context(|| format!("{what}: {expression}"))?;
        }
    }
    Ok(())
}

/// What a coordinator serves while a snapshot is made, and once its slot is known.
fn scrape_snapshots(cluster: &Cluster, coordinator: &str, served: &mut Served) -> Result<()> {
    let output = cluster.dir().join("stored").display().to_string();
    let generate = ["snapshot", "generate", "--source", "node_a", "--output"];
    let slowly = [&output, "--max-rate", "8MB", "--detach"];
    cluster
        .cli(&[&generate[..], &slowly[..]].concat())?
        .expect(0)?;
    let of_a = |scrape: &scrape::Scrape, name: &str| {
        let name = format!("steep_coordinator_snapshot_{name}");
        scrape.value(&name, &[("source", "node_a")])
    };
    let mut aged = false;
    wait::until_true("metrics of the snapshot", LIMIT, || {
        let scrape = scrape::scrape(coordinator)?;
        served.add(&scrape)?;
        aged |= of_a(&scrape, "live_age_seconds").is_some();
        let sealed = of_a(&scrape, "expires_seconds") > Some(0.0);
        Ok(aged && sealed && of_a(&scrape, "wal_held_bytes").is_some())
    })
}

/// Numbers agree with the job's, wherever they are counted. Restarted parts add to the bytes that
/// moved.
fn same_numbers(end: &Value, coordinator: &Scrape, source: &Scrape, target: &Scrape) {
    let to_b = [("node", "node_b")];
    let committed = coordinator.value("steep_coordinator_copied_rows_total", &to_b);
    assert_eq!(committed, end["rows_copied"].as_f64());
    let retries = target.value("steep_agent_part_retries_total", &[]);
    let (sent, received) = ([("direction", "sent")], [("direction", "received")]);
    for (scrape, direction) in [(source, &sent), (target, &received)] {
        for (name, total) in [
            ("steep_agent_copy_rows_total", "rows_copied"),
            ("steep_agent_copy_bytes_total", "bytes_copied"),
            ("steep_agent_copy_wire_bytes_total", "wire_bytes"),
        ] {
            let (moved, total) = (scrape.value(name, direction), end[total].as_f64());
            if retries == Some(0.0) {
                assert_eq!(moved, total, "{name} {direction:?}");
            } else {
                assert!(
                    moved >= total,
                    "{name} {direction:?}: {moved:?} of {total:?}"
                );
            }
        }
    }
    let completed = [("outcome", "completed")];
    assert_eq!(
        coordinator.value("steep_coordinator_jobs_ended_total", &completed),
        Some(1.0)
    );
    let peer = [("peer", "node_b")];
    let udp = source.value("steep_agent_quic_sent_bytes_total", &peer);
    assert!(udp > end["wire_bytes"].as_f64());
}

/// Each panel's expressions, with legend and title.
fn panels(dashboard: &Value) -> Vec<(String, String)> {
    let panels = dashboard["panels"].as_array().into_iter().flatten();
    panels
        .flat_map(|panel| panel["targets"].as_array().into_iter().flatten())
        .filter_map(|target| {
            let legend = target["legendFormat"].as_str().unwrap_or_default();
            Some((target["expr"].as_str()?.to_owned(), legend.to_owned()))
        })
        .collect()
}

/// Each alert's expression, with its texts.
fn rules(file: &Yaml) -> Result<Vec<(String, String)>> {
    let groups = file["groups"].as_vec().context("groups")?;
    let mut rules = Vec::new();
    for rule in groups.iter().filter_map(|g| g["rules"].as_vec()).flatten() {
        let name = rule["alert"].as_str().context("a name")?;
        let expression = rule["expr"].as_str().context(name.to_owned())?;
        ensure!(rule["labels"]["severity"].as_str().is_some(), "{name}");
        let summary = rule["annotations"]["summary"].as_str();
        let description = rule["annotations"]["description"].as_str();
        let text = format!(
            "{} {}",
            summary.context(name.to_owned())?,
            description.unwrap_or_default()
        );
        rules.push((expression.to_owned(), text));
    }
    Ok(rules)
}

/// Events of a successful job, of the processes around it, and of a refused one.
const ORDINARY: [&str; 17] = [
    "init.started",
    "init.state_change",
    "init.phase_started",
    "init.phase_completed",
    "init.table_started",
    "init.table_complete",
    "init.completed",
    "agent.connected",
    "agent.lost",
    "operator.audit",
    "command.started",
    "command.completed",
    "session",
    "ready",
    "stopping",
    "draining",
    "drained",
];

/// Events of jobs that fail or are stopped.
const TROUBLE: [&str; 12] = [
    "init.failed",
    "init.table_failed",
    "init.finding",
    "init.cancel_requested",
    "init.cancelled",
    "init.cleanup_failed",
    "init.cleanup_pending",
    "init.cleanup_completed",
    "schema.mismatch_detected",
    "command.failed",
    "command.cancelled",
    "part.retried",
];

/// Events that other suites cause and check.
const ELSEWHERE: &[&str] = &[
    "switchover.started",
    "switchover.step",
    "switchover.retried",
    "switchover.undoing",
    "switchover.undone",
    "switchover.completed",
    "switchover.writes_given_back",
    "switchover.read_only_lifted",
    "switchover.read_only_restored",
    "switchover.holder_ended",
    "tables.added",
    "tables.dropped",
    "reinit.completed",
    "tables.policy",
    "tables.not_added",
    "init.adopted",
    "verify.completed",
    "verify.failed",
    "overlap.completed",
    "overlap.failed",
    "merge.planned",
    "merge.not_planned",
    "merge.completed",
    "repair.planned",
    "repair.not_planned",
    "repair.completed",
    "repair.failed",
    "init.adjusted",
    "init.retrying",
    "agent.rejected",
    "init.given_up",
    "init.rebuilt",
    "node.adopted",
    "node.removed",
    "node.detach_requested",
    "node.detached",
    "node.left_removed",
    "sequences.not_set",
    "sequences.set",
    "node.same_database",
    "slot.unknown",
    "store.unreadable",
    "init.outdated",
    "store.full",
    "store.writable",
    "table.appeared",
    "lock.blocking",
    "lock.gave_way",
    "lock.waiting",
    "init.restarted",
    "epoch.started",
    "epoch.folded",
    "init.resumed",
    "init.keep_ended",
    "schema.sync_applied",
    "init.reason_changed",
    "mirror.failed",
    "init.slot_prepared",
    "init.slot_expired",
    "snapshot.abandoned",
    "snapshot.adopted",
    "snapshot.not_adopted",
    "snapshot.started",
    "snapshot.not_spooled",
    "snapshot.opened",
    "snapshot.generated",
    "snapshot.applied",
    "snapshot.retried",
    "snapshot.reader_changed",
    "snapshot.lost",
    "snapshot.superseded",
    "snapshot.wal_held",
    "snapshot.expired",
    "snapshot.deleted",
];

/// Words in the sources that are not events: operators' actions, and a span.
const NO_EVENTS: &[&str] = &[
    "merge.plan",
    "tables.add",
    "tables.drop",
    "snapshot.generate",
    "snapshot.apply",
    "snapshot.delete",
    "snapshot.json",
    "schema.capture",
    "part.serve",
    "init.prepare",
    "init.complete",
    "init.rebuild",
    "init.resume",
    "init.adjust",
    "verify.schedule",
    "repair.plan",
];

#[test]
fn what_is_documented_is_what_the_sources_log_and_what_the_tests_bring_about() -> Result<()> {
    let documented = Documented::read()?;
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let shared = logs::named_in_sources(&top.join("daemon/src"))?;
    let mut all = BTreeSet::new();
    for (program, sources) in [
        (Program::Coordinator, "coordinator/src"),
        (Program::Agent, "agent/src"),
    ] {
        let mut named = logs::named_in_sources(&top.join(sources))?;
        named.extend(shared.clone());
        named.retain(|event| !NO_EVENTS.contains(&event.as_str()));
        let named: BTreeSet<&str> = named.iter().map(String::as_str).collect();
        assert_eq!(
            documented.events(program),
            named,
            "docs/logs.md and {sources}"
        );
        all.extend(documented.events(program).into_iter().map(str::to_owned));
    }
    let seen = ORDINARY.iter().chain(&TROUBLE).chain(ELSEWHERE);
    let seen: BTreeSet<String> = seen.map(|event| (*event).to_owned()).collect();
    assert_eq!(
        all, seen,
        "docs/logs.md and the events that tests bring about"
    );
    Ok(())
}

/// The events in a cluster's logs, all as documented.
fn logged(cluster: &Cluster) -> Result<BTreeSet<String>> {
    let documented = Documented::read()?;
    let mut events = documented.check_log(Program::Coordinator, &log(cluster, "coordinator"))?;
    for agent in ["agent-node_a", "agent-node_b"] {
        events.extend(documented.check_log(Program::Agent, &log(cluster, agent))?);
    }
    Ok(events)
}

fn log(cluster: &Cluster, of: &str) -> PathBuf {
    cluster.dir().join(format!("{of}.log"))
}

#[test]
fn logs_are_as_documented_and_one_job_is_followed_by_its_id_through_all_of_them() -> Result<()> {
    let mut cluster = Cluster::pair()?;
    sample::create(&cluster.database("node_a"), 1)?;
    let job = cluster.init(&[])?.expect(0)?.last_object()?["job_id"].clone();
    // A second init is refused and recorded too.
    cluster.init(&[])?.expect(1)?;
    cluster.stop_agent("node_b")?;
    wait::until_true("the agent to be missed", LIMIT, || {
        let coordinator = cluster.coordinator().context("a coordinator")?;
        Ok(!coordinator.events("agent.lost")?.is_empty())
    })?;
    for of in ["coordinator", "agent-node_a", "agent-node_b"] {
        let text = fs::read_to_string(log(&cluster, of))?;
        let mut of_job = 0;
        for line in text.lines() {
            let line: Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
            of_job += u32::from(line["job_id"] == job);
        }
        assert!(of_job >= 4, "{of} names the job {of_job} times");
    }
    let events = logged(&cluster)?;
    for wanted in ORDINARY {
        assert!(events.contains(wanted), "no {wanted}: {events:?}");
    }
    Ok(())
}

#[test]
fn whatever_goes_wrong_or_is_stopped_is_logged_as_documented() -> Result<()> {
    let mut cluster = Cluster::builder()
        .setting("node_b", "cluster_name", "bad")
        .start()?;
    let (source, target) = (cluster.database("node_a"), cluster.database("node_b"));
    // A row that the source accepts and the target does not.
    source.sql(
        "CREATE FUNCTION good(n integer) RETURNS integer IMMUTABLE LANGUAGE sql AS
         $$ SELECT n / CASE WHEN n = 500 AND current_setting('cluster_name') = 'bad' THEN 0 ELSE 1 END $$;
         CREATE TABLE t (id integer PRIMARY KEY, same integer GENERATED ALWAYS AS (public.good(id)) STORED);
         INSERT INTO t SELECT generate_series(1, 1000);",
    )?;
    cluster.init(&[])?.expect(1)?;
    let coordinator = cluster.coordinator().context("a coordinator")?;
    let failed = coordinator.events("init.table_failed")?;
    assert_eq!(failed[0]["table"], "public.t", "{failed:?}");
    let cancel = ["init", "cancel", "--node", "node_b", "--yes"];
    cluster.cli(&cancel)?.expect(0)?;
    source.sql("DROP TABLE t; DROP FUNCTION good")?;

    source.sql("CREATE TABLE d (id integer PRIMARY KEY); CREATE UNLOGGED TABLE u (id integer)")?;
    target.sql("CREATE TABLE d (id bigint PRIMARY KEY); CREATE UNLOGGED TABLE u (id integer)")?;
    cluster.init(&[])?.expect(3)?;
    source.sql("DROP TABLE d, u")?;
    target.sql("DROP TABLE d, u")?;

    // A connection that breaks during a part, and a cancel.
    sample::create(&source, 2)?;
    let following = cluster.init_spawn(&["--max-rate", "1MB"])?;
    cluster.wait_copying("node_b")?;
    wait::until_true("a part to be begun again", LIMIT, || {
        target.sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
             WHERE query LIKE 'COPY %' AND state = 'active' LIMIT 1",
        )?;
        let agent = cluster.node("node_b").agent().context("an agent")?;
        Ok(!agent.events("part.retried")?.is_empty())
    })?;
    cluster.cli(&cancel)?.expect(0)?;
    following.finish(LIMIT)?.expect(4)?;

    // A cancel that cannot clean up before the server is back.
    let following = cluster.init_spawn(&["--max-rate", "1MB"])?;
    cluster.wait_copying("node_b")?;
    cluster.node_mut("node_b").server_mut().stop()?;
    let pending = cluster.cli(&cancel)?;
    assert_ne!(pending.code, 0, "{pending}");
    cluster.node_mut("node_b").server_mut().restart()?;
    cluster.wait_state("node_b", &["uninitialized"], LIMIT)?;
    drop(following);

    let events = logged(&cluster)?;
    for wanted in TROUBLE {
        assert!(events.contains(wanted), "no {wanted}: {events:?}");
    }
    Ok(())
}
