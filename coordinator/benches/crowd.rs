//! What a hundred nodes in progress cost the coordinator: `cargo bench -p steep-coordinator`.
//!
//! The real coordinator, as its own process, over real QUIC; a hundred targets and ten sources that
//! pretend to have servers, each target copying and reporting as a real agent does. Prints the
//! coordinator's share of one processor while nobody watches, while it is scraped each second, while
//! one operator watches the cluster and while 25 follow a job each, and how long a change takes to
//! reach who watches, from the moment it happens beside the agent. Fails where the share is over
//! [`SHARE_MAX`] while nobody watches.

use std::collections::BTreeMap;
use std::fs;
use std::net::UdpSocket;
use std::path::Path;
use std::process::{Child, Command as Process, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use steep_certs::{Credentials, Role};
use steep_protocol::message::agent::{
    AgentMessage, Command, CoordinatorMessage, Observed, Outcome, PartDone, PartProgress,
    ProgressReport, Registration, TableSummary,
};
use steep_protocol::message::api::{ApiReply, ApiRequest};
use steep_protocol::message::facts::{SourceFacts, TargetFacts};
use steep_protocol::message::job::{
    Compression, Confirmation, ExistingRows, JobSpec, Method, SchemaMode, TableFilter,
};
use steep_protocol::quic::{Connection, Endpoint, Expect, Sender, Tuning};
use steep_protocol::{ByteCount, JobId, Lsn, NodeId, PartNo, Phase, RowCount, TableName, TableNo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

#[path = "../tests/cluster/healthy.rs"]
mod healthy;

use healthy::server;

const SOURCES: u32 = 10;
const TARGETS: u32 = 100;

/// Tables and parts of each job; enough that none ends.
const TABLES: u32 = 50;
const PARTS_EACH: u32 = 1_000;

/// As agents do.
const REPORT_EVERY: Duration = Duration::from_millis(200);
const OBSERVE_EVERY: Duration = Duration::from_secs(1);

const MEASURED: Duration = Duration::from_secs(15);

/// What a hundred nodes in progress may cost while nobody watches, in percent of a processor.
const SHARE_MAX: f64 = 1.0;

#[tokio::main]
async fn main() -> Result<()> {
    // Under `cargo test` benches are only built, or run with this flag.
    if std::env::args().any(|word| word == "--test") {
        return Ok(());
    }
    let directory = tempfile::tempdir()?;
    let dir = directory.path();
    steep_certs::init_ca(dir)?;
    let names: Vec<String> = (0..SOURCES)
        .map(|n| format!("source_{n}"))
        .chain((0..TARGETS).map(|n| format!("target_{n}")))
        .collect();
    steep_certs::issue(dir, Role::Coordinator, "c", &[], None)?;
    steep_certs::issue(dir, Role::Operator, "dba", &[], None)?;
    for name in &names {
        steep_certs::issue(dir, Role::Agent, name, &[], None)?;
    }
    let (mut coordinator, address, metrics) = start(dir)?;
    let epoch = Instant::now();
    let mut agents = JoinSet::new();
    for name in names {
        let (address, credentials) = (address.clone(), credentials(dir, &name)?);
        agents.spawn(async move { agent(&address, &credentials, epoch).await });
    }
    let measured = measure(dir, &address, &metrics, coordinator.id(), epoch);
    let outcome = tokio::select! {
        outcome = measured => outcome,
        Some(ended) = agents.join_next() => bail!("an agent ended: {ended:?}"),
    };
    coordinator.kill()?;
    coordinator.wait()?;
    outcome
}

async fn measure(dir: &Path, address: &str, metrics: &str, pid: u32, epoch: Instant) -> Result<()> {
    let endpoint = Endpoint::dialer(&credentials(dir, "dba")?, Tuning::CONTROL)?;
    let connection = endpoint.dial(address, &Expect::Coordinator).await?;
    let wanted = (SOURCES + TARGETS) as usize;
    while nodes(&connection).await?.0 < wanted {
        sleep(Duration::from_millis(100)).await;
    }
    let specs = (0..TARGETS).map(spec).collect::<Result<Vec<_>>>()?;
    for some in specs.chunks(50) {
        let specs = some.to_vec();
        let mut accepted = ask(&connection, &ApiRequest::Init { specs }).await?;
        match accepted.recv::<ApiReply>().await? {
            Some(ApiReply::Accepted { .. }) => {}
            other => bail!("{other:?}"),
        }
    }
    while nodes(&connection).await?.1 < TARGETS as usize {
        sleep(Duration::from_millis(100)).await;
    }
    println!("{TARGETS} nodes in progress, {SOURCES} sources; one processor is 100 %");
    sleep(Duration::from_secs(2)).await;
    let alone = share(pid).await?;
    println!("nobody watches        {alone:>6.2} %");

    let mut scraper = JoinSet::new();
    scraper.spawn(scrape(metrics.to_owned()));
    let scraped = share(pid).await?;
    scraper.shutdown().await;
    println!("scraped each second   {scraped:>6.2} %");

    let mut delays = {
        let measured = share(pid);
        let (watched, delays) = tokio::join!(measured, watch_for(&connection, epoch));
        println!("one operator watches  {:>6.2} %", watched?);
        delays?
    };

    let mut followers = JoinSet::new();
    for n in 0..TARGETS {
        let node = NodeId::parse(&format!("target_{n}"))?;
        // As many connections as operators would have: a connection bears 32 streams at most.
        let connection = if n % 25 == 0 {
            endpoint.dial(address, &Expect::Coordinator).await?
        } else {
            connection.clone()
        };
        if n % 4 == 0 {
            followers.spawn(follow(connection, node));
        }
    }
    sleep(Duration::from_secs(2)).await;
    let watched = share(pid).await?;
    followers.shutdown().await;
    println!("25 jobs are followed  {watched:>6.2} %");
    delays.sort_unstable();
    let at = |share: usize| delays[(delays.len() - 1) * share / 100];
    println!(
        "a change is seen after {} ms (median), {} ms (99 %), {} ms (most), of {}",
        at(50),
        at(99),
        at(100),
        delays.len()
    );
    println!("resident memory        {} MiB", resident(pid)? >> 20);
    if alone > SHARE_MAX {
        bail!("{alone:.2} % while nobody watches, over {SHARE_MAX} %");
    }
    Ok(())
}

/// The share of a processor that process uses over the next while, in percent.
async fn share(pid: u32) -> Result<f64> {
    let before = cpu_millis(pid)?;
    let began = Instant::now();
    sleep(MEASURED).await;
    let used = cpu_millis(pid)? - before;
    Ok(used / began.elapsed().as_millis() as f64 * 100.0)
}

/// User and system time of that process, from its scheduler's statistics: ticks of 10 ms are too
/// coarse for what is measured here.
fn cpu_millis(pid: u32) -> Result<f64> {
    let mut nanos = 0u64;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let stat = fs::read_to_string(task?.path().join("schedstat"))?;
        let spent = stat.split_whitespace().next().context("schedstat")?;
        nanos += spent.parse::<u64>()?;
    }
    Ok(nanos as f64 / 1e6)
}

fn resident(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib: u64 = line
        .and_then(|l| l.split_whitespace().next()?.parse().ok())
        .context("VmRSS")?;
    Ok(kib * 1024)
}

/// Follows a job and throws away what it says.
async fn follow(connection: Connection, node: NodeId) -> Result<()> {
    let request = ApiRequest::Progress { node, follow: true };
    let mut receiver = ask(&connection, &request).await?;
    while receiver.recv::<ApiReply>().await?.is_some() {}
    Ok(())
}

/// Asks for the metrics, each second, on and on.
async fn scrape(address: String) -> Result<()> {
    let mut each = interval(Duration::from_secs(1));
    loop {
        each.tick().await;
        let mut stream = TcpStream::connect(&address).await?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").await?;
        let mut page = String::new();
        stream.read_to_string(&mut page).await?;
        if !page.ends_with("# EOF\n") {
            bail!("no metrics: {page}");
        }
    }
}

/// Milliseconds from a change beside an agent to its arrival at who watches the cluster. Reports carry
/// the time of the change as the bytes of their part.
async fn watch_for(connection: &Connection, epoch: Instant) -> Result<Vec<u128>> {
    let node = NodeId::parse("target_7")?;
    let mut receiver = ask(connection, &ApiRequest::Watch).await?;
    let mut delays = Vec::new();
    let mut last = 0;
    let began = Instant::now();
    while began.elapsed() < MEASURED {
        let Some(ApiReply::Progress(view)) = receiver.recv().await? else {
            continue;
        };
        if view.node_id != node {
            continue;
        }
        // Of every part, the lowest bits are the time; the one on its way is the largest.
        let at = view.bytes_copied >> 20;
        if at > last {
            if last > 0 {
                delays.push(epoch.elapsed().as_millis().saturating_sub(at.into()));
            }
            last = at;
        }
    }
    Ok(delays)
}

fn start(dir: &Path) -> Result<(Child, String, String)> {
    let port = UdpSocket::bind("127.0.0.1:0")?.local_addr()?.port();
    let address = format!("127.0.0.1:{port}");
    let port = std::net::TcpListener::bind("127.0.0.1:0")?
        .local_addr()?
        .port();
    let metrics = format!("127.0.0.1:{port}");
    let child = Process::new(env!("CARGO_BIN_EXE_steep-coordinator"))
        .args(["run", "--listen", &address, "--log-format", "json"])
        .args(["--metrics", &metrics])
        .arg("--data-dir")
        .arg(dir.join("data"))
        .arg("--ca")
        .arg(dir.join("ca.pem"))
        .arg("--cert")
        .arg(dir.join("c.pem"))
        .arg("--key")
        .arg(dir.join("c.key"))
        .stderr(Stdio::from(fs::File::create(dir.join("log"))?))
        .spawn()?;
    Ok((child, address, metrics))
}

fn credentials(dir: &Path, name: &str) -> Result<Credentials> {
    let (cert, key) = (format!("{name}.pem"), format!("{name}.key"));
    Ok(Credentials::load(
        &dir.join("ca.pem"),
        &dir.join(cert),
        &dir.join(key),
    )?)
}

async fn ask(
    connection: &Connection,
    request: &ApiRequest,
) -> Result<steep_protocol::quic::Receiver> {
    let (mut sender, receiver) = connection.open().await?;
    sender.send(request).await?;
    sender.finish();
    Ok(receiver)
}

/// How many agents are online, and how many nodes are copying.
async fn nodes(connection: &Connection) -> Result<(usize, usize)> {
    let mut receiver = ask(connection, &ApiRequest::Nodes { node: None }).await?;
    let Some(ApiReply::Nodes(nodes)) = receiver.recv().await? else {
        bail!("no nodes");
    };
    let copying = |n: &&steep_protocol::message::api::NodeView| n.state.as_str() == "copying";
    let online = nodes.iter().filter(|n| n.agent_online).count();
    Ok((online, nodes.iter().filter(copying).count()))
}

/// An agent that does everything at once, but copies without end.
async fn agent(address: &str, credentials: &Credentials, epoch: Instant) -> Result<()> {
    let endpoint = Endpoint::dialer(credentials, Tuning::CONTROL)?;
    let connection = loop {
        match endpoint.dial(address, &Expect::Coordinator).await {
            Ok(connection) => break connection,
            Err(_) => sleep(Duration::from_millis(200)).await,
        }
    };
    let (mut sender, mut receiver) = connection.open().await?;
    let register = AgentMessage::Register(Registration {
        advertise: "127.0.0.1:7401".to_owned(),
        version: "0.1.0".to_owned(),
        incarnation: 1,
        open_snapshots: Vec::new(),
        max_workers: 4,
    });
    sender.send(&register).await?;
    let mut reports = interval(REPORT_EVERY);
    reports.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut looks = interval(OBSERVE_EVERY);
    let mut copying: BTreeMap<JobId, u32> = BTreeMap::new();
    let mut reported = epoch.elapsed();
    let observed = Arc::new(Observed {
        postgres: Some(Ok(180_000)),
        ..Observed::default()
    });
    loop {
        tokio::select! {
            message = receiver.recv::<CoordinatorMessage>() => match message? {
                Some(CoordinatorMessage::Command { id, job, command }) => {
                    if matches!(command, Command::Copy { .. }) {
                        copying.insert(job, 0);
                        continue;
                    }
                    let outcome = Ok(perform(&mut sender, job, &command).await?);
                    sender.send(&AgentMessage::Finished { command: id, outcome }).await?;
                }
                Some(_) => {}
                None => bail!("the coordinator ended the session"),
            },
            _ = looks.tick() => {
                sender.send(&AgentMessage::Observed((*observed).clone())).await?;
            }
            _ = reports.tick() => {
                // Of all changes since the last report, the first has waited longest.
                let changed = std::mem::replace(&mut reported, epoch.elapsed());
                for (job, done) in &mut copying {
                    report(&mut sender, *job, done, changed).await?;
                }
            }
        }
    }
}

/// A part is done about every second, and four are on their way.
async fn report(sender: &mut Sender, job: JobId, done: &mut u32, changed: Duration) -> Result<()> {
    let now = u64::try_from(changed.as_millis())?;
    if now / 1_000 > u64::from(*done) {
        let parts = vec![PartDone {
            part: PartNo(*done),
            rows: RowCount(1_000),
            bytes: ByteCount(1),
            wire: ByteCount(1),
        }];
        *done = u32::try_from(now / 1_000)?;
        sender.send(&AgentMessage::PartsDone { job, parts }).await?;
    }
    let active = (0..4).map(|n| PartProgress {
        part: PartNo(TABLES * PARTS_EACH - 1 - n),
        bytes: ByteCount(if n == 0 { now << 20 } else { u64::from(n) }),
        wire: ByteCount(now),
    });
    let progress = ProgressReport {
        job,
        phase: Phase::Copy,
        active: active.collect(),
        work: None,
        retries: 0,
    };
    Ok(sender.send(&AgentMessage::Progress(progress)).await?)
}

async fn perform(sender: &mut Sender, job: JobId, command: &Command) -> Result<Outcome> {
    Ok(match command {
        Command::GatherSource { .. } => Outcome::SourceFacts(Box::new(SourceFacts {
            server: server("a"),
            tables: TABLES.into(),
            total_bytes: ByteCount(500),
            replication_link: Some(Ok(())),
            pg_dump: Some(Ok(18)),
            ..SourceFacts::default()
        })),
        Command::GatherTarget { .. } => Outcome::TargetFacts(Box::new(TargetFacts {
            server: server("b"),
            disk_free: Some(ByteCount(1 << 50)),
            agent_link: Some(Ok(300)),
            server_link: Some(Ok(())),
            ..TargetFacts::default()
        })),
        Command::OpenSource { .. } => {
            let tables = (0..TABLES).map(|n| {
                Ok(TableSummary {
                    no: TableNo(n),
                    name: TableName::new("public", format!("table_{n}"))?,
                    rows_estimate: RowCount(1_000_000),
                    bytes_estimate: ByteCount(10 << 30),
                    first_part: PartNo(n * PARTS_EACH),
                    parts: PARTS_EACH,
                })
            });
            let tables = tables.collect::<Result<_>>()?;
            sender.send(&AgentMessage::PlanPage { job, tables }).await?;
            Outcome::SourceOpened {
                lsn: Lsn(1),
                tables: TABLES,
                parts: TABLES * PARTS_EACH,
            }
        }
        _ => Outcome::Done,
    })
}

fn spec(target: u32) -> Result<JobSpec> {
    Ok(JobSpec {
        source: NodeId::parse(&format!("source_{}", target % SOURCES))?,
        target: NodeId::parse(&format!("target_{target}"))?,
        method: Method::Snapshot,
        parallel: 4,
        schema_mode: SchemaMode::Strict,
        existing: ExistingRows::Refuse,
        confirmation: Confirmation::Given,
        compression: Compression::Auto,
        max_rate: None,
        filter: TableFilter::default(),
        large_table_threshold: ByteCount(10 << 30),
        timeout_seconds: 86_400,
    })
}
