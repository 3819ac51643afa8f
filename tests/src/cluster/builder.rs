//! Describes and starts a cluster.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use super::{Cluster, Dials, Node};
use crate::command;
use crate::limits::Limits;
use crate::paths::Binaries;
use crate::pg::{Durability, Grouping, Installation, Options, Server};
use crate::ports::Port;

/// The description of a cluster. Defaults: two nodes, the preferred PostgreSQL, no fsync.
#[derive(Debug)]
pub struct Builder {
    nodes: usize,
    installations: BTreeMap<String, Installation>,
    settings: Vec<(String, String, String)>,
    agent_arguments: Vec<(String, String)>,
    agent_environment: Vec<(String, String, String)>,
    without_data_dir: Vec<String>,
    coordinator_arguments: Vec<String>,
    limits: Limits,
    durability: Durability,
    grouping: Grouping,
    binaries: Option<Binaries>,
    dir: Option<PathBuf>,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            nodes: 2,
            installations: BTreeMap::new(),
            settings: Vec::new(),
            agent_arguments: Vec::new(),
            agent_environment: Vec::new(),
            without_data_dir: Vec::new(),
            coordinator_arguments: Vec::new(),
            limits: Limits::default(),
            durability: Durability::Relaxed,
            grouping: Grouping::Shared,
            binaries: None,
            dir: None,
        }
    }
}

impl Builder {
    /// The number of nodes: `node_a`, `node_b` and so on.
    #[must_use]
    pub fn nodes(mut self, count: usize) -> Self {
        self.nodes = count;
        self
    }

    /// The PostgreSQL of one node.
    #[must_use]
    pub fn postgres(mut self, node: &str, installation: &Installation) -> Self {
        self.installations
            .insert(node.to_owned(), installation.clone());
        self
    }

    /// A line for one node's `postgresql.conf`.
    #[must_use]
    pub fn setting(mut self, node: &str, name: &str, value: &str) -> Self {
        self.settings
            .push((node.to_owned(), name.to_owned(), value.to_owned()));
        self
    }

    /// An additional argument for one node's agent.
    #[must_use]
    pub fn agent_argument(mut self, node: &str, argument: &str) -> Self {
        self.agent_arguments
            .push((node.to_owned(), argument.to_owned()));
        self
    }

    /// A variable in the environment of one node's agent.
    #[must_use]
    pub fn agent_variable(mut self, node: &str, name: &str, value: &str) -> Self {
        self.agent_environment
            .push((node.to_owned(), name.to_owned(), value.to_owned()));
        self
    }

    /// One node's agent has no directory, and so no spool: large tables are read live.
    #[must_use]
    pub fn without_data_dir(mut self, node: &str) -> Self {
        self.without_data_dir.push(node.to_owned());
        self
    }

    /// An additional argument for the coordinator.
    #[must_use]
    pub fn coordinator_argument(mut self, argument: &str) -> Self {
        self.coordinator_arguments.push(argument.to_owned());
        self
    }

    /// Limits of every agent's and the coordinator's process.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Whether commits wait for the disk.
    #[must_use]
    pub fn durability(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }

    /// The process group of everything.
    #[must_use]
    pub fn grouping(mut self, grouping: Grouping) -> Self {
        self.grouping = grouping;
        self
    }

    /// Binaries of another build than the harness.
    #[must_use]
    pub fn binaries(mut self, binaries: Binaries) -> Self {
        self.binaries = Some(binaries);
        self
    }

    /// A directory that is not removed at the end.
    #[must_use]
    pub fn dir(mut self, dir: PathBuf) -> Self {
        self.dir = Some(dir);
        self
    }

    /// Starts servers, coordinator and agents, and returns once the coordinator sees every agent.
    ///
    /// # Errors
    /// What did not start, with the end of its log.
    pub fn start(self) -> Result<Cluster> {
        let mut cluster = self.start_servers()?;
        cluster.start_coordinator()?;
        let names: Vec<String> = cluster.nodes.iter().map(|node| node.name.clone()).collect();
        for name in &names {
            cluster.start_agent(name)?;
        }
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        cluster.wait_online(&names)?;
        Ok(cluster)
    }

