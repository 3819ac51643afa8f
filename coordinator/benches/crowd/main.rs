//! Measures what a hundred nodes in progress cost the coordinator: `cargo bench -p
//! steep-coordinator`.
//!
//! It runs the real coordinator as its own process over real QUIC, with a hundred targets and ten
//! sources without servers, each target copying and reporting at the times of a real agent
//! ([`steep_protocol::report_interval`]). It prints the coordinator's share of one CPU and the agents'
//! messages while nobody watches, while it is scraped each second, while one operator watches the
//! cluster and while 25 follow a job each; the age of an answer while nobody watches; and the time
//! from a change at an agent to its arrival at a watcher. It fails if the share exceeds
//! [`SHARE_MAX`] while nobody watches.

use std::fs;
use std::net::UdpSocket;
use std::path::Path;
use std::process::{Child, Command as Process, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use steep_certs::{Credentials, Role};
use steep_protocol::NodeId;
use steep_protocol::message::api::{ApiReply, ApiRequest, InitRequest, Order, Query};
use steep_protocol::message::job::{Confirmation, JobSpec};
use steep_protocol::quic::{Connection, Endpoint, Expect, Tuning};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, sleep};

mod agent;
#[path = "../../tests/cluster/healthy.rs"]
mod healthy;

use agent::{FakeAgent, MESSAGES, SENDS};

const SOURCES: u32 = 10;
const TARGETS: u32 = 100;

/// Tables and parts of each job, enough that none ends.
const TABLES: u32 = 50;
const PARTS_EACH: u32 = 1_000;

/// Interval between finished parts of a target, in milliseconds.
const PART_MILLIS: u64 = 1_000;

/// Requests sent while nobody watches.
const QUESTIONS: u32 = 50;

const MEASURED: Duration = Duration::from_secs(15);

/// The highest share of a CPU, in percent, for a hundred nodes in progress that nobody watches.
const SHARE_MAX: f64 = 1.0;

#[tokio::main]
async fn main() -> Result<()> {
    // `cargo test` only builds benches, or runs them with this flag.
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
    for (at, name) in (0..).zip(&names) {
        let (address, credentials) = (address.clone(), credentials(dir, name)?);
        // Parts of different agents end at different times.
        let phase = Duration::from_millis(at * PART_MILLIS / names.len() as u64);
        agents.spawn(async move { FakeAgent::run(&address, &credentials, epoch, phase).await });
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
        let mut accepted = ask(
            &connection,
            &ApiRequest::Order(Order::Init(InitRequest::Copy(specs))),
        )
        .await?;
        match accepted.recv::<ApiReply>().await? {
            Some(ApiReply::Accepted { .. }) => {}
            other => bail!("{other:?}"),
        }
    }
    while nodes(&connection).await?.1 < TARGETS as usize {
        sleep(Duration::from_millis(100)).await;
    }
    println!("{TARGETS} nodes in progress, {SOURCES} sources; one processor is 100 %");
    sleep(Duration::from_secs(5)).await;
    let alone = share(pid).await?;
    println!("nobody watches        {alone}");
    let ages = ask_now_and_then(&connection, epoch).await?;
    sleep(Duration::from_secs(2)).await;

    let mut scraper = JoinSet::new();
    scraper.spawn(scrape(metrics.to_owned()));
    println!("scraped each second   {}", share(pid).await?);
    scraper.shutdown().await;

    let delays = {
        let measured = share(pid);
        let (watched, delays) = tokio::join!(measured, watch_for(&connection, epoch));
        println!("one operator watches  {}", watched?);
        delays?
    };

    if nodes(&connection).await?.1 < TARGETS as usize {
        bail!("not all nodes were in progress to the end");
    }
    let mut followers = JoinSet::new();
    for n in 0..TARGETS {
        let node = NodeId::parse(&format!("target_{n}"))?;
        // Several connections, as operators would have: one allows 32 streams.
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
    println!("25 jobs are followed  {}", share(pid).await?);
    followers.shutdown().await;
    println!("a watcher sees a change after   {}", spread(delays));
    println!("a question's answer is as old as {}", spread(ages));
    println!("resident memory       {:>6} MiB", resident(pid)? >> 20);
    if alone.percent > SHARE_MAX {
        bail!(
            "{:.2} % while nobody watches, over {SHARE_MAX} %",
            alone.percent
        );
    }
    Ok(())
}

struct Share {
    percent: f64,
    /// Per second.
    messages: f64,
    sends: f64,
}

impl std::fmt::Display for Share {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            percent,
            messages,
            sends,
        } = self;
        write!(
            f,
            "{percent:>6.2} %, {messages:>4.0} messages/s in {sends:>4.0} sends/s"
        )
    }
}

