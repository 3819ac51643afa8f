//! What a round runs on: a cluster whose processes reach each other through relays.

use std::fs;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path as FilePath, PathBuf};

use anyhow::{Context as _, Result};
use steep_tests::cluster::{Cluster, Node, Running};
use steep_tests::paths::Binaries;
use steep_tests::pg::Grouping;
use steep_tests::relay::{Condition, TcpRelay, UdpRelay};
use steep_tests::{sample, scratch};

use super::fault::{Path, Side};
use super::load::{self, Load};
use super::plan::{Method, Round};

/// The source of every job.
pub(super) const SOURCE: &str = "node_a";

/// The target that faults strike. A second one only has to end well.
pub(super) const TARGET: &str = "node_b";

pub(super) struct World {
    // Dropped in this order.
    pub(super) follower: Option<Running>,
    pub(super) load: Option<Load>,
    pub(super) cluster: Cluster,
    network: Network,
    pub(super) dir: PathBuf,
}

struct Network {
    /// Before each agent, in the order of the nodes.
    peers: Vec<UdpRelay>,
    /// From each agent to the coordinator.
    control: Vec<UdpRelay>,
    /// Before the source's PostgreSQL.
    subscription: TcpRelay,
}

impl Side {
    pub(super) fn node(self) -> &'static str {
        match self {
            Self::Source => SOURCE,
            Self::Target => TARGET,
        }
    }
}

impl World {
    /// Starts everything, with rows on the source and somebody who writes to it.
    pub(super) fn start(round: &Round, binaries: &Binaries) -> Result<Self> {
        let dir = directory(round)?;
        let nodes = 1 + round.method.targets().len();
        let mut builder = Cluster::builder()
            .nodes(nodes)
            .binaries(binaries.clone())
            .grouping(Grouping::Own)
            .dir(dir.clone());
        for target in round.method.targets() {
            builder = builder
                .setting(target, "cluster_name", sample::SLOW)
                .setting(target, "wal_retrieve_retry_interval", "1s");
        }
        if matches!(round.method, Method::Live | Method::Several | Method::Again) {
            // With it, tables that are split would be spooled.
            builder = builder.without_data_dir(SOURCE);
        }
        let mut cluster = builder.start_servers()?;
        let network = Network::before(&mut cluster, round.seed ^ u64::from(round.number))?;
        let source = cluster.database(SOURCE);
        load::create(&source)?;
        cluster.start_coordinator()?;
        let names: Vec<String> = cluster
            .nodes()
            .iter()
            .map(|n| n.name().to_owned())
            .collect();
        for name in &names {
            cluster.start_agent(name)?;
        }
        let load = Load::start(&source, &dir)?;
        let world = Self {
            follower: None,
            load: Some(load),
            cluster,
            network,
            dir,
        };
        world.wait_agents()?;
        Ok(world)
    }

    /// Changes the network on that path.
    pub(super) fn set(&self, path: Path, condition: Condition) {
        let network = &self.network;
        match path {
            Path::Peers => network.peers.iter().for_each(|relay| relay.set(condition)),
            Path::SourceControl => network.control[0].set(condition),
            Path::TargetControl => network.control[1].set(condition),
            Path::Subscription => network.subscription.set(condition),
        }
    }

    /// Breaks the subscription's connections.
    pub(super) fn reset_subscription(&self) {
        self.network.subscription.reset();
    }

    /// Gives that side's agent, which does not run, another address.
    pub(super) fn move_agent(&mut self, side: Side) -> Result<()> {
        let node = self.cluster.node_mut(side.node());
        node.move_agent()?;
        let relay = UdpRelay::to(&node.agent_address(), 0)?;
        node.set_advertise(Some(relay.address()));
        let at = match side {
            Side::Source => 0,
            Side::Target => 1,
        };
        self.network.peers[at] = relay;
        Ok(())
    }

    /// Waits until the coordinator sees every agent.
    pub(super) fn wait_agents(&self) -> Result<()> {
        let nodes: Vec<&str> = self.cluster.nodes().iter().map(Node::name).collect();
        self.cluster.wait_online(&nodes)
    }

    /// The coordinator's log.
    pub(super) fn coordinator_log(&self) -> PathBuf {
        self.dir.join("coordinator.log")
    }

    /// A node's agent's log.
    pub(super) fn agent_log(&self, node: &str) -> PathBuf {
        self.dir.join(format!("agent-{node}.log"))
    }
}

impl Network {
    fn before(cluster: &mut Cluster, seed: u64) -> Result<Self> {
        let names: Vec<String> = cluster
            .nodes()
            .iter()
            .map(|n| n.name().to_owned())
            .collect();
        let source = cluster.node(SOURCE).server().port();
        let subscription = TcpRelay::to(&format!("127.0.0.1:{source}"))?;
        cluster
            .node_mut(SOURCE)
            .set_replication_port(subscription.port());
        let (mut peers, mut control) = (Vec::new(), Vec::new());
        let coordinator = cluster.coordinator_address();
        for name in names {
            let node = cluster.node_mut(&name);
            let relay = UdpRelay::to(&node.agent_address(), seed)?;
            node.set_advertise(Some(relay.address()));
            peers.push(relay);
            let relay = UdpRelay::to(&coordinator, seed)?;
            node.set_coordinator(relay.address());
            control.push(relay);
        }
        Ok(Self {
            peers,
            control,
            subscription,
        })
    }
}

/// Creates the directory of a round: not removed by itself, since a violation leaves its traces there.
fn directory(round: &Round) -> Result<PathBuf> {
    let name = format!(
        "steep-repl-soak-{}-{}-{}",
        std::process::id(),
        round.seed,
        round.number
    );
    let dir = scratch::memory_or_disk().join(name);
    // The servers' account may enter it, but nobody may list it.
    fs::DirBuilder::new()
        .mode(0o711)
        .create(&dir)
        .with_context(|| format!("cannot create {}", dir.display()))?;
    Ok(dir)
}

/// Removes what a round has left.
pub(super) fn remove(dir: &FilePath) -> Result<()> {
    fs::remove_dir_all(dir).with_context(|| format!("cannot remove {}", dir.display()))
}