    /// Creates servers and certificates only.
    ///
    /// # Errors
    /// What did not start.
    pub fn start_servers(self) -> Result<Cluster> {
        let binaries = self.binaries.clone().map_or_else(Binaries::beside_me, Ok)?;
        let (scratch, dir) = match &self.dir {
            Some(dir) => (None, dir.clone()),
            None => {
                let scratch = self.durability.scratch()?;
                let dir = scratch.path().to_path_buf();
                (Some(scratch), dir)
            }
        };
        let names: Vec<String> = (b'a'..=b'z')
            .take(self.nodes)
            .map(|letter| format!("node_{}", char::from(letter)))
            .collect();
        issue_certificates(&binaries, &dir.join("certs"), &names)?;
        let nodes = std::thread::scope(|scope| {
            let starting: Vec<_> = names
                .iter()
                .enumerate()
                .map(|(number, name)| {
                    let (builder, dir) = (&self, &dir);
                    scope.spawn(move || builder.start_node(number, name, dir))
                })
                .collect();
            let started = starting.into_iter().map(|thread| match thread.join() {
                Ok(node) => node,
                Err(panic) => std::panic::resume_unwind(panic),
            });
            started.collect::<Result<Vec<Node>>>()
        })?;
        Ok(Cluster {
            coordinator: None,
            nodes,
            binaries,
            grouping: self.grouping,
            coordinator_port: Port::take()?,
            coordinator_arguments: self.coordinator_arguments,
            coordinator_limits: self.limits,
            dir,
            _scratch: scratch,
        })
    }

    fn start_node(&self, number: usize, name: &str, dir: &Path) -> Result<Node> {
        let installation = match self.installations.get(name) {
            Some(installation) => installation.clone(),
            None => Installation::preferred()?,
        };
        let settings = self.settings.iter().filter(|(node, ..)| node == name);
        let options = Options {
            name: name.to_owned(),
            durability: self.durability,
            grouping: self.grouping,
            settings: settings
                .map(|(_, name, value)| (name.clone(), value.clone()))
                .collect(),
            template: number,
            dir: Some(dir.to_path_buf()),
        };
        let server = Server::start(&installation, options)?;
        let arguments = self.agent_arguments.iter().filter(|(node, _)| node == name);
        let variables = self.agent_environment.iter();
        let variables = variables.filter(|(node, ..)| node == name);
        Ok(Node {
            name: name.to_owned(),
            agent: None,
            server,
            port: Port::take()?,
            advertise: None,
            password: None,
            role: None,
            elsewhere: None,
            replicates_from: None,
            coordinator: None,
            replication_port: None,
            dials: Dials::default(),
            limits: self.limits.clone(),
            agent_arguments: arguments.map(|(_, argument)| argument.clone()).collect(),
            agent_environment: variables
                .map(|(_, name, value)| (name.clone(), value.clone()))
                .collect(),
            has_data_dir: !self.without_data_dir.iter().any(|node| node == name),
            dir: dir.to_path_buf(),
        })
    }
}

/// Issues the certificates of a cluster with the product's own commands, like an operator.
///
/// # Errors
/// What the command line printed.
pub fn issue_certificates(binaries: &Binaries, dir: &Path, nodes: &[String]) -> Result<()> {
    fs::create_dir_all(dir)?;
    let run = |arguments: &[&str]| {
        let mut cli = Command::new(binaries.cli());
        cli.arg("certs")
            .args(arguments)
            .arg("--dir")
            .arg(dir)
            .env("HOME", dir);
        command::output(&mut cli).map(drop)
    };
    run(&["init"])?;
    let agents = nodes.iter().map(|node| ("agent", node.as_str()));
    for (role, name) in agents.chain([("coordinator", "coordinator"), ("operator", "operator")]) {
        run(&[
            "issue",
            "--role",
            role,
            "--name",
            name,
            "--san",
            "127.0.0.1",
        ])?;
    }
    Ok(())
}