/// Measures a process's share of a CPU and the agents' messages during an interval.
async fn share(pid: u32) -> Result<Share> {
    let count = || {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed) as f64;
        anyhow::Ok((cpu_millis(pid)?, read(&MESSAGES), read(&SENDS)))
    };
    let before = count()?;
    let began = Instant::now();
    sleep(MEASURED).await;
    let (after, seconds) = (count()?, began.elapsed().as_secs_f64());
    Ok(Share {
        percent: (after.0 - before.0) / seconds / 10.0,
        messages: (after.1 - before.1) / seconds,
        sends: (after.2 - before.2) / seconds,
    })
}

fn spread(mut millis: Vec<u128>) -> String {
    millis.sort_unstable();
    let at = |share: usize| millis[(millis.len() - 1) * share / 100];
    format!(
        "{:>4} ms (median), {:>4} ms (99 %), {:>4} ms (most), of {}",
        at(50),
        at(99),
        at(100),
        millis.len()
    )
}

/// The age of the coordinator's data in milliseconds: asks once for one job after the other, so
/// that nobody watches.
async fn ask_now_and_then(connection: &Connection, epoch: Instant) -> Result<Vec<u128>> {
    let mut ages = Vec::new();
    for n in 0..QUESTIONS {
        let node = NodeId::parse(&format!("target_{}", n % TARGETS))?;
        let request = ApiRequest::Progress {
            node,
            follow: false,
        };
        let mut receiver = ask(connection, &request).await?;
        let Some(ApiReply::Progress(view)) = receiver.recv().await? else {
            bail!("no progress");
        };
        let at = view.wire_bytes >> 20;
        ages.push(epoch.elapsed().as_millis().saturating_sub(at.into()));
        sleep(Duration::from_millis(61)).await;
    }
    Ok(ages)
}

/// User and system time of a process from its scheduler's statistics: ticks of 10 ms are too coarse
/// here.
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

async fn follow(connection: Connection, node: NodeId) -> Result<()> {
    let request = ApiRequest::Progress { node, follow: true };
    let mut receiver = ask(&connection, &request).await?;
    while receiver.recv::<ApiReply>().await?.is_some() {}
    Ok(())
}

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

/// Milliseconds from a change at an agent to its arrival at a watcher of the cluster. Reports
/// encode the time of the change in the bytes of their part.
async fn watch_for(connection: &Connection, epoch: Instant) -> Result<Vec<u128>> {
    let node = NodeId::parse("target_7")?;
    let mut receiver = ask(connection, &ApiRequest::Watch).await?;
    let mut delays = Vec::new();
    let began = Instant::now();
    // Ignores changes from before the watch.
    let mut last = u64::try_from(epoch.elapsed().as_millis())?;
    while began.elapsed() < MEASURED {
        let view = match receiver.recv().await? {
            Some(ApiReply::Progress(view)) => view,
            Some(ApiReply::Ended(end)) => bail!("a job ended: {end:?}"),
            Some(_) => continue,
            None => bail!("the coordinator ended the stream"),
        };
        if view.node_id != node {
            continue;
        }
        // The low bits of each part's bytes are the time; the part in flight has the largest.
        let at = view.bytes_copied >> 20;
        if at > last {
            delays.push(epoch.elapsed().as_millis().saturating_sub(at.into()));
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

/// Agents online, and nodes copying.
async fn nodes(connection: &Connection) -> Result<(usize, usize)> {
    let mut receiver = ask(connection, &ApiRequest::Query(Query::Nodes { node: None })).await?;
    let Some(ApiReply::Nodes(nodes)) = receiver.recv().await? else {
        bail!("no nodes");
    };
    let copying = |n: &&steep_protocol::message::api::NodeView| n.state.as_str() == "copying";
    let online = nodes.iter().filter(|n| n.agent_online).count();
    Ok((online, nodes.iter().filter(copying).count()))
}

fn spec(target: u32) -> Result<JobSpec> {
    Ok(JobSpec {
        confirmation: Confirmation::Given,
        ..JobSpec::new(
            NodeId::parse(&format!("source_{}", target % SOURCES))?,
            NodeId::parse(&format!("target_{target}"))?,
        )
    })
}
