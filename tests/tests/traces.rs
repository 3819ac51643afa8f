//! Traces of jobs: one trace over all three processes, and no harm without a working collector.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value};
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use prost::Message as _;
use steep_tests::cluster::Cluster;
use steep_tests::collector::Collector;
use steep_tests::sample;

const LIMIT: Duration = Duration::from_secs(60);

#[derive(Debug)]
struct Span {
    service: String,
    trace: String,
    id: Vec<u8>,
    parent: Vec<u8>,
    name: String,
    times: (u64, u64),
    good: bool,
    attributes: BTreeMap<String, String>,
}

impl Span {
    fn attribute(&self, name: &str) -> &str {
        self.attributes.get(name).map_or("", String::as_str)
    }
}

fn attributes(of: &[KeyValue]) -> Result<BTreeMap<String, String>> {
    let mut map = BTreeMap::new();
    for pair in of {
        let value = pair.value.as_ref().and_then(|any| any.value.as_ref());
        let text = match value.with_context(|| pair.key.clone())? {
            Value::StringValue(text) => text.clone(),
            Value::IntValue(number) => number.to_string(),
            other => anyhow::bail!("{} is {other:?}", pair.key),
        };
        ensure!(
            map.insert(pair.key.clone(), text).is_none(),
            "{} twice",
            pair.key
        );
    }
    Ok(map)
}

fn spans(bodies: &[Vec<u8>]) -> Result<Vec<Span>> {
    let mut spans = Vec::new();
    for body in bodies {
        let request = ExportTraceServiceRequest::decode(body.as_slice())?;
        for of_process in request.resource_spans {
            let resource = of_process.resource.context("a resource")?;
            let resource = attributes(&resource.attributes)?;
            let service = resource.get("service.name").context("a service")?;
            for span in of_process.scope_spans.into_iter().flat_map(|s| s.spans) {
                let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect();
                let status = span.status.clone().unwrap_or_default().code;
                spans.push(Span {
                    service: service.clone(),
                    trace: hex(&span.trace_id),
                    attributes: attributes(&span.attributes)?,
                    times: (span.start_time_unix_nano, span.end_time_unix_nano),
                    good: status == StatusCode::Ok as i32,
                    id: span.span_id,
                    parent: span.parent_span_id,
                    name: span.name,
                });
            }
        }
    }
    Ok(spans)
}

fn cluster(endpoint: &str) -> Result<Cluster> {
    let words = ["--otlp-endpoint", endpoint];
    let builder = words.into_iter().fold(Cluster::builder(), |builder, word| {
        builder
            .coordinator_argument(word)
            .agent_argument("node_a", word)
            .agent_argument("node_b", word)
    });
    builder.start()
}

/// They export their last spans when they stop.
fn stop(cluster: &mut Cluster) -> Result<()> {
    for node in ["node_a", "node_b"] {
        ensure!(cluster.stop_agent(node)?.success(), "{node}");
    }
    ensure!(cluster.stop_coordinator()?.success(), "the coordinator");
    Ok(())
}

/// Spans by name: service, parent's name and attributes.
type Kinds = BTreeMap<String, (String, String, BTreeSet<String>)>;

/// The table of spans in docs/traces.md.
fn documented() -> Result<Kinds> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/traces.md");
    let page = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let words = |cell: &str| -> Vec<String> {
        let words = cell.split('`').skip(1).step_by(2);
        words.map(str::to_owned).collect()
    };
    let mut table = Kinds::new();
    for line in page.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').collect();
        if let [name, service, parent, attributes] = cells[..] {
            let name = words(name).pop().context("a name")?;
            let service = words(service).pop().context("a service")?;
            let parent = words(parent).pop().unwrap_or_default();
            let attributes = words(attributes).into_iter().collect();
            table.insert(name, (service, parent, attributes));
        }
    }
    Ok(table)
}

/// Cancels a job during the copy and returns its id.
fn cancelled_job(cluster: &Cluster) -> Result<String> {
    let init = cluster.init_spawn(&["--parallel", "2", "--max-rate", "1MB"])?;
    cluster.wait_copying("node_b")?;
    let view = cluster.progress("node_b")?;
    let cancel = ["init", "cancel", "--node", "node_b", "--yes"];
    cluster.cli(&cancel)?.expect(0)?;
    init.finish(LIMIT)?.expect(4)?;
    Ok(view["job_id"].as_str().context("a job")?.to_owned())
}

/// Interrupted spans exist and have an outcome.
fn check_cancelled(spans: &[Span]) -> Result<()> {
    let outcomes = |name: &str| -> Vec<&str> {
        let named = spans.iter().filter(|s| s.name == name);
        named.map(|s| s.attribute("outcome")).collect()
    };
    assert_eq!(outcomes("job"), ["cancelled"], "{spans:?}");
    assert!(outcomes("part").contains(&"cancelled"), "{spans:?}");
    // The source may have sent requested parts before.
    assert!(!outcomes("part.serve").is_empty(), "{spans:?}");
    let phase = |name: &str| {
        let phases = spans.iter().filter(|s| s.name == "phase");
        phases.clone().find(|s| s.attribute("phase") == name)
    };
    let copy = phase("copy").context("the copy")?;
    assert_eq!(copy.attribute("outcome"), "cancelled");
    let cleanup = phase("cleanup").context("the cleanup")?;
    assert_eq!(cleanup.attribute("outcome"), "completed");
    let parts = spans.iter().filter(|s| s.name == "part");
    assert!(parts.clone().all(|part| part.parent == copy.id));
    assert!(
        spans
            .iter()
            .all(|s| s.good == (s.attribute("outcome") != "cancelled"))
    );
    Ok(())
}

