//! Holders of a certificate who mean no good: they cost an agent or the coordinator little, and keep nobody
//! out.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use steep_certs::Credentials;
use steep_protocol::close::CloseCode;
use steep_protocol::message::peer::{PeerReply, PeerRequest};
use steep_protocol::quic::{ConnectError, Connection, Endpoint, Expect, StreamError, Tuning};
use steep_protocol::{FaultKind, JobId, NodeId};
use steep_tests::cluster::Cluster;
use steep_tests::usage;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Generous: machines that run tests are busy.
const LIMIT: Duration = Duration::from_secs(60);

/// Streams that one connection may have, nearly.
const STREAMS: usize = 120;

/// What each of them sends of a message that it says is longer still.
const SENT: usize = 512 * 1024;

/// What an agent may keep of all that: a quarter.
const KEPT_MAX: u64 = 16 * 1024 * 1024;

/// Dials as the holder of that certificate of the cluster.
fn dialer(cluster: &Cluster, certificate: &str) -> Result<Endpoint> {
    let certs = cluster.dir().join("certs");
    let file = |end: &str| certs.join(format!("{certificate}.{end}"));
    let credentials = Credentials::load(&certs.join("ca.pem"), &file("pem"), &file("key"))?;
    Ok(Endpoint::dialer(&credentials, Tuning::BULK)?)
}

/// Every stream claims a message of 16 MiB and sends much of it.
async fn claim_memory(connection: &Connection) -> Result<()> {
    let mut streams = JoinSet::new();
    for _ in 0..STREAMS {
        let connection = connection.clone();
        streams.spawn(async move {
            let (mut sender, _receiver) = connection.open().await?;
            let length: u32 = 16 * 1024 * 1024;
            let mut bytes = length.to_be_bytes().to_vec();
            bytes.resize(SENT, 0);
            sender.send_bytes(bytes).await?;
            sender.drained().await
        });
    }
    while let Some(ended) = streams.join_next().await {
        let refused = matches!(ended?, Err(StreamError::Reset(CloseCode::Malformed)));
        ensure!(refused, "a message of 16 MiB was waited for");
    }
    Ok(())
}

/// Asks what nobody allowed it, and is answered.
async fn ask(connection: &Connection) -> Result<()> {
    let (mut sender, mut receiver) = connection.open().await?;
    sender.send(&PeerRequest::Ping { job: JobId(1) }).await?;
    sender.finish();
    let reply = receiver.recv::<PeerReply>().await?;
    let refused = matches!(&reply, Some(PeerReply::Fault(f)) if f.kind == FaultKind::Unauthorized);
    ensure!(refused, "{reply:?}");
    Ok(())
}

/// The endpoints and what they hold open.
async fn flood(cluster: &Cluster) -> Result<(Vec<Endpoint>, Vec<Connection>)> {
    let agent = cluster.node("node_a");
    let pid = agent.agent().context("an agent")?.pid();
    let (address, expect) = (
        agent.agent_address(),
        Expect::Agent(NodeId::parse("node_a")?),
    );
    let attacker = dialer(cluster, "node_b")?;
    let connection = attacker.dial(&address, &expect).await?;
    ask(&connection).await?;
    let before = usage::peak_memory(pid)?;
    let claiming = timeout(LIMIT, claim_memory(&connection));
    let asking = async {
        let connection = attacker.dial(&address, &expect).await?;
        timeout(LIMIT, ask(&connection)).await?
    };
    let (claimed, asked) = tokio::join!(claiming, asking);
    claimed.context("streams that are neither read nor refused")??;
    asked?;
    let kept = usage::peak_memory(pid)? - before;
    ensure!(kept < KEPT_MAX, "the agent kept {kept} bytes");

    let coordinator = cluster.coordinator_address();
    let operator = dialer(cluster, "operator")?;
    let mut held = crowd(&operator, &coordinator).await?;
    held.extend(register_without_end(&attacker, &coordinator).await?);
    held.push(connection);
    Ok((vec![operator, attacker], held))
}

/// More idle connections than the coordinator serves in all of that identity: the oldest give way.
async fn crowd(operator: &Endpoint, coordinator: &str) -> Result<Vec<Connection>> {
    let mut idle = Vec::new();
    for _ in 0..100 {
        idle.push(operator.dial(coordinator, &Expect::Coordinator).await?);
    }
    let closed = timeout(LIMIT, idle[0].closed()).await?;
    ensure!(closed == Some(CloseCode::TooMany), "{closed:?}");
    Ok(idle)
}

/// An agent's session is an event each: so many a minute, and no more.
async fn register_without_end(agent: &Endpoint, coordinator: &str) -> Result<Vec<Connection>> {
    let mut begun = Vec::new();
    while begun.len() < 30 {
        match agent.dial(coordinator, &Expect::Coordinator).await {
            Ok(connection) => begun.push(connection),
            // The end may come before the dialler knows that it was let in.
            Err(ConnectError::Refused {
                code: CloseCode::TooMany,
                ..
            }) => return Ok(begun),
            Err(error) => return Err(error.into()),
        }
    }
    let closed = timeout(LIMIT, begun[29].closed()).await?;
    ensure!(closed == Some(CloseCode::TooMany), "{closed:?}");
    Ok(begun)
}

#[test]
fn who_floods_an_agent_or_the_coordinator_costs_little_and_keeps_nobody_out() -> Result<()> {
    let mut cluster = Cluster::builder().start_servers()?;
    cluster.start_coordinator()?;
    cluster.start_agent("node_a")?;
    cluster.wait_online(&["node_a"])?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let _held = runtime.block_on(flood(&cluster))?;
    // The same certificate's holder asks as before, while all of that is still connected.
    cluster.cli(&["nodes"])?.expect(0)?;
    cluster.wait_online(&["node_a"])?;
    let warned =
        std::fs::read_to_string(cluster.node("node_a").agent().context("an agent")?.log())?;
    let lines = warned
        .lines()
        .filter(|line| line.contains("request refused"))
        .count();
    ensure!(lines <= 1, "{lines} lines of one kind");
    Ok(())
}
