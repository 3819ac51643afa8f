//! What can be seen of the product: metrics and the pages about them, logs and the page about them,
//! the audit trail.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use steep_tests::cluster::Cluster;
use steep_tests::scrape::{self, Scrape};
use steep_tests::{sample, wait};
use yaml_rust2::{Yaml, YamlLoader};

/// A table per worker for long enough to be looked at.
const LIMIT: Duration = Duration::from_secs(60);

fn doc(name: &str) -> Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../docs")
        .join(name);
    fs::read_to_string(&path).with_context(|| path.display().to_string())
}

/// Every metric of ours that a text names.
fn named(text: &str) -> BTreeSet<String> {
    text.split(|c: char| !(c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_'))
        .filter(|word| word.starts_with("steep_") || word.starts_with("process_"))
        .map(str::to_owned)
        .collect()
}

/// Rows of a page's tables whose first cell is a name in backticks: all cells of each.
fn rows(page: &str) -> Vec<Vec<String>> {
    page.lines()
        .filter(|line| line.starts_with("| `"))
        .map(|line| {
            let cells = line.trim_matches('|').split(" | ");
            cells.map(|cell| cell.trim().to_owned()).collect()
        })
        .collect()
}

/// Words in backticks.
fn quoted(cell: &str) -> Vec<String> {
    cell.split('`')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect()
}

/// What was seen of a metric: its type and its labels.
type Seen = BTreeMap<String, (String, BTreeSet<String>)>;

fn look(seen: &mut Seen, scrape: &Scrape) -> Result<()> {
    for sample in &scrape.samples {
        let base = sample.name.strip_suffix("_total").unwrap_or(&sample.name);
        let kind = scrape
            .types
            .get(base)
            .with_context(|| format!("{base} has no type"))?;
        ensure!(sample.value.is_finite(), "{sample:?}");
        let labels = sample.labels.keys().cloned().collect();
        let entry = (kind.clone(), labels);
        let known = seen.insert(sample.name.clone(), entry.clone());
        ensure!(known.is_none_or(|known| known == entry), "{sample:?}");
    }
    Ok(())
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
    let mut seen = Seen::new();
    let mut busy = None;
    let mut init = cluster.init_spawn(&["--max-rate", "10MB", "--compress", "lz4"])?;
    wait::until_true("the end of the init", LIMIT, || {
        for address in &endpoints {
            let scrape = scrape::scrape(address)?;
            look(&mut seen, &scrape)?;
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
    let [coordinator, source, target] = endpoints.map(|address| scrape::scrape(&address));
    let (coordinator, source, target) = (coordinator?, source?, target?);
    for scrape in [&coordinator, &source, &target] {
        look(&mut seen, scrape)?;
    }
    same_numbers(&end, &coordinator, &source, &target);

    let mut documented = Seen::new();
    for row in rows(&doc("metrics.md")?) {
        let [name, kind, _, labels, _] = &row[..] else {
            continue;
        };
        let name = quoted(name).pop().context("a name")?;
        let labels = quoted(labels).into_iter().collect();
        documented.insert(name, (kind.clone(), labels));
    }
    assert_eq!(documented, seen, "docs/metrics.md against what is served");
    let served: BTreeSet<String> = seen.into_keys().collect();
    let dashboard: Value = serde_json::from_str(&doc("grafana-dashboard.json")?)?;
    let alerts = YamlLoader::load_from_str(&doc("alerts.yml")?)?;
    for (what, expressions) in [
        ("grafana-dashboard.json", panel_expressions(&dashboard)),
        ("alerts.yml", alert_expressions(&alerts[0])?),
    ] {
        assert!(
            expressions.len() > 10,
            "{what} has {} expressions",
            expressions.len()
        );
        for expression in expressions {
            let unknown: Vec<_> = named(&expression).difference(&served).cloned().collect();
            assert!(unknown.is_empty(), "{what}: {expression} names {unknown:?}");
            assert!(
                !named(&expression).is_empty() || expression.contains("up{"),
                "{expression}"
            );
        }
    }
    Ok(())
}

/// The numbers are those of the job, wherever they are counted.
fn same_numbers(end: &Value, coordinator: &Scrape, source: &Scrape, target: &Scrape) {
    let rows_copied = end["rows_copied"].as_f64();
    let bytes_copied = end["bytes_copied"].as_f64();
    let to_b = [("node", "node_b")];
    assert_eq!(
        coordinator.value("steep_coordinator_copied_rows_total", &to_b),
        rows_copied
    );
    let (sent, received) = ([("direction", "sent")], [("direction", "received")]);
    assert_eq!(
        source.value("steep_agent_copy_rows_total", &sent),
        rows_copied
    );
    assert_eq!(
        target.value("steep_agent_copy_rows_total", &received),
        rows_copied
    );
    assert_eq!(
        source.value("steep_agent_copy_bytes_total", &sent),
        bytes_copied
    );
    assert_eq!(
        target.value("steep_agent_copy_bytes_total", &received),
        bytes_copied
    );
    let wire = end["wire_bytes"].as_f64();
    assert_eq!(
        source.value("steep_agent_copy_wire_bytes_total", &sent),
        wire
    );
    let completed = [("outcome", "completed")];
    assert_eq!(
        coordinator.value("steep_coordinator_jobs_ended_total", &completed),
        Some(1.0)
    );
    let peer = [("peer", "node_b")];
    assert!(source.value("steep_agent_quic_sent_bytes_total", &peer) > wire);
}

fn panel_expressions(dashboard: &Value) -> Vec<String> {
    let panels = dashboard["panels"].as_array().into_iter().flatten();
    panels
        .flat_map(|panel| panel["targets"].as_array().into_iter().flatten())
        .filter_map(|target| target["expr"].as_str().map(str::to_owned))
        .collect()
}

fn alert_expressions(rules: &Yaml) -> Result<Vec<String>> {
    let groups = rules["groups"].as_vec().context("groups")?;
    let mut expressions = Vec::new();
    for rule in groups.iter().filter_map(|g| g["rules"].as_vec()).flatten() {
        let name = rule["alert"].as_str().context("a name")?;
        let text = rule["expr"].as_str();
        expressions.push(text.context(name.to_owned())?.to_owned());
        ensure!(rule["labels"]["severity"].as_str().is_some(), "{name}");
        ensure!(rule["annotations"]["summary"].as_str().is_some(), "{name}");
    }
    Ok(expressions)
}

/// What the page says of an event: its levels, the fields it always has, those it may have.
struct Schema {
    levels: Vec<String>,
    always: BTreeSet<String>,
    known: BTreeSet<String>,
}

/// Of the two halves of docs/logs.md, what each event is like.
fn schemas(page: &str) -> Result<BTreeMap<String, Schema>> {
    let mut schemas = BTreeMap::new();
    for row in rows(page) {
        let [event, levels, always, known] = &row[..] else {
            continue;
        };
        let schema = Schema {
            levels: levels.split(", ").map(str::to_owned).collect(),
            always: quoted(always).into_iter().collect(),
            known: quoted(known).into_iter().collect(),
        };
        schemas.insert(quoted(event).pop().context("an event")?, schema);
    }
    Ok(schemas)
}

/// Types of fields by name.
fn types(page: &str) -> BTreeMap<String, String> {
    rows(page)
        .into_iter()
        .filter(|row| row.len() == 3)
        .flat_map(|row| {
            let kind = row[1].clone();
            quoted(&row[0])
                .into_iter()
                .map(move |name| (name, kind.clone()))
        })
        .collect()
}

/// Checks a line of a log against its schema; its event, where it has one.
fn check(
    line: &Value,
    schemas: &BTreeMap<String, Schema>,
    types: &BTreeMap<String, String>,
) -> Result<Option<String>> {
    const EVERY: [&str; 4] = ["timestamp", "level", "target", "message"];
    let fields = line.as_object().context("no object")?;
    for name in EVERY {
        ensure!(line[name].is_string(), "{name} is missing");
    }
    let Some(event) = line["event"].as_str() else {
        return Ok(None);
    };
    let schema = schemas.get(event).context("not documented")?;
    let level = line["level"].as_str().unwrap_or_default().to_owned();
    ensure!(schema.levels.contains(&level), "level {level}");
    let missing: Vec<_> = schema
        .always
        .iter()
        .filter(|name| !fields.contains_key(*name))
        .collect();
    ensure!(missing.is_empty(), "{missing:?} are missing");
    for (name, value) in fields {
        if EVERY.contains(&name.as_str()) || name == "event" {
            continue;
        }
        let expected = schema.always.contains(name) || schema.known.contains(name);
        ensure!(expected, "{name} is not documented");
        let right = match types.get(name).map(String::as_str) {
            Some("number") => value.is_number(),
            Some("string") => value.is_string(),
            _ => false,
        };
        ensure!(right, "{name} is {value}");
    }
    Ok(Some(event.to_owned()))
}

fn lines(log: &Path) -> Result<Vec<Value>> {
    let text = fs::read_to_string(log)?;
    text.lines()
        .map(|line| serde_json::from_str(line).with_context(|| line.to_owned()))
        .collect()
}

#[test]
fn logs_are_as_documented_and_one_job_is_followed_by_its_id_through_all_of_them() -> Result<()> {
    let mut cluster = Cluster::pair()?;
    sample::create(&cluster.database("node_a"), 1)?;
    let job = cluster.init(&[])?.expect(0)?.last_object()?["job_id"].clone();
    // A second one is refused, and is in the trail as well.
    cluster.init(&[])?.expect(1)?;
    cluster.stop_agent("node_b")?;
    wait::until_true("the agent to be missed", LIMIT, || {
        let coordinator = cluster.coordinator().context("a coordinator")?;
        Ok(!coordinator.events("agent.lost")?.is_empty())
    })?;

    let page = doc("logs.md")?;
    let types = types(&page);
    let (coordinators, agents) = page
        .split_once("## Events of an agent")
        .context("two parts")?;
    let (coordinators, agents) = (schemas(coordinators)?, schemas(agents)?);
    let coordinator = cluster.coordinator().context("a coordinator")?.log();
    let agent = |node: &str| cluster.dir().join(format!("agent-{node}.log"));
    let mut events = BTreeSet::new();
    for (log, schemas) in [
        (coordinator.to_path_buf(), &coordinators),
        (agent("node_a"), &agents),
        (agent("node_b"), &agents),
    ] {
        let mut of_job = 0;
        for line in lines(&log)? {
            let event = check(&line, schemas, &types)
                .with_context(|| format!("{}: {line}", log.display()))?;
            of_job += u32::from(line["job_id"] == job);
            events.extend(event);
        }
        assert!(
            of_job >= 4,
            "{} names the job {of_job} times",
            log.display()
        );
    }
    for wanted in [
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
    ] {
        assert!(events.contains(wanted), "no {wanted}: {events:?}");
    }
    Ok(())
}

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