/// Keeps only the last request of parts that were requested more than once, because a connection
/// broke: earlier ones are not part of the job's totals.
fn last_serves(spans: Vec<Span>) -> Vec<Span> {
    let mut last: BTreeMap<Vec<u8>, u64> = BTreeMap::new();
    for serve in spans.iter().filter(|s| s.name == "part.serve") {
        let of_part = last.entry(serve.parent.clone()).or_default();
        *of_part = serve.times.0.max(*of_part);
    }
    let is_last = |s: &Span| s.name != "part.serve" || last[&s.parent] == s.times.0;
    spans.into_iter().filter(is_last).collect()
}

#[test]
fn a_job_is_one_trace_of_phases_and_parts_from_all_three_processes() -> Result<()> {
    let collector = Collector::start()?;
    let mut cluster = cluster(&collector.endpoint())?;
    sample::create(&cluster.database("node_a"), 2)?;
    let cancelled = cancelled_job(&cluster)?;
    let end = cluster
        .init(&["--parallel", "2"])?
        .expect(0)?
        .last_object()?;
    let passwords = ["node_a", "node_b"].map(|n| cluster.node(n).server().password().to_owned());
    stop(&mut cluster)?;
    let bodies = collector.bodies()?;
    for password in passwords {
        let inside = |body: &Vec<u8>| {
            body.windows(password.len())
                .any(|w| w == password.as_bytes())
        };
        assert!(!bodies.iter().any(inside), "a password is in a span");
    }
    let (of_cancelled, spans): (Vec<_>, Vec<_>) = spans(&bodies)?
        .into_iter()
        .partition(|span| span.attribute("job_id") == cancelled);
    check_cancelled(&of_cancelled)?;

    let job = end["job_id"].as_str().context("a job")?;
    let spans = last_serves(spans);
    let by_id: BTreeMap<&[u8], &Span> = spans.iter().map(|s| (&*s.id, s)).collect();
    assert_eq!(by_id.len(), spans.len(), "two spans have one id");
    let mut seen = Kinds::new();
    for span in &spans {
        assert_eq!(span.trace, format!("{job}{job}"), "{span:?}");
        assert_eq!(span.attribute("job_id"), job, "{span:?}");
        assert!(span.good, "{span:?}");
        let parent = by_id.get(&*span.parent);
        assert_eq!(parent.is_none(), span.name == "job", "{span:?}");
        let within = parent.map_or("", |p| &p.name).to_owned();
        let attributes = span.attributes.keys().cloned().collect();
        let what = (span.service.clone(), within, attributes);
        let known = seen.insert(span.name.clone(), what.clone());
        assert!(known.is_none_or(|known| known == what), "{span:?}");
    }
    assert_eq!(documented()?, seen, "docs/traces.md against what was sent");

    let named = |name: &'static str| spans.iter().filter(move |s| s.name == name);
    let [of_job] = named("job").collect::<Vec<_>>()[..] else {
        anyhow::bail!("one job, one span: {spans:?}");
    };
    assert_eq!(
        of_job.attribute("rows_copied"),
        end["rows_copied"].to_string()
    );
    assert_eq!(of_job.attribute("outcome"), "completed");
    let phases: BTreeSet<&str> = named("phase").map(|s| s.attribute("phase")).collect();
    let wanted = "preflight snapshot schema copy indexes constraints subscribe catch_up prove";
    assert_eq!(phases, wanted.split(' ').collect());
    for phase in named("phase") {
        assert!(of_job.times.0 <= phase.times.0 && phase.times.1 <= of_job.times.1);
    }
    let parts = named("part").map(|s| s.attribute("part").parse());
    let parts = parts.collect::<Result<BTreeSet<u32>, _>>()?;
    let count = u32::try_from(named("part").count())?;
    assert_eq!(parts, (0..count).collect(), "each part of the plan, once");
    assert!(count >= 10, "{count} parts");
    for (name, node) in [("part", "node_b"), ("part.serve", "node_a")] {
        assert_eq!(named(name).count(), parts.len(), "{name}");
        for (attribute, total) in [
            ("rows", "rows_copied"),
            ("bytes", "bytes_copied"),
            ("wire_bytes", "wire_bytes"),
        ] {
            let values = named(name).map(|s| s.attribute(attribute).parse::<u64>());
            let sum: u64 = values.sum::<Result<u64, _>>()?;
            assert_eq!(Some(sum), end[total].as_u64(), "{attribute} of {name}");
        }
        assert!(named(name).all(|s| s.attribute("node_id") == node));
    }
    for serve in named("part.serve") {
        let part = by_id[&*serve.parent];
        assert_eq!(part.attribute("part"), serve.attribute("part"));
        assert_eq!(part.attribute("table"), serve.attribute("table"));
    }
    Ok(())
}

#[test]
fn a_collector_that_never_answers_costs_spans_and_nothing_else() -> Result<()> {
    // Connections succeed, but stay in the kernel's queue.
    let silent = TcpListener::bind("127.0.0.1:0")?;
    let mut cluster = cluster(&format!("http://{}", silent.local_addr()?))?;
    sample::create(&cluster.database("node_a"), 1)?;
    cluster.init(&[])?.expect(0)?;
    stop(&mut cluster)?;
    for log in ["coordinator.log", "agent-node_a.log", "agent-node_b.log"] {
        let text = fs::read_to_string(cluster.dir().join(log))?;
        let of = |word: &str| text.lines().filter(|l| l.contains(word)).count();
        assert_eq!(of("spans did not reach the collector"), 1, "{log}: {text}");
        assert!(of("spans are lost") <= 1, "{log}: {text}");
    }
    Ok(())
}
